"""A weighted sum of low-rank adapters as one adapter, by PEFT's names (`lora/model.py`, `add_weighted_adapter`)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from lorascope.errors import InputError, preview
from lorascope.linalg.factored import Factored
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter, Source
from lorascope.weights.tensors import InMemory

Combination = Literal["svd", "cat", "linear"]


def weighted(
    adapters: Sequence[Adapter], weights: Sequence[float], combination: Combination = "svd", rank: int | None = None
) -> Adapter:
    """Σ wᵢ·sᵢ·Bᵢ·Aᵢ of each module, over the adapters that have it, at scale 1.

    Args:
        combination: "cat" stacks the factors, which is exact at the sum of the ranks; "svd" keeps the best
            approximation of that; "linear" adds the factors, √|wᵢ·sᵢ| of each, which has the rank of one and is not
            the sum of the ΔW: each A meets each B.
        rank: of "svd"; by default the largest of the adapters' ranks.

    Raises:
        InputError: no adapter, or not a weight for each; an update that is not s·B·A; saved modules, which have no
            sum here; with "linear", ranks that differ; an unknown combination.
    """
    _check(adapters, weights, combination)
    names = list(dict.fromkeys(name for adapter in adapters for name in adapter.updates))
    if rank is None:
        rank = max(update.rank or 1 for adapter in adapters for update in adapter.updates.values())
    updates = {}
    for name in names:
        parts = [
            (adapter.updates[name], weight)
            for adapter, weight in zip(adapters, weights, strict=True)
            if name in adapter.updates
        ]
        a, b = _linear(parts) if combination == "linear" else _stacked(parts)
        if combination == "svd":
            best = Factored(b, a).truncated(min(rank, *parts[0][0].shape))
            a, b = best.right, best.left
        roles = {"A": InMemory(np.asarray(a), "F64"), "B": InMemory(np.asarray(b), "F64")}
        updates[name] = replace(parts[0][0], roles=roles, scale=1.0, notes=())
    largest = max(update.roles["A"].shape[0] for update in updates.values())
    settings = {"peft_type": "LORA", "r": largest, "lora_alpha": largest}
    return Adapter(updates, settings, Source(method="lora"))


def _check(adapters: Sequence[Adapter], weights: Sequence[float], combination: str) -> None:
    if combination not in ("svd", "cat", "linear"):
        raise InputError("no such combination_type", found=combination, expected="svd, cat or linear")
    if not adapters or len(adapters) != len(weights):
        raise InputError(
            "a weighted sum needs one weight for each adapter", found=f"{len(adapters)} and {len(weights)}"
        )
    other = [update.name for adapter in adapters for update in adapter.updates.values() if update.kind != "low_rank"]
    if other:
        raise InputError(f"{preview(other, 2)} is not s·B·A, and has no weighted sum here")
    if saved := [name for adapter in adapters for name in (*adapter.saved, *adapter.rows)]:
        raise InputError(
            "modules that were trained whole have no weighted sum here",
            found=preview(saved, 2),
            hint="use adapters without modules_to_save",
        )


def _factors(update: Update) -> tuple[np.ndarray, np.ndarray]:
    roles = update.read()
    return np.asarray(roles["A"], np.float64), np.asarray(roles["B"], np.float64)


def _stacked(parts: Sequence[tuple[Update, float]]) -> tuple[np.ndarray, np.ndarray]:
    factors = [(weight * update.scale, *_factors(update)) for update, weight in parts]
    return np.concatenate([s * a for s, a, _ in factors]), np.concatenate([b for _, _, b in factors], axis=1)


def _linear(parts: Sequence[tuple[Update, float]]) -> tuple[np.ndarray, np.ndarray]:
    if len({update.rank for update, _ in parts}) > 1:
        raise InputError(
            f"the ranks of {parts[0][0].name} differ, and factors of different ranks cannot be added",
            found=", ".join(str(update.rank) for update, _ in parts),
            hint="use combination_type svd or cat",
        )
    sums: list = [0.0, 0.0]
    for update, weight in parts:
        root = abs(weight * update.scale) ** 0.5
        a, b = _factors(update)
        sums = [sums[0] + np.copysign(root, weight * update.scale) * a, sums[1] + root * b]
    return sums[0], sums[1]
