"""What a study is made of: data that a script states, and the engine acts on. No torch is imported for it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lorascope.blocks import Block
from lorascope.study.claims import Claim
from lorascope.study.grid import Arm, Scalar, StudyScale
from lorascope.study.results import RUNS, Results
from lorascope.study.tuning import least_runs

if TYPE_CHECKING:
    from lorascope.study.answers import Answers


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
        needs_weights: whether it reads more of a run than its numbers (`store.LIGHT`).
    """

    name: str
    function: Callable[..., Iterable[Mapping[str, Scalar]]]
    specs: Callable[["Results"], Iterable[MeasurementSpec]]
    independent_params: tuple[str, ...] = ()
    needs_weights: bool = True

    def __post_init__(self) -> None:
        if self.name == RUNS:
            raise ValueError(f"a measure cannot be named {RUNS!r}: that table holds the final runs")


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
        reading: the answer in one or two sentences with their scope, made of the verdicts: the numbers in it are
            computed and the words follow the verdicts (`answers.Answers`).
        removed: claims of earlier versions that are no longer tested, by name, each with the reason.
        scope_note: for the line of scope: which claims are not about runs of the grid but about another problem, and
            which one; {names} in it stand for the scale's `params`.
        elsewhere: by test bed, the attributes that are others there: words, and claims whose sizes differ. Claims that
            ask the same have the same name.
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
    reading: Callable[["Answers"], str] | None = None
    removed: Mapping[str, str] = field(default_factory=dict)
    scope_note: str = ""
    elsewhere: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def on(self, testbed: str) -> "Study":
        """The study as it is on a test bed."""
        return replace(self, **self.elsewhere.get(testbed, {}))

    def runs_of(self, scale: StudyScale) -> int:
        """How many runs a scale trains at least: sweeps go on where the best rate is at an end, or moves."""
        return sum(least_runs(arm.learning_rates, scale.replicates) for arm in self.arms(scale))

    def main(self) -> None:
        """What the script does when it is run: `lorascope study run` with the script's own options."""
        import runpy
        import sys

        script = sys.modules["__main__"].__file__
        sys.argv[1:] = ["study", "run", str(script), *sys.argv[1:]]
        runpy.run_module("lorascope", run_name="__main__", alter_sys=True)  # the command line stands above this room
