"""What layers with an update share: the dtype of their products, whether the base is nothing but a product, and the
checks of the settings that most methods have.
"""

import torch
from torch import Tensor, nn

from lorascope.errors import InputError


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


def check_rank(rank: int) -> None:
    """InputError where r is no rank."""
    if rank < 1:
        raise InputError("rank is too small", found=rank, expected="a whole number from 1")


def check_dropout(dropout: float) -> None:
    """InputError where it is no probability below one."""
    if not 0.0 <= dropout < 1.0:
        raise InputError("dropout is no probability", found=dropout, expected="0 ≤ dropout < 1")
