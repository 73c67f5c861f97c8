"""Factors that are too large to hold: read in pieces, and condensed to what ΔW's singular values depend on.

With B = Q_B R_B and Aᵀ = Q_A R_A, the singular values of B·C·A are those of R_B·C·R_Aᵀ, for any C between them. R of a
tall matrix is found one piece of rows at a time, R ← R of [R; piece] (TSQR: Demmel, Grigori, Hoemmen and Langou 2012,
arXiv 0808.2664, §3), which is as stable as one QR of the whole.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorascope.updates.base import Stored, Update, kinds
from lorascope.weights.tensors import InMemory

WHOLE = 1 << 25  # entries of an update that are read at once: 256 MiB in float64
PIECE = 1 << 22  # entries of a piece


@dataclass(frozen=True)
class Condensed:
    """A factor by its triangle, and what else is asked of its entries.

    Attributes:
        triangle: R (k, k) of the factor's longer side, in the factor's orientation: (r, k) of A, (k, r) of B.
        top: the largest absolute entry.
        mean_square: of all entries.
        non_finite: how many entries are NaN or infinite; the triangle is then NaN.
    """

    triangle: np.ndarray
    top: float
    mean_square: float
    non_finite: int


def is_large(update: Update, with_base: bool = False) -> bool:
    """Whether an update is better read in pieces, and can be: factors without a base, or an oblong matrix."""
    held = [stored for name, stored in update.roles.items() if name not in ("E", "R", "m")]
    if sum(math.prod(stored.shape) for stored in held) <= WHOLE or not all(map(_slices, held)):
        return False
    if update.kind in ("dense", "tuned"):
        return max(held[0].shape) >= 2 * min(held[0].shape)
    return kinds.get(update.kind).by_triangles and "A" in update.roles and not with_base


@dataclass(frozen=True)
class Change:
    """ΔW of a matrix that is stored whole, scale·(matrix − base): not held, read in pieces."""

    matrix: Stored
    base: Stored | None
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.matrix.shape
        return rows, columns

    def rows(self, start: int, stop: int) -> InMemory:
        return self._part(start, stop, 0)

    def columns(self, start: int, stop: int) -> InMemory:
        return self._part(start, stop, 1)

    def _part(self, start: int, stop: int, axis: int) -> InMemory:
        values = part_of(self.matrix, start, stop, axis)
        if self.base is not None:
            values = values - part_of(self.base, start, stop, axis)
        return InMemory(values * self.scale, self.matrix.dtype)

    def condensed(self) -> Condensed:
        """By its triangle, whose singular values are its own."""
        return condensed(self, 0 if self.shape[0] >= self.shape[1] else 1)


def condensed(stored: Any, axis: int) -> Condensed:
    """A factor whose long side is `axis`: 0 of B (d_out, r), 1 of A (r, d_in)."""
    triangle: Any = np.zeros((0, stored.shape[1 - axis]))
    top = total = 0.0
    bad = 0
    for piece in _pieces(stored, axis):
        bad += piece.size - int(np.count_nonzero(np.isfinite(piece)))
        if not bad:
            top = max(top, float(piece.max(initial=0.0)), -float(piece.min(initial=0.0)))
            total += float(np.vdot(piece, piece))
            triangle = np.linalg.qr(np.concatenate([triangle, piece if axis == 0 else piece.T]), mode="r")
    if bad:
        triangle = np.full((1, stored.shape[1 - axis]), np.nan)
    return Condensed(triangle if axis == 0 else triangle.T, top, total / max(math.prod(stored.shape), 1), bad)


def sliceable(stored: Stored) -> Stored:
    """The array itself where it can be read in slices along both axes, else its values."""
    return stored if _slices(stored) else InMemory(stored.read(), stored.dtype)


def _slices(stored: Any) -> bool:
    return hasattr(stored, "rows") and hasattr(stored, "columns")


def part_of(stored: Any, start: int, stop: int, axis: int = 0) -> np.ndarray:
    """A slice of a stored matrix in float64, read without the rest where it can be."""
    take = getattr(stored, "rows" if axis == 0 else "columns", None)
    if take is None or (start, stop) == (0, stored.shape[axis]):
        whole = stored.read()
        return whole[start:stop] if axis == 0 else whole[:, start:stop]
    return take(start, stop).read()


def _pieces(stored: Any, axis: int) -> Iterator[np.ndarray]:
    """Slices along `axis` in float64."""
    stored = sliceable(stored)
    width = max(stored.shape[1 - axis], 1)
    step = max(1, PIECE // width, min(4 * width, WHOLE // width))  # the triangle is then a fifth of it at most
    for start in range(0, stored.shape[axis], step):
        yield part_of(stored, start, min(start + step, stored.shape[axis]), axis)
