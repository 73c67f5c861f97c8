"""Verdicts: an estimate, its interval over replicates, and whether it keeps its bound. Computed, never typed.

The interval is an expanded percentile bootstrap over replicates (Hesterberg 2015, "What Teachers Should Know About the
Bootstrap", §4.2, doi 10.1080/00031305.2015.1089789): with n replicates the 95 % percentile interval is too narrow by
about √((n − 1)/n) · z/t, so the tail probability is taken as Φ(−√(n/(n−1)) · t_{n−1; 0.975}). For the few replicates of
a study all resamples are enumerated with their multinomial probabilities; nothing is drawn at random then.

held: the whole interval keeps the bound. not held: no part of it does. undecided: some does and some does not, or
something could not be computed, or a control did not fail.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lorascope.study.definition import Claim, Criterion, Results

HELD, NOT_HELD, UNDECIDED = "held", "not held", "undecided"
LEVEL = 0.95
MOST_ENUMERATED = 2000  # resamples of up to 7 replicates; of more, as many are drawn
SEED = 20210617


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
    units = replicates(results)
    low, high, why = interval(lambda drawn: _value(each, results.drawn(drawn))[0], units)
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


def replicates(results: Results) -> list[int]:
    """The resampling units of all tables together."""
    tables = [results.runs, *results.tables.values()]
    return sorted(
        {int(each) for table in tables if "replicate" in table.columns for each in table["replicate"].dropna()}
    )


def interval(
    statistic: Callable[[Sequence[int]], float | None], units: Sequence[int]
) -> tuple[float | None, float | None, str]:
    """The expanded percentile interval of a statistic of resampled units, and why there is none.

    Args:
        statistic: of a resample; None where it cannot be computed on it.
    """
    n = len(units)
    if n < 2:
        return None, None, "one replicate has no interval"
    resamples, weights = _resamples(units)
    values = [statistic(each) for each in resamples]
    known = np.array([value is not None for value in values])
    if weights[known].sum() < 0.95:
        return None, None, "the number cannot be computed on most resamples of the replicates"
    found = np.array([value for value in values if value is not None], dtype=float)
    order = np.argsort(found)
    cumulative = np.cumsum(weights[known][order]) / weights[known].sum()
    tail = expanded_tail(n)
    low = found[order][np.searchsorted(cumulative, tail * (1 - 1e-12))]
    high = found[order][min(np.searchsorted(cumulative, 1 - tail), len(found) - 1)]
    return float(low), float(high), ""


def expanded_tail(n: int) -> float:
    """Φ(−√(n/(n−1)) · t_{n−1; 0.975}): the share of the bootstrap distribution beyond each end of the interval."""
    from scipy.stats import norm, t

    return float(norm.cdf(-math.sqrt(n / (n - 1)) * t.ppf(0.5 + LEVEL / 2, n - 1)))


def _resamples(units: Sequence[int]) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """All multisets of as many units with their probabilities, or MOST_ENUMERATED random ones of equal weight."""
    n = len(units)
    if math.comb(2 * n - 1, n) <= MOST_ENUMERATED:
        every = list(itertools.combinations_with_replacement(units, n))
        ways = [math.factorial(n) / math.prod(map(math.factorial, Counter(each).values())) for each in every]
        return every, np.array(ways) / n**n
    rng = np.random.default_rng(SEED)
    drawn = [tuple(rng.choice(units, n)) for _ in range(MOST_ENUMERATED)]
    return drawn, np.full(len(drawn), 1 / len(drawn))


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
