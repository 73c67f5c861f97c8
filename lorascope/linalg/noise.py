"""What noise alone gives in a dense matrix: Marchenko–Pastur, Gavish–Donoho, and the rounding of a storage dtype.

Of a full matrix "the rank that keeps 90 % of the energy" measures noise: an iid Gaussian square matrix needs 51 % of
its singular values for it. The functions here say what an iid matrix of the same shape would show, from which singular
value on a direction stands out of such noise, and how large the singular values are that rounding to bfloat16 alone
leaves behind.

Throughout m × n is the matrix, p = min(m, n), q = max(m, n), β = p/q. Closed forms, numpy only.
"""

import math
from functools import lru_cache

import numpy as np

from lorascope.linalg.rounding import round_to
from lorascope.linalg.spectrum import effective_rank, energy_rank, participation_ratio, stable_rank

TRACY_WIDOM_99 = 2.0234  # 99 % point of the Tracy–Widom law of order 1 (Bejan 2005, table 1)
_ANGLES = 1 << 14  # midpoints of the quadrature: quantiles are good to about 1e-8
# Digits of the significand and the spacing of the smallest numbers, by safetensors' names.
_SIGNIFICAND = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8, "F8_E4M3": 4, "F8_E5M2": 3}
_COARSER = {"F64": ("F32", "F16", "BF16"), "F32": ("F16", "BF16")}  # that a file of this dtype may be rounded to
_MIN_SPACING = {"F16": 2.0**-24, "F8_E4M3": 2.0**-9, "F8_E5M2": 2.0**-16}
_LOWEST, _BINADES = -44, 72  # exponents kept apart: 2^-44 to 2^28; what lies beyond counts at the nearer end


@lru_cache(maxsize=512)
def _marchenko_pastur(beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Points t and the distribution function there, of the eigenvalues of XXᵀ/q, X (p, q) iid of variance 1.

    Marchenko and Pastur 1967: density √((b − t)(t − a)) / (2πβt) on (1 ∓ √β)². With t = 1 + β − 2√β cos θ the measure
    is 2 sin²θ / (πt) dθ, which is smooth up to both ends.
    """
    angle = (np.arange(_ANGLES) + 0.5) * (np.pi / _ANGLES)
    t = 1 + beta - 2 * math.sqrt(beta) * np.cos(angle)
    mass = np.sin(angle) ** 2 / t  # up to a constant, which the division by their sum takes out
    cumulative = np.cumsum(mass) - mass / 2
    return t, cumulative / mass.sum()


def noise_spectrum(m: int, n: int) -> np.ndarray:
    """(p,) singular values, descending, of an m × n matrix of iid entries of variance 1: the law's quantiles."""
    p, q = min(m, n), max(m, n)
    t, cumulative = _marchenko_pastur(p / q)
    return np.sqrt(q * np.interp((np.arange(p, 0, -1) - 0.5) / p, cumulative, t))


@lru_cache(maxsize=512)
def noise_measures(m: int, n: int) -> dict[str, float]:
    """Rank measures of an m × n matrix of iid entries: what a ΔW of no structure and of full rank would give.

    Returns:
        stable_rank, effective_rank, participation_ratio, energy_rank_0.9 / _0.95 / _0.99, from the law's quantiles
        with σ₁ at the Tracy–Widom mean. The limit for large p; at p = 64 within about 2 % of simulation.
    """
    sigma = noise_spectrum(m, n)
    measures = {
        "stable_rank": stable_rank(np.append(sigma[1:], largest_noise(m, n))),
        "effective_rank": effective_rank(sigma),
        "participation_ratio": participation_ratio(sigma),
        **{f"energy_rank_{share}": energy_rank(sigma, share) for share in (0.9, 0.95, 0.99)},
    }
    return {name: float(value or 0.0) for name, value in measures.items()}


def largest_noise(m: int, n: int, quantile: float = -1.2065) -> float:
    """The largest singular value of m × n iid entries of variance 1, at a point of the Tracy–Widom law (its mean).

    Johnstone 2001, Annals of Statistics 29, theorem 1.1: σ₁² ≈ μ + s·TW₁ with μ = (√(q−1) + √p)² and
    s = (√(q−1) + √p)(1/√(q−1) + 1/√p)^(1/3).
    """
    p, q = min(m, n), max(m, n)
    if q == 1:
        return 1.0
    both = math.sqrt(q - 1) + math.sqrt(p)
    spread = both * (1 / math.sqrt(q - 1) + 1 / math.sqrt(p)) ** (1 / 3)
    return math.sqrt(max(both**2 + spread * quantile, 0.0))


def noise_level(sigma: np.ndarray, m: int, n: int) -> float:
    """Standard deviation of the entries if the bulk of the spectrum is noise: median(σ) / √(q·median of the law).

    0 for a matrix of less than half rank: then there is no bulk, and neither edge nor threshold says anything.
    """
    t, cumulative = _marchenko_pastur(min(m, n) / max(m, n))
    return float(np.median(sigma)) / math.sqrt(max(m, n) * float(np.interp(0.5, cumulative, t)))


def marchenko_pastur_edge(level: float, m: int, n: int) -> float:
    """The singular value that noise of that level exceeds once in a hundred matrices: (√m + √n)·level, corrected."""
    return level * largest_noise(m, n, TRACY_WIDOM_99)


def gavish_donoho(sigma: np.ndarray, m: int, n: int) -> float:
    """Gavish and Donoho 2014, arXiv 1305.5870: the optimal hard threshold τ = ω(β)·median(σ), noise level unknown.

    ω(β) = λ*(β)/√μ_β with λ*(β) = √(2(β+1) + 8β/((β+1) + √(β²+14β+1))) and μ_β the law's median: 2.858 for a square.
    """
    beta = min(m, n) / max(m, n)
    factor = math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta**2 + 14 * beta + 1)))
    return factor * math.sqrt(max(m, n)) * noise_level(sigma, m, n)


class Rounding:
    """How large the singular values are that rounding one matrix to its storage dtype leaves in a difference.

    T = fl(W + ΔW) differs from W + ΔW by at most half the spacing of the dtype at each entry: variance spacing²/12. Two
    such errors are allowed for, because W is often rounded on the way as well (a float32 base that was loaded as
    bfloat16 before the merge, or both sides published in bfloat16). They are taken as independent and of mean zero,
    with the sum of variances over the entries of one binade in a row (or a column) spacing² · min(their number/6, how
    many of them moved): where hardly any moved, T − W is nearly zero, and the noise in it is at most its energy, one
    spacing² for each move of one step.

    A matrix E of independent entries of variances v has ‖E‖₂ ≤ max_i √Σ_j v_ij + max_j √Σ_i v_ij up to a small factor
    (Bandeira and van Handel 2016, theorem 1.1); with equal variances that is the Marchenko–Pastur edge. This is the
    floor: above it no direction comes of rounding.
    """

    def __init__(self, rows: int, columns: int, dtype: str):
        self.dtype = dtype
        self._rows = np.zeros((rows, _BINADES), np.int32)
        self._columns = np.zeros((columns, _BINADES), np.int32)
        self._moved_in_rows, self._moved_in_columns = np.zeros_like(self._rows), np.zeros_like(self._columns)
        self._fits = list(_COARSER.get(dtype, ()))

    def add(self, start: int, values: np.ndarray, moved: np.ndarray) -> None:
        """Take in rows from `start` on: `values` (k, columns) as stored, and which of them `moved` (k, columns)."""
        k, columns = values.shape
        binade = np.ascontiguousarray(values, dtype=np.float64).view(np.int64) >> 52  # the float's own exponent field
        binade &= 0x7FF
        binade -= 1022 + _LOWEST  # now as frexp counts, from the lowest on; zeros are far below
        np.clip(binade, 0, _BINADES - 1, out=binade)
        row, column = binade + _BINADES * np.arange(k)[:, None], binade + _BINADES * np.arange(columns)
        here, everywhere = slice(start, start + k), bool(moved.all())
        in_rows, in_columns = _counts(row, k), _counts(column, columns)
        self._rows[here] = in_rows
        self._columns += in_columns
        self._moved_in_rows[here] = in_rows if everywhere else _counts(row[moved], k)
        self._moved_in_columns += in_columns if everywhere else _counts(column[moved], columns)
        self._fits = [dtype for dtype in self._fits if np.array_equal(round_to(values, dtype), values)]

    @property
    def effective_dtype(self) -> str:
        """The coarsest dtype that holds every value: a bfloat16 run saved as float32 has bfloat16's rounding."""
        return min((self.dtype, *self._fits), key=lambda dtype: _SIGNIFICAND.get(dtype, 53))

    @property
    def moved_share(self) -> float:
        """The share of the entries that differ."""
        return float(self._moved_in_rows.sum() / max(self._rows.sum(), 1))

    def floor(self) -> float:
        """The largest singular value that rounding alone makes; 0 for a dtype without rounding (integers)."""
        dtype = self.effective_dtype
        if dtype not in _SIGNIFICAND:
            return 0.0
        spacing = np.exp2(np.arange(_LOWEST, _LOWEST + _BINADES) - float(_SIGNIFICAND[dtype]))
        spacing = np.maximum(spacing, _MIN_SPACING.get(dtype, 0.0))
        lengths = [
            math.sqrt((np.minimum(number / 6, moved) @ spacing**2).max(initial=0.0))
            for number, moved in ((self._rows, self._moved_in_rows), (self._columns, self._moved_in_columns))
        ]
        return sum(lengths)


def _counts(cells: np.ndarray, lines: int) -> np.ndarray:
    """(lines, binades): how many of the numbered cells there are."""
    return np.bincount(cells.ravel(), minlength=lines * _BINADES).reshape(lines, _BINADES)
