"""What a storage dtype can hold: unit roundoff, rounding to it, and what storing W + ΔW in it loses.

numpy's arrays are rounded without the dtype itself: numpy has no bfloat16.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorascope.linalg.arrays import Array, Float, namespace

UNIT_ROUNDOFF = {
    "F64": 2.0**-53,
    "F32": 2.0**-24,
    "F16": 2.0**-11,
    "BF16": 2.0**-8,
    "F8_E4M3": 2.0**-4,
    "F8_E5M2": 2.0**-3,
}


def unit_roundoff(dtype: str) -> float:
    """Half the spacing of numbers near 1 in safetensors' `dtype`; float64's for a dtype that is not in the table."""
    return UNIT_ROUNDOFF.get(dtype, UNIT_ROUNDOFF["F64"])


def round_to(values: np.ndarray, dtype: str) -> np.ndarray:
    """float64 `values` as `dtype` would hold them (nearest, ties to even), again in float64.

    Raises:
        ValueError: a dtype that weights are not merged into (fp8 and integers).
    """
    if dtype == "F64":
        return values
    with np.errstate(over="ignore"):  # beyond the dtype's range it is infinite, as in a merge
        single = values.astype(np.float32)
    if dtype == "F32":
        return single.astype(np.float64)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float64)
    if dtype == "BF16":
        bits = np.ascontiguousarray(single).view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
        return np.where(np.isfinite(single), rounded.view(np.float32), single).astype(np.float64)
    raise ValueError(f"cannot round to {dtype}")


@dataclass(frozen=True)
class SumRounding:
    """What storing W + ΔW did, over a weight or some of its rows: those of several parts add up.

    Attributes:
        weight_norm, delta_norm: ‖W‖_F and ‖ΔW‖_F.
        lost_norm: ‖(stored − W) − ΔW‖_F, the part of ΔW that the dtype could not hold.
        entries: how many entries W has; `unchanged`: how many of them are stored as they were.
        updated: how many entries ΔW changes; `updated_unchanged`: how many of those are stored as they were.
    """

    weight_norm: float = 0.0
    delta_norm: float = 0.0
    lost_norm: float = 0.0
    entries: int = 0
    unchanged: int = 0
    updated: int = 0
    updated_unchanged: int = 0

    def __add__(self, other: "SumRounding") -> "SumRounding":
        names = ("weight_norm", "delta_norm", "lost_norm")
        norms = np.hypot([getattr(self, name) for name in names], [getattr(other, name) for name in names])
        counts = {
            name: getattr(self, name) + getattr(other, name)
            for name in ("entries", "unchanged", "updated", "updated_unchanged")
        }
        return SumRounding(*norms.tolist(), **counts)

    @property
    def relative_norm(self) -> float | None:
        """‖ΔW‖_F / ‖W‖_F; None of a W that is zero."""
        return self.delta_norm / self.weight_norm if self.weight_norm > 0 else None

    @property
    def loss(self) -> float | None:
        """The share of ‖ΔW‖_F that was lost; None of a ΔW that is zero."""
        return self.lost_norm / self.delta_norm if self.delta_norm > 0 else None


def rounded_sum(
    weight: Float[Array, "*shape"], delta: Float[Array, "*shape"], dtype: Any
) -> tuple[Float[Array, "*shape"], SumRounding]:
    """W + ΔW, rounded once to what W is stored in, and what that rounding did. The sum is formed in the arrays' dtype.

    Args:
        weight: W, widened: numpy's in float64, torch's in float32 or float64.
        delta: ΔW in the same dtype.
        dtype: of storage: safetensors' name for numpy's arrays, whose result is again in float64 (what weights are not
            merged into, such as fp8 and integers, is not rounded to); a torch dtype for tensors, whose result has it.
    """
    stored = _stored(weight + delta, dtype)
    return stored, sum_rounding(weight, delta, stored)


def sum_rounding(
    weight: Float[Array, "*shape"], delta: Float[Array, "*shape"], stored: Float[Array, "*shape"]
) -> SumRounding:
    """What it did to store W + ΔW as `stored`; `weight` and `delta` as in `rounded_sum`."""
    xp = namespace(weight)
    change = stored - weight if stored.dtype == weight.dtype else xp.astype(stored, weight.dtype) - weight
    same, updated = change == 0, delta != 0
    count = xp.count_nonzero
    return SumRounding(
        _norm(weight), _norm(delta), _norm(change - delta), math.prod(weight.shape), int(count(same)),
        int(count(updated)), int(count(same & updated)),
    )  # fmt: skip


def _stored(values: Array, dtype: Any) -> Array:
    if not isinstance(values, np.ndarray):
        return namespace(values).astype(values, dtype)
    return round_to(values, dtype) if dtype in ("F64", "F32", "F16", "BF16") else values


def _norm(values: Array) -> float:
    """‖·‖_F in the dtype of the values."""
    return float(
        np.linalg.norm(values) if isinstance(values, np.ndarray) else namespace(values).linalg.vector_norm(values)
    )
