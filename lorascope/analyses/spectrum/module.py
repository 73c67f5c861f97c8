"""One module: its singular values and everything that is read off them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorascope.analyses.adapter_updates import PARTIAL
from lorascope.linalg import spectrum
from lorascope.linalg.matrix import Dense, Matrix
from lorascope.linalg.nulls import structureless_product
from lorascope.linalg.rounding import round_to, unit_roundoff
from lorascope.updates.base import Stored, Update, kinds
from lorascope.weights.pieces import PIECE, WHOLE, Change, condensed, is_large, part_of, sliceable

SHARES = (0.9, 0.95, 0.99)
PRODUCTS = ("low_rank", "triplet", "vera", "magnitude")  # kinds whose null is a product of two random matrices


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


@np.errstate(over="ignore", invalid="ignore")  # what overflows or is NaN is said in words
def measure(update: Update, *, type: str, depth: int | None, base: Stored | None) -> ModuleSpectrum:
    """Read one update and measure it.

    Args:
        update: the update; its arrays are read here and dropped on return.
        type: the module's type, for grouping.
        depth: the index of its layer.
        base: W as (d_out, d_in), or None.
    """
    read = _in_pieces(update, base) if is_large(update, base is not None) else _whole(update, base)
    facts: dict[str, Any] = {
        "name": update.name,
        "kind": update.kind,
        "type": type,
        "depth": depth,
        "shape": read.shape,
        "rank": update.rank,
        "scale": update.scale,
        "dtype": _coarsest(update),
        "transposed": update.transposed,
        "b_zero": read.b_zero,
        "a_at_initialisation": read.initial,
        "notes": (*update.notes, *((PARTIAL,) if read.partial else ())),
    }
    try:
        sigma = _singular_values(read.spectral, last=base is None)
    except ValueError:
        return ModuleSpectrum(**facts, singular_values=None, non_finite=read.non_finite())
    low_rank = read.spectral.factors() is not None
    measures = _measures(sigma, update, facts["shape"], facts["dtype"], low_rank)
    if base is not None:
        measures["against_base"] = _against_base(read.delta, base if read.base is None else read.base, base.dtype)
    return ModuleSpectrum(**facts, **measures)


@dataclass(frozen=True)
class _Read:
    """An update that has been read.

    Attributes:
        delta: ΔW, or where it is large and no base is given, None.
        spectral: what has the singular values of ΔW: itself, or its triangle.
        base: W where it was read.
        partial: it is the part s·B·A alone.
    """

    delta: Any
    spectral: Any
    shape: tuple[int, ...]
    non_finite: Callable[[], int]
    b_zero: bool | None = None
    initial: str | None = None
    base: np.ndarray | None = None
    partial: bool = False


def _whole(update: Update, base: Stored | None) -> _Read:
    roles, kind = update.read(), kinds.get(update.kind)
    weight = base.read() if base is not None and kind.needs_base else None
    delta, partial = _delta(update, roles, weight)
    initial = None
    if "A" in roles and roles["A"].size:
        flat = roles["A"].ravel()
        mean_square = float(np.dot(flat, flat) / flat.size)
        initial = _untrained_a(mean_square, lambda: _largest(flat), roles["A"].shape, _coarsest(update))

    def bad() -> int:
        return sum(int(np.size(a) - np.count_nonzero(np.isfinite(a))) for a in roles.values())

    return _Read(delta, delta, tuple(delta.shape), bad, _b_zero(roles), initial, weight, partial)


def _in_pieces(update: Update, base: Stored | None) -> _Read:
    """What is too large to be read at once, by its triangles."""
    if update.kind in ("dense", "tuned"):
        (matrix,) = update.roles.values()
        weight = sliceable(base) if base is not None else None
        change = Change(sliceable(matrix), weight if update.kind == "tuned" else None, update.scale)
        known = change.condensed()
        return _Read(change, Dense(known.triangle), change.shape, lambda: known.non_finite)
    a, b = condensed(update.roles["A"], 1), condensed(update.roles["B"], 0)
    rest = {name: stored.read() for name, stored in update.roles.items() if name not in ("A", "B")}
    roles = {**rest, "A": a.triangle, "B": b.triangle}
    delta, partial = _delta(update, roles, None)
    initial = _untrained_a(a.mean_square, lambda: a.top, tuple(update.roles["A"].shape), _coarsest(update))
    bad = a.non_finite + b.non_finite
    return _Read(None, delta, update.shape, lambda: bad, _b_zero(roles), initial, partial=partial)


def _delta(update: Update, roles: dict[str, np.ndarray], weight: np.ndarray | None) -> tuple[Any, bool]:
    """ΔW, or without the base that it needs the part s·B·A, and whether it is that."""
    kind: Any = kinds.get(update.kind)
    if kind.needs_base and weight is None:
        return kind.direction(roles, update.scale), True
    return kind.delta(roles, update.scale, weight), False


def _singular_values(delta: Matrix, last: bool) -> np.ndarray:
    """ValueError where an entry is NaN or infinite. `last`: nobody needs ΔW afterwards."""
    if last and isinstance(delta, Dense) and delta.values.size > WHOLE:
        sigma = delta.singular_values(overwrite=True)
    else:
        sigma = delta.singular_values()
    if not np.all(np.isfinite(sigma)):
        raise ValueError("a singular value is larger than float64 holds")
    return sigma


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


def _largest(values: np.ndarray) -> float:
    """The largest absolute entry."""
    return max(float(values.max()), -float(values.min()))


def _untrained_a(mean_square: float, top: Callable[[], float], shape: tuple[int, ...], dtype: str) -> str | None:
    """Which initialisation A (r, d_in) still looks like, or None.

    Kaiming-uniform with a = √5 (loralib, PEFT) is U(±1/√d_in), standard deviation 1/√(3 d_in). An A that has moved
    leaves the box: among its many entries near the edge some cross it. The standard deviation must fit as well.
    """
    bound = shape[1] ** -0.5
    deviation = float(np.sqrt(mean_square)) * 3**0.5 / bound
    # The mean square of N uniform entries has relative standard deviation √(0.8 / N); its root has half of that.
    if abs(deviation - 1) > 4 * 0.5 * (0.8 / (shape[0] * shape[1])) ** 0.5 + unit_roundoff(dtype):
        return None
    return "kaiming-uniform" if top() <= bound * (1 + unit_roundoff(dtype)) else None


def _against_base(delta: Any, base: Any, dtype: str) -> AgainstBase:
    """ΔW beside W, an array or one on the disk, some rows at a time."""
    rows, columns = delta.shape
    step = max(1, PIECE // max(columns, 1))
    if rows * columns <= WHOLE or not (hasattr(base, "rows") or isinstance(base, np.ndarray)):
        step = max(rows, 1)
    norms = np.zeros(3)
    kept = 0
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        own = base[start:stop] if isinstance(base, np.ndarray) else part_of(base, start, stop)
        change = _rows(delta, start, stop)
        merged = round_to(own + change, dtype) if dtype in ("F64", "F32", "F16", "BF16") else own + change
        stored = merged - own
        norms = np.hypot(norms, [np.linalg.norm(part) for part in (own, change, stored - change)])
        kept += int(np.count_nonzero(stored == 0))
    size, whole, lost = norms.tolist()
    unchanged = kept / max(rows * columns, 1)
    return AgainstBase(size, whole / size if size > 0 else None, dtype, lost / whole if whole > 0 else None, unchanged)


def _rows(delta: Any, start: int, stop: int) -> np.ndarray:
    """Rows of ΔW, multiplied out."""
    if isinstance(delta, Change):
        return part_of(delta, start, stop)
    product = delta.factors()
    return delta.dense()[start:stop] if product is None else product.left[start:stop] @ product.right
