"""Integers of a few bits packed in words, against the formula written out, and the libraries."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lorascope.errors import InputError
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.quantised import Unreadable

M, N, GROUP = 64, 96, 32  # d_out, d_in, columns that share a scale
_DRAWN = np.random.default_rng(0)
SCALES = torch.tensor(_DRAWN.uniform(0.5, 1.5, (M, N // GROUP)), dtype=torch.float16)
ORDER = _DRAWN.permutation(np.repeat(np.arange(N // GROUP), GROUP))


def codes_of(bits, *shape):
    return np.random.default_rng(bits).integers(0, 1 << bits, shape)


def stream(codes, bits):
    """Each row of codes as one integer, the first code in its lowest bits, cut into words of 32."""
    rows = []
    for row in codes:
        number = sum(int(code) << (bits * i) for i, code in enumerate(row))
        words = -(-len(row) * bits // 32)
        rows.append(np.frombuffer(number.to_bytes(4 * words, "little"), "<u4"))
    return np.stack(rows)


def words(codes, bits, dtype=torch.int32):
    return torch.tensor(stream(codes, bits).view(np.int32)).view(dtype)


def opened(folder, tensors, **config):
    named = {f"q.{name}": tensor.contiguous() for name, tensor in tensors.items()}
    save_file({**named, "norm.weight": torch.ones(N)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(folder)


def read(folder, tensors, **config):
    """The values of `q.weight`; its parts by rows are the same numbers."""
    checkpoint = opened(folder, tensors, **config)
    assert set(checkpoint.names()) <= {"q.weight", "q.bias", "norm.weight"}
    stored = checkpoint.stored["q.weight"]
    values = stored.read()
    assert values.dtype == np.float64
    if stored.rows is not None:
        np.testing.assert_array_equal(stored.rows(5, 17).read(), values[5:17])
    single = np.empty(stored.shape, np.float32)
    stored.into(single)
    np.testing.assert_allclose(single, values, rtol=2e-6, atol=1e-6)
    return values


def wide(scales, group=GROUP):
    return np.repeat(scales.double().numpy(), group, axis=1)


def gptq(bits, form="gptq", ordered=False, zeros=True):
    """What AutoGPTQ writes, and W."""
    codes, zero = codes_of(bits, M, N), codes_of(bits, M, N // GROUP)
    stored = zero if form == "gptq_v2" else np.maximum(zero - 1, 0)
    real = stored + (form != "gptq_v2")
    group = ORDER if ordered else np.arange(N) // GROUP
    tensors = {"qweight": words(codes, bits).T, "scales": SCALES.T, "bias": torch.zeros(M)}
    if zeros:
        tensors["qzeros"] = words(stored.T, bits)
    else:
        real = np.full_like(zero, 1 << (bits - 1))
    if ordered:
        tensors["g_idx"] = torch.tensor(group, dtype=torch.int32)
    weight = (codes - real[:, group]) * SCALES.double().numpy()[:, group]
    return tensors, weight


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(bits, form, ordered, tmp_path):
    tensors, weight = gptq(bits, form, ordered)
    said = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "checkpoint_format": form}
    np.testing.assert_array_equal(read(tmp_path, tensors, quantization_config=said), weight)


def test_gptq_without_a_config_and_with_middle_zeros(tmp_path):
    tensors, weight = gptq(4, ordered=True)
    np.testing.assert_array_equal(read(tmp_path, tensors), weight)
    tensors, weight = gptq(4, zeros=False)
    np.testing.assert_array_equal(read(tmp_path, tensors, quantization_config={"bits": 4}), weight)


@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
def test_the_settings_of_gptq_in_a_file_of_their_own(form, tmp_path):
    """quantize_config.json, which AutoGPTQ wrote before transformers' configs had a place for it."""
    tensors, weight = gptq(4, form)
    said = {"bits": 4, "group_size": GROUP, "desc_act": False, "checkpoint_format": form}
    (tmp_path / "quantize_config.json").write_text(json.dumps(said))
    np.testing.assert_array_equal(read(tmp_path, tensors), weight)


def test_a_base_of_nunchaku_s_is_called_one(tmp_path):
    tensors = {"qweight": torch.zeros(M, N // 2, dtype=torch.int8), "wscales": torch.ones(N // 64, M)}
    stored = opened(tmp_path, tensors).stored["q.weight"]
    assert isinstance(stored, Unreadable)
    assert "SVDQuant (Nunchaku)" in stored.reason


AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that stands at each place of a word, AutoAWQ's packing_utils


def awq():
    codes, zero = codes_of(4, N, M), codes_of(4, N // GROUP, M)
    mixed = [part.reshape(len(part), -1, 8)[:, :, AWQ_ORDER].reshape(len(part), -1) for part in (codes, zero)]
    tensors = {"qweight": words(mixed[0], 4), "qzeros": words(mixed[1], 4), "scales": SCALES.T}
    group = np.arange(N) // GROUP
    return tensors, ((codes - zero[group]) * SCALES.T.double().numpy()[group]).T


@pytest.mark.parametrize("said", [{}, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}])
def test_awq(said, tmp_path):
    tensors, weight = awq()
    config = {"quantization_config": said} if said else {}
    np.testing.assert_array_equal(read(tmp_path, tensors, **config), weight)
    packing = pytest.importorskip("awq.utils.packing_utils")
    made = packing.dequantize_gemm(
        tensors["qweight"], tensors["qzeros"], tensors["scales"].float().contiguous(), 4, GROUP
    )
    np.testing.assert_allclose(weight, made.T.double().numpy(), rtol=1e-6)


def compressed(bits, symmetric=True, ordered=False, channel=False):
    codes = codes_of(bits, M, N)
    scales = SCALES[:, :1] if channel else SCALES
    groups = scales.shape[1]
    zero = np.full((M, groups), 1 << (bits - 1)) if symmetric else codes_of(bits, M, groups)
    tensors = {
        "weight_packed": words(codes, bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor([M, N]),
    }
    if not symmetric:
        tensors["weight_zero_point"] = words(zero.T, bits).T
    group = ORDER if ordered else np.arange(N) // (N // groups)
    if ordered:
        tensors["weight_g_idx"] = torch.tensor(group, dtype=torch.int32)
    return tensors, (codes - zero[:, group]) * scales.double().numpy()[:, group]


@pytest.mark.parametrize("options", [{}, {"symmetric": False}, {"ordered": True}, {"channel": True}])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_compressed_tensors(bits, options, tmp_path):
    tensors, weight = compressed(bits, **options)
    np.testing.assert_array_equal(read(tmp_path, tensors), weight)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_compressed_tensors_library(bits, symmetric, tmp_path):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    weights = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group", group_size=GROUP)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    zero = torch.zeros(M, N // GROUP, dtype=torch.int8) + (0 if symmetric else 3)
    plain = torch.randn(M, N, generator=torch.Generator().manual_seed(0))
    state = {"weight": plain, "weight_scale": SCALES.float() / (1 << (bits - 2)), "weight_zero_point": zero}
    packed = PackedQuantizationCompressor.compress(state, scheme)
    expected = PackedQuantizationCompressor.decompress(packed, scheme)["weight"]
    found = read(tmp_path, packed)
    np.testing.assert_allclose(found, expected.double().numpy(), rtol=1e-6)  # theirs is in float32
    assert np.linalg.norm(found) > 1


def mlx(bits, group=GROUP):
    codes = codes_of(bits, M, N)
    scales = SCALES.repeat_interleave(GROUP // group, 1)
    biases = (-scales * 3).bfloat16()
    tensors = {"weight": words(codes, bits, torch.uint32), "scales": scales, "biases": biases}
    return tensors, codes * wide(scales, group) + wide(biases, group)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx(bits, tmp_path):
    tensors, weight = mlx(bits)
    said = {"group_size": GROUP, "bits": bits}
    np.testing.assert_allclose(read(tmp_path, tensors, quantization=said), weight, rtol=1e-15)
    of_this = {"group_size": 64, "bits": 1, "q": said}  # one module with settings of its own
    np.testing.assert_allclose(read(tmp_path, tensors, quantization=of_this), weight, rtol=1e-15)


def test_mlx_without_a_config(tmp_path):
    """Only the model's width tells four bits in groups of 32 from eight in groups of 16."""
    tensors, weight = mlx(4)
    assert "bits" in opened(tmp_path, tensors).stored["q.weight"].reason
    named = {f"q.{name}": tensor.contiguous() for name, tensor in tensors.items()}
    save_file({**named, "model.layers.0.input_layernorm.weight": torch.ones(N)}, tmp_path / "model.safetensors")
    np.testing.assert_allclose(open_checkpoint(tmp_path).stored["q.weight"].read(), weight, rtol=1e-15)


@pytest.mark.parametrize(
    ("mode", "bits", "group"),
    [("affine", bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64)]
    + [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)],
)
def test_mlx_is_what_mlx_gives(mode, bits, group, tmp_path):
    mx = pytest.importorskip("mlx.core")
    plain = mx.array(np.random.default_rng(0).standard_normal((M, 128)).astype(np.float32))
    names = ("weight", "scales", "biases")
    made = dict(zip(names, mx.quantize(plain, group_size=group, bits=bits, mode=mode), strict=False))
    expected = np.array(mx.dequantize(*made.values(), group_size=group, bits=bits, mode=mode).astype(mx.float32))
    tensors = {name: torch.tensor(np.array(array)) for name, array in made.items()}
    said = {"group_size": group, "bits": bits, "mode": mode}
    np.testing.assert_allclose(read(tmp_path, tensors, quantization=said), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("described", ["Int8Tensor", "IntxUnpackedToInt8Tensor", "Int4Tensor", ""])
def test_torchao(described, tmp_path):
    codes = torch.tensor(codes_of(8, M, N) - 128, dtype=torch.int8)
    tensors = {"q._weight_qdata": codes, "q._weight_scale": SCALES.contiguous()}
    metadata = {"q.weight": json.dumps({"_type": described})} if described else {}
    save_file(tensors, tmp_path / "model.safetensors", metadata)
    stored = open_checkpoint(tmp_path).stored["q.weight"]
    if described in ("Int8Tensor", "IntxUnpackedToInt8Tensor"):
        np.testing.assert_array_equal(stored.read(), codes.double().numpy() * wide(SCALES))
    else:
        assert isinstance(stored, Unreadable)
        assert "torchao" in stored.reason


BROKEN = {
    "no scales": (lambda: gptq(4)[0], {"scales": None}, "scales is missing"),
    "zeros of other groups": (lambda: gptq(4)[0], {"qzeros": torch.zeros(2, 6, dtype=torch.int32)}, "does not know"),
    "zeros without axes": (lambda: gptq(4)[0], {"qzeros": torch.tensor(0, dtype=torch.int32)}, "does not know"),
    "a short order": (lambda: gptq(4)[0], {"g_idx": torch.zeros(5, dtype=torch.int32)}, "does not know"),
    "scales of other columns": (lambda: awq()[0], {"scales": SCALES[:5]}, "does not know"),
    "no shape": (lambda: compressed(4)[0], {"weight_shape": None}, "weight_shape is missing"),
    "a lying shape": (lambda: compressed(4)[0], {"weight_shape": torch.tensor([M, 7])}, "does not know"),
    "a huge shape": (lambda: compressed(4)[0], {"weight_shape": torch.tensor([M, 1 << 40])}, "does not know"),
    "scales that do not divide": (
        lambda: compressed(4)[0],
        {"weight_scale": SCALES[:, :2].repeat(1, 4)[:, :7]},
        "not know",
    ),
    "biases of other groups": (lambda: mlx(4)[0], {"biases": SCALES[:, :2]}, "does not know"),
    "biases of integers": (lambda: mlx(4)[0], {"biases": SCALES.int()}, "does not know"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_does_not_fit_is_said(case, tmp_path):
    make, changed, words_of = BROKEN[case]
    tensors = {name: tensor for name, tensor in {**make(), **changed}.items() if tensor is not None}
    config = {"quantization": {"bits": 4, "group_size": GROUP}} if "biases" in tensors else {}
    stored = opened(tmp_path, tensors, **config).stored["q.weight"]
    assert isinstance(stored, Unreadable)
    assert words_of in stored.reason


@pytest.mark.parametrize("make", [gptq, compressed])
def test_an_order_that_names_no_group_is_said(make, tmp_path):
    tensors, _ = make(4, ordered=True)
    name = next(name for name in tensors if name.endswith("g_idx"))
    tensors[name] = tensors[name].clone()
    tensors[name][3] = 77
    with pytest.raises(InputError, match="groups that have no scale"):
        opened(tmp_path, tensors).stored["q.weight"].read()
