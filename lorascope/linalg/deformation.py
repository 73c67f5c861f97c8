"""Where a random direction that is added to a known matrix comes out: the rectangular spiked deformation.

Benaych-Georges and Nadakuditi 2012, "The singular values and vectors of low rank perturbations of large rectangular
random matrices", J. Multivariate Analysis 111, theorems 2.8 and 2.9. For W (p × q, p ≤ q) with singular values σ_i and
a spike θ u vᵀ whose direction knows nothing of W's, W + θ u vᵀ has a singular value at ρ outside W's bulk, with
D(ρ) = 1/θ², where D = φ·φ̃ and

    φ(z) = (1/p) Σ_i z / (z² − σ_i²),    φ̃(z) = (1/q) (Σ_i z / (z² − σ_i²) + (q − p)/z);

its singular vectors have cos² = −2 φ(ρ)/(θ² D'(ρ)) with u and −2 φ̃(ρ)/(θ² D'(ρ)) with v.

W's spectrum is a list here and no smooth law: D falls from infinity just above each σ_i, so that every spike has a
solution next to any of them. The one that is meant follows from the levels that it has passed: see `thresholds`.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

TIE = 1e-12  # relative
EVERY_ONE, COARSE = 64, 16  # levels looked at: so many from the top, then so many for all others
_STEPS, _NEAR, _NEXT = 64, 1e-14, 1e-8  # of log(ρ − max σ); after a step of _NEXT Newton's error is its square


@dataclass(frozen=True)
class Outlier:
    """What a spike of strength θ becomes.

    Attributes:
        value: the singular value ρ.
        position: 1 + how many of W's singular values lie above it.
        cos2_short: expected cos² of its singular vector with the spike's, on the side of min(m, n) dimensions.
        cos2_long: the same on the other side.
    """

    value: float
    position: int
    cos2_short: float
    cos2_long: float


def transform(sigma: np.ndarray, shape: tuple[int, int], z: float) -> float:
    """D(z) of a matrix (m, n) with singular values sigma (p,), p = min(m, n), or those of its bulk; z above them."""
    short, long, _ = _halves(sigma, shape, z)
    return short * long


def outlier(
    sigma: np.ndarray, shape: tuple[int, int], theta: float, levels: tuple[np.ndarray, np.ndarray] | None = None
) -> Outlier:
    """Where θ u vᵀ with u and v independent of W comes out in W + θ u vᵀ.

    Args:
        sigma: all min(m, n) singular values of W, descending.
        shape: (m, n) of W.
        theta: the spike's strength, positive.
        levels: of this W, where they are known already.

    Raises:
        ValueError: theta is not positive.
    """
    if theta <= 0:
        raise ValueError("a spike has a positive strength")
    places, strengths = levels if levels is not None else levels_of(sigma, shape)
    passed = int(np.searchsorted(-strengths, -theta))  # the first level that it has passed
    low = min(int(places[passed - 1]), len(sigma) - 1) if passed else 0
    bulk = sigma[low:]
    value = _solve(bulk, shape, theta)
    short, long, slope = _halves(bulk, shape, value)
    steep = theta * theta * slope  # 0 where the spike is nothing next to the bulk: then it has no direction of its own
    shares = (-2 * short / steep, -2 * long / steep) if steep else (0.0, 0.0)
    value = min(value, float(sigma[low - 1])) if low else value
    return Outlier(value, low + 1, *(min(max(share, 0.0), 1.0) for share in shares))


def thresholds(sigma: np.ndarray, shape: tuple[int, int], k: int) -> np.ndarray:
    """(k,) the strengths at which a spike reaches σ_1(W), …, σ_k(W), and so is among the 1, …, k leading values.

    θ̄ = D(σ_j)^(-1/2) of the values below σ_j: W's own leading values change a bulk's D by O(j/p) and are left out, as
    are values equal to σ_j, which is right for a few of them (of a multiple of an orthogonal matrix it is too high). To
    pass σ_j a spike must have passed those below it, so the largest of the levels from σ_j on counts: one that has
    another just below it, by chance, would otherwise seem to be passed too early. 0 where σ_j is. Levels are
    computed at the first max(k, 64) places and at 16 more below: where the spectrum is so flat that a level far down is
    the largest, another k may change a value.

    Raises:
        ValueError: k is not in 1 … p.
    """
    if not 1 <= k <= len(sigma):
        raise ValueError(f"there is no singular value number {k} of {len(sigma)}")
    return levels_of(sigma, shape, k)[1][:k]


def levels_of(sigma: np.ndarray, shape: tuple[int, int], k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The places 1, 2, … of W's values, coarser where far down, and the threshold of each, as `thresholds` gives it; at
    least the first k."""
    p, q, places = min(shape), max(shape), _places(min(max(k, EVERY_ONE), len(sigma)), len(sigma))
    z = sigma[places - 1]
    column = z[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = column - sigma
        terms *= column + sigma
        np.divide(1.0, terms, out=terms)
        terms[sigma >= column * (1 - TIE)] = 0.0
        total = z * np.sum(terms, axis=1)
        passed = np.sqrt(p * q / (total * (total + (q - p) / z)))
    passed = np.where(np.isfinite(passed), np.minimum(passed, z), z)  # a bulk lifts a spike, if anything
    return places, np.maximum.accumulate(passed[::-1])[::-1]


@lru_cache(maxsize=64)
def _places(dense: int, last: int) -> np.ndarray:
    """The first `dense` places, and coarser ones down to the last."""
    return np.unique(np.concatenate([np.arange(1, dense), np.geomspace(dense, last, COARSE).astype(int)]))


def _halves(sigma: np.ndarray, shape: tuple[int, int], z: float) -> tuple[float, float, float]:
    """φ(z), φ̃(z) and D'(z), which is negative. Values that were left out of the list are left out of all."""
    p, q = min(shape), max(shape)
    inverse = 1 / ((z - sigma) * (z + sigma))
    once, twice = float(inverse.sum()), float(inverse @ inverse)
    short, long = z * once / p, (z * once + (q - p) / z) / q
    falls = once - 2 * z * (z * twice)  # of Σ z/(z² − σ²): −Σ (z² + σ²)/(z² − σ²)²
    return short, long, falls / p * long + short * (falls - (q - p) / z**2) / q


def _solve(sigma: np.ndarray, shape: tuple[int, int], theta: float) -> float:
    """ρ > max σ with D(ρ) = 1/θ².

    D falls there from infinity to 0, and log D against log(ρ − max σ) is nearly straight: Newton's method on these, in
    a bracket that is halved where a step would leave it, from where a ρ far above the bulk would be: there
    D(ρ) = 1/ρ² + (1 + p/q) mean(σ²)/ρ⁴ + ….
    """
    p, q, edge = min(shape), max(shape), float(sigma[0]) if len(sigma) else 0.0
    low, high = math.log(1e-14 * max(edge, theta)), math.log(4 * (edge + theta))
    wanted = (1 / theta) * (1 / theta)  # infinite for a spike that is nothing: it stays at the edge
    far = math.sqrt(theta**2 + (1 / p + 1 / q) * float(sigma @ sigma)) - edge
    at = min(max(math.log(far), low), high) if far > 0 else (low + high) / 2
    for _ in range(_STEPS):
        z = edge + math.exp(at)
        short, long, slope = _halves(sigma, shape, z)
        d = short * long
        low, high = (at, high) if d > wanted else (low, at)
        slope = math.exp(at) * slope / d if d else 0.0
        ratio = wanted / d if d else 0.0
        step = math.log(ratio) / slope if slope and 0 < ratio < math.inf else math.nan
        if abs(step) < _NEXT:  # also out of the bracket, one end of which is then the root but for rounding
            at += step
            break
        at, before = (at + step if low < at + step < high else (low + high) / 2), at
        if abs(at - before) < _NEAR:
            break
    return edge + math.exp(at)
