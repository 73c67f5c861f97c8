"""One module: its singular values and everything that is read off them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lorascope.linalg import dense, spectrum
from lorascope.linalg.factored import Factored
from lorascope.linalg.nulls import structureless_product
from lorascope.linalg.rounding import round_to, unit_roundoff
from lorascope.updates.base import Stored, Update, kinds

SHARES = (0.9, 0.95, 0.99)
PRODUCTS = ("low_rank", "triplet", "vera", "magnitude")  # kinds whose null is a product of two random matrices
PARTIAL = "the part s·B·A only: the rest needs the base"


@dataclass(frozen=True)
class AgainstBase:
    """ΔW beside the W it is added to.

    Attributes:
        frobenius_norm: ‖W‖_F.
        relative_norm: ‖ΔW‖_F / ‖W‖_F.
        dtype: what the base stores W in.
        rounding_loss: ‖(fl(W + ΔW) − W) − ΔW‖_F / ‖ΔW‖_F: the share of the update that merging into `dtype` loses.
        unchanged: share of W's entries that the merge leaves as they were.
    """

    frobenius_norm: float
    relative_norm: float | None
    dtype: str
    rounding_loss: float | None
    unchanged: float


@dataclass(frozen=True)
class ModuleSpectrum:
    """The measures of one module. None where the spectrum is zero, not finite, or the question does not apply."""

    name: str
    kind: str
    type: str
    depth: int | None
    shape: tuple[int, int]
    rank: int | None
    scale: float
    dtype: str
    transposed: bool
    singular_values: tuple[float, ...] | None
    frobenius_norm: float | None = None
    spectral_norm: float | None = None
    nuclear_norm: float | None = None
    stable_rank: float | None = None
    effective_rank: float | None = None
    energy_effective_rank: float | None = None
    participation_ratio: float | None = None
    energy_rank: dict[str, int | None] | None = None
    rank_utilisation: float | None = None
    null: dict[str, float] | None = None
    rank_utilisation_of_null: float | None = None
    negligible_share: float | None = None
    b_zero: bool | None = None
    a_at_initialisation: str | None = None
    non_finite: int = 0
    against_base: AgainstBase | None = None
    notes: tuple[str, ...] = ()

    @property
    def energy(self) -> float:
        """‖ΔW‖_F², 0 where it could not be computed."""
        return (self.frobenius_norm or 0.0) ** 2


def has_direction(update: Update) -> bool:
    """Whether the file alone gives a low-rank part s·B·A of this update (DoRA's direction)."""
    return hasattr(kinds.get(update.kind), "direction") and "A" in update.roles


def measure(update: Update, *, type: str, depth: int | None, base: Stored | None) -> ModuleSpectrum:
    """Read one update and measure it.

    Args:
        update: the update; its arrays are read here and dropped on return.
        type: the module's type, for grouping.
        depth: the index of its layer.
        base: W as (d_out, d_in), or None.
    """
    roles, notes = update.read(), update.notes
    kind: Any = kinds.get(update.kind)
    weight = base.read() if base is not None else None
    if kind.needs_base and weight is None:
        delta, notes = kind.direction(roles, update.scale), (*notes, PARTIAL)
    else:
        delta = kind.delta(roles, update.scale, weight)
    dtype = _coarsest(update)
    facts: dict[str, Any] = {
        "name": update.name,
        "kind": update.kind,
        "type": type,
        "depth": depth,
        "shape": tuple(delta.shape),
        "rank": update.rank,
        "scale": update.scale,
        "dtype": dtype,
        "transposed": update.transposed,
        "b_zero": _b_zero(roles),
        "a_at_initialisation": _untrained_a(roles, dtype),
        "notes": notes,
    }
    try:
        sigma = delta.singular_values() if hasattr(delta, "singular_values") else dense.singular_values(delta)
    except ValueError:
        bad = sum(int(np.size(a) - np.count_nonzero(np.isfinite(a))) for a in roles.values())
        return ModuleSpectrum(**facts, singular_values=None, non_finite=max(bad, 1))
    measures = _measures(sigma, update, facts["shape"], dtype, isinstance(delta, Factored))
    if base is not None and weight is not None:
        measures["against_base"] = _against_base(delta, weight, base.dtype)
    return ModuleSpectrum(**facts, **measures)


def _measures(sigma: np.ndarray, update: Update, shape: tuple[int, int], dtype: str, low_rank: bool) -> dict[str, Any]:
    stable = spectrum.stable_rank(sigma)
    null = structureless_product(*shape, update.rank) if update.rank and low_rank and update.kind in PRODUCTS else None
    return {
        "singular_values": tuple(sigma.tolist()),
        "frobenius_norm": spectrum.frobenius_norm(sigma),
        "spectral_norm": spectrum.spectral_norm(sigma),
        "nuclear_norm": spectrum.nuclear_norm(sigma),
        "stable_rank": stable,
        "effective_rank": spectrum.effective_rank(sigma),
        "energy_effective_rank": spectrum.energy_effective_rank(sigma),
        "participation_ratio": spectrum.participation_ratio(sigma),
        "energy_rank": {str(share): spectrum.energy_rank(sigma, share) for share in SHARES},
        "rank_utilisation": stable / update.rank if stable is not None and update.rank and low_rank else None,
        "null": null,
        "rank_utilisation_of_null": stable / null["stable_rank"] if stable is not None and null else None,
        "negligible_share": _negligible_share(sigma, dtype),
    }


def _negligible_share(sigma: np.ndarray, dtype: str) -> float | None:
    """Share of the directions with σ ≤ u·σ₁, u the unit roundoff of the stored dtype: rounding alone makes such."""
    if sigma.size == 0 or sigma[0] == 0:
        return None
    return float(np.mean(sigma <= unit_roundoff(dtype) * sigma[0]))


def _coarsest(update: Update) -> str:
    """The dtype of the stored arrays, the coarsest where they differ."""
    return max((stored.dtype for stored in update.roles.values()), key=unit_roundoff)


def _b_zero(roles: dict[str, np.ndarray]) -> bool | None:
    return not np.any(roles["B"]) if "B" in roles else None


def _untrained_a(roles: dict[str, np.ndarray], dtype: str) -> str | None:
    """Which initialisation A (r, d_in) still looks like, or None.

    Kaiming-uniform with a = √5 (loralib, PEFT) is U(±1/√d_in), standard deviation 1/√(3 d_in). An A that has moved
    leaves the box: among its many entries near the edge some cross it. The standard deviation must fit as well.
    """
    if "A" not in roles or not roles["A"].size:
        return None
    a = roles["A"].ravel()
    bound = roles["A"].shape[1] ** -0.5
    deviation = float(np.sqrt(np.dot(a, a) / a.size)) * 3**0.5 / bound
    # The mean square of N uniform entries has relative standard deviation √(0.8 / N); its root has half of that.
    if abs(deviation - 1) > 4 * 0.5 * (0.8 / a.size) ** 0.5 + unit_roundoff(dtype):
        return None
    top = max(float(a.max()), -float(a.min()))
    return "kaiming-uniform" if top <= bound * (1 + unit_roundoff(dtype)) else None


def _against_base(delta: Any, base: np.ndarray, dtype: str) -> AgainstBase:
    change = delta.dense() if hasattr(delta, "dense") else delta
    size, own = float(np.linalg.norm(base)), float(np.linalg.norm(change))
    merged = round_to(base + change, dtype) if dtype in ("F64", "F32", "F16", "BF16") else base + change
    stored = merged - base
    loss = float(np.linalg.norm(stored - change)) / own if own > 0 else None
    return AgainstBase(size, own / size if size > 0 else None, dtype, loss, float(np.mean(stored == 0)))
