"""Trained runs by size: the smallest rank, or the smallest d, whose training reaches a share of the gain.

As Li et al. 2018 have it, the answer is the first size on the grid, never one between two, with the sizes on both sides
of it. Its interval is a bootstrap over seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorascope.analyses.dimension.facts import RunFacts
from lorascope.analyses.dimension.spectra import SHARES
from lorascope.linalg.threshold import largest_drop

RESAMPLES = 2000
ENDS = (2.5, 97.5)  # percent


@dataclass(frozen=True)
class TrainedRun:
    """A run that was scored on the common texts.

    Attributes:
        gain: (s₀ − loss) / (s₀ − full fine-tuning's loss), means over the full runs; None without such a gain.
        parameters: trained numbers beside a head that was trained whole.
        freedom: Σ r(m + n − r) over the matrices of low rank; None for other updates.
    """

    facts: RunFacts
    family: str
    loss: float
    accuracy: float
    gain: float | None
    parameters: int | None
    head_parameters: int
    freedom: int | None


@dataclass(frozen=True)
class Level:
    """The runs of one size, of the learning rate whose mean gain is best.

    Attributes:
        size: rank or d; None for a method without.
        gains, accuracies: by seed.
        low, high: bootstrap interval of the mean gain; None with a single seed.
        rates: how many learning rates were compared.
    """

    size: int | None
    learning_rate: float
    rates: int
    seeds: tuple[int, ...]
    gains: tuple[float, ...]
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    low: float | None
    high: float | None
    parameters: int | None
    freedom: int | None

    @property
    def gain(self) -> float:
        return float(np.mean(self.gains))

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.accuracies))


@dataclass(frozen=True)
class Reach:
    """The first size whose mean reaches a share.

    Attributes:
        size: of the grid; None where none reaches it.
        below: the largest size on the grid before it.
        interval: bootstrap over seeds, 95 %; an end is None where more than that share of the resamples do not reach it
            at all; the whole None where no size has two seeds.
    """

    size: int | None
    below: int | None
    interval: tuple[int | None, int | None] | None


@dataclass(frozen=True)
class Family:
    """The levels of one method, ascending.

    Attributes:
        axis: "rank", "d", or None for a method without a size.
        reach: share of the gain to where it is reached.
        metric: the same of 90 % of full fine-tuning's accuracy, as the papers have it.
        drop: where the mean gain falls with the size, (by how much, from, to).
    """

    label: str
    axis: str | None
    levels: tuple[Level, ...]
    reach: Mapping[str, Reach]
    metric: Reach | None
    drop: tuple[float, int, int] | None


def family(label: str, runs: Sequence[TrainedRun], full_accuracy: float) -> Family | None:
    """The runs of one family by size. None where no run has a gain."""
    known = [run for run in runs if run.gain is not None]
    if not known:
        return None
    axis = "rank" if known[0].facts.rank is not None else "d" if known[0].facts.d is not None else None
    by_size: dict[int | None, list[TrainedRun]] = {}
    for run in known:
        by_size.setdefault(run.facts.size, []).append(run)
    levels = tuple(_level(size, by_size[size]) for size in sorted(by_size, key=lambda size: size or 0))
    if axis is None:
        return Family(label, None, levels, {}, None, None)
    reach = {str(share): first_reaching(levels, share, lambda level: level.gains) for share in SHARES}
    metric = first_reaching(levels, 0.9 * full_accuracy, lambda level: level.accuracies)
    size, at, to = largest_drop({level.size or 0: level.gain for level in levels})
    return Family(label, axis, levels, reach, metric, None if at is None or to is None else (size, at, to))


def _level(size: int | None, runs: Sequence[TrainedRun]) -> Level:
    rates: dict[float, list[TrainedRun]] = {}
    for run in runs:
        rates.setdefault(run.facts.learning_rate, []).append(run)
    rate = max(rates, key=lambda r: float(np.mean([run.gain for run in rates[r]])))
    chosen = sorted(rates[rate], key=lambda run: run.facts.seed)
    gains = tuple(float(run.gain) for run in chosen if run.gain is not None)
    low, high = bootstrap_mean(gains)
    return Level(
        size, rate, len(rates), tuple(run.facts.seed for run in chosen), gains, tuple(run.loss for run in chosen),
        tuple(run.accuracy for run in chosen), low, high, chosen[0].parameters, chosen[0].freedom,
    )  # fmt: skip


def bootstrap_mean(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The 95 % percentile interval of the mean, from a fixed seed; None with fewer than two values."""
    if len(values) < 2:
        return None, None
    means = _resampled_means(values, np.random.default_rng(0))
    low, high = np.percentile(means, ENDS)
    return float(low), float(high)


def _resampled_means(values: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    return array[rng.integers(0, len(array), (RESAMPLES, len(array)))].mean(axis=1)


def first_reaching(levels: Sequence[Level], target: float, values: Callable[[Level], Sequence[float]]) -> Reach:
    """The first level whose mean reaches the target, with its neighbour below and a bootstrap interval."""
    sized = [level for level in levels if level.size is not None]
    sizes: list[Any] = [level.size for level in sized]
    at = next((i for i, level in enumerate(sized) if np.mean(values(level)) >= target), None)
    size, below = (None, sizes[-1] if sizes else None) if at is None else (sizes[at], sizes[at - 1] if at else None)
    if all(len(values(level)) < 2 for level in sized):
        return Reach(size, below, None)
    rng = np.random.default_rng(0)
    reached = np.array([_resampled_means(values(level), rng) >= target for level in sized])  # (levels, resamples)
    first = np.where(reached.any(axis=0), np.asarray(sizes)[reached.argmax(axis=0)], np.inf)
    low, high = np.percentile(first, ENDS, method="inverted_cdf")
    return Reach(size, below, (_whole(low), _whole(high)))


def _whole(value: float) -> int | None:
    return int(value) if np.isfinite(value) else None
