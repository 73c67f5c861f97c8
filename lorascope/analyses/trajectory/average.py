"""The average of checkpoints: the mean of their ΔW, at the rank that they have.

The mean of B·A is not the product of the mean factors: those depend on how ΔW is written as a product, the mean of ΔW
does not. It has up to T·r directions, of which the leading r are kept (Eckart and Young 1936); what that loses is
reported. Heads and biases that were trained whole are averaged entry by entry.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lorascope.analyses.truncate import resized, truncate
from lorascope.errors import InputError, preview
from lorascope.updates.base import Stored, Update
from lorascope.weights.adapter import Adapter
from lorascope.weights.tensors import Combined


@dataclass(frozen=True)
class Average:
    """The averaged adapter, and by module the share of ‖mean ΔW‖_F² that its rank loses."""

    adapter: Adapter
    lost: dict[str, float]


def average(adapters: Sequence[Adapter], progress: Callable[[list], Iterable] = iter) -> Average:
    """The mean of the adapters' ΔW at their rank.

    Args:
        adapters: checkpoints of one run.
        progress: wraps the list of modules.

    Raises:
        InputError: fewer than two, other modules or shapes in one than in another, or updates that are not s·B·A.
    """
    last = adapters[-1]
    if len(adapters) < 2:
        raise InputError("an average needs two checkpoints or more", found=len(adapters))
    _check(adapters)
    updates = {name: _joined([one.updates[name] for one in adapters]) for name in last.updates}
    saved = {name: _mean([one.saved[name] for one in adapters]) for name in last.saved}
    rows = {
        name: replace(each, stored=_mean([a.rows[name].stored for a in adapters])) for name, each in last.rows.items()
    }
    joint = replace(last, updates=updates, saved=saved, rows=rows)
    ranks = {name: min(last.updates[name].rank or 1, *last.updates[name].shape) for name in updates}
    lost: dict[str, float] = {}

    def noted(names: list) -> Iterable:
        for name in progress(names):
            sigma = updates[name].delta().singular_values()
            total = float(np.sum(sigma**2))
            lost[name] = float(np.sum(sigma[ranks[name] :] ** 2)) / total if total else 0.0
            yield name

    return Average(resized(joint, truncate(joint, ranks, progress=noted)), lost)


def _check(adapters: Sequence[Adapter]) -> None:
    last = adapters[-1]
    odd = [name for name, update in last.updates.items() if update.kind != "low_rank"]
    if odd:
        kind = last.updates[odd[0]].kind
        raise InputError("only updates of the form s·B·A are averaged", found=f"{kind} in {preview(odd, 2)}")
    for one in adapters:
        for what in ("updates", "saved", "rows"):
            names, expected = getattr(one, what).keys(), getattr(last, what).keys()
            if names != expected:
                raise InputError(
                    f"{one.source.path} and {last.source.path} do not hold the same modules",
                    found=preview(sorted(names ^ expected), 3),
                )
        for name, update in one.updates.items():
            if update.shape != last.updates[name].shape or update.kind != "low_rank":
                raise InputError(f"{name} is not of one shape in all checkpoints", found=f"{update.shape}")


def _joined(updates: Sequence[Update]) -> Update:
    """The mean of s·B·A as one product with the factors side by side, read when they are used."""
    count, (d_out, d_in) = len(updates), updates[-1].shape
    width = sum(update.rank or 0 for update in updates)
    scales = [update.scale / count for update in updates]

    def side_by_side(*factors: np.ndarray) -> np.ndarray:
        return np.concatenate([b * s for b, s in zip(factors, scales, strict=True)], axis=1)

    roles: dict[str, Stored] = {
        "A": Combined(tuple(u.roles["A"] for u in updates), (width, d_in), lambda *f: np.concatenate(f)),
        "B": Combined(tuple(u.roles["B"] for u in updates), (d_out, width), side_by_side),
    }
    return replace(updates[-1], roles=roles, scale=1.0)


def _mean(stored: Sequence[Stored]) -> Stored:
    shapes = {tuple(each.shape) for each in stored}
    if len(shapes) > 1:
        raise InputError("a tensor is not of one shape in all checkpoints", found=" and ".join(map(str, shapes)))

    def mean(*values: np.ndarray) -> Any:
        return np.mean(values, axis=0)

    return Combined(tuple(stored), stored[-1].shape, mean)
