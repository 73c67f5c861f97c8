"""Rows' lengths alone, against the formula."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorascope.adapt.inject import inject
from lorascope.errors import InputError
from lorascope.methods.magnitude import Magnitude

D_IN, D_OUT = 9, 6


@pytest.mark.parametrize("make", [lambda: nn.Linear(D_IN, D_OUT), lambda: Conv1D(D_OUT, D_IN)])
def test_the_rows_take_the_lengths_and_the_bias_stays(make):
    layer = make().double()
    with torch.no_grad():
        layer.bias.normal_()
    weight = layer.weight.detach() if isinstance(layer, nn.Linear) else layer.weight.detach().t()
    injected = inject(nn.Sequential(layer), Magnitude(), targets=["0"])
    delta, x = injected.layers["0"].delta, torch.randn(4, D_IN, dtype=torch.float64)
    torch.testing.assert_close(delta.m, weight.norm(dim=1))
    with torch.no_grad():
        delta.m.uniform_(0.5, 2.0)
    wanted = x @ (weight / weight.norm(dim=1, keepdim=True) * delta.m[:, None]).t() + layer.bias
    torch.testing.assert_close(injected.model(x), wanted, rtol=1e-12, atol=1e-12)  # float64 rounding
    assert injected.parameter_count() == D_OUT
    injected.merge()
    assert layer.weight.shape == make().weight.shape
    merged = layer.weight if isinstance(layer, nn.Linear) else layer.weight.t()
    torch.testing.assert_close(merged.norm(dim=1), delta.m.detach(), rtol=1e-12, atol=0)


def test_fresh_it_changes_nothing_at_all_in_any_dtype():
    for dtype in (torch.float32, torch.bfloat16):
        layer, x = nn.Linear(D_IN, D_OUT, bias=False).to(dtype), torch.randn(4, D_IN).to(dtype)
        wanted = layer(x)
        assert torch.equal(inject(nn.Sequential(layer), Magnitude(), targets=["0"]).model(x), wanted)


def test_a_layer_that_is_not_plain_goes_the_long_way_to_the_same():
    layer, x = nn.Linear(D_IN, D_OUT).double(), torch.randn(4, D_IN, dtype=torch.float64)
    injected = inject(nn.Sequential(layer), Magnitude(), targets=["0"])
    with torch.no_grad():
        injected.layers["0"].delta.m.uniform_(0.5, 2.0)
    wanted = injected.model(x)
    layer.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(injected.model(x), wanted, rtol=1e-12, atol=1e-12)  # float64 rounding


def test_what_does_not_fit_is_refused():
    layer = nn.Linear(D_IN, D_OUT)
    delta = inject(nn.Sequential(layer), Magnitude(), targets=["0"]).layers["0"].delta
    with pytest.raises(InputError, match="m does not fit"):
        delta.load_roles({"m": torch.ones(3)}, 1.0)
    with pytest.raises(InputError, match="cannot adapt"):
        inject(nn.Sequential(nn.Embedding(4, 3)), Magnitude(), targets=["0"])
