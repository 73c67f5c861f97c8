"""One parameter: ΔW's singular values, what noise alone would give, and what adapters capture of it."""

import contextlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lorascope.linalg import dense, noise, spectrum
from lorascope.linalg.arrays import Array, to_numpy
from lorascope.linalg.blas import one_thread
from lorascope.linalg.matrix import Matrix
from lorascope.weights.delta import Difference, Pair

ENERGY_RANKS = {f"energy_rank_{share}": share for share in (0.9, 0.95, 0.99)}  # the share that each keeps
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # of the Eckart–Young curve, as tables and summaries give it
PERMUTED_IN_FULL = 1024  # up to this shorter side the permuted ΔW gets a full spectrum, above it the largest value
SMALL = 512  # below this shorter side more than one BLAS thread only costs time
NEGLIGIBLE = 1e-12  # of an adapter's σ₁: below this a direction is rounding of its factors


def ratio_of(key: str) -> str:
    """The key of an energy rank over that of the random baseline: energy_rank_of_null_0.9."""
    return key.replace("energy_rank_", "energy_rank_of_null_")


@dataclass(frozen=True)
class MatrixDelta:
    """The measures of one matrix. None where ΔW is zero or not finite, or where the leading values do not tell.

    Attributes:
        singular_values: of ΔW, descending; all, or with `top` the leading ones.
        accuracy: `method`, and `error`, the bound on the absolute error of the values, the first's and the last's.
        remaining_energy: Σσ² of the values that are not listed.
        noise_floor: `floor`, the largest singular value that rounding to `effective_dtype` makes; `rank`, how many lie
            above; their `energy_share`, `stable_rank`, `effective_rank` and energy ranks. `base_floor` is that of a
            base stored more coarsely, which is in ΔW only if the tuning started from a finer copy.
        marchenko_pastur: `level`, `edge` and `rank`; `gavish_donoho`: `threshold` and `rank`.
        energy_ranks: by the metric's key: the smallest rank that keeps 90, 95 and 99 % of the energy.
        null: the random baseline: the same of an iid matrix of this shape; `energy_ranks_of_null` the ratios to it.
        permutation: of ΔW's own entries permuted: `edge`, the largest singular value, `rank`, how many of ΔW's lie
            above, and where the matrix is not too large the energy ranks.
        best: share of the energy that the best rank-k matrix keeps, by k.
        captured: by adapter, what `captured` says.
    """

    name: str
    parameter: str
    type: str
    depth: int | None
    shape: tuple[int, int]
    transposed: bool
    base_dtype: str
    tuned_dtype: str
    effective_dtype: str
    base_norm: float | None = None
    frobenius_norm: float | None = None
    relative_norm: float | None = None
    moved_share: float | None = None
    non_finite: int = 0
    singular_values: tuple[float, ...] | None = None
    accuracy: Mapping[str, Any] | None = None
    remaining_energy: float | None = None
    spectral_norm: float | None = None
    nuclear_norm: float | None = None
    stable_rank: float | None = None
    effective_rank: float | None = None
    energy_effective_rank: float | None = None
    participation_ratio: float | None = None
    energy_ranks: Mapping[str, int | None] = field(default_factory=lambda: dict.fromkeys(ENERGY_RANKS))
    energy_ranks_of_null: Mapping[str, float | None] = field(
        default_factory=lambda: {ratio_of(key): None for key in ENERGY_RANKS}
    )
    null: Mapping[str, float] | None = None
    noise_floor: Mapping[str, Any] | None = None
    marchenko_pastur: Mapping[str, Any] | None = None
    gavish_donoho: Mapping[str, Any] | None = None
    permutation: Mapping[str, Any] | None = None
    best: Mapping[str, float] | None = None
    captured: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """For JSON and tables: the energy ranks each under the metric's key."""
        record: dict[str, Any] = {}
        for key, entry in asdict(self).items():
            record |= entry if key in ("energy_ranks", "energy_ranks_of_null") else {key: entry}
        return record

    @property
    def energy(self) -> float:
        """‖ΔW‖_F², 0 where it could not be computed."""
        return (self.frobenius_norm or 0.0) ** 2

    def kept(self, k: int) -> float:
        """Σ of the k largest σ²: at most what any rank-k matrix can take of ‖ΔW‖_F² (Eckart and Young 1936)."""
        return float(np.sum(np.square(self.singular_values[:k]))) if self.singular_values else 0.0


@dataclass(frozen=True)
class VectorDelta:
    """A bias, a norm's weight or another parameter without a spectrum: how far it moved."""

    name: str
    type: str
    depth: int | None
    size: int
    dtype: str
    base_norm: float
    change_norm: float
    relative_change: float | None
    largest: float
    non_finite: int = 0
    notes: tuple[str, ...] = ()


def measure_vector(pair: Pair, change: Difference, *, type: str, depth: int | None) -> VectorDelta:
    """‖Δ‖ and ‖Δ‖/‖w‖ of a parameter with one axis; the norms are 0 where an entry is not finite."""
    non_finite = change.non_finite
    largest = 0.0 if non_finite else float(np.abs(change.matrix).max(initial=0.0))
    size = largest * float(np.linalg.norm(change.matrix / largest)) if largest else 0.0  # no square overflows
    relative = size / change.base_norm if change.base_norm > 0 and not non_finite else None
    count, dtype = change.matrix.size, pair.tuned_dtype
    return VectorDelta(
        pair.name, type, depth, count, dtype, change.base_norm, size, relative, largest, non_finite, change.notes
    )


def measure(
    pair: Pair,
    change: Difference,
    *,
    type: str,
    depth: int | None,
    top: int | None = None,
    adapters: Mapping[str, Any] | None = None,
    place: Callable[[np.ndarray], Array] = lambda matrix: matrix,
) -> MatrixDelta:
    """Measure one ΔW. Its array is used up: the permutation null shuffles it in place.

    Args:
        pair: the parameter.
        change: its ΔW, as `weights.delta.difference` gives it.
        type: the module's type, for grouping.
        depth: the index of its layer.
        top: take the leading singular values only.
        adapters: by label, what each adapter adds to this weight: a `Factored`, or an array (d_out, d_in).
        place: puts the array where it is to be decomposed, such as on a GPU.
    """
    rounding = change.rounding
    facts: dict[str, Any] = {
        "name": pair.name, "parameter": pair.parameter, "type": type, "depth": depth, "shape": change.matrix.shape,
        "transposed": pair.transposed, "base_dtype": pair.base.dtype, "tuned_dtype": pair.tuned_dtype,
        "effective_dtype": rounding.effective_dtype if rounding else pair.tuned_dtype, "notes": change.notes,
    }  # fmt: skip
    if change.non_finite:
        return MatrixDelta(**facts, non_finite=change.non_finite)
    size = float(np.linalg.norm(change.matrix))
    facts |= {
        "frobenius_norm": size,
        "base_norm": change.base_norm,
        "relative_norm": size / change.base_norm if change.base_norm > 0 else None,
        "moved_share": rounding.moved_share if rounding else None,
    }
    if size == 0:
        return MatrixDelta(**facts)
    with threads_for(change.matrix):
        matrix = place(change.matrix)
        values = dense.spectrum(matrix) if top is None else dense.leading(matrix, top).spectrum
        sigma = to_numpy(values.values).astype(float)
        facts |= _measures(sigma, size, values.remaining, top is None)
        facts |= _against_noise(sigma, change, facts["energy_ranks"], top is None)
        facts["accuracy"] = _accuracy(values)
        facts["captured"] = {
            label: captured(change.matrix, delta, sigma, size) for label, delta in (adapters or {}).items()
        }
        facts["permutation"] = _permuted(change.matrix, pair.name, sigma, place)
    return MatrixDelta(**facts)


def threads_for(matrix: np.ndarray) -> contextlib.AbstractContextManager[None]:
    """One BLAS thread inside the block for a small matrix, all of them for a large one."""
    return one_thread() if min(matrix.shape) < SMALL else contextlib.nullcontext()


def _accuracy(values: dense.Spectrum) -> dict[str, Any]:
    error = to_numpy(values.error)
    return {"method": values.method, "error": [float(error[0]), float(error[-1])]}


def _measures(sigma: np.ndarray, size: float, remaining: float, complete: bool) -> dict[str, Any]:
    kept = np.cumsum(sigma**2)
    facts: dict[str, Any] = {
        "singular_values": tuple(sigma.tolist()),
        "remaining_energy": remaining,
        "spectral_norm": float(sigma[0]),
        "stable_rank": float(size**2 / sigma[0] ** 2),
        "energy_ranks": {key: _energy_rank(kept, size**2, share) for key, share in ENERGY_RANKS.items()},
        "best": {str(k): min(float(kept[k - 1] / size**2), 1.0) for k in RANKS if k <= len(kept)},
    }
    if complete:
        facts |= {
            "nuclear_norm": spectrum.nuclear_norm(sigma),
            "effective_rank": spectrum.effective_rank(sigma),
            "energy_effective_rank": spectrum.energy_effective_rank(sigma),
            "participation_ratio": spectrum.participation_ratio(sigma),
        }
    return facts


def _energy_rank(kept: np.ndarray, energy: float, share: float) -> int | None:
    """The smallest k that keeps the share of all energy; None where the listed values do not reach it."""
    at = int(np.searchsorted(kept, share * energy * (1 - 1e-9)))
    return at + 1 if at < len(kept) else None


def _against_noise(
    sigma: np.ndarray, change: Difference, ranks: Mapping[str, int | None], complete: bool
) -> dict[str, Any]:
    m, n = change.matrix.shape
    null = noise.noise_measures(m, n)
    ratios = {ratio_of(key): rank / null[key] if rank else None for key, rank in ranks.items()}
    facts: dict[str, Any] = {"null": null, "energy_ranks_of_null": ratios}
    if change.rounding is not None:
        facts["noise_floor"] = _above_floor(sigma, change)
    if complete and (level := noise.noise_level(sigma, m, n)) > 0:
        edge, threshold = noise.marchenko_pastur_edge(level, m, n), noise.gavish_donoho(sigma, m, n)
        facts["marchenko_pastur"] = {"level": level, "edge": edge, "rank": int(np.sum(sigma > edge))}
        facts["gavish_donoho"] = {"threshold": threshold, "rank": int(np.sum(sigma > threshold))}
    return facts


def _above_floor(sigma: np.ndarray, change: Difference) -> dict[str, Any]:
    assert change.rounding is not None
    floor = change.rounding.floor()
    above = sigma[sigma > floor]
    return {
        "floor": floor,
        "base_floor": change.base_rounding.floor() if change.base_rounding is not None else None,
        "rank": len(above),
        "energy_share": min(float(np.sum(above**2) / np.linalg.norm(change.matrix) ** 2), 1.0),
        "stable_rank": spectrum.stable_rank(above),
        "effective_rank": spectrum.effective_rank(above),
        **{key: spectrum.energy_rank(above, share) for key, share in ENERGY_RANKS.items()},
    }


def _permuted(matrix: np.ndarray, name: str, sigma: np.ndarray, place: Callable[[np.ndarray], Array]) -> dict[str, Any]:
    """The same entries in random places, one draw from a fixed seed: keeps the entries' law, and no structure."""
    seed = zlib.crc32(name.encode())
    flat = matrix.ravel(order="K")  # a view: `matrix` is contiguous one way or the other
    np.random.default_rng(seed).shuffle(flat)
    shuffled = place(flat.reshape(matrix.shape))
    if min(matrix.shape) <= PERMUTED_IN_FULL:
        values = to_numpy(dense.spectrum(shuffled).values)
        ranks = {key: spectrum.energy_rank(values, share) for key, share in ENERGY_RANKS.items()}
    else:
        values, ranks = to_numpy(dense.leading(shuffled, 1, seed).s), dict.fromkeys(ENERGY_RANKS)
    return {"edge": float(values[0]), "rank": int(np.sum(sigma > values[0])), **ranks}


def captured(matrix: np.ndarray, delta: Matrix, sigma: np.ndarray, size: float) -> dict[str, Any]:
    """What an adapter's own update s·B·A has of ΔW, compared with the best of its rank and with chance.

    Returns:
        rank r and singular_values of the adapter's update; cosine ⟨ΔW, BA⟩/(‖ΔW‖‖BA‖) with `cosine_chance` 1/√(mn),
        its root mean square for a randomly rotated BA; residual ‖ΔW − BA‖²/‖ΔW‖²; scale, by which BA would have to be
        multiplied to fit best. left, right and both: shares of ‖ΔW‖² that lie in its column space, its row space, and
        both, with their means for random subspaces (r/m, r/n, r²/mn) under `chance`; best: the most that any of the
        three can be at this rank (Eckart and Young 1936).
    """
    m, n = matrix.shape
    energy = size**2
    if delta.factors() is None:
        whole = delta.dense()
        norm, inner = float(np.linalg.norm(whole)), float(np.vdot(matrix, whole))
        return _agreement(norm, inner, size, m, n) | {"rank": None, "left": None, "right": None, "both": None}
    u, s, vh = delta.svd()
    r = int(np.sum(s > NEGLIGIBLE * s[0])) if s.size and s[0] > 0 else 0
    u, s, vh = u[:, :r], s[:r], vh[:r]
    left, right = u.T @ matrix, matrix @ vh.T
    core = left @ vh.T
    agreement = _agreement(float(np.linalg.norm(s)), float(np.sum(np.diag(core) * s)), size, m, n)
    shares = {"left": left, "right": right, "both": core}
    return agreement | {
        "rank": r,
        "singular_values": s.tolist(),
        **{name: float(np.linalg.norm(part) ** 2 / energy) for name, part in shares.items()},
        "best": min(float(np.sum(sigma[:r] ** 2) / energy), 1.0) if r <= len(sigma) else None,
        "chance": {"left": r / m, "right": r / n, "both": r * r / (m * n)},
    }


def _agreement(norm: float, inner: float, size: float, m: int, n: int) -> dict[str, Any]:
    return {
        "frobenius_norm": norm,
        "cosine": inner / (norm * size) if norm > 0 else None,
        "cosine_chance": (m * n) ** -0.5,
        "residual": max(1 + (norm**2 - 2 * inner) / size**2, 0.0),
        "scale": inner / norm**2 if norm > 0 else None,
    }
