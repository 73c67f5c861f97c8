"""Codes against the libraries that wrote them: bitsandbytes, transformers' fp8, and the formula written out densely."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lorascope.errors import InputError
from lorascope.updates.base import Update
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.quantised import Decoded, Unreadable, scheme_name
from lorascope.weights.tensors import InMemory

W = torch.randn(48, 192, generator=torch.Generator().manual_seed(0))
FP8 = torch.float8_e4m3fn


def checkpoint(folder, tensors, **config):
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(folder)


def read(folder, tensors, **config):
    """The values of `q.weight`, and the checkpoint's names."""
    opened = checkpoint(folder, tensors, **config)
    return opened.stored["q.weight"].read(), opened.names()


def test_llm_int8_is_what_bitsandbytes_gives(tmp_path):
    functional = pytest.importorskip("bitsandbytes.functional")
    codes, scb, _ = functional.int8_vectorwise_quant(W.half())
    expected = functional.int8_vectorwise_dequant(codes, scb).double().numpy()
    tensors = {"q.weight": codes, "q.SCB": scb, "q.weight_format": torch.tensor(0, dtype=torch.uint8)}
    found, names = read(tmp_path, tensors)
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # theirs is in float32, with 1/127 rounded
    assert names == ["q.weight"]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_are_what_bitsandbytes_gives(kind, nested, tmp_path):
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = W.to(torch.bfloat16)
    codes, state = functional.quantize_4bit(weight, quant_type=kind, compress_statistics=nested)
    packed = state.as_dict(packed=True)
    tensors = {"q.weight": codes, **{f"q.weight.{name}": tensor for name, tensor in packed.items()}}
    found, names = read(tmp_path, tensors, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    expected = functional.dequantize_4bit(codes, state).double().numpy()
    assert np.linalg.norm(found - expected) <= 2e-3 * np.linalg.norm(
        expected
    )  # now and then bfloat16's other neighbour
    assert np.mean(found == expected) > 0.98
    assert names == ["q.weight"]
    assert open_checkpoint(tmp_path).stored["q.weight"].scheme == f"bitsandbytes {kind}"


def test_fp8_by_block(tmp_path):
    """Blocks that do not divide the sides: the last ones are narrower."""
    scale = torch.rand(2, 2, generator=torch.Generator().manual_seed(1)) + 0.5
    codes = W.to(FP8)
    wide = scale.double().repeat_interleave(32, 0)[:48].repeat_interleave(128, 1)[:, :192]
    tensors = {"q.weight": codes, "q.weight_scale_inv": scale, "q.bias": torch.zeros(48)}
    found, names = read(tmp_path, tensors, quantization_config={"quant_method": "fp8", "weight_block_size": [32, 128]})
    np.testing.assert_array_equal(found, codes.double().numpy() * wide.numpy())
    assert sorted(names) == ["q.bias", "q.weight"]


def test_fp8_is_what_transformers_dequantises(tmp_path):
    fp8 = pytest.importorskip("transformers.integrations.finegrained_fp8")
    scale = torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) + 0.5
    expected = fp8.Fp8Dequantize(None)._dequantize_one(W.to(FP8), scale, torch.float32)
    said = {"quant_method": "fp8", "weight_block_size": [16, 48]}
    found, _ = read(tmp_path, {"q.weight": W.to(FP8), "q.weight_scale_inv": scale}, quantization_config=said)
    np.testing.assert_allclose(found, expected.double().numpy(), rtol=1e-6)  # theirs is in float32


@pytest.mark.parametrize("said", [{}, {"quant_method": "fp8"}])
def test_a_block_that_nobody_names_is_128(said, tmp_path):
    """192 columns are a block and a half, not two of 96; a grid that 128 does not make is refused."""
    scale = torch.rand(1, 2, generator=torch.Generator().manual_seed(1)) + 0.5
    config = {"quantization_config": said} if said else {}
    found, _ = read(tmp_path, {"q.weight": W.to(FP8), "q.weight_scale_inv": scale}, **config)
    wide = scale.double().repeat_interleave(128, 1)[:, :192]
    np.testing.assert_array_equal(found, (W.to(FP8).double() * wide).numpy())
    odd = checkpoint(tmp_path, {"q.weight": W.to(FP8), "q.weight_scale_inv": torch.ones(3, 4)}, **config)
    assert isinstance(odd.stored["q.weight"], Unreadable)


@pytest.mark.parametrize("shape", [(), (1,), (48,), (48, 1), (48, 6)])
@pytest.mark.parametrize("dtype", [FP8, torch.int8])
def test_scales_by_tensor_row_and_group(shape, dtype, tmp_path):
    scale = torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.5
    codes = W.to(FP8) if dtype is FP8 else torch.randint(-127, 128, W.shape, dtype=torch.int8)
    found, _ = read(tmp_path, {"q.weight": codes, "q.weight_scale": scale, "q.input_scale": torch.ones(())})
    grid = scale.double().reshape(1, 1) if scale.numel() == 1 else scale.double().reshape(48, -1)
    wide = grid if grid.shape[1] == 1 else grid.repeat_interleave(192 // grid.shape[1], 1)
    np.testing.assert_array_equal(found, (codes.double() * wide).numpy())


def test_a_zero_point_is_taken_away_first(tmp_path):
    codes = torch.randint(-127, 128, W.shape, dtype=torch.int8)
    scale, zero = torch.rand(48, 1) + 0.5, torch.randint(-5, 6, (48, 1), dtype=torch.int8)
    found, _ = read(tmp_path, {"q.weight": codes, "q.weight_scale": scale, "q.weight_zero_point": zero})
    np.testing.assert_array_equal(found, ((codes.double() - zero.double()) * scale.double()).numpy())


def test_comfyui_s_scaled_fp8_and_a_plain_cast(tmp_path):
    found, _ = read(
        tmp_path, {"q.weight": W.to(FP8), "q.scale_weight": torch.tensor(0.25), "scaled_fp8": torch.ones(2)}
    )
    np.testing.assert_array_equal(found, 0.25 * W.to(FP8).double().numpy())
    found, _ = read(tmp_path, {"q.weight": W.to(FP8)})
    np.testing.assert_array_equal(found, W.to(FP8).double().numpy())


I32 = torch.zeros(6, 192, dtype=torch.int32)
UNKNOWN = {
    "gptq": ({"q.qweight": I32, "q.qzeros": I32, "q.scales": W, "q.g_idx": I32[0]}, {"quant_method": "gptq"}, "GPTQ"),
    "no config": ({"q.qweight": I32, "q.qzeros": I32, "q.scales": W}, {}, "GPTQ"),
    "packed": ({"q.weight_packed": I32, "q.weight_scale": W, "q.weight_shape": I32[0, :2]}, {}, "compressed-tensors"),
    "mlx": (
        {"q.weight": I32.to(torch.uint32), "q.scales": W, "q.biases": W},
        {"bits": 4, "group_size": 64},
        "MLX 4-bit",
    ),
    "hqq": ({"q.W_q": I32, "q.meta": W}, {"quant_method": "hqq"}, "HQQ"),
    "codes alone": ({"q.weight": I32.to(torch.int8)}, {}, "codes of type I8 and no scale"),
    "fp8 with a stranger": ({"q.weight": W.to(FP8), "q.mask": W}, {}, "next to 'q.mask'"),
    "fp8 announced": ({"q.weight": W.to(FP8)}, {"quant_method": "torchao"}, "torchao"),
    "bitnet": ({"q.weight": I32.to(torch.uint8), "q.weight_scale": W[:1, :1]}, {"quant_method": "bitnet"}, "BitNet"),
    "a scale that fits nothing": (
        {"q.weight": W.to(FP8), "q.weight_scale": W[:7, :5]},
        {},
        "that lorascope does not know",
    ),
    "a mask beside floats": ({"q.weight": W, "q.weight_mask": W}, {}, "'q.weight_mask'"),
    "integers": ({"q.weight": I32.long()}, {}, "codes of type I64"),
    "fp4 in int8": ({"q.weight": I32.to(torch.int8), "q.weight_scale_inv": W[:1, :1]}, {"quant_method": "fp8"}, "fp8"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_understood_is_refused_by_name(case, tmp_path):
    tensors, said, name = UNKNOWN[case]
    key = "quantization" if case == "mlx" else "quantization_config"
    opened = checkpoint(tmp_path, {"other.weight": W, **tensors}, **({key: said} if said else {}))
    assert isinstance(opened.stored["q.weight"], Unreadable)
    update = Update("q", "low_rank", {"A": InMemory(np.ones((1, 192))), "B": InMemory(np.ones((48, 1)))})
    with pytest.raises(InputError, match=name.replace("(", r"\(")) as error:
        opened.of(update)
    assert "trained on" not in str(error.value)
    assert set(opened.names()) <= {
        "q.weight",
        "other.weight",
        "q.scales",
        "q.biases",
        "q.mask",
        "q.weight_mask",
        "q.meta",
    }
    np.testing.assert_array_equal(opened.stored["other.weight"].read(), W.double().numpy())


def test_rotated_weights_are_no_plain_ones(tmp_path):
    said = {"quant_method": "compressed-tensors", "transform_config": {"R1": {}}}
    opened = checkpoint(tmp_path, {"q.weight": W, "q.bias": W[0]}, quantization_config=said)
    assert "rotated" in opened.stored["q.weight"].reason


def test_fused_experts_beside_a_scale_are_no_plain_weights(tmp_path):
    name = "model.layers.0.mlp.experts.gate_up_proj"
    stack = torch.randn(2, 8, 4)
    assert isinstance(checkpoint(tmp_path, {name: stack.to(torch.int8)}).stored[name], Unreadable)
    for tensors in (
        {name: stack.bfloat16(), f"{name}_scale": torch.ones(2, 8, 1)},
        {name: stack, f"{name}.absmax": stack},
    ):
        opened = checkpoint(tmp_path, tensors)
        assert isinstance(opened.stored[name], Unreadable)


def test_plain_models_are_untouched(tmp_path):
    tensors = {
        "a.weight": W, "a.bias": W[0], "norm.weight": W[0], "bn.weight": W[0], "bn.running_mean": W[0],
        "bn.num_batches_tracked": torch.tensor(3), "embeddings.position_ids": torch.arange(4), "gate.weight": W,
        "gate.e_score_correction_bias": W[0], "attn.in_proj_weight": W,
    }  # fmt: skip
    opened = checkpoint(tmp_path, tensors, model_type="llama")
    assert set(opened.names()) == set(tensors)
    assert not any(isinstance(stored, Decoded | Unreadable) for stored in opened.stored.values())
    assert scheme_name(opened.config) is None
