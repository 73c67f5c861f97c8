"""The runner: from a study to its record. Tune, train, measure, judge; what is in the store is not done again."""

import hashlib
import json
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lorascope.errors import InputError
from lorascope.study.definition import Measure, MeasurementSpec, Study
from lorascope.study.grid import Arm
from lorascope.study.results import RUNS, Results
from lorascope.study.store import Job, Store, data_hashes, fingerprint
from lorascope.study.strata import Strata
from lorascope.study.work import TEST, Chunk, read_rows, read_score
from lorascope.training.config import override, parse, resolved
from lorascope.training.record import read_facts, read_summary

if TYPE_CHECKING:
    import pandas as pd

TUNING_SEED = 1_000_003  # so that no run that is judged has the seed that chose its learning rate
EXTENSIONS = 3  # rates beyond the end of a sweep whose best is at that end


class Engine(Protocol):
    """Does chunks: `Local`, or `Cluster`."""

    def close(self) -> None: ...

    def run(self, chunks: Sequence[Chunk], store: Store) -> Iterator[tuple[Chunk, list[str]]]: ...


Progress = Callable[[str, int, int, int, str], None]  # (stage, done, total, failed, title of what ended last)


def no_progress(stage: str, done: int, total: int, failed: int, title: str) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Tuned:
    """An arm's learning rate and the sweep it came from.

    Attributes:
        rate: the chosen one; None where the config's was taken.
        curve: held-out loss by learning rate, ascending; None where the run diverged or failed.
        interior: whether the chosen rate has a neighbour on both sides.
    """

    rate: float | None
    curve: Mapping[float, float | None] = field(default_factory=dict)
    interior: bool = True


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
        self._do("training", [job for jobs in finals for job in jobs])
        runs = self._runs_table(tuned, finals)
        results = Results(runs, {}, self.scale, _curves(self.arms, tuned))
        for measure in self.study.measures:
            table = self._measure(measure, results)
            results = Results(runs, {**results.tables, measure.name: table}, self.scale, results.curves)
        self.seconds = time.perf_counter() - began
        return replace(results, strata=self.strata.numbers()), tuned

    def _do(self, stage: str, jobs: Sequence[Job]) -> None:
        """Do those that are not in the store."""
        by_key = {job.key: job for job in jobs}
        missing = [job for job in by_key.values() if not self.store.intact(job)]
        self.reused += len({key for key in by_key if key not in self.used} - {job.key for job in missing})
        self.used |= by_key
        done, failed = len(by_key) - len(missing), 0
        self.progress(stage, done, len(by_key), failed, "")
        for chunk, failed_keys in self.engine.run(_chunks(missing), self.store):
            done, failed = done + len(chunk.jobs), failed + len(failed_keys)
            for job in chunk.jobs:
                if (failure := self.store.failure(job.key)) is not None:
                    self.failures[job.title] = failure["message"]
            self.progress(stage, done, len(by_key), failed, chunk.title)

    def _train_job(self, arm: Arm, seed: int, rate: float | None, title: str, *, final: bool) -> Job:
        values = {section: dict(keys) for section, keys in self.scale.config.items()}
        changes = dict(arm.changes) | ({} if rate is None else {"optim.learning_rate": rate})
        changes |= dict.fromkeys(arm.seeded, seed)
        for path, value in changes.items():
            section, _, key = path.partition(".")
            values.setdefault(section, {})[key] = value
        values["training"] = {"measure_cost": False, **values.get("training", {}), "seed": seed, "device": self.device}
        config = resolved(parse(values, f"{self.study.name}, {title},"))
        spec = {
            "kind": "train",
            "config": config,
            "test_split": self.scale.test_split if final else None,
            "test_samples": self.scale.test_samples if final else None,
            "data": data_hashes(config),
        }
        return Job(spec, title=title)

    def _tune(self) -> list[Tuned]:
        """The learning rate of every arm: all sweeps at once, then what lies beyond their ends."""
        rates = {i: list(arm.learning_rates) for i, arm in enumerate(self.arms) if len(arm.learning_rates) > 1}
        curves: dict[int, dict[float, float | None]] = {i: {} for i in rates}
        for _ in range(EXTENSIONS + 1):
            jobs = {
                (i, rate): self._tuning_job(self.arms[i], rate)
                for i, arm_rates in rates.items()
                for rate in arm_rates
                if rate not in curves[i]
            }
            if not jobs:
                break
            self._do("tuning", list(jobs.values()))
            for (i, rate), job in jobs.items():
                curves[i][rate] = self._held_out(job.key)
            for i, arm_rates in rates.items():
                arm_rates.extend(_beyond(curves[i]))
        return [self._chosen(arm, curves.get(i)) for i, arm in enumerate(self.arms)]

    def _tuning_job(self, arm: Arm, rate: float) -> Job:
        seed = _seed({**arm.changes, "config": self.scale.config}, TUNING_SEED) if arm.seed is None else TUNING_SEED
        return self._train_job(arm, seed, rate, f"{_named(arm)}, rate {rate:g} (tuning)", final=False)

    def _chosen(self, arm: Arm, curve: Mapping[float, float | None] | None) -> Tuned:
        if curve is None:
            rate = arm.learning_rates[0] if arm.learning_rates else None
            return Tuned(rate)
        finite = {rate: loss for rate, loss in curve.items() if loss is not None}
        if not finite:
            self.failures[f"{_named(arm)} (tuning)"] = "no learning rate gave a finite loss"
            return Tuned(None, dict(sorted(curve.items())), interior=False)
        best = min(finite, key=finite.__getitem__)
        return Tuned(best, dict(sorted(curve.items())), min(curve) < best < max(curve))

    def _held_out(self, key: str) -> float | None:
        done = self.store.done(key)
        return (read_summary(self.store.run_folder(key)).get("held_out") or {}).get("loss") if done else None

    def _finals(self, tuned: Sequence[Tuned]) -> list[list[Job]]:
        """The jobs of every arm, a replicate each. An arm without a rate has none."""
        by_labels = {_key(arm.labels): t for arm, t in zip(self.arms, tuned, strict=True)}
        finals: list[list[Job]] = []
        for i, arm in enumerate(self.arms):
            source = tuned[i] if arm.rate_of is None else by_labels[_key(arm.rate_of)]
            if source.rate is None and (arm.learning_rates or arm.rate_of is not None):
                finals.append([])
                continue
            rate = source.rate
            if rate is not None and arm.rate_factor != 1.0:
                rate = _rounded(rate * arm.rate_factor)
            changes = {**arm.changes, "config": self.scale.config}
            seeds = [_seed(changes, n) if arm.seed is None else arm.seed + n for n in range(self.scale.replicates)]
            finals.append(
                [
                    self._train_job(arm, seed, rate, f"{_named(arm)}, replicate {n}", final=True)
                    for n, seed in enumerate(seeds)
                ]
            )
        return finals

    def _runs_table(self, tuned: Sequence[Tuned], finals: Sequence[Sequence[Job]]) -> "pd.DataFrame":
        import pandas as pd

        rows = []
        for arm, jobs in zip(self.arms, finals, strict=True):
            for n, job in enumerate(jobs):
                if (row := self._row(job)) is not None:
                    rows.append({**arm.labels, "replicate": n, **row})
                    self.strata.add(RUNS, self._owner(arm, job))
        columns = list(dict.fromkeys(key for arm in self.arms for key in arm.labels))
        return pd.DataFrame(rows, columns=None if rows else [*columns, "replicate", "loss", "key"])

    def _owner(self, arm: Arm, job: Job) -> Hashable:
        """Whose replicate a final run is: its arm's, which is linked to all that share the run or its seed, as arms do
        that differ in their learning rate alone."""
        seed = job.spec["config"]["training"]["seed"]
        return self.strata.link([("arm", _key(arm.labels)), ("run", job.key), ("seed", seed)])

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
        same = config["data"]["eval_split"] == config["data"]["train_split"]  # what the run stored is the question
        test = held_out if same or job.spec["test_split"] is None else read_score(folder / TEST)
        if test is None:
            self.failures[job.title] = (
                f"{TEST} is missing in the store; remove the folder {job.key} to do the run again"
            )
            return None
        return {
            "seed": config["training"]["seed"],
            "learning_rate": None if config["method"].get("train") == [] else config["optim"]["learning_rate"],
            "loss": test["loss"],
            "accuracy": test["accuracy"],
            "held_out_loss": held_out["loss"],
            "trained": run.get("trained_parameters"),
            "steps": summary.get("steps"),
            "seconds": done.get("seconds"),
            "key": job.key,
        }

    def _measure(self, measure: Measure, results: Results) -> "pd.DataFrame":
        import pandas as pd

        try:
            specs = list(measure.specs(results))
        except Exception as error:  # such as a column that no run was left to fill
            self.failures[measure.name] = f"its measurements could not be listed: {type(error).__name__}: {error}"
            return pd.DataFrame()
        jobs = {job.key: (spec, job) for spec in specs for job in [self._measure_job(measure, spec)]}
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


def _chunks(jobs: Sequence[Job]) -> list[Chunk]:
    """Training runs that can share a pass and gain by it, together; everything else alone."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(_shared(job), []).append(job)
    chunks = []
    for key, group in groups.items():
        size = _max_together(group[0]) if key != "alone" else 1
        chunks += [Chunk(tuple(group[start : start + size])) for start in range(0, len(group), size)]
    return chunks


def _shared(job: Job) -> str:
    """What runs of one pass agree in."""
    if job.spec["kind"] != "train" or _max_together(job) == 1:
        return "alone"
    config = job.spec["config"]
    training = {key: value for key, value in config["training"].items() if key != "seed"}
    parts = [config["model"], config["data"], training, config["method"]["name"], job.spec["test_split"]]
    return json.dumps(parts, sort_keys=True)


def _max_together(job: Job) -> int:
    from lorascope.adapt.method import methods
    from lorascope.training.sweep import default_parallel

    config = parse(job.spec["config"])
    if config.model.dropout != 0.0 or not methods.get(config.method.name).uses_targets:
        return 1  # the base's own dropout is each run's; what trains the base itself shares nothing
    return default_parallel(config)


def _beyond(curve: Mapping[float, float | None]) -> list[float]:
    """The next learning rate beyond the end of a sweep, where the best is at that end."""
    finite = {rate: loss for rate, loss in curve.items() if loss is not None}
    if not finite:
        return []
    rates, best = sorted(curve), min(finite, key=finite.__getitem__)
    if best == rates[-1]:
        return [_rounded(rates[-1] * rates[-1] / rates[-2])]
    return [_rounded(rates[0] * rates[0] / rates[1])] if best == rates[0] else []


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


def _seed(config: Mapping[str, Any], replicate: int) -> int:
    """A seed that this config and replicate have, and hardly any other."""
    text = json.dumps([config, replicate], sort_keys=True, default=list)
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) >> 1


def _curves(arms: Sequence[Arm], tuned: Sequence[Tuned]) -> "pd.DataFrame":
    import pandas as pd

    rows = [
        {**arm.labels, "learning_rate": rate, "held_out_loss": loss, "chosen": rate == t.rate, "interior": t.interior}
        for arm, t in zip(arms, tuned, strict=True)
        for rate, loss in t.curve.items()
    ]
    return pd.DataFrame(rows)


def _labels(arms: Sequence[Arm]) -> list[str]:
    return list(dict.fromkeys(key for arm in arms for key in arm.labels))


def _named(arm: Arm) -> str:
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
            raise InputError(f"the arm {_named(arm)} takes the rate of an arm that {problem}", found=dict(arm.rate_of))
