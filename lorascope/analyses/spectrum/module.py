"""One module: its singular values and everything that is read off them."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lorascope.analyses.adapter_updates import PARTIAL
from lorascope.linalg import spectrum
from lorascope.linalg.matrix import Dense, Matrix
from lorascope.linalg.nulls import random_product
from lorascope.linalg.rounding import SumRounding, rounded_sum, unit_roundoff
from lorascope.updates.base import Stored, Update, kinds
from lorascope.weights.pieces import PIECE, WHOLE, Change, condensed, is_large, part_of, sliceable

ENERGY_RANKS = {f"energy_rank_{share}": share for share in (0.9, 0.95, 0.99)}
RANKS = ("stable_rank", "effective_rank", "energy_effective_rank", "participation_ratio")
PRODUCTS = ("low_rank", "triplet", "vera", "magnitude")  # kinds whose baseline is a product of two random matrices
Rows = Callable[[int, int], np.ndarray]  # the rows from the first index to the second, in float64


@dataclass(frozen=True)
class AgainstBase:
    """ΔW against the W it is added to.

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
    """The metrics of one module. None where the spectrum is zero, not finite, or the metric does not apply.

    Attributes:
        energy_ranks: by the metric's key: the smallest rank that keeps 90, 95 and 99 % of the energy.
        null: the random baseline: the same metrics, by their keys, of Gaussian B·A of this shape and rank.
        b_zero: B is all zeros.
        a_at_initialisation: which random initialisation A still looks like.
        non_finite: how many entries are NaN or infinite.
        non_finite_in: the arrays of the file that hold them, such as ("B",).
    """

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
    energy_ranks: Mapping[str, int | None] = field(default_factory=lambda: dict.fromkeys(ENERGY_RANKS))
    rank_utilisation: float | None = None
    null: Mapping[str, float] | None = None
    rank_utilisation_of_null: float | None = None
    negligible_share: float | None = None
    b_zero: bool | None = None
    a_at_initialisation: str | None = None
    non_finite: int = 0
    non_finite_in: tuple[str, ...] = ()
    against_base: AgainstBase | None = None
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """For JSON and tables: the energy ranks each under the metric's key."""
        record: dict[str, Any] = {}
        for key, value in vars(self).items():
            record |= value if key == "energy_ranks" else {key: value}
        return record | {"against_base": dict(vars(self.against_base)) if self.against_base else None}


@dataclass(frozen=True)
class Draft:
    """A module whose singular values are known, and nothing yet that is read off them.

    Attributes:
        facts: fields of its `ModuleSpectrum`.
        sigma: its singular values; None where they are not finite.
        rank: of the factors that ΔW was given by; None where it was not, or has none.
    """

    facts: dict[str, Any]
    sigma: np.ndarray | None = None
    rank: int | None = None


def measure(update: Update, *, type: str, depth: int | None, base: Stored | None) -> ModuleSpectrum:
    """Read one update and measure it: `draft`, which takes the same, and `completed` in one."""
    (module,) = completed([draft(update, type=type, depth=depth, base=base)])
    return module


@np.errstate(over="ignore", invalid="ignore")  # what overflows or is NaN is said in words
def draft(update: Update, *, type: str, depth: int | None, base: Stored | None) -> Draft:
    """Read one update and compute its singular values.

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
        sigma = _singular_values(read.spectral, read.factor, last=base is None)
    except ValueError:
        bad = {role: count for role, count in read.non_finite().items() if count}
        facts |= {"non_finite": sum(bad.values()), "non_finite_in": tuple(bad)}
        return Draft(facts)
    if base is not None:
        facts["against_base"] = _against_base(read, base)
    return Draft(facts, sigma, update.rank if read.spectral.factors() is not None else None)


@dataclass(frozen=True)
class _Read:
    """An update that has been read.

    Attributes:
        spectral: what has the singular values of ΔW: itself, or its triangle.
        non_finite: counts the entries that are NaN or infinite, by role.
        delta_rows: rows of ΔW; None where they are not needed.
        base_rows: rows of W, where it was read.
        partial: it is the part s·B·A alone.
        factor: multiplies the singular values of `spectral`.
    """

    spectral: Matrix
    shape: tuple[int, int]
    non_finite: Callable[[], dict[str, int]]
    delta_rows: Rows | None = None
    b_zero: bool | None = None
    initial: str | None = None
    base_rows: Rows | None = None
    partial: bool = False
    factor: float = 1.0


def _whole(update: Update, base: Stored | None) -> _Read:
    roles, kind = update.read(), kinds.get(update.kind)
    weight = base.read() if base is not None and kind.needs_base else None
    scale = abs(update.scale) if update.kind == "low_rank" and base is None else None  # of the values, not of B
    delta, partial = _delta(update, roles, weight, 1.0 if scale is not None else update.scale)
    initial = None
    if "A" in roles and roles["A"].size:
        flat = roles["A"].ravel()
        mean_square = float(np.dot(flat, flat) / flat.size)
        initial = _untrained_a(mean_square, lambda: _largest(flat), roles["A"].shape, _coarsest(update))

    def bad() -> dict[str, int]:
        return {role: int(np.size(a) - np.count_nonzero(np.isfinite(a))) for role, a in roles.items()}

    base_rows = None if weight is None else Dense(weight).rows
    b_zero = _b_zero(roles)
    if scale is not None:
        return _Read(delta, delta.shape, bad, None, b_zero, initial, None, partial, scale)
    return _Read(delta, delta.shape, bad, delta.rows, b_zero, initial, base_rows, partial)


def _in_pieces(update: Update, base: Stored | None) -> _Read:
    """What is too large to be read at once, by its triangles."""
    if update.kind in ("dense", "tuned"):
        ((role, matrix),) = update.roles.items()
        weight = sliceable(base) if base is not None else None
        change = Change(sliceable(matrix), weight if update.kind == "tuned" else None, update.scale)
        known = change.condensed()
        base_rows = None if weight is None else _rows_of(weight)
        return _Read(
            Dense(known.triangle), change.shape, lambda: {role: known.non_finite}, _rows_of(change), base_rows=base_rows
        )
    a, b = condensed(update.roles["A"], 1), condensed(update.roles["B"], 0)
    rest = {name: stored.read() for name, stored in update.roles.items() if name not in ("A", "B")}
    roles = {**rest, "A": a.triangle, "B": b.triangle}
    delta, partial = _delta(update, roles, None, update.scale)
    initial = _untrained_a(a.mean_square, lambda: a.top, tuple(update.roles["A"].shape), _coarsest(update))
    bad = {"A": a.non_finite, "B": b.non_finite}
    return _Read(delta, update.shape, lambda: bad, None, _b_zero(roles), initial, partial=partial)


def _delta(
    update: Update, roles: dict[str, np.ndarray], weight: np.ndarray | None, scale: float
) -> tuple[Matrix, bool]:
    """ΔW, or without the base that it needs the part s·B·A, and whether it is that."""
    kind = kinds.get(update.kind)
    if kind.needs_base and weight is None:
        direction = kind.direction(roles, scale)
        assert direction is not None  # `run` asks for no other
        return direction, True
    return kind.delta(roles, scale, weight), False


def _singular_values(delta: Matrix, factor: float, last: bool) -> np.ndarray:
    """ValueError where an entry is NaN or infinite. `last`: nobody needs ΔW afterwards."""
    sigma = delta.singular_values(overwrite=last and math.prod(delta.shape) > WHOLE) * factor
    if not np.all(np.isfinite(sigma)):
        raise ValueError("a singular value is larger than float64 holds")
    return sigma


@np.errstate(over="ignore", invalid="ignore")
def completed(drafts: Sequence[Draft]) -> list[ModuleSpectrum]:
    """Everything that is read off the singular values; of modules that have as many, in one go."""
    of_size: dict[int, list[int]] = {}
    for i, each in enumerate(drafts):
        if each.sigma is not None:
            of_size.setdefault(each.sigma.size, []).append(i)
    measures: list[dict[str, Any]] = [{"singular_values": None} for _ in drafts]
    for places in of_size.values():
        sigmas = np.stack([sigma for i in places if (sigma := drafts[i].sigma) is not None])
        for i, found in zip(places, _measures(sigmas, [drafts[i] for i in places]), strict=True):
            measures[i] = found
    return [ModuleSpectrum(**each.facts, **found) for each, found in zip(drafts, measures, strict=True)]


def _measures(sigmas: np.ndarray, drafts: Sequence[Draft]) -> Iterator[dict[str, Any]]:
    """Of spectra (n, p) and their modules the fields that `ModuleSpectrum` has of them."""
    ranks = _ranks_of_each(sigmas, ENERGY_RANKS.values())
    negligible = _negligible_shares(sigmas, [unit_roundoff(each.facts["dtype"]) for each in drafts])
    nuclear = sigmas.sum(axis=1).tolist()
    for each, sigma, known, total, share in zip(drafts, sigmas, ranks, nuclear, negligible, strict=True):
        null = random_product(*each.facts["shape"], each.rank) if each.rank and each.facts["kind"] in PRODUCTS else None
        stable = known["stable_rank"]
        yield {
            "singular_values": tuple(sigma.tolist()),
            "frobenius_norm": spectrum.frobenius_norm(sigma),
            "spectral_norm": spectrum.spectral_norm(sigma),
            "nuclear_norm": total,
            **{key: known[key] for key in RANKS},
            "energy_ranks": {key: known[key] for key in ENERGY_RANKS},
            "rank_utilisation": stable / each.rank if stable is not None and each.rank else None,
            "null": null,
            "rank_utilisation_of_null": stable / null["stable_rank"] if stable is not None and null else None,
            "negligible_share": share,
        }


def _ranks_of_each(sigmas: np.ndarray, shares: Iterable[float]) -> list[dict[str, float | int | None]]:
    """`spectrum.rank_measures` of each of the spectra (n, p), as Python's numbers; None where one is all zero."""
    shares = tuple(shares)
    none = dict.fromkeys([*RANKS, *(f"energy_rank_{share}" for share in shares)])
    (some,) = np.nonzero(sigmas.max(axis=1, initial=0.0))
    found: list[dict[str, float | int | None]] = [dict(none) for _ in sigmas]
    for name, values in (spectrum.rank_measures(sigmas[some], shares) or {}).items() if some.size else ():
        for i, value in zip(some.tolist(), values.tolist(), strict=True):
            found[i][name] = value
    return found


def _negligible_shares(sigmas: np.ndarray, roundoffs: Sequence[float]) -> list[float | None]:
    """Share of the directions with σ ≤ u·σ₁, u the unit roundoff of the stored dtype: rounding alone makes such."""
    if sigmas.shape[1] == 0:
        return [None] * len(sigmas)
    shares = np.mean(sigmas <= np.array(roundoffs)[:, None] * sigmas[:, :1], axis=1)
    return [None if top == 0 else share for top, share in zip(sigmas[:, 0].tolist(), shares.tolist(), strict=True)]


def _coarsest(update: Update) -> str:
    """The dtype of the stored arrays, the coarsest where they differ."""
    return max((stored.dtype for stored in update.roles.values()), key=unit_roundoff)


def _b_zero(roles: dict[str, np.ndarray]) -> bool | None:
    b = roles.get("B")
    return None if b is None else not (b.size and b.flat[0]) and not np.any(b)  # mostly the first entry says it


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


def _against_base(read: _Read, base: Stored) -> AgainstBase:
    """ΔW against W, some rows at a time where it is large."""
    assert read.delta_rows is not None
    rows, columns = read.shape
    step = max(rows, 1) if rows * columns <= WHOLE else max(1, PIECE // max(columns, 1))
    base_rows = read.base_rows or _rows_of(base if step >= rows else sliceable(base))
    whole = SumRounding()
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        whole += rounded_sum(base_rows(start, stop), read.delta_rows(start, stop), base.dtype)[1]
    unchanged = whole.unchanged / max(rows * columns, 1)
    return AgainstBase(whole.weight_norm, whole.relative_norm, base.dtype, whole.loss, unchanged)


def _rows_of(stored: Any) -> Rows:
    return lambda start, stop: part_of(stored, start, stop)
