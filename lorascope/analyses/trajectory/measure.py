"""One module over all checkpoints: its singular values, and how its subspaces turn.

Only factors are looked at: the Gram matrices of B and A give σ and the coordinates of the singular vectors, and one
product with the factors of the last and of the previous checkpoint gives every overlap: O((m + n) r²) a checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lorascope.analyses.adapter_updates import PARTIAL
from lorascope.linalg import spectrum
from lorascope.linalg.matrix import Matrix
from lorascope.linalg.nulls import random_product
from lorascope.linalg.subspace import RANK_FLOOR, bases, coordinates, cuts
from lorascope.updates.base import Stored, Update, kinds
from lorascope.weights.pieces import PIECE, part_of, sliceable

ENERGY = 0.95  # of the last ‖ΔW‖_F², which the directions that are followed hold
SETTLED = 0.9  # φ(t, T) from which a subspace is the last one
LARGEST = 2048  # of the shorter side of an update without factors, whose SVD costs its cube


@dataclass(frozen=True)
class Point:
    """One module at one checkpoint. None where ΔW is zero, or has nothing before it.

    Attributes:
        step: of the checkpoint.
        singular_values: descending, those of zero by the form alone left out.
        relative_norm: ‖ΔW‖_F / ‖W‖_F; None without a base.
        energy_rank: the smallest rank that keeps 95 % of ‖ΔW‖_F².
        cosine_to_last: ⟨ΔW_t, ΔW_T⟩ / (‖ΔW_t‖ ‖ΔW_T‖).
        left_to_last, right_to_last: φ of the leading subspaces with those of the last checkpoint.
        left_to_previous, right_to_previous: the same with the checkpoint before.
    """

    step: int
    singular_values: tuple[float, ...]
    frobenius_norm: float
    relative_norm: float | None
    stable_rank: float | None
    energy_rank: int | None
    cosine_to_last: float | None = None
    left_to_last: float | None = None
    right_to_last: float | None = None
    left_to_previous: float | None = None
    right_to_previous: float | None = None

    def record(self) -> dict[str, Any]:
        """For JSON: the energy rank under the metric's key."""
        return {("energy_rank_0.95" if key == "energy_rank" else key): v for key, v in vars(self).items()}


@dataclass(frozen=True)
class ModuleTrajectory:
    """One module over all checkpoints.

    Attributes:
        directions: how many leading directions are followed: the rank that keeps 95 % of the last ‖ΔW‖_F².
        points: one for each checkpoint, by step.
        settled_step: the first step from which on φ(t, T) ≥ 0.9 on both sides; None where only the last one is, or
            where random subspaces overlap as much.
        null: stable_rank and energy_rank_0.95 of Gaussian B·A of this shape and rank; None of an update without rank.
        chance: φ of random subspaces, left and right: directions over the side's length.
    """

    name: str
    type: str
    depth: int | None
    shape: tuple[int, int]
    rank: int | None
    directions: int
    points: tuple[Point, ...]
    settled_step: int | None
    null: dict[str, float] | None
    chance: dict[str, float]
    notes: tuple[str, ...] = field(default=())

    @property
    def last(self) -> Point:
        return self.points[-1]


@dataclass(frozen=True)
class _Svd:
    """ΔW = left P · diag(sigma) · (right Q)ᵀ; without P and Q, left and right are the singular vectors themselves."""

    left: np.ndarray
    right: np.ndarray
    sigma: np.ndarray
    p: np.ndarray | None = None
    q: np.ndarray | None = None

    @property
    def rank(self) -> int:
        """How many directions are more than rounding."""
        return int(np.sum(self.sigma > RANK_FLOOR * self.sigma[0])) if self.sigma.size and self.sigma[0] > 0 else 0

    def cross(self, other: "_Svd") -> tuple[np.ndarray, np.ndarray]:
        """UᵀU' and VᵀV' of all directions."""
        return (
            _turned(self.p, self.left.T @ other.left, other.p),
            _turned(self.q, self.right.T @ other.right, other.q),
        )


def _turned(p: np.ndarray | None, cross: np.ndarray, other: np.ndarray | None) -> np.ndarray:
    cross = cross if p is None else p.T @ cross
    return cross if other is None else cross @ other


def decomposed(delta: Matrix) -> _Svd:
    """The singular values and vectors of ΔW (d_out, d_in). ValueError where an entry is NaN or infinite."""
    product = delta.factors()
    if product is not None:
        left, right_t = np.asarray(product.left, np.float64), np.asarray(product.right.T, np.float64)
        if (found := coordinates(left, right_t)) is not None:
            return _Svd(left, right_t, found[1], found[0], found[2])
    known = bases(delta)
    return _Svd(known.left, known.right, np.asarray(known.sigma))


def measure(
    updates: Sequence[Update], steps: Sequence[int], *, type: str, depth: int | None, base: Stored | None = None
) -> ModuleTrajectory:
    """Follow one module. Its arrays are read here, at most three checkpoints' at once.

    Args:
        updates: the module's update at each of `steps`.
        base: W as (d_out, d_in), or None.

    Raises:
        ValueError: an entry of one of them is NaN or infinite; the text names its step.
    """
    kind = kinds.get(updates[-1].kind)
    weight = base.read() if base is not None and any(kinds.get(each.kind).needs_base for each in updates) else None
    norm = _norm(base) if base is not None else None
    last = _at(updates[-1], steps[-1], weight)
    k = _directions(last)
    points: list[Point] = []
    before: _Svd | None = None
    for update, step in zip(updates, steps, strict=True):
        now = last if update is updates[-1] else _at(update, step, weight)
        points.append(_point(now, last, before, step, k, norm))
        before = now
    rank = updates[-1].rank
    shape = (last.left.shape[0], last.right.shape[0])
    chance = {"left": k / shape[0], "right": k / shape[1]}
    notes = (*updates[-1].notes, *((PARTIAL,) if kind.needs_base and weight is None else ()))
    low_rank = rank is not None and last.left.shape[1] <= rank < min(shape) and not kind.needs_base
    return ModuleTrajectory(
        updates[-1].name, type, depth, shape, rank, k, tuple(points), _settled(points, chance),
        _null(*shape, rank) if low_rank and rank else None, chance, notes,
    )  # fmt: skip


def _null(m: int, n: int, r: int) -> dict[str, float]:
    baseline = random_product(m, n, r)
    return {key: baseline[key] for key in ("stable_rank", "energy_rank_0.95")}


def _at(update: Update, step: int, weight: np.ndarray | None) -> _Svd:
    try:
        if update.needs_base and weight is None:
            direction = kinds.get(update.kind).direction(update.read(), update.scale)
            assert direction is not None  # `run` skips what has none
            return decomposed(direction)
        return decomposed(update.delta(weight))
    except ValueError:
        raise ValueError(f"NaN or infinite entries at {step}") from None


def _norm(stored: Stored) -> float:
    """‖W‖_F, some rows at a time."""
    rows, columns = stored.shape
    count = max(1, PIECE // max(columns, 1))
    source = sliceable(stored) if rows > count else stored
    squares = 0.0
    for start in range(0, rows, count):
        part = part_of(source, start, min(start + count, rows)).reshape(-1)
        squares += float(part @ part)
    return squares**0.5


def _directions(last: _Svd) -> int:
    """How many leading directions hold 95 % of the last ‖ΔW‖², and are not divided from equal ones; at least one."""
    least = spectrum.energy_rank(last.sigma, ENERGY) or 1
    determined = cuts(last.sigma[: last.rank])
    return next((i for i in range(least, len(determined)) if determined[i - 1]), max(least, len(determined)))


def _point(now: _Svd, last: _Svd, before: _Svd | None, step: int, k: int, norm: float | None) -> Point:
    size = spectrum.frobenius_norm(now.sigma)
    measured: dict[str, Any] = {}
    if now.rank and last.rank:
        left, right = now.cross(last)
        measured["cosine_to_last"] = _cosine(now, last, left, right)
        measured["left_to_last"], measured["right_to_last"] = _phi(left, now, last, k), _phi(right, now, last, k)
        if before is not None and before.rank:
            left, right = now.cross(before)
            measured["left_to_previous"] = _phi(left, now, before, k)
            measured["right_to_previous"] = _phi(right, now, before, k)
    return Point(
        step, tuple(now.sigma.tolist()), size, size / norm if norm else None, spectrum.stable_rank(now.sigma),
        spectrum.energy_rank(now.sigma, ENERGY), **measured,
    )  # fmt: skip


def _phi(cross: np.ndarray, now: _Svd, other: _Svd, k: int) -> float:
    """φ(k, k) (Hu et al. 2021, §7.2, eq. 4); of fewer directions where there are no more."""
    i, j = min(k, now.rank), min(k, other.rank)
    return min(float(np.sum(cross[:i, :j] ** 2)) / min(i, j), 1.0)


def _cosine(now: _Svd, last: _Svd, left: np.ndarray, right: np.ndarray) -> float:
    s, t = (each.sigma / np.linalg.norm(each.sigma) for each in (now, last))
    return float(np.clip(s @ (left * right) @ t, -1.0, 1.0))


def _settled(points: Sequence[Point], chance: dict[str, float]) -> int | None:
    """The first step from which on both subspaces are the last one's, up to 0.9."""
    if max(chance.values()) >= SETTLED:
        return None
    step = None
    for point in reversed(points):
        if min(point.left_to_last or 0.0, point.right_to_last or 0.0) < SETTLED:
            break
        step = point.step
    return None if step == points[-1].step else step
