"""Linear CKA: how alike two representations of the same samples are, whatever rotation and scale each has.

For features X (n, p) and Y (n, q) of the same n samples let K = XXᵀ, L = YYᵀ (Kornblith et al. 2019, arXiv 1905.00414,
§3). With the kernels centred, CKA = HSIC(K, L)/√(HSIC(K, K)·HSIC(L, L)). The usual HSIC, tr(KHLH), is biased upward:
where features are as many as samples, unrelated representations get a large CKA. The unbiased estimator of Song et al.
2012 ("Feature Selection via Dependence Maximization", eq. 5) leaves the diagonals out,

    HSIC = [tr(K̃L̃) + 1ᵀK̃1·1ᵀL̃1/((n−1)(n−2)) − 2·1ᵀK̃L̃1/(n−2)] / (n(n−3)),

K̃ and L̃ being K and L with zero diagonals. Both are formed here from sums over samples, never from an n × n matrix. With
k_i = ‖x_i‖², l_i = ‖y_i‖², C = XᵀY, s = Σx_i and t = Σy_i,

    tr(K̃L̃) = ‖C‖_F² − Σk_i l_i          1ᵀK̃1 = ‖s‖² − Σk_i
    1ᵀK̃L̃1 = (Xs − k)ᵀ(Yt − l) = sᵀCt − sᵀΣl_i x_i − tᵀΣk_i y_i + Σk_i l_i          tr(KHLH) = ‖C − stᵀ/n‖_F²

Each sum is additive over samples, so that they can be streamed, and a group of samples taken away again.

What chance gives is known exactly. Debiased CKA is the cosine of two U-centred matrices (Székely and Rizzo 2014, §2),
whose diagonals and row sums are zero; where the samples of one are permuted, Mantel's moments give a cosine of mean 0
and variance 2/(n(n−3)), whatever the data. Of the biased one the mean is tr(KH)·tr(LH)/(n−1) in place of tr(KHLH).
"""

import math
from dataclasses import dataclass

import numpy as np

MIN_SAMPLES = 4  # the estimator divides by n − 3
GROUPS = 20  # left out one by one for the interval


@dataclass(frozen=True)
class Sums:
    """The sums over samples that HSIC takes, of X (n, p) against Y (n, q). They add, and they subtract.

    Attributes:
        n: samples.
        cross: Σ x_i y_iᵀ (p, q).
        x, y: Σ x_i (p,), Σ y_i (q,).
        lx, ky: Σ l_i x_i (p,), Σ k_i y_i (q,).
        k, l, kl: Σ k_i, Σ l_i, Σ k_i l_i.
    """

    n: int
    cross: np.ndarray
    x: np.ndarray
    y: np.ndarray
    lx: np.ndarray
    ky: np.ndarray
    k: float
    l: float
    kl: float

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> "Sums":
        """Of a batch: x (n, p), y (n, q), in float64.

        CKA does not change when a constant is added to all x or all y, its rounding does: take about the mean away,
        the same constant from every batch.
        """
        k, l = np.einsum("ij,ij->i", x, x), np.einsum("ij,ij->i", y, y)
        sums = float(k.sum()), float(l.sum()), float(k @ l)
        return cls(len(x), x.T @ y, x.sum(axis=0), y.sum(axis=0), l @ x, k @ y, *sums)

    def __add__(self, other: "Sums") -> "Sums":
        return self._combined(other, 1)

    def __sub__(self, other: "Sums") -> "Sums":
        """Without the samples of `other`, which must be some of these."""
        return self._combined(other, -1)

    def _combined(self, other: "Sums", sign: int) -> "Sums":
        names = ("n", "cross", "x", "y", "lx", "ky", "k", "l", "kl")
        return Sums(*(getattr(self, name) + sign * getattr(other, name) for name in names))

    def hsic(self) -> float:
        """The unbiased HSIC. ValueError with fewer than 4 samples."""
        n = self.n
        if n < MIN_SAMPLES:
            raise ValueError(f"HSIC takes at least {MIN_SAMPLES} samples, and there are {n}")
        trace = float(np.sum(self.cross**2)) - self.kl
        rows_k, rows_l = float(self.x @ self.x) - self.k, float(self.y @ self.y) - self.l
        both = float(self.x @ self.cross @ self.y) - float(self.x @ self.lx) - float(self.y @ self.ky) + self.kl
        return (trace + rows_k * rows_l / ((n - 1) * (n - 2)) - 2 * both / (n - 2)) / (n * (n - 3))

    def biased(self) -> float:
        """tr(KHLH)."""
        return float(np.sum((self.cross - np.outer(self.x, self.y) / self.n) ** 2))

    def traces(self) -> tuple[float, float]:
        """tr(KH), tr(LH)."""
        return self.k - float(self.x @ self.x) / self.n, self.l - float(self.y @ self.y) / self.n


@dataclass(frozen=True)
class Cka:
    """Linear CKA of two representations.

    Attributes:
        value: debiased; 1 for representations that differ by a rotation and a scale, 0 in the mean for unrelated ones,
            and then as often negative. None where one of them does not vary.
        low, high: a 95 % interval over groups of samples; None where there were too few.
        chance_sd: standard deviation of `value` when samples are permuted; its mean is 0 then.
        biased: what the usual estimator says.
        biased_chance: its mean when samples are permuted.
        n: samples.
    """

    value: float | None
    low: float | None
    high: float | None
    chance_sd: float
    biased: float | None
    biased_chance: float | None
    n: int


class Features:
    """One side of a comparison: features of the samples, made ready once for every comparison it takes part in.

    Args:
        x: (n, p), row i being sample i. All comparisons of these features take the same samples in the same order.
        groups: (n,) which group each sample is in, samples of one text all in one: they are left out together, for the
            interval. None for no interval.

    Raises:
        ValueError: there are fewer than 4 samples, or an entry is not finite.
    """

    def __init__(self, x: np.ndarray, groups: np.ndarray | None = None):
        if not np.isfinite(x).all():
            raise ValueError("the features hold NaN or infinite entries")
        wide = np.asarray(x, np.float64)
        wide = wide - wide.mean(axis=0)
        # In at most n dimensions: CKA depends on XXᵀ alone.
        self.x = wide if wide.shape[1] <= wide.shape[0] else np.linalg.qr(wide.T)[1].T
        self.rows = [] if groups is None else [np.flatnonzero(groups == group) for group in np.unique(groups)]
        self.sums = Sums.of(self.x, self.x)
        self.own = self.sums.hsic()
        self.own_without = _without(self, self, self.sums)


def _without(a: Features, b: Features, whole: Sums) -> list[float]:
    """HSIC without each group in turn; empty where that leaves too few samples."""
    if any(whole.n - len(rows) < MIN_SAMPLES for rows in a.rows):
        return []
    return [(whole - Sums.of(a.x[rows], b.x[rows])).hsic() for rows in a.rows]


def cka(a: Features, b: Features, units: int | None = None) -> Cka:
    """Linear CKA of two representations of the same samples.

    The interval is a delete-a-group jackknife (Efron and Stein 1981) and no bootstrap: resampling repeats samples, and
    every repeated pair brings back the diagonal that debiasing leaves out.

    Args:
        units: how many samples are independent, where several come from one text; all by default. The spread by chance
            is that of so many.

    Raises:
        ValueError: the numbers of samples differ.
    """
    n = len(a.x)
    if n != len(b.x):
        raise ValueError(f"CKA takes the same samples on both sides, not {n} and {len(b.x)}")
    cross = Sums.of(a.x, b.x)
    value = _ratio(cross.hsic(), a.own, b.own)
    squares = a.sums.biased(), b.sums.biased()
    (kh, lh), biased = cross.traces(), _ratio(cross.biased(), *squares)
    low, high = (None, None) if value is None else _interval(value, a, b, cross)
    spread = chance_sd(max(n if units is None else units, MIN_SAMPLES))
    return Cka(value, low, high, spread, biased, _ratio(kh * lh / (n - 1), *squares), n)


def chance_sd(n: int) -> float:
    """Standard deviation of debiased linear CKA when the n samples of one side are permuted: √(2/(n(n−3)))."""
    return math.sqrt(2 / (n * (n - 3)))


def _ratio(xy: float, xx: float, yy: float) -> float | None:
    return xy / math.sqrt(xx * yy) if xx > 0 and yy > 0 else None


def _interval(value: float, a: Features, b: Features, cross: Sums) -> tuple[float | None, float | None]:
    """Around `value`, with Student's t; the upper end is at most 1."""
    from scipy.stats import t  # here: what reads adapters does without scipy

    parts = zip(_without(a, b, cross), a.own_without, b.own_without, strict=False)
    left_out = [_ratio(*part) for part in parts]
    if not left_out or None in left_out:
        return None, None
    estimates, count = np.array(left_out, np.float64), len(left_out)
    error = math.sqrt((count - 1) / count * float(np.sum((estimates - estimates.mean()) ** 2)))
    reach = float(t.ppf(0.975, count - 1)) * error
    return value - reach, min(value + reach, 1.0)
