"""Small floats with scales that are floats or exponents, against the formula written out and the libraries."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lorascope.errors import InputError
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.codes.decoded import Decoded
from lorascope.weights.quantised import Unreadable

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
M, N = 48, 128
FP8 = torch.float8_e4m3fn
_DRAWN = np.random.default_rng(1)
CODES = _DRAWN.integers(0, 16, (M, N))
BYTES = torch.tensor((CODES[:, 0::2] | CODES[:, 1::2] << 4).astype(np.uint8))
EXPONENTS = torch.tensor(_DRAWN.integers(120, 130, (M, N // 32)).astype(np.uint8))
SMALL = torch.tensor(_DRAWN.uniform(1, 100, (M, N // 16)), dtype=torch.float32).to(FP8)


def opened(folder, tensors, **config):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(folder)


def read(folder, tensors, name="q.weight", **config):
    stored = opened(folder, tensors, **config).stored[name]
    assert isinstance(stored, Decoded), getattr(stored, "reason", stored)
    values = stored.read()
    if stored.rows is not None:
        np.testing.assert_array_equal(stored.rows(1, len(values) - 1).read(), values[1:-1])
    single = np.empty(stored.shape, np.float32)
    stored.into(single)
    np.testing.assert_allclose(single, values, rtol=2e-7)
    return values


def spread(scale, width):
    return np.repeat(np.asarray(scale, np.float64), width, axis=-1)


POWERS = 2.0 ** (EXPONENTS.double().numpy() - 127)


@pytest.mark.parametrize("said", [{}, {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}])
def test_mxfp4(said, tmp_path):
    config = {"quantization_config": said} if said else {}
    tensors = {"q.weight_packed": BYTES, "q.weight_scale": EXPONENTS}
    expected = E2M1[CODES] * spread(POWERS, 32)
    np.testing.assert_array_equal(read(tmp_path, tensors, **config), expected)
    turned = {"q.weight": BYTES.view(torch.int8), "q.weight_scale_inv": EXPONENTS.view(torch.float8_e8m0fnu)}
    np.testing.assert_array_equal(read(tmp_path, turned, **config), expected)


def test_nvfp4_by_either_writer(tmp_path):
    """compressed-tensors divides by the tensor's scale, ModelOpt multiplies by it."""
    scale = spread(SMALL.double().numpy(), 16)
    of_all = torch.tensor([0.037])
    tensors = {"q.weight_packed": BYTES, "q.weight_scale": SMALL, "q.weight_global_scale": of_all}
    np.testing.assert_allclose(read(tmp_path, tensors), E2M1[CODES] * scale / of_all.double().item(), rtol=1e-15)
    tensors = {
        "q.weight": BYTES,
        "q.weight_scale": SMALL,
        "q.weight_scale_2": torch.tensor(0.037),
        "q.input_scale": of_all,
    }
    said = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    found = read(tmp_path, tensors, quantization_config=said)
    np.testing.assert_allclose(found, E2M1[CODES] * scale * of_all.double().item(), rtol=1e-15)
    del tensors["q.weight_scale_2"]
    assert "the scale of the tensor is missing" in opened(tmp_path, tensors).stored["q.weight"].reason


@pytest.mark.parametrize("kind", ["MXFP4", "NVFP4", "MXFP8"])
def test_compressed_tensors_library(kind, tmp_path):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    size, strategy = (16, "tensor_group") if kind == "NVFP4" else (32, "group")
    bits, form = (8, "mxfp8-quantized") if kind == "MXFP8" else (4, f"{kind.lower()}-pack-quantized")
    weights = QuantizationArgs(num_bits=bits, type="float", strategy=strategy, group_size=size)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    plain = torch.randn(M, N, generator=torch.Generator().manual_seed(0))
    scale = torch.full((M, N // size), 0.5) if kind != "NVFP4" else torch.full((M, N // size), 16.0)
    state = {"weight": plain, "weight_scale": scale}
    if kind == "NVFP4":
        state["weight_global_scale"] = torch.tensor([32.0])
    compressor = BaseCompressor.get_value_from_registry(form)
    made = compressor.compress(state, scheme)
    if kind != "NVFP4":
        made["weight_scale"] = made["weight_scale"].to(torch.uint8)
    expected = compressor.decompress(made, scheme)["weight"]
    found = read(tmp_path, {f"q.{name}": tensor for name, tensor in made.items()})
    np.testing.assert_allclose(found, expected.double().numpy(), rtol=2**-8)  # theirs is in bfloat16
    assert 0.2 < np.linalg.norm(found) / np.linalg.norm(plain) < 2


def experts(rng):
    blocks = rng.integers(0, 256, (3, 24, 2, 16)).astype(np.uint8)
    scales = rng.integers(120, 130, (3, 24, 2)).astype(np.uint8)
    return torch.tensor(blocks), torch.tensor(scales)


def test_gpt_oss_s_experts_are_transposed(rng, tmp_path):
    blocks, scales = experts(rng)
    name = "model.layers.0.mlp.experts.down_proj"
    tensors = {f"{name}_blocks": blocks, f"{name}_scales": scales, f"{name}_bias": torch.zeros(3, 24)}
    found = read(tmp_path, tensors, name)
    codes = np.stack([blocks.numpy() & 15, blocks.numpy() >> 4], axis=-1).reshape(3, 24, 2, 32)
    values = E2M1[codes] * 2.0 ** (scales.double().numpy()[..., None] - 127)
    np.testing.assert_array_equal(found, values.reshape(3, 24, 64).swapaxes(1, 2))
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    theirs = mxfp4.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    np.testing.assert_array_equal(found, theirs.double().numpy())


def test_blocks_of_no_experts_are_said(tmp_path):
    name = "model.layers.0.mlp.experts.down_proj"
    for shape in ((), (16,), (3, 24, 16)):
        blocks = torch.zeros(shape, dtype=torch.uint8)
        stored = opened(tmp_path, {f"{name}_blocks": blocks, f"{name}_scales": torch.ones(3)}).stored[name]
        assert isinstance(stored, Unreadable)


def test_experts_with_scales_of_their_own(tmp_path):
    """DeepSeek's and Qwen's fused experts by block, and FBGEMM's of Llama 4: one for each column, whatever its axis."""
    stack = torch.randn(3, 32, 64, generator=torch.Generator().manual_seed(2)).to(FP8)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    scale = torch.rand(3, 2, 4) + 0.5
    said = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    found = read(tmp_path, {name: stack, f"{name}_scale_inv": scale}, name, quantization_config=said)
    wide = scale.double().repeat_interleave(16, 1).repeat_interleave(16, 2)
    np.testing.assert_array_equal(found, (stack.double() * wide).numpy())
    for shape in ((3, 1, 64), (3, 64, 1)):
        scale = torch.rand(shape) + 0.5
        said = {"quant_method": "fbgemm_fp8"}
        found = read(tmp_path, {name: stack, f"{name}_scale": scale}, name, quantization_config=said)
        np.testing.assert_array_equal(found, (stack.double() * scale.double().reshape(3, 1, 64)).numpy())


@pytest.mark.parametrize("dtype", [FP8, torch.float8_e5m2])
def test_every_byte_of_float8(dtype, tmp_path):
    """NaN, infinities and subnormals among them, with a scale of either size."""
    codes = torch.arange(256, dtype=torch.uint8).view(dtype).reshape(2, 128)
    for scale in (0.37, 3e5):
        tensors = {"q.weight": codes, "q.weight_scale": torch.tensor([scale])}
        np.testing.assert_array_equal(read(tmp_path, tensors), codes.double().numpy() * np.float64(np.float32(scale)))


def test_mxfp8_and_exponents_as_a_scale(tmp_path):
    codes = torch.randn(M, N).to(FP8)
    expected = codes.double().numpy() * spread(POWERS, 32)
    np.testing.assert_array_equal(read(tmp_path, {"q.weight": codes, "q.weight_scale": EXPONENTS}), expected)
    powers = EXPONENTS[:1, :1].view(torch.float8_e8m0fnu)
    found = read(tmp_path, {"q.weight": codes, "q.weight_scale_inv": powers})
    np.testing.assert_array_equal(found, codes.double().numpy() * POWERS[0, 0])


BROKEN = {
    "an absmax too short": ({"absmax": torch.ones(7)}, "absmax has 7 numbers, and 96 are needed"),
    "no absmax": ({"absmax": None}, "absmax is missing"),
    "no map": ({"quant_map": None}, "quant_map is missing"),
    "a map of fifteen": ({"quant_map": torch.ones(15)}, "quant_map has 15"),
    "no state": ({"quant_state.bitsandbytes__nf4": None}, "quant_state is missing"),
    "a lying shape": ({"state": {"shape": [48, 1000]}}, "48000 entries"),
    "no shape": ({"state": {"shape": "wide"}}, "the shape 'wide'"),
    "blocks of none": ({"state": {"blocksize": 0}}, "the block size 0"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_four_bits_are_said(case, tmp_path):
    changed, words = BROKEN[case]
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [M, N], **changed.get("state", {})}
    parts = {
        "absmax": torch.ones(M * N // 64),
        "quant_map": torch.linspace(-1, 1, 16),
        "quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
        **{name: tensor for name, tensor in changed.items() if name != "state"},
    }
    tensors = {f"q.weight.{name}": tensor for name, tensor in parts.items() if tensor is not None}
    stored = opened(tmp_path, {"q.weight": BYTES.reshape(-1, 1), **tensors}).stored["q.weight"]
    assert isinstance(stored, Unreadable)
    assert words in stored.reason
    with pytest.raises(InputError, match="before it was quantised"):
        stored.read()


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_four_bits_written_out(rng, dtype, nested, tmp_path):
    """The library's arithmetic, one float32 at a time: blocks that no row ends with, and the second coding."""
    m, n, block = 6, 40, 64
    codes = rng.integers(0, 16, m * n)
    table, largest = np.linspace(-1, 1, 16).astype(np.float32), rng.uniform(0.5, 2, 4).astype(np.float32)
    state = {"quant_type": "nf4", "blocksize": block, "dtype": dtype, "shape": [m, n]}
    parts = {"absmax": torch.tensor(largest), "quant_map": torch.tensor(table)}
    if nested:
        again, inner = np.linspace(-1, 1, 256).astype(np.float32), np.array([1.5, 0.5], np.float32)
        second = np.array([3, 250, 77, 128], np.uint8)
        largest = np.array([again[c] * inner[i // 2] + np.float32(0.75) for i, c in enumerate(second)], np.float32)
        state |= {"nested_blocksize": 2, "nested_offset": 0.75, "nested_dtype": "float32"}
        parts = {"absmax": torch.tensor(second), "quant_map": torch.tensor(table)}
        parts |= {"nested_absmax": torch.tensor(inner), "nested_quant_map": torch.tensor(again)}
    text = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    packed = torch.tensor((codes[0::2] << 4 | codes[1::2]).astype(np.uint8)).reshape(-1, 1)
    tensors = {"q.weight": packed, "q.weight.quant_state.bitsandbytes__nf4": text}
    found = read(tmp_path, tensors | {f"q.weight.{name}": tensor for name, tensor in parts.items()})
    products = torch.tensor([table[c] * largest[i // block] for i, c in enumerate(codes)])
    np.testing.assert_array_equal(found.reshape(-1), products.to(getattr(torch, dtype)).double().numpy())
