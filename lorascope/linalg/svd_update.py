"""The leading singular triplets of T = W + ΔW where W's decomposition is cached, and their cosines with W's vectors.

In W's singular basis of the shorter side, T Tᵀ is a diagonal matrix and little else. With W = U S Vᵀ (transposed where
it has more rows than columns, so that p is its number of rows), ΔW = L diag(s) Rᵀ of rank r, P = Uᵀ L and
Q = Uᵀ W R diag(s),

    Uᵀ T Tᵀ U = S² + P Qᵀ + Q Pᵀ + P diag(s²) Pᵀ = S² + F H Fᵀ,   F = [P Q] (p, 2r):

one product with it costs O(p r), one with the inverse of it less θ O(p r²), and its eigenvectors are the cosines that
are wanted. The leading ones come from an accelerated Rayleigh quotient iteration (the Jacobi–Davidson method with its
equation solved exactly; Sleijpen and van der Vorst 1996, SIAM J. Matrix Anal. Appl. 17): each step takes the best
pairs (θ, v) of the space at hand, and the space of these v and of (S² + F H Fᵀ − θ)⁻¹v next. That none was missed is
proved by counting: by Haynsworth's inertia additivity the number of eigenvalues above μ is that of diag(S² − μ) and of
a 2r × 2r matrix. What does not converge, does not count right, or is not low rank is decomposed densely; the residual
is stated.
"""

import math
from dataclasses import dataclass

import numpy as np

from lorascope.linalg import eigenpairs
from lorascope.linalg.cached_svd import EPS, TIE, CachedSVD
from lorascope.linalg.subspace import Bases

GUARD = 2  # more triplets than are asked for: a gap to count in, and whole clusters
CONVERGED = 1e-10  # residual of an eigenpair, of the largest eigenvalue; where the next is near,
PRECISE = 1e-6  # of the gap to it: how far off its vector then is; but no less than
ROUNDING = 1e-13  # of the largest
ROUGHLY = 1e-5  # the same of the guards, which are counted only
DEPENDENT = 1e-8  # a column of unit length with less than this beyond the others is rounding
NEARLY = 1e-2  # with less than this it is orthogonalised once more
MAX_STEPS = 12
_DENSE = 320  # up to this shorter side LAPACK needs no longer


@dataclass(frozen=True)
class UpdatedSVD:
    """The k leading singular triplets of T = W + ΔW, the largest first.

    Attributes:
        sigma: (k,).
        left: (p, k) the left vectors' coefficients in W's left singular vectors, zero past W's rank where these are
            the longer side.
        right: (p, k) the same on the right.
        change_left, change_right: (r, k) the vectors' coefficients in ΔW's singular vectors where it is low rank.
        energy: ‖T‖_F².
        error: bound on the absolute error of each σ: the residual's, and rounding's.
        method: "low rank" or "dense".
    """

    sigma: np.ndarray
    left: np.ndarray
    right: np.ndarray
    change_left: np.ndarray | None
    change_right: np.ndarray | None
    energy: float
    error: float
    method: str


def leading(cached: CachedSVD, weight: np.ndarray, delta: Bases | np.ndarray, k: int) -> UpdatedSVD:
    """The k leading triplets of weight + delta.

    Within equal singular values of T the vectors are those that diagonalise W Wᵀ (Wᵀ W where the input is the shorter
    side), so that nothing depends on the basis LAPACK picked.

    Args:
        cached: the decomposition of `weight`.
        weight: W (m, n), float64.
        delta: ΔW (m, n), in its singular bases (`subspace.bases`) where it is low rank, else a dense array.
        k: at most min(m, n) are returned.

    Raises:
        ValueError: an entry of a dense ΔW is NaN or infinite, or the shape is not W's.
    """
    shape = (delta.left.shape[0], delta.right.shape[0]) if isinstance(delta, Bases) else tuple(delta.shape)
    if shape != cached.shape:
        raise ValueError(f"ΔW is {shape} and W {cached.shape}")
    k = min(k, min(cached.shape))
    wide = weight.T if cached.transposed else weight
    if isinstance(delta, Bases):
        updated = _of_low_rank(cached, wide, _transposed(delta) if cached.transposed else delta, k)
    else:
        updated = _of_dense(cached, wide, delta.T if cached.transposed else delta, k)
    if not cached.transposed:
        return updated
    return UpdatedSVD(
        updated.sigma, updated.right, updated.left, updated.change_right, updated.change_left,
        updated.energy, updated.error, updated.method,
    )  # fmt: skip


def vectors(
    cached: CachedSVD, weight: np.ndarray, delta: Bases | np.ndarray, updated: UpdatedSVD
) -> tuple[np.ndarray, np.ndarray]:
    """The left (m, k) and right (n, k) singular vectors of T themselves, with `delta` as `leading` took it."""
    wide = weight.T if cached.transposed else weight
    short = cached.basis.combined(updated.right if cached.transposed else updated.left)
    image = wide.T @ short
    if isinstance(delta, Bases):
        change = _transposed(delta) if cached.transposed else delta
        image = image + (change.right * change.sigma) @ (change.left.T @ short)
    else:
        image = image + (delta if cached.transposed else delta.T) @ short
    long = image / np.where(updated.sigma > 0, updated.sigma, 1.0)
    return (long, short) if cached.transposed else (short, long)


def _transposed(delta: Bases) -> Bases:
    return Bases(delta.right, delta.sigma, delta.left)


def _of_low_rank(cached: CachedSVD, wide: np.ndarray, change: Bases, k: int) -> UpdatedSVD:
    s, rank = change.sigma, change.rank
    diagonal = cached.sigma**2
    factor = cached.basis.coefficients(np.concatenate([change.left, wide @ (change.right * s)], axis=1))
    p_side, q_side = factor[:, :rank], factor[:, rank:]
    core = _core(s)
    quick = len(diagonal) > _DENSE and 4 * rank < len(diagonal) and 3 * (k + 2 * GUARD) < len(diagonal)
    pairs = _iterated(diagonal, factor, core, k) if quick else None
    method = "low rank" if pairs is not None else "dense"
    squares, short = _canonical(*(pairs or _top(np.diag(diagonal) + (factor @ core) @ factor.T, k)), diagonal, k)
    residual = _apply(diagonal, factor, core, short) - short * squares
    sigma = np.sqrt(np.maximum(squares, 0.0))
    safe = np.where(sigma > 0, sigma, 1.0)
    on_short = p_side.T @ short
    on_long = ((q_side / s).T @ short + s[:, None] * on_short) / safe
    long = _scaled_down(cached, diagonal[:, None] * short + q_side @ on_short) / safe
    energy = float(np.sum(diagonal) + 2 * np.sum(p_side * q_side) + np.sum(s**2))
    return UpdatedSVD(sigma, short, long, on_short, on_long, energy, _error(cached, sigma, residual), method)


def _of_dense(cached: CachedSVD, wide: np.ndarray, change: np.ndarray, k: int) -> UpdatedSVD:
    tuned = wide + change
    if not np.isfinite(tuned).all():
        raise ValueError("ΔW holds NaN or infinite entries")
    gram = tuned @ tuned.T
    squares, leading_left = _top(gram, k)
    squares, short = _canonical(squares, cached.basis.coefficients(leading_left), cached.sigma**2, k)
    left = cached.basis.combined(short)
    residual = gram @ left - left * squares
    sigma = np.sqrt(np.maximum(squares, 0.0))
    image = tuned.T @ left / np.where(sigma > 0, sigma, 1.0)
    long = _scaled_down(cached, cached.basis.coefficients(wide @ image))
    return UpdatedSVD(sigma, short, long, None, None, float(np.trace(gram)), _error(cached, sigma, residual), "dense")


def _core(s: np.ndarray) -> np.ndarray:
    """H (2r, 2r) of ΔW's r singular values."""
    rank = len(s)
    core = np.zeros((2 * rank, 2 * rank))
    ahead = np.arange(rank)
    core[ahead, ahead] = s**2
    core[ahead, ahead + rank] = core[ahead + rank, ahead] = 1.0
    return core


def _core_inverse(core: np.ndarray) -> np.ndarray:
    """H⁻¹: of the blocks (S², 1; 1, 0) it is (0, 1; 1, −S²)."""
    rank = len(core) // 2
    inverse = np.zeros_like(core)
    inverse[rank:, rank:] = -core[:rank, :rank]
    inverse[:rank, rank:] = inverse[rank:, :rank] = core[:rank, rank:]
    return inverse


def _scaled_down(cached: CachedSVD, image: np.ndarray) -> np.ndarray:
    """Coefficients in W's singular vectors of the longer side, from S times them: none past W's rank."""
    coefficients = np.zeros_like(image)
    coefficients[: cached.rank] = image[: cached.rank] / cached.sigma[: cached.rank, None]
    return coefficients


def _error(cached: CachedSVD, sigma: np.ndarray, residual: np.ndarray) -> float:
    """Of each σ: an eigenvalue is at most the residual's norm away, and rounding moves σ² by about eps·σ₁²."""
    moved = float(np.linalg.norm(residual, axis=0).max(initial=0.0))
    moved += math.sqrt(sum(cached.shape)) * EPS * float(max(sigma[0], cached.sigma[0])) ** 2
    return moved / (float(sigma[-1]) + math.sqrt(moved)) if moved else 0.0


def _top(matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The leading eigenpairs of a symmetric matrix, k and some more, the largest first."""
    return eigenpairs.leading(matrix, min(k + GUARD, len(matrix)))


def _canonical(values: np.ndarray, vectors: np.ndarray, diagonal: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k leading pairs; equal eigenvalues get the basis that diagonalises `diagonal` in their subspace."""
    vectors = vectors.copy()
    starts = np.flatnonzero(np.concatenate([[True], -np.diff(values) > TIE * max(float(values[0]), 0.0)]))
    for start, stop in zip(starts, [*starts[1:], len(values)], strict=True):
        if start < k and stop - start > 1:
            cluster = vectors[:, start:stop]
            rotation = np.linalg.eigh(cluster.T @ (diagonal[:, None] * cluster))[1][:, ::-1]
            vectors[:, start:stop] = cluster @ rotation
    return values[:k], vectors[:, :k]


def _iterated(
    diagonal: np.ndarray, factor: np.ndarray, core: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """The leading eigenpairs of D + F H Fᵀ; None where they do not converge, or one was missed."""
    wanted, kept = k + GUARD, k + 2 * GUARD  # more is kept from step to step, for what else may turn out to lead
    basis = _start(factor, kept)
    image = _apply(diagonal, factor, core, basis)
    inner = basis.T @ image
    for _ in range(MAX_STEPS):
        all_values, rotation = np.linalg.eigh(inner)
        rotation = np.ascontiguousarray(rotation[:, : -kept - 1 : -1])
        basis, image = basis @ rotation, image @ rotation
        values, vectors = all_values[: -wanted - 1 : -1], basis[:, :wanted]
        residual = image[:, :wanted] - vectors * values
        lengths = np.linalg.norm(residual, axis=0)
        unconverged = lengths > _tolerances(all_values[: -wanted - 2 : -1], k)
        if not unconverged.any():
            if _all_found(diagonal, factor, core, values, k):
                return values, vectors
            unconverged = lengths > CONVERGED * values[0]  # guards too rough to count between
        if not unconverged.any():
            return None
        try:
            nearer = _inverse(diagonal, factor, core, values[unconverged], vectors[:, unconverged])
        except np.linalg.LinAlgError:  # a shift is an eigenvalue to its last digit
            return None
        basis = _orthonormal(basis, nearer)
        added = _apply(diagonal, factor, core, basis[:, kept:])
        across = basis.T @ added
        inner = np.empty((basis.shape[1], basis.shape[1]))
        inner[:kept, :kept] = np.diag(all_values[: -kept - 1 : -1])
        inner[:, kept:], inner[kept:, :kept] = across, across[:kept].T
        image = np.concatenate([image, added], axis=1)
    return None


def _tolerances(values: np.ndarray, k: int) -> np.ndarray:
    """What residual each pair but the last may have: of the first k such that their vectors are known (the error of
    one is at most its residual over the gap), of the others so that they can be counted."""
    gaps = -np.diff(values)
    nearest = np.minimum(gaps, np.concatenate([gaps[:1], gaps[:-1]]))
    precise = np.clip(PRECISE * nearest, ROUNDING * values[0], CONVERGED * values[0])
    return np.where(np.arange(len(gaps)) < k, precise, ROUGHLY * values[0])


def _start(factor: np.ndarray, units: int) -> np.ndarray:
    """W's leading directions, so many, and what ΔW has on this side beyond them; orthonormal."""
    p, rank = factor.shape[0], factor.shape[1] // 2
    basis = np.eye(p, units + rank)
    basis[units:, units:] = np.linalg.qr(factor[units:, :rank])[0]
    return basis


def _inverse(
    diagonal: np.ndarray, factor: np.ndarray, core: np.ndarray, shifts: np.ndarray, vectors: np.ndarray
) -> np.ndarray:
    """(D + F H Fᵀ − θ)⁻¹v for each θ of the shifts and its column v, by Woodbury's formula."""
    step = diagonal[:, None] - shifts
    least = 1e-9 * shifts[0]
    inverse = 1 / np.where(np.abs(step) < least, np.copysign(least, step), step)
    scaled = inverse * vectors
    inside = _core_inverse(core) + (factor.T * np.ascontiguousarray(inverse.T)[:, None]) @ factor
    weights = np.linalg.solve(inside, (factor.T @ scaled).T[:, :, None])[:, :, 0]
    return scaled - inverse * (factor @ weights.T)


def _apply(diagonal: np.ndarray, factor: np.ndarray, core: np.ndarray, block: np.ndarray) -> np.ndarray:
    return diagonal[:, None] * block + factor @ (core @ (factor.T @ block))


def _orthonormal(basis: np.ndarray, more: np.ndarray) -> np.ndarray:
    """`basis`, whose columns are orthonormal, and an orthonormal basis of what `more` adds: twice is enough."""
    for _ in range(2):
        more = more - basis @ (basis.T @ more)
        lengths = np.sqrt(np.einsum("ij,ij->j", more, more))
        more = more[:, lengths > 0] / lengths[lengths > 0]
    new, triangle = np.linalg.qr(more)
    beyond = np.abs(np.diagonal(triangle))
    new = new[:, beyond > DEPENDENT]
    if beyond.min(initial=1.0) < NEARLY:  # what was left of `basis` in these columns has been magnified by that
        new = np.linalg.qr(new - basis @ (basis.T @ new))[0]
    return np.concatenate([basis, new], axis=1)


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
    if best <= 100 * ROUGHLY**2 * values[0]:  # an eigenvalue is as good as its residual's square
        return False
    inner = -_core_inverse(core) - factor.T @ (factor / (diagonal - shift)[:, None])
    counted = int(np.sum(diagonal > shift)) + int(np.sum(np.linalg.eigvalsh(inner) > 0)) - len(core) // 2
    return counted == above
