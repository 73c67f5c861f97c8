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
from lorascope.study.claims import Claim, Criterion
from lorascope.study.results import Results

VERDICTS = HELD, NOT_HELD, UNDECIDED = "held", "not held", "undecided"
MARKS = WITHDRAWN, CANNOT_TELL = "withdrawn", "cannot tell"  # shown in a verdict's place: see `marks`
SHOWN = 200  # of a scale without verdicts


@dataclass(frozen=True)
class JudgedCriterion:
    """A criterion with its estimate, interval and verdict.

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
    criteria: tuple[JudgedCriterion, ...] = field(default=())


def judge(claim: Claim, results: Results) -> Verdict:
    """The claim's verdict on the results."""
    criteria = tuple(judge_criterion(criterion, results) for criterion in claim.criteria)
    controls = tuple(judge_criterion(control, results, control=True) for control in claim.controls)
    verdicts = [criterion.verdict for criterion in criteria]
    if not results.scale.conclusive or any(control.verdict != NOT_HELD for control in controls):
        verdict = UNDECIDED
    elif NOT_HELD in verdicts:
        verdict = NOT_HELD
    else:
        verdict = HELD if set(verdicts) == {HELD} else UNDECIDED
    return Verdict(claim.name, claim.text, claim.source, claim.note, verdict, criteria + controls)


def judge_criterion(criterion: Criterion, results: Results, *, control: bool = False) -> JudgedCriterion:
    """The criterion's estimate, interval and verdict."""
    stated = (criterion.text, criterion.at_least, criterion.at_most, criterion.unit)
    estimate, reason = _estimate(criterion, results)
    if estimate is None:
        return JudgedCriterion(*stated, None, None, None, UNDECIDED, reason, control)
    resamples = DRAWN if results.scale.conclusive else SHOWN
    low, high, reason = expanded_interval(
        lambda draws: _estimate(criterion, results.resampled(draws))[0], results.replicates, resamples
    )
    if low is None or high is None:
        return JudgedCriterion(*stated, estimate, None, None, UNDECIDED, reason, control)
    if criterion.satisfied_by(low) and criterion.satisfied_by(high):
        verdict = HELD
    else:  # an interval around a two-sided bound overlaps it, too
        below = criterion.at_least is not None and high < criterion.at_least
        above = criterion.at_most is not None and low > criterion.at_most
        verdict = NOT_HELD if below or above else UNDECIDED
    return JudgedCriterion(*stated, estimate, low, high, verdict, "", control)


def _estimate(criterion: Criterion, results: Results) -> tuple[float | None, str]:
    """The statistic, or None and why. A ValueError is how a study says that; NaN and infinity are not numbers."""
    try:
        with np.errstate(all="ignore"):
            value = criterion.statistic(results)
        if value is None or math.isnan(value):
            return None, "it could not be computed: a run or a number that it needs is missing"
        if math.isinf(value):
            return None, "it could not be computed: it is infinite"
        return float(value), ""
    except ValueError as error:
        return None, f"it could not be computed: {error}"
    except Exception as error:  # a study's other claims, and its numbers, are not lost for one wrong statistic
        return None, f"it could not be computed: {type(error).__name__}: {error}"
