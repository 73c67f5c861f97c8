"""A study for the engine's tests: tiny runs, a measure of runs, a measure of numbers, claims of every verdict."""

import json
import math

from lorascope.blocks import Lines, Series
from lorascope.study import Arm, Claim, Control, Criterion, Measure, MeasurementSpec, Study, StudyScale

CONFIG = {
    "model": {"name": "to be named", "task_type": "SEQ_CLS", "dropout": 0.0},
    "data": {"path": "to be named", "max_length": 16},
    "method": {"name": "lora", "targets": ["query", "value"], "alpha": 4},
    "training": {"max_steps": 3, "per_device_train_batch_size": 4, "device": "cpu"},
}


def arms(scale):
    for rank in scale.params["ranks"]:
        yield Arm({"method": "lora", "rank": rank}, {"method.rank": rank}, (1e-3, 3e-3))
    yield Arm(
        {"method": "lora", "rank": 0}, {"method.rank": 1, "method.alpha": 1}, rate_of={"method": "lora", "rank": 1}
    )


def sizes(folders, power):
    """A number of one run."""
    steps = json.loads((folders[0] / "summary.json").read_text())["steps"]
    return [{"size": float(_raised(steps, power))}]


def _raised(steps, power):
    return steps**power


def waves(folders, frequency, replicate):
    """A number of no run."""
    return [{"wave": math.sin(frequency) + 0.01 * replicate}]


def each_run(results):
    return [MeasurementSpec((key,), {"power": 2}) for key in results.runs["key"]]


def each_wave(results):
    replicates = range(results.scale.replicates)
    return [MeasurementSpec((), {"frequency": f, "replicate": n}) for f in (1.0, 2.0) for n in replicates]


def figures(results):
    runs = results.runs.groupby("rank")["loss"].mean()
    return [Lines("Loss by rank", (Series("loss", tuple(map(float, runs.index)), tuple(runs)),), "rank", "loss")]


def size(results):
    return results.tables["sizes"]["size"].mean()


def mean_loss(results):
    return results.runs["loss"].mean()


study = Study(
    name="toy",
    title="A toy",
    question="Does the engine work?",
    varied="the rank",
    tuned="the learning rate",
    fixed="everything else",
    scales={
        "smoke": StudyScale(CONFIG, 2, {"ranks": [1, 2]}, test_split=None),
        "small": StudyScale(CONFIG, 3, {"ranks": [1, 2, 4]}, test_split=None),
    },
    arms=arms,
    measures=(Measure("sizes", sizes, each_run), Measure("waves", waves, each_wave)),
    claims=(
        Claim("nine", "Three squared is nine", "arithmetic", (Criterion("size", size, at_least=9, at_most=9),)),
        Claim("ten", "Three squared is ten", "arithmetic", (Criterion("size", size, at_least=10),)),
        Claim(
            "no-control",
            "A control that holds spoils a claim",
            "here",
            (Criterion("size", size, at_least=9),),
            (Control("the same", size, at_least=9),),
        ),
        Claim(
            "missing", "What is not there", "here", (Criterion("none", lambda r: r.runs["absent"].mean(), at_least=0),)
        ),
        Claim("loss", "The loss is finite", "here", (Criterion("loss", mean_loss, at_most=100.0),)),
    ),
    figures=figures,
)

if __name__ == "__main__":
    study.main()
