"""W + ΔW, rounded once to what W is stored in, and what that rounding took, for the weights of a model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lorascope.errors import InputError
from lorascope.linalg import rounding as rounding_of


@dataclass(frozen=True)
class MergedWeight:
    """What merging did to one weight.

    Attributes:
        name: the parameter's name in the model, with the expert's number where it is a slice of one.
        relative_size: ‖ΔW‖_F / ‖W‖_F; 0 of a W that is 0.
        rounding_loss: ‖(stored − W) − ΔW‖_F / ‖ΔW‖_F, the share of the update that the dtype could not hold.
        unchanged: the share of the entries that ΔW changes and the stored weight does not.
    """

    name: str
    relative_size: float
    rounding_loss: float
    unchanged: float


def widened(weight: Tensor) -> Tensor:
    """The weight in float32, or in float64 where it is stored so: what a sum is formed in."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def rounded_sum(name: str, weight: Tensor, delta: Tensor) -> tuple[Tensor, MergedWeight]:
    """W + ΔW in W's dtype, and what storing it took. `weight` and `delta` are in the layout of the model.

    Args:
        name: of the weight or the bias, to name.

    Raises:
        InputError: the weight is stored in codes, or a number in the sum is NaN or infinite.
    """
    wide = _wide(name, weight)
    delta = delta.to(wide)
    stored, rounding = rounding_of.rounded_sum(wide, delta, weight.dtype)
    return stored, _report(name, wide, delta, stored, rounding)


def rounded_value(name: str, weight: Tensor, value: Tensor) -> tuple[Tensor, MergedWeight]:
    """As `rounded_sum`, where the sum itself was trained: `value`, whose bits W + (value − W) need not have."""
    wide = _wide(name, weight)
    stored, delta = value.to(weight.dtype), value.to(wide.dtype) - wide
    return stored, _report(name, wide, delta, stored, rounding_of.sum_rounding(wide, delta, stored))


def _wide(name: str, weight: Tensor) -> Tensor:
    if not weight.is_floating_point():
        raise InputError(f"{name} cannot be merged", found=f"a {weight.dtype} weight", expected="floats")
    return widened(weight)


def _report(name: str, wide: Tensor, delta: Tensor, stored: Tensor, rounding: rounding_of.SumRounding) -> MergedWeight:
    if not bool(torch.isfinite(stored).all()):
        raise InputError(f"merging would write NaN or infinity into {name}", found=_where(wide, delta, stored.dtype))
    unchanged = rounding.updated_unchanged / rounding.updated if rounding.updated else 0.0
    return MergedWeight(name, rounding.relative_norm or 0.0, rounding.loss or 0.0, unchanged)


def _where(weight: Tensor, delta: Tensor, dtype: torch.dtype) -> str:
    """Which side the number that is none comes from."""
    for side, of in ((delta, "the update"), (weight, "the base")):
        if broken := int((~torch.isfinite(side)).sum()):
            return f"{broken} such entries in {of}"
    return f"a sum beyond the range of {str(dtype).removeprefix('torch.')}"
