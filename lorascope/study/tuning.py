"""How an arm's learning rate is found: which runs a sweep still needs, and which rates are left to choose between.

1. One run at every rate that the script states; beyond the ends of these while the best is at an end.
2. Between the best rate and its neighbours, until they are at most a factor of `NEAR` apart.
3. `SEEDS` replicates of the best rate and of its neighbours; where another is then the best, steps 2 and 3 for that.
4. The `FINALISTS` best of the rates that have so many replicates get all replicates. A rate at which any replicate
   diverged is out, and the next best takes its place.

The runs of a sweep are the first replicates of the final ones. Rates are compared by their mean held-out loss,
paired by replicate; the choice between the finalists is made again inside every bootstrap draw (`results.chosen`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

NEAR = 1.8  # of neighbouring rates around the best
SEEDS = 2  # replicates of a rate before it can be a finalist
FINALISTS = 2
EXTENSIONS = 3  # rates beyond an end of a sweep whose best is at that end
Losses = Mapping[float, Mapping[int, float | None]]  # held-out loss by rate and replicate; None: diverged or failed
Wanted = list[tuple[float, int]]  # runs: rate and replicate


@dataclass(frozen=True)
class Tuned:
    """An arm's learning rate and the sweep it came from.

    Attributes:
        rate: the chosen one; None where the config's was taken, or none worked.
        curve: held-out losses by learning rate, ascending, and by replicate; None where a run diverged or failed.
        interior: whether the chosen rate has a neighbour on both sides.
        finalists: the rates that have all replicates, the chosen one first.
    """

    rate: float | None
    curve: Mapping[float, Mapping[int, float | None]] = field(default_factory=dict)
    interior: bool = True
    finalists: tuple[float, ...] = ()


def means(losses: Losses) -> dict[float, float]:
    """The mean loss of every rate over its replicates; infinite where one diverged.

    Replicates differ in their texts and head, by more than neighbouring rates do: from each loss what its replicate
    has above the first is taken away, as the rates that have both show it.
    """
    above: dict[int, list[float]] = {}
    for of_rate in losses.values():
        first = of_rate.get(0)
        for n, loss in of_rate.items():
            if loss is not None and first is not None:
                above.setdefault(n, []).append(loss - first)
    effect = {n: sum(values) / len(values) for n, values in above.items()}
    found = {}
    for rate, of_rate in losses.items():
        values = [math.inf if loss is None else loss - effect.get(n, 0.0) for n, loss in of_rate.items()]
        found[rate] = sum(values) / len(values) if values else math.inf
    return found


def best(losses: Losses) -> float | None:
    """The rate of the lowest mean; None where none has a finite one."""
    of_rates = means(losses)
    rate = min(of_rates, key=lambda rate: (of_rates[rate], rate), default=None)
    return None if rate is None or math.isinf(of_rates[rate]) else rate


def needed(losses: Losses, stated: Sequence[float], replicates: int) -> Wanted:
    """The runs that the sweep needs next, final ones among them; none where it is done."""
    return wanted(losses, stated, replicates) or finalists(losses, replicates)[1]


def wanted(losses: Losses, stated: Sequence[float], replicates: int) -> Wanted:
    """The runs that are needed next to find the best rate and its neighbours; none where these are found."""
    missing = [(rate, 0) for rate in stated if 0 not in losses.get(rate, {})]
    rate = best(losses)
    if missing or rate is None:
        return missing
    if beyond := _beyond(losses, stated, rate):
        return [(beyond, 0)]
    rates = sorted(losses)
    place = rates.index(rate)
    around = rates[max(0, place - 1) : place + 2]
    between = [_rounded(math.sqrt(low * high)) for low, high in pairwise(around) if high / low > NEAR]
    near = [other for other in around if max(other / rate, rate / other) <= NEAR]
    fine = [each for each in (*between, *near) if _fine(losses, each)]
    seeds = range(min(SEEDS, replicates))
    return [(each, n) for each in fine for n in seeds if n not in losses.get(each, {})]


def finalists(losses: Losses, replicates: int) -> tuple[tuple[float, ...], Wanted]:
    """The rates to choose between, the best first, and the runs that they still need."""
    enough, of_rates = min(SEEDS, replicates), means(losses)
    able = [rate for rate, of_rate in losses.items() if len(of_rate) >= enough and math.isfinite(of_rates[rate])]
    taken = tuple(sorted(able, key=lambda rate: (of_rates[rate], rate))[:FINALISTS])
    return taken, [(rate, n) for rate in taken for n in range(replicates) if n not in losses[rate]]


def _fine(losses: Losses, rate: float) -> bool:
    return all(loss is not None for loss in losses.get(rate, {}).values())


def _beyond(losses: Losses, stated: Sequence[float], rate: float) -> float | None:
    """The next learning rate beyond the end of a sweep, where the best is at that end."""
    rates = sorted(losses)
    outside = sum(each < min(stated) or each > max(stated) for each in rates)
    if len(stated) < 2 or outside >= EXTENSIONS or rate not in (rates[0], rates[-1]):
        return None
    step = max(stated) / min(stated)
    step **= 1 / (len(stated) - 1)
    return _rounded(rate * step if rate == rates[-1] else rate / step)


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


def least_runs(stated: Sequence[float], replicates: int) -> int:
    """How many runs a sweep and its final runs take, where the first best rate stays the best and is not at an end."""
    if len(stated) < 2:
        return replicates
    seeds = min(SEEDS, replicates)
    return len(stated) + 2 * seeds + (seeds - 1) + FINALISTS * (replicates - seeds)
