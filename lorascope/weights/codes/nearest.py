"""The nearest codes of numbers that share a scale: groups (…, w) as a scheme would hold them, with fresh scales.

    signed        s = max|x| / (2^(b−1) − ½), codes −2^(b−1) … 2^(b−1) − 1     GPTQ and compressed-tensors, symmetric
    with_zero     s = (max − min) / (2^b − 1), zero = −min / s rounded         GPTQ, AWQ, compressed-tensors, asymmetric
    affine        s and offset so that the extreme of larger size is a code    MLX
    microscaled   s = 2^(⌊log₂ max|x|⌋ − e), e the type's largest exponent     MXFP4, MXFP8
    two_scales    s = max|x| / 6 as E4M3, times one number for all             NVFP4

Sources: AutoGPTQ 0.7, `quantizer`; AutoAWQ 0.2, `pseudo_quantize_tensor`; compressed-tensors 0.20,
`calculate_qparams`; MLX 0.32, `affine_quantize`; "OCP Microscaling Formats" 1.0, §6.3, which libraries vary by a factor
of two in the scale. GPTQ and AWQ choose codes with calibration data: what they would lose is less.
"""

import numpy as np

from lorascope.linalg.rounding import round_to
from lorascope.weights.dtypes import FLOAT8

_LARGEST_E2M1, _LARGEST_E4M3 = 6.0, 448.0
# Of small floats: bits of the mantissa, the smallest and the largest exponent.
_FLOATS = {"F8_E4M3": (3, -6, 8), "F8_E5M2": (2, -14, 15), "E2M1": (1, 0, 2)}


def signed(groups: np.ndarray, bits: int, scale_dtype: str) -> np.ndarray:
    top = 2.0 ** (bits - 1)
    scale = _held(np.abs(groups).max(axis=-1, keepdims=True) / (top - 0.5), scale_dtype)
    return np.clip(np.rint(groups / scale), -top, top - 1) * scale


def with_zero(groups: np.ndarray, bits: int, scale_dtype: str) -> np.ndarray:
    top = 2.0**bits - 1
    low = np.minimum(groups.min(axis=-1, keepdims=True), 0)
    high = np.maximum(groups.max(axis=-1, keepdims=True), 0)
    scale = _held((high - low) / top, scale_dtype)
    zero = np.clip(np.rint(-low / scale), 0, top)
    return (np.clip(np.rint(groups / scale) + zero, 0, top) - zero) * scale


def affine(groups: np.ndarray, bits: int, scale_dtype: str) -> np.ndarray:
    top = 2.0**bits - 1
    low, high = groups.min(axis=-1, keepdims=True), groups.max(axis=-1, keepdims=True)
    down = np.abs(low) > np.abs(high)
    edge = np.where(down, low, high)
    scale = np.maximum((high - low) / top, 1e-7) * np.where(down, 1.0, -1.0)
    steps = np.rint(edge / scale)
    scale = np.where(steps != 0, edge / np.where(steps != 0, steps, 1), scale)
    offset = np.where(steps != 0, edge, 0.0)
    codes = np.clip(np.rint((groups - offset) / scale), 0, top)
    return codes * round_to(scale, scale_dtype) + round_to(offset, scale_dtype)


def microscaled(groups: np.ndarray, dtype: str) -> np.ndarray:
    """`dtype` is one of the float8s, or E2M1."""
    largest = np.abs(groups).max(axis=-1, keepdims=True)
    exponent = np.frexp(np.where(largest > 0, largest, 1.0))[1] - 1 - _FLOATS[dtype][2]
    scale = np.ldexp(1.0, np.clip(exponent, -127, 127))
    return rounded(groups / scale, dtype) * scale


def two_scales(groups: np.ndarray, of_all: float) -> np.ndarray:
    """E2M1; `of_all` is the largest of the whole matrix."""
    unit = of_all / _LARGEST_E2M1 / _LARGEST_E4M3 or 1.0
    scale = rounded(np.abs(groups).max(axis=-1, keepdims=True) / _LARGEST_E2M1 / unit, "F8_E4M3") * unit
    scale = np.where(scale > 0, scale, 1.0)
    return rounded(groups / scale, "E2M1") * scale


def largest_of(dtype: str) -> float:
    """The largest number of a small float."""
    return _LARGEST_E2M1 if dtype == "E2M1" else float(np.nanmax(FLOAT8[dtype][np.isfinite(FLOAT8[dtype])]))


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values as the nearest numbers of a small float, ties to even; beyond its range, the largest."""
    mantissa, smallest, _ = _FLOATS[dtype]
    values = np.clip(values, -largest_of(dtype), largest_of(dtype))
    exponents = np.maximum(np.frexp(values)[1] - 1, smallest)
    unit = np.ldexp(values.dtype.type(1), exponents - mantissa)
    return np.rint(values / unit) * unit


def _held(scale: np.ndarray, dtype: str) -> np.ndarray:
    """Scales as the file's type holds them; 1 of a group of zeros."""
    kept = round_to(scale.astype(np.float64), dtype)
    return np.where(kept > 0, kept, 1.0)
