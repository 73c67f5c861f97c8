import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from lorascope.errors import InputError
from lorascope.updates.base import dense
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.io import read
from tests.weights.example import normal
from tests.weights.examples_kohya import examples

# Both sides multiply the same float32 numbers in float64, sums of at most a few dozen terms in another order.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize("example", examples(), ids=lambda e: e.name)
def test_delta_equals_the_writers_formula(example, tmp_path):
    adapter = read(example.write(tmp_path))
    assert adapter.source.format == "kohya"
    assert set(adapter.updates) == set(example.expected)
    for name, expected in example.expected.items():
        update = adapter.updates[name]
        assert update.shape == expected.shape
        np.testing.assert_allclose(dense(update.delta()), expected, **CLOSE)


def test_convolution_equals_two_convolutions_in_a_row(tmp_path):
    rng = np.random.default_rng(1)
    down, up = normal(rng, 3, 5, 3, 3), normal(rng, 7, 3, 1, 1)
    save_file({"lora_unet_c.lora_down.weight": down, "lora_unet_c.lora_up.weight": up}, tmp_path / "a.safetensors")
    update = read(tmp_path / "a.safetensors").updates["lora_unet_c"]
    assert update.kernel == (3, 3)
    x = torch.randn(2, 5, 9, 9, dtype=torch.float64)
    twice = torch.conv2d(torch.conv2d(x, torch.tensor(down).double(), padding=1), torch.tensor(up).double())
    once = torch.conv2d(x, torch.tensor(dense(update.delta())).reshape(7, 5, 3, 3), padding=1)
    np.testing.assert_allclose(once, twice, rtol=1e-10, atol=1e-11)  # sums of 45 terms of size 10


def test_settings_keep_short_values_and_say_how_long_the_others_were(tmp_path):
    settings = read(examples()[0].write(tmp_path)).settings
    assert settings["ss_network_dim"] == "4"
    assert settings["ss_network_args"] == {"conv_dim": "3"}
    assert settings["ss_tag_frequency"] == "(1000 characters)"


def test_a_base_gives_the_names_back_where_they_are_unambiguous(tmp_path):
    rng = np.random.default_rng(2)
    adapter, base = {}, {}
    for name in ("lora_unet_mid_block_proj_in", "lora_te1_layers_0_q", "lora_te2_layers_0_q", "lora_unet_a_b"):
        adapter |= {f"{name}.lora_down.weight": normal(rng, 2, 4), f"{name}.lora_up.weight": normal(rng, 6, 2)}
    adapter |= {f"{n}.{half}": v for n in ("lora_te_m_k", "m.k") for half, v in _pair(rng).items()}  # both are m.k
    for name in ("mid_block.proj_in", "layers.0.q", "m.k", "a.b", "a_b"):  # a_b fits two, layers.0.q is claimed by two
        base[f"{name}.weight"] = normal(rng, 6, 4)
    save_file(adapter, tmp_path / "adapter.safetensors")
    save_file(base, tmp_path / "model.safetensors")
    with_base = read(tmp_path / "adapter.safetensors", open_checkpoint(tmp_path / "model.safetensors"))
    kept = {"lora_te1_layers_0_q", "lora_te2_layers_0_q", "lora_unet_a_b", "lora_te_m_k", "m.k"}
    assert set(with_base.updates) == {"mid_block.proj_in", *kept}
    assert with_base.updates["mid_block.proj_in"].name == "mid_block.proj_in"
    assert with_base.notes[0].startswith("4 module names fit no single module")
    assert "underscores" in read(tmp_path / "adapter.safetensors").notes[0]


@pytest.mark.parametrize(
    ("adapter", "base"),
    [
        ("lora_unet_input_blocks_4_1_proj_in", "down_blocks.1.attentions.0.proj_in"),
        ("lora_unet_down_blocks_1_attentions_0_proj_in", "model.diffusion_model.input_blocks.4.1.proj_in"),
        ("lora_unet_double_blocks_3_img_mlp_0", "transformer_blocks.3.ff.net.0.proj"),
        ("lora_transformer_blocks_0_attn1_to_q", "blocks.0.self_attn.q"),
    ],
)
def test_a_base_in_another_scheme_gives_the_names_back(adapter, base, tmp_path):
    pair = {f"{adapter}.{half}": value for half, value in _pair(np.random.default_rng(3)).items()}
    save_file(pair, tmp_path / "adapter.safetensors")
    save_file({f"{base}.weight": np.zeros((6, 4), np.float32)}, tmp_path / "model.safetensors")
    read_with_base = read(tmp_path / "adapter.safetensors", open_checkpoint(tmp_path / "model.safetensors"))
    assert set(read_with_base.updates) == {base}


def _pair(rng):
    return {"lora_down.weight": normal(rng, 2, 4), "lora_up.weight": normal(rng, 6, 2)}


@pytest.mark.parametrize("lost", ["lora_down", "lora_up"])
def test_a_missing_half_is_named(lost, tmp_path):
    tensors = {
        key: value for key, value in examples()[0].tensors.items() if key != f"lora_unet_time_embed_0.{lost}.weight"
    }
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=rf"lora_unet_time_embed_0\.{lost}\.weight' is missing"):
        read(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("m.alpha", np.array([1.0, 2.0], np.float32), "not a single number"),
        ("m.alpha", np.array(np.nan, np.float32), "not a finite number"),
        ("m.lora_up.weight", np.zeros((6, 3), np.float32), "disagree on the rank"),
        ("m.lora_up.weight", np.zeros((6, 2, 3, 3), np.float32), "kernel of its own"),
        ("m.lora_up.weight", np.zeros(6, np.float32), "not matrices"),
        ("m.lora_mid.weight", np.zeros((2, 5, 3, 3), np.float32), "Tucker core"),
        ("m.dora_scale", np.zeros((5, 1), np.float32), "does not fit"),
        ("m.dora_scale", np.zeros((6, 2), np.float32), "does not fit"),
        ("m.<script>\x1b[31m", np.zeros(1, np.float32), "not understood"),
        ("stray.alpha", np.array(1.0, np.float32), "lora_down.weight' is missing"),
    ],
)
def test_contradictions_and_strangers_are_errors_that_name_the_key(key, value, said, tmp_path):
    tensors = {"m.lora_down.weight": np.zeros((2, 4), np.float32), "m.lora_up.weight": np.zeros((6, 2), np.float32)}
    save_file({**tensors, key: value}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=said) as error:
        read(tmp_path / "a.safetensors")
    assert key.split(".")[0] in str(error.value)
    assert "\x1b" not in str(error.value)


def test_bundled_embeddings_are_set_aside(tmp_path):
    example = examples()[1]
    tensors = {**example.tensors, "bundle_emb.cat.string_to_param.*": np.zeros((2, 8), np.float32)}
    save_file(tensors, tmp_path / "a.safetensors")
    (aside,) = read(tmp_path / "a.safetensors").skipped
    assert aside.name.startswith("bundle_emb.cat")


def test_a_trained_scalar_multiplies_with_alpha_over_rank(tmp_path):
    """LyCORIS's first files store the factor on ΔW = scalar · α/r · up · down; binary fractions, so exact."""
    rng = np.random.default_rng(4)
    down, up = rng.integers(-4, 5, (2, 5)).astype(np.float32), rng.integers(-4, 5, (3, 2)).astype(np.float32)
    tensors = {"m.lora_down.weight": down, "m.lora_up.weight": up}
    numbers = {"m.alpha": np.array(3, np.float32), "m.scalar": np.array(0.25, np.float32)}
    save_file({**tensors, **numbers}, tmp_path / "a.safetensors")
    found = dense(read(tmp_path / "a.safetensors").updates["m"].delta())
    np.testing.assert_array_equal(found, 0.25 * 1.5 * up @ down)
