"""What a kind of update is measured by, and the run over all kinds that a file holds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lorascope.analyses import rules
from lorascope.analyses.adapter_updates import selected
from lorascope.analyses.base import Metric, Result, definitions
from lorascope.analyses.toolkit import BLANK_CELLS, Row, counted, depth_map, flat
from lorascope.architectures import depth, module_types
from lorascope.blocks import Block, Definition, Definitions, Finding, Findings, Heading, Text
from lorascope.linalg.blas import one_thread
from lorascope.registry import Registry
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter, Skipped, Source

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint


TRAINED = "Check that these were trainable, and that the file was saved after training"


@dataclass(frozen=True)
class Subject:
    """What one kind's measurement is given.

    Attributes:
        adapter: the whole file, for its settings and notes.
        updates: the updates to measure, all of one kind; of a member named after a setting, all updates.
        types: the type of each module, by name.
        base: the base model, where one was given.
    """

    adapter: Adapter
    updates: tuple[Update, ...]
    types: Mapping[str, str]
    base: "Checkpoint | None" = None

    def setting(self, *names: str) -> Any:
        """The first of these settings that the file has; None where it has none of them."""
        return next((self.adapter.settings[name] for name in names if name in self.adapter.settings), None)

    def weight(self, update: Update) -> np.ndarray | None:
        """W as (d_out, d_in) in float64; None where there is no base, or it cannot give that weight."""
        stored = self.base.lookup(update) if self.base is not None else None
        return None if stored is None or isinstance(stored, str) else stored.read()

    def row(self, name: str) -> Row:
        """The columns that the row of every module begins with."""
        return {"name": name, "type": self.types.get(name, name), "depth": depth(name)}


@dataclass(frozen=True)
class Section:
    """What was measured of one kind: data.

    Attributes:
        rows: one for each module, JSON types only; each begins with name, type and depth.
        summary: the few numbers that answer the question, each with its random baseline; JSON types only.
        extra: what only findings and figures need.
    """

    rows: tuple[Row, ...]
    summary: Row
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class KindMetrics:
    """How one kind is measured, told and drawn.

    Attributes:
        title: the method's name, as people write it.
        measure: the numbers.
        findings: the same in words.
        blocks: tables and figures, in reading order.
        metrics: what the columns show.
        more_definitions: of what is no column.
    """

    title: str
    measure: Callable[[Subject], Section]
    findings: Callable[[Section], Sequence[Finding]]
    blocks: Callable[[Section], Sequence[Block]]
    metrics: tuple[Metric, ...]
    more_definitions: tuple[Definition, ...] = ()


# A member is registered under the kind of update that it measures, or under the setting that holds what it shows.
kind_metrics: Registry[KindMetrics] = Registry("method-specific analysis", "lorascope.analyses.method_specific")


@dataclass(frozen=True, repr=False)
class MethodSpecificResult(Result):
    """What was measured of each kind in one adapter.

    Attributes:
        sections: by the name under which the kind's file is registered; empty for a plain LoRA.
        kinds: how many modules there are of each kind.
        skipped: what is too large to be read.
    """

    analysis: ClassVar[str] = "method_specific"

    sections: Mapping[str, Section]
    kinds: Mapping[str, int]
    source: Source
    skipped: tuple[Skipped, ...] = ()

    @property
    def rows(self) -> tuple[Row, ...]:
        """One for each module of a section, with the section's name."""
        return tuple({"section": name, **row} for name, section in self.sections.items() for row in section.rows)

    def flat_rows(self) -> list[Row]:
        """The rows with dotted keys; for a plain LoRA, one for each kind."""
        rows = [flat({key: v for key, v in row.items() if not isinstance(v, list)}) for row in self.rows]
        return rows or [{"kind": kind, "modules": count} for kind, count in self.kinds.items()]

    def summary(self) -> Row:
        return {name: section.summary for name, section in self.sections.items()}

    def by_section(self) -> Row:
        """By section: its summary, its modules and its findings. The key `method_specific` of `analyze --json`."""
        return {
            name: {
                "summary": section.summary,
                "modules": list(section.rows),
                "findings": [rules.record(each) for each in kind_metrics.get(name).findings(section)],
            }
            for name, section in self.sections.items()
        }

    def record(self) -> Row:
        return {"source": self.source.record(), "kinds": dict(self.kinds), "method_specific": self.by_section()}


def run(adapter: Adapter, *, base: "Checkpoint | None" = None, modules: str | None = None) -> MethodSpecificResult:
    """Measure every kind in `adapter`, and every setting that has a member, by its own metrics.

    Args:
        adapter: as `weights.io.read` gives it.
        base: the model it belongs to; DoRA's changes need it.
        modules: a regular expression; only modules whose name it matches are measured.

    Raises:
        InputError: `modules` is not a regular expression, or matches nothing.
    """
    chosen, _ = selected(adapter, base, modules)
    updates = tuple(update for update in chosen if adapter.updates.get(update.name) is update)
    types = module_types(update.name for update in updates)
    kinds: dict[str, int] = {}
    for update in updates:
        kinds[update.kind] = kinds.get(update.kind, 0) + 1
    too_large = {update.name: reason for update in updates if (reason := update.excess()) is not None}
    sections = {}
    with one_thread(), np.errstate(over="ignore", invalid="ignore"):
        for name in kind_metrics.names():
            of_kind = (u for u in updates if u.kind == name or name in adapter.settings)
            measured = tuple(u for u in of_kind if u.name not in too_large)
            if measured:
                sections[name] = kind_metrics.get(name).measure(Subject(adapter, measured, types, base))
    skipped = tuple(Skipped(name, reason) for name, reason in too_large.items())
    return MethodSpecificResult(sections, kinds, adapter.source, skipped)


def findings(result: MethodSpecificResult) -> list[Finding]:
    return [each for name, section in result.sections.items() for each in kind_metrics.get(name).findings(section)]


def heading(result: MethodSpecificResult) -> tuple[str, str]:
    kinds = ", ".join(f"{count} {kind}" for kind, count in result.kinds.items())
    titles = ", ".join(kind_metrics.get(name).title for name in result.sections)
    return f"{titles or 'Method'} details", f"modules: {kinds or 'none'}"


def sections(result: MethodSpecificResult) -> tuple[Block, ...]:
    """A section for each kind, without the definitions; nothing for a plain LoRA."""
    made: list[Block] = []
    for name, section in result.sections.items():
        kind = kind_metrics.get(name)
        made += [Heading(f"{kind.title} details"), Findings(tuple(kind.findings(section)), title="")]
        made += kind.blocks(section)
    return tuple(made)


def definitions_of(result: MethodSpecificResult) -> tuple[Definition, ...]:
    """What the sections' tables and figures show."""
    kinds = [kind_metrics.get(name) for name in result.sections]
    return tuple(each for kind in kinds for each in (*definitions(kind.metrics), *kind.more_definitions))


def blocks(result: MethodSpecificResult) -> tuple[Block, ...]:
    """A section for each kind; for a plain LoRA, that there is none."""
    if not result.sections:
        kinds = ", ".join(f"{count} {kind}" for kind, count in result.kinds.items())
        return (Text(f"No method-specific metrics for these updates ({kinds}): the spectrum has all there is."),)
    return (*sections(result), Definitions(definitions_of(result), where="page"))


# --- for the kinds ---------------------------------------------------------------------------------------------------


def unchanged(role: str, zero: Sequence[Row], rows: Sequence[Row]) -> Finding:
    """That a trained role is zero in some modules, or in all."""
    rule, names = rules.NO_CHANGE if len(zero) == len(rows) else rules.UNCHANGED_MODULES, [row["name"] for row in zero]
    they = "it changes nothing" if len(zero) == 1 else "they change nothing"
    text = f"{role} is zero in {counted(len(zero), len(rows))}: {they}"
    return rule.finding(text, modules=tuple(names), action=TRAINED)


def maps(title: str, rows: Sequence[Row], metrics: Sequence[Metric], caption: str = "") -> list[Block]:
    """The metrics by depth and module type, where the rows have two depths or more."""
    drawn = depth_map(rows, metrics, title=title, caption=f"{caption} {BLANK_CELLS}".strip())
    return [] if drawn is None else [drawn]


def as_float(metric: Metric) -> Metric:
    """An integer metric where its median is shown."""
    return replace(metric, unit="float")
