"""The runner: from a study to its record. Tune, train, measure, judge; what is in the store is not done again."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lorascope.errors import InputError
from lorascope.study import tuning
from lorascope.study.chunks import chunks
from lorascope.study.definition import Measure, MeasurementSpec, Study
from lorascope.study.grid import Arm
from lorascope.study.results import ARM, CANDIDATES, PLACE, RUNS, Results, chosen
from lorascope.study.store import Job, Store, data_hashes, fingerprint
from lorascope.study.strata import Strata
from lorascope.study.texts import read as read_texts
from lorascope.study.tuning import Tuned
from lorascope.study.work import TEST, Chunk, read_rows, read_score
from lorascope.training.config import override, parse, resolved
from lorascope.training.run_folder import read_facts, read_summary

if TYPE_CHECKING:
    import pandas as pd


class Engine(Protocol):
    """Does chunks, `slots` of them at once: `Local`, or `Cluster`."""

    slots: int

    def close(self) -> None: ...

    def run(self, chunks: Sequence[Chunk], store: Store) -> Iterator[tuple[Chunk, list[str]]]: ...


Progress = Callable[[str, int, int, int, str], None]  # (stage, done, total, failed, title of what ended last)


def no_progress(stage: str, done: int, total: int, failed: int, title: str) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Final:
    """A final run: the arm's number, the place of its rate among those to choose from, its replicate."""

    arm: int
    place: int
    replicate: int
    job: Job


class Runner:
    """Runs one study at one scale.

    Args:
        study: what to do.
        script: the file that makes the study, for worker processes to find its measures in.
        scale: its name.
        overrides: `section.key=value`, laid over the common config, such as another model.
        device: of training and of measures: cpu, cuda, cuda:N, auto.
    """

    def __init__(
        self,
        study: Study,
        script: Path,
        scale: str,
        store: Store,
        engine: Engine,
        *,
        overrides: Sequence[str] = (),
        device: str = "auto",
        progress: Progress = no_progress,
    ):
        if scale not in study.scales:
            raise InputError(f"{study.name} has no scale {scale!r}", expected=", ".join(study.scales))
        chosen = study.scales[scale]
        config = override(chosen.config, overrides) if overrides else chosen.config
        self.study, self.script, self.store, self.engine = study, script, store, engine
        is_file = Path(str(config.get("data", {}).get("path", ""))).is_file()  # has no splits to be tested on
        self.scale = replace(chosen, config=config, test_split=None if is_file else chosen.test_split)
        self.device, self.progress = device, progress
        self.arms = tuple(study.arms(self.scale))
        self.failures: dict[str, str] = {}
        self.used: dict[str, Job] = {}
        self.reused = 0
        self.strata = Strata()
        check_arms(self.arms)

    def run(self) -> tuple[Results, list[Tuned]]:
        """Train, tune and measure everything that the claims need.

        Raises:
            InputError: an arm's config is wrong.
        """
        began = time.perf_counter()
        tuned = self._tune()
        finals = self._finals(tuned)
        self._do("training", [final.job for final in finals])
        results = self._results(finals, tuned)
        for measure in self.study.measures:
            results = replace(results, tables={**results.tables, measure.name: self._measure(measure, results)})
        self.seconds = time.perf_counter() - began
        return replace(results, strata=self.strata.numbers()), tuned

    def _do(self, stage: str, jobs: Sequence[Job], weights: bool = False) -> None:
        """Do those that are not in the store.

        Args:
            weights: whether runs whose weights are missing are trained again.
        """
        by_key = {job.key: job for job in jobs}
        there = self.store.intact if weights else self.store.scored
        missing = [job for job in by_key.values() if not there(job)]
        self.reused += len({key for key in by_key if key not in self.used} - {job.key for job in missing})
        self.used |= by_key
        done, failed = len(by_key) - len(missing), 0
        self.progress(stage, done, len(by_key), failed, "")
        work = [replace(chunk, weights=weights) for chunk in chunks(missing, self.engine.slots)]
        for chunk, failed_keys in self.engine.run(work, self.store):
            done, failed = done + len(chunk.jobs), failed + len(failed_keys)
            for job in chunk.jobs:
                if (failure := self.store.failure(job.key)) is not None:
                    self.failures[job.title] = failure["message"]
            self.progress(stage, done, len(by_key), failed, chunk.title)

    def _train_job(self, arm: Arm, rate: float | None, replicate: int) -> Job:
        """One run of an arm; its test score is part of it, so that a sweep's runs are final ones."""
        values = {section: dict(keys) for section, keys in self.scale.config.items()}
        seed = _seed({**arm.changes, "config": self.scale.config}, replicate)
        seed = seed if arm.seed is None else arm.seed + replicate
        changes = dict(arm.changes) | ({} if rate is None else {"optim.learning_rate": rate})
        changes |= dict.fromkeys(arm.seeded, seed)
        for path, value in changes.items():
            section, _, key = path.partition(".")
            values.setdefault(section, {})[key] = value
        seeds = {"seed": seed, "data_seed": seed if arm.own_data else replicate}
        values["training"] = {"measure_cost": False, **values.get("training", {}), **seeds, "device": self.device}
        title = f"{named(arm)}, {'' if rate is None else f'rate {rate:g}, '}replicate {replicate}"
        config = resolved(parse(values, f"{self.study.name}, {title},"))
        spec = {
            "kind": "train",
            "config": config,
            "test_split": self.scale.test_split,
            "test_samples": self.scale.test_samples,
            "data": data_hashes(config),
        }
        return Job(spec, title=title)

    def _tune(self) -> list[Tuned]:
        """The learning rate of every arm: of all sweeps together the runs that each needs next, until none does.

        Sweeps that need only what is in the store go ahead of the others, each by whole steps: which rates are tried
        depends on the losses alone.
        """
        swept = {i: arm for i, arm in enumerate(self.arms) if len(arm.learning_rates) > 1}
        losses: dict[int, dict[float, dict[int, float | None]]] = {i: {} for i in swept}
        n = self.scale.replicates
        while steps := {
            i: {(rate, r): self._train_job(arm, rate, r) for rate, r in needed}
            for i, arm in swept.items()
            if (needed := tuning.needed(losses[i], arm.learning_rates, n))
        }:
            there = {i: step for i, step in steps.items() if all(map(self.store.scored, step.values()))}
            steps = there or steps
            jobs = [job for step in steps.values() for job in step.values()]
            self._do("tuning", jobs if there else [*jobs, *self._for_idle_workers(jobs, losses)])
            for i, step in steps.items():
                for (rate, r), job in step.items():
                    losses[i].setdefault(rate, {})[r] = self._held_out(job.key)
        return [self._tuned(arm, losses.get(i)) for i, arm in enumerate(self.arms)]

    def _for_idle_workers(self, wanted: Sequence[Job], losses: Mapping[int, tuning.Losses]) -> list[Job]:
        """Final runs whose rates are settled, as many as there are workers without one of the wanted runs."""
        missing = [job for job in wanted if not self.store.scored(job)]
        idle = self.engine.slots - len(missing) if missing else 0
        if idle <= 0:
            return []
        n = self.scale.replicates
        settled = {i: not tuning.needed(found, self.arms[i].learning_rates, n) for i, found in losses.items()}
        tuned = [
            self._tuned(arm, losses.get(i)) if settled.get(i, True) else Tuned(None) for i, arm in enumerate(self.arms)
        ]
        finals = {final.job.key: final.job for final in self._finals(tuned)}
        return [job for job in finals.values() if not self.store.scored(job)][:idle]

    def _tuned(self, arm: Arm, losses: tuning.Losses | None) -> Tuned:
        if losses is None:
            return Tuned(arm.learning_rates[0] if arm.learning_rates else None)
        curve = {rate: dict(sorted(losses[rate].items())) for rate in sorted(losses)}
        rates, _ = tuning.finalists(losses, self.scale.replicates)
        if not rates:
            self.failures[f"{named(arm)} (tuning)"] = "no learning rate gave a finite loss"
            return Tuned(None, curve, interior=False)
        return Tuned(rates[0], curve, min(curve) < rates[0] < max(curve), rates)

    def _held_out(self, key: str) -> float | None:
        summary = read_summary(self.store.run_folder(key)) if self.store.done(key) else {}
        return (summary.get("held_out") or {}).get("loss")

    def _finals(self, tuned: Sequence[Tuned]) -> list[Final]:
        """The final runs of all arms, at every rate that a draw may choose. An arm without a rate has none."""
        by_labels = {_key(arm.labels): t for arm, t in zip(self.arms, tuned, strict=True)}
        finals: list[Final] = []
        for i, arm in enumerate(self.arms):
            source = tuned[i] if arm.rate_of is None else by_labels[_key(arm.rate_of)]
            if source.rate is None and (arm.learning_rates or arm.rate_of is not None):
                continue
            rate = source.rate
            if rate is not None and arm.rate_factor != 1.0:
                rate = float(f"{rate * arm.rate_factor:.3g}")
            rates = tuned[i].finalists or (rate,)
            finals += [
                Final(i, place, n, self._train_job(arm, each, n))
                for place, each in enumerate(rates)
                for n in range(self.scale.replicates)
            ]
        return finals

    def _results(self, finals: Sequence[Final], tuned: Sequence[Tuned]) -> Results:
        """The table of the runs, and those between which a draw chooses."""
        import pandas as pd

        rows, owners, jobs = [], [], []
        for final in finals:
            arm, job = self.arms[final.arm], final.job
            if (row := self._row(job)) is not None:
                places = {ARM: final.arm, PLACE: final.place}
                rows.append({**arm.labels, "replicate": final.replicate, **row, **places})
                owners.append(self._owner(arm, job))
                jobs.append(job)
        columns = list(dict.fromkeys(key for arm in self.arms for key in arm.labels))
        empty = [*columns, "replicate", "loss", "held_out_loss", "key", ARM, PLACE]
        candidates = pd.DataFrame(rows, columns=None if rows else empty)
        runs = chosen(candidates)
        for i in runs.index:
            self.strata.add(RUNS, owners[i])
        choice = len(runs) < len(candidates)
        for owner in owners if choice else ():
            self.strata.add(CANDIDATES, owner)
        return Results(
            runs.reset_index(drop=True),
            {},
            self.scale,
            _curves(self.arms, tuned),
            candidates=candidates if choice else None,
            texts=read_texts([(job.key, self.store.run_folder(job.key)) for job in jobs if not _memorises(job)]),
        )

    def _owner(self, arm: Arm, job: Job) -> Hashable:
        """Whose replicate a final run is: its arm's, which is linked to all that share the run, its seed or its data,
        as arms do that differ in their learning rate alone."""
        training = job.spec["config"]["training"]
        shared = [("run", job.key), ("seed", training["seed"]), ("data", training["data_seed"])]
        return self.strata.link([("arm", _key(arm.labels)), *shared])

    def _row(self, job: Job) -> dict[str, Any] | None:
        """A final run's row; None where it failed or diverged, which is recorded in `failures`.

        Its scores are of the test texts, or of the training texts where the run is scored on those.
        """
        folder, done = self.store.run_folder(job.key), self.store.done(job.key)
        summary = read_summary(folder) if done else None
        if not done or not summary:
            return None
        if summary.get("diverged"):
            self.failures[job.title] = summary["diverged"]
            return None
        config, run, held_out = job.spec["config"], read_facts(folder), summary["held_out"]
        test = held_out if _memorises(job) or job.spec["test_split"] is None else read_score(folder / TEST)
        if test is None:
            self.failures[job.title] = (
                f"{TEST} is missing in the store; remove the folder {job.key} to do the run again"
            )
            return None
        steps = summary.get("steps")
        rate_is_used = steps != 0 and config["method"].get("train") != []
        return {
            "seed": config["training"]["seed"],
            "learning_rate": config["optim"]["learning_rate"] if rate_is_used else None,
            "loss": test["loss"],
            "accuracy": test["accuracy"],
            "held_out_loss": held_out["loss"],
            "trained": 0 if steps == 0 else run.get("trained_parameters"),
            "steps": steps,
            "seconds": done.get("seconds"),
            "key": job.key,
        }

    def _measure(self, measure: Measure, results: Results) -> "pd.DataFrame":
        import pandas as pd

        try:
            specs = self._specs(measure, results)
        except Exception as error:  # such as a column that no run was left to fill
            self.failures[measure.name] = f"its measurements could not be listed: {type(error).__name__}: {error}"
            return pd.DataFrame()
        jobs = {job.key: (spec, job) for spec in specs for job in [self._measure_job(measure, spec)]}
        if measure.needs_weights:
            self._train_again([job for _, job in jobs.values()])
        self._do(measure.name, [job for _, job in jobs.values()])
        rows: list[dict[str, Any]] = []
        for spec, job in jobs.values():
            if self.store.done(job.key):
                measured = read_rows(self.store.folder(job.key))
                labelled = [{**labels, **row} for labels in self._labels_of(spec, results.runs) for row in measured]
                owner = self.strata.link(
                    [("run", key) for key in spec.runs]
                    or [(measure.name, *(spec.params[name] for name in measure.independent_params))]
                )
                for _ in labelled:
                    self.strata.add(measure.name, owner)
                rows += labelled
        table = pd.DataFrame(rows)
        if "replicate" in table.columns and table["replicate"].isna().any():
            raise InputError(
                f"some rows of the measure {measure.name} name a replicate and some do not",
                hint="add `replicate` to the params of measurements of several runs",
            )
        return table

    def _train_again(self, measurements: Sequence[Job]) -> None:
        """Have the weights there that measurements need which are not in the store."""
        runs = {key for job in measurements if not self.store.scored(job) for key in job.inputs}
        lacking = [self.used[key] for key in runs if not self.store.intact(self.used[key])]
        if lacking:
            self._do("training again (their weights are not in the store)", lacking, weights=True)

    def waited_for(self) -> set[str]:
        """Keys of the runs that a measurement of this study still has to be made of."""
        measurements = [job for job in self.used.values() if job.spec["kind"] == "measure"]
        return {key for job in measurements if not self.store.scored(job) for key in job.inputs}

    def _specs(self, measure: Measure, results: Results) -> list[MeasurementSpec]:
        """The measurements to make."""
        return list(measure.specs(results))

    def _labels_of(self, spec: MeasurementSpec, runs: "pd.DataFrame") -> list[dict[str, Any]]:
        """What identifies the rows of a measurement: its params, and for a single run its arm's labels.

        A run that several arms share is measured once and has rows in each of them, unless `params` names the arm.
        """
        if len(spec.runs) != 1:
            return [dict(spec.params)]
        labels = [*_labels(self.arms), "replicate"]
        arms = [{key: row[key] for key in labels} for row in runs[runs["key"] == spec.runs[0]].to_dict("records")]
        matching = [arm for arm in arms if all(spec.params[key] == arm[key] for key in labels if key in spec.params)]
        return [{**arm, **spec.params} for arm in matching or arms[:1]]

    def _measure_job(self, measure: Measure, spec: MeasurementSpec) -> Job:
        job_spec = {
            "kind": "measure",
            "script": str(self.script.resolve()),
            "function": measure.function.__name__,
            "code": fingerprint(measure.function),
            "params": dict(spec.params),
            "device": self.device,
        }
        title_parts = [f"{key} {value}" for key, value in spec.params.items()]
        title_parts += [self.used[key].title for key in spec.runs]
        return Job(job_spec, tuple(spec.runs), f"{measure.name}: {'; '.join(title_parts)}")


def _memorises(job: Job) -> bool:
    """Whether what a run has stored is the question: it is scored on the texts that it was trained on, its own draw."""
    data = job.spec["config"]["data"]
    return bool(data["eval_split"] == data["train_split"])


def _seed(config: Mapping[str, Any], replicate: int) -> int:
    """A seed that this config and replicate have, and hardly any other."""
    text = json.dumps([config, replicate], sort_keys=True, default=list)
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) >> 1


def _curves(arms: Sequence[Arm], tuned: Sequence[Tuned]) -> "pd.DataFrame":
    """A row for each rate of each sweep; the loss is the mean over its replicates, paired (`tuning.means`)."""
    import pandas as pd

    rows = []
    for arm, t in zip(arms, tuned, strict=True):
        means = tuning.means(t.curve)
        for rate, losses in t.curve.items():
            loss = means[rate]
            outcome = {"held_out_loss": loss if math.isfinite(loss) else None, "replicates": len(losses)}
            row = {**arm.labels, "learning_rate": rate, **outcome, "chosen": rate == t.rate, "interior": t.interior}
            rows.append(row)
    return pd.DataFrame(rows)


def _labels(arms: Sequence[Arm]) -> list[str]:
    return list(dict.fromkeys(key for arm in arms for key in arm.labels))


def named(arm: Arm) -> str:
    """An arm's labels in words."""
    return ", ".join(f"{key} {value}" for key, value in arm.labels.items())


def _key(labels: Mapping[str, Any]) -> str:
    return json.dumps(dict(labels), sort_keys=True)


def check_arms(arms: Sequence[Arm]) -> None:
    """Raises InputError where two arms have the same labels, or one takes its rate from an arm without rates."""
    keys = [_key(arm.labels) for arm in arms]
    if duplicates := {key for key in keys if keys.count(key) > 1}:
        raise InputError("two arms of the study have the same labels", found=min(duplicates))
    tuned = {_key(arm.labels) for arm in arms if arm.learning_rates}
    for arm in arms:
        if arm.rate_of is not None and _key(arm.rate_of) not in tuned:
            problem = "has no learning rates" if _key(arm.rate_of) in keys else "does not exist"
            raise InputError(f"the arm {named(arm)} takes the rate of an arm that {problem}", found=dict(arm.rate_of))
