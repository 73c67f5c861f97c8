"""Numbers that many studies judge: mean test losses, and how far they lie below the head's alone.

The arms have a label `method`, and two of them are the reference points: HEAD_ALONE and FULL_TUNING.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lorascope.blocks import Column, Table
from lorascope.study.results import Results

if TYPE_CHECKING:
    import pandas as pd

HEAD_ALONE, FULL_TUNING = "head alone", "full fine-tuning"


def loss(results: Results, method: str, **labels: Any) -> float:
    """The mean test loss of the runs with these labels.

    Raises:
        ValueError: there are none.
    """
    return _mean(results, "loss", method, labels)


def accuracy(results: Results, method: str, **labels: Any) -> float:
    """The mean test accuracy of the runs with these labels.

    Raises:
        ValueError: there are none.
    """
    return _mean(results, "accuracy", method, labels)


def _mean(results: Results, column: str, method: str, labels: Mapping[str, Any]) -> float:
    runs = results.runs
    chosen = runs["method"].to_numpy() == method  # arrays: this is called thousands of times for one interval
    for key, value in labels.items():
        chosen = chosen & (runs[key].to_numpy() == value)
    if not chosen.any():
        raise ValueError(f"no run of {method}")
    return float(runs[column].to_numpy()[chosen].mean())


def gain(results: Results, method: str, **labels: Any) -> float:
    """How far its loss lies below that of the head alone, with the same labels except `method`."""
    return loss(results, HEAD_ALONE, **labels) - loss(results, method, **labels)


def share(results: Results, method: str, **labels: Any) -> float:
    """Its gain over full fine-tuning's."""
    return gain(results, method, **labels) / gain(results, FULL_TUNING, **labels)


def lead(first: str, second: str, **labels: Any) -> Callable[[Results], float]:
    """The statistic: by how much the first one's gain exceeds the second's, over full fine-tuning's gain."""
    return lambda results: share(results, first, **labels) - share(results, second, **labels)


def accuracy_lead(first: str, second: str, **labels: Any) -> Callable[[Results], float]:
    """The statistic: accuracy of the first less that of the second, from 0 to 1; the unit of most published results."""
    return lambda results: accuracy(results, first, **labels) - accuracy(results, second, **labels)


def tuning_curve(results: Results, method: str) -> "pd.Series[float]":
    """Mean held-out loss by learning rate, ascending; without rates at which a run diverged."""
    curve = results.curves[results.curves["method"] == method]
    by_rate = curve.groupby("learning_rate")["held_out_loss"]
    return by_rate.mean()[by_rate.count() == by_rate.size()]


def parameters(results: Results, method: str) -> int:
    """How many parameters it trains, without the head's: the mean over runs, where these differ."""
    trained = results.runs.groupby("method")["trained"].mean()
    return round(trained[method] - trained[HEAD_ALONE])


def by_method(results: Results, **labels: Any) -> Table:
    """All methods with their parameters, learning rates, losses and gains, by parameters."""
    runs = results.runs
    for key, value in labels.items():
        runs = runs[runs[key] == value]
    rows: list[tuple[Any, ...]] = []
    for method, part in runs.groupby("method", sort=False):
        rate = None if method == HEAD_ALONE else part["learning_rate"].iloc[0]
        outcome = (loss(results, method, **labels), gain(results, method, **labels), share(results, method, **labels))
        rows.append((method, parameters(results, method), rate, *outcome))
    columns = (
        Column("method", "Method"),
        Column("trained", "Trainable parameters (head excluded)", "int"),
        Column("rate", "Learning rate", "float"),
        Column("loss", "Loss (nats)", "float", 4),
        Column("gain", "Gain (nats)", "float"),
        Column("share", "Share of full fine-tuning's gain", "percent"),
    )
    caption = "Means over replicates. Gain: how far the loss lies below that of the head alone."
    title = ", ".join(["By method", *map(str, labels.values())])
    rows.sort(key=lambda row: row[1])
    return Table(columns, tuple(rows), title, caption)
