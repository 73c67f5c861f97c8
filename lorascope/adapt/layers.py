"""What layers with an update share: the dtype of their products, whether the base is nothing but a product, and the
checks of the settings that most methods have.
"""

from typing import cast

import torch
from torch import Tensor, nn

from lorascope.errors import InputError


def autocast(x: Tensor) -> Tensor:
    """x as autocast would hand it to a product; once, so that the base and the update share one copy."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype in (torch.float32, torch.float16, torch.bfloat16):
        return x.to(torch.get_autocast_dtype(device))
    return x


def weight_of(layer: nn.Module) -> Tensor:
    """A layer's weight as it is stored: floats, or codes."""
    weight = getattr(layer, "weight", None)
    return cast(Tensor, layer.qweight if weight is None else weight)


def of_torchao(weight: Tensor) -> bool:
    """Whether the weight is one of torchao's tensors, which look like floats and are codes."""
    kind = type(weight)
    # The two usual types first: `torch.compile` cannot trace the name of a module.
    return kind is not nn.Parameter and kind is not Tensor and kind.__module__.startswith("torchao")


def bias_of(layer: nn.Module) -> Tensor | None:
    """A layer's bias, where it has one."""
    return cast(Tensor | None, getattr(layer, "bias", None))


def map_weight(layer: nn.Module) -> Tensor:
    """The weight of a Linear or a Conv1D as the map (d_out, d_in)."""
    return weight_of(layer) if isinstance(layer, nn.Linear) else weight_of(layer).t()


def plain(base: nn.Module, x: Tensor) -> bool:
    """Whether the layer is nothing but x Wᵀ + bias with frozen floats: no quantised subclass, no hook to run."""
    from transformers.pytorch_utils import Conv1D

    return (
        type(base) in (nn.Linear, Conv1D)
        and not base._forward_hooks
        and not base._forward_pre_hooks
        and not weight_of(base).requires_grad
        and not of_torchao(weight_of(base))
        and ((bias := bias_of(base)) is None or not bias.requires_grad)
    )


def check_rank(rank: int) -> None:
    """InputError where r is no rank."""
    if rank < 1:
        raise InputError("rank is too small", found=rank, expected="a whole number from 1")


def check_dropout(dropout: float) -> None:
    """InputError where it is no probability below one."""
    if not 0.0 <= dropout < 1.0:
        raise InputError("dropout is not a valid probability", found=dropout, expected="0 ≤ dropout < 1")
