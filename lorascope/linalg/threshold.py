"""Where a measured curve crosses a level, the curve being known at a few places only and perhaps not monotone."""

from collections.abc import Mapping


def bracket(values: Mapping[int, float], level: float) -> tuple[int | None, int | None]:
    """The last place below the level, and the next measured one, from which on all measured places reach it.

    Args:
        values: measured values by place; NaN counts as below.
        level: what is to be reached.

    Returns:
        (low, high): low is None where every place reaches the level, high where the last place does not.
    """
    low = max((place for place, value in values.items() if not value >= level), default=None)
    high = min((place for place in values if low is None or place > low), default=None)
    return low, high


def largest_drop(values: Mapping[int, float]) -> tuple[float, int | None, int | None]:
    """By how much the curve falls at most between any two of its places, and the two; 0 where it never falls."""
    worst: tuple[float, int | None, int | None] = (0.0, None, None)
    peak: int | None = None
    for place in sorted(values):
        if peak is not None and values[peak] - values[place] > worst[0]:
            worst = (values[peak] - values[place], peak, place)
        if peak is None or values[place] > values[peak]:
            peak = place
    return worst
