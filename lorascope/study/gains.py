"""Numbers that many studies judge: mean test losses, and how far they lie below the head's alone.

The arms have a label `method`, and two of them are the reference points: HEAD_ALONE and FULL_TUNING. Of a decoder,
which has no new head, HEAD_ALONE is the base as it is, and is shown as BASE_ALONE.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.blocks import Column, Table
from lorascope.study.grid import DECODER, StudyScale
from lorascope.study.results import Results
from lorascope.study.statistics import once

if TYPE_CHECKING:
    import pandas as pd

HEAD_ALONE, FULL_TUNING = "head alone", "full fine-tuning"
BASE_ALONE = "base alone"
BY_STEP, BY_STEP_TABLE = "full fine-tuning, scored as it trains", "by_step"  # of `measures.by_step`: no method
NATS, POINTS = "nats", "points of accuracy"  # units of `InUnits`


@dataclass(frozen=True)
class InUnits:
    """A statistic that tells the same effect in other units, too: `Also` in the verdicts.

    Attributes:
        also: the other statistics by their unit.
    """

    statistic: Callable[[Results], float]
    also: Mapping[str, Callable[[Results], float]]

    def __call__(self, results: Results) -> float:
        return self.statistic(results)


def loss(results: Results, method: str, **labels: Any) -> float:
    """The mean test loss of the runs with these labels.

    Raises:
        ValueError: there are none.
    """
    return _mean(results, "loss", method, *labels.items())


def accuracy(results: Results, method: str, **labels: Any) -> float:
    """The mean test accuracy of the runs with these labels.

    Raises:
        ValueError: there are none.
    """
    return _mean(results, "accuracy", method, *labels.items())


@once
def _mean(results: Results, column: str, method: str, *labels: tuple[str, Any]) -> float:
    chosen = _values(results, "method") == method
    for key, value in labels:
        chosen = chosen & (_values(results, key) == value)
    if not chosen.any():
        raise ValueError(f"no run of {method}")
    return float(_values(results, column)[chosen].mean())


@once
def _values(results: Results, column: str) -> Any:
    """An array: a column of a table takes longer than all that is done with it, thousands of times for an interval."""
    return results.runs[column].to_numpy()


def alone(scale: StudyScale) -> str:
    """What gains are counted from, in words."""
    return BASE_ALONE if scale.testbed == DECODER else HEAD_ALONE


def gain(results: Results, method: str, **labels: Any) -> float:
    """How far its loss lies below that of the head alone, with the same labels except `method`."""
    return loss(results, HEAD_ALONE, **labels) - loss(results, method, **labels)


def share(results: Results, method: str, **labels: Any) -> float:
    """Its gain over full fine-tuning's."""
    return gain(results, method, **labels) / gain(results, FULL_TUNING, **labels)


def share_of(method: str, **labels: Any) -> InUnits:
    """The statistic: its gain over full fine-tuning's."""
    other_units = _differences(method, HEAD_ALONE, labels)
    return InUnits(lambda results: share(results, method, **labels), other_units)


def lead(first: str, second: str, **labels: Any) -> InUnits:
    """The statistic: by how much the first one's gain exceeds the second's, over full fine-tuning's gain."""
    return InUnits(
        lambda results: share(results, first, **labels) - share(results, second, **labels),
        _differences(first, second, labels),
    )


def accuracy_lead(first: str, second: str, **labels: Any) -> InUnits:
    """The statistic: accuracy of the first less that of the second, from 0 to 1; the unit of most published results."""
    other_units = _differences(first, second, labels)
    return InUnits(
        lambda results: accuracy(results, first, **labels) - accuracy(results, second, **labels),
        {NATS: other_units[NATS]},
    )


def _differences(first: str, second: str, labels: Mapping[str, Any]) -> Mapping[str, Callable[[Results], float]]:
    """How much better the first is than the second, in loss and in accuracy."""
    return {
        NATS: lambda results: loss(results, second, **labels) - loss(results, first, **labels),
        POINTS: lambda results: 100 * (accuracy(results, first, **labels) - accuracy(results, second, **labels)),
    }


def tuning_curve(results: Results, method: str) -> "pd.Series[float]":
    """Mean held-out loss by learning rate, ascending; without rates at which a run diverged."""
    curve = results.curves[results.curves["method"] == method]
    by_rate = curve.groupby("learning_rate")["held_out_loss"]
    return by_rate.mean()[by_rate.count() == by_rate.size()]


def parameters(results: Results, method: str) -> int:
    """How many parameters it trains, without the head's: the mean over runs, where these differ."""
    return round(_mean(results, "trained", method) - _mean(results, "trained", HEAD_ALONE))


def full_curve(results: Results) -> tuple[np.ndarray, np.ndarray]:
    """Full fine-tuning as it trains: (n,) steps and (n,) mean held-out losses; empty where nothing was measured."""
    table = results.tables.get(BY_STEP_TABLE)
    if table is None or not len(table):
        return np.empty(0), np.empty(0)
    means = table.groupby("step")["held_out_loss"].mean()
    return means.index.to_numpy(float), means.to_numpy(float)


def steps_to(results: Results, held_out_loss: float) -> float | None:
    """The step at which full fine-tuning has come down to this held-out loss, by a line between evaluations; None
    where it does not, or had before the first evaluation."""
    steps, losses = full_curve(results)
    lowest = np.minimum.accumulate(losses)
    if not len(steps) or held_out_loss < lowest[-1] or held_out_loss > lowest[0]:
        return None
    return float(np.interp(-held_out_loss, -lowest, steps))


def by_method(results: Results, **labels: Any) -> Table:
    """All methods with their parameters, learning rates, losses and gains, by parameters."""
    runs = results.runs
    for key, value in labels.items():
        runs = runs[runs[key] == value]
    measured = len(full_curve(results)[0]) > 0
    rows: list[tuple[Any, ...]] = []
    for method, part in runs[runs["method"] != BY_STEP].groupby("method", sort=False):
        rate = None if method == HEAD_ALONE else part["learning_rate"].iloc[0]
        outcome = (loss(results, method, **labels), gain(results, method, **labels), share(results, method, **labels))
        accuracies = (accuracy(results, method, **labels),) if "accuracy" in part else ()
        steps = (steps_to(results, part["held_out_loss"].mean()),) if measured else ()
        name = alone(results.scale) if method == HEAD_ALONE else method
        rows.append((name, parameters(results, method), rate, *outcome, *accuracies, *steps))
    columns = (
        Column("method", "Method"),
        Column("trained", "Trainable parameters (head excluded)", "int"),
        Column("rate", "Learning rate", "float"),
        Column("loss", "Loss (nats)", "float", 4),
        Column("gain", "Gain (nats)", "float"),
        Column("share", "Share of full fine-tuning's gain", "percent"),
        *([Column("accuracy", "Accuracy", "percent")] if "accuracy" in runs else []),
        *([Column("steps", "Full fine-tuning's steps to its held-out loss", "int")] if measured else []),
    )
    caption = f"Means over replicates. Gain: how far the loss lies below that of the {alone(results.scale)}."
    if not measured and results.scale.testbed == "encoder":
        caption += (
            " After so few steps a share is speed as much as quality: full fine-tuning's own loss over its steps is on "
            "the page of “variants”."
        )
    title = ", ".join(["By method", *map(str, labels.values())])
    rows.sort(key=lambda row: row[1])
    return Table(columns, tuple(rows), title, caption)
