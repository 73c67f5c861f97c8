"""NeMo's adapters: DoRA, configs, and contradictions."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorascope.errors import InputError
from lorascope.weights.io import read
from tests.weights.example import double, normal

LINEAR = "decoder.layers.0.self_attention.linear_proj"


def test_dora(tmp_path):
    rng = np.random.default_rng(0)
    a, b, m, w = normal(rng, 3, 10), normal(rng, 6, 3), normal(rng, 6), double(normal(rng, 6, 10))
    place = f"{LINEAR}.adapter"
    tensors = {f"{place}.linear_in.weight": a, f"{place}.linear_out.weight": b, f"{place}.weight_magnitude": m}
    save_file(tensors, tmp_path / "a.safetensors")
    (tmp_path / "model_config.yaml").write_text(
        "model:\n  peft:\n    lora_tuning:\n      adapter_dim: 3\n      alpha: 6\n"
    )
    turned = w + 2 * double(b) @ double(a)
    expected = double(m)[:, None] * turned / np.linalg.norm(turned, axis=1, keepdims=True) - w
    adapter = read(tmp_path)
    np.testing.assert_allclose(adapter.updates[LINEAR].delta(w).dense(), expected, rtol=0, atol=1e-13)
    assert adapter.settings == {"alpha": 6.0, "dim": 3}


@pytest.mark.parametrize(
    ("text", "scale"),
    [
        ("peft:\n  dim: 3\n  alpha: 6\n", 2.0),
        ("peft:\n  dim: 3\n", 1.0),
        ("model:\n  hidden: 3\n", None),
        ("peft: null\n", None),
        ("peft: [1]\n", None),
        ("model: [1]\n", None),
        ("peft: !!python/object:nemo.LoRA {alpha: 2}\n", None),
    ],
)
def test_the_scale_of_a_config(text, scale, tmp_path):
    save_file(
        {
            f"{LINEAR}.adapter.linear_in.weight": np.ones((3, 10), "f4"),
            f"{LINEAR}.adapter.linear_out.weight": np.ones((6, 3), "f4"),
        },
        tmp_path / "a.safetensors",
    )
    (tmp_path / "run_config.yaml").write_text(text)
    adapter = read(tmp_path / "a.safetensors")
    assert adapter.updates[LINEAR].scale == (scale or 1.0)
    assert any("scale unknown" in note for note in adapter.notes) == (scale is None)


def test_an_alpha_that_is_no_number(tmp_path):
    save_file(
        {
            f"{LINEAR}.adapter.linear_in.weight": np.ones((3, 10), "f4"),
            f"{LINEAR}.adapter.linear_out.weight": np.ones((6, 3), "f4"),
        },
        tmp_path / "a.safetensors",
    )
    (tmp_path / "run_config.yaml").write_text("peft:\n  alpha: much\n")
    with pytest.raises(InputError, match="not a number"):
        read(tmp_path)


def test_a_layer_s_own_state_is_no_weight(tmp_path):
    """TransformerEngine's layers leave an empty tensor each, which is not a shard that was not gathered."""
    place = f"{LINEAR}.adapter"
    rng = np.random.default_rng(0)
    tensors = {f"{place}.linear_in.weight": normal(rng, 3, 10), f"{place}.linear_out.weight": normal(rng, 6, 3)}
    save_file(tensors | {f"{place}._extra_state": np.zeros(0, np.uint8)}, tmp_path / "a.safetensors")
    adapter = read(tmp_path)
    assert set(adapter.updates) == {LINEAR}
    assert "no weight" in adapter.skipped[0].reason
