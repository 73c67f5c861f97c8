"""Spectra of dense matrices: all singular values, the best rank-r part, and the leading k with a bound on the rest.

The fast exact way is the Gram matrix of the shorter side in float64 and its eigenvalues: half the work of a
bidiagonalisation, nearly all of it in matrix products (of a large one the reduction, too: `two_stage`). It moves every
eigenvalue σ² by about eps·σ₁², so a singular value by eps·σ₁²/σ: to nine digits at σ₁/1000, to none below 1e-8·σ₁. That
is never worse than svdvals in float32, whose values all move by 6e-8·σ₁ or more. Where the bulk of the spectrum lies
too low for it, svdvals in float64 is used.
"""

import math
from dataclasses import dataclass

import numpy as np

from lorascope.linalg import eigenpairs
from lorascope.linalg.arrays import Array, Float, namespace
from lorascope.linalg.fastfood import as_like
from lorascope.linalg.two_stage import eigenvalues

EPS = float(np.finfo(np.float64).eps)
ACCURACY = 1e-6  # relative, asked of the upper half of the singular values
OVERSAMPLING, KRYLOV_STEPS = 10, 4
PROBES, PROBE_STEPS = 10, 2


@dataclass(frozen=True)
class Spectrum:
    """Singular values with what is known of their accuracy.

    Attributes:
        values: descending, float64: all min(m, n), or the leading k.
        method: "gram", "svd" or "randomised".
        error: bound on the absolute error of each value, as rounding is usually bounded (√(m+n)·eps), or for
            "randomised" how much larger the true value can be: certain up to a chance of 1e-10.
        remaining: Σσ² of the values that are not listed: ‖M‖_F² − Σ values², exact up to rounding.
    """

    values: Array
    method: str
    error: Array
    remaining: float = 0.0


@dataclass(frozen=True)
class Leading:
    """U (m, k), S (k,) descending, Vh (k, n), and the values' `Spectrum`."""

    u: Array
    s: Array
    vh: Array
    spectrum: Spectrum


def singular_values(matrix: Float[Array, "m n"], overwrite: bool = False) -> Float[Array, " p"]:
    """min(m, n) singular values, descending, in float64, each to eps·σ₁.

    Args:
        overwrite: the matrix is not needed afterwards, and a numpy array may be worked on in place.

    Raises:
        ValueError: an entry is NaN or infinite.
    """
    xp = namespace(matrix)
    _check(matrix)
    if overwrite and xp is np and matrix.dtype == np.float64:
        from scipy.linalg import svdvals

        return svdvals(matrix.T if matrix.flags.c_contiguous else matrix, overwrite_a=True, check_finite=False)
    return xp.linalg.svdvals(_double(matrix))


def spectrum(matrix: Float[Array, "m n"], accuracy: float = ACCURACY) -> Spectrum:
    """All singular values, the upper half of them to a relative `accuracy`, the fastest way that gives it.

    Raises:
        ValueError: an entry is NaN or infinite.
    """
    xp = namespace(matrix)
    _check(matrix)
    wide = _wide(_double(matrix))
    rounding = math.sqrt(sum(wide.shape)) * EPS
    gram = wide @ wide.T
    squares = xp.flip(eigenvalues(gram) if xp is np else xp.linalg.eigvalsh(gram), axis=0)
    del gram
    middle, top = float(squares[squares.shape[0] // 2]), float(squares[0])
    if middle * 2 * accuracy < rounding * top:
        values = xp.linalg.svdvals(wide)
        return Spectrum(values, "svd", xp.zeros_like(values) + rounding * float(values[0]))
    values = xp.sqrt(xp.where(squares > 0, squares, xp.zeros_like(squares)))
    moved = rounding * top
    return Spectrum(values, "gram", moved / (values + math.sqrt(moved)) if moved else xp.zeros_like(values))


def best_rank(matrix: Float[Array, "m n"], rank: int) -> Leading:
    """The best approximation of that rank (Eckart and Young 1936), through the leading eigenvectors of the Gram matrix.

    With U the eigenvectors the approximation is U(UᵀM): what its error lacks to the optimum is at most the Gram
    matrix's own rounding, r·√(m+n)·eps·σ₁² of ‖M‖_F².

    Raises:
        ValueError: an entry is NaN or infinite, or the rank is not in 1 … min(m, n).
    """
    xp = namespace(matrix)
    _check(matrix)
    matrix = _double(matrix)
    wide = _wide(matrix)
    if not 1 <= rank <= wide.shape[0]:
        raise ValueError(f"a matrix of {tuple(matrix.shape)} has no part of rank {rank}")
    basis = eigenpairs.leading(wide @ wide.T, rank)[1]
    inner, s, vh = xp.linalg.svd(basis.T @ wide, full_matrices=False)
    u = basis @ inner
    if matrix.shape[0] > matrix.shape[1]:
        u, vh = vh.T, u.T
    rest = max(_energy(matrix) - float(xp.sum(s * s)), 0.0)
    error = xp.zeros_like(s) + math.sqrt(sum(matrix.shape)) * EPS * float(s[0])
    return Leading(u, s, vh, Spectrum(s, "gram", error, rest))


def leading(matrix: Float[Array, "m n"], k: int, seed: int = 0) -> Leading:
    """The k leading singular triplets by a randomised block Krylov space, the energy of the rest, and an error bound.

    Musco and Musco 2015, arXiv 1504.05477, algorithm 2; the range finder of Halko, Martinsson and Tropp 2011, arXiv
    0909.4061, is its first block. The values are those of QᵀM, so never too large; and σ_i² ≤ s_i² + ‖(I − QQᵀ)M‖₂².
    That norm is bounded from random probes through powers of the residual E (Halko's lemma 4.1 for (EEᵀ)²E, of norm
    ‖E‖₂⁵), and by ‖E‖_F, which is known exactly. Of a matrix hardly wider than the space, the SVD is taken.

    Raises:
        ValueError: an entry is NaN or infinite, or k is not positive.
    """
    if k < 1:
        raise ValueError(f"cannot take the leading {k} singular values")
    xp = namespace(matrix)
    _check(matrix)
    matrix = _double(matrix)
    rounding = math.sqrt(sum(matrix.shape)) * EPS
    energy = _energy(matrix)
    width = k + OVERSAMPLING
    if width * (KRYLOV_STEPS + 1) >= min(matrix.shape):
        u, s, vh = xp.linalg.svd(matrix, full_matrices=False)
        u, s, vh, outside, method = u[:, :k], s[:k], vh[:k], 0.0, "svd"
    else:
        rng = np.random.default_rng(seed)
        blocks = [_orthonormal(matrix @ as_like(rng.standard_normal((matrix.shape[1], width)), matrix))]
        for _ in range(KRYLOV_STEPS):
            blocks.append(_orthonormal(matrix @ _orthonormal(matrix.T @ blocks[-1])))
        q = _orthonormal(xp.concat(blocks, axis=1))
        small = q.T @ matrix
        inner, s, vh = xp.linalg.svd(small, full_matrices=False)
        outside = _residual_norm(matrix, q, small, rng, max(energy - float(xp.sum(s * s)), 0.0))
        u, s, vh, method = q @ inner[:, :k], s[:k], vh[:k], "randomised"
    error = xp.sqrt(s * s + outside**2) - s + rounding * float(s[0])
    rest = max(energy - float(xp.sum(s * s)), 0.0)
    return Leading(u, s, vh, Spectrum(s, method, error, rest))


def _residual_norm(matrix: Array, q: Array, small: Array, rng: np.random.Generator, energy: float) -> float:
    """An upper bound of ‖M − Q Qᵀ M‖₂ that fails once in 10^PROBES; `energy` is the residual's ‖·‖_F²."""
    xp = namespace(matrix)
    probe = as_like(rng.standard_normal((matrix.shape[1], PROBES)), matrix)

    def residual(right: Array) -> Array:
        return matrix @ right - q @ (small @ right)

    def adjoint(left: Array) -> Array:
        return matrix.T @ left - small.T @ (q.T @ left)

    image = residual(probe)
    scale = math.sqrt(energy) or 1.0  # so that powers neither vanish nor overflow
    for _ in range(PROBE_STEPS):
        image = residual(adjoint(image) / scale) / scale
    longest = float(xp.max(xp.linalg.vector_norm(image, axis=0))) / scale
    power = 2 * PROBE_STEPS + 1
    return min(scale * (10 * math.sqrt(2 / math.pi) * longest) ** (1 / power), math.sqrt(energy))


def _orthonormal(tall: Array) -> Array:
    return namespace(tall).linalg.qr(tall)[0]


def _double(matrix: Array) -> Array:
    """In float64, not copied where it is that already: ΔW may be the largest thing in memory."""
    xp = namespace(matrix)
    return matrix if matrix.dtype == xp.float64 else xp.astype(matrix, xp.float64)


def _energy(matrix: Array) -> float:
    """‖M‖_F², without a copy of a transposed array."""
    xp = namespace(matrix)
    return float(np.linalg.norm(matrix) ** 2 if xp is np else xp.sum(matrix * matrix))


def _wide(matrix: Array) -> Array:
    """The matrix, or its transpose, with the shorter side first."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def _check(matrix: Array) -> None:
    xp = namespace(matrix)
    if not bool(xp.all(xp.isfinite(matrix))):
        raise ValueError("the matrix holds NaN or infinite entries")
