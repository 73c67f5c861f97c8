"""Bootstrap intervals, from fixed seeds: the same values give the same interval.

Of means over seeds a percentile interval. Of any statistic of few replicates an expanded percentile interval
(Hesterberg 2015, "What Teachers Should Know About the Bootstrap", §4.2, doi 10.1080/00031305.2015.1089789): with n
replicates the 95 % percentile interval is too narrow by about √((n − 1)/n) · z/t, so the tail probability is taken as
Φ(−√(n/(n−1)) · t_{df; 0.975}). Of a number that one stratum decides, all resamples are enumerated with their
multinomial probabilities, and df = n − 1. Of others resamples are drawn, and df is that of Welch and Satterthwaite
(Satterthwaite 1946, doi 10.2307/3002019) from the variances that the jackknife gives each stratum's part. Where the
texts that runs are scored on are resampled too, each draw has its own texts, and they count as one more part.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
ENDS = (2.5, 97.5)  # percent
SEED = 0
LEVEL = 0.95
MAX_ENUMERATED = 2000  # resamples of up to 7 replicates
DRAWN = 5000  # resamples of more, or of several strata: some twenty lie beyond each end of an interval
SEED_OF_STRATA = 20210617
TEXTS = "texts"  # the part of the texts, among those of the strata
ALONE = 200  # resamples of the texts alone, for their part: its standard deviation is known to 5 %
Draws = Mapping[Any, Sequence[Any]]  # of every stratum the replicates that are drawn
Numbers = Sequence[float | None]  # None: cannot be computed on a resample
Statistics = Callable[[Draws, int | None, Sequence[int]], Numbers]  # of replicates and a draw of the texts: these
Progress = Callable[[int, int], None]  # resamples done, of how many


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


@dataclass(frozen=True)
class Interval:
    """The 95 % interval of a number.

    Attributes:
        low, high: its ends; None: there is none, for the `reason`.
        se: the number's standard error: of the jackknife's parts, or of the resamples where these are all 0.
        df: the degrees of freedom of its square.
    """

    low: float | None
    high: float | None
    se: float | None = None
    df: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Resamples:
    """Resamples, their weights, and of every stratum and of the texts a number that equal draws share."""

    draws: Sequence[Draws]
    texts: Sequence[int | None]
    weights: np.ndarray
    codes: Mapping[Any, np.ndarray]


def expanded_intervals(
    statistics: Statistics,
    count: int,
    strata: Draws,
    *,
    texts: int = 0,
    text_draws: int = 0,
    most: int = DRAWN,
    progress: Progress | None = None,
) -> list[Interval]:
    """The expanded percentile intervals of several statistics of the same resamples, which are made once for all.

    Args:
        statistics: called with the replicates drawn in every stratum, the number of the draw of the texts (None: all as
            they are), and which of the `count` numbers to compute.
        strata: the replicates of each.
        texts: how many texts a draw is of.
        text_draws: how many draws of them there are; 0: the texts are not resampled.
        most: how many resamples are drawn where they cannot be enumerated.
    """
    parts = variance_parts(statistics, count, strata)
    for j, variance in enumerate(_text_parts(statistics, count, strata, min(text_draws, ALONE))):
        if variance is not None:
            parts[j][TEXTS] = variance
    sizes = {**{each: len(units) for each, units in strata.items()}, TEXTS: texts}
    intervals: dict[int, Interval] = {}
    groups: dict[Any, list[int]] = {}
    for j, of in enumerate(parts):
        if min((sizes[each] for each in of or strata), default=0) < 2:
            intervals[j] = Interval(None, None, reason="one replicate has no interval")
        else:
            groups.setdefault(next(iter(of)) if len(of) == 1 and TEXTS not in of else None, []).append(j)
    resamples = {
        group: resamples_of_all(strata, most, text_draws) if group is None else resamples_of_one(strata, group, most)
        for group in groups
    }
    todo = [(resamples[group], _firsts(resamples[group], members, parts)) for group, members in groups.items()]
    total, done = sum(len(needed) for _, (needed, _) in todo), 0
    for (made, (needed, places)), members in zip(todo, groups.values(), strict=True):
        values: dict[int, dict[int, float | None]] = {j: {} for j in members}
        for i, which in needed.items():
            for j, value in zip(which, statistics(made.draws[i], made.texts[i], which), strict=True):
                values[j][i] = value
            done += 1
            if progress is not None:
                progress(done, total)
        for j in members:
            drawn = np.array([_nan(values[j][i]) for i in sorted(values[j])])[places[j]]
            intervals[j] = _interval(drawn, made.weights, parts[j], sizes)
    return [intervals[j] for j in range(count)]


def _firsts(
    made: Resamples, members: Sequence[int], parts: Sequence[Mapping[Any, float]]
) -> tuple[dict[int, list[int]], dict[int, np.ndarray]]:
    """A statistic is computed once for those resamples that draw the same, in any order, where it matters to it.

    Returns the resamples to make, each with the statistics to compute on it; and of every statistic the place of each
    resample's value among those computed.
    """
    needed: dict[int, list[int]] = {}
    places = {}
    known: dict[tuple[Any, ...], tuple[np.ndarray, np.ndarray]] = {}
    for j in members:
        influential = tuple(parts[j])
        if influential not in known:
            codes = np.stack([np.zeros(len(made.weights), int), *(made.codes[each] for each in influential)], axis=1)
            _, first, inverse = np.unique(codes, axis=0, return_index=True, return_inverse=True)
            order = np.argsort(first)
            known[influential] = first[order], np.argsort(order)[inverse.ravel()]
        first, places[j] = known[influential]
        for i in first.tolist():
            needed.setdefault(i, []).append(j)
    return dict(sorted(needed.items())), places


def _interval(
    values: np.ndarray, weights: np.ndarray, parts: Mapping[Any, float], sizes: Mapping[Any, int]
) -> Interval:
    """Of the statistic's values on all resamples, NaN where there is none."""
    computed = ~np.isnan(values)
    if weights[computed].sum() < 0.95:
        return Interval(None, None, reason="the number cannot be computed on most resamples of the replicates")
    drawn, weights = values[computed], weights[computed] / weights[computed].sum()
    df, widening = freedom(parts, sizes), _widening(parts, sizes)
    order = np.argsort(drawn)
    low, high = ends(drawn[order], np.cumsum(weights[order]), expanded_tail(widening, df))
    se = math.sqrt(sum(parts.values()))
    if se == 0 and low < high:  # such as of a median, which no single replicate moves
        mean = weights @ drawn
        se = math.sqrt(widening * float(weights @ (drawn - mean) ** 2))
    return Interval(low, high, se, df)


def ends(ordered: np.ndarray, cumulative: np.ndarray, tail: float) -> tuple[float, float]:
    """The values beyond which this share of the weight lies, at each end."""
    low = ordered[np.searchsorted(cumulative, tail * (1 - 1e-12))]
    high = ordered[min(int(np.searchsorted(cumulative, 1 - tail)), len(ordered) - 1)]
    return float(low), float(high)


def freedom(parts: Mapping[Any, float], sizes: Mapping[Any, int]) -> float:
    """Degrees of freedom of a variance that is the sum of these, of Welch and Satterthwaite: (Σv)² / Σ v²/(n − 1).

    Args:
        sizes: n of every part, and of those strata that have none.
    """
    total = sum(parts.values())
    if total == 0:  # such as of a median, which no single replicate moves
        return float(min(n for each, n in sizes.items() if each in (parts or sizes) and n) - 1)
    return total**2 / sum(v**2 / (sizes[each] - 1) for each, v in parts.items())


def _widening(parts: Mapping[Any, float], sizes: Mapping[Any, int]) -> float:
    """How much smaller than the variance that of the resamples is: of one part n/(n − 1)."""
    total = sum(parts.values())
    if total == 0:
        n = min(n for each, n in sizes.items() if each in (parts or sizes) and n)
        return n / (n - 1)
    return total / sum(v * (sizes[each] - 1) / sizes[each] for each, v in parts.items())


def expanded_tail(widening: float, df: float) -> float:
    """Φ(−√(n/(n−1)) · t_{df; 0.975}): the share of the bootstrap distribution beyond each end of the interval.

    Args:
        widening: n/(n − 1).
    """
    from scipy.stats import norm, t

    return float(norm.cdf(-math.sqrt(widening) * t.ppf(0.5 + LEVEL / 2, df)))


def variance_parts(statistics: Statistics, count: int, strata: Draws) -> list[dict[Any, float]]:
    """Of every number the strata that it depends on, with the jackknife's variance of its part, (n−1)/n Σ (θᵢ − θ̄)².

    A stratum without influence gives the same value where any of its replicates stands for all, and without any.
    """
    which = range(count)
    whole = statistics(strata, None, which)
    parts: list[dict[Any, float]] = [{} for _ in which]
    for stratum, units in strata.items():
        n = len(units)
        without = [statistics({**strata, stratum: [*units[:i], *units[i + 1 :]]}, None, which) for i in range(n)]
        alone = [statistics({**strata, stratum: [unit] * n}, None, which) for unit in units]
        for j in which:
            if any(values[j] != whole[j] for values in (*without, *alone)):
                computed = np.array([values[j] for values in without if values[j] is not None], dtype=float)
                parts[j][stratum] = (n - 1) * float(computed.var()) if len(computed) else 0.0
    return parts


def _text_parts(statistics: Statistics, count: int, strata: Draws, draws: int) -> Sequence[float | None]:
    """Of every number its variance over draws of the texts alone; None: it does not depend on them."""
    values = [statistics(strata, k, range(count)) for k in range(draws)]
    parts: list[float | None] = [None] * count
    for j in range(count):
        computed = [each[j] for each in values if each[j] is not None]
        if len(set(computed)) > 1:
            parts[j] = float(np.var(np.array(computed, dtype=float), ddof=1))
    return parts


def resamples_of_one(strata: Draws, stratum: Any, most: int) -> Resamples:
    """Resamples of one stratum: all multisets of as many units with their probabilities, or random ones."""
    units = strata[stratum]
    n = len(units)
    if math.comb(2 * n - 1, n) > MAX_ENUMERATED:
        one = resamples_of_all({stratum: units}, most, 0)
        return Resamples([{**strata, **each} for each in one.draws], one.texts, one.weights, one.codes)
    every = list(itertools.combinations_with_replacement(units, n))
    ways = [math.factorial(n) / math.prod(map(math.factorial, Counter(each).values())) for each in every]
    draws = [{**strata, stratum: each} for each in every]
    return Resamples(draws, [None] * len(every), np.array(ways) / n**n, {stratum: np.arange(len(every))})


def resamples_of_all(strata: Draws, most: int, text_draws: int) -> Resamples:
    """Resamples of all strata, and of the texts where there are draws of them; the same each time."""
    rng = np.random.default_rng(SEED_OF_STRATA)
    places = [rng.integers(0, len(units), (most, len(units))) for units in strata.values()]
    columns = [
        [[units[i] for i in row] for row in drawn.tolist()]
        for units, drawn in zip(strata.values(), places, strict=True)
    ]
    draws = [dict(zip(strata, each, strict=True)) for each in zip(*columns, strict=True)] if strata else [{}] * most
    codes = {
        each: np.unique(np.sort(drawn, axis=1), axis=0, return_inverse=True)[1].ravel()
        for each, drawn in zip(strata, places, strict=True)
    }
    texts = np.arange(most) % text_draws if text_draws else np.zeros(most, int)
    numbers: list[int | None] = texts.tolist() if text_draws else [None] * most
    return Resamples(draws, numbers, np.full(most, 1 / most), {**codes, TEXTS: texts})


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
