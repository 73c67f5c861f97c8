"""MLX's adapters: what is not in the examples of `examples_mlx.py`."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorascope.errors import InputError
from lorascope.updates.base import dense
from lorascope.weights.io import read
from tests.weights.example import double, normal
from tests.weights.examples_mlx import config, folder_of

Q = "model.layers.0.self_attn.q_proj"


def factors(rng):
    return {f"{Q}.lora_a": normal(rng, 10, 3), f"{Q}.lora_b": normal(rng, 3, 6)}


def test_without_a_config_the_scale_is_unknown_and_said(tmp_path):
    tensors = factors(np.random.default_rng(0))
    save_file(tensors, tmp_path / "adapters.safetensors")
    adapter = read(tmp_path)
    expected = (double(tensors[f"{Q}.lora_a"]) @ double(tensors[f"{Q}.lora_b"])).T
    np.testing.assert_allclose(dense(adapter.updates[Q].delta()), expected, rtol=0, atol=1e-13)
    assert "scale unknown" in adapter.notes[0]


def test_a_numbered_checkpoint_takes_the_config_of_its_folder(tmp_path):
    folder_of(tmp_path, factors(np.random.default_rng(0)), config())
    assert read(tmp_path / "0000100_adapters.safetensors").updates[Q].scale == 20.0


def test_alpha_of_old_versions_is_said(tmp_path):
    adapter = read(folder_of(tmp_path, factors(np.random.default_rng(0)), config(alpha=16)))
    assert adapter.updates[Q].scale == 20.0
    assert "alpha/r" in adapter.notes[0]


@pytest.mark.parametrize(
    ("shapes", "written", "reason"),
    [
        ({f"{Q}.lora_a": (10, 3)}, config(), "is missing"),
        ({f"{Q}.lora_a": (10, 3), f"{Q}.lora_b": (2, 6)}, config(), "do not fit together"),
        ({f"{Q}.lora_a": (2, 3, 5), f"{Q}.lora_b": (3, 6, 3)}, config(), "do not fit together"),
        ({f"{Q}.lora_a": (10, 3), f"{Q}.lora_b": (3, 6), f"{Q}.m": (5,)}, config("dora"), "does not fit"),
        ({f"{Q}.lora_a": (10, 3), f"{Q}.lora_b": (3, 6), f"{Q}.other": (5,)}, config(), "not understood"),
        ({f"{Q}.lora_a": (10, 3), f"{Q}.lora_b": (3, 6)}, config(scale="much"), "not a number"),
        ({f"{Q}.lora_a": (10, 3), f"{Q}.lora_b": (3, 6)}, {"lora_parameters": [1]}, "not an object"),
    ],
)
def test_contradictions_name_the_key(shapes, written, reason, tmp_path):
    save_file({key: np.ones(shape, np.float32) for key, shape in shapes.items()}, tmp_path / "adapters.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(written))
    with pytest.raises(InputError, match=reason):
        read(tmp_path)
