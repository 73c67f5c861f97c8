"""Element types as safetensors names them, and how each is decoded to float64 with numpy alone."""

import numpy as np

SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip

NATIVE = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
    "BOOL": "?",
}  # fmt: skip

_TORCH = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


def of_torch(dtype: object) -> str | None:
    """safetensors' name of a torch dtype (or of a numpy one); None where it has none."""
    return _TORCH.get(str(dtype).removeprefix("torch."))


def float8_table(exponent_bits: int, mantissa_bits: int, *, infinities: bool) -> np.ndarray:
    """The value (256,) of every byte of an 8-bit float: Micikevicius et al. 2022, "FP8 Formats for Deep Learning".

    With `infinities` (E5M2) the largest exponent is IEEE's; without (E4M3, "fn") only its last mantissa is NaN.
    """
    code = np.arange(256)
    mantissa = code & ((1 << mantissa_bits) - 1)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    bias = (1 << (exponent_bits - 1)) - 1
    fraction = mantissa / (1 << mantissa_bits)
    values = np.where(exponent == 0, np.ldexp(fraction, 1 - bias), np.ldexp(1 + fraction, exponent - bias))
    top = exponent == (1 << exponent_bits) - 1
    if infinities:
        values = np.where(top, np.where(mantissa == 0, np.inf, np.nan), values)
    else:
        values = np.where(top & (mantissa == (1 << mantissa_bits) - 1), np.nan, values)
    return np.where(code & 0x80, -values, values)


# A byte that is an exponent alone, of which the largest is NaN: the scales of "OCP Microscaling Formats" 1.0, §5.4.1.
E8M0 = np.append(np.ldexp(1.0, np.arange(255) - 127), np.nan)
FLOAT8 = {
    "F8_E4M3": float8_table(4, 3, infinities=False),
    "F8_E5M2": float8_table(5, 2, infinities=True),
    "F8_E8M0": E8M0,
}


def decode_into(raw: np.ndarray, dtype: str, out: np.ndarray) -> None:
    """Little-endian bytes `raw` (n · size,) uint8 of type `dtype`, as float64 into `out` (n,)."""
    with np.errstate(invalid="ignore"):  # signalling NaNs are no news here: the analysis reports them
        if dtype == "BF16":  # a float32 without its lower half
            wide = raw.view("<u2").astype(np.uint32)
            np.copyto(out, np.left_shift(wide, 16, out=wide).view(np.float32))
        elif dtype in FLOAT8:
            np.take(FLOAT8[dtype], raw, out=out)
        else:
            np.copyto(out, raw.view(NATIVE[dtype]))


def encode(values: np.ndarray, dtype: str) -> bytes:
    """float64 values as little-endian bytes of type `dtype`, rounded to nearest even.

    Exact for values that came from that type, which is what writing an adapter back needs.
    """
    if dtype == "BF16":
        with np.errstate(over="ignore", invalid="ignore"):
            bits = np.ascontiguousarray(values).astype(np.float32).view(np.uint32).astype(np.uint64)
        nan = np.isnan(values)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return np.where(nan, (bits >> 16) | 0x40, rounded).astype("<u2").tobytes()
    if dtype == "F8_E8M0":
        with np.errstate(divide="ignore", invalid="ignore"):
            exponents = np.clip(np.rint(np.log2(values)) + 127, 0, 254)
        return np.where(values >= 0, exponents, 255).astype(np.uint8).tobytes()
    if dtype in FLOAT8:
        return _encode_float8(values, FLOAT8[dtype]).tobytes()
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(values).astype(NATIVE[dtype]).tobytes()


def _encode_float8(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The nearest code of `table` to each value, ties to the even code; beyond the largest, the largest."""
    positive = np.flatnonzero(np.isfinite(table) & ~np.signbit(table))  # ascending, because codes of floats are
    magnitudes = table[positive]
    size = np.abs(values)
    upper = np.clip(np.searchsorted(magnitudes, size), 1, len(magnitudes) - 1)
    below, above = size - magnitudes[upper - 1], magnitudes[upper] - size
    take_lower = (below < above) | ((below == above) & (positive[upper - 1] % 2 == 0))
    codes = positive[np.where(take_lower, upper - 1, upper)]
    infinite = np.flatnonzero(np.isposinf(table))
    if len(infinite):
        codes = np.where(np.isposinf(size), infinite[0], codes)
    codes = np.where(np.isnan(values), np.flatnonzero(np.isnan(table))[0], codes)
    return np.where(np.signbit(values), codes | 0x80, codes).astype(np.uint8)
