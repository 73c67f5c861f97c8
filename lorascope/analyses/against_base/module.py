"""One weight: ΔW's directions within W, W's own and random ones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lorascope.analyses.compare.side import Side
from lorascope.linalg import dense, haar
from lorascope.linalg.cached_svd import CachedSVD
from lorascope.linalg.random_projection import RandomProjectionNorm, fourth_power, random_projection_norm
from lorascope.weights.base_svd import SvdCache

EXACT = 1024  # up to this shorter side W is decomposed (¼ s there), and kept; above it only where that was done before
TOP_SHARE = 0.1  # of W's singular directions: the paper's figure 8
MAX_LEADING = 128  # directions of W by randomised iteration
LEFT_OUT = (
    "W is too large to be decomposed on the way: its top 10 % is left out (`lorascope intruders` decomposes it, and"
    " keeps that for the next time)"
)


@dataclass(frozen=True)
class Overlap:
    """φ = ‖U_Δᵀ U_W‖_F²/min(i, j) of ΔW's i leading directions with W's j leading ones on one side.

    Attributes:
        chance, sd: of random subspaces, exactly; z = (φ − chance)/sd, None where only one value is possible.
    """

    i: int
    j: int
    phi: float
    chance: float
    sd: float
    z: float | None


@dataclass(frozen=True)
class ModuleAgainstBase:
    """The measures of one weight.

    Attributes:
        directions: r, how many singular directions of ΔW: all of a low rank, else its leading ones.
        inside: ‖UᵀWV‖_F.
        top: √Σ_{i≤r} σ_i(W)², the most that r directions can hold.
        random, random_spread: of random directions: √E‖UᵀWV‖², and the standard deviation.
        z: of inside² against random ones.
        ratio: inside/random; top_ratio: top/inside.
        amplification: ‖ΔW‖_F/inside; amplification_random: the same of a random ΔW of this norm.
        left, right: overlaps with W's top subspaces, by "r" and "tenth" (W's top 10 %): that only where W is
            decomposed.
        method: how W's directions were found: "exact", or "randomised", by which `top` is a lower bound, good to
            `error`.
    """

    name: str
    type: str
    depth: int | None
    shape: tuple[int, int]
    directions: int
    base_norm: float
    delta_norm: float
    inside: float
    top: float
    random: float
    random_spread: float
    z: float | None
    ratio: float | None
    top_ratio: float | None
    amplification: float | None
    amplification_random: float | None
    left: Mapping[str, Overlap]
    right: Mapping[str, Overlap]
    method: str
    error: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Directions:
    """W's leading singular directions, as many as are known, and its decomposition where there is one."""

    left: np.ndarray
    sigma: np.ndarray
    right: np.ndarray
    energy: float
    fourth: float
    method: str
    error: float
    known: CachedSVD | None


def measure(
    side: Side, weight: np.ndarray, cache: SvdCache, *, type: str, depth: int | None
) -> ModuleAgainstBase | str:
    """Measure one weight, or say why it cannot be.

    Args:
        side: ΔW in its bases, as `compare.side.read` gives it.
        weight: W (d_out, d_in) in float64.
        cache: of W's decompositions.
    """
    r = side.directions
    if r == 0:
        return "ΔW is zero: it has no directions"
    if not np.isfinite(weight).all():
        return "the base weight holds NaN or infinite entries"
    u, v = side.bases.left[:, :r], side.bases.right[:, :r]
    known = _base_directions(weight, r, cache)
    chance = random_projection_norm(*side.shape, r, r, known.energy, known.fourth)
    inside, norm = float(np.linalg.norm((u.T @ weight) @ v)), side.norm()
    tops = {"r": min(r, len(known.sigma))}
    if known.method == "exact":
        tops["tenth"] = max(1, math.ceil(TOP_SHARE * len(known.sigma)))
    overlaps = [
        {name: _overlap(mine, theirs[:, : known.known.cut(j) if known.known else j]) for name, j in tops.items() if j}
        for mine, theirs in ((u, known.left), (v, known.right))
    ]
    return ModuleAgainstBase(
        side.update.name, type, depth, side.shape, r, math.sqrt(known.energy), norm, inside,
        float(np.linalg.norm(known.sigma[:r])), chance.norm, chance.spread,
        (inside**2 - chance.mean) / chance.sd if chance.sd > 0 else None,
        **ratios(inside, float(np.linalg.norm(known.sigma[:r])), norm, chance),
        left=overlaps[0], right=overlaps[1], method=known.method, error=known.error,
        notes=side.notes if known.method == "exact" else (*side.notes, LEFT_OUT),
    )  # fmt: skip


def ratios(inside: float, top: float, norm: float, chance: RandomProjectionNorm) -> dict[str, float | None]:
    """The quotients of table 7: None where one would divide by zero."""
    return {
        "ratio": inside / chance.norm if chance.norm > 0 else None,
        "top_ratio": top / inside if inside > 0 else None,
        "amplification": norm / inside if inside > 0 else None,
        "amplification_random": norm / chance.norm if chance.norm > 0 else None,
    }


def _base_directions(weight: np.ndarray, r: int, cache: SvdCache) -> _Directions:
    known = cache.of(weight) if min(weight.shape) <= EXACT else cache.kept(weight)
    if known is not None:
        left, right = known.leading(weight, min(known.rank, max(r, math.ceil(TOP_SHARE * len(known.sigma))) + r))
        squares = known.sigma**2
        return _Directions(
            left, known.sigma, right, float(squares.sum()), float(np.sum(squares**2)), "exact", 0.0, known
        )
    found = dense.leading(weight, min(r, MAX_LEADING))
    energy = float(np.linalg.norm(weight) ** 2)
    error = float(found.spectrum.error[-1])
    return _Directions(found.u, found.s, found.vh.T, energy, fourth_power(weight), "randomised", error, None)


def _overlap(mine: np.ndarray, theirs: np.ndarray) -> Overlap:
    n, i, j = mine.shape[0], mine.shape[1], theirs.shape[1]
    chance = haar.phi(n, i, j)
    phi = min(float(np.sum((mine.T @ theirs) ** 2)) / min(i, j), 1.0)
    return Overlap(i, j, phi, chance.mean, chance.sd, chance.z(phi))
