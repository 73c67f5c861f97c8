"""The run over all modules of all pairs, and its frozen result."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

import lorascope
from lorascope.analyses.compare import findings as words
from lorascope.analyses.compare import page
from lorascope.analyses.compare.inputs import Modules, align, labels, source, source_path
from lorascope.analyses.compare.matrices import (
    MAX_ROW_ENTRIES,
    SINGLE_FROM,
    Matrices,
    Sums,
    cluster,
    groups,
    within_and_between,
)
from lorascope.analyses.compare.pair import Row, compare
from lorascope.analyses.compare.seeds import contrast
from lorascope.analyses.compare.side import DIRECTIONS, Side, read
from lorascope.analyses.compare.summary import rates, summary_of, summary_of_matrices
from lorascope.architectures import depth, module_types
from lorascope.blocks import Block, Finding
from lorascope.errors import InputError, preview
from lorascope.linalg.blas import one_thread
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter
from lorascope.weights.checkpoint import Checkpoint

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
MAX_RECORDS = 4000  # modules × pairs that are recorded one by one; beyond, matrices alone
MAX_WORK = 4e13  # twice the multiplications in the Gram matrices: minutes; beyond, evenly chosen modules of each type


@dataclass(frozen=True)
class Pair:
    """Two adapters: their indices, one record for each module (None where there are too many pairs), the summary."""

    a: int
    b: int
    modules: tuple[Row, ...] | None
    summary: Row


@dataclass(frozen=True)
class CompareResult:
    """What several adapters share.

    Attributes:
        adapters: label, path, hash, format and method of each.
        pairs: in the order of the adapters.
        unmatched: modules that some adapters do not have, or have in another shape.
        not_compared: what yields no subspace, and why.
        matrices: over all pairs.
        clusters: as `matrices.cluster` gives it; None below three adapters.
        groups: indices of the adapters that began from one A.
        sampled: how many of the modules were measured, and how many there are, where not all were.
        by_label: as `seeds.contrast` gives it, where the adapters' groups were named.
    """

    adapters: tuple[Row, ...]
    pairs: tuple[Pair, ...]
    unmatched: tuple[Row, ...]
    not_compared: tuple[Row, ...]
    matrices: Matrices
    clusters: Row | None
    groups: tuple[tuple[int, ...], ...]
    base: str | None = None
    sampled: tuple[int, int] | None = None
    by_label: Row | None = None

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        return words.findings(self)

    def label(self, index: int) -> str:
        return self.adapters[index]["label"]

    def table(self) -> "pd.DataFrame":
        """One row per module of a pair; one row per pair where modules were not recorded."""
        import pandas as pd

        return pd.DataFrame(self.flat_rows())

    def flat_rows(self) -> list[Row]:
        rows = []
        for pair in self.pairs:
            names = {"a": self.label(pair.a), "b": self.label(pair.b)}
            records = pair.modules if pair.modules is not None else (pair.summary,)
            rows += [names | _flat(record) for record in records]
        return rows

    def summary(self) -> Row:
        return {
            "adapters": len(self.adapters),
            "pairs": [
                {"a": self.label(pair.a), "b": self.label(pair.b), **pair.summary} for pair in self.pairs[:MAX_RECORDS]
            ],
            "groups": [[self.label(k) for k in group] for group in self.groups],
        }

    def to_json(self) -> Row:
        """The documented schema, version 1 (README, "JSON")."""
        return {
            "schema": SCHEMA,
            "lorascope": lorascope.__version__,
            "adapters": list(self.adapters),
            "base": self.base,
            "pairs": [self._record(pair) for pair in self.pairs],
            "unmatched": list(self.unmatched),
            "not_compared": list(self.not_compared),
            "sampled": {"measured": self.sampled[0], "of": self.sampled[1]} if self.sampled else None,
            "matrices": {key: _nested(values) for key, values in vars(self.matrices).items()},
            "clusters": self.clusters,
            "groups_by_initialisation": {
                "groups": [list(group) for group in self.groups],
                **within_and_between(self.matrices, self.groups),
            },
            "groups_by_label": self.by_label,
            "findings": [{"severity": f.severity, "module": f.module, "text": f.text} for f in self.findings],
        }

    def _record(self, pair: Pair) -> Row:
        modules = None if pair.modules is None else list(pair.modules)
        return {"a": self.label(pair.a), "b": self.label(pair.b), "modules": modules, "summary": pair.summary}

    def blocks(self) -> tuple[Block, ...]:
        return page.blocks(self)


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
        modules: a regular expression; only modules whose name it finds are compared.
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
    found = align(adapters, base, modules)
    named = labels(adapters)
    common = [name for name, updates in found.names.items() if len(updates) > 1]
    if not common:
        raise InputError(
            "the adapters have no module in common",
            found="; ".join(
                f"{label}: {preview(_names_of(found, k), 2) or 'none'}" for k, label in enumerate(named[:3])
            ),
            hint="names of other dialects are understood with --base",
        )
    chosen = common if all_modules else _sampled(found, common)
    run = _Run(found, named, base, directions, detailed=_detailed(len(adapters), len(common)))
    for name in progress(chosen):
        run.module(name)
    result = run.result(adapters, (len(chosen), len(common)))
    return result if named_groups is None else replace(result, by_label=contrast(result.matrices, named_groups))


def _names_of(found: Modules, index: int) -> list[str]:
    return [name for name, updates in found.names.items() if index in updates]


def _detailed(adapters: int, modules: int) -> bool:
    return adapters == 2 or adapters * (adapters - 1) // 2 * modules <= MAX_RECORDS


def _sampled(found: Modules, common: list[str]) -> list[str]:
    """All modules, or so many of each type, evenly chosen by depth, that the Gram matrices take minutes."""

    def work(name: str) -> float:
        ranks = sizes = 0
        for update in found.names[name].values():
            if update.needs_base or update.rank is None:
                return 0.0
            ranks, sizes = ranks + update.rank, sum(update.shape)
        return float(ranks) ** 2 * sizes

    total = sum(map(work, common))
    if total <= MAX_WORK:
        return common
    types = module_types(common)
    by_type: dict[str, list[str]] = {}
    for name in common:
        by_type.setdefault(types[name], []).append(name)
    kept: set[str] = set()
    for members in by_type.values():
        count = max(1, int(len(members) * MAX_WORK / total))
        kept |= {members[round(k)] for k in np.linspace(0, len(members) - 1, count)}
    return [name for name in common if name in kept]


class _Run:
    """What a run gathers, module by module."""

    def __init__(self, found: Modules, named: list[str], base: Checkpoint | None, directions: int, detailed: bool):
        self.found, self.named, self.base, self.directions = found, named, base, directions
        self.types = module_types(found.names)
        self.sums = Sums(len(named))
        self.records: dict[tuple[int, int], list[Row]] | None = {} if detailed else None
        self.not_compared: list[Row] = [
            {"adapter": named[k], "name": item.name, "reason": item.reason}
            for k, items in found.skipped.items()
            for item in items
        ]
        self.unmatched: list[Row] = []

    def module(self, name: str) -> None:
        """Measures one module of all adapters, and drops what it read."""
        with one_thread():
            sides = self._sides(name)
            for i, j in itertools.combinations(sorted(sides), 2) if self.records is not None else ():
                about = {"name": name, "type": self.types[name], "depth": depth(name)}
                self.records.setdefault((i, j), []).append(about | compare(sides[i], sides[j]))
        if len(self.named) < SINGLE_FROM:
            with one_thread():
                self.sums.module(sides)
        else:
            self.sums.module(sides)  # large products, which more threads help

    def _sides(self, name: str) -> dict[int, Side]:
        sides = {}
        for index, update in self.found.names[name].items():
            side = self._side(index, name, update)
            if side is not None:
                sides[index] = side if len(self.named) < SINGLE_FROM else side.single(MAX_ROW_ENTRIES)
        self._shapes(name, sides)
        return sides

    def _side(self, index: int, name: str, update: Update) -> Side | None:
        stored = self.base.lookup(update) if update.needs_base and self.base is not None else None
        side: Side | str
        if isinstance(stored, str):
            side = f"ΔW of a {update.kind} update depends on W: {stored}"
        else:
            side = read(update, stored, self.directions, with_a=self.records is not None)
        if isinstance(side, Side):
            return side
        self.not_compared.append({"adapter": self.named[index], "name": name, "reason": side})
        return None

    def _shapes(self, name: str, sides: dict[int, Side]) -> None:
        """Sets aside what has another shape than the first adapter's."""
        shapes = {index: side.shape for index, side in sides.items()}
        for index, shape in shapes.items():
            if shape != next(iter(shapes.values())):
                del sides[index]
                first = "×".join(map(str, next(iter(shapes.values()))))
                reason = f"its shape is {'×'.join(map(str, shape))}, and the first adapter's is {first}"
                self.unmatched.append({"name": name, "in": [self.named[index]], "reason": reason})

    def result(self, adapters: Sequence[Adapter | Checkpoint], sampled: tuple[int, int]) -> CompareResult:
        matrices = self.sums.matrices()
        pairs = tuple(self._pairs(matrices))
        if not any(pair.summary["modules"] for pair in pairs):
            reasons = [item["reason"] for item in self.not_compared if item["name"] in self.found.names]
            reasons += [item["reason"] for item in self.unmatched if "reason" in item]
            raise InputError("no module could be compared", found="; ".join(dict.fromkeys(reasons)))
        return CompareResult(
            adapters=tuple({"label": label, **source(one)} for label, one in zip(self.named, adapters, strict=True)),
            pairs=pairs,
            unmatched=(*self._one_sided(), *self.unmatched),
            not_compared=tuple(self.not_compared),
            matrices=matrices,
            clusters=cluster(matrices),
            groups=tuple(tuple(group) for group in groups(matrices)),
            base=source_path(self.base) if self.base is not None else None,
            sampled=sampled if sampled[0] < sampled[1] else None,
        )

    def _pairs(self, matrices: Matrices) -> Any:
        for i, j in itertools.combinations(range(len(self.named)), 2):
            if self.records is None:
                yield Pair(i, j, None, summary_of_matrices(matrices, i, j))
            else:
                records = rates(self.records.get((i, j), []))
                yield Pair(i, j, tuple(records), summary_of(records, matrices, i, j))

    def _one_sided(self) -> list[Row]:
        everyone = set(range(len(self.named)))
        return [
            {
                "name": name,
                "in": [self.named[k] for k in sorted(updates)],
                "missing_in": [self.named[k] for k in sorted(everyone - updates.keys())],
            }
            for name, updates in self.found.names.items()
            if len(updates) < len(self.named)
        ]


def _nested(values: np.ndarray) -> list[list[float | None]]:
    return [[float(f"{v:.6g}") if np.isfinite(v) else None for v in row] for row in values]


def _flat(record: Mapping[str, Any], prefix: str = "") -> Row:
    """Nested records with dotted keys; lists left out, but for shapes and pairs of numbers."""
    flat: Row = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        elif key in ("shape", "rank", "dims", "frobenius_norm", "kind"):
            flat[prefix + key] = "×".join(map(str, value)) if key in ("shape", "dims") else " | ".join(map(str, value))
        elif not isinstance(value, list):
            flat[prefix + key] = value
    return flat
