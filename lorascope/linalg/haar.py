"""What overlap chance alone gives: the laws of random subspaces and of randomly turned updates, and FDR over modules.

"Random" is Haar: one of the two subspaces (or updates) is turned by a uniformly distributed rotation. Everything here
follows from one fact, for symmetric A and B (n, n) and Haar Q (Collins and Śniady 2006, the second-order orthogonal
Weingarten functions):

    E tr(A Q B Qᵀ) = tr A · tr B / n,    Var tr(A Q B Qᵀ) = 2 ‖A₀‖² ‖B₀‖² / ((n − 1)(n + 2)),

with A₀ = A − (tr A / n) I. For projections of ranks i and j, X = ‖UᵀV‖_F² = Σcos²θ has mean ij/n and variance
2ij(n − i)(n − j) / (n²(n − 1)(n + 2)). For i = 1, X is Beta(j/2, (n − j)/2) exactly; for other dimensions X is the
Pillai trace, and the Beta law with the exact mean, variance and range is used, whose exponents at both ends are the
true ones to first order. numpy only; scipy where a p-value is asked for.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lorascope.linalg.arrays import Array

_BISECTIONS = 60


@dataclass(frozen=True)
class Chance:
    """The law of a number in [low, high], 0 ≤ low ≤ high, by its exact mean and standard deviation."""

    mean: float
    sd: float
    low: float
    high: float

    def z(self, value: float) -> float | None:
        """(value − mean) / sd; None where chance allows one value only."""
        return None if self._fixed else (value - self.mean) / self.sd

    def p(self, value: float) -> float | None:
        """P(X ≥ value), of the Beta law with this mean, deviation and range; None where only one value is possible."""
        if self._fixed:
            return None
        from scipy.special import betainc

        width = self.high - self.low
        centre, spread = (self.mean - self.low) / width, (self.sd / width) ** 2
        total = centre * (1 - centre) / spread - 1
        above = min(max((self.high - value) / width, 0.0), 1.0)  # from the upper end: exact where the overlap is whole
        return float(betainc((1 - centre) * total, centre * total, above))

    def scaled(self, factor: float) -> "Chance":
        """The law of factor · X, factor > 0."""
        return Chance(self.mean * factor, self.sd * factor, self.low * factor, self.high * factor)

    @property
    def _fixed(self) -> bool:
        return self.sd <= 1e-12 * self.high


def moments(n: int, i: Array, j: Array) -> tuple[Array, Array]:
    """Mean and variance of ‖UᵀV‖_F² for random subspaces of dimensions i and j of R^n; i and j broadcast."""
    if n < 2:
        return np.multiply(i, j, dtype=float), np.zeros(np.broadcast(i, j).shape)
    product = np.asarray(i, dtype=float) * j
    return product / n, 2 * product * (n - i) * (n - j) / (n**2 * (n - 1) * (n + 2))


def overlap(n: int, i: int, j: int) -> Chance:
    """‖UᵀV‖_F² = Σcos²θ of random subspaces of dimensions i and j of R^n."""
    mean, variance = moments(n, i, j)
    return Chance(float(mean), math.sqrt(float(variance)), float(max(0, i + j - n)), float(min(i, j)))


def phi(n: int, i: int, j: int) -> Chance:
    """φ(i, j) = ‖UᵀV‖_F² / min(i, j); its mean is max(i, j)/n."""
    return overlap(n, i, j).scaled(1 / min(i, j))


def weighted(n: int, a: np.ndarray, b: np.ndarray) -> Chance:
    """tr(A Q B Qᵀ) for positive semidefinite A, B (n, n) with nonzero eigenvalues a (k,) and b (l,)."""
    a, b = np.sort(a)[::-1], np.sort(b)[::-1]
    mean = float(a.sum() * b.sum() / n)
    spreads = [max(float(np.sum(e**2) - e.sum() ** 2 / n), 0.0) for e in (a, b)]
    sd = math.sqrt(2 * spreads[0] * spreads[1] / ((n - 1) * (n + 2))) if n > 1 else 0.0
    both = min(len(a), len(b))
    crowded = max(0, len(a) + len(b) - n)  # so many of the smallest meet, the largest of one the least of the other
    low = float(a[len(a) - crowded :] @ b[::-1][:crowded])
    return Chance(mean, sd, low, float(a[:both] @ b[:both]))


def smallest_angle(n: int, i: int, j: int) -> float:
    """The smallest principal angle of large random subspaces, in radians (Wachter 1980): the edge of the Jacobi law.

    At finite n the mean lies a little above it.
    """
    return max(math.pi / 2 - math.asin(math.sqrt(i / n)) - math.asin(math.sqrt(j / n)), 0.0)


def cosine_sd(m: int, n: int) -> float:
    """Standard deviation of ⟨X, Q Y R⟩ / (‖X‖‖Y‖) for Haar Q (m, m), R (n, n): 1/√(mn), whatever the spectra are."""
    return 1 / math.sqrt(m * n)


def cosine_sd_given_right(m: int, right: np.ndarray, s: np.ndarray, t: np.ndarray) -> float:
    """Standard deviation of ⟨X, Q Y⟩ / (‖X‖‖Y‖) for Haar Q (m, m): ‖X Yᵀ‖_F / (√m ‖X‖‖Y‖).

    The chance level where the right sides agree for a reason of their own, such as one initialisation. `right` is
    V_XᵀV_Y (k, l), s and t the singular values. In the limit of large m the law is Gaussian, with lighter tails before.
    """
    weights = np.outer(s / np.linalg.norm(s), t / np.linalg.norm(t))
    return float(np.linalg.norm(right * weights)) / math.sqrt(m)


def cosine_p(cosine: float, m: int, n: int, s: np.ndarray, t: np.ndarray) -> float:
    """P(|c| ≥ |cosine|) for the cosine c of X (m, n) with singular values s (k,) and a randomly turned Y with t (l,).

    For m, n well above the ranks, c·√(mn) is Σ w_pq g_pq h_pq, w_pq = s_p t_q / (‖s‖‖t‖), with independent Gaussian g
    and h: heavier tails than a Gaussian's where few singular values dominate. Its cumulant generating function is
    −½ Σ log(1 − w²u²); the tail is by the saddlepoint formula of Lugannani and Rice 1980. At small m and n the bounded
    cosine has lighter tails, so p is then on the safe side.
    """
    x = abs(cosine) * math.sqrt(m * n)
    squares = np.outer((s / np.linalg.norm(s)) ** 2, (t / np.linalg.norm(t)) ** 2).ravel()
    if x < 0.05:  # the formula is 0/0 at the centre; the density there is near the Gaussian's or above it
        return 1.0 - x * math.sqrt(2 / math.pi)
    u = _saddlepoint(squares, x)
    kept = 1 - squares * u**2
    generating = -0.5 * float(np.sum(np.log(kept)))
    curvature = float(np.sum(squares * (1 + squares * u**2) / kept**2))
    w, v = math.sqrt(2 * (u * x - generating)), u * math.sqrt(curvature)
    tail = 0.5 * math.erfc(w / math.sqrt(2)) + math.exp(-w * w / 2) / math.sqrt(2 * math.pi) * (1 / v - 1 / w)
    return 2 * tail


def _saddlepoint(squares: np.ndarray, x: float) -> float:
    """u > 0 with Σ w²u / (1 − w²u²) = x, by bisection: the left side grows from 0 to ∞ on (0, 1/max w)."""
    low, high = 0.0, 1 / math.sqrt(float(squares.max()))
    for _ in range(_BISECTIONS):
        u = (low + high) / 2
        if float(np.sum(squares * u / (1 - squares * u**2))) < x:
            low = u
        else:
            high = u
    return low


def false_discovery(p: Sequence[float | None]) -> list[float | None]:
    """q-values over the tests of one family (Benjamini and Hochberg 1995); None stays None and counts as no test."""
    tested = [index for index, value in enumerate(p) if value is not None]
    values = np.array([p[index] for index in tested], dtype=float)
    order = np.argsort(values)[::-1]
    ranked = values[order] * len(values) / np.arange(len(values), 0, -1)
    q: list[float | None] = [None] * len(p)
    for index, value in zip(order, np.minimum.accumulate(ranked), strict=True):
        q[tested[index]] = float(value)
    return q


def largest_cosine(n: int, dimensions: Mapping[int, int], quantile: float = 0.5) -> float:
    """A quantile of the largest |cos| of a random unit vector of R^n with any of a set of orthogonal subspaces.

    cos² with a subspace of dimension d is Beta(d/2, (n − d)/2), and those with different ones are nearly independent:
    for n orthonormal vectors the median is close to √(2 log n / n), .16 at n = 384 and .06 at 4096.

    Args:
        n: of the space.
        dimensions: how many of the subspaces have each dimension, such as {1: n} for the singular vectors of a matrix.
        quantile: in (0, 1).
    """
    from scipy.special import betainc

    if any(d >= n for d in dimensions):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        each = {d: max(float(betainc(d / 2, (n - d) / 2, middle)), 1e-300) for d in dimensions}
        below = sum(count * math.log(each[d]) for d, count in dimensions.items())
        low, high = (middle, high) if below < math.log(quantile) else (low, middle)
    return math.sqrt(high)
