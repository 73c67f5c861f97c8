"""What the statistics of claims share: arrays in, one number out."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from lorascope.study.results import Results


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of results, computed once for the same results and arguments: the criteria of a study share it.

    Only the last results are remembered: thousands of resamples pass.
    """
    last: list[Any] = [None, {}]

    @functools.wraps(function)
    def remembered(results: Results, *arguments: Any, **named: Any) -> Any:
        if last[0] is not results:
            last[:] = [results, {}]
        key = (arguments, tuple(sorted(named.items())))
        if key not in last[1]:
            last[1][key] = function(results, *arguments, **named)
        return last[1][key]

    return remembered


def slope(x: Any, y: Any) -> float:
    """Of the straight line through points by least squares.

    Raises:
        ValueError: all x are equal.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    centred = x - x.mean()
    if not centred.any():
        raise ValueError("all points have one place on the axis")
    return float(centred @ y / (centred @ centred))


def ranked(values: Any) -> np.ndarray:
    """Ranks with ties averaged, to mean 0 and standard deviation 1.

    Raises:
        ValueError: all values are equal.
    """
    values = np.asarray(values, dtype=float)
    ranks = (values[:, None] > values).sum(1) + (values[:, None] == values).sum(1) / 2
    spread = ranks.std()
    if spread == 0:
        raise ValueError("all values are equal")
    return (ranks - ranks.mean()) / spread


def spearman(x: Any, y: Any, given: Any = None) -> float:
    """Spearman's ρ; the partial one where a third variable is given.

    Raises:
        ValueError: all values of one are equal, or the third one leaves nothing to correlate.
    """
    return correlation(ranked(x), ranked(y), None if given is None else ranked(given))


def correlation(x: np.ndarray, y: np.ndarray, z: np.ndarray | None = None) -> float:
    """Pearson's, of values with mean 0 and standard deviation 1; the partial one given z."""
    xy = float(np.mean(x * y))
    if z is None:
        return xy
    xz, yz = float(np.mean(x * z)), float(np.mean(y * z))
    left = (1 - xz**2) * (1 - yz**2)
    if left < 1e-12:  # rounding aside, one is 1
        raise ValueError("the third variable puts the values in the same order as one of the two")
    return (xy - xz * yz) / float(np.sqrt(left))


def area_under_roc(positive: Any, score: Any) -> float:
    """The probability that a positive has the higher score than a negative; of equal scores a half.

    Raises:
        ValueError: all are positive, or none.
    """
    positive, score = np.asarray(positive, dtype=bool), np.asarray(score, dtype=float)
    if positive.all() or not positive.any():
        raise ValueError("all are positive, or none")
    negatives = np.sort(score[~positive])
    below = np.searchsorted(negatives, score[positive], side="left")
    below_or_equal = np.searchsorted(negatives, score[positive], side="right")
    return float(np.mean(below + below_or_equal) / (2 * len(negatives)))


def crossing(sizes: np.ndarray, values: np.ndarray, level: float, beyond: bool = False, on_grid: bool = False) -> float:
    """The first size at a level: of the grid, or between two of it, log-linear on the curve's running maximum.

    Args:
        sizes: ascending.
        beyond: where no size reaches it, take the next that the grid would have had, which is a lower bound.

    Raises:
        ValueError: no size reaches it.
    """
    top = np.maximum.accumulate(values)
    if top[-1] < level:
        if not beyond:
            raise ValueError("no size of the grid reaches it")
        return float(sizes[-1] ** 2 / sizes[-2]) if len(sizes) > 1 else float(sizes[-1])
    at = int(np.argmax(top >= level))
    if at == 0 or on_grid:
        return float(sizes[at])
    part = (level - top[at - 1]) / (top[at] - top[at - 1])
    return float(sizes[at - 1] * (sizes[at] / sizes[at - 1]) ** part)
