"""W + ΔW is summed wide and rounded once."""

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from lorascope.adapt import merge as merging
from lorascope.adapt.inject import Injected, inject
from lorascope.adapt.weight_sum import rounded_sum, rounded_value
from lorascope.errors import InputError
from lorascope.methods.full import Full
from lorascope.methods.ia3 import IA3
from lorascope.methods.lora import LoRA, LoRAConfig

STORAGES = [(torch.bfloat16, ml_dtypes.bfloat16), (torch.float16, np.float16), (torch.float32, np.float32)]


def test_an_update_just_over_half_a_step_moves_the_weight():
    """In bfloat16 1's neighbour is 1 + 2⁻⁷. ΔW rounded first would be 2⁻⁸: a tie, and 1 again."""
    weight = torch.ones(1, 1, dtype=torch.bfloat16)
    stored, report = rounded_sum("w", weight, torch.tensor([[2.0**-8 + 2.0**-17]]))
    assert stored.item() == 1 + 2.0**-7
    assert report.unchanged == 0
    stored, report = rounded_sum("w", weight, torch.tensor([[2.0**-8]]))
    assert stored.item() == 1
    assert (report.unchanged, report.rounding_loss) == (1, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_merged_layer_holds_the_nearest_number_to_the_sum(dtype):
    """Against numpy's and ml_dtypes' rounding of the float32 sum: exactly equal, bias-free, entry by entry."""
    torch.manual_seed(0)
    layer = nn.Linear(48, 32, bias=False).to(dtype)
    weight = layer.weight.detach().float().numpy()
    injected = inject(nn.Sequential(layer), LoRA(LoRAConfig(rank=4, alpha=4.0)), targets=["0"])
    delta = injected.layers["0"].delta
    with torch.no_grad():
        delta.B.normal_(std=0.02)
    added = delta.weight().detach().float().numpy()
    injected.merge()
    expected = (weight + added).astype(ml_dtypes.bfloat16 if dtype == torch.bfloat16 else np.float16)
    np.testing.assert_array_equal(layer.weight.detach().float().numpy(), expected.astype(np.float32))
    twice = weight + torch.from_numpy(added).to(dtype).float().numpy()
    assert np.any(twice.astype(expected.dtype) != expected)  # rounding ΔW first would be seen


def scaled_outputs(dtype: torch.dtype) -> tuple[nn.Linear, Injected]:
    """A Linear whose output (IA)³ scales, bias and all, by numbers between 1.1 and 1.4: l − 1 is exact in float32."""
    torch.manual_seed(0)
    layer = nn.Linear(48, 32).to(dtype)
    nn.init.normal_(layer.bias)
    injected = inject(nn.Sequential(layer), IA3(), targets=["0"])
    nn.init.uniform_(injected.layers["0"].delta.l, 1.1, 1.4)
    return layer, injected


@pytest.mark.parametrize(("dtype", "storage"), STORAGES)
def test_a_bias_has_the_same_bits_merged_in_memory_and_from_a_file(dtype, storage):
    """And they are numpy's and ml_dtypes' float32 sum, rounded once."""
    layer, injected = scaled_outputs(dtype)
    bias, scales = layer.bias.detach().float().numpy(), injected.layers["0"].delta.l.detach().numpy()
    expected = (bias + (scales - 1) * bias).astype(storage).astype(np.float32)
    adapter = injected.export()
    injected.merge()
    np.testing.assert_array_equal(layer.bias.detach().float().numpy(), expected)
    injected.unmerge()
    model = nn.Sequential(layer)
    merging.merge(model, adapter)
    np.testing.assert_array_equal(model[0].bias.detach().float().numpy(), expected)


@pytest.mark.parametrize(("dtype", "storage"), STORAGES)
def test_a_tuned_parameter_is_its_trained_value_rounded_once(dtype, storage):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 32).to(dtype))
    original = model[0].weight.detach().float()
    injected = inject(model, Full())
    trained = injected.trainable()["0.weight"]
    nn.init.normal_(trained, std=3e-4)  # far from W, so that W + (value - W) is not the value's bits
    value = trained.detach().clone()
    assert not torch.equal(original + (value - original), value)
    injected.merge()
    expected = value.numpy().astype(storage).astype(np.float32)
    np.testing.assert_array_equal(model[0].weight.detach().float().numpy(), expected)


def test_a_bias_beyond_the_dtype_is_refused_before_anything_is_written():
    layer, injected = scaled_outputs(torch.float16)
    nn.init.constant_(layer.bias, 60000.0)
    bits = layer.weight.detach().clone()
    with pytest.raises(InputError, match=r"NaN or infinity into 0\.bias.*a sum beyond the range of float16"):
        injected.merge()
    assert not injected.merged
    assert torch.equal(layer.weight, bits)


def test_a_value_and_a_sum_give_the_same_report():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 5, generator=generator).bfloat16()
    delta = torch.randn(6, 5, generator=generator) * 1e-2
    stored, report = rounded_sum("w", weight, delta)
    again, of_value = rounded_value("w", weight, weight.float() + delta)
    assert torch.equal(stored, again)
    # float32 holds the sum to 2⁻²⁴ of W, bfloat16 to 2⁻⁹: 2⁻¹⁵ is 3e-5 of what is lost
    assert of_value.rounding_loss == pytest.approx(report.rounding_loss, rel=1e-4)
