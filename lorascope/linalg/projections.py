"""Random projections from d to D dimensions that need no structure: dense Gaussian, orthonormal, and very sparse.

Li, Farkhoor, Liu and Yosinski 2018, "Measuring the Intrinsic Dimension of Objective Landscapes", arXiv 1804.08838, §S7:
P (D, d) with columns of unit length, dense or sparse. Each is drawn from its seed in pieces when it is used, and kept
only where it is small. Fastfood, which is the one for large D·d, is in `fastfood.py`.
"""

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np

from lorascope.errors import InputError
from lorascope.linalg.arrays import Array, Float
from lorascope.linalg.fastfood import KEEP, Fastfood, Projection, as_like, gather, generator, scatter_add, zeros_like

Name = Literal["fastfood", "fastfood-whole", "dense", "orthonormal", "sparse"]
PIECE = 1 << 20  # entries drawn at a time


def projection(name: str, rows: int, columns: int, seed: int, *, as_published: bool = False) -> Projection:
    """The projection of that name. InputError for an unknown name, or one that cannot have these sizes."""
    if as_published and name != "fastfood-whole":
        raise InputError(
            "the published adjoint belongs to the published projection", found=name, expected="fastfood-whole"
        )
    if name.startswith("fastfood") and name in get_args(Name):
        return Fastfood(rows, columns, seed, whole=name.endswith("-whole"), as_published=as_published)
    if name in ("dense", "orthonormal"):
        return Dense(rows, columns, seed, orthonormal=name == "orthonormal")
    if name == "sparse":
        return Sparse(rows, columns, seed)
    raise InputError(f"there is no projection {name!r}", expected=", ".join(get_args(Name)))


class _Pieces(Projection):
    """Keeps what is drawn where all of it is small."""

    entries: int  # in all

    def __init__(self, rows: int, columns: int, seed: int):
        self.rows, self.columns, self.seed = rows, columns, seed
        self._kept: dict[tuple, tuple[Array, ...]] = {}

    def _drawn(self, piece: int) -> tuple[np.ndarray, ...]:
        raise NotImplementedError

    def _piece(self, piece: int, like: Array) -> tuple[Array, ...]:
        key = (piece, type(like), str(getattr(like, "device", "")), str(like.dtype))
        if key in self._kept:
            return self._kept[key]
        arrays = tuple(as_like(a, like, keep_dtype=a.dtype.kind == "i") for a in self._drawn(piece))
        if self.entries <= KEEP:
            self._kept[key] = arrays
        return arrays


class Dense(_Pieces):
    """P = Q/√D with Q iid N(0, 1): columns of unit length up to 1/√(2D). O(D·d) time, O(1) memory where it is large.

    `orthonormal` makes the columns orthonormal: P = Q R⁻¹ with RᵀR = QᵀQ, so that Q itself need not be kept; it asks
    for D ≥ 2d, which keeps R's condition number below 6.
    """

    def __init__(self, rows: int, columns: int, seed: int, *, orthonormal: bool):
        super().__init__(rows, columns, seed)
        if orthonormal and rows < 2 * columns:
            raise InputError(f"{columns} orthonormal columns need at least {2 * columns} rows", found=rows)
        self.entries, self.height = rows * columns, max(1, PIECE // columns)
        self.mixing = self._mixing() if orthonormal else None

    def apply(self, x: Float[Array, " columns"]) -> Float[Array, " rows"]:
        return self.part(x, 0, self.rows)

    def part(self, x: Float[Array, " columns"], start: int, stop: int) -> Float[Array, " some"]:
        out = zeros_like(x, stop - start)
        x = x * self.rows**-0.5 if self.mixing is None else as_like(self.mixing, x) @ x
        for piece, low, high in self._spans(start, stop):
            (q,) = self._piece(piece, x)
            first = piece * self.height
            out[low - start : high - start] = q[low - first : high - first] @ x
        return out

    def adjoint(self, y: Float[Array, " rows"]) -> Float[Array, " columns"]:
        total = zeros_like(y, self.columns)
        for piece, low, high in self._spans(0, self.rows):
            (q,) = self._piece(piece, y)
            total = total + q.T @ y[low:high]
        return total * self.rows**-0.5 if self.mixing is None else as_like(self.mixing, y).T @ total

    def _spans(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Pieces and which of the rows from `start` to `stop` lie in each."""
        for piece in range(start // self.height, -(-stop // self.height)):
            yield piece, max(start, piece * self.height), min(stop, (piece + 1) * self.height)

    def _drawn(self, piece: int) -> tuple[np.ndarray, ...]:
        height = min(self.height, self.rows - piece * self.height)
        return (generator(self.seed, piece).standard_normal((height, self.columns), dtype=np.float32),)

    def _mixing(self) -> np.ndarray:
        """R⁻¹ (d, d), float64."""
        gram = np.zeros((self.columns, self.columns))
        for piece, _, _ in self._spans(0, self.rows):
            (q,) = self._piece(piece, gram)
            gram += q.T @ q
        return np.linalg.inv(np.linalg.cholesky(gram)).T


class Sparse(_Pieces):
    """Each entry is non-zero with probability 1/√D, of random sign; columns are then scaled to unit length.

    Li, Hastie and Church 2006, "Very Sparse Random Projections" (doi 10.1145/1150402.1150436): d√D numbers in all.
    """

    def __init__(self, rows: int, columns: int, seed: int):
        super().__init__(rows, columns, seed)
        usual = rows**0.5  # entries of a column
        self.width = max(1, int(PIECE // usual))  # columns drawn at a time
        self.entries = int(columns * usual)

    def apply(self, x: Float[Array, " columns"]) -> Float[Array, " rows"]:
        out = zeros_like(x, self.rows)
        for piece in range(-(-self.columns // self.width)):
            row, column, value = self._piece(piece, x)
            products = gather(x, column) * value
            if isinstance(out, np.ndarray):
                np.add.at(out, row, products)
            else:
                out.index_add_(0, row, products)
        return out

    def adjoint(self, y: Float[Array, " rows"]) -> Float[Array, " columns"]:
        total = zeros_like(y, self.columns)
        for piece in range(-(-self.columns // self.width)):
            row, column, value = self._piece(piece, y)
            total = total + scatter_add(column, gather(y, row) * value, self.columns)
        return total

    def _drawn(self, piece: int) -> tuple[np.ndarray, ...]:
        rng = generator(self.seed, piece)
        columns = range(piece * self.width, min(self.columns, (piece + 1) * self.width))
        counts = np.maximum(1, rng.binomial(self.rows, self.rows**-0.5, len(columns)))
        rows = [rng.choice(self.rows, count, replace=False, shuffle=False) for count in counts]
        signs = 1.0 - 2.0 * rng.integers(0, 2, int(counts.sum()), dtype=np.int8)
        return (
            np.concatenate(rows).astype(np.int32),
            np.repeat(np.asarray(columns, dtype=np.int32), counts),
            signs / np.sqrt(np.repeat(counts, counts)),
        )
