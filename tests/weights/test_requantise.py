"""Quantising numbers again by a base's scheme: each library's formula, group by group, and the libraries themselves."""

import numpy as np
import pytest
import torch

from lorascope.weights.codes.decoded import Decoded
from lorascope.weights.codes.requantise import requantised
from lorascope.weights.gguf_model import InBlocks
from tests.weights import test_quantised_floats as floats
from tests.weights import test_quantised_words as words
from tests.weights.test_quantised_words import GROUP, ORDER, M, N

VALUES = np.random.default_rng(5).standard_normal((M, N)).astype(np.float32)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
PLAIN = np.arange(N) // GROUP


def symmetric(x, bits):
    scale = float(np.float16(2 * max(abs(x)) / (2**bits - 1)))
    codes = [min(max(round(v / scale), -(2 ** (bits - 1))), 2 ** (bits - 1) - 1) for v in x]
    return [code * scale for code in codes]


def with_zero(x, bits):
    scale = float(np.float16((max(x) - min(x)) / (2**bits - 1)))  # every group here has both signs
    zero = round(-min(x) / scale)
    codes = [min(max(round(v / scale) + zero, 0), 2**bits - 1) for v in x]
    return [(code - zero) * scale for code in codes]


CASES = {
    "gptq": (words.gptq(4), with_zero, 4, PLAIN),
    "gptq in order of activations": (words.gptq(3, ordered=True), with_zero, 3, ORDER),
    "gptq symmetric": (words.gptq(4, zeros=False), symmetric, 4, PLAIN),
    "awq": (words.awq(), with_zero, 4, PLAIN),
    "compressed-tensors": (words.compressed(4), symmetric, 4, PLAIN),
    "compressed-tensors, zero points": (words.compressed(8, symmetric=False), with_zero, 8, PLAIN),
    "compressed-tensors in order": (words.compressed(4, ordered=True), symmetric, 4, ORDER),
}


@pytest.mark.parametrize("case", CASES)
def test_integers_by_group(case, tmp_path):
    (tensors, _), formula, bits, group = CASES[case]
    said = {"quantization_config": {"quant_method": "gptq", "bits": bits}} if "gptq" in case else {}
    found = requantised(words.opened(tmp_path, tensors, **said).stored["q.weight"], VALUES)
    for row in (0, 7, M - 1):
        for each in range(N // GROUP):
            at = np.flatnonzero(group == each)
            np.testing.assert_allclose(found[row, at], formula(VALUES[row, at].astype(float), bits), rtol=1e-6)
    assert np.linalg.norm(found - VALUES) < 2.5 * 2.0**-bits * np.linalg.norm(VALUES)


@pytest.mark.parametrize(("mode", "bits", "group"), [("affine", 4, 32), ("affine", 3, 64), ("mxfp8", 8, 32)])
def test_mlx_is_what_mlx_gives(mode, bits, group, tmp_path):
    mx = pytest.importorskip("mlx.core")
    values = np.random.default_rng(0).standard_normal((M, 128)).astype(np.float32)
    made = mx.quantize(mx.array(values), group_size=group, bits=bits, mode=mode)
    said = {"group_size": group, "bits": bits, "mode": mode}
    tensors = {
        name: torch.tensor(np.array(array)) for name, array in zip(("weight", "scales", "biases"), made, strict=False)
    }
    stored = words.opened(tmp_path, tensors, quantization=said).stored["q.weight"]
    found, expected = requantised(stored, values), stored.read()
    # mxfp8's scale may be a power of two away: the formats' standard rounds it down, MLX to the nearest
    limit = 1e-6 if mode == "affine" else 0.05
    assert np.linalg.norm(found - expected) < limit * np.linalg.norm(expected)


def test_mlx_written_out(tmp_path):
    tensors, _ = words.mlx(4)
    tensors["biases"] = tensors["biases"].half()
    stored = words.opened(tmp_path, tensors, quantization={"group_size": GROUP, "bits": 4}).stored["q.weight"]
    found = requantised(stored, VALUES)
    for x, q in zip(VALUES.reshape(-1, GROUP)[:40].astype(float), found.reshape(-1, GROUP), strict=False):
        edge, scale = (x.min(), np.ptp(x) / 15) if -x.min() > x.max() else (x.max(), -np.ptp(x) / 15)
        scale = edge / round(edge / scale)
        codes = np.clip([round((v - edge) / scale) for v in x], 0, 15)
        np.testing.assert_allclose(q, codes * float(np.float16(scale)) + float(np.float16(edge)), rtol=1e-6, atol=1e-9)


def nearest(x, table):
    signed = np.concatenate([-table[::-1], table])
    return signed[np.abs(x[:, None] - signed).argmin(1)]


def test_small_floats(tmp_path):
    values = np.random.default_rng(1).standard_normal((floats.M, floats.N)).astype(np.float32)
    tensors = {"q.weight_packed": floats.BYTES, "q.weight_scale": floats.EXPONENTS}
    found = requantised(floats.opened(tmp_path, tensors).stored["q.weight"], values)
    for x, q in zip(values.reshape(-1, 32).astype(float), found.reshape(-1, 32), strict=True):
        scale = 2.0 ** (np.floor(np.log2(np.abs(x).max())) - 2)
        np.testing.assert_allclose(q, nearest(x / scale, E2M1) * scale, rtol=1e-6)
    tensors |= {"q.weight_scale": floats.SMALL, "q.weight_global_scale": torch.tensor([0.037])}
    found = requantised(floats.opened(tmp_path, tensors).stored["q.weight"], values)
    of_all = np.abs(values).max() / 6 / 448
    for x, q in zip(values.reshape(-1, 16).astype(float), found.reshape(-1, 16), strict=True):
        scale = torch.tensor(np.abs(x).max() / 6 / of_all).to(torch.float8_e4m3fn).double().item() * of_all
        np.testing.assert_allclose(q, nearest(x / scale, E2M1) * scale, rtol=1e-5)


def test_experts_that_are_stored_transposed(rng, tmp_path):
    blocks, scales = floats.experts(rng)
    name = "model.layers.0.mlp.experts.down_proj"
    stored = floats.opened(tmp_path, {f"{name}_blocks": blocks, f"{name}_scales": scales}).stored[name]
    values = np.random.default_rng(1).standard_normal(stored.shape).astype(np.float32)
    found = requantised(stored, values)
    x = values[2, :32, 5].astype(float)  # 32 inputs of one output share a scale
    scale = 2.0 ** (np.floor(np.log2(np.abs(x).max())) - 2)
    np.testing.assert_allclose(found[2, :32, 5], nearest(x / scale, E2M1) * scale, rtol=1e-6)


def test_ggufs_blocks_and_those_that_nobody_quantises():
    pytest.importorskip("gguf")
    of = {name: Decoded((M, 256), "F32", f"GGUF {name}", (), InBlocks()) for name in ("Q8_0", "Q4_K")}
    values = np.random.default_rng(1).standard_normal((M, 256)).astype(np.float32)
    found = requantised(of["Q8_0"], values)
    x = values[3, 32:64]
    scale = np.abs(x).max() / np.float32(127)
    np.testing.assert_allclose(found[3, 32:64], np.rint(x / scale) * np.float16(scale), rtol=1e-6)
    assert requantised(of["Q4_K"], values) is None
