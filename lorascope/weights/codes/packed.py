"""Integers of a few bits in a dense stream, the lowest bits first: GPTQ, AWQ, compressed-tensors, MLX, torchao."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lorascope.errors import InputError
from lorascope.updates.base import Stored
from lorascope.weights.codes.decoded import PIECE, OfMatrices, pieces, raw
from lorascope.weights.codes.nibbles import Lookup
from lorascope.weights.codes.scales import Grid, Part, numbers

_COUNTING = tuple(float(code) for code in range(16))
# AWQ's order of eight codes in a word: the code of column j stands at place _AWQ[j] (AutoAWQ, packing_utils).
_AWQ = (0, 4, 1, 5, 2, 6, 3, 7)


def unpacked(stream: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The codes (…, count) of a stream of bytes (…, n) uint8, n · 8 ≥ count · bits."""
    lead = stream.shape[:-1]
    if bits == 8:
        return stream[..., :count]
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        codes = (stream[..., None] >> shifts) & np.uint8((1 << bits) - 1)
        return codes.reshape(*lead, -1)[..., :count]
    short = -stream.shape[-1] % bits  # eight codes take `bits` bytes
    padded = np.concatenate([stream, np.zeros((*lead, short), np.uint8)], axis=-1) if short else stream
    groups = padded.reshape(*lead, -1, bits).astype(np.uint64)
    words = (groups << (8 * np.arange(bits, dtype=np.uint64))).sum(axis=-1, dtype=np.uint64)
    codes = (words[..., None] >> (bits * np.arange(8, dtype=np.uint64))) & np.uint64((1 << bits) - 1)
    return codes.reshape(*lead, -1)[..., :count].astype(np.uint8)


@dataclass(frozen=True)
class Rows(OfMatrices):
    """Codes in rows (m, stream): W = (code − centre − zero) · scale, or code · scale + bias.

    Sources: codes, scales (m, groups), and as the flags say: biases or zero points of the same shape, packed zero
    points, the group of each column.

    Attributes:
        shape: (m, n) of the numbers.
        bits: of a code.
        centre: what is taken from a code that has no zero point.
        second: what the third source is: "" (there is none), "bias", "zero", or "packed zero" (along the first axis).
        ordered: whether the last source is the group of each column.
    """

    shape: tuple[int, ...]
    bits: int
    grid: Grid
    centre: float = 0.0
    second: str = ""
    ordered: bool = False
    by_rows = True

    def _matrix(self, sources: tuple[Stored, ...], out: np.ndarray, start: int, skip: int) -> None:
        rows, width = out.shape
        stop, codes = start + rows, sources[0]
        words = codes.shape[-1]
        begin = (skip * self.shape[-2] + start) * words
        packed = raw(codes, begin, begin + rows * words).view(np.uint8).reshape(rows, -1)
        scales = self.grid.read(sources[1], start, stop, skip)
        if self.second == "packed zero":
            other = _packed_zeros(sources[2], self.bits, self.shape[-2], skip)[start:stop] - self.centre
        elif self.second:
            other = self.grid.read(sources[2], start, stop, skip)
        else:
            other = np.zeros_like(scales)
        groups = group_of(sources[-1], scales.shape[1]) if self.ordered else None
        wide = _Wide(self.bits, width)
        for part, moved in self._parts(scales, other, groups, start, width):
            values = part.view(wide(packed[part.start : part.stop]).astype(np.float64))
            target = part.view(out[part.start : part.stop])
            if self.second == "bias":
                target[...] = values * part.values + moved.values
            else:
                target[...] = (values - self.centre - moved.values) * part.values

    def _parts(  # scales and what is added, each (rows, groups), in pieces that fit each other
        self, scales: np.ndarray, other: np.ndarray, groups: np.ndarray | None, start: int, width: int
    ) -> Iterator[tuple[Part, Part]]:
        if groups is None:
            stop = start + len(scales)
            yield from zip(
                self.grid.spread(scales, start, stop, width), self.grid.spread(other, start, stop, width), strict=True
            )
            return
        for a, b in pieces(len(scales), PIECE // width):
            yield Part(a, b, scales[a:b][:, groups]), Part(a, b, other[a:b][:, groups])


def group_of(stored: Stored, groups: int) -> np.ndarray:
    """The group of each column. InputError where it names one that has no scale."""
    of = raw(stored).astype(np.int64)
    if of.size and not 0 <= int(of.min()) <= int(of.max()) < groups:
        raise InputError(
            "the base's g_idx names groups that have no scale",
            found=f"{int(of.min())} to {int(of.max())}",
            expected=f"0 to {groups - 1}",
        )
    return of


class _Wide:
    """Rows of packed codes as float32."""

    def __init__(self, bits: int, width: int):
        self.bits, self.width = bits, width
        self.lookup = Lookup(_COUNTING, True, max(PIECE, width) // 2 + 64) if bits == 4 else None

    def __call__(self, stream: np.ndarray) -> np.ndarray:
        if self.lookup is not None and stream.size <= len(self.lookup.indices):
            return self.lookup(stream)[:, : self.width]
        return unpacked(stream, self.bits, self.width).astype(np.float32)


def _packed_zeros(stored: Stored, bits: int, rows: int, skip: int) -> np.ndarray:
    """Zero points packed along the first axis, (⌈m · bits / 32⌉, groups) int32, as (m, groups)."""
    high, groups = stored.shape[-2:]
    words = raw(stored, skip * high * groups, (skip + 1) * high * groups).reshape(high, groups)
    stream = np.ascontiguousarray(words.T).view(np.uint8)
    return unpacked(stream, bits, rows).T.astype(np.float64)


@dataclass(frozen=True)
class Transposed:
    """GPTQ and AWQ: codes (d_in, d_out), W = ((code − zero) · scale)ᵀ; sources: codes, scales, then the optional ones.

    Attributes:
        shape: (d_out, d_in) of the numbers.
        bits: of a code.
        groups: how many there are; `group`: the inputs of each, where they are in order.
        interleaved: AWQ: packed along d_out in its own order; else GPTQ: packed along d_in.
        zeros: whether the third source is packed zero points; else a code's middle is zero.
        added: what is added to a stored zero point: GPTQ's first format keeps them less one.
        ordered: whether the last source is the group of each input.
    """

    shape: tuple[int, int]
    bits: int
    groups: int
    group: int
    interleaved: bool = False
    zeros: bool = True
    added: int = 0
    ordered: bool = False
    by_rows = False

    def fill(self, sources: tuple[Stored, ...], out: np.ndarray, start: int) -> None:
        d_out, d_in = self.shape
        scales = numbers(sources[1]).reshape(self.groups, d_out)
        zeros = self.zero_points(sources)
        group = group_of(sources[-1], self.groups) if self.ordered else np.arange(d_in) // self.group
        words = sources[0].shape[1]
        for a, b in pieces(d_in, max(32, PIECE // d_out // 32 * 32)):
            if self.interleaved:
                packed = raw(sources[0], a * words, b * words).reshape(b - a, words)
                codes = self._columns(packed)
            else:
                packed = raw(sources[0], a * self.bits // 32 * words, -(-b * self.bits // 32) * words)
                stream = np.ascontiguousarray(packed.reshape(-1, words).T).view(np.uint8)
                codes = unpacked(stream, self.bits, b - a).T
            of = group[a:b]
            out[:, a:b] = ((codes - zeros[of]) * scales[of]).T

    def _columns(self, packed: np.ndarray) -> np.ndarray:
        """Codes packed along the second axis, (k, words) int32, as (k, d_out)."""
        codes = unpacked(packed.view(np.uint8), self.bits, packed.shape[1] * 32 // self.bits)
        if self.interleaved:
            codes = codes.reshape(len(codes), -1, 8)[:, :, _AWQ].reshape(len(codes), -1)
        return codes[:, : self.shape[0]]

    def zero_points(self, sources: tuple[Stored, ...]) -> np.ndarray:
        """Of each group and output, (groups, d_out) float64."""
        if not self.zeros:
            return np.full((self.groups, self.shape[0]), float(1 << (self.bits - 1)))
        packed = raw(sources[2]).reshape(self.groups, -1)
        return self._columns(packed).astype(np.float64) + self.added
