"""Measures of a spectrum: singular values in, one number out.

All take singular values σ (p,), in any order, and return None for an all-zero spectrum, where the question has no
answer. Six numbers are called "effective rank" in the literature; each has its own name here.
"""

from collections.abc import Sequence

import numpy as np

Spectrum = Sequence[float] | np.ndarray
EXTREME = 1e140  # beyond it, and below its reciprocal, float64 has no room for squares and their sums


def frobenius_norm(sigma: Spectrum) -> float:
    """‖ΔW‖_F = √Σσ²."""
    values = np.asarray(sigma, dtype=float)
    top = float(values.max(initial=0.0))
    if top == 0 or 1 / EXTREME < top < EXTREME:
        return float(np.linalg.norm(values))
    return top * float(np.linalg.norm(values / top))  # whose squares neither overflow nor vanish


def spectral_norm(sigma: Spectrum) -> float:
    """‖ΔW‖₂ = σ₁."""
    return float(np.max(sigma, initial=0.0))


def nuclear_norm(sigma: Spectrum) -> float:
    """‖ΔW‖_* = Σσ."""
    return float(np.sum(sigma))


def stable_rank(sigma: Spectrum) -> float | None:
    """Σσ² / σ₁² (Rudelson and Vershynin 2007, §1): at most the rank, and insensitive to a tail of small values."""
    scaled = _scaled(sigma)
    return None if scaled is None else float(np.sum(scaled**2))


def effective_rank(sigma: Spectrum) -> float | None:
    """exp H(p) with p_i = σ_i / Σσ (Roy and Vetterli 2007, "The effective rank", eq. 4)."""
    scaled = _scaled(sigma)
    return None if scaled is None else _exp_entropy(scaled)


def energy_effective_rank(sigma: Spectrum) -> float | None:
    """exp H(p) with p_i = σ_i² / Σσ²: the entropy of the *energy*; always at most `effective_rank`."""
    scaled = _scaled(sigma)
    return None if scaled is None else _exp_entropy(scaled**2)


def participation_ratio(sigma: Spectrum) -> float | None:
    """(Σσ²)² / Σσ⁴ (Bell and Dean 1970, of eigenvalues σ²): how many directions share the energy."""
    scaled = _scaled(sigma)
    return None if scaled is None else float(np.sum(scaled**2) ** 2 / np.sum(scaled**4))


def energy_rank(sigma: Spectrum, share: float) -> int | None:
    """The smallest k whose k largest values hold `share` of Σσ² (Eckart and Young 1936: the best rank-k does)."""
    scaled = _scaled(sigma)
    if scaled is None:
        return None
    kept = np.cumsum(np.sort(scaled**2)[::-1])
    # The slack admits k where exact arithmetic reaches the share and the sum rounds just below it.
    return int(np.searchsorted(kept, share * kept[-1] * (1 - 1e-12)) + 1)


def energy_curve(sigma: Spectrum) -> np.ndarray:
    """(p,) share of Σσ² that the k largest values hold, k = 1..p; zeros for a zero spectrum."""
    scaled = _scaled(sigma)
    if scaled is None:
        return np.zeros(np.shape(sigma))
    energy = np.sort(scaled**2)[::-1]
    return np.cumsum(energy) / energy.sum()


def _scaled(sigma: Spectrum) -> np.ndarray | None:
    """σ / σ₁, so that squares neither overflow nor vanish; None for a zero spectrum."""
    values = np.asarray(sigma, dtype=float)
    top = values.max(initial=0.0)
    return None if top == 0 else values / top


def _exp_entropy(weights: np.ndarray) -> float:
    p = weights[weights > 0] / weights.sum()
    return float(np.exp(-np.sum(p * np.log(p))))
