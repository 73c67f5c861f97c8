"""Dropout without a mask, against torch's own given the same mask."""

import pytest
import torch
from torch.nn import functional as F

from lorascope.adapt.dropout import dropped_product, inflation, keep
from lorascope.adapt.fused import low_rank
from tests.methods.test_fused import SCALE, tensors


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_entries_are_dropped_independently_and_the_mean_is_kept(p):
    n = 400_000
    found = keep(torch.ones(n, dtype=torch.float64), p, seed=3)
    kept = found != 0
    deviation = (p * (1 - p) / n) ** 0.5
    tolerance = 5 * deviation + 2**-17  # five standard deviations, and the rounding of p
    assert abs(float((~kept).double().mean()) - p) < tolerance
    assert torch.equal(found[kept], torch.ones_like(found[kept]))
    assert inflation(p) == pytest.approx(1 / (1 - p), rel=2**-16 / (1 - p))
    for lag in (1, 2, 3, 4):  # the four entries of one 64-bit number, and the next number
        both = float((~kept[lag:] & ~kept[:-lag]).double().mean())
        assert abs(both - p * p) < 5 * (p * p * (1 - p * p) / n) ** 0.5 * 2 + 2**-15, lag


def test_a_seed_is_a_mask_for_any_dtype():
    x = torch.ones(3, 5, 7)
    assert torch.equal(keep(x, 0.3, 1) != 0, keep(x.bfloat16(), 0.3, 1) != 0)
    assert not torch.equal(keep(x, 0.3, 1), keep(x, 0.3, 2))
    assert keep(x, 0.999999, 1).count_nonzero() < 3  # of 105, at 1 in 65,536 each
    assert inflation(0.999999) == 2**16


@pytest.mark.parametrize("with_base", [True, False])
def test_gradients_are_those_under_the_mask(with_base):
    t = tensors()
    base = (t["weight"], t["bias"]) if with_base else ()
    ways = {
        "one node": lambda: low_rank(t["x"], t["a"], t["b"], SCALE, *base, dropout=0.4),
        "product": lambda: (
            (F.linear(t["x"], *base) if base else 0) + SCALE * dropped_product(t["x"], t["a"], 0.4) @ t["b"].T
        ),
    }
    torch.manual_seed(7)
    mask = keep(torch.ones_like(t["x"]), 0.4, int(torch.randint(2**62, ()))) * inflation(0.4)
    assert 0 < int((mask == 0).sum()) < mask.numel()
    wanted = (F.linear(t["x"], *base) if base else 0) + SCALE * (t["x"] * mask) @ t["a"].T @ t["b"].T
    gradients = torch.autograd.grad(wanted.square().sum(), [t["x"], t["a"], t["b"]])
    for name, way in ways.items():
        torch.manual_seed(7)
        found = way()
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12, msg=name)  # float64 rounding
        mine = torch.autograd.grad(found.square().sum(), [t["x"], t["a"], t["b"]])
        for one, other in zip(mine, gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, msg=name)


def test_neither_the_mask_nor_the_dropped_input_is_saved():
    x = torch.randn(64, 256, requires_grad=True)
    a, b = torch.randn(4, 256, requires_grad=True), torch.randn(128, 4, requires_grad=True)
    own = {tensor.untyped_storage().data_ptr() for tensor in (x, a, b)}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = low_rank(x, a, b, 1.0, torch.randn(128, 256), None, 0.1)  # W is an input, and not counted with models
    assert out.shape == (64, 128)
    assert sum(saved.values()) <= 64 * 4 * 4 + 128 * 256 * 4  # h and W
