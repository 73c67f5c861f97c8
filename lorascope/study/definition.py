"""What a study is made of: data that a script states, and the engine acts on. No torch is imported for it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lorascope.blocks import Block

if TYPE_CHECKING:
    import pandas as pd

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Scale:
    """One size of a study.

    Attributes:
        config: what every run has in common: the sections of a training config, as nested dictionaries.
        replicates: how many independent runs of every arm: each draws its own initialisation, data subset and order.
        params: the study's own sizes, such as the ranks.
        test_split: where final runs are scored, and nothing is chosen; None scores them on the held-out texts.
        test_samples: how many of its texts, the same for all runs; None takes all.
        conclusive: whether it gives verdicts. A smoke run shows that a study runs, and decides nothing.
    """

    config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    replicates: int = 5
    params: Mapping[str, Any] = field(default_factory=dict)
    test_split: str | None = "test"
    test_samples: int | None = None
    conclusive: bool = True


@dataclass(frozen=True)
class Arm:
    """One cell of the grid: what it is called, and what it changes in the common config.

    Attributes:
        labels: its columns in the table of runs, such as {"method": "lora", "rank": 4}.
        changes: config values by "section.key".
        learning_rates: ascending; one run of each, with seeds of their own, and the rate of the lowest held-out loss is
            taken. Where that is at an end, the sweep goes on beyond it, by the same factor. Empty: the config's rate.
        rate_of: labels of the arm whose tuned rate this one takes, in place of a sweep of its own.
        rate_factor: times which it takes that rate, where a theory says how the best rate changes.
        seed: runs get the seeds seed, seed + 1, ...; None gives each arm seeds of its own, drawn from its config.
        seeded: config values by "section.key" that are the run's seed, such as that of VeRA's matrices.
    """

    labels: Mapping[str, Scalar]
    changes: Mapping[str, Any] = field(default_factory=dict)
    learning_rates: tuple[float, ...] = ()
    rate_of: Mapping[str, Scalar] | None = None
    seed: int | None = None
    seeded: tuple[str, ...] = ()
    rate_factor: float = 1.0


@dataclass(frozen=True)
class Call:
    """One call of a measure: the finished runs it is given, and named values.

    Attributes:
        runs: rows of `Results.runs`, by their `key`.
        params: passed by name, and columns of the measure's table; `replicate` among them says which resampling unit
            the rows belong to (of one run it is the run's).
    """

    runs: tuple[str, ...] = ()
    params: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Measure:
    """What is measured on runs that are finished, or computed from numbers alone.

    Attributes:
        name: of its table in `Results.tables`.
        function: called as function(folders, **params); gives rows (dictionaries of scalars). It must stand at the top
            of the study's script, where another process finds it.
        calls: given the results so far, the calls to make.
    """

    name: str
    function: Callable[..., Sequence[Mapping[str, Scalar]]]
    calls: Callable[["Results"], Sequence[Call]]


@dataclass(frozen=True)
class Results:
    """What a study found, as tidy tables. Every table has a column `replicate`, the unit that is resampled.

    Attributes:
        runs: one row per final run: the arm's labels, `replicate`, `seed`, `learning_rate`, `loss` and `accuracy` on
            the test texts, `held_out_loss`, `trained`, `key`.
        tables: of the measures, by name.
        scale: the study's.
        curves: one row per tuning run: the arm's labels, `learning_rate`, `held_out_loss`, `chosen`.
    """

    runs: "pd.DataFrame"
    tables: Mapping[str, "pd.DataFrame"]
    scale: Scale
    curves: "pd.DataFrame"

    def drawn(self, replicates: Sequence[int]) -> "Results":
        """The same with these replicates alone, in this order and as often; each becomes a replicate of its own."""
        runs, *others = (_taken(table, parts, replicates) for table, parts in self._by_replicate)
        return Results(runs, dict(zip(self.tables, others, strict=True)), self.scale, self.curves)

    @cached_property
    def _by_replicate(self) -> list[tuple["pd.DataFrame", dict[int, Any] | None]]:
        """Every table with the positions of each replicate's rows; None where it has no replicates."""
        found = []
        for table in (self.runs, *self.tables.values()):
            own = "replicate" in table.columns and len(table) > 0
            found.append((table, table.reset_index().groupby("replicate").indices if own else None))
        return found


def _taken(table: "pd.DataFrame", parts: Mapping[int, Any] | None, replicates: Sequence[int]) -> "pd.DataFrame":
    import numpy as np

    if parts is None:
        return table
    chosen = [(i, parts[each]) for i, each in enumerate(replicates) if each in parts]
    if not chosen:
        return table.iloc[:0]
    found = table.take(np.concatenate([rows for _, rows in chosen]))
    found.index = range(len(found))
    found["replicate"] = np.repeat([i for i, _ in chosen], [len(rows) for _, rows in chosen])
    return found


@dataclass(frozen=True)
class Criterion:
    """One number and the bound that it must keep.

    Attributes:
        text: what the number is, with its bound in words.
        statistic: of the results; None, or an error it raises as ValueError, where it cannot be computed.
        at_least, at_most: the bounds; either or both.
        unit: how it is shown.
    """

    text: str
    statistic: Callable[[Results], float | None]
    at_least: float | None = None
    at_most: float | None = None
    unit: str = "float"

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise ValueError(f"the criterion {self.text!r} has no bound")

    def keeps(self, value: float) -> bool:
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return low <= value <= high


class Control(Criterion):
    """A criterion that must not be held: the same question where the answer is known to be no."""


@dataclass(frozen=True)
class Claim:
    """A statement of the literature, and what must be seen here for it to be held.

    Attributes:
        name: short, unique in the study.
        text: the statement.
        source: paper, section or table.
        criteria: all of them must be held.
        controls: all of them must fail; where one does not, the claim stays undecided, whatever its criteria say.
        note: what a reader of the verdict should know.
    """

    name: str
    text: str
    source: str
    criteria: tuple[Criterion, ...]
    controls: tuple[Control, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        name: of its script and its report.
        title, question: in words.
        varied, tuned, fixed: what is.
        scales: by name: smoke, small, full.
        arms: the runs to train, of a scale.
        measures: what is measured afterwards, in order; each sees the tables before it.
        claims: what is judged.
        figures: blocks for the page, of the results.
        reading: what the results mean, in plain paragraphs of the author's; shown as such.
    """

    name: str
    title: str
    question: str
    varied: str
    tuned: str
    fixed: str
    scales: Mapping[str, Scale]
    claims: tuple[Claim, ...]
    arms: Callable[[Scale], Sequence[Arm]] = lambda scale: ()
    measures: tuple[Measure, ...] = ()
    figures: Callable[[Results], Sequence[Block]] = lambda results: ()
    reading: str = ""

    def runs_of(self, scale: Scale) -> int:
        """How many runs a scale trains: every rate of every sweep, and every replicate; before sweeps go on."""
        arms = self.arms(scale)
        return sum(scale.replicates + (len(a.learning_rates) if len(a.learning_rates) > 1 else 0) for a in arms)

    def main(self) -> None:
        """What the script does when it is run: `lorascope study run` with the script's own options."""
        import runpy
        import sys

        script = sys.modules["__main__"].__file__
        sys.argv[1:] = ["study", "run", str(script), *sys.argv[1:]]
        runpy.run_module("lorascope", run_name="__main__", alter_sys=True)  # the command line stands above this room
