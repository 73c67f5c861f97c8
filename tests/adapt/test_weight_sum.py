"""W + ΔW is summed wide and rounded once."""

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from lorascope.adapt.inject import inject
from lorascope.adapt.weight_sum import rounded_sum
from lorascope.methods.lora import LoRA, LoRAConfig


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
