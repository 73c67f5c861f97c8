"""What an interval says about a criterion: one rule, for verdicts and for their power.

The interval is compared with two landmarks: the bound, from which on an effect counts as reproduced, and no effect.
"""

import math
from typing import Any

import numpy as np

from lorascope.study.claims import Criterion

REPRODUCED, WEAKER, ABSENT, INCONCLUSIVE = "reproduced", "weaker", "absent or opposite", "inconclusive"
FAILED, PASSED = "failed", "passed"  # of a negative control, which is expected to fail
OUTCOMES = REPRODUCED, WEAKER, ABSENT, INCONCLUSIVE, FAILED, PASSED
OPPOSITE, NO_EFFECT = (
    "the interval is on the opposite side of no effect",
    "the interval is within the margin of no effect",
)
OUTSIDE, BEYOND = "the interval is outside the bound", "the effect is larger than the bounds allow"
RULES = (  # in this order: the first that applies
    (REPRODUCED, ""),
    (WEAKER, ""),
    (ABSENT, NO_EFFECT),
    (ABSENT, OPPOSITE),
    (ABSENT, BEYOND),
    (ABSENT, OUTSIDE),
    (INCONCLUSIVE, ""),
)
Ends = tuple[Any, Any]  # of an interval, or of many: arrays of one shape


def outcome(criterion: Criterion, interval: Ends, wide: Ends) -> tuple[str, str]:
    """The outcome of a criterion with this 95 % interval, and the reason.

    Args:
        wide: the interval of the level at which an effect counts as absent: higher where one of several criteria that
            fails is enough.
    """
    word, reason = RULES[int(rules(criterion, interval, wide))]
    return word, _straddled(criterion, interval) if word == INCONCLUSIVE else reason


def rules(criterion: Criterion, interval: Ends, wide: Ends) -> np.ndarray:
    """Which of `RULES` applies to each interval."""
    is_outside = outside(criterion, wide)
    if criterion.no_effect is None:
        effect = wide_effect = (np.nan, np.nan)
    else:
        effect, wide_effect = _effects(criterion, interval), _effects(criterion, wide)
        is_outside &= wide_effect[0] > criterion.distance  # and not on the other side
    margin = criterion.distance if criterion.margin is None else criterion.margin
    applies = [
        inside(criterion, interval),
        (effect[0] > 0) & (effect[1] < criterion.distance),
        (wide_effect[0] >= -margin) & (wide_effect[1] <= margin),
        wide_effect[1] <= 0,
        is_outside & (criterion.no_effect is not None),
        is_outside,
    ]
    return np.select([np.broadcast_to(each, np.shape(interval[0])) for each in applies], range(6), len(RULES) - 1)


def control_outcome(control: Criterion, interval: Ends) -> tuple[str, str]:
    """The outcome of a negative control, and the reason."""
    if inside(control, interval):
        return PASSED, ""
    return (FAILED, "") if outside(control, interval) else (INCONCLUSIVE, _straddled(control, interval))


def inside(criterion: Criterion, interval: Ends) -> Any:
    """Whether the whole interval keeps the bound."""
    least, most = _bounds(criterion)
    return (interval[0] >= least) & (interval[1] <= most)


def outside(criterion: Criterion, interval: Ends) -> Any:
    """Whether no part of the interval keeps the bound: one around a two-sided bound overlaps it, too."""
    least, most = _bounds(criterion)
    return (interval[1] < least) | (interval[0] > most)


def _bounds(criterion: Criterion) -> tuple[float, float]:
    least = -math.inf if criterion.at_least is None else criterion.at_least
    return least, math.inf if criterion.at_most is None else criterion.at_most


def _effects(criterion: Criterion, interval: Ends) -> Ends:
    """The interval as distances from no effect, positive toward the bound."""
    low, high = (end - criterion.no_effect for end in interval)
    return (low, high) if criterion.upward else (-high, -low)


def _straddled(criterion: Criterion, interval: Ends) -> str:
    """The landmarks that the interval contains."""
    low, high = interval
    bounds = [bound for bound in (criterion.at_least, criterion.at_most) if bound is not None]
    names = ["the bound"] if any(low <= bound <= high for bound in bounds) else []
    if criterion.no_effect is not None and low <= criterion.no_effect <= high:
        names.append("no effect")
    return f"the interval contains {' and '.join(names)}" if names else "the interval is too wide"
