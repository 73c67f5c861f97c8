import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorascope.errors import InputError
from lorascope.updates.base import dense
from lorascope.weights.io import read
from tests.weights.example import double, normal
from tests.weights.examples_diffusers import BLOCK, examples

EXACT = 1e-13  # of ΔW: sums of at most 10 products in float64


@pytest.mark.parametrize("example", examples(), ids=lambda e: e.name)
def test_delta_equals_the_formula(example, tmp_path):
    adapter = read(example.write(tmp_path))
    assert adapter.source.format == "diffusers"
    assert set(adapter.updates) == set(example.expected)
    for name, expected in example.expected.items():
        update = adapter.updates[name]
        assert update.shape == expected.shape
        assert np.linalg.norm(dense(update.delta()) - expected) <= EXACT * np.linalg.norm(expected)


def test_what_the_notes_and_the_method_say(tmp_path):
    today, bare, one, comfy, old = (read(example.write(tmp_path)) for example in examples())
    assert today.notes == one.notes == comfy.notes == ()
    assert today.settings["text_encoder.lora_alpha"] == 6
    assert bare.notes[0].endswith("4 of 4 modules")
    assert old.notes[0].endswith("3 of 4 modules")
    assert (today.source.method, bare.source.method) == ("LoRA + rsLoRA", "LoRA")
    assert today.updates["unet.resnets.0.conv1"].kernel == (3, 3)


@pytest.mark.parametrize("key", ["lora_magnitude_vector", "lora_magnitude_vector.weight"])
@pytest.mark.parametrize("shape", [(6,), (1, 6), (6, 1)])
def test_dora(key, shape, tmp_path):
    rng = np.random.default_rng(0)
    a, b, m, w = normal(rng, 4, 10), normal(rng, 6, 4), normal(rng, *shape), double(normal(rng, 6, 10))
    tensors = {
        "unet.q.lora_A.weight": a,
        "unet.q.lora_B.weight": b,
        f"unet.q.{key}": m,
        "unet.q.lora_B.bias": m.ravel(),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    adapter = read(tmp_path / "a.safetensors")
    turned = w + double(b) @ double(a)
    expected = double(m).reshape(6, 1) * turned / np.sqrt((turned**2).sum(axis=1, keepdims=True)) - w
    np.testing.assert_allclose(adapter.updates["unet.q"].delta(w), expected, rtol=1e-12, atol=1e-13)
    assert adapter.source.method == "DoRA"
    assert [item.name for item in adapter.skipped] == ["unet.q.lora_B.bias"]


def test_norms_trained_beside_are_kept(tmp_path):
    tensors = {**examples()[1].tensors, "unet.blocks.0.norm_q.weight": np.ones(3, np.float32)}
    save_file(tensors, tmp_path / "a.safetensors")
    assert set(read(tmp_path / "a.safetensors").saved) == {"unet.blocks.0.norm_q.weight"}


def _with(change):
    tensors = {"unet.q.lora_A.weight": (4, 10), "unet.q.lora_B.weight": (6, 4)} | change
    return {key: np.ones(shape, np.float32) for key, shape in tensors.items() if shape is not None}


@pytest.mark.parametrize(
    ("change", "config", "said"),
    [
        ({"unet.q.lora_B.weight": None}, None, r"unet\.q is incomplete: its up tensor"),
        ({"unet.q.lora_A.weight": None}, None, r"unet\.q is incomplete: its down tensor"),
        ({"unet.q.lora_A.weight": (3, 10)}, None, "disagree on the rank"),
        ({"unet.q.lora.down.weight": (4, 10)}, None, "two adapters of one module"),
        ({"unet.q.lora_magnitude_vector": (5,)}, None, "does not fit"),
        ({"unet.q.lora_C.weight": (4, 10)}, None, "not understood"),
        ({"unet.q.alpha": (1,)}, {"unet.r": 4}, "two sources for one scale"),
        ({}, {"unet.r": 8}, "contradicts the tensors of unet.q"),
        ({}, {"unet.r": 0}, "not a positive integer"),
        ({}, {"unet.r": 4, "unet.alpha_pattern": {"(": 1}}, "not a regular expression"),
        ({}, "[1, 2]", "not a JSON object"),
        ({}, "{", "not valid JSON"),
    ],
)
def test_contradictions_are_errors(change, config, said, tmp_path):
    text = config if isinstance(config, str) else json.dumps(config)
    save_file(_with(change), tmp_path / "a.safetensors", {"lora_adapter_metadata": text} if config else None)
    with pytest.raises(InputError, match=said):
        read(tmp_path / "a.safetensors")


def test_an_uncovered_component_has_scale_one(tmp_path):
    """A config for the UNet says nothing of the text encoder, which diffusers then loads with alpha = r."""
    tensors = _with({"text_encoder.q.lora_A.weight": (4, 10), "text_encoder.q.lora_B.weight": (6, 4)})
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 2})}
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    adapter = read(tmp_path / "a.safetensors")
    assert {name: update.scale for name, update in adapter.updates.items()} == {"unet.q": 0.5, "text_encoder.q": 1.0}


def test_old_names_are_todays(tmp_path):
    assert f"{BLOCK}.to_out.0" in read(examples()[-1].write(tmp_path)).updates


@pytest.mark.parametrize("end", ["lora_{}.weight", "lora_{}.default.weight"])
def test_an_attention_processor_is_no_module_of_todays_models(end, tmp_path):
    rng = np.random.default_rng(1)
    a, b = normal(rng, 2, 5), normal(rng, 4, 2)
    name = "unet.mid_block.attn1.processor.to_q"
    save_file({f"{name}.{end.format('A')}": a, f"{name}.{end.format('B')}": b}, tmp_path / "a.safetensors")
    (update,) = read(tmp_path / "a.safetensors").updates.values()
    assert update.name == "unet.mid_block.attn1.to_q"
    np.testing.assert_allclose(dense(update.delta()), double(b) @ double(a), rtol=1e-12)
