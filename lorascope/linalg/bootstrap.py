"""Bootstrap intervals, from fixed seeds: the same values give the same interval.

Of means over seeds a percentile interval. Of any statistic of few replicates an expanded percentile interval
(Hesterberg 2015, "What Teachers Should Know About the Bootstrap", §4.2, doi 10.1080/00031305.2015.1089789): with n
replicates the 95 % percentile interval is too narrow by about √((n − 1)/n) · z/t, so the tail probability is taken as
Φ(−√(n/(n−1)) · t_{df; 0.975}). Of a number that one stratum decides, all resamples are enumerated with their
multinomial probabilities, and df = n − 1. Of others resamples are drawn, and df is that of Welch and Satterthwaite
(Satterthwaite 1946, doi 10.2307/3002019) from the variances that the jackknife gives each stratum's part.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000
ENDS = (2.5, 97.5)  # percent
SEED = 0
LEVEL = 0.95
MAX_ENUMERATED = 2000  # resamples of up to 7 replicates
DRAWN = 5000  # resamples of more, or of several strata: some twenty lie beyond each end of an interval
SEED_OF_STRATA = 20210617
Draws = Mapping[Any, Sequence[Any]]  # of every stratum the replicates that are drawn


def resampled_means(values: Sequence[Any], rng: np.random.Generator) -> np.ndarray:
    """(resamples,) means of as many values drawn with replacement."""
    array = np.asarray(values, dtype=float)
    return array[rng.integers(0, len(array), (RESAMPLES, len(array)))].mean(axis=1)


def mean_interval(values: Sequence[Any]) -> tuple[float | None, float | None]:
    """The 95 % percentile interval of the mean; None with fewer than two values."""
    if len(values) < 2:
        return None, None
    low, high = np.percentile(resampled_means(values, np.random.default_rng(SEED)), ENDS)
    return float(low), float(high)


def first_reaching(levels: Sequence[Sequence[Any]], places: Sequence[int], target: float) -> tuple[float, float]:
    """The 95 % interval of the first place whose mean reaches the target; infinite where it is not reached at all.

    Args:
        levels: the values at each place; all are resampled together.
        places: ascending.
    """
    rng = np.random.default_rng(SEED)
    reached = np.array([resampled_means(values, rng) >= target for values in levels])  # (places, resamples)
    first = np.where(reached.any(axis=0), np.asarray(places)[reached.argmax(axis=0)], np.inf)
    low, high = np.percentile(first, ENDS, method="inverted_cdf")
    return float(low), float(high)


def expanded_interval(
    statistic: Callable[[Draws], float | None], strata: Draws, most: int = DRAWN
) -> tuple[float | None, float | None, str]:
    """The expanded percentile interval of a statistic of resampled replicates, and why there is none.

    Args:
        statistic: of the replicates drawn in every stratum; None where it cannot be computed on them.
        strata: the replicates of each.
        most: how many resamples are drawn where they cannot be enumerated.
    """
    parts = variance_parts(statistic, strata)
    fewest = min((len(strata[each]) for each in parts or strata), default=0)
    if fewest < 2:
        return None, None, "one replicate has no interval"
    if len(parts) == 1:
        ((stratum, _),) = parts.items()
        one, weights = _resamples(strata[stratum], most)
        resamples: Iterable[Draws] = ({**strata, stratum: each} for each in one)
    else:
        resamples, weights = _drawn(strata, most), np.full(most, 1 / most)
    values = _computed_once(statistic, resamples, parts)
    computed = np.array([value is not None for value in values])
    if weights[computed].sum() < 0.95:
        return None, None, "the number cannot be computed on most resamples of the replicates"
    drawn = np.array([value for value in values if value is not None], dtype=float)
    order = np.argsort(drawn)
    cumulative = np.cumsum(weights[computed][order]) / weights[computed].sum()
    tail = expanded_tail(fewest, freedom(parts, strata))
    low = drawn[order][np.searchsorted(cumulative, tail * (1 - 1e-12))]
    high = drawn[order][min(int(np.searchsorted(cumulative, 1 - tail)), len(drawn) - 1)]
    return float(low), float(high), ""


def _computed_once(
    statistic: Callable[[Draws], float | None], resamples: Iterable[Draws], influential: Iterable[Any]
) -> list[float | None]:
    """The statistic of each resample; once for those that draw the same replicates, in any order, where it matters."""
    known: dict[tuple[tuple[int, ...], ...], float | None] = {}
    values = []
    for draws in resamples:
        key = tuple(tuple(sorted(draws[each])) for each in influential)
        if key not in known:
            known[key] = statistic(draws)
        values.append(known[key])
    return values


def freedom(parts: Mapping[Any, float], strata: Draws) -> float:
    """Degrees of freedom of a variance that is the sum of these, of Welch and Satterthwaite: (Σv)² / Σ v²/(n − 1)."""
    total = sum(parts.values())
    if total == 0:  # such as of a median, which no single replicate moves
        return float(min(len(strata[each]) - 1 for each in parts or strata))
    return total**2 / sum(v**2 / (len(strata[each]) - 1) for each, v in parts.items())


def expanded_tail(n: int, df: float) -> float:
    """Φ(−√(n/(n−1)) · t_{df; 0.975}): the share of the bootstrap distribution beyond each end of the interval."""
    from scipy.stats import norm, t

    return float(norm.cdf(-math.sqrt(n / (n - 1)) * t.ppf(0.5 + LEVEL / 2, df)))


def variance_parts(statistic: Callable[[Draws], float | None], strata: Draws) -> dict[Any, float]:
    """The strata that the statistic depends on, each with the jackknife's variance of its part, (n−1)/n Σ (θᵢ − θ̄)².

    A stratum without influence gives the same value where any of its replicates stands for all, and without any.
    """
    whole, parts = statistic(strata), {}
    for stratum, units in strata.items():
        n = len(units)
        without = [statistic({**strata, stratum: [*units[:i], *units[i + 1 :]]}) for i in range(n)]
        alone = [statistic({**strata, stratum: [unit] * n}) for unit in units]
        if any(value != whole for value in (*without, *alone)):
            computed = np.array([value for value in without if value is not None])
            parts[stratum] = (n - 1) * float(computed.var()) if len(computed) else 0.0
    return parts


def _resamples(units: Sequence[Any], most: int) -> tuple[list[Sequence[Any]], np.ndarray]:
    """All multisets of as many units with their probabilities, or `most` random ones of equal weight."""
    n = len(units)
    if math.comb(2 * n - 1, n) <= MAX_ENUMERATED:
        every: list[Sequence[Any]] = list(itertools.combinations_with_replacement(units, n))
        ways = [math.factorial(n) / math.prod(map(math.factorial, Counter(each).values())) for each in every]
        return every, np.array(ways) / n**n
    return [draws[0] for draws in _drawn({0: units}, most)], np.full(most, 1 / most)


def _drawn(strata: Draws, most: int) -> Iterator[Draws]:
    """Resamples of all strata, the same each time."""
    rng = np.random.default_rng(SEED_OF_STRATA)
    columns = [rng.choice(units, (most, len(units))).tolist() for units in strata.values()]
    for each in zip(*columns, strict=True):
        yield dict(zip(strata, each, strict=True))
