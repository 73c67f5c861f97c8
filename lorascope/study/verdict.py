"""Verdicts: an estimate, its interval over replicates, and whether it keeps its bound. Computed, never typed.

The interval is an expanded percentile bootstrap over replicates: `linalg.bootstrap.expanded_interval`. Replicates of
one stratum (`strata`) are resampled together and those of different strata apart.

held: the whole interval keeps the bound. not held: no part of it does. undecided: some does and some does not, or
something could not be computed, or a control did not fail.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from lorascope.linalg.bootstrap import DRAWN, expanded_interval
from lorascope.study.definition import Claim, Criterion, Results

VERDICTS = HELD, NOT_HELD, UNDECIDED = "held", "not held", "undecided"
MARKS = WITHDRAWN, CANNOT_TELL = "withdrawn", "cannot tell"  # shown in a verdict's place: see `marks`
SHOWN = 200  # of a scale that decides nothing


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
    low, high, why = expanded_interval(lambda draws: _value(each, results.drawn(draws))[0], results.replicates, most)
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
