"""Rounding to bfloat16 in three operations, against torch's own rounding."""

import numpy as np
import pytest
import torch

from lorascope.updates.base import Stored
from lorascope.weights.codes.nibbles import FourBits, Rounding
from lorascope.weights.tensors import InMemory

NF4 = np.linspace(-1, 1, 16, dtype=np.float32)


def rounded_by_torch(values):
    return torch.from_numpy(values).to(torch.bfloat16).float().numpy()


@pytest.mark.parametrize("exponent", [-100, 0, 99])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_mantissa_is_rounded_as_bfloat16_rounds_it(exponent, dtype):
    bits = np.arange(1 << 23, dtype=np.uint32) | np.uint32((127 + exponent) << 23)
    values = np.concatenate([bits[: 1 << 20], bits[-(1 << 20) :]]) if exponent else bits
    values = np.concatenate([values.view(np.float32), -values.view(np.float32)])
    expected, out = rounded_by_torch(values), np.empty(values.size, dtype)
    Rounding("BF16", values.size)(values, out, moderate=True)
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("factor", [1.0, 1e-42, 2.0**-49.5, 2.0**49.5, 1e38, np.inf, np.nan])
def test_blocks_of_every_size_are_the_products_that_torch_rounds(factor):
    """Sizes at which the three operations would leave float32 are rounded by their bits."""
    rng = np.random.default_rng(7)
    codes, scales = rng.integers(0, 256, 4 * 32, dtype=np.uint8), rng.random(4, dtype=np.float32)
    with np.errstate(over="ignore"):
        scales = (scales * np.float32(factor)).astype(np.float32)
        products = NF4[np.stack([codes >> 4, codes & 15], axis=1)].reshape(4, 64) * scales[:, None]
    sources: tuple[Stored, ...] = (InMemory(codes, "U8"), InMemory(scales), InMemory(NF4))
    out = np.empty((4, 64), np.float32)
    FourBits((4, 64), "BF16", 64).fill(sources, out, 0)
    assert np.array_equal(out, rounded_by_torch(products), equal_nan=True)
