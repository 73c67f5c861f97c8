"""What a storage dtype can hold: unit roundoff, and rounding to it without the dtype itself (numpy has no bfloat16)."""

import numpy as np

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
