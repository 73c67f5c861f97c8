"""Trained runs by size: the smallest rank, or the smallest d, whose training reaches a share of the gain.

As Li et al. 2018 have it, the answer is the first size on the grid, never one between two, with the sizes on both sides
of it. Its interval is a bootstrap over seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from lorascope.analyses.dimension.spectra import SHARES
from lorascope.analyses.toolkit import Row, finite, group
from lorascope.linalg import bootstrap
from lorascope.linalg.threshold import largest_drop
from lorascope.run_data import RunFacts


@dataclass(frozen=True)
class TrainedRun:
    """A run that was scored on the common texts.

    Attributes:
        gain: (s₀ − loss) / (s₀ − full fine-tuning's loss), means over the full runs; None without such a gain.
        parameters: trained parameters, without those of a head that was trained whole.
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

    def record(self) -> Row:
        return {
            "run": self.facts.label,
            "path": self.facts.path,
            "family": self.family,
            "method": self.facts.method,
            "size": self.facts.size,
            "seed": self.facts.seed,
            "learning_rate": self.facts.learning_rate,
            "steps": self.facts.steps,
            "loss": finite(self.loss),
            "accuracy": self.accuracy,
            "gain": finite(self.gain),
            "parameters": self.parameters,
            "head_parameters": self.head_parameters,
            "freedom": self.freedom,
        }


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

    def record(self) -> Row:
        record = asdict(self)
        for level, row in zip(self.levels, record["levels"], strict=True):
            row |= {"gain": level.gain, "accuracy": level.accuracy}
        return record


def family(label: str, runs: Sequence[TrainedRun], full_accuracy: float) -> Family | None:
    """The runs of one family by size. None where no run has a gain."""
    with_gain = [run for run in runs if run.gain is not None]
    if not with_gain:
        return None
    facts = with_gain[0].facts
    axis = "rank" if facts.rank is not None else "d" if facts.d is not None else None
    by_size = group(with_gain, "facts.size")
    levels = tuple(_level(size, by_size[size]) for size in sorted(by_size, key=lambda size: size or 0))
    if axis is None:
        return Family(label, None, levels, {}, None, None)
    reach = {str(share): first_reaching(levels, share, lambda level: level.gains) for share in SHARES}
    metric = first_reaching(levels, 0.9 * full_accuracy, lambda level: level.accuracies)
    drop, start, end = largest_drop({level.size or 0: level.gain for level in levels})
    return Family(label, axis, levels, reach, metric, None if start is None or end is None else (drop, start, end))


def _level(size: int | None, runs: Sequence[TrainedRun]) -> Level:
    rates = group(runs, "facts.learning_rate")
    rate = max(rates, key=lambda r: float(np.mean([run.gain for run in rates[r]])))
    chosen = sorted(rates[rate], key=lambda run: run.facts.seed)
    gains = tuple(float(run.gain) for run in chosen if run.gain is not None)
    low, high = bootstrap.mean_interval(gains)
    return Level(
        size, rate, len(rates), tuple(run.facts.seed for run in chosen), gains, tuple(run.loss for run in chosen),
        tuple(run.accuracy for run in chosen), low, high, chosen[0].parameters, chosen[0].freedom,
    )  # fmt: skip


def first_reaching(levels: Sequence[Level], target: float, values: Callable[[Level], Sequence[float]]) -> Reach:
    """The first level whose mean reaches the target, with its neighbour below and a bootstrap interval."""
    sized = [(level.size, values(level)) for level in levels if level.size is not None]
    sizes = [size for size, _ in sized]
    at = next((i for i, (_, each) in enumerate(sized) if np.mean(each) >= target), None)
    size, below = (None, sizes[-1] if sizes else None) if at is None else (sizes[at], sizes[at - 1] if at else None)
    if all(len(each) < 2 for _, each in sized):
        return Reach(size, below, None)
    low, high = bootstrap.first_reaching([each for _, each in sized], sizes, target)
    return Reach(size, below, (_whole(low), _whole(high)))


def _whole(number: float) -> int | None:
    return int(number) if np.isfinite(number) else None
