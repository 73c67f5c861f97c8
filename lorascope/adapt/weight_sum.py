"""W + ΔW, rounded once to what W is stored in, and what that rounding took: the one place where weights are merged."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lorascope.errors import InputError


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
        name: of the weight, to name.

    Raises:
        InputError: the weight is stored in codes, or a number in the sum is NaN or infinite.
    """
    if not weight.is_floating_point():
        raise InputError(f"{name} cannot be merged", found=f"a {weight.dtype} weight", expected="floats")
    wide = widened(weight)
    stored = (wide + delta.to(wide)).to(weight.dtype)
    return stored, measured(name, weight, delta, stored)


def measured(name: str, weight: Tensor, delta: Tensor, stored: Tensor) -> MergedWeight:
    """What storing W + ΔW as `stored` did. InputError where a number in it is NaN or infinite."""
    wide = widened(weight)
    delta = delta.to(wide)
    if not bool(torch.isfinite(stored).all()):
        raise InputError(f"merging would write NaN or infinity into {name}", found=_where(wide, delta, weight.dtype))
    kept, moved = stored.to(wide.dtype) - wide, delta != 0
    size, own = float(delta.norm()), float(wide.norm())
    return MergedWeight(
        name,
        size / own if own else 0.0,
        float((kept - delta).norm()) / size if size else 0.0,
        float(((kept == 0) & moved).sum() / moved.sum()) if bool(moved.any()) else 0.0,
    )


def _where(weight: Tensor, delta: Tensor, dtype: torch.dtype) -> str:
    """Which side the number that is none comes from."""
    for side, of in ((delta, "the update"), (weight, "the base")):
        if broken := int((~torch.isfinite(side)).sum()):
            return f"{broken} such entries in {of}"
    return f"a sum beyond the range of {str(dtype).removeprefix('torch.')}"
