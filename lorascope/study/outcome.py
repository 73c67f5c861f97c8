"""What an interval says about a criterion: one rule, for verdicts and for their power.

The interval is compared with two landmarks: the bound, from which on an effect counts as reproduced, and no effect.
"""

from lorascope.study.claims import Criterion

REPRODUCED, WEAKER, ABSENT, INCONCLUSIVE = "reproduced", "weaker", "absent or opposite", "inconclusive"
FAILED, PASSED = "failed", "passed"  # of a negative control, which is expected to fail
OUTCOMES = REPRODUCED, WEAKER, ABSENT, INCONCLUSIVE, FAILED, PASSED
OPPOSITE, NO_EFFECT = (
    "the interval is on the opposite side of no effect",
    "the interval is within the margin of no effect",
)
OUTSIDE, BEYOND = "the interval is outside the bound", "the effect is larger than the bounds allow"
Ends = tuple[float, float]  # of an interval


def outcome(criterion: Criterion, interval: Ends, wide: Ends) -> tuple[str, str]:
    """The outcome of a criterion with this 95 % interval, and the reason.

    Args:
        wide: the interval of the level at which an effect counts as absent: higher where one of several criteria that
            fails is enough.
    """
    low, high = interval
    if criterion.satisfied_by(low) and criterion.satisfied_by(high):
        return REPRODUCED, ""
    if criterion.no_effect is None:
        return (ABSENT, OUTSIDE) if outside(criterion, wide) else (INCONCLUSIVE, _straddled(criterion, interval))
    (low, high), (wide_low, wide_high) = _effects(criterion, interval), _effects(criterion, wide)
    bound = criterion.distance
    if low > 0 and high < bound:
        return WEAKER, ""
    margin = bound if criterion.margin is None else criterion.margin
    if -margin <= wide_low and wide_high <= margin:
        return ABSENT, NO_EFFECT
    if wide_high <= 0:
        return ABSENT, OPPOSITE
    if wide_low > bound and outside(criterion, wide):
        return ABSENT, BEYOND
    return INCONCLUSIVE, _straddled(criterion, interval)


def control_outcome(control: Criterion, interval: Ends) -> tuple[str, str]:
    """The outcome of a negative control, and the reason."""
    if control.satisfied_by(interval[0]) and control.satisfied_by(interval[1]):
        return PASSED, ""
    return (FAILED, "") if outside(control, interval) else (INCONCLUSIVE, _straddled(control, interval))


def outside(criterion: Criterion, interval: Ends) -> bool:
    """Whether no part of the interval keeps the bound: one around a two-sided bound overlaps it, too."""
    low, high = interval
    below = criterion.at_least is not None and high < criterion.at_least
    return below or (criterion.at_most is not None and low > criterion.at_most)


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
