"""The run over all pairs of parameters, one ΔW in memory at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.analyses.delta import model
from lorascope.analyses.delta.adapters import Adapters
from lorascope.analyses.delta.extract import adapter_of, factors_of, why_not
from lorascope.analyses.delta.matrix import MatrixDelta, VectorDelta, measure, measure_vector, threads_for
from lorascope.analyses.delta.result import EXTRACTION, DeltaResult, Input
from lorascope.analyses.delta.state import State, keeping
from lorascope.analyses.toolkit import choose
from lorascope.architectures import depth, module_types
from lorascope.errors import InputError
from lorascope.linalg.arrays import Array
from lorascope.weights.adapter import Adapter, Skipped
from lorascope.weights.checkpoint import Checkpoint
from lorascope.weights.delta import Matched, Pair, difference, match

Done = tuple[MatrixDelta | VectorDelta, Mapping[str, np.ndarray] | None]  # a record, and the factors to extract


def run(  # what is read, what is computed, where it is kept
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
        adapters: trained adapters to compare with ΔW.
        top: compute this many leading singular values only, by randomised iteration.
        modules: a regular expression; only parameters whose name matches are measured.
        extract: also the best adapter of this rank, in the result's `extracted`.
        state: a folder to keep finished parameters in, and to resume from; removed at the end.
        place: puts an array where it is to be decomposed, such as on a GPU.
        progress: wraps the list of pairs, such as a progress bar.

    Raises:
        InputError: the two have nothing in common, `modules` is not a regular expression or matches nothing, or
            `extract` is not positive.
    """
    if extract is not None and extract < 1:
        raise InputError("cannot extract an adapter of that rank", found=extract, expected="1 or more")
    matched = match(base, tuned)
    pairs = choose(matched.pairs, modules, lambda pair: pair.name)
    others = Adapters(base, adapters)
    inputs = _input(base), _input(tuned), tuple(_input(a, label) for label, a in others.labels.items())
    key = {"base": inputs[0].sha256, "tuned": inputs[1].sha256, "adapters": [each.sha256 for each in inputs[2]]}
    types = module_types(pair.name for pair in pairs)
    with keeping(state, {**key, "top": top, "extract": extract}) as kept:
        done = _all(progress(pairs), kept, lambda pair: _measured(pair, types[pair.name], others, top, extract, place))
    skipped, extracted = [*matched.skipped, *others.skipped(matched.pairs)], None
    if extract is not None:
        extracted, left = _extracted(base, matched, pairs, done, extract, whole=isinstance(tuned, Checkpoint))
        skipped += left
    matrices = tuple(each for each, _ in done.values() if isinstance(each, MatrixDelta))
    vectors = tuple(each for each, _ in done.values() if isinstance(each, VectorDelta))
    return DeltaResult(matrices, vectors, *inputs, tuple(skipped), top, extract, extracted)


def _input(one: Checkpoint | Adapter, label: str = "") -> Input:
    if isinstance(one, Checkpoint):
        return Input(str(one.path), one.sha256())
    return Input(one.source.path, one.source.sha256, label, one.notes)


def _all(pairs: Iterable[Pair], kept: State | None, measured: Callable[[Pair], Done]) -> dict[str, Done]:
    """What is kept, or measured and kept, of every pair, by name."""
    done: dict[str, Done] = {}
    for pair in pairs:
        name = pair.name
        if kept is not None and name in kept.done:
            done[name] = kept.done[name], kept.factors(name)
            continue
        done[name] = measured(pair)
        if kept is not None:
            kept.add(name, *done[name])
    if kept is not None:
        kept.remove()
    return done


def _measured(
    pair: Pair,
    type: str,
    others: Adapters,
    top: int | None,
    extract: int | None,
    place: Callable[[np.ndarray], Array],
) -> Done:
    """One parameter's record, and the factors of its best low-rank update where there are any to extract."""
    change = difference(pair)
    if pair.is_vector:
        return measure_vector(pair, change, type=type, depth=depth(pair.name)), None
    factors = None
    changed = not change.non_finite and bool(np.any(change.matrix))
    if extract is not None and changed and why_not(pair) is None:
        with threads_for(change.matrix):
            factors = factors_of(place(change.matrix), extract, top)
    deltas, notes = others.of(pair) if changed else ({}, ())
    change = replace(change, notes=(*change.notes, *notes))
    record = measure(pair, change, type=type, depth=depth(pair.name), top=top, adapters=deltas, place=place)
    return record, factors


def _extracted(
    base: Checkpoint, matched: Matched, pairs: Sequence[Pair], done: Mapping[str, Done], rank: int, whole: bool
) -> tuple[Adapter, list[Skipped]]:
    """The best adapter of a rank, and what changed and is not in it.

    Args:
        whole: whether the tuned side is a checkpoint, so that what shares a weight has changed with it.
    """
    shared = {pair.name for pair in pairs if whole and model.is_shared_further(base, pair)}
    tied = model.tied_modules(base, matched.pairs, matched.skipped) if whole else {}
    task = model.task_type(base.config)
    of_head = model.task_head(base, task)
    head = {pair.name: pair for pair in pairs if pair.parameter in of_head}
    if {pair.parameter for pair in head.values()} != of_head:  # PEFT would ask for the rest of it
        task, head = None, {}
    left = list(_not_extracted([pair for pair in pairs if pair.name not in head], done, shared))
    factors = {n: each for n, (_, each) in done.items() if each is not None and n not in shared and n not in head}
    by_name = {pair.name: pair for pair in pairs}
    return adapter_of(base, by_name, factors, rank, tied, task, head.values()), left


def _not_extracted(pairs: Sequence[Pair], done: Mapping[str, Done], shared: set[str]) -> Iterator[Skipped]:
    """What changed and is not in the extracted adapter."""
    for pair in pairs:
        (record, _), reason = done[pair.name], why_not(pair)
        if pair.name in shared:
            reason = "its weight is shared by other layers, which a LoRA on it alone would not change"
        size = record.change_norm if isinstance(record, VectorDelta) else record.frobenius_norm
        if record.non_finite:
            yield Skipped(pair.name, "not finite", EXTRACTION)
        elif reason is not None and size:
            yield Skipped(pair.name, reason, EXTRACTION)
