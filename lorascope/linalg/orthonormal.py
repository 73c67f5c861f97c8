"""An orthonormal basis of eigenvectors that is used on a few vectors at a time, and rarely needed as a matrix.

LAPACK finds the eigenvectors of a symmetric G = Q T Qᵀ, T tridiagonal, as Q V: V are those of T, by divide and conquer,
and Q is a product of Householder reflections (Golub and Van Loan, Matrix Computations, §8.3). Multiplying them out
costs 2n³ operations, a third of the whole at n = 384 and half of it at 1024. Coefficients of a few vectors need only V
and Q one after the other, and are as accurate: both are orthonormal to rounding.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

SMALL = 128  # up to this size one call of numpy is faster
LARGEST = 46340  # whose entries 32-bit integers, which scipy's LAPACK has, can count


@dataclass(frozen=True)
class Orthonormal:
    """Q V, or V alone.

    Attributes:
        inner: (p, p) V.
        reflectors: (p, p − 1) the vectors of the reflections that make Q, of its rows 2 … p and then of its first,
            where they are zero; as LAPACK's dsytrd leaves them below the diagonal, in column-major order. None where
            there is no Q.
        scales: (p − 1,) their factors τ.
    """

    inner: np.ndarray
    reflectors: np.ndarray | None = None
    scales: np.ndarray | None = None

    def coefficients(self, vectors: np.ndarray) -> np.ndarray:
        """(p, k) of vectors (p, k): their inner products with the basis."""
        return self.inner.T @ self._reflected(vectors, b"T")

    def combined(self, coefficients: np.ndarray) -> np.ndarray:
        """(p, k) the vectors that have these coefficients (p, k)."""
        return self._reflected(self.inner @ coefficients, b"N")

    def leading(self, k: int) -> np.ndarray:
        """(p, k) the first k vectors."""
        return self._reflected(self.inner[:, :k], b"N")

    def dense(self) -> np.ndarray:
        """(p, p) all of them."""
        return self._reflected(self.inner, b"N")

    def _reflected(self, vectors: np.ndarray, transposed: bytes) -> np.ndarray:
        """Q times vectors (p, k), or Qᵀ times them; Q leaves the first row as it is."""
        if self.reflectors is None:
            return vectors
        from scipy.linalg import lapack

        turned = np.empty(vectors.shape, order="F")
        turned[:-1], turned[-1] = vectors[1:], vectors[0]
        given = (b"L", transposed, self.reflectors, self.scales, turned)
        room = int(lapack.dormqr(*given, -1)[1][0])
        turned, _, info = lapack.dormqr(*given, room, overwrite_c=1)
        _check(info)
        return np.concatenate([turned[-1:], turned[:-1]])


def eigenvectors(symmetric: np.ndarray) -> tuple[np.ndarray, Orthonormal]:
    """Eigenvalues (n,), the largest first, and eigenvectors of a symmetric matrix (n, n) in float64, which is used up.

    Raises:
        numpy.linalg.LinAlgError: the iteration did not converge.
    """
    lapack = _lapack() if SMALL < len(symmetric) <= LARGEST else None
    if lapack is None:
        values, vectors = np.linalg.eigh(symmetric)
        return values[::-1], Orthonormal(np.ascontiguousarray(vectors[:, ::-1]))
    n = len(symmetric)
    room = int(lapack.dsytrd_lwork(n)[0])
    reduced, diagonal, beside, scales, info = lapack.dsytrd(symmetric.T, lower=1, lwork=room, overwrite_a=1)
    _check(info)
    negative, inner, info = lapack.dstevd(-diagonal, -beside)  # of −T, so that the largest come first
    _check(info or not np.isfinite(negative.sum()))  # where the matrix is not finite
    reduced[0, 1:] = 0.0  # so that its column j, from the second row on and past its end, is reflection j whole
    reflectors = reduced.reshape(-1, order="F")[1 : n * (n - 1) + 1].reshape(n, n - 1, order="F")
    return -negative, Orthonormal(inner, reflectors, scales)


def _lapack() -> Any:
    """scipy's LAPACK; None where it has no dstevd, as before scipy 1.14."""
    from scipy.linalg import lapack

    return lapack if hasattr(lapack, "dstevd") else None


def _check(info: int) -> None:
    if info:
        raise np.linalg.LinAlgError("the eigenvectors did not converge")
