"""What every analysis is made of: metrics declared once, a result that is data, and the record that ties it to words.

An analysis depends in one direction: measure → rows → findings → blocks. Its `Result` holds rows and what was skipped;
how they are told and drawn is in its `Analysis`, under the same name in the registry, and the result finds it there.
"""

import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import lorascope
from lorascope.analyses import rules
from lorascope.analyses.toolkit import Row, flat, in_order, problems
from lorascope.blocks import Block, Column, Definition, Finding, Heatmap, Lines, Page, Summary
from lorascope.errors import InputError
from lorascope.registry import Registry
from lorascope.weights.adapter import Skipped

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

SCHEMA = 2
SCHEMA_NOTE = (
    "schema 2 has one key for what was skipped, `skipped`, and one spelling of every metric; schema 1 had"
    " not_analysed, set_aside, unmatched, not_compared and left_out"
)
Takes = Literal["adapter", "adapter and base", "adapters", "checkpoints", "runs", "run and texts"]


@dataclass(frozen=True)
class Metric:
    """One number that an analysis measures. Columns, `--sort`, CSV, JSON, definitions and heatmaps all read this.

    Attributes:
        key: its key in rows, JSON, CSV and `--sort`, such as `energy_rank_0.95`; dotted into nested records.
        title: the heading of its column.
        unit: how it is shown; of percent, 1.0 is 100 %.
        help: what it is, in one line.
        formula: as the definitions print it; without one it is in no definition.
        source: paper and section of the formula.
        null: the key of its random baseline in the same row, where there is one.
        term: its name in the definitions, the title by default; without a formula, the term that defines it.
        meaning: what it says, in one plain sentence.
    """

    key: str
    title: str
    unit: Literal["float", "int", "percent", "text"] = "float"
    help: str = ""
    formula: str = ""
    source: str = ""
    null: str | None = None
    term: str = ""
    meaning: str = ""

    def column(self, digits: int = 3) -> Column:
        return Column(self.key, self.title, self.unit, digits, self.help)

    def definition(self) -> Definition | None:
        if not self.formula:
            return None
        return Definition(self.term or self.title, self.formula, self.source, self.meaning, (self.key,))


def definitions(metrics: Sequence[Metric]) -> tuple[Definition, ...]:
    """The definitions of those metrics that have a formula, each term once, with the keys of all metrics of the
    term."""
    found: dict[str, Definition] = {}
    for each in (d for metric in metrics if (d := metric.definition()) is not None):
        before = found.get(each.term, each)
        found[each.term] = replace(each, keys=tuple(dict.fromkeys((*before.keys, *each.keys))),
                                   meaning=before.meaning or each.meaning)  # fmt: skip
    for metric in metrics:
        if not metric.formula and (named := found.get(metric.term)) is not None:
            found[metric.term] = replace(named, keys=(*named.keys, metric.key))
    return tuple(found.values())


def metric_to_sort_by(metrics: Sequence[Metric], key: str) -> Metric:
    """The metric that `--sort` names by its key; where it is clear, the key's last part is enough.

    Raises:
        InputError: there is none of that key.
    """
    matching = [m for m in metrics if m.key == key] or [m for m in metrics if m.key.endswith(f".{key}")]
    if len(matching) != 1:
        raise InputError(f"--sort {key!r} is not a metric", expected=f"one of {', '.join(m.key for m in metrics)}")
    return matching[0]


class Result:
    """What an analysis found: frozen data that does not know how it is drawn.

    A subclass is `@dataclass(frozen=True, repr=False)`, sets `analysis` and has `rows` (one frozen record or dictionary
    for each thing measured) and `skipped`. A number that could not be computed is None, never NaN.
    """

    analysis: ClassVar[str]
    if TYPE_CHECKING:  # a field or a property of the subclass, as fits

        @property
        def rows(self) -> tuple[Any, ...]: ...
        @property
        def skipped(self) -> tuple[Skipped, ...]: ...

    def skipped_in(self, stage: str = "") -> tuple[Skipped, ...]:
        """Those of `skipped` of one stage of the work; without one, of the first, which has no name."""
        return tuple(item for item in self.skipped if item.stage == stage)

    def summary(self) -> Row:
        """The few numbers that answer the question. JSON types only."""
        raise NotImplementedError

    def record(self) -> Row:
        """What `to_json` says besides the schema, what was skipped and the findings. JSON types only."""
        raise NotImplementedError

    def records(self) -> list[Row]:
        """The rows as dictionaries of JSON types, as `to_json` has them."""
        return [dict(row) if isinstance(row, Mapping) else dict(vars(row)) for row in self.rows]

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """What a careful colleague would point out: errors, then warnings, then notes."""
        return in_order(rules.with_rules(self._analysis.findings(self), self.analysis))

    def flat_rows(self) -> list[Row]:
        """The rows for a table: nested records with dotted keys, lists left out."""
        return [flat(row) for row in self.records()]

    def table(self) -> "pd.DataFrame":
        """Tidy: one row for each thing measured."""
        import pandas as pd

        return pd.DataFrame(self.flat_rows())

    def to_json(self) -> Row:
        """Everything, JSON types only: the documented schema, version 2."""
        return {
            "schema": SCHEMA,
            "schema_note": SCHEMA_NOTE,
            "lorascope": lorascope.__version__,
            "analysis": self.analysis,
            **self.record(),
            "skipped": [item.record() for item in self.skipped],
            "findings": [rules.record(finding) for finding in self.findings],
        }

    def blocks(self, **options: Any) -> tuple[Block, ...]:
        """The page and the terminal summary, in reading order; `options` are those of the analysis's `blocks`."""
        return self._analysis.blocks(self, **options)

    def page(self, command: Sequence[str] | None = None, **options: Any) -> Page:
        """The whole page. `command`: the words of the command line that made it, where one did."""
        import numpy

        title, summary = self._analysis.heading(self)
        blocks = self.blocks(**options)
        if not any(isinstance(block, Summary) for block in blocks) and (found := problems(self.findings)):
            summary = f"{found}. {summary}"
        made_by: tuple[tuple[str, str], ...] = (("command", shlex.join(command)),) if command else ()
        made_by += (
            ("lorascope", lorascope.__version__),
            ("python", platform.python_version()),
            ("numpy", numpy.__version__),
        )
        if torch := sys.modules.get("torch"):  # where a model was evaluated
            made_by += (("torch", torch.__version__),)
        kicker = f"lorascope {self._analysis.command}"
        return Page(title, blocks, kicker=kicker, summary=summary, made_by=made_by)

    def to_html(self, path: str | Path, **options: Any) -> Path:
        """Write the page, one HTML file that needs nothing else; the path written.

        Raises:
            LorascopeError: the file cannot be written; what was there before is then still there.
        """
        from lorascope.report import html

        html.write(self.page(**options), Path(path))
        return Path(path)

    def plot(self, name: str, ax: "Axes | None" = None, *, metric: str | None = None) -> "Axes":
        """Draw one figure on matplotlib axes, with seaborn's style of the moment: for notebooks and papers.

        Args:
            name: one of the analysis's `plots`.
            ax: where to draw; by default the current axes where these are empty, so that `plt.subplot` and
                `plt.figure` before it decide as with seaborn, and else a new figure.
            metric: of a heatmap, the key of the metric to show; its first by default.

        Raises:
            InputError: there is no such figure or metric, or nothing to draw.
        """
        from lorascope.report import plots

        made = self._analysis.plots
        if name not in made:
            raise InputError(f"{self.analysis} has no plot {name!r}", expected=" or ".join(made) or "none")
        block = made[name](self)
        if block is None:
            raise InputError(f"there is nothing to draw for {name!r}", hint="see result.findings and result.skipped")
        return plots.draw(block, ax, metric)

    def __repr__(self) -> str:
        title, summary = self._analysis.heading(self)
        return f"<{type(self).__name__} {title}: {summary}>"

    def _repr_html_(self) -> str:
        """The page's first screen, for notebooks."""
        from lorascope.report import notebook

        return notebook.first_screen(self.page())

    @property
    def _analysis(self) -> "Analysis":
        return analyses.get(self.analysis)


@dataclass(frozen=True)
class Analysis:
    """One registered analysis.

    Attributes:
        question: the docstring of its file or package: the question first, the definitions, and when it misleads.
        takes: what it is run on.
        run: from that to a `Result`; every one has `modules`, a regular expression, where it looks at modules.
        findings: a result in words; see `Result.findings`, which puts them in order.
        blocks: a result drawn, in reading order.
        heading: a page's title and its one-line summary.
        metrics: what it measures.
        plots: figures by name, for `Result.plot`: a `Lines` or `Heatmap` block, or None where there is none to draw.
        command: the words after `lorascope` that run it.
    """

    question: str
    takes: Takes
    run: Callable[..., Result]
    findings: Callable[[Any], Sequence[Finding]]
    blocks: Callable[..., tuple[Block, ...]]
    heading: Callable[[Any], tuple[str, str]]
    command: str
    metrics: tuple[Metric, ...] = ()
    plots: Mapping[str, Callable[[Any], Lines | Heatmap | None]] = field(default_factory=dict)


analyses: Registry[Analysis] = Registry("analysis", "lorascope.analyses", "lorascope.analyses")
