"""Verdicts: an estimate, its interval over replicates, and whether it keeps its bound. Computed, never typed.

The interval is an expanded percentile bootstrap over replicates (Hesterberg 2015, "What Teachers Should Know About the
Bootstrap", §4.2, doi 10.1080/00031305.2015.1089789): with n replicates the 95 % percentile interval is too narrow by
about √((n − 1)/n) · z/t, so the tail probability is taken as Φ(−√(n/(n−1)) · t_{df; 0.975}). Replicates of one stratum
(`strata`) are resampled together and those of different strata apart. Of a number that one stratum decides, all
resamples are enumerated with their multinomial probabilities, and df = n − 1. Of others resamples are drawn, with a
fixed seed, and df is that of Welch and Satterthwaite (Satterthwaite 1946, doi 10.2307/3002019) from the variances that
the jackknife gives each stratum's part.

held: the whole interval keeps the bound. not held: no part of it does. undecided: some does and some does not, or
something could not be computed, or a control did not fail.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lorascope.study.definition import Claim, Criterion, Results

VERDICTS = HELD, NOT_HELD, UNDECIDED = "held", "not held", "undecided"
MARKS = WITHDRAWN, CANNOT_TELL = "withdrawn", "cannot tell"  # shown in a verdict's place: see `marks`
LEVEL = 0.95
MAX_ENUMERATED = 2000  # resamples of up to 7 replicates
DRAWN = 5000  # resamples of more, or of several strata: some twenty lie beyond each end of an interval
SHOWN = 200  # of a scale that decides nothing
SEED = 20210617
Draws = Mapping[int, Sequence[int]]  # of every stratum the replicates that are drawn


@dataclass(frozen=True)
class Judged:
    """A criterion with what was found.

    Attributes:
        text, at_least, at_most, unit: the criterion's.
        estimate: on all replicates; None where it could not be computed, for the `reason`.
        low, high: the interval; None of a single replicate.
        verdict: held, not held or undecided.
        reason: what keeps it undecided, where that is not the interval.
        control: whether it is one.
    """

    text: str
    at_least: float | None
    at_most: float | None
    unit: str
    estimate: float | None
    low: float | None
    high: float | None
    verdict: str
    reason: str = ""
    control: bool = False


@dataclass(frozen=True)
class Verdict:
    """A claim with its judged criteria and controls."""

    name: str
    text: str
    source: str
    note: str
    verdict: str
    criteria: tuple[Judged, ...] = field(default=())

    @property
    def failed_to_fail(self) -> tuple[Judged, ...]:
        return tuple(each for each in self.criteria if each.control and each.verdict != NOT_HELD)


def judge(claim: Claim, results: Results) -> Verdict:
    """The claim's verdict on the results."""
    judged = tuple(criterion(each, results) for each in claim.criteria)
    controls = tuple(criterion(each, results, control=True) for each in claim.controls)
    verdicts = [each.verdict for each in judged]
    if not results.scale.conclusive or any(each.verdict != NOT_HELD for each in controls):
        verdict = UNDECIDED
    elif NOT_HELD in verdicts:
        verdict = NOT_HELD
    else:
        verdict = HELD if set(verdicts) == {HELD} else UNDECIDED
    return Verdict(claim.name, claim.text, claim.source, claim.note, verdict, judged + controls)


def criterion(each: Criterion, results: Results, *, control: bool = False) -> Judged:
    """The criterion's estimate, interval and verdict."""
    stated = (each.text, each.at_least, each.at_most, each.unit)
    estimate, why = _value(each, results)
    if estimate is None:
        return Judged(*stated, None, None, None, UNDECIDED, why, control)
    most = DRAWN if results.scale.conclusive else SHOWN
    low, high, why = interval(lambda draws: _value(each, results.drawn(draws))[0], results.replicates, most)
    if low is None or high is None:
        return Judged(*stated, estimate, None, None, UNDECIDED, why, control)
    inside = each.keeps(low), each.keeps(high)
    if all(inside):
        verdict = HELD
    else:  # an interval around a two-sided bound overlaps it, too
        apart = (each.at_least is not None and high < each.at_least) or (
            each.at_most is not None and low > each.at_most
        )
        verdict = NOT_HELD if apart else UNDECIDED
    return Judged(*stated, estimate, low, high, verdict, "", control)


def interval(
    statistic: Callable[[Draws], float | None], strata: Draws, most: int = DRAWN
) -> tuple[float | None, float | None, str]:
    """The expanded percentile interval of a statistic of resampled replicates, and why there is none.

    Args:
        statistic: of the replicates drawn in every stratum; None where it cannot be computed on them.
        strata: the replicates of each.
        most: how many resamples are drawn where they cannot be enumerated.
    """
    parts = _parts(statistic, strata)
    fewest = min((len(strata[each]) for each in parts or strata), default=0)
    if fewest < 2:
        return None, None, "one replicate has no interval"
    if len(parts) == 1:
        ((stratum, _),) = parts.items()
        one, weights = _resamples(strata[stratum], most)
        resamples: Iterable[Draws] = ({**strata, stratum: each} for each in one)
    else:
        resamples, weights = _drawn(strata, most), np.full(most, 1 / most)
    values = [statistic(each) for each in resamples]
    known = np.array([value is not None for value in values])
    if weights[known].sum() < 0.95:
        return None, None, "the number cannot be computed on most resamples of the replicates"
    found = np.array([value for value in values if value is not None], dtype=float)
    order = np.argsort(found)
    cumulative = np.cumsum(weights[known][order]) / weights[known].sum()
    tail = expanded_tail(fewest, freedom(parts, strata))
    low = found[order][np.searchsorted(cumulative, tail * (1 - 1e-12))]
    high = found[order][min(np.searchsorted(cumulative, 1 - tail), len(found) - 1)]
    return float(low), float(high), ""


def freedom(parts: Mapping[int, float], strata: Draws) -> float:
    """Degrees of freedom of a variance that is the sum of these, of Welch and Satterthwaite: (Σv)² / Σ v²/(n − 1)."""
    total = sum(parts.values())
    if total == 0:  # such as of a median, which no single replicate moves
        return min(len(strata[each]) - 1 for each in parts or strata)
    return total**2 / sum(v**2 / (len(strata[each]) - 1) for each, v in parts.items())


def expanded_tail(n: int, df: float) -> float:
    """Φ(−√(n/(n−1)) · t_{df; 0.975}): the share of the bootstrap distribution beyond each end of the interval."""
    from scipy.stats import norm, t

    return float(norm.cdf(-math.sqrt(n / (n - 1)) * t.ppf(0.5 + LEVEL / 2, df)))


def _parts(statistic: Callable[[Draws], float | None], strata: Draws) -> dict[int, float]:
    """The strata that the statistic depends on, each with the jackknife's variance of its part, (n−1)/n Σ (θᵢ − θ̄)².

    A stratum without influence gives the same value where any of its replicates stands for all, and without any.
    """
    whole, parts = statistic(strata), {}
    for stratum, units in strata.items():
        n = len(units)
        without = [statistic({**strata, stratum: [*units[:i], *units[i + 1 :]]}) for i in range(n)]
        alone = [statistic({**strata, stratum: [unit] * n}) for unit in units]
        if any(value != whole for value in (*without, *alone)):
            known = np.array([value for value in without if value is not None])
            parts[stratum] = (n - 1) * float(known.var()) if len(known) else 0.0
    return parts


def _resamples(units: Sequence[int], most: int) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """All multisets of as many units with their probabilities, or `most` random ones of equal weight."""
    n = len(units)
    if math.comb(2 * n - 1, n) <= MAX_ENUMERATED:
        every = list(itertools.combinations_with_replacement(units, n))
        ways = [math.factorial(n) / math.prod(map(math.factorial, Counter(each).values())) for each in every]
        return every, np.array(ways) / n**n
    return [draws[0] for draws in _drawn({0: units}, most)], np.full(most, 1 / most)


def _drawn(strata: Draws, most: int) -> Iterator[dict[int, tuple[int, ...]]]:
    """Resamples of all strata, the same each time."""
    rng = np.random.default_rng(SEED)
    columns = [rng.choice(units, (most, len(units))).tolist() for units in strata.values()]
    for each in zip(*columns, strict=True):
        yield dict(zip(strata, each, strict=True))


def _value(each: Criterion, results: Results) -> tuple[float | None, str]:
    """The statistic, and why it has none. A ValueError is a study's way to say so; NaN and infinity are no numbers."""
    try:
        with np.errstate(all="ignore"):
            value = each.statistic(results)
        if value is None or math.isnan(value):
            return None, "it could not be computed: a run or a number that it needs is missing"
        if math.isinf(value):
            return None, "it could not be computed: it is infinite"
        return float(value), ""
    except ValueError as error:
        return None, f"it could not be computed: {error}"
    except Exception as error:  # a study's other claims, and its numbers, are not lost for one wrong statistic
        return None, f"it could not be computed: {type(error).__name__}: {error}"
