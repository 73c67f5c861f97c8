"""What a study is made of: data that a script states, and the engine acts on. No torch is imported for it."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from lorascope.blocks import Block

if TYPE_CHECKING:
    import pandas as pd

Scalar = str | int | float | bool | None
RUNS = "runs"  # the name of the table of final runs, among those of the measures


@dataclass(frozen=True)
class StudyScale:
    """One size of a study: smoke, small or full.

    Attributes:
        config: what every run has in common: the sections of a training config, as nested dictionaries.
        replicates: how many independent runs of every arm: each draws its own initialisation, data subset and order.
        params: the study's own sizes, such as the ranks.
        test_split: where final runs are scored, and nothing is chosen; None scores them on the held-out texts.
        test_samples: how many of its texts, the same for all runs; None takes all.
        conclusive: whether it gives verdicts. A smoke run only shows that the study runs.
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
class MeasurementSpec:
    """One measurement to make: the finished runs that the measure is given, and named values.

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
        specs: given the results so far, the measurements to make.
        independent_params: of measurements without runs, the params whose values have their own random numbers:
            measurements that differ in them are resampled independently.
    """

    name: str
    function: Callable[..., Iterable[Mapping[str, Scalar]]]
    specs: Callable[["Results"], Iterable[MeasurementSpec]]
    independent_params: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.name == RUNS:
            raise ValueError(f"a measure cannot be named {RUNS!r}: that table holds the final runs")


@dataclass(frozen=True)
class Results:
    """The results of a study as tidy tables. A column `replicate` names the resampling unit that a row belongs to.

    Attributes:
        runs: one row per final run: the arm's labels, `replicate`, `seed`, `learning_rate`, `loss` and `accuracy` on
            the test texts, `held_out_loss`, `trained`, `key`.
        tables: of the measures, by name.
        scale: the study's.
        curves: one row per tuning run: the arm's labels, `learning_rate`, `held_out_loss`, `chosen`.
        strata: the stratum of every row, by table, "runs" among them; of a table that is not named all rows are in
            stratum 0. Replicates are of a stratum: equal numbers in two strata mean nothing.
    """

    runs: "pd.DataFrame"
    tables: Mapping[str, "pd.DataFrame"]
    scale: StudyScale
    curves: "pd.DataFrame"
    strata: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @cached_property
    def replicates(self) -> dict[int, list[int]]:
        """The resampling units of all tables together, by stratum."""
        replicates: dict[int, set[int]] = {}
        for units in self._units.values():
            for stratum, replicate in units:
                replicates.setdefault(stratum, set()).add(replicate)
        return {stratum: sorted(replicates[stratum]) for stratum in sorted(replicates)}

    def resampled(self, draws: Mapping[int, Sequence[int]]) -> "Results":
        """The same results with only these replicates of each stratum, as often as drawn; each gets a new number."""
        tables = {RUNS: self.runs, **self.tables}
        makers = {name: partial(_resampled, table, self._units[name], draws) for name, table in tables.items()}
        return Results(makers.pop(RUNS)(), _Lazy(makers), self.scale, self.curves)

    @cached_property
    def _units(self) -> dict[str, dict[tuple[int, int], Any]]:
        """Of every table the positions of each unit's rows; none where it has no replicates."""
        return {
            name: _positions(table, self.strata.get(name)) for name, table in {RUNS: self.runs, **self.tables}.items()
        }


class _Lazy(Mapping[str, Any]):
    """Values that are made when they are first asked for: most statistics look at one table of many."""

    def __init__(self, makers: Mapping[str, Callable[[], Any]]):
        self._makers = makers
        self._values: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            self._values[name] = self._makers[name]()
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def _positions(table: "pd.DataFrame", strata: Sequence[int] | None) -> dict[tuple[int, int], Any]:
    import pandas as pd

    if "replicate" not in table.columns or not len(table):
        return {}
    units = pd.DataFrame({"stratum": [0] * len(table) if strata is None else list(strata)})
    units["replicate"] = table["replicate"].to_numpy(int)
    return units.groupby(["stratum", "replicate"]).indices


def _resampled(
    table: "pd.DataFrame", units: Mapping[tuple[int, int], Any], draws: Mapping[int, Sequence[int]]
) -> "pd.DataFrame":
    import numpy as np
    import pandas as pd

    if not units:
        return table
    chosen = [
        (i, units[stratum, replicate])
        for stratum, draw in draws.items()
        for i, replicate in enumerate(draw)
        if (stratum, replicate) in units
    ]
    if not chosen:
        return table.iloc[:0]
    resample = table.take(np.concatenate([rows for _, rows in chosen]))
    resample.index = pd.RangeIndex(len(resample))
    resample["replicate"] = np.repeat([i for i, _ in chosen], [len(rows) for _, rows in chosen])
    return resample


@dataclass(frozen=True)
class Criterion:
    """One number and the bound that it must satisfy.

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

    def satisfied_by(self, value: float) -> bool:
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return low <= value <= high


class Control(Criterion):
    """A negative control: a criterion that must not be held, the same question where the answer is known to be no."""


@dataclass(frozen=True)
class Claim:
    """A statement of the literature, and the criteria under which it is held here.

    Attributes:
        name: short, unique in the study.
        text: the statement.
        source: paper, section or table.
        criteria: all of them must be held.
        controls: all of them must fail; where one does not, the claim stays undecided, whatever its criteria say.
        note: what a reader of the verdict should know.
        withdrawn: why the published verdict no longer stands, with the new numbers. It is shown in the verdict's place.
        cannot_tell: why the test could not have come out otherwise, in one sentence. Shown likewise.
    """

    name: str
    text: str
    source: str
    criteria: tuple[Criterion, ...]
    controls: tuple[Control, ...] = ()
    note: str = ""
    withdrawn: str | None = None
    cannot_tell: str | None = None

    def __post_init__(self) -> None:
        reasons = [reason for reason in (self.withdrawn, self.cannot_tell) if reason is not None]
        if len(reasons) > 1 or not all(reason.strip() for reason in reasons):
            raise ValueError(f"the claim {self.name!r} is withdrawn or cannot tell, for a reason in words; not both")


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
        scope_note: for the line of scope: which claims are not about runs of the grid but about another problem, and
            which one; {names} in it stand for the scale's `params`.
    """

    name: str
    title: str
    question: str
    varied: str
    tuned: str
    fixed: str
    scales: Mapping[str, StudyScale]
    claims: tuple[Claim, ...]
    arms: Callable[[StudyScale], Iterable[Arm]] = lambda scale: ()
    measures: tuple[Measure, ...] = ()
    figures: Callable[[Results], Sequence[Block]] = lambda results: ()
    reading: str = ""
    scope_note: str = ""

    def runs_of(self, scale: StudyScale) -> int:
        """How many runs a scale trains: every rate of every sweep, and every replicate; before sweeps go on."""
        arms = list(self.arms(scale))
        sweeps = [len(arm.learning_rates) for arm in arms if len(arm.learning_rates) > 1]
        return scale.replicates * len(arms) + sum(sweeps)

    def main(self) -> None:
        """What the script does when it is run: `lorascope study run` with the script's own options."""
        import runpy
        import sys

        script = sys.modules["__main__"].__file__
        sys.argv[1:] = ["study", "run", str(script), *sys.argv[1:]]
        runpy.run_module("lorascope", run_name="__main__", alter_sys=True)  # the command line stands above this room
