"""What every fused layer asks first: the dtype its products run in, and whether the base is nothing but a product."""

import torch
from torch import Tensor, nn


def autocast(x: Tensor) -> Tensor:
    """x as autocast would hand it to a product; once, so that the base and the update share one copy."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype in (torch.float32, torch.float16, torch.bfloat16):
        return x.to(torch.get_autocast_dtype(device))
    return x


def plain(base: nn.Module, x: Tensor) -> bool:
    """Whether the layer is nothing but x Wᵀ + bias with frozen floats: no quantised subclass, no hook to run."""
    from transformers.pytorch_utils import Conv1D

    return (
        type(base) in (nn.Linear, Conv1D)
        and not base._forward_hooks
        and not base._forward_pre_hooks
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
    )
