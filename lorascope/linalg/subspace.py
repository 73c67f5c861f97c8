"""Subspaces of updates: orthonormal bases, principal angles, overlaps φ(i, j), and what they weigh in energy.

Everything is a function of ΔW alone, not of the factors it is written in, and of its singular vectors only through what
is determined: a sign, a rotation among equal singular values, or directions that are rounding change nothing. Where i
leading directions would divide equal singular values, they are not a subspace of ΔW: `cuts` says where that is.

Written against the array API: numpy arrays or torch tensors, float64 inside.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lorascope.linalg.arrays import Array, Float, namespace
from lorascope.linalg.factored import Factored, cholesky_triangle
from lorascope.linalg.matrix import Matrix, as_matrix

TIE = 1e-8  # of σ₁: singular values nearer than this are one, since rounding in float64 turns their vectors freely
RANK_FLOOR = 1e-12  # of σ₁: below this a direction is rounding, whatever the factors were stored in


@dataclass(frozen=True)
class Bases:
    """ΔW = left · diag(sigma) · rightᵀ with only what is numerically there.

    Attributes:
        left: (m, k), orthonormal columns.
        sigma: (k,), positive, descending.
        right: (n, k), orthonormal columns.
    """

    left: Array
    sigma: Array
    right: Array

    @property
    def rank(self) -> int:
        return self.sigma.shape[0]

    def norm(self) -> float:
        """‖ΔW‖_F."""
        return as_matrix(self.sigma[:, None]).frobenius_norm()


def bases(delta: Matrix | Array, tolerance: float = RANK_FLOOR) -> Bases:
    """The singular bases of a matrix (m, n), without what is below tolerance · σ₁.

    Raises:
        ValueError: an entry is NaN or infinite.
    """
    u, s, v = _decomposed(as_matrix(delta))
    xp = namespace(s)
    kept = 0
    if s.shape[0] and float(s[0]) > 0:
        kept = int(xp.sum(xp.astype(s > max(tolerance, RANK_FLOOR) * s[0], xp.int64)))
    return Bases(u[:, :kept], s[:kept], v[:, :kept])


def row_basis(matrix: Float[Array, "r n"], tolerance: float = RANK_FLOOR) -> tuple[Array, Array]:
    """V (n, k) and σ (k,): the right-singular side of a wide matrix, such as A alone in the LoRA paper's §7.2."""
    xp = namespace(matrix)
    if matrix.shape[0] > matrix.shape[1]:
        of_matrix = bases(matrix, tolerance)
    else:
        of_matrix = bases(Factored(xp.eye(matrix.shape[0], dtype=xp.float64), matrix), tolerance)
    return of_matrix.right, of_matrix.sigma


def _decomposed(delta: Matrix) -> tuple[Array, Array, Array]:
    """U (m, p), σ (p,), V (n, p)."""
    product = delta.factors()
    if product is not None:
        if product.left.shape[1] == 0:  # every rank was pruned away
            empty = namespace(product.left).astype(product.left, namespace(product.left).float64)
            return empty, empty[:1, :].reshape(-1), namespace(empty).astype(product.right.T, empty.dtype)
        quick = _by_cholesky(product)
        if quick is not None:
            return quick
    u, s, vh = delta.svd()
    return u, s, vh.T


def _by_cholesky(delta: Factored) -> tuple[Array, Array, Array] | None:
    """The SVD by way of Gram matrices, several times faster than QR; None where either factor is too dependent."""
    xp = namespace(delta.left)
    left, right_t = (xp.astype(side, xp.float64) for side in (delta.left, delta.right.T))
    ends = coordinates(left, right_t)
    return None if ends is None else (left @ ends[0], ends[1], right_t @ ends[2])


def coordinates(
    left: Float[Array, "m k"], right_t: Float[Array, "n k"]
) -> tuple[Float[Array, "k k"], Float[Array, " k"], Float[Array, "k k"]] | None:
    """P, σ and Q of left · right_tᵀ: its singular vectors are left · P and right_t · Q. None where either factor is too
    dependent for it, or holds what is not finite.

    With left = Q_l R_l and R_l from Cholesky, Q_l = left R_l⁻¹ is orthonormal to eps · cond(Gram) ≤ 2e-13. In these
    coordinates the overlap of two updates' subspaces costs one product of their factors, and no vector is written out.
    """
    xp = namespace(left)
    if 0 in left.shape or 0 in right_t.shape or left.shape[1] > min(left.shape[0], right_t.shape[0]):
        return None
    with np.errstate(invalid="ignore", over="ignore"):  # `svd` raises for it
        r_left, r_right = cholesky_triangle(left), cholesky_triangle(right_t)
    if r_left is None or r_right is None:
        return None
    u, s, vh = xp.linalg.svd(r_left @ r_right.T)
    return xp.linalg.solve(r_left, u), s, xp.linalg.solve(r_right, vh.T)


def cuts(sigma: Float[Array, " k"]) -> list[bool]:
    """For i = 1..k, whether the i leading directions are determined: σ_i is not a tie with σ_{i+1}."""
    if sigma.shape[0] == 0:
        return []
    top = float(sigma[0])
    gaps = [float(a) - float(b) > TIE * top for a, b in pairwise(sigma)]
    return [*gaps, True]


def principal_angles(u: Float[Array, "n i"], v: Float[Array, "n j"]) -> Float[Array, " p"]:
    """The p = min(i, j) angles between two subspaces given by orthonormal bases, ascending, in radians.

    Björck and Golub 1973: large angles from their cosines, σ(UᵀV), small ones from their sines, σ((I − UUᵀ)V), so that
    every angle is good to a few eps: arccos alone loses half of the digits below 1e-8.
    """
    xp = namespace(u, v)
    wide, narrow = (u, v) if u.shape[1] >= v.shape[1] else (v, u)
    if narrow.shape[1] == 0:
        return narrow.reshape(-1)
    cross = wide.T @ narrow
    cosines = xp.clip(xp.linalg.svdvals(cross), None, 1.0)
    sines = xp.flip(xp.clip(xp.linalg.svdvals(narrow - wide @ cross), None, 1.0))
    return xp.where(cosines * cosines >= 0.5, xp.asin(sines), xp.acos(cosines))


def overlap_grid(cross: Float[Array, "i j"]) -> Float[Array, "i j"]:
    """φ(p, q) = ‖U_pᵀV_q‖_F² / min(p, q) for all leading p and q, from UᵀV (Hu et al. 2021, §7.2, eq. 4)."""
    xp = namespace(cross)
    sums = (cross * cross).cumsum(0).cumsum(1)
    rows = xp.arange(1, cross.shape[0] + 1, dtype=xp.float64)
    columns = xp.arange(1, cross.shape[1] + 1, dtype=xp.float64)
    return sums / xp.minimum(rows[:, None], columns[None, :])


def cosine(a: Bases, b: Bases) -> float | None:
    """⟨ΔW_a, ΔW_b⟩ / (‖ΔW_a‖ ‖ΔW_b‖) through the factors; None where an update is zero."""
    if a.rank == 0 or b.rank == 0:
        return None
    xp = namespace(a.left)
    left, right = a.left.T @ b.left, a.right.T @ b.right
    s, t = (one.sigma / xp.linalg.vector_norm(one.sigma) for one in (a, b))
    return float(xp.sum(left * right * s[:, None] * t[None, :]))


def energy_overlap(cross: Float[Array, "k l"], s: Float[Array, " k"], t: Float[Array, " l"]) -> float:
    """⟨G_a, G_b⟩ / (‖G_a‖ ‖G_b‖), G = ΔW ΔWᵀ (left) or ΔWᵀΔW (right): in [0, 1], 1 where G_a ∝ G_b.

    Directions count by their energy, so that the many weak ones of a large rank neither add nor hide anything.
    """
    xp = namespace(cross)
    a, b = (s / s[0]) ** 2, (t / t[0]) ** 2
    inner = xp.sum(cross * cross * a[:, None] * b[None, :])
    return float(inner / (xp.linalg.vector_norm(a) * xp.linalg.vector_norm(b)))


def captured(cross: Float[Array, "k l"], t: Float[Array, " l"]) -> float:
    """‖UᵀΔW_b‖_F² / ‖ΔW_b‖_F² from cross = UᵀU_b: the share of b's energy that lies in the subspace U."""
    xp = namespace(cross)
    shares = (t / xp.linalg.vector_norm(t)) ** 2
    return float(xp.sum(xp.sum(cross * cross, axis=0) * shares))


def projection_distance(angles: Float[Array, " p"]) -> float:
    """√Σsin²θ = √(p − ‖UᵀV‖_F²): the LoRA paper's App. G, where φ = 1 − d²/p (printed there with d² alone)."""
    xp = namespace(angles)
    return float(xp.linalg.vector_norm(xp.sin(angles)))


def geodesic_distance(angles: Float[Array, " p"]) -> float:
    """√Σθ², the length of the shortest way on the Grassmannian."""
    return float(namespace(angles).linalg.vector_norm(angles))
