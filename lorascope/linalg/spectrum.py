"""Measures of a spectrum: singular values in, one number out.

All take singular values σ (p,), in any order, and return None for an all-zero spectrum, where the question has no
answer. Six numbers are called "effective rank" in the literature; each has its own name here.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lorascope.linalg.arrays import Array

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
    return None if scaled is None else float(_stable(scaled**2))


def effective_rank(sigma: Spectrum) -> float | None:
    """exp H(p) with p_i = σ_i / Σσ (Roy and Vetterli 2007, "The effective rank", eq. 4)."""
    scaled = _scaled(sigma)
    return None if scaled is None else float(_exp_entropy(scaled))


def energy_effective_rank(sigma: Spectrum) -> float | None:
    """exp H(p) with p_i = σ_i² / Σσ²: the entropy of the *energy*; always at most `effective_rank`."""
    scaled = _scaled(sigma)
    return None if scaled is None else float(_exp_entropy(scaled**2))


def participation_ratio(sigma: Spectrum) -> float | None:
    """(Σσ²)² / Σσ⁴ (Bell and Dean 1970, of eigenvalues σ²): how many directions share the energy."""
    scaled = _scaled(sigma)
    return None if scaled is None else float(_participation(scaled**2))


def energy_rank(sigma: Spectrum, share: float) -> int | None:
    """The smallest k whose k largest values hold `share` of Σσ² (Eckart and Young 1936: the best rank-k does)."""
    scaled = _scaled(sigma)
    return None if scaled is None else int(_energy_rank(_kept(scaled**2), share))


def rank_measures(sigma: np.ndarray, shares: Iterable[float] = ()) -> Mapping[str, Array] | None:
    """The measures of many spectra (..., p) at once, or of one: what the functions above give, with less work.

    Returns:
        stable_rank, effective_rank, energy_effective_rank, participation_ratio and for each share energy_rank_SHARE,
        of shape (...); None where a spectrum is all zero.
    """
    top = sigma.max(axis=-1, initial=0.0, keepdims=True)
    if not top.all():
        return None
    scaled = sigma / top
    squares = scaled**2
    kept = _kept(squares)
    return {
        "stable_rank": _stable(squares),
        "effective_rank": _exp_entropy(scaled),
        "energy_effective_rank": _exp_entropy(squares),
        "participation_ratio": _participation(squares),
        **{f"energy_rank_{share}": _energy_rank(kept, share) for share in shares},
    }


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


def _stable(squares: np.ndarray) -> Array:
    return squares.sum(axis=-1)


def _participation(squares: np.ndarray) -> Array:
    return squares.sum(axis=-1) ** 2 / (squares**2).sum(axis=-1)


def _exp_entropy(weights: np.ndarray) -> Array:
    p = weights / weights.sum(axis=-1, keepdims=True)
    return np.exp(-(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=-1))  # what is zero adds nothing


def _kept(squares: np.ndarray) -> Array:
    """Σ of the k largest, k = 1..p."""
    return np.cumsum(np.sort(squares, axis=-1)[..., ::-1], axis=-1)


def _energy_rank(kept: np.ndarray, share: float) -> Array:
    # The slack admits k where exact arithmetic reaches the share and the sum rounds just below it.
    return np.count_nonzero(kept < share * kept[..., -1:] * (1 - 1e-12), axis=-1) + 1
