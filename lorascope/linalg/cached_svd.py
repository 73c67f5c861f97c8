"""The singular value decomposition of a base weight, computed once and kept.

Of W (m, n) only the singular vectors of the shorter side, p = min(m, n), are kept, and the singular values: the other
side's follow from them and W, so that a decomposition is p² numbers. They come from the Gram matrix of the shorter side
in float64. That moves every σ² by about eps·σ₁², so that vectors of singular values whose squares differ by less
than `TIE`·σ₁² are mixed, here as in any other computation: they are taken for one subspace. In float32, whatever the
algorithm, the mixing starts at differences of 6e-8·σ₁: this is more accurate down to σ = 4e-9·σ₁.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lorascope.linalg.arrays import Array, namespace, to_numpy
from lorascope.linalg.orthonormal import Orthonormal, eigenvectors

EPS = float(np.finfo(np.float64).eps)
TIE = 1e-11  # of σ₁²: singular values whose squares are nearer are one, since rounding turns their vectors freely
FLOOR = 1e-7  # of σ₁: below this a singular value is rounding, of a Gram matrix and of weights stored in float32
_PROBE = 1e-9  # of ‖WWᵀ‖: what a decomposition may miss a random vector by; rounding gives 1e-13


@dataclass(frozen=True)
class CachedSVD:
    """W = U diag(sigma) Vᵀ.

    Attributes:
        shape: (m, n) of W.
        basis: the p singular vectors of the shorter side: U where m ≤ n, else V. Complete: those past `rank` span the
            null space.
        sigma: (p,) descending.
    """

    shape: tuple[int, int]
    basis: Orthonormal
    sigma: np.ndarray

    @property
    def transposed(self) -> bool:
        """Whether the shorter side is the input: then everything is done to Wᵀ."""
        return self.shape[0] > self.shape[1]

    @cached_property
    def rank(self) -> int:
        """How many singular values are not rounding."""
        return int(np.sum(self.sigma > FLOOR * self.sigma[:1]))

    @cached_property
    def clusters(self) -> np.ndarray:
        """(rank,) for each singular value above rounding which subspace it belongs to: 0, 1, …; mostly one each."""
        squares = self.sigma[: self.rank] ** 2
        return np.cumsum(-np.diff(squares, prepend=squares[:1]) > TIE * squares[:1])

    @cached_property
    def firsts(self) -> np.ndarray:
        """(clusters,) the index of each subspace's first singular value."""
        return np.flatnonzero(np.diff(self.clusters, prepend=-1))

    def cut(self, j: int) -> int:
        """j, or as many more leading values as are one with σ_j: the first j are a subspace of W only then."""
        j = min(j, self.rank)
        while 0 < j < self.rank and self.clusters[j - 1] == self.clusters[j]:
            j += 1
        return j

    def leading(self, weight: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k leading left (m, k) and right (n, k) singular vectors; k ≤ rank."""
        wide = weight.T if self.transposed else weight
        short = self.basis.leading(k)
        long = wide.T @ short / self.sigma[:k]
        return (long, short) if self.transposed else (short, long)

    def cosines(self, coefficients: np.ndarray) -> np.ndarray:
        """(clusters, k): for unit vectors given by their coefficients (p, k) in W's singular vectors, the |cos| with
        each singular vector of W, or with the subspace of equal ones."""
        squares = coefficients[: self.rank] ** 2
        if not self.rank:
            return np.zeros((0, coefficients.shape[1]))
        if len(self.firsts) < self.rank:
            squares = np.add.reduceat(squares, self.firsts, axis=0)
        return np.sqrt(np.minimum(squares, 1.0))

    def is_of(self, weight: np.ndarray) -> bool:
        """Whether this decomposes `weight`, by a random vector in O(mn): a damaged or a foreign one fails."""
        wide = weight.T if self.transposed else weight
        p = wide.shape[0]
        if weight.shape != self.shape or self.basis.inner.shape != (p, p) or self.sigma.shape != (p,):
            return False
        if not p:
            return True
        z = np.random.default_rng(p).standard_normal((p, 1))
        coefficients = self.basis.coefficients(z)
        with np.errstate(all="ignore"):
            same, image = self.basis.combined(
                np.concatenate([coefficients, self.sigma[:, None] ** 2 * coefficients], axis=1)
            ).T
            not_orthonormal = np.abs(same - z[:, 0]).max()
            residual = np.abs(image - wide @ (wide.T @ z[:, 0])).max()
            tolerance = _PROBE * math.sqrt(p)
            return bool(not_orthonormal <= tolerance and residual <= tolerance * self.sigma[0] ** 2)


def decompose(weight: np.ndarray) -> CachedSVD:
    """The decomposition of a float64 matrix (m, n), through the Gram matrix of its shorter side.

    Raises:
        ValueError: an entry is NaN or infinite, or the matrix has no entries.
    """
    wide = _wide(weight)
    with np.errstate(invalid="ignore", over="ignore"):
        gram = wide @ wide.T
    if not weight.size or not (np.isfinite(gram.trace()) or np.isfinite(weight).all()):
        raise ValueError("the matrix is empty, or holds NaN or infinite entries")
    return _of(weight.shape, *eigenvectors(gram))


def decompose_together(weights: Sequence[np.ndarray], place: Callable[[np.ndarray], Array]) -> list[CachedSVD]:
    """The same of several finite matrices of one shape in one call, where `place` puts them, such as on a GPU."""
    wide = place(np.stack([_wide(weight) for weight in weights]))
    xp = namespace(wide)
    squares, vectors = map(to_numpy, xp.linalg.eigh(wide @ xp.matrix_transpose(wide)))
    return [
        _of(weight.shape, values[::-1], Orthonormal(np.ascontiguousarray(columns[:, ::-1])))
        for weight, values, columns in zip(weights, squares, vectors, strict=True)
    ]


def _wide(weight: np.ndarray) -> np.ndarray:
    return weight.T if weight.shape[0] > weight.shape[1] else weight


def _of(shape: tuple[int, ...], squares: np.ndarray, basis: Orthonormal) -> CachedSVD:
    """Of the eigenvalues and eigenvectors of the Gram matrix, the largest first."""
    return CachedSVD((int(shape[0]), int(shape[1])), basis, np.sqrt(np.maximum(squares, 0.0)))
