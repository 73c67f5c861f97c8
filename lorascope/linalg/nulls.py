"""What chance alone gives, at the same shape: the reference that every measured rank stands next to."""

from functools import lru_cache

import numpy as np

from lorascope.linalg.spectrum import rank_measures

MAX_DRAWS, MIN_DRAWS = 32, 2  # one draw of rank r averages over r values already: the error stays about 1 %


@lru_cache(maxsize=512)
def random_product(m: int, n: int, r: int) -> dict[str, float]:
    """Mean rank measures of B A with independent Gaussian entries, B (m, r) and A (r, n).

    The comparison for a LoRA update: r directions of no structure. Only the triangular factors matter, and Bartlett's
    decomposition draws them directly: R_ii ~ χ(m − i), R_ij ~ N(0, 1) above the diagonal, so a draw costs O(r³)
    whatever m and n are. Entry distributions other than Gaussian give the same spectrum to first order in 1/min(m, n).

    Returns:
        stable_rank, effective_rank, participation_ratio, energy_rank_0.9 / _0.95 / _0.99. A mean over up to 32 draws
        from a fixed seed: the same shape always gives the same numbers.
    """
    measures = rank_measures(_spectra(m, n, r), (0.9, 0.95, 0.99)) or {}
    return {name: float(np.mean(values)) for name, values in measures.items() if name != "energy_effective_rank"}


@lru_cache(maxsize=512)
def random_product_energy(m: int, n: int, r: int) -> tuple[float, ...]:
    """Share of ‖B A‖_F² that the k largest singular values keep on average, k = 1..min(m, n, r), of the same B and A.

    What truncating an adapter keeps where no direction matters more than another: 1 − this is the mean relative energy
    that is lost.
    """
    squares = _spectra(m, n, r) ** 2
    kept = np.cumsum(squares, axis=1) / squares.sum(axis=1, keepdims=True)
    return tuple(kept.mean(axis=0).tolist())


def _spectra(m: int, n: int, r: int) -> np.ndarray:
    """(draws, min(m, n, r)) singular values of draws of B A."""
    rng = np.random.default_rng([m, n, r])
    draws = int(np.clip(2048 // r, MIN_DRAWS, MAX_DRAWS))
    cores = _bartlett(rng, draws, m, r) @ np.swapaxes(_bartlett(rng, draws, n, r), 1, 2)
    return np.linalg.svd(cores, compute_uv=False)


def _bartlett(rng: np.random.Generator, draws: int, m: int, r: int) -> np.ndarray:
    """(draws, min(m, r), r): the R of the QR of an (m, r) Gaussian matrix."""
    rows = min(m, r)
    upper = np.triu(rng.standard_normal((draws, rows, r)), 1)
    diagonal = np.sqrt(rng.chisquare(m - np.arange(rows), size=(draws, rows)))
    upper[:, np.arange(rows), np.arange(rows)] = diagonal
    return upper
