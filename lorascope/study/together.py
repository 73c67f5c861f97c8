"""Several studies of one scale that share runs, arm by arm.

A study measures when all of its runs are there. Where a run's weights are too large to be kept or carried, its measures
are better made before the next arm is trained: an arm at a time, of every study. What is trained and measured is the
same, and so is its key; only the order differs. A study that measures no weights is better run whole: the sweeps of all
its arms share passes, and no worker waits for the last run of an arm.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from lorascope.study.definition import Study
from lorascope.study.grid import Arm, StudyScale
from lorascope.study.runner import Runner
from lorascope.study.store import Store


def is_by_arm(runner: Runner) -> bool:
    """Whether the study's arms are better measured one at a time, at the runner's scale."""
    return runner.scale.by_arm and any(measure.needs_weights for measure in runner.study.measures)


def first_arms(study: Study, count: int) -> Study:
    """The study with its first arms alone, and of these without one that takes the learning rate of a later one."""

    def arms(scale: StudyScale) -> Iterator[Arm]:
        taken = list(study.arms(scale))[:count]
        labels = [dict(arm.labels) for arm in taken]
        return (arm for arm in taken if arm.rate_of is None or dict(arm.rate_of) in labels)

    return replace(study, arms=arms)


def prefixes(studies: Sequence[Study], scale: str) -> Iterator[Study]:
    """Each study with its first arm, then each with its first two, and so on."""
    counts = [len(list(study.arms(study.scales[scale]))) for study in studies]
    for count in range(1, max(counts, default=0) + 1):
        for study, its_count in zip(studies, counts, strict=True):
            if count <= its_count:
                yield first_arms(study, count)


def run_by_arm(studies: Sequence[Study], scale: str, runner_of: Callable[[Study], Runner]) -> None:
    """Train and measure all arms of all studies, in this order; nothing is judged."""
    for study in prefixes(studies, scale):
        runner_of(study).run()


def discard_weights(runners: Iterable[Runner], store: Store) -> int:
    """Remove the weights of runs for which no measure of any of these studies waits; how many bytes that freed."""
    runners = list(runners)
    waiting = {key for runner in runners for key in runner.waited_for()}
    runs = {key: job for runner in runners for key, job in runner.used.items() if job.spec["kind"] == "train"}
    return sum(store.discard_weights(key) for key in runs if key not in waiting)
