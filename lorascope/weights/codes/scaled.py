"""Eight-bit codes, floats or integers, and a scale for each block of them: W = (code − zero point) · scale."""

from dataclasses import dataclass

import numpy as np

from lorascope.updates.base import Stored
from lorascope.weights.codes.decoded import PIECE, OfMatrices, raw, stream
from lorascope.weights.codes.scales import Grid
from lorascope.weights.dtypes import FLOAT8

# Of each float8: the bits of its mantissa, 2^(127 − bias), and its first code that is NaN or infinite.
_BITS = {"F8_E4M3": (3, 2.0**120, 0x7F), "F8_E5M2": (2, 2.0**112, 0x7C)}
_LARGEST_SCALE = 64.0  # times 2^120, in float32
_SINGLE = {dtype: table.astype(np.float32) for dtype, table in FLOAT8.items()}


@dataclass(frozen=True)
class Scaled(OfMatrices):
    """Codes (…, m, n) with scales by block; sources: codes, scales, and zero points where there are any.

    Attributes:
        shape: of the codes.
        divisor: of the scales: 127 of LLM.int8.
        words: the type of codes that are stored four to a word.
    """

    shape: tuple[int, ...]
    grid: Grid
    divisor: float = 1.0
    words: str = ""
    by_rows = True

    def _matrix(self, sources: tuple[Stored, ...], out: np.ndarray, start: int, skip: int) -> None:
        codes, scale, *zero = sources
        rows, width = out.shape
        begin = (skip * self.shape[-2] + start) * width
        if self.words:
            dtype, packed = self.words, stream(codes, begin, begin + rows * width)
        else:
            dtype, packed = codes.dtype, raw(codes, begin, begin + rows * width)
        packed = packed.reshape(rows, width)
        scales = self.grid.read(scale, start, start + rows, skip) / self.divisor
        if zero:
            zeros = self.grid.read(zero[0], start, start + rows, skip)
            _centred(packed, dtype, self.grid, (scales, zeros), out, start)
        elif dtype in _BITS:
            _float8(packed, dtype, self.grid, scales, out, start)
        else:
            for part in self.grid.spread(scales.astype(out.dtype), start, start + rows, width):
                wide = packed[part.start : part.stop].astype(np.float32)
                np.multiply(part.view(wide), part.values, out=part.view(out[part.start : part.stop]))


def _centred(
    packed: np.ndarray, dtype: str, grid: Grid, numbers: tuple[np.ndarray, np.ndarray], out: np.ndarray, start: int
) -> None:
    scales, zeros = (grid.spread(each, start, start + len(out), out.shape[1]) for each in numbers)
    for part, zero in zip(scales, zeros, strict=True):
        codes = packed[part.start : part.stop]
        wide = FLOAT8[dtype][codes] if dtype in FLOAT8 else codes.astype(np.float64)
        centred = part.view(wide) - zero.values
        part.view(out[part.start : part.stop])[...] = centred * part.values


def _float8(packed: np.ndarray, dtype: str, grid: Grid, scales: np.ndarray, out: np.ndarray, start: int) -> None:
    """A float8's bits are a float32's with a smaller bias, so that one multiplication sets bias and scale at once."""
    mantissa, factor, special = _BITS[dtype]
    shift, mask = 23 - mantissa, np.int32(-(1 << 31) + (0x7F << (23 - mantissa)))
    quick = _keeps_subnormals() and not np.abs(scales).max(initial=0) > _LARGEST_SCALE
    rows, width = out.shape
    scratch = np.empty((max(1, PIECE // width), width), np.int32)
    shifted = scales * factor if quick else scales
    for part in grid.spread(shifted.astype(out.dtype), start, start + rows, width):
        codes = packed[part.start : part.stop]
        bits, here = scratch[: len(codes)], part.view(out[part.start : part.stop])
        if quick and (codes & 0x7F).max(initial=0) < special:
            np.copyto(bits, codes.view(np.int8))  # its sign reaches the highest bit
            np.left_shift(bits, shift, out=bits)
            np.bitwise_and(bits, mask, out=bits)
            np.multiply(part.view(bits.view(np.float32)), part.values, out=here)
        else:
            with np.errstate(invalid="ignore", over="ignore"):
                values = part.values / here.dtype.type(factor) if quick else part.values
                np.multiply(part.view(_SINGLE[dtype][codes]), values, out=here)


def _keeps_subnormals() -> bool:
    """Whether this thread computes with numbers below float32's smallest normal one: some libraries turn that off."""
    smallest = np.array([1], np.int32).view(np.float32)
    return bool((smallest * np.float32(2.0**120)).item() > 0)
