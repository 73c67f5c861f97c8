"""Where a random direction that is added to a known matrix comes out: the rectangular spiked deformation.

Benaych-Georges and Nadakuditi 2012, "The singular values and vectors of low rank perturbations of large rectangular
random matrices", J. Multivariate Analysis 111, theorems 2.8 and 2.9. For W (p × q, p ≤ q) with singular values σ_i and
a spike θ u vᵀ whose direction knows nothing of W's, W + θ u vᵀ has a singular value at ρ outside W's bulk, with
D(ρ) = 1/θ², where D = φ·φ̃ and

    φ(z) = (1/p) Σ_i z / (z² − σ_i²),    φ̃(z) = (1/q) (Σ_i z / (z² − σ_i²) + (q − p)/z);

its singular vectors have cos² = −2 φ(ρ)/(θ² D'(ρ)) with u and −2 φ̃(ρ)/(θ² D'(ρ)) with v.

W's spectrum is a list here and no smooth law: D falls from infinity just above each σ_i, so that every spike has a
solution next to any of them. The one that is meant is at position j + 1 where the outlier of the bulk σ_{j+1}, … stays
below σ_j, and that of σ_{j+2}, … does not stay below σ_{j+1}: a spike rises as far as it must.
"""

import math
from dataclasses import dataclass

import numpy as np

TIE = 1e-12  # relative
_BISECTIONS = 48


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
    short, long = _halves(sigma, shape, z)
    return short * long


def outlier(sigma: np.ndarray, shape: tuple[int, int], theta: float) -> Outlier:
    """Where θ u vᵀ with u and v independent of W comes out in W + θ u vᵀ.

    Args:
        sigma: all min(m, n) singular values of W, descending.
        shape: (m, n) of W.
        theta: the spike's strength, positive.

    Raises:
        ValueError: theta is not positive.
    """
    if theta <= 0:
        raise ValueError("a spike has a positive strength")
    low, high = 0, len(sigma)  # the outlier stays below the `low` leading values, and not below the `high` leading
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if theta < threshold(sigma, shape, middle) else (low, middle)
    bulk = sigma[low:]
    value = _solve(bulk, shape, theta)
    short, long = _halves(bulk, shape, value)
    slope = _slope(bulk, shape, value)
    return Outlier(value, low + 1, _share(-2 * short / (theta**2 * slope)), _share(-2 * long / (theta**2 * slope)))


def threshold(sigma: np.ndarray, shape: tuple[int, int], k: int) -> float:
    """The strength at which a spike's outlier reaches σ_k(W), so that it is among the k leading values of W + θ u vᵀ.

    θ̄ = D(σ_k)^(-1/2) of the values below σ_k: W's own leading values change a bulk's D by O(k/p) and are left out, as
    are values equal to σ_k, which is right for a few of them (of a multiple of an orthogonal matrix it is too high). 0
    where W has fewer than k values that are not zero.

    Raises:
        ValueError: k is not in 1 … p.
    """
    if not 1 <= k <= len(sigma):
        raise ValueError(f"there is no singular value number {k} of {len(sigma)}")
    z = float(sigma[k - 1])
    if z <= 0:
        return 0.0
    below = len(sigma) - int(np.searchsorted(sigma[::-1], z * (1 - TIE)))
    d = transform(sigma[below:], shape, z)
    return d**-0.5 if d > 0 else z


def _halves(sigma: np.ndarray, shape: tuple[int, int], z: float) -> tuple[float, float]:
    """φ(z) and φ̃(z). Values that were left out of the list are left out of both."""
    p, q = min(shape), max(shape)
    total = float(np.sum(z / ((z - sigma) * (z + sigma))))
    return total / p, (total + (q - p) / z) / q


def _slope(sigma: np.ndarray, shape: tuple[int, int], z: float) -> float:
    """D'(z), negative."""
    p, q = min(shape), max(shape)
    short, long = _halves(sigma, shape, z)
    squares = z * z - sigma**2
    falls = float(np.sum(-(z * z + sigma**2) / squares**2))
    return falls / p * long + short * (falls - (q - p) / z**2) / q


def _solve(sigma: np.ndarray, shape: tuple[int, int], theta: float) -> float:
    """ρ > max σ with D(ρ) = 1/θ²: D falls there from infinity to 0, so by bisection of log(ρ − max σ)."""
    edge = float(sigma[0]) if len(sigma) else 0.0
    low, high = math.log(1e-14 * max(edge, theta)), math.log(4 * (edge + theta))
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if transform(sigma, shape, edge + math.exp(middle)) > theta**-2:
            low = middle
        else:
            high = middle
    return edge + math.exp(high)


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)
