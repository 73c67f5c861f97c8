"""The best rank-r adapter of a full fine-tune: Eckart and Young's, module by module, as a LoRA."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lorascope.architectures import PEFT_HEADS
from lorascope.errors import InputError
from lorascope.linalg import dense
from lorascope.linalg.arrays import Array, to_numpy
from lorascope.updates.base import Stored, Update
from lorascope.weights.adapter import Adapter, Source
from lorascope.weights.checkpoint import Checkpoint
from lorascope.weights.delta import Pair, base_matrix, difference
from lorascope.weights.tensors import InMemory


def why_not(pair: Pair) -> str | None:
    """Why a LoRA cannot hold a parameter's update; None where it can."""
    if pair.is_vector:
        return "a vector"
    if pair.expert is not None:
        return "a fused expert"
    if any("resized" in note for note in pair.notes):
        return "resized"
    return None


def factors_of(matrix: Array, rank: int, top: int | None) -> dict[str, np.ndarray]:
    """A (k, d_in) and B (d_out, k) of the best rank k ≤ `rank`, each with √σ, in float32.

    Args:
        matrix: ΔW (d_out, d_in).
        rank: the rank; a smaller matrix gets less.
        top: where only the leading values are computed, these give the factors, too.
    """
    rank = min(rank, *matrix.shape)
    best = dense.best_rank(matrix, rank) if top is None else dense.leading(matrix, max(rank, top))
    u, s, vh = (to_numpy(part) for part in (best.u[:, :rank], best.s[:rank], best.vh[:rank]))
    root = np.sqrt(s)
    return {"A": (root[:, None] * vh).astype(np.float32), "B": (u * root).astype(np.float32)}


def adapter_of(
    base: Checkpoint,
    pairs: Mapping[str, Pair],
    factors: Mapping[str, Mapping[str, np.ndarray]],
    rank: int,
    tied: Mapping[str, str] | None = None,
    task_type: str | None = None,
    whole: Iterable[Pair] = (),
) -> Adapter:
    """The factors of every module as an adapter of scale 1 (α = r), by the names that the model has in memory.

    Args:
        base: tells these names, where its file keeps others.
        tied: modules that share another's weight, such as a tied output layer: the pair's name by theirs. Each gets
            the same ΔW, as the map that it is.
        task_type: PEFT's, of the base's class.
        whole: what is stored as tuned: the head of such a task.

    Raises:
        InputError: no module has an update that a LoRA can hold.
    """
    if not factors:
        raise InputError("there is no ΔW to extract an adapter from", hint="every matrix is unchanged or skipped")
    updates = {}
    for name, roles in factors.items():
        pair = pairs[name]
        stored = {role: InMemory(np.asarray(values, np.float32), "F32") for role, values in roles.items()}
        updates[name] = Update(
            name, "low_rank", stored, 1.0, pair.transposed, pair.kernel, pair.parameter, embedding=pair.embedding
        )
    notes = []
    for name, of in (tied or {}).items():
        if of in updates:
            updates[name] = _other_half(name, updates[of])
            notes.append(f"{name} is tied to {of}: both have the same update")
    updates = {update.name: update for update in (_in_memory(update, base) for update in updates.values())}
    saved = {base.name_in_memory(pair.parameter): _tuned_weight(pair) for pair in whole}
    settings = {"r": rank, "lora_alpha": rank, **_of_task(task_type, saved)}
    return Adapter(updates, settings, Source(method="LoRA"), saved, notes=tuple(notes))


def _of_task(task_type: str | None, saved: Mapping[str, Stored]) -> dict[str, Any]:
    """The settings of PEFT's task, and the heads that it stores whole."""
    heads = {"modules_to_save": list(PEFT_HEADS[task_type])} if task_type in PEFT_HEADS and saved else {}
    return {"task_type": task_type, **heads} if task_type else {}


def _in_memory(update: Update, base: Checkpoint) -> Update:
    """The update by the names that the model has in memory."""
    weight = update.base_weight
    named = base.name_in_memory(weight) if weight else None
    return replace(update, name=base.name_in_memory(update.name), base_weight=named)


def _other_half(name: str, update: Update) -> Update:
    """The same ΔW of a module that shares the weight: an embedding's map is the output layer's, transposed."""
    if not update.embedding:
        return replace(update, name=name)
    swapped = {role: InMemory(update.roles[other].read().T.astype(np.float32), "F32") for role, other in ("AB", "BA")}
    return replace(update, name=name, roles=swapped, transposed=False, embedding=False)


def _tuned_weight(pair: Pair) -> Stored:
    """The tuned weight as the base stores the parameter, in float32 where the tuned side gives ΔW alone."""
    if pair.tuned is not None and pair.update is None:
        return pair.tuned
    matrix = base_matrix(pair).reshape(pair.shape) + difference(pair).matrix.reshape(pair.shape)
    return InMemory(np.ascontiguousarray(matrix.T if pair.transposed else matrix, np.float32), "F32")
