"""Statistics of claims on ranks, of the tables that the measures of `rank` and `truncation` make under their own names.

`spectral` has a row for each matrix of a run, `functional` one for each k of a curve.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from lorascope.study.results import Results
from lorascope.study.statistics import once

if TYPE_CHECKING:
    import pandas as pd

Statistic = Callable[[Results], float]


@once
def mean_of(
    results: Results, column: str, method: str = "full", rank: int | None = None, over: str | None = None
) -> float:
    """Of the spectra: the mean over matrices and replicates of a column, or of its ratio over another."""
    table = results.tables["spectral"]
    chosen = table["method"].to_numpy() == method
    chosen = chosen if rank is None else chosen & (table["rank"].to_numpy() == rank)
    if not chosen.any():
        raise ValueError(f"no spectra of {method}")
    values = table[column].to_numpy(float)[chosen]
    return float(np.mean(values if over is None else values / table[over].to_numpy(float)[chosen]))


def ratio(over: str, under: str) -> Statistic:
    """Of full fine-tuning: the mean over matrices of one column over another."""
    return lambda results: mean_of(results, over, "full", None, under)


@once
def curve_of(results: Results, kind: str) -> "pd.DataFrame":
    table = results.tables["functional"]
    chosen = table["curve"].to_numpy() == kind
    if not chosen.any():
        raise ValueError(f"no truncation of the kind {kind}")
    return table[chosen]


@once
def smallest_of_each(results: Results, kind: str, column: str) -> dict[int, float]:
    """By replicate: the smallest k that keeps a share of the gain."""
    curve = curve_of(results, kind)
    replicates, first = np.unique(curve["replicate"].to_numpy(), return_index=True)
    values = curve[column].to_numpy(float)[first]
    if np.isnan(values).any():
        raise ValueError("a run has no such k, because it gained nothing")
    return dict(zip(replicates, values, strict=True))


def smallest(results: Results, kind: str = "top", column: str = "k90") -> float:
    """Mean over replicates of the smallest k that keeps a share of the gain."""
    return float(np.mean(list(smallest_of_each(results, kind, column).values())))


@once
def full_rank(results: Results) -> int:
    return int(curve_of(results, "top")["k"].max())


def kept(kind: str, column: str, place: float | None) -> Statistic:
    """Mean over replicates of a column at a k: `place` is a share of full rank, or None for each run's own k90."""

    def statistic(results: Results) -> float:
        curve = curve_of(results, kind)
        k, replicate = curve["k"].to_numpy(), curve["replicate"].to_numpy()
        if place is None:
            k90 = smallest_of_each(results, "top", "k90")
            at = k == np.array([k90[each] for each in replicate])
        else:
            at = k == round(place * full_rank(results))
        if not at.any():
            raise ValueError("no truncation at this k")
        return float(curve[column].to_numpy()[at].mean())

    return statistic


def share_of_directions(kind: str) -> Statistic:
    """The smallest k with 90 % of the gain, over full rank."""
    return lambda results: smallest(results, kind) / full_rank(results)


def energy_over(kind: str, column: str = "k90") -> Statistic:
    """The rank for 90 % of the energy over a k90."""
    return lambda results: mean_of(results, "r90") / smallest(results, kind, column)
