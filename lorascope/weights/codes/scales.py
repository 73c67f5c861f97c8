"""Scales of blocks: read for some rows, and handed out for pieces of a matrix in a form that multiplies them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lorascope.updates.base import Stored
from lorascope.weights.codes.decoded import PIECE, pieces
from lorascope.weights.safetensors import OnDisk

_NARROWEST = 16  # columns of a block that are worth a loop of their own


def numbers(stored: Stored, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Entries of a stored array, in the order of its bytes, as float64."""
    if isinstance(stored, OnDisk):
        return stored.entries(start, math.prod(stored.shape) if stop is None else stop).read()
    return stored.read().reshape(-1)[start:stop]


@dataclass(frozen=True)
class Grid:
    """One number for each block of a matrix (m, n).

    Attributes:
        height, width: of a block; the last of each may be smaller.
        rows, columns: how many blocks there are.
        shared: of several matrices: they have one grid.
    """

    height: int
    width: int
    rows: int
    columns: int
    shared: bool = False

    def read(self, stored: Stored, start: int, stop: int, skip: int = 0) -> np.ndarray:
        """The numbers of the blocks of rows `start` to `stop`, (blocks, columns); `skip` matrices lie before it."""
        first, last = start // self.height, -(-stop // self.height)
        before = 0 if self.shared else skip * self.rows
        flat = numbers(stored, (before + first) * self.columns, (before + last) * self.columns)
        return flat.reshape(last - first, self.columns)

    def spread(self, values: np.ndarray, start: int, stop: int, width: int) -> Iterator["Part"]:
        """Pieces of rows `start` to `stop` of a matrix of `width` columns, each with what its entries share.

        Args:
            values: as `read` gives them.
        """
        first = start // self.height
        step = max(1, PIECE // max(1, width))
        if self.columns == 1:
            for a, b in pieces(stop - start, step):
                rows = (np.arange(start + a, start + b) // self.height) - first
                yield Part(a, b, values[rows])
        elif self.height == 1 and width % self.width == 0 and self.width >= _NARROWEST:
            for a, b in pieces(stop - start, step):
                yield Part(a, b, values[a:b, :, None], self.width)
        else:
            for block, line in enumerate(values):
                wide = np.repeat(line, self.width)[None, :width]
                begin = max(start, (first + block) * self.height)
                end = min(stop, (first + block + 1) * self.height)
                for a, b in pieces(end - begin, step):
                    yield Part(begin - start + a, begin - start + b, wide)


@dataclass(frozen=True)
class Part:
    """Rows `start` to `stop` of what is decoded, and the numbers that multiply them.

    Attributes:
        group: the columns that share a number, where `values` is (rows, groups, 1); 0 of (rows, 1) and (1, columns).
    """

    start: int
    stop: int
    values: np.ndarray
    group: int = 0

    def view(self, matrix: np.ndarray) -> np.ndarray:
        """(rows, columns) in the form that `values` multiplies."""
        return matrix.reshape(len(matrix), -1, self.group) if self.group else matrix
