"""The leading singular triplets of T = W + ΔW where W's decomposition is known, and their cosines with W's vectors.

In W's singular basis of the shorter side, T Tᵀ is a diagonal matrix and little else. With W = U S Vᵀ (turned so that
its rows are the shorter side, p), ΔW = L diag(s) Rᵀ of rank r, P = Uᵀ L and Q = Uᵀ W R diag(s),

    Uᵀ T Tᵀ U = S² + P Qᵀ + Q Pᵀ + P diag(s²) Pᵀ = S² + F H Fᵀ,   F = [P Q] (p, 2r):

one product with it costs O(p r), and its eigenvectors are the cosines that are asked for. The leading ones come from a
block Davidson iteration (Davidson 1975, J. Comput. Phys. 17) whose preconditioner (θ − S²)⁻¹ is exact here: each step
adds (θ − S²)⁻¹ F w, which has the very form of an eigenvector. That none was missed is proved by counting: by
Haynsworth's inertia additivity the number of eigenvalues above μ is that of diag(S² − μ) and of a 2r × 2r matrix. What
does not converge, does not count right, or is not low rank is decomposed densely; the residual is stated.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorascope.linalg.factored import Factored
from lorascope.linalg.known import EPS, TIE, KnownSvd

GUARD = 4  # more triplets than are asked for: a gap to count in, and whole clusters
CONVERGED = 1e-12  # residual of an eigenpair, of the largest eigenvalue
MOST_STEPS = 12
_DENSE = 320  # up to this shorter side LAPACK needs no longer


@dataclass(frozen=True)
class Changed:
    """The k leading singular triplets of T = W + ΔW, the largest first.

    Attributes:
        sigma: (k,).
        left: (p, k) the left vectors' coefficients in W's left singular vectors, zero past W's rank where these are
            the longer side.
        right: (p, k) the same on the right.
        u, v: (m, k) and (n, k), the vectors themselves.
        energy: ‖T‖_F².
        error: bound on the absolute error of each σ: the residual's, and rounding's.
        method: "low rank" or "dense".
    """

    sigma: np.ndarray
    left: np.ndarray
    right: np.ndarray
    u: np.ndarray
    v: np.ndarray
    energy: float
    error: float
    method: str


def leading(known: KnownSvd, weight: np.ndarray, delta: Any, k: int) -> Changed:
    """The k leading triplets of weight + delta.

    Within equal singular values of T the vectors are those that diagonalise W Wᵀ (Wᵀ W where the input is the shorter
    side), so that nothing depends on the basis LAPACK picked.

    Args:
        known: the decomposition of `weight`.
        weight: W (m, n), float64.
        delta: ΔW (m, n), a `Factored` of W's shape or a dense array.
        k: at most min(m, n) are returned.

    Raises:
        ValueError: an entry of ΔW is NaN or infinite, or its shape is not W's.
    """
    if tuple(delta.shape) != known.shape:
        raise ValueError(f"ΔW is {tuple(delta.shape)} and W {known.shape}")
    k = min(k, min(known.shape))
    wide, change = (weight.T, delta.T) if known.turned else (weight, delta)
    narrow = isinstance(change, Factored) and 2 * change.left.shape[1] < len(known.sigma)
    if isinstance(change, Factored) and narrow:
        squares, short, long, energy, residual, method = _of_low_rank(known, wide, change, k)
    else:
        dense = change.dense() if hasattr(change, "dense") else change
        squares, short, long, energy, residual, method = _of_dense(known, wide, dense, k)
    sigma = np.sqrt(np.maximum(squares, 0.0))
    safe = np.where(sigma > 0, sigma, 1.0)
    coefficients = _other_side(known, wide, long / safe)
    first, second = known.short @ short, long / safe
    error = (residual + math.sqrt(sum(known.shape)) * EPS * float(squares[0])) / max(float(sigma[-1]), TIE)
    if known.turned:
        return Changed(sigma, coefficients, short, second, first, energy, error, method)
    return Changed(sigma, short, coefficients, first, second, energy, error, method)


def _of_low_rank(known: KnownSvd, wide: np.ndarray, change: Factored, k: int) -> tuple:
    """θ (k,), coefficients (p, k), Tᵀy (n, k), ‖T‖_F², the residual, and the method."""
    u, s, vh = change.svd()
    if not np.isfinite(s).all():
        raise ValueError("ΔW holds NaN or infinite entries")
    kept = int(np.sum(s > EPS * s[0])) if s.size and s[0] > 0 else 0
    u, s, right = u[:, :kept], s[:kept], vh[:kept].T
    p_side = known.short.T @ u
    q_side = known.short.T @ (wide @ (right * s))
    diagonal, factor = known.sigma**2, np.concatenate([p_side, q_side], axis=1)
    core = np.block([[np.diag(s**2), np.eye(kept)], [np.eye(kept), np.zeros((kept, kept))]])
    found = _davidson(diagonal, factor, core, k) if len(diagonal) > _DENSE else None
    method = "low rank"
    if found is None:
        method = "dense"
        found = _top(np.diag(diagonal) + (factor @ core) @ factor.T, k)
    squares, vectors = _canonical(*found, diagonal, k)
    image = diagonal[:, None] * vectors + factor @ (core @ (factor.T @ vectors))
    residual = float(np.linalg.norm(image - vectors * squares, axis=0).max(initial=0.0))
    energy = float(np.sum(diagonal) + 2 * np.sum(p_side * q_side) + np.sum(s**2))
    long = wide.T @ (known.short @ vectors) + (right * s) @ (p_side.T @ vectors)
    return squares, vectors, long, energy, residual, method


def _of_dense(known: KnownSvd, wide: np.ndarray, change: np.ndarray, k: int) -> tuple:
    tuned = wide + change
    if not np.isfinite(tuned).all():
        raise ValueError("ΔW holds NaN or infinite entries")
    gram = tuned @ tuned.T
    squares, vectors = _top(gram, k)
    squares, coefficients = _canonical(squares, known.short.T @ vectors, known.sigma**2, k)
    vectors = known.short @ coefficients
    residual = float(np.linalg.norm(gram @ vectors - vectors * squares, axis=0).max(initial=0.0))
    return squares, coefficients, tuned.T @ vectors, float(np.trace(gram)), residual, "dense"


def _other_side(known: KnownSvd, wide: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Coefficients (p, k) of vectors (n, k) in W's singular vectors of the longer side: Vᵀz = S⁻¹ Uᵀ W z."""
    found = known.short.T @ (wide @ vectors)
    found[: known.rank] /= known.sigma[: known.rank, None]
    found[known.rank :] = 0.0
    return found


def _top(matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The leading eigenpairs of a symmetric matrix, k and some more, the largest first."""
    p = len(matrix)
    count = min(k + GUARD, p)
    if 4 * count < p:
        from scipy.linalg import eigh

        values, vectors = eigh(matrix, subset_by_index=(p - count, p - 1), check_finite=False)
    else:
        values, vectors = np.linalg.eigh(matrix)
    return values[::-1][:count], vectors[:, ::-1][:, :count]


def _canonical(values: np.ndarray, vectors: np.ndarray, diagonal: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k leading pairs; equal eigenvalues get the basis that diagonalises `diagonal` in their subspace."""
    vectors = vectors.copy()
    starts = np.flatnonzero(np.concatenate([[True], -np.diff(values) > TIE * max(float(values[0]), 0.0)]))
    for start, stop in zip(starts, [*starts[1:], len(values)], strict=True):
        if start < k and stop - start > 1:
            inside = vectors[:, start:stop]
            turn = np.linalg.eigh(inside.T @ (diagonal[:, None] * inside))[1][:, ::-1]
            vectors[:, start:stop] = inside @ turn
    return values[:k], vectors[:, :k]


def _davidson(
    diagonal: np.ndarray, factor: np.ndarray, core: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """The leading eigenpairs of D + F H Fᵀ; None where they do not converge, or one was missed."""
    p, wanted = len(diagonal), k + GUARD
    basis = _orthonormal(np.eye(p, wanted + GUARD), factor[:, : factor.shape[1] // 2])
    image = _apply(diagonal, factor, core, basis)
    for _ in range(MOST_STEPS):
        values, turn = np.linalg.eigh(basis.T @ image)
        values, turn = values[::-1][:wanted], turn[:, ::-1][:, :wanted]
        vectors = basis @ turn
        residual = image @ turn - vectors * values
        norms = np.linalg.norm(residual, axis=0)
        open_ones = norms > CONVERGED * values[0]
        if not open_ones.any():
            return (values, vectors) if _all_found(diagonal, factor, core, values, k) else None
        if basis.shape[1] + open_ones.sum() > p // 2:
            return None
        step = values[open_ones] - diagonal[:, None]
        least = 1e-9 * values[0]
        step = np.where(np.abs(step) < least, np.copysign(least, step), step)
        new = _orthonormal(basis, residual[:, open_ones] / step)[:, basis.shape[1] :]
        basis = np.concatenate([basis, new], axis=1)
        image = np.concatenate([image, _apply(diagonal, factor, core, new)], axis=1)
    return None


def _apply(diagonal: np.ndarray, factor: np.ndarray, core: np.ndarray, block: np.ndarray) -> np.ndarray:
    return diagonal[:, None] * block + factor @ (core @ (factor.T @ block))


def _orthonormal(basis: np.ndarray, more: np.ndarray) -> np.ndarray:
    """`basis`, whose columns are orthonormal, and an orthonormal basis of what `more` adds: twice is enough."""
    lengths = np.linalg.norm(more, axis=0)
    more = more[:, lengths > 0] / lengths[lengths > 0]
    for _ in range(2):
        more = np.linalg.qr(more - basis @ (basis.T @ more))[0]
    return np.concatenate([basis, more], axis=1)


def _all_found(diagonal: np.ndarray, factor: np.ndarray, core: np.ndarray, values: np.ndarray, k: int) -> bool:
    """Whether as many eigenvalues lie above some μ below the k-th as were found there: then none was missed.

    With H the core, the signs of diag(D − μ) and of −H⁻¹ − Fᵀ(D − μ)⁻¹F together are those of D + FHFᵀ − μ and of −H⁻¹
    (Haynsworth 1968); the core here has as many positive eigenvalues as negative ones.
    """
    best, above = 0.0, 0
    shift = float(values[k - 1])
    for count in range(k, len(values)):  # the widest gap below the k-th, away from W's own values
        middle = float(values[count - 1] + values[count]) / 2
        room = min(float(np.abs(diagonal - middle).min()), float(values[count - 1] - values[count]) / 2)
        if room > best:
            best, shift, above = room, middle, count
    if best <= 100 * CONVERGED * values[0]:
        return False
    inner = -np.linalg.inv(core) - factor.T @ (factor / (diagonal - shift)[:, None])
    counted = int(np.sum(diagonal > shift)) + int(np.sum(np.linalg.eigvalsh(inner) > 0)) - len(core) // 2
    return counted == above
