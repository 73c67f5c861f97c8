"""Four-bit codes, two a byte, that stand for the entries of a table of sixteen: nf4, fp4, MXFP4 and NVFP4.

Two codes are looked up at once: a byte's pair of float32 is one eight-byte entry of a table of 256.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from lorascope.updates.base import Stored
from lorascope.weights.codes.decoded import PIECE, OfMatrices, pieces, raw, stream
from lorascope.weights.codes.scales import Grid, numbers

# E2M1: one bit of sign, two of exponent, one of mantissa ("OCP Microscaling Formats" 1.0, §5.3.3).
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_SPLITTER = np.float32(2.0**16 + 1)
_LARGEST_HALF, _SMALLEST_HALF = 65504.0, np.float32(2.0**-14)  # normal float16
_UNITS = np.float32(0.75)  # whose last bit is 2⁻²⁴, that of float16's subnormals


@lru_cache(maxsize=16)
def pairs(table: tuple[float, ...], low_first: bool) -> np.ndarray:
    """The two float32 of every byte as one entry, (256,) uint64."""
    codes = np.arange(256)
    halves = (codes & 15, codes >> 4) if low_first else (codes >> 4, codes & 15)
    values = np.array(table, np.float32)[np.stack(halves, axis=1)]
    return np.ascontiguousarray(values).view(np.uint64).reshape(-1)


class Lookup:
    """Looks bytes up in a table of pairs, in scratch memory of its own.

    Args:
        most: bytes of one call.
    """

    def __init__(self, table: tuple[float, ...], low_first: bool, most: int):
        self.table = pairs(table, low_first)
        self.indices, self.values = np.empty(most, np.intp), np.empty(most, np.uint64)

    def __call__(self, packed: np.ndarray) -> np.ndarray:
        """The numbers of `packed` (…, n) uint8 as float32 (…, 2n), good until the next call."""
        indices, values = self.indices[: packed.size], self.values[: packed.size]
        np.copyto(indices, packed.reshape(-1))
        np.take(self.table, indices, out=values, mode="wrap")  # the others check every index, or copy
        return values.view(np.float32).reshape(*packed.shape[:-1], 2 * packed.shape[-1])


@dataclass(frozen=True)
class Nibbles(OfMatrices):
    """E2M1 codes (…, m, n/2), the low one first, with scales by block; sources: codes, scales, and a scale of all.

    Attributes:
        shape: (…, m, n) of the numbers.
        divides: whether the scale of all divides, and does not multiply.
        transposed: the model has the matrices as (n, m).
    """

    shape: tuple[int, ...]
    grid: Grid
    divides: bool = False
    transposed: bool = False

    @property
    def by_rows(self) -> bool:
        return len(self.shape) > 2 or not self.transposed

    def _matrix(self, sources: tuple[Stored, ...], out: np.ndarray, start: int, skip: int) -> None:
        codes, scale, *of_all = sources
        rows, width = out.shape[::-1] if self.transposed else out.shape
        begin = (skip * self.shape[-2] + start) * width // 2
        packed = stream(codes, begin, begin + rows * width // 2).reshape(rows, width // 2)
        scales = self.grid.read(scale, start, start + rows, skip)
        if of_all:
            each = numbers(of_all[0])
            scales = scales / each[skip % each.size] if self.divides else scales * each[skip % each.size]
        lookup = Lookup(E2M1, True, min(out.size, max(PIECE, width)) // 2)
        for part in self.grid.spread(scales.astype(out.dtype), start, start + rows, width):
            values = part.view(lookup(packed[part.start : part.stop]))
            if self.transposed:
                out[:, part.start : part.stop] = (values * part.values).reshape(-1, width).T
            else:
                np.multiply(values, part.values, out=part.view(out[part.start : part.stop]))


@dataclass(frozen=True)
class FourBits:
    """bitsandbytes' four bits: blocks of the weight in the order of its bytes, the high code first.

    The arithmetic is the library's: a product of two float32, rounded to the weight's type; the blocks' largest may be
    coded again, as bytes that a second table and largest resolve, plus an offset. Sources: codes, largest of the
    blocks, table; and of the second coding the same two.

    Attributes:
        shape, dtype: of the weight.
        block, nested_block: entries that share a largest.
        offset: what is added to a largest that was coded.
    """

    shape: tuple[int, ...]
    dtype: str
    block: int
    nested_block: int = 0
    offset: float = 0.0

    @property
    def by_rows(self) -> bool:
        return len(self.shape) > 1 and math.prod(self.shape[1:]) % 2 == 0

    def fill(self, sources: tuple[Stored, ...], out: np.ndarray, start: int) -> None:
        codes, largest, table, *nested = sources
        step = math.prod(self.shape[1:])
        first, count = (start * step, len(out) * step) if self.by_rows else (0, out.size)
        packed = stream(codes, first // 2, (first + count + 1) // 2)
        blocks = first // self.block, -(-(first + count) // self.block)
        scale = self._largest(largest, nested, *blocks)
        flat, shift = out.reshape(-1), first - blocks[0] * self.block
        values = tuple(np.asarray(table.read(), np.float64).reshape(-1).tolist())
        piece = self.block * max(1, PIECE // self.block)
        lookup = Lookup(values, False, min(count, piece) // 2 + 1)
        rounded = Rounding(self.dtype, min(count, piece))
        moderate = _are_moderate(scale) and _are_moderate(np.array(values, np.float32))
        for a, b in pieces(count, piece):
            decoded = lookup(packed[a // 2 : (b + 1) // 2])[: b - a]
            here = decoded if self.dtype != "F32" else flat[a:b]
            if shift == 0 and (b - a) % self.block == 0:
                each = scale[a // self.block : b // self.block, None]
                np.multiply(decoded.reshape(-1, self.block), each, out=here.reshape(-1, self.block))
            else:
                np.multiply(decoded, scale[(np.arange(a, b) + shift) // self.block], out=here)
            if self.dtype != "F32":
                rounded(decoded, flat[a:b], moderate)

    def _largest(self, largest: Stored, nested: list[Stored], first: int, last: int) -> np.ndarray:
        """The largest of blocks `first` to `last`, float32."""
        if not nested:
            return numbers(largest, first, last).astype(np.float32)
        of_all, table = (numbers(each).astype(np.float32) for each in nested)
        codes = raw(largest, first, last).view(np.uint8)
        return table[codes] * of_all[np.arange(first, last) // self.nested_block] + np.float32(self.offset)


def _are_moderate(values: np.ndarray) -> bool:
    """Whether the product of any two of them is zero or lies well within float32."""
    sizes = np.abs(values[values != 0])
    return bool(np.all((sizes > 2.0**-50) & (sizes < 2.0**50)))


def four_bits(state: Mapping[str, Any], dtype: str) -> FourBits:
    """The codec of a checked quant_state."""
    nested = "nested_blocksize" in state
    return FourBits(
        tuple(state["shape"]), dtype, state["blocksize"],
        state["nested_blocksize"] if nested else 0, float(state["nested_offset"]) if nested else 0.0,
    )  # fmt: skip


class Rounding:
    """Rounds float32 to a half type as bits, nearest and ties to even: numpy has no bfloat16, and its float16 is slow.

    Args:
        most: entries of one call.
    """

    def __init__(self, dtype: str, most: int):
        self.half = dtype == "F16"
        self.dropped = 13 if self.half else 16
        self.scratch = np.empty(most if dtype != "F32" else 0, np.uint32)

    def __call__(self, values: np.ndarray, out: np.ndarray, moderate: bool = False) -> None:
        """float32 `values`, which are spoilt, rounded into `out`.

        Args:
            moderate: each is zero or of a size between 2⁻¹⁰⁰ and 2¹⁰⁰.
        """
        if moderate and not self.half:
            self._split(values, out)
            return
        if self.half and not np.abs(values).max(initial=0) < _LARGEST_HALF:
            with np.errstate(over="ignore"):
                out[...] = values.astype(np.float16)
            return
        small = np.flatnonzero(np.abs(values) < _SMALLEST_HALF) if self.half else values[:0]
        fixed = (values[small] + _UNITS) - _UNITS if small.size else None  # multiples of 2⁻²⁴, subnormal ones
        bits, odd = values.view(np.uint32), self.scratch[: values.size]
        np.right_shift(bits, self.dropped, out=odd)
        np.bitwise_and(odd, 1, out=odd)
        np.add(odd, (1 << (self.dropped - 1)) - 1, out=odd)
        np.add(bits, odd, out=bits)
        kept = np.uint32(0x100000000 - (1 << self.dropped))
        if out.dtype == np.float32:
            np.bitwise_and(bits, kept, out=out.view(np.uint32))
        else:
            np.bitwise_and(bits, kept, out=bits)
            out[...] = values
        if fixed is not None:
            out[small] = fixed

    def _split(self, values: np.ndarray, out: np.ndarray) -> None:
        """Veltkamp's splitting: the leading eight bits of float32, in three operations for five.

        Dekker 1971, "A floating-point technique for extending the available precision". It rounds to nearest; that
        ties go to even here was tried on every mantissa.
        """
        larger = self.scratch[: values.size].view(np.float32)
        np.multiply(values, _SPLITTER, out=larger)
        np.subtract(larger, values, out=values)
        if out.dtype == np.float32:
            np.subtract(larger, values, out=out)
        else:
            np.subtract(larger, values, out=larger)
            out[...] = larger
