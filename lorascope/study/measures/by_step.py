"""Full fine-tuning's held-out loss over its own steps, so that a method's speed is not read as its quality.

A run that is stopped early has not had its rate decayed: its curve lies above that of a run of so few steps.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorascope.blocks import Lines, Series
from lorascope.inputs import read_json_lines
from lorascope.study.definition import Measure, MeasurementSpec
from lorascope.study.gains import BY_STEP, BY_STEP_TABLE, FULL_TUNING, full_curve
from lorascope.study.grid import Arm, Scalar, StudyScale
from lorascope.study.results import Results
from lorascope.study.tasks import FULL

EVALUATIONS = 10  # over a run


def arm(scale: StudyScale, labels: Mapping[str, Any] | None = None) -> Arm:
    """Full fine-tuning at its tuned rate, scored as it trains.

    Args:
        labels: of full fine-tuning's arm, apart from `method`.
    """
    others = labels or {}
    steps = max(1, scale.config["training"]["max_steps"] // EVALUATIONS)
    return Arm(
        {"method": BY_STEP, **others},
        {**FULL, "training.eval_steps": steps},
        rate_of={"method": FULL_TUNING, **others},
    )


def held_out_by_step(folders: Sequence[Path], method: str) -> Iterator[Mapping[str, Scalar]]:
    """The held-out loss of every evaluation of one run; `method` names its arm, which may share the run."""
    for line in read_json_lines(folders[0] / "metrics.jsonl"):
        if line and "eval_loss" in line:
            yield {"step": line["step"], "held_out_loss": line["eval_loss"]}


def specs(results: Results) -> Iterable[MeasurementSpec]:
    runs = results.runs
    return [MeasurementSpec((key,), {"method": BY_STEP}) for key in runs.loc[runs["method"] == BY_STEP, "key"]]


def measure() -> Measure:
    """For a study that has the arm; its script imports `held_out_by_step`, where workers look for it."""
    return Measure(BY_STEP_TABLE, held_out_by_step, specs, needs_weights=False)


def figure(results: Results) -> list[Lines]:
    """The curve; none where nothing was measured."""
    steps, losses = full_curve(results)
    if len(steps) < 2:
        return []
    series = (Series(FULL_TUNING, tuple(map(float, steps)), tuple(map(float, losses))),)
    caption = (
        "Means over replicates, at its tuned rate, as it trains: the learning rate has not decayed yet. A method that "
        "ends at a loss on this curve is as good as full fine-tuning was after so many steps."
    )
    return [Lines("Full fine-tuning over its steps", series, "step", "held-out loss (nats)", caption=caption)]
