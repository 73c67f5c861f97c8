"""The results of a study, as the statistics of its claims see them: tables, which can be resampled."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.study.grid import StudyScale
from lorascope.study.texts import DRAWS, HELD_OUT, TEST, TextScores

if TYPE_CHECKING:
    import pandas as pd

RUNS = "runs"  # the name of the table of final runs, among those of the measures


CANDIDATES = "candidates"  # their table's name in `Results.strata`
ARM, PLACE = "_arm", "_place"  # columns of `candidates`: see there


@dataclass(frozen=True)
class Results:
    """The results of a study as tidy tables. A column `replicate` names the resampling unit that a row belongs to.

    Attributes:
        runs: one row per final run at its arm's chosen rate: the arm's labels, `replicate`, `seed`, `learning_rate`,
            `loss` and `accuracy` on the test texts, `held_out_loss`, `trained`, `key`.
        tables: of the measures, by name; made on the runs of `runs`.
        scale: the study's.
        curves: one row per tuning run: the arm's labels, `learning_rate`, `replicate`, `held_out_loss`, `chosen`.
        strata: the stratum of every row, by table, "runs" among them; of a table that is not named all rows are in
            stratum 0. Replicates are of a stratum: equal numbers in two strata mean nothing.
        candidates: the final runs at all rates between which a draw chooses, with the arm's number `_arm` and the
            rate's place among that arm's `_place`. None: no draw chooses again.
        texts: the scores of each text by split ("test", "held_out"), of runs by `key`; of a run that is in none the
            texts are not resampled.
    """

    runs: "pd.DataFrame"
    tables: Mapping[str, "pd.DataFrame"]
    scale: StudyScale
    curves: "pd.DataFrame"
    strata: Mapping[str, Sequence[int]] = field(default_factory=dict)
    candidates: "pd.DataFrame | None" = None
    texts: Mapping[str, TextScores] = field(default_factory=dict)

    @cached_property
    def replicates(self) -> dict[int, list[int]]:
        """The resampling units of all tables together, by stratum."""
        replicates: dict[int, set[int]] = {}
        for units in self._units.values():
            for stratum, replicate in units:
                replicates.setdefault(stratum, set()).add(replicate)
        return {stratum: sorted(replicates[stratum]) for stratum in sorted(replicates)}

    @property
    def text_draws(self) -> int:
        """How many resamples of the texts there are; 0 where texts are not resampled."""
        return DRAWS if self.texts else 0

    def resampled(self, draws: Mapping[int, Sequence[int]], text_draw: int | None = None) -> "Results":
        """The same results with only these replicates of each stratum, as often as drawn; each gets a new number.

        Every arm's learning rate is chosen again, among its candidates, by the held-out loss of this draw.

        Args:
            text_draw: which resample of the texts the runs are scored on, below `text_draws`; None: all texts as are.
        """
        makers = {
            name: partial(_resampled, table, self._units[name], draws)
            for name, table in self.tables.items()
        }  # fmt: skip
        if self.candidates is None:
            runs = _resampled(self._scored(self.runs, text_draw), self._units[RUNS], draws)
        else:
            candidates = self._scored(self.candidates, text_draw)
            runs = chosen(_resampled(candidates, self._units[CANDIDATES], draws))
        return Results(runs, _Lazy(makers), self.scale, self.curves)

    def _scored(self, runs: "pd.DataFrame", text_draw: int | None) -> "pd.DataFrame":
        """The runs with the scores of one resample of the texts."""
        if text_draw is None or not self.texts:
            return runs
        runs = runs.copy()
        for split, loss, accuracy in ((TEST, "loss", "accuracy"), (HELD_OUT, "held_out_loss", None)):
            if split not in self.texts or loss not in runs:
                continue
            scores = self.texts[split]
            rows = np.array([scores.rows.get(key, -1) for key in runs["key"]])
            there = rows >= 0
            for column, drawn in zip((loss, accuracy), scores.drawn, strict=True):
                if column is not None:
                    values = runs[column].to_numpy(float, copy=True)
                    values[there] = drawn[rows[there], text_draw]
                    runs[column] = values
        return runs

    @cached_property
    def _units(self) -> dict[str, dict[tuple[int, int], Any]]:
        """Of every table the positions of each unit's rows; none where it has no replicates."""
        tables = {RUNS: self.runs, **self.tables}
        if self.candidates is not None:
            tables[CANDIDATES] = self.candidates
        return {name: _positions(table, self.strata.get(name)) for name, table in tables.items()}


def chosen(candidates: "pd.DataFrame") -> "pd.DataFrame":
    """The rows at the rate that each arm chooses: the lowest mean held-out loss over the rows that are here.

    An arm of one rate keeps it.
    """
    arms, places = (candidates[column].to_numpy(int) for column in (ARM, PLACE))
    losses = candidates["held_out_loss"].to_numpy(float)
    size = arms.max(initial=0) + 1, places.max(initial=0) + 1
    sums, counts = np.zeros(size), np.zeros(size)
    np.add.at(sums, (arms, places), losses)
    np.add.at(counts, (arms, places), 1)
    with np.errstate(invalid="ignore"):
        means = np.where(counts > 0, sums / counts, np.inf)
    choice = np.where(np.isfinite(means).any(axis=1), means.argmin(axis=1), 0)
    return candidates[places == choice[arms]].drop(columns=[ARM, PLACE])


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
