"""litgpt's fused query, key and value, against its own loop over parts, in both orders of rows."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorascope.errors import InputError
from lorascope.updates.base import dense
from lorascope.weights.io import read
from tests.weights.example import double, normal

HEADS, GROUPS, SIZE, WIDTH, R = 4, 2, 3, 8, 2
SIZES = {"query": HEADS * SIZE, "key": GROUPS * SIZE, "value": GROUPS * SIZE}
MODEL = f"n_head: {HEADS}\nn_query_groups: {GROUPS}\nhead_size: {SIZE}\nn_embd: {WIDTH}\n"


def expected(a, b, trained, interleaved, scale):
    """ΔW of the fused weight: `LoRAQKVLinear` pads each part's rows with zeros at `lora_ind`."""
    total = (HEADS // GROUPS) + 2
    rows = range(sum(SIZES.values()))
    if interleaved:
        of = {
            "query": [x for x in rows if (x // SIZE) % total < total - 2],
            "key": [x for x in rows if (x // SIZE) % total == total - 2],
            "value": [x for x in rows if (x // SIZE) % total == total - 1],
        }
    else:
        of, start = {}, 0
        for part, size in SIZES.items():
            of[part], start = list(range(start, start + size)), start + size
    out, first = np.zeros((sum(SIZES.values()), WIDTH)), 0
    for number, part in enumerate(trained):
        own_a, own_b = a[number * R : (number + 1) * R], b[first : first + SIZES[part]]
        out[of[part]] = scale * double(own_b) @ double(own_a)
        first += SIZES[part]
    return out


def written(folder, trained, module, hyperparameters=True, model=MODEL):
    rng = np.random.default_rng(0)
    a, b = normal(rng, len(trained) * R, WIDTH), normal(rng, sum(SIZES[part] for part in trained), R)
    save_file({f"{module}.lora_A": a, f"{module}.lora_B": b}, folder / "a.safetensors")
    if model:
        (folder / "model_config.yaml").write_text(model)
    if hyperparameters:
        flags = "".join(f"lora_{part}: {str(part in trained).lower()}\n" for part in SIZES)
        (folder / "hyperparameters.yaml").write_text(f"lora_r: {R}\nlora_alpha: 6\n{flags}")
    return a, b


@pytest.mark.parametrize("trained", [("query", "key", "value"), ("query", "value"), ("key",)])
@pytest.mark.parametrize("module", ["transformer.h.0.attn.qkv", "transformer.h.0.attn.attn"])
def test_the_fused_update(trained, module, tmp_path):
    a, b = written(tmp_path, trained, module)
    adapter = read(tmp_path / "a.safetensors")
    found = dense(adapter.updates[module].delta())
    truth = expected(a, b, trained, module.endswith("attn.attn"), 6 / R)
    np.testing.assert_allclose(found, truth, rtol=0, atol=1e-13)
    assert adapter.notes == ()


def test_without_hyperparameters_the_parts_are_guessed_and_it_is_said(tmp_path):
    module = "transformer.h.0.attn.qkv"
    a, b = written(tmp_path, ("query", "value"), module, hyperparameters=False)
    adapter = read(tmp_path / "a.safetensors")
    truth = expected(a, b, ("query", "value"), False, 1.0)
    np.testing.assert_allclose(dense(adapter.updates[module].delta()), truth, rtol=0, atol=1e-13)
    assert "others fit too" in adapter.updates[module].notes[0]
    assert "scale unknown" in adapter.notes[0]


def test_heads_that_do_not_fit(tmp_path):
    written(tmp_path, ("query",), "transformer.h.0.attn.qkv", model=MODEL.replace("n_head: 4", "n_head: 6"))
    with pytest.raises(InputError, match="do not fit the model's heads"):
        read(tmp_path / "a.safetensors")
