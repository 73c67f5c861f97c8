"""The run over all modules of all pairs, one module at a time."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lorascope.analyses.compare.image_modules import NOT_CUT
from lorascope.analyses.compare.inputs import MATCHING, Modules, align, labels, source, source_path
from lorascope.analyses.compare.matrices import MAX_ROW_ENTRIES, SINGLE_FROM, Matrices, Sums, cluster, groups
from lorascope.analyses.compare.pair import compare
from lorascope.analyses.compare.result import CompareResult, Pair
from lorascope.analyses.compare.seeds import contrast
from lorascope.analyses.compare.summary import rates, summary_of, summary_of_matrices
from lorascope.analyses.subspaces import DIRECTIONS, Subspaces, read
from lorascope.analyses.toolkit import Row
from lorascope.architectures import depth, module_types
from lorascope.errors import InputError, preview
from lorascope.linalg.blas import one_thread
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter, Skipped
from lorascope.weights.checkpoint import Checkpoint

MAX_RECORDS = 4000  # modules × pairs that are recorded one by one; beyond, matrices alone
MAX_WORK = 4e13  # twice the multiplications in the Gram matrices: minutes; beyond, evenly chosen modules of each type


def run(
    adapters: Sequence[Adapter | Checkpoint],
    *,
    base: Checkpoint | None = None,
    modules: str | None = None,
    directions: int = DIRECTIONS,
    all_modules: bool = False,
    named_groups: Sequence[str] | None = None,
    progress: Callable[[list[str]], Any] = iter,
) -> CompareResult:
    """Compare every pair, one module at a time: memory is that of one module of all adapters.

    Args:
        adapters: two or more, as `weights.io.read` gives them; or full models, with `base`.
        base: the model they belong to; kinds whose ΔW depends on W need it.
        modules: a regular expression; only modules whose name matches are compared.
        directions: how many leading directions make the subspace of an update that is not low rank.
        all_modules: measure all modules even where that takes long; else evenly chosen ones of each type.
        named_groups: the group of each adapter (its task, say), to compare agreement within and between groups.
        progress: wraps the list of modules, such as a progress bar.

    Raises:
        InputError: fewer than two adapters, no module in common, a full model without the base, or `modules` is not a
            regular expression.
    """
    if len(adapters) < 2:
        raise InputError("a comparison takes two adapters or more", found=len(adapters))
    aligned, named = align(adapters, base, modules), labels(adapters)
    common = [name for name, updates in aligned.names.items() if len(updates) > 1]
    if not common:
        raise InputError(
            "the adapters have no module in common",
            found="; ".join(
                f"{label}: {preview([name for name, updates in aligned.names.items() if k in updates], 2) or 'none'}"
                for k, label in enumerate(named[:3])
            ),
            hint="names of other dialects are understood with --base" if aligned.names else None,
        )
    chosen = common if all_modules else _sampled(aligned, common)
    comparison = _Comparison(aligned, named, base, directions, detailed=_detailed(len(adapters), len(common)))
    for name in progress(chosen):
        comparison.measure(name)
    result = comparison.result(adapters, (len(chosen), len(common)))
    return result if named_groups is None else replace(result, by_label=contrast(result.matrices, named_groups))


def _detailed(adapters: int, modules: int) -> bool:
    return adapters == 2 or adapters * (adapters - 1) // 2 * modules <= MAX_RECORDS


def _sampled(aligned: Modules, common: list[str]) -> list[str]:
    """All modules, or so many of each type, evenly chosen by depth, that the Gram matrices take minutes."""

    def work(name: str) -> float:
        ranks = sizes = 0
        for update in aligned.names[name].values():
            if update.needs_base or update.rank is None:
                return 0.0
            ranks, sizes = ranks + update.rank, sum(update.shape)
        return float(ranks) ** 2 * sizes

    total = sum(map(work, common))
    if total <= MAX_WORK:
        return common
    by_type: dict[str, list[str]] = {}
    for name, type in module_types(common).items():
        by_type.setdefault(type, []).append(name)
    kept: set[str] = set()
    for members in by_type.values():
        count = max(1, int(len(members) * MAX_WORK / total))
        kept |= {members[round(k)] for k in np.linspace(0, len(members) - 1, count)}
    return [name for name in common if name in kept]


class _Comparison:
    """What a run gathers, module by module."""

    def __init__(self, aligned: Modules, named: list[str], base: Checkpoint | None, directions: int, detailed: bool):
        self.aligned, self.named, self.base, self.directions = aligned, named, base, directions
        self.types = module_types(aligned.names)
        self.sums = Sums(len(named))
        self.records: dict[tuple[int, int], list[Row]] | None = {} if detailed else None
        self.skipped = [replace(item, adapter=named[k]) for k, items in aligned.skipped.items() for item in items]
        self.misfits: list[Skipped] = []  # of another shape than the first adapter's

    def measure(self, name: str) -> None:
        """Measures one module of all adapters, and drops what it read."""
        with one_thread():
            spaces = self._read(name)
            if self.records is not None:
                about = {"name": name, "type": self.types[name], "depth": depth(name)}
                for i, j in itertools.combinations(sorted(spaces), 2):
                    self.records.setdefault((i, j), []).append(about | compare(spaces[i], spaces[j]))
        if len(self.named) < SINGLE_FROM:
            with one_thread():
                self.sums.module(spaces)
        else:
            self.sums.module(spaces)  # large products, which more threads help

    def _read(self, name: str) -> dict[int, Subspaces]:
        """The subspaces of one module by the index of the adapter, all of one shape."""
        spaces: dict[int, Subspaces] = {}
        for index, update in self.aligned.names[name].items():
            one = self._subspaces(update)
            if isinstance(one, str):
                self.skipped.append(Skipped(name, one, adapter=self.named[index]))
                continue
            first = next(iter(spaces.values()), one).shape
            if one.shape != first:
                shape, expected = ("×".join(map(str, each)) for each in (one.shape, first))
                reason = f"its shape is {shape}, and the first adapter's is {expected}"
                self.misfits.append(Skipped(name, reason, MATCHING, self.named[index]))
                continue
            spaces[index] = one if len(self.named) < SINGLE_FROM else one.single(MAX_ROW_ENTRIES)
        return spaces

    def _subspaces(self, update: Update) -> Subspaces | str:
        stored = self.base.lookup(update) if update.needs_base and self.base is not None else None
        if isinstance(stored, str):
            return f"ΔW of the kind {update.kind} depends on W: {stored}"
        return read(update, stored, self.directions, with_a=self.records is not None)

    def result(self, adapters: Sequence[Adapter | Checkpoint], sampled: tuple[int, int]) -> CompareResult:
        matrices = self.sums.matrices()
        pairs = tuple(self._pairs(matrices))
        if not any(pair.summary["modules"] for pair in pairs):
            reasons = [item.reason for item in self.skipped if item.name in self.aligned.names]
            reasons += [item.reason for item in self.misfits]
            raise InputError("no module could be compared", found="; ".join(dict.fromkeys(reasons)))
        return CompareResult(
            adapters=tuple({"label": label, **source(one)} for label, one in zip(self.named, adapters, strict=True)),
            pairs=pairs,
            matrices=matrices,
            clusters=cluster(matrices),
            groups=tuple(tuple(group) for group in groups(matrices)),
            skipped=(*self._one_sided(), *self.misfits, *self.skipped),
            base=source_path(self.base) if self.base is not None else None,
            sampled=sampled if sampled[0] < sampled[1] else None,
        )

    def _pairs(self, matrices: Matrices) -> Iterator[Pair]:
        for i, j in itertools.combinations(range(len(self.named)), 2):
            if self.records is None:
                yield Pair(i, j, None, summary_of_matrices(matrices, i, j))
            else:
                records = rates(self.records.get((i, j), []))
                yield Pair(i, j, tuple(records), summary_of(records, matrices, i, j))

    def _one_sided(self) -> Iterator[Skipped]:
        everyone = set(range(len(self.named)))
        for name, updates in self.aligned.names.items():
            if missing := sorted(everyone - updates.keys()):
                there, absent = (_listed([self.named[k] for k in each]) for each in (sorted(updates), missing))
                reasons = [note for update in updates.values() for note in update.notes if note.startswith(NOT_CUT)]
                yield Skipped(name, "; ".join([f"only in {there}; missing in {absent}", *reasons]), MATCHING)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
