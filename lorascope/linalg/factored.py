"""A matrix kept as left (m, k) · right (k, n), never multiplied out.

With QR on both sides, left = Q_l R_l and rightᵀ = Q_r R_r, so left · right = Q_l (R_l R_rᵀ) Q_rᵀ and the singular
values are those of the k × k core: O((m + n) k²) in place of O(m n min(m, n)); see Halko, Martinsson and Tropp 2011,
§5. The eigenvalues of a product of Gram matrices would cost half of the digits.

The factors are not unique: (left C, C⁻¹ right) is the same matrix. The QRs round relative to the *factors*, so an
unlucky gauge, or a steep spectrum, costs digits in the small singular values: about eps · Σ‖l_i‖‖r_i‖ / σ_j. Where that
is too much we first move to the gauge in which column i of either factor has length √σ_i. That move is a product on
both sides of each σ_i, so it keeps *relative* accuracy, and its own rounding is eps · √(σ_1/σ_i) (see Drmač 1998 on
accurate SVDs of products). Float64 throughout, from whatever dtype the factors have.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorascope.linalg.arrays import Array, Float, namespace
from lorascope.linalg.spectrum import EXTREME

EPS = float(np.finfo(np.float64).eps)
ACCURACY = 1e-11  # relative error asked of every singular value that is not negligible
NEGLIGIBLE = 1e-7  # of the largest
GRAM_CONDITION = 1e3  # of the scaled Gram matrix: up to here Cholesky's error is about 1e-12
TINY = 1e-140  # column lengths below this would square to nothing
NARROW, PIECES = 16, (1024, 512, 256)  # columns up to which a Gram matrix is summed over pieces of so many rows
ILL_CONDITIONED = 1e2  # cancellation in a change of gauge: beyond this its products are summed in extended precision
RANK_FLOOR = 64 * EPS  # of the largest: below this a value is the rounding of the factors themselves


@dataclass(frozen=True)
class Factored:
    """left (m, k) @ right (k, n).

    Raises:
        ValueError: the inner sizes differ; and, from the decompositions, an entry is NaN or infinite.
    """

    left: Array
    right: Array
    __array_ufunc__ = None  # so that array @ Factored asks Factored

    def __post_init__(self) -> None:
        if self.left.ndim != 2 or self.right.ndim != 2 or self.left.shape[1] != self.right.shape[0]:
            raise ValueError(f"cannot multiply {tuple(self.left.shape)} by {tuple(self.right.shape)}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def T(self) -> "Factored":
        return Factored(self.right.T, self.left.T)

    def dense(self) -> Float[Array, "m n"]:
        """The product: for merging, and as an oracle at small sizes."""
        return self.left @ self.right

    def factors(self) -> "Factored":
        return self

    def rows(self, start: int, stop: int) -> Float[Array, "k n"]:
        return self.left[start:stop] @ self.right

    @property
    def structured(self) -> bool:
        return True

    def scaled(self, factor: float) -> "Factored":
        return Factored(self.left * factor, self.right)

    def __matmul__(self, other: Array) -> Array:
        return self.left @ (self.right @ other)

    def __rmatmul__(self, other: Array) -> Array:
        return (other @ self.left) @ self.right

    def singular_values(self, overwrite: bool = False) -> Float[Array, " p"]:
        """min(m, n, k) singular values, descending."""
        left, right_t = _double(self.left), _double(self.right.T)
        if 0 in left.shape or 0 in right_t.shape:
            return left.reshape(-1)[:0]
        try:  # what nearly always holds costs no look at the entries
            values, trusted = _core_values(left, right_t)
            if 1 / EXTREME < float(values[0]) < EXTREME:
                return values if trusted else _core_values(*_balanced(left, right_t))[0]
        except ValueError:
            pass
        left, right_t, unit = self._in_range()
        values, trusted = _core_values(left, right_t)
        return _times(values if trusted else _core_values(*_balanced(left, right_t))[0], unit)

    def svd(self) -> tuple[Float[Array, "m p"], Float[Array, " p"], Float[Array, "p n"]]:
        """U (m, p), S (p,) descending, Vh (p, n), with p = min(m, n, k)."""
        left, right_t, unit = self._in_range()
        xp = namespace(left)
        if 0 in left.shape or 0 in right_t.shape:
            return left[:, :0], left.reshape(-1)[:0], right_t.T[:0]
        if not _core_values(left, right_t)[1]:
            left, right_t = _balanced(left, right_t)
        q_left, r_left = xp.linalg.qr(left)
        q_right, r_right = xp.linalg.qr(right_t)
        u, s, vh = xp.linalg.svd(r_left @ r_right.T, full_matrices=False)
        return q_left @ u, _times(s, unit), vh @ q_right.T

    def frobenius_norm(self) -> float:
        """‖left · right‖_F, through the triangular factors."""
        left, right_t, unit = self._in_range()
        xp = namespace(left)
        if 0 in left.shape:
            return 0.0
        core, of_core = _to_range(_triangle(left) @ _triangle(right_t).T)
        return float(xp.linalg.norm(core)) * of_core * min(unit) * max(unit)

    def _in_range(self) -> tuple[Array, Array, tuple[float, float]]:
        """left and rightᵀ in float64, each divided by a power of two where its squares would overflow or vanish."""
        (left, of_left), (right_t, of_right) = _to_range(_double(self.left)), _to_range(_double(self.right.T))
        return left, right_t, (of_left, of_right)

    def inner(self, other: Any) -> float:
        """⟨X, Y⟩ = tr(Xᵀ Y) with a `Matrix` of the same shape, in O((m + n) k k') where that is factored, too."""
        if self.shape != other.shape:
            raise ValueError(f"shapes differ: {self.shape} and {other.shape}")
        xp = namespace(self.left)
        product = other.factors()
        if product is None:
            return float(xp.sum(_double(self.left) * (other @ _double(self.right).T)))
        left = _double(self.left).T @ _double(product.left)
        right = _double(self.right) @ _double(product.right).T
        return float(xp.sum(left * right))

    def leading(self, count: int) -> tuple[Float[Array, "m p"], Float[Array, " p"], Float[Array, "p n"]]:
        """The leading singular triplets."""
        u, s, vh = self.svd()
        return u[:, :count], s[:count], vh[:count]

    def truncated(self, rank: int) -> "Factored":
        """The best approximation of that rank (Eckart and Young 1936), σ shared evenly by both factors."""
        u, s, vh = self.svd()
        xp = namespace(s)
        root = xp.sqrt(s[:rank])
        return Factored(u[:, :rank] * root, root[:, None] * vh[:rank])


def _double(array: Array) -> Array:
    xp = namespace(array)
    return array if array.dtype == xp.float64 else xp.astype(array, xp.float64)


def _to_range(array: Array) -> tuple[Array, float]:
    """An array whose squares float64 can hold, and the power of two by which it was divided."""
    xp = namespace(array)
    top = max(float(xp.max(array)), -float(xp.min(array))) if 0 not in array.shape else 0.0
    if 1 / EXTREME < top < EXTREME or not math.isfinite(top):
        return array, 1.0
    unit = math.ldexp(1.0, math.frexp(top)[1] - 1)
    return array / unit, unit


def _times(values: Array, units: tuple[float, float]) -> Array:
    """Singular values in their own size again. ValueError where float64 cannot hold them."""
    if units == (1.0, 1.0):
        return values
    with np.errstate(over="ignore"):
        values = values * min(units) * max(units)
    if not bool(namespace(values).all(namespace(values).isfinite(values))):
        raise ValueError("the product is larger than float64 holds")
    return values


def cholesky_triangle(tall: Float[Array, "m k"]) -> Float[Array, "k k"] | None:
    """R of the QR of tall (m, k), m ≥ k, by Cholesky of the Gram matrix; None where the columns are near dependent.

    With the columns scaled to unit length, the error is a factor (I + E) next to `tall` with ‖E‖ ≤ eps · cond(Gram), so
    that every singular value of a product moves by that *relative* amount at most (Ostrowski's theorem), whatever the
    other factor is. Several times faster than QR.
    """
    xp = namespace(tall)
    gram = _gram(tall)
    lengths = xp.sqrt(xp.linalg.diagonal(gram))
    if not bool(xp.all(xp.isfinite(lengths) & (lengths > TINY))):
        return None
    scaled = gram / lengths[:, None] / lengths[None, :]
    eigenvalues = xp.linalg.eigvalsh(scaled)
    if float(eigenvalues[-1]) <= GRAM_CONDITION * float(eigenvalues[0]):
        return xp.linalg.cholesky(scaled).T * lengths[None, :]
    return None


def _gram(tall: Float[Array, "m k"]) -> Float[Array, "k k"]:
    """tallᵀ tall; of a few columns in short pieces, which multiply in the cache, twice as fast as one product.

    One product of a matrix with itself is left to syrk, which is slow at a few columns: hence rows 1 to k times all,
    with the first row from the symmetry.
    """
    m, k = tall.shape
    step = next((step for step in PIECES if m % step == 0), 0)
    if namespace(tall) is not np or not 1 < k <= NARROW or not step or m <= step:
        return tall.T @ tall
    if tall.flags.c_contiguous:
        parts = tall.reshape(-1, step, k)
    elif tall.flags.f_contiguous:
        parts = tall.T.reshape(k, -1, step).transpose(1, 2, 0)
    else:
        return tall.T @ tall
    gram = np.empty((k, k))
    gram[1:] = np.matmul(parts[:, :, 1:].swapaxes(1, 2), parts).sum(axis=0)
    gram[0, 1:] = gram[1:, 0]
    gram[0, 0] = np.vdot(tall[:, 0], tall[:, 0])
    return gram


def _triangle(tall: Array) -> Array:
    """R (min(m, k), k) of the QR of tall (m, k), up to signs: by Cholesky where that is as accurate, else by QR."""
    xp = namespace(tall)
    quick = cholesky_triangle(tall) if tall.shape[0] >= tall.shape[1] else None
    if quick is not None:
        return quick
    return np.linalg.qr(tall, mode="r") if xp is np else xp.linalg.qr(tall)[1]


def _core_values(left: Array, right_t: Array) -> tuple[Array, bool]:
    """Singular values of left · right_tᵀ, and whether the bound says each is good to ACCURACY."""
    xp = namespace(left)
    with np.errstate(invalid="ignore", over="ignore"):  # a ValueError below says it
        r_left, r_right = _triangle(left), _triangle(right_t)
        core = r_left @ r_right.T
        lengths = xp.linalg.vector_norm(r_left, axis=0) * xp.linalg.vector_norm(r_right, axis=0)
    if not bool(xp.all(xp.isfinite(core))):
        raise ValueError("the factors hold NaN or infinite entries")
    values = xp.linalg.svdvals(core)
    # QR is equivariant under column scaling, so rounding is bounded column by column.
    rounding = EPS * float(xp.sum(lengths))
    top = float(values[0])
    counted = values[values > max(top * NEGLIGIBLE, rounding)]
    return values, counted.shape[0] == 0 or rounding <= ACCURACY * float(counted[-1])


def _balanced(left: Array, right_t: Array) -> tuple[Array, Array]:
    """The same product in the gauge where both factors have columns of length √σ_i.

    With R_l R_rᵀ = u s vh, the gauge is C = R_rᵀ v s^(-1/2): left C = U √s. Directions whose σ is lost in rounding are
    completed orthogonally, so that C stays invertible and the product stays exact. C⁻¹ is applied by a solve: an
    explicit formula for it would bring the cancellation back.
    """
    xp = namespace(left)
    width = left.shape[1]
    if width > min(left.shape[0], right_t.shape[0]):  # the core is not square: nothing to gain by a gauge
        return left, right_t
    r_left, r_right = _triangle(left), _triangle(right_t)
    _, s, vh = xp.linalg.svd(r_left @ r_right.T)
    rank = int(xp.sum(xp.astype(s > RANK_FLOOR * s[0], xp.int64)))
    gauge = (r_right.T @ vh[:rank].T) / xp.sqrt(s[:rank])
    if rank < width:
        basis, _, _ = xp.linalg.svd(gauge, full_matrices=True)
        gauge = xp.concat([gauge, basis[:, rank:]], axis=1)
    if xp is np and _cancellation(r_left, r_right, gauge) > ILL_CONDITIONED:
        return _extended_gauge(left, right_t, gauge)
    return left @ gauge, xp.linalg.solve(gauge, right_t.T).T


def _cancellation(r_left: np.ndarray, r_right: np.ndarray, gauge: np.ndarray) -> float:
    """How much longer the terms of left · gauge and of right_t · gauge⁻ᵀ are than their sums, at the worst column."""
    inverse = np.linalg.inv(gauge).T
    terms = [np.linalg.norm(r, axis=0) @ np.abs(g) for r, g in ((r_left, gauge), (r_right, inverse))]
    sums = [np.linalg.norm(r @ g, axis=0) for r, g in ((r_left, gauge), (r_right, inverse))]
    return max(float(np.max(term / np.maximum(size, TINY))) for term, size in zip(terms, sums, strict=True))


def _extended_gauge(left: np.ndarray, right_t: np.ndarray, gauge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """left · gauge and right_t · gauge⁻ᵀ, summed in long double where the platform has one: they cancel heavily."""
    wide = gauge.astype(np.longdouble)
    target = right_t.T.astype(np.longdouble)
    solution = np.linalg.solve(gauge, right_t.T).astype(np.longdouble)
    for _ in range(3):  # iterative refinement: each step gains the digits that the condition leaves
        solution += np.linalg.solve(gauge, (target - wide @ solution).astype(np.float64))
    return (left.astype(np.longdouble) @ wide).astype(np.float64), solution.T.astype(np.float64)
