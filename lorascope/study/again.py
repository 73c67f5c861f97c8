"""Some arms of a study run again; what all others have comes from the record that is replaced.

The picked arms are tuned, trained and measured under the rules of today, and scored on the texts of the others, which
keep their runs and learning rates.
A new run is resampled together with kept ones only where these are known to share its texts and their order: where the
hash of their config says that they would be trained the same today.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.errors import InputError
from lorascope.study import judging, making, record, text_files
from lorascope.study.definition import Measure, MeasurementSpec
from lorascope.study.json_values import rounded, rows
from lorascope.study.picking import WHOLE, as_recorded, check_kept, matching, with_rate
from lorascope.study.results import CANDIDATES, RUNS, Results
from lorascope.study.runner import Runner, named
from lorascope.study.splicing import EMPTY, Splice, arm_key, row_keys
from lorascope.study.strata import Strata
from lorascope.study.texts import TextScores
from lorascope.study.tuning import Tuned

Record = Mapping[str, Any]
ADDED = ("runs", "measurements", "seconds_of_work", "taken_from_the_store")  # of both records' costs


class Again(Runner):
    """A runner of the arms that `pick` has chosen, which is called first."""

    def pick(self, before: Record | None, options: Sequence[str]) -> None:
        """Leave only these arms.

        Args:
            before: the record to be replaced, of this study, scale and test bed.
            options: see `picking.matching`.

        Raises:
            InputError: there is no record; its other arms are not those of the script; or the picked arms and their
                measurements need more than they have.
        """
        self.whole, self._across = self.arms, set[str]()
        arms = matching(self.whole, options)
        if before is None:
            what = f"there is no record of {self.study.name} at this scale in which arms could be replaced"
            raise InputError(what, hint=WHOLE)
        picked = {arm_key(arm.labels) for arm in arms}
        self.scale = as_recorded(self.scale, before)
        check_kept(before, self.scale, self.whole, picked)
        self.before = before
        self.splice = Splice(before["arms"], [{"labels": arm.labels} for arm in arms], picked)
        self.arms = tuple(with_rate(arm, self.whole, before, picked) for arm in arms)
        results = record.results({**before, "texts": None}, Path())
        keys = zip(results.runs["key"], row_keys(before[RUNS], before["arms"]), strict=True)
        old = {key for key, arm in keys if arm in picked}
        for measure in self.study.measures:
            with contextlib.suppress(Exception):  # after the runs they are listed again, and it is told
                self._of_new(measure, measure.specs(results), old)
        self._check_across()

    def run(self) -> tuple[Results, list[Tuned]]:
        results, tuned = super().run()
        self._check_across()
        return results, tuned

    def _specs(self, measure: Measure, results: Results) -> list[MeasurementSpec]:
        """Of the measurements that the whole study makes, those of a new run."""
        runs = self._seen(RUNS, self.before[RUNS], results.runs)
        tables = {
            name: self._seen(name, self.before["tables"].get(name, EMPTY), table)
            for name, table in results.tables.items()
        }
        specs = measure.specs(replace(results, runs=runs, tables=tables))
        return self._of_new(measure, specs, set(results.runs["key"]))

    def _seen(self, name: str, old: Record, new: Any) -> Any:
        """A table as measures see it: of all arms."""
        import pandas as pd

        table, _ = self.splice.table(name, old, rounded(rows(new)))
        return pd.DataFrame(table["rows"], columns=table["columns"])

    def _of_new(self, measure: Measure, specs: Iterable[MeasurementSpec], new: set[str]) -> list[MeasurementSpec]:
        """Those of one run, which is a new one. Remembers the measures that have new runs together with others."""
        specs = list(specs)
        if any(len(spec.runs) > 1 and new & set(spec.runs) for spec in specs):
            self._across.add(measure.name)
        if specs and all(len(spec.runs) != 1 for spec in specs):
            self.splice = replace(self.splice, kept={*self.splice.kept, measure.name})
        return [spec for spec in specs if len(spec.runs) == 1 and spec.runs[0] in new]

    def _check_across(self) -> None:
        if self._across:
            what = f"arms to be run again are measured together with others: {', '.join(sorted(self._across))}"
            raise InputError(what, hint=WHOLE)

    def shared_strata(self, base: Record) -> Strata:
        """Knows which strata of the record before, (0, number), and new ones, (1, number), share texts or seeds."""
        strata, arms = Strata(), {arm_key(arm.labels): arm for arm in self.whole}
        for side, joined in enumerate((self.before, base)):
            table = joined[RUNS]
            at = {name: i for i, name in enumerate(table["columns"])}
            numbers = joined["strata"].get(RUNS, [0] * len(table["rows"]))
            for row, key, number in zip(table["rows"], row_keys(table, joined["arms"]), numbers, strict=True):
                job = self.used.get(row[at["key"]])
                if side == 0:
                    if key in self.splice.picked or key not in arms:
                        continue
                    job = self._train_job(arms[key], row[at["learning_rate"]], row[at["replicate"]])
                if job is not None and job.key == row[at["key"]]:
                    seeds = job.spec["config"]["training"]
                    strata.link([(side, number), ("seed", seeds["seed"]), ("data", seeds["data_seed"])])
        return strata


def make(
    runner: Again,
    scale: str,
    made: tuple[Results, Sequence[Tuned]],
    frozen: judging.Frozen,
    folder: Path,
    progress: judging.Progress | None = None,
) -> tuple[dict[str, Any], bytes | None]:
    """The record of the whole study, otherwise as `making.make`.

    The record before is judged by the script of today first: what the new runs change is then told apart.

    Args:
        folder: of the record before.
    """
    results, tuned = made
    before = judging.again(runner.before, runner.study, folder, making.today(), progress)
    base = merged(runner, before, rounded(making.unjudged(runner, scale, results, tuned)))
    old = text_files.read(before["texts"], folder) if before["texts"] else {}
    return making.judged(base, _scores(base, old, results.texts), runner.study, frozen, before, progress)


def merged(runner: Again, before: Record, base: Record) -> dict[str, Any]:
    """The base of the whole study's record, of what all other arms have in the record before and of the new base.

    Raises:
        InputError: rows of a measure do not tell their arm.
    """
    splice, made = runner.splice, before["made"]
    for name, table in base["tables"].items():
        if table["rows"] and not set(row_keys(table, base["arms"])) <= set(splice.picked):
            raise InputError(f"rows of {name} do not have the labels of their arm", hint=WHOLE)
    entry = {"date": base["made"]["date"], "arms": [arm["labels"] for arm in base["arms"]]}
    return {
        **base,
        "cost": {**base["cost"], **{name: round(before["cost"][name] + base["cost"][name], 1) for name in ADDED}},
        "made": {
            **made,
            "devices": sorted({*made["devices"], *base["made"]["devices"]}),
            "again": [*made.get("again", []), {**entry, "command": base["made"]["command"]}],
        },
        "arms": splice.lists(before["arms"], base["arms"]),
        "tuning": splice.lists(before["tuning"], base["tuning"]),
        "failures": [*_kept_failures(runner, before), *base["failures"], *_missing(runner, before)],
        **splice.tables(before, base, runner.shared_strata(base)),
    }


def _kept_failures(runner: Again, before: Record) -> list[Record]:
    """What failed, but for the arms that were run again."""
    names = [f"{named(arm)}{end}" for arm in runner.arms for end in (",", " (tuning)")]
    return [each for each in before["failures"] if not any(name in each["title"] for name in names)]


def _missing(runner: Again, before: Record) -> list[Record]:
    """Measures that are newer than the record before."""
    message = "the record before has no such table: it has rows of the arms alone that were run again"
    names = [measure.name for measure in runner.study.measures if measure.name not in before["tables"]]
    return [{"title": name, "message": message} for name in names if len(runner.arms) < len(runner.whole)]


def _scores(base: Record, old: Mapping[str, TextScores], new: Mapping[str, TextScores]) -> dict[str, TextScores]:
    """The scores of texts of the runs that are in the joined record; old ones only where they are of as many texts."""
    tables = [base[name] for name in (RUNS, CANDIDATES) if name in base]
    there = {row[table["columns"].index("key")] for table in tables for row in table["rows"]}
    joined = dict(new)
    for split, scores in old.items():
        fresh = new.get(split)
        keys = [key for key in scores.keys if key in there and (fresh is None or key not in fresh.rows)]
        if fresh is None and keys:
            joined[split] = scores.taken(keys)
        elif fresh is not None and np.array_equal(scores.targets, fresh.targets):
            kept = scores.taken(keys)
            loss, hits = (np.concatenate([getattr(side, name) for side in (kept, fresh)]) for name in ("loss", "hits"))
            joined[split] = TextScores((*kept.keys, *fresh.keys), loss, hits, fresh.targets)
    return joined
