"""What is read off a trained vector (scales, magnitudes, scores): size, evenness, correlation, and its figure."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lorascope.analyses.toolkit import Row, group, medians, value
from lorascope.blocks import Block, Lines, Marker, Series

LEVELS = np.linspace(0.0, 1.0, 21)  # of the quantiles in `distribution`
GAUSSIAN_SPREAD = 1 / 3  # participation of many independent Gaussian entries: (E x²)² / E x⁴
_DRAWS = 2000


def spread(values: np.ndarray) -> float | None:
    """(Σx²)² / (n·Σx⁴): 1 where all entries are equally large, 1/n where one entry is everything; None for zeros."""
    top = float(np.max(np.abs(values), initial=0.0))
    if top == 0 or not np.isfinite(top):
        return None
    squares = (values / top) ** 2
    return float(squares.sum() ** 2 / (squares.size * np.sum(squares**2)))


def distribution(values: np.ndarray) -> Row | None:
    """Moments and 21 quantiles (0, 5, ..., 100 %) of a vector; None where it is empty or not finite."""
    if values.size == 0 or not np.all(np.isfinite(values)):
        return None
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "median": float(np.median(values)),
        "max": float(values.max()),
        "negative": float(np.mean(values < 0)),
        "quantiles": np.quantile(values, LEVELS).tolist(),
    }


def gini(values: np.ndarray) -> float | None:
    """Σ_ij |x_i − x_j| / (2 n² mean): 0 where all are equal, near 1 where one has everything; None for zeros."""
    total = float(values.sum())
    if total == 0:
        return None
    ordered, n = np.sort(values), len(values)
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * total))


def correlation(x: np.ndarray, y: np.ndarray) -> tuple[float, float] | None:
    """Pearson's r, and the share of random re-pairings whose |r| is as large; None below four points or for constants.

    The pairings are drawn from a fixed seed: the same data give the same share.
    """
    if len(x) < 4:
        return None
    a, b = x - x.mean(), y - y.mean()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    if norm == 0 or not np.isfinite(norm):
        return None
    r = float(a @ b) / norm
    rng = np.random.default_rng(len(x))
    drawn = np.abs(rng.permuted(np.tile(b, (_DRAWS, 1)), axis=1) @ a) / norm
    # The observed pairing counts as one of the draws, so that no share is 0 by lack of draws.
    return r, float((np.sum(drawn >= abs(r) - 1e-12) + 1) / (_DRAWS + 1))


def cumulative(
    title: str, rows: Sequence[Any], key: str, x_label: str, markers: tuple[Marker, ...] = (), caption: str = ""
) -> list[Block]:
    """The share of a vector's entries at or below each value, a thin line for each module and a panel for each type.

    `key` leads to a `distribution`. Nothing where no row has one.
    """
    y = tuple(LEVELS.tolist())
    series = []
    for name, members in group(rows).items():
        known = [row for row in members if value(row, key)]
        for row in known:
            weight: Any = "thin" if len(known) > 1 else "normal"
            label = value(row, "name") if len(known) > 1 else "the one module"
            series.append(Series(label, tuple(value(row, key)["quantiles"]), y, name, weight))
        if len(known) > 1:
            middle = medians([value(row, key)["quantiles"] for row in known])
            series.append(Series("median", tuple(middle.tolist()), y, name))
    if not series:
        return []
    text = f"One thin line for each module, through its 21 quantiles; the bold line is their median. {caption}".strip()
    return [
        Lines(title, tuple(series), x_label, "share of entries at or below", markers=markers, where="page",
              caption=text, shade="depth, first to last")
    ]  # fmt: skip
