"""The random baseline of a projected norm: the moments of ‖UᵀWV‖_F² for Haar U (m, i) and V (n, j).

From E P_ab P_cd = α δ_ab δ_cd + β (δ_ac δ_bd + δ_ad δ_bc) of a random projection of rank r in R^n, with
α = r((n + 1)r − 2)/(n(n − 1)(n + 2)) and β = r(n − r)/(n(n − 1)(n + 2)) (Collins and Śniady 2006).
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RandomProjectionNorm:
    """‖UᵀWV‖_F² for random U and V: `mean` and `sd`. `norm` is √mean, and `spread` the deviation of ‖UᵀWV‖_F."""

    mean: float
    sd: float

    @property
    def norm(self) -> float:
        return math.sqrt(self.mean)

    @property
    def spread(self) -> float:
        """To first order."""
        return self.sd / (2 * self.norm) if self.mean > 0 else 0.0


def random_projection_norm(m: int, n: int, i: int, j: int, energy: float, fourth: float) -> RandomProjectionNorm:
    """Exact moments for W (m, n) with Σσ² = energy and Σσ⁴ = fourth: mean ij·energy/(mn)."""
    a, b = _moments(m, i)
    c, d = _moments(n, j)
    mean = i * j * energy / (m * n)
    # With A = W Q Wᵀ: E (tr PA)² = a E(tr A)² + 2b E tr A², over P; then both over Q.
    square = a * (c * energy**2 + 2 * d * fourth) + 2 * b * ((c + d) * fourth + d * energy**2)
    return RandomProjectionNorm(mean, math.sqrt(max(square - mean**2, 0.0)))


def _moments(n: int, r: int) -> tuple[float, float]:
    if n == 1:
        return float(r), 0.0
    whole = n * (n - 1) * (n + 2)
    return r * ((n + 1) * r - 2) / whole, r * (n - r) / whole


def fourth_power(matrix: np.ndarray, probes: int = 16, seed: int = 0) -> float:
    """Σσ⁴ = E‖W Wᵀ z‖² for standard normal z, estimated: two products with a few vectors."""
    z = np.random.default_rng(seed).standard_normal((matrix.shape[0], probes))
    return float(np.sum((matrix @ (matrix.T @ z)) ** 2) / probes)
