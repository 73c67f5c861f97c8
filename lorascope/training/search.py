"""The adaptive search for d90: the smallest random subspace whose training reaches 90 % of full fine-tuning's gain.

Aghajanyan et al. 2020, arXiv 2012.13255, train on a fixed grid of 100 values of d; most of those runs lie far from the
crossing. Here d first moves by a factor of four until the gain has been seen on both sides of the target, and the
bracket is then halved in log d until it is narrow. `search` is a pure function of `evaluate(d, seed) -> gain`;
`SubspaceRuns` is the `evaluate` that trains: every run is an ordinary run folder, and a finished one is never trained
again, so that a search that was killed goes on.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.errors import InputError, LorascopeError
from lorascope.linalg.threshold import bracket
from lorascope.training.run_folder import read_summary, working_in

FACTOR = 4  # of the geometric bracketing
RATE, RATE_AT = 2e-2, 1000  # a good learning rate at d = 1000; one step of Adam moves θ by about √d times the rate
RATES = (1 / 3, 1.0, 3.0)  # the default grid, of RATE · √(RATE_AT / d)


@dataclass(frozen=True)
class Tried:
    """One d: the gain of every seed. Of a run that diverged it is NaN, which is below any target."""

    d: int
    gains: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.gains))


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        target: the gain that was asked for.
        low, high: the bracket: the largest d that missed the target, and the next one, from which on all that were
            tried reached it; None where even the smallest reached it, or the largest did not.
        interval: a 95 % confidence interval, on the values of d that were tried: the largest d surely below, the
            smallest one surely at the target, by Student's t with the standard deviation pooled over all d. Either end
            is None where no d is sure. None altogether with a single seed: then the bracket is all that is known.
        tried: every d, ascending.
    """

    target: float
    low: int | None
    high: int | None
    interval: tuple[int | None, int | None] | None
    tried: tuple[Tried, ...]


def search(
    evaluate: Callable[[int, int], float],
    *,
    highest: int,
    lowest: int = 2,
    start: int = RATE_AT,
    seeds: Sequence[int] = (0,),
    target: float = 0.9,
    tolerance: float = 1.5,
) -> Found:
    """Find where the mean gain over seeds crosses `target`, to a factor of `tolerance` in d.

    Args:
        evaluate: (d, seed) to gain; asked once for each pair.
        highest, lowest: the ends of what d may be.
        start: the first d.
        seeds: of each d's runs.
        tolerance: the bracket's high / low to stop at.

    Raises:
        ValueError: the limits are not 1 ≤ lowest ≤ highest, there is no seed, or tolerance is not above 1.
    """
    if not 1 <= lowest <= highest or not seeds or tolerance <= 1:
        raise ValueError(f"cannot search d in {lowest} … {highest} with {len(seeds)} seeds to a factor of {tolerance}")
    gains: dict[int, tuple[float, ...]] = {}
    place: int | None = min(max(start, lowest), highest)
    while place is not None:
        gains[place] = tuple(float(evaluate(place, seed)) for seed in seeds)
        place = _next(gains, lowest, highest, target, tolerance)
    tried = tuple(Tried(d, gains[d]) for d in sorted(gains))
    low, high = bracket({each.d: each.mean for each in tried}, target)
    return Found(target, low, high, _interval(tried, target), tried)


def _next(
    gains: Mapping[int, tuple[float, ...]], lowest: int, highest: int, target: float, tolerance: float
) -> int | None:
    """The d to try next; None where the search is over."""
    low, high = bracket({d: float(np.mean(each)) for d, each in gains.items()}, target)
    if low is None:
        smallest = min(gains)
        return max(lowest, smallest // FACTOR) if smallest > lowest else None
    if high is None:
        largest = max(gains)
        return min(highest, largest * FACTOR) if largest < highest else None
    if high / low <= tolerance or high - low <= 1:
        return None
    return min(max(round(math.sqrt(low * high)), low + 1), high - 1)


def _interval(tried: Sequence[Tried], target: float) -> tuple[int | None, int | None] | None:
    replicated = [each for each in tried if len(each.gains) > 1 and np.isfinite(each.gains).all()]
    if not replicated:
        return None
    from scipy.stats import t

    freedom = sum(len(each.gains) - 1 for each in replicated)
    variance = sum(float(np.var(each.gains, ddof=1)) * (len(each.gains) - 1) for each in replicated) / freedom
    margin = float(t.ppf(0.975, freedom)) * math.sqrt(variance / len(replicated[0].gains))
    sure = [each.d for each in tried if not each.mean + margin >= target]
    low = max(sure, default=None)
    high = min((e.d for e in tried if e.mean - margin >= target and (low is None or e.d > low)), default=None)
    return low, high


class SubspaceRuns:
    """`evaluate` for `search`: trains the full run's own config in a random subspace, and asks for the gain.

    Args:
        config: of the full fine-tuning run, as a resolved dictionary; its method is replaced, and which parameters
            train (`train`, `freeze`, `embeddings`, `modules_to_save`) stays.
        folder: of all the runs.
        gain: the gain of a finished run, by its folder.
        said: "none", "layer" or "tensor".
        rates: learning rates; the best of them counts. Without any, a grid around RATE · √(1000 / d).
        command: for the runs' record.

    Attributes:
        folders: of every run that was asked for, diverged ones too.
        trained: how many of them were trained now, and not found finished.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        folder: Path,
        gain: Callable[[Path], float],
        *,
        said: str = "none",
        rates: Sequence[float] = (),
        command: Sequence[str] = (),
    ):
        self.config, self.folder, self.gain = config, folder, gain
        self.said, self.rates, self.command = said, tuple(rates), tuple(command)
        self.folders: list[Path] = []
        self.trained = 0

    def __call__(self, d: int, seed: int) -> float:
        """The best gain over the learning rates; NaN where every run diverged.

        Raises:
            InputError: another process searches in the same folder.
        """
        rates = self.rates or [float(f"{RATE * math.sqrt(RATE_AT / d) * factor:.2g}") for factor in RATES]
        with working_in(self.folder):
            gains = [self._one(d, seed, rate) for rate in rates]
        return max((gain for gain in gains if not math.isnan(gain)), default=math.nan)

    def _one(self, d: int, seed: int, rate: float) -> float:
        folder = self.folder / (f"said={self.said}," * (self.said != "none") + f"d={d},lr={rate:g},seed={seed}")
        self._train(folder, self.values(d, seed, rate))
        self.folders.append(folder)
        return math.nan if read_summary(folder).get("diverged") else self.gain(folder)

    def values(self, d: int, seed: int, rate: float) -> dict[str, Any]:
        """The config of one run, as a dictionary."""
        kept = {key: self.config["method"][key] for key in ("train", "freeze", "embeddings", "modules_to_save")}
        return {
            **{section: dict(values) for section, values in self.config.items()},
            "method": {"name": "random_subspace", "d": d, "said": self.said, **kept},
            "optim": {**self.config["optim"], "learning_rate": rate},
            "training": {**self.config["training"], "seed": seed, "measure_cost": False},
        }

    def _train(self, folder: Path, values: dict[str, Any]) -> None:
        from lorascope.training import run
        from lorascope.training.config import load, parse

        config = parse(values, f"the search's run {folder.name}")
        if read_summary(folder):
            if load(folder / "config.yaml") != config:
                raise InputError(
                    f"{folder} holds a run of another config",
                    hint="name another folder for the search, or remove that run",
                )
            return
        self.trained += 1
        try:
            run.train(config, folder, resume=(folder / "config.yaml").is_file(), command=self.command)
        except LorascopeError:
            if not read_summary(folder).get("diverged"):
                raise
