"""One weight: the leading singular vectors of W + ΔW, each against all of W's, with chance and a prediction."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from lorascope.linalg import deformation, dense, svd_update
from lorascope.linalg.cached_svd import CachedSVD
from lorascope.linalg.haar import largest_cosine
from lorascope.linalg.matrix import Matrix
from lorascope.linalg.subspace import Bases, bases
from lorascope.linalg.svd_update import UpdatedSVD

SIDES = ("left", "right")
SPECTRUM_IN_FULL = 1024  # up to this shorter side a ΔW that is not low rank gets all of its singular values
SAME_DIRECTION = 0.5  # share of ΔW's first direction u vᵀ from which on a vector pair of W + ΔW is what it became


@dataclass(frozen=True)
class TunedVector:
    """One singular vector pair of W + ΔW.

    Attributes:
        position: 1 for the largest singular value.
        sigma: the singular value.
        energy_share: σ²/‖W + ΔW‖_F².
        cosine: by side, the largest |cos| with any singular vector of W (or subspace of equal ones).
        nearest: by side, the position in W's spectrum of the vector that is nearest.
        of_base: by side, the share of the vector that lies in the span of W's 2k leading ones: an intruder that has
            most of its norm there is a mixture of W's own directions. A random vector has 2k/n.
        of_change: by side, the share of the vector that lies in the column (row) space of ΔW; None where ΔW is not low
            rank.
    """

    position: int
    sigma: float
    energy_share: float
    cosine: Mapping[str, float]
    nearest: Mapping[str, int]
    of_base: Mapping[str, float]
    of_change: Mapping[str, float] | None


@dataclass(frozen=True)
class Prediction:
    """What the D-transform of W's spectrum says of ΔW's largest direction, as if it were independent of W's directions.

    Attributes:
        value, position: the singular value of W + ΔW that σ₁(ΔW) becomes, and its place in the spectrum.
        measured, measured_position: those of the vector pair that has over half of ΔW's first direction; None where
            none of the leading ones does.
        alignment, expected_alignment: cos² of that vector with ΔW's first left singular vector, measured and expected.
        threshold: the strength at which a direction enters the k leading ones.
        strength: by how much ΔW would have to be multiplied for that, threshold/σ₁(ΔW): below 1 it is in.
        in_top: how many of ΔW's directions are expected among the k leading ones.
    """

    value: float
    position: int
    measured: float | None
    measured_position: int | None
    alignment: float | None
    expected_alignment: float
    threshold: float
    strength: float
    in_top: int


@dataclass(frozen=True)
class ModuleIntruders:
    """The k leading singular vectors of one tuned weight.

    Attributes:
        shape: (d_out, d_in) of the map: left is the output's side and right the input's, however the file stores it.
        vectors: the k leading ones; empty where ΔW is not finite.
        spike_margin: σ₁(ΔW)/σ_k(W), k the number of vectors.
        chance: by side, the median of the largest |cos| of a random unit vector with W's singular vectors.
        equal_singular_values: how many of W's singular values are one with another.
        prediction: None where ΔW is zero.
        method, error: how the vectors were computed, and the bound on the error of each singular value.
    """

    name: str
    parameter: str
    type: str
    depth: int | None
    shape: tuple[int, int]
    transposed: bool
    kind: str
    base_norm: float | None = None
    delta_norm: float | None = None
    relative_norm: float | None = None
    delta_sigma: float | None = None
    base_sigma: tuple[float, ...] = ()
    base_rank: int | None = None
    spike_margin: float | None = None
    vectors: tuple[TunedVector, ...] = ()
    chance: Mapping[str, float] | None = None
    equal_singular_values: int = 0
    prediction: Prediction | None = None
    method: str = ""
    error: float | None = None
    non_finite: bool = False
    notes: tuple[str, ...] = ()

    def intruders(self, epsilon: float, k: int, side: str = "left") -> tuple[TunedVector, ...]:
        """Those of the k leading vectors whose largest |cos| with W's is below epsilon."""
        return tuple(vector for vector in self.vectors[:k] if vector.cosine[side] < epsilon)


def measure(facts: Mapping[str, Any], cached: CachedSVD, weight: np.ndarray, delta: Matrix, k: int) -> ModuleIntruders:
    """Measure one weight.

    Args:
        facts: name, parameter, type, depth, transposed, kind and notes of the record.
        cached: the decomposition of `weight`.
        weight: W (d_out, d_in) in float64.
        delta: ΔW.
        k: how many leading vectors.
    """
    facts = {**facts, "shape": cached.shape}
    try:
        change = in_bases(delta)
        updated = svd_update.leading(cached, weight, change, k)
    except ValueError:
        return ModuleIntruders(**facts, non_finite=True)
    k = len(updated.sigma)
    base_norm = float(np.linalg.norm(cached.sigma))
    spectrum, seen = _directions(cached, weight, change, updated)
    size = float(np.linalg.norm(change)) if isinstance(change, np.ndarray) else change.norm()
    spike = float(spectrum[0]) if len(spectrum) else 0.0
    level = float(cached.sigma[k - 1])
    return ModuleIntruders(
        **facts,
        base_norm=base_norm,
        delta_norm=size,
        relative_norm=size / base_norm if base_norm > 0 else None,
        delta_sigma=spike,
        base_sigma=tuple(cached.sigma[:k].tolist()),
        base_rank=cached.rank,
        spike_margin=spike / level if level > 0 else None,
        vectors=_vectors(cached, updated),
        chance=_chance(cached),
        equal_singular_values=int(cached.rank - len(np.unique(cached.clusters))),
        prediction=_predict(cached, updated, spectrum, seen) if seen is not None else None,
        method=updated.method,
        error=updated.error,
    )


def in_bases(delta: Matrix) -> Bases | np.ndarray:
    """ΔW as `linalg.svd_update` takes it: a product in its singular bases, anything else dense.

    Raises:
        ValueError: an entry is NaN or infinite.
    """
    if delta.factors() is not None:
        return bases(delta)
    whole = delta.dense()
    if not np.isfinite(whole).all():
        raise ValueError("ΔW contains NaN or infinite entries")
    return whole


def _directions(
    cached: CachedSVD, weight: np.ndarray, change: Bases | np.ndarray, updated: UpdatedSVD
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """ΔW's singular values, and the cosines (k,) of its first left and right vector with those of W + ΔW."""
    if isinstance(change, Bases):
        if not change.rank or updated.change_left is None or updated.change_right is None:
            return change.sigma, None
        return change.sigma, (updated.change_left[0], updated.change_right[0])
    if not change.any():
        return np.zeros(0), None
    if min(change.shape) > SPECTRUM_IN_FULL:
        first = dense.leading(change, len(updated.sigma))
        spectrum = first.s
    else:
        first, spectrum = dense.best_rank(change, 1), dense.spectrum(change).values
    u, v = svd_update.vectors(cached, weight, change, updated)
    return spectrum, (first.u[:, 0] @ u, first.vh[0] @ v)


def _vectors(cached: CachedSVD, updated: UpdatedSVD) -> tuple[TunedVector, ...]:
    top, k = cached.cut(2 * len(updated.sigma)), len(updated.sigma)
    nearest: dict[str, tuple[list[float], list[int]]] = {}
    inside: dict[str, list[float]] = {}
    for side, coefficients in (("left", updated.left), ("right", updated.right)):
        cosines = cached.cosines(coefficients)
        at = (cached.firsts[cosines.argmax(axis=0)] + 1).tolist() if cached.rank else [0] * k
        nearest[side] = (cosines.max(axis=0, initial=0.0).tolist(), at)
        inside[side] = _at_most_one(coefficients[:top])
    within = {}
    if updated.change_left is not None and updated.change_right is not None:
        within = {"left": _at_most_one(updated.change_left), "right": _at_most_one(updated.change_right)}
    return tuple(
        TunedVector(
            j + 1,
            sigma,
            sigma**2 / updated.energy if updated.energy > 0 else 0.0,
            {side: nearest[side][0][j] for side in SIDES},
            {side: nearest[side][1][j] for side in SIDES},
            {side: inside[side][j] for side in SIDES},
            {side: within[side][j] for side in SIDES} if within else None,
        )
        for j, sigma in enumerate(updated.sigma.tolist())
    )


def _at_most_one(coefficients: np.ndarray) -> list[float]:
    """The squared lengths of columns that no rounding takes past 1."""
    shares: list[float] = np.minimum(np.sum(coefficients**2, axis=0), 1.0).tolist()
    return shares


def _chance(cached: CachedSVD) -> dict[str, float]:
    sizes = Counter(np.bincount(cached.clusters).tolist()) if cached.rank else Counter()
    dimensions = tuple(sorted(sizes.items()))
    return {side: _median_of_chance(n, dimensions) for side, n in zip(SIDES, cached.shape, strict=True)}


@lru_cache(maxsize=512)
def _median_of_chance(n: int, dimensions: tuple[tuple[int, int], ...]) -> float:
    return largest_cosine(n, dict(dimensions)) if dimensions else 0.0


def _predict(
    cached: CachedSVD, updated: UpdatedSVD, spectrum: np.ndarray, seen: tuple[np.ndarray, np.ndarray]
) -> Prediction:
    spike = float(spectrum[0])
    levels = deformation.levels_of(cached.sigma, cached.shape, len(updated.sigma))
    expected = deformation.outlier(cached.sigma, cached.shape, spike, levels)
    shared = np.abs(seen[0] * seen[1])
    at = int(shared.argmax())
    there = bool(shared[at] > SAME_DIRECTION)
    thresholds = levels[1][: len(updated.sigma)].tolist()
    return Prediction(
        expected.value,
        expected.position,
        float(updated.sigma[at]) if there else None,
        at + 1 if there else None,
        float(seen[0][at] ** 2) if there else None,
        expected.cos2_long if cached.transposed else expected.cos2_short,
        thresholds[-1],
        thresholds[-1] / spike,
        _in_top(spectrum, thresholds),
    )


def _in_top(sigma: np.ndarray, thresholds: list[float]) -> int:
    """How many of the spikes come among the k leading values: the j-th has j − 1 above it, and needs to be among the
    k − j + 1 leading ones of W."""
    count = 0
    while count < min(len(sigma), len(thresholds)) and float(sigma[count]) > thresholds[len(thresholds) - 1 - count]:
        count += 1
    return count
