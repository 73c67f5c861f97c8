"""The run over all pairs of parameters, one ΔW in memory at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.analyses.delta import extract as extraction
from lorascope.analyses.delta import model
from lorascope.analyses.delta.matrix import MatrixDelta, VectorDelta, measure, measure_vector, threads_for
from lorascope.analyses.delta.result import DeltaResult, Side
from lorascope.analyses.delta.state import keeping
from lorascope.architectures import depth, module_types
from lorascope.errors import InputError, preview
from lorascope.linalg.arrays import Array
from lorascope.patterns import Pattern
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter, Skipped
from lorascope.weights.checkpoint import Checkpoint
from lorascope.weights.delta import Pair, difference, match


def run(
    base: Checkpoint,
    tuned: Checkpoint | Adapter,
    *,
    adapters: Sequence[Adapter] = (),
    top: int | None = None,
    modules: str | None = None,
    extract: int | None = None,
    state: Path | None = None,
    place: Callable[[np.ndarray], Array] = lambda matrix: matrix,
    progress: Callable[[list[Pair]], Any] = iter,
) -> DeltaResult:
    """Measure tuned − base, matrix by matrix: memory is that of the largest ΔW in float64, whatever the model's size.

    Args:
        base: the checkpoint that the tuning started from.
        tuned: the tuned checkpoint, or an adapter whose updates are taken for ΔW.
        adapters: trained adapters to set beside ΔW.
        top: compute this many leading singular values only, by randomised iteration.
        modules: a regular expression; only parameters whose name it finds are measured.
        extract: also the best adapter of this rank, in the result's `extracted`.
        state: a folder to keep finished parameters in, and to go on from; removed in the end.
        place: puts an array where it is to be decomposed, such as on a GPU.
        progress: wraps the list of pairs, such as a progress bar.

    Raises:
        InputError: the two have nothing in common, `modules` is no regular expression or finds nothing, or `extract`
            is not positive.
    """
    if extract is not None and extract < 1:
        raise InputError("cannot extract an adapter of that rank", found=extract, expected="1 or more")
    matched = match(base, tuned)
    pairs = selected(matched.pairs, modules)
    beside = _Beside(base, adapters)
    tuned_hash = tuned.source.sha256 if isinstance(tuned, Adapter) else tuned.sha256()
    hashes = {"base": base.sha256(), "tuned": tuned_hash, "adapters": [a.source.sha256 for a in adapters]}
    types = module_types(pair.name for pair in pairs)
    found: dict[str, MatrixDelta | VectorDelta] = {}
    factors: dict[str, Mapping[str, np.ndarray]] = {}
    with keeping(state, {**hashes, "top": top, "extract": extract}) as kept:
        for pair in progress(pairs):
            name, mine = pair.name, None
            if kept is not None and name in kept.done:
                found[name], mine = kept.done[name], kept.factors(name)
            else:
                found[name], mine = _one(pair, types[name], beside, top, extract, place)
                if kept is not None:
                    kept.add(name, found[name], mine)
            if mine is not None:
                factors[name] = mine
        if kept is not None:
            kept.remove()
    further = {p.name for p in pairs if isinstance(tuned, Checkpoint) and model.is_shared_further(base, p)}
    left_out = [] if extract is None else _left_out(pairs, found, further)
    halves = model.halves(base, matched.pairs, matched.unmatched) if isinstance(tuned, Checkpoint) else {}
    return DeltaResult(
        tuple(each for each in found.values() if isinstance(each, MatrixDelta)),
        tuple(each for each in found.values() if isinstance(each, VectorDelta)),
        Side(str(base.path), hashes["base"]),
        Side(tuned.source.path, tuned_hash, notes=tuned.notes)
        if isinstance(tuned, Adapter)
        else Side(str(tuned.path), tuned_hash),
        tuple(Side(a.source.path, a.source.sha256, label, a.notes) for label, a in beside.labels.items()),
        (*matched.unmatched, *beside.unmatched(matched.pairs)),
        top,
        extract,
        tuple(left_out),
        None if extract is None else _extracted(base, pairs, _without(factors, further), extract, halves),
    )


def _without(factors: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: values for name, values in factors.items() if name not in names}


def _extracted(
    base: Checkpoint,
    pairs: Sequence[Pair],
    factors: Mapping[str, Mapping[str, np.ndarray]],
    rank: int,
    halves: Mapping[str, str],
) -> Adapter:
    by_name = {pair.name: pair for pair in pairs}
    return extraction.adapter_of(by_name, factors, rank, halves, model.task_type(base.config))


def selected(pairs: Sequence[Pair], pattern: str | None) -> list[Pair]:
    """The pairs whose name `pattern` finds. InputError where it is no regular expression, or finds none."""
    if pattern is None:
        return list(pairs)
    wanted = Pattern(pattern, "--modules")
    chosen = [pair for pair in pairs if wanted.search(pair.name)]
    if not chosen:
        names = preview(pair.name for pair in pairs)
        raise InputError(f"--modules {pattern!r} matches none of the {len(pairs)} parameters", found=names)
    return chosen


def _one(
    pair: Pair,
    type: str,
    beside: "_Beside",
    top: int | None,
    extract: int | None,
    place: Callable[[np.ndarray], Array],
) -> tuple[MatrixDelta | VectorDelta, dict[str, np.ndarray] | None]:
    """One parameter measured, and its factors where they are asked for and there are any."""
    change = difference(pair)
    if pair.is_vector:
        return measure_vector(pair, change, type=type, depth=depth(pair.name)), None
    mine = None
    changed = not change.non_finite and bool(np.any(change.matrix))
    if extract is not None and changed and extraction.why_not(pair) is None:
        with threads_for(change.matrix):
            mine = extraction.factors(place(change.matrix), extract, top)
    deltas, notes = beside.of(pair, change.matrix.shape) if changed else ({}, ())
    change = replace(change, notes=(*change.notes, *notes))
    measured = measure(pair, change, type=type, depth=depth(pair.name), top=top, adapters=deltas, place=place)
    return measured, mine


def _left_out(
    pairs: Sequence[Pair], found: Mapping[str, MatrixDelta | VectorDelta], further: set[str]
) -> list[Skipped]:
    """What changed and is not in the extracted adapter."""
    left = []
    for pair in pairs:
        record, reason = found[pair.name], extraction.why_not(pair)
        if pair.name in further:
            reason = "its weight is shared by other layers, which a LoRA on it alone would not change"
        size = record.change_norm if isinstance(record, VectorDelta) else record.frobenius_norm
        if record.non_finite:
            left.append(Skipped(pair.name, "not finite"))
        elif reason is not None and size:
            left.append(Skipped(pair.name, reason))
    return left


REPLICAS = "layer_replication"


@dataclass
class _Beside:
    """The adapters to set beside ΔW, their updates by the base's parameters."""

    base: Checkpoint
    adapters: Sequence[Adapter]
    labels: dict[str, Adapter] = field(init=False)

    def __post_init__(self) -> None:
        self.labels = {}
        for adapter in self.adapters:
            name = "/".join(Path(adapter.source.path).parts[-2:]) or adapter.source.format
            number = sum(label.split(" #")[0] == name for label in self.labels)
            self.labels[f"{name} #{number + 1}" if number else name] = adapter
        self._updates: dict[str, dict[tuple[str | None, int | None], list[Update]]] = {}
        for label, adapter in self.labels.items():
            mine = self._updates.setdefault(label, {})
            for update in adapter.updates.values():
                key = (self.base.resolve(update.base_weight or update.name), update.expert)
                mine.setdefault(key, []).append(update)

    def of(self, pair: Pair, shape: tuple[int, ...]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """What each adapter adds to this parameter, by label; and why one that names it could not be used."""
        found, notes = {}, []
        for label, updates in self._updates.items():
            own = updates.get((pair.parameter, pair.expert), [])
            if len(own) > 1:
                notes.append(f"{label} has {len(own)} updates of this weight ({REPLICAS}), which no one ΔW stands for")
            if len(own) != 1:
                continue
            (update,) = own
            weight = self.base.lookup(update) if update.needs_base else None
            if isinstance(weight, str):
                notes.append(f"{label}: {weight}")
                continue
            delta = update.delta(weight.read() if weight is not None else None)
            if tuple(delta.shape) == tuple(shape):
                found[label] = delta
            else:
                notes.append(f"{label} has another shape here, {tuple(delta.shape)}")
        return found, tuple(notes)

    def unmatched(self, pairs: Sequence[Pair]) -> list[Skipped]:
        """Modules of the adapters that no pair is about."""
        there = {(pair.parameter, pair.expert) for pair in pairs}
        absent = [
            Skipped(update.name, f"adapted by {label}; no such pair of weights")
            for label, updates in self._updates.items()
            for key, own in updates.items()
            if key not in there
            for update in own
        ]
        several = [
            Skipped(update.name, f"adapted by {label}; one of several updates of one weight ({REPLICAS})")
            for label, updates in self._updates.items()
            for key, own in updates.items()
            if key in there and len(own) > 1
            for update in own
        ]
        return absent + several
