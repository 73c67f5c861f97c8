"""GGUF adapters: what is said, contradictions, and damage to the file."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.errors import InputError, LorascopeError
from lorascope.updates.base import dense
from lorascope.weights.gguf_file import open_gguf
from lorascope.weights.io import read
from tests.weights.example import double, normal
from tests.weights.examples_gguf import ALPHA, HEADS, gguf_llama, permuted, write

Q = "blk.0.attn_q.weight"


def pair(rng, rows=16, rank=3):
    return {f"{Q}.lora_a": normal(rng, rank, 10), f"{Q}.lora_b": normal(rng, rows, rank)}


def test_without_a_base_the_rows_stay_and_it_is_said(tmp_path):
    tensors = pair(np.random.default_rng(0))
    adapter = read(write(tmp_path / "a.gguf", tensors))
    expected = ALPHA / 3 * double(tensors[f"{Q}.lora_b"]) @ double(tensors[f"{Q}.lora_a"])
    found = dense(adapter.updates["model.layers.0.self_attn.q_proj"].delta())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
    assert any("rows of query and key" in note for note in adapter.notes)
    assert any("use_rslora" in note for note in adapter.notes)


def test_the_permutation_is_the_converters():
    """`LlamaModel.permute` of llama.cpp: reshape(n_head, 2, rows / n_head / 2, ...).swapaxes(1, 2)."""
    b = np.arange(48.0).reshape(16, 3)
    by_reshape = b.reshape(HEADS, 2, 16 // HEADS // 2, 3).swapaxes(1, 2).reshape(16, 3)
    np.testing.assert_array_equal(permuted(b, HEADS), by_reshape)


def test_ollamas_rows_are_left_as_they_are(tmp_path):
    path = write(tmp_path / "a.gguf", pair(np.random.default_rng(0)), **{"llama.attention.head_count": HEADS})
    assert any("Ollama" in note for note in read(path).notes)


def test_memory_is_bounded_and_rows_are_read_alone(tmp_path):
    example = gguf_llama(tmp_path)
    stored, metadata = open_gguf(example.path)
    whole = stored[f"{Q}.lora_b"]
    np.testing.assert_array_equal(whole.rows(2, 5).read(), whole.read()[2:5])
    assert metadata["some.words"] == {"length": 2}
    assert metadata["some.list"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({f"{Q}.lora_a": (3, 10)}, "is missing"),
        ({f"{Q}.lora_a": (3, 10), f"{Q}.lora_b": (16, 2)}, "do not fit together"),
        ({f"{Q}.lora_a": (3, 10), f"{Q}.lora_b": (16, 3), f"{Q}.scale": (5,)}, "not understood"),
        ({"blk.0.attn_q.weight": (3, 10), "blk.0.attn_k.weight": (3, 10)}, "full model checkpoint"),
        ({"direction.1": (10,)}, "control vector"),
    ],
)
def test_contradictions_are_said(tensors, reason, tmp_path):
    path = write(tmp_path / "a.gguf", {key: np.ones(shape, np.float32) for key, shape in tensors.items()})
    with pytest.raises(InputError, match=reason):
        read(path)


def test_other_byte_orders_and_versions(tmp_path):
    content = bytearray(write(tmp_path / "a.gguf", pair(np.random.default_rng(0))).read_bytes())
    for version, reason in ((b"\0\0\0\3", "big-endian"), (b"\7\0\0\0", "version 7")):
        content[4:8] = version
        (tmp_path / "b.gguf").write_bytes(content)
        with pytest.raises(InputError, match=reason):
            read(tmp_path / "b.gguf")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_in_a_sentence(data):
    with tempfile.TemporaryDirectory() as name:
        path = write(Path(name) / "a.gguf", pair(np.random.default_rng(0), rows=4, rank=2))
        content = bytearray(path.read_bytes())
        match data.draw(st.sampled_from(["cut", "flip", "size"])):
            case "cut":
                del content[data.draw(st.integers(0, len(content))) :]
            case "flip":
                for _ in range(data.draw(st.integers(1, 6))):
                    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
            case _:
                at = data.draw(st.integers(4, len(content) - 8))
                content[at : at + 8] = data.draw(st.sampled_from([0, 1 << 31, 1 << 62, (1 << 64) - 1])).to_bytes(
                    8, "little"
                )
        path.write_bytes(content)
        try:
            adapter = read(path)
            for update in adapter.updates.values():
                if update.excess() is None:
                    with np.errstate(all="ignore"):
                        dense(update.delta())
        except LorascopeError as error:
            refusal = str(error)
        else:
            refusal = ""
        assert "\n" not in refusal
