"""Which parameters of two checkpoints belong together, from files of every make, and their differences."""

import json
import math
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from lorascope.updates.base import Update
from lorascope.weights import io
from lorascope.weights.adapter import Adapter, Source
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.delta import difference, match
from lorascope.weights.tensors import InMemory
from lorascope.weights.tuned import open_tuned


def write(folder, arrays, *, shards=1, dtype=np.float32, config=None):
    """A model folder, sharded or not."""
    folder.mkdir()
    arrays = {k: np.ascontiguousarray(v.astype(dtype) if v.dtype.kind == "f" else v) for k, v in arrays.items()}
    if shards == 1:
        save_file(arrays, folder / "model.safetensors")
    else:
        names = list(arrays)
        files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
        for i, file in enumerate(files):
            save_file({name: arrays[name] for name in names[i::shards]}, folder / file)
        index = {"weight_map": {name: files[i % shards] for i, name in enumerate(names)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def pairs(base, tuned):
    before = open_checkpoint(base)
    return match(before, open_tuned(tuned, before))


def one(matched, name):
    return next(pair for pair in matched.pairs if pair.name == name)


def reasons(matched):
    return {item.name: item.reason for item in matched.skipped}


def normal(rng: np.random.Generator, *shape):
    return rng.standard_normal(shape)


def test_shards_prefixes_and_dtypes(rng, tmp_path):
    w = {f"layers.{i}.mlp.weight": normal(rng, 6, 8) for i in range(5)}
    base = write(tmp_path / "base", w, shards=2, dtype=ml_dtypes.bfloat16)
    tuned = write(tmp_path / "tuned", {f"model.{k}": v + 1 for k, v in w.items()}, shards=3)
    matched = pairs(base, tuned)
    assert sorted(pair.parameter for pair in matched.pairs) == list(w)
    assert matched.skipped == ()
    for pair in matched.pairs:
        stored = w[pair.parameter].astype(ml_dtypes.bfloat16).astype(float)
        found = difference(pair)
        np.testing.assert_array_equal(found.matrix, (w[pair.parameter] + 1).astype(np.float32).astype(float) - stored)
        assert found.base_norm == pytest.approx(np.linalg.norm(stored))
        assert found.base_rounding is not None  # the base is the coarser one
        assert (pair.base.dtype, pair.tuned_dtype) == ("BF16", "F32")


@pytest.mark.parametrize(("before", "after"), [(10, 12), (12, 10)])
def test_resized_embeddings_are_compared_in_the_rows_that_both_have(rng, tmp_path, before, after):
    e = normal(rng, 12, 4)
    base = write(tmp_path / "base", {"embed_tokens.weight": e[:before], "lm_head.weight": e[:before] + 2})
    tuned = write(tmp_path / "tuned", {"embed_tokens.weight": e[:after] + 1, "lm_head.weight": e[:after]})
    matched = pairs(base, tuned)
    embedding, head = one(matched, "embed_tokens"), one(matched, "lm_head")
    assert f"resized from {before} to {after} rows: the first 10 are compared" in embedding.notes
    np.testing.assert_allclose(difference(embedding).matrix, np.ones((4, 10)), rtol=1e-6)  # as (d_out, d_in)
    np.testing.assert_allclose(difference(head).matrix, np.full((10, 4), -2), rtol=1e-6)


def test_other_shapes_and_other_tensors_are_listed_not_dropped(rng, tmp_path):
    base = write(
        tmp_path / "base",
        {
            "a.weight": normal(rng, 4, 5),
            "b.weight": normal(rng, 4, 5),
            "gone.weight": normal(rng, 2, 2),
            "ids": np.arange(3),
        },
    )
    tuned = write(
        tmp_path / "tuned",
        {
            "a.weight": normal(rng, 4, 5),
            "b.weight": normal(rng, 4, 6),
            "new.weight": normal(rng, 2, 2),
            "ids": np.arange(3),
        },
    )
    matched = pairs(base, tuned)
    assert [pair.name for pair in matched.pairs] == ["a"]
    found = reasons(matched)
    assert set(found) == {"b.weight", "gone.weight", "new.weight", "ids"}
    assert "[4, 5] in the base and [4, 6]" in found["b.weight"]
    assert "I64" in found["ids"]


TIED = {"tie_word_embeddings": True}


def test_a_tie_stored_once_on_either_side_is_compared_once(rng, tmp_path):
    e, w = normal(rng, 7, 4), normal(rng, 4, 4)
    once = write(tmp_path / "once", {"model.embed_tokens.weight": e, "model.x.weight": w}, config=TIED)
    twice = {"model.embed_tokens.weight": e + 1, "lm_head.weight": e + 1, "model.x.weight": w}
    both = write(tmp_path / "both", twice, config=TIED)
    for base, tuned in ((once, both), (both, once)):
        matched = pairs(base, tuned)
        assert [pair.name for pair in matched.pairs] == ["model.embed_tokens", "model.x"]
        assert "tied: the same numbers as model.embed_tokens.weight" in reasons(matched)["lm_head.weight"]


def test_a_tie_that_tuning_broke_is_compared_on_both_ends(rng, tmp_path):
    e = normal(rng, 7, 4)
    base = write(tmp_path / "base", {"model.embed_tokens.weight": e}, config=TIED)
    tuned = write(tmp_path / "tuned", {"lm_head.weight": e + 2, "model.embed_tokens.weight": e + 1})
    matched = pairs(base, tuned)
    sizes = {pair.name: float(difference(pair).matrix.mean()) for pair in matched.pairs}
    assert sizes == {"model.embed_tokens": pytest.approx(1), "lm_head": pytest.approx(2)}
    assert {pair.parameter for pair in matched.pairs} == {"model.embed_tokens.weight"}
    assert any("tied in the base" in note for pair in matched.pairs for note in pair.notes)


def test_conv1d_is_a_map_stored_transposed(rng, tmp_path):
    w, change = normal(rng, 4, 12), normal(rng, 4, 12)
    base = write(tmp_path / "base", {"h.0.attn.c_attn.weight": w}, config={"model_type": "gpt2"})
    tuned = write(tmp_path / "tuned", {"transformer.h.0.attn.c_attn.weight": w + change})
    pair = one(pairs(base, tuned), "h.0.attn.c_attn")
    assert (pair.shape, pair.transposed) == ((12, 4), True)
    np.testing.assert_allclose(difference(pair).matrix, change.T, rtol=0, atol=1e-6)


def test_one_side_stored_transposed_is_transposed_back_and_square_maps_by_their_numbers(rng, tmp_path):
    w = {
        "h.0.attn.c_attn.weight": normal(rng, 4, 12),
        "h.0.attn.c_proj.weight": normal(rng, 4, 4),
        "h.0.ln.weight": normal(rng, 4),
    }
    transposed = {k: v.T + 0.01 for k, v in w.items()}
    matched = pairs(write(tmp_path / "base", w), write(tmp_path / "tuned", transposed))
    for name in ("h.0.attn.c_attn", "h.0.attn.c_proj"):
        found = difference(one(matched, name))
        np.testing.assert_allclose(found.matrix, 0.01, rtol=0, atol=1e-6)
        assert any("transposed back" in note for note in found.notes)
    assert one(matched, "h.0.ln").is_vector


def test_convolutions_experts_and_scalars(rng, tmp_path):
    w = {
        "conv.weight": normal(rng, 5, 3, 2, 2),
        "mlp.experts.up": normal(rng, 3, 4, 6),
        "scale": normal(rng, 1),
        "masked": normal(rng, 1, 1, 4, 4),
    }
    base, tuned = write(tmp_path / "base", w), write(tmp_path / "tuned", {k: v * 2 for k, v in w.items()})
    matched = pairs(base, tuned)
    conv = one(matched, "conv")
    assert (conv.shape, conv.kernel) == ((5, 12), (2, 2))
    np.testing.assert_allclose(difference(conv).matrix, w["conv.weight"].reshape(5, 12), rtol=1e-6)
    for expert in range(3):
        pair = one(matched, f"mlp.experts.up[{expert}]")
        np.testing.assert_allclose(difference(pair).matrix, w["mlp.experts.up"][expert], rtol=1e-6)
    assert one(matched, "scale").is_vector
    np.testing.assert_allclose(difference(one(matched, "masked")).matrix, w["masked"][0, 0], rtol=1e-6)


def test_memory_is_that_of_one_difference(rng, tmp_path):
    w = {f"layers.{i}.mlp.weight": normal(rng, 1500, 2000) for i in range(4)}
    base, tuned = write(tmp_path / "base", w), write(tmp_path / "tuned", {k: v + 1 for k, v in w.items()})
    tracemalloc.start()
    try:
        for pair in pairs(base, tuned).pairs:
            assert difference(pair).matrix.shape == (1500, 2000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # ΔW in float64, a replaced one not yet freed, and pieces of a million entries: about 10 arrays of 8 bytes.
    assert peak < 2 * 8 * 1500 * 2000 + 11 * 8 * (1 << 20)


def test_a_full_run_saved_as_an_adapter_is_a_tuned_side(rng, tmp_path):
    w = {"h.0.c_fc.weight": normal(rng, 4, 6), "h.0.c_fc.bias": normal(rng, 6), "wte.weight": normal(rng, 9, 4)}
    base = write(tmp_path / "base", w, config={"model_type": "gpt2"})
    tuned = {"h.0.c_fc": (w["h.0.c_fc.weight"] + 1).T, "wte": (w["wte.weight"] + 2).T}
    updates = {
        name: Update(name, "tuned", {"tuned": InMemory(values)}, transposed=True, embedding=name == "wte")
        for name, values in tuned.items()
    }
    bias = InMemory((w["h.0.c_fc.bias"] + 3).reshape(-1, 1))
    updates["h.0.c_fc.bias"] = Update("h.0.c_fc.bias", "tuned", {"tuned": bias}, base_weight="h.0.c_fc.bias")
    head = {"classifier.weight": InMemory(normal(rng, 2, 4))}
    io.write(Adapter(updates, {}, Source(method="full"), head), tmp_path / "run", "lorascope")
    matched = pairs(base, tmp_path / "run")
    for name, size in (("h.0.c_fc", 1), ("wte", 2), ("h.0.c_fc.bias", 3)):
        pair = one(matched, name)
        np.testing.assert_allclose(difference(pair).matrix, size, rtol=0, atol=1e-6)
        assert pair.is_vector == (name == "h.0.c_fc.bias")
    assert one(matched, "h.0.c_fc").shape == (6, 4)
    assert reasons(matched) == {"classifier.weight": "only in the tuned file"}


def test_any_other_adapter_gives_its_own_delta(rng, tmp_path, lora_folder):
    w = {f"model.layers.{i}.self_attn.{n}_proj.weight": normal(rng, 16, 24) for i in range(2) for n in "qv"}
    matched = pairs(write(tmp_path / "base", w), lora_folder)
    read = io.read(lora_folder)
    for pair in matched.pairs:
        found = difference(pair)
        np.testing.assert_allclose(found.matrix, read.updates[pair.name].delta().dense(), rtol=1e-12)
        assert found.rounding is None


def test_non_finite_entries_are_counted(rng, tmp_path):
    w = normal(rng, 5, 6)
    bad = w.copy()
    bad[0, 0], bad[4, 5] = math.nan, math.inf
    matched = pairs(write(tmp_path / "base", {"a.weight": w}), write(tmp_path / "tuned", {"a.weight": bad}))
    assert difference(matched.pairs[0]).non_finite == 2


def test_a_pickle_is_read_in_rows_as_well(tmp_path):
    torch = pytest.importorskip("torch")
    e = torch.randn(6, 4)
    for side, shift in (("base", 0), ("tuned", 1)):
        (tmp_path / side).mkdir()
        torch.save(
            {"wte.weight": e + shift, "mlp.experts.up": torch.ones(2, 3, 4) * shift},
            tmp_path / side / "pytorch_model.bin",
        )
    matched = pairs(tmp_path / "base", tmp_path / "tuned")
    assert len(matched.pairs) == 3
    for pair in matched.pairs:
        np.testing.assert_allclose(difference(pair).matrix, 1, rtol=0, atol=1e-6)
