"""The crossing of a level by a curve that is known at a few places."""

import math

from hypothesis import given
from hypothesis import strategies as st

from lorascope.linalg.threshold import bracket, largest_drop

CURVES = st.dictionaries(st.integers(0, 99), st.floats(-1, 2), min_size=1)


def test_bracket_of_a_rising_curve():
    assert bracket({1: 0.2, 2: 0.8, 4: 0.95, 8: 1.0}, 0.9) == (2, 4)


def test_an_early_success_that_does_not_last_does_not_count():
    assert bracket({1: 0.95, 2: 0.5, 4: 0.95}, 0.9) == (2, 4)


def test_ends():
    assert bracket({2: 0.95, 4: 1.0}, 0.9) == (None, 2)
    assert bracket({2: 0.1, 4: 0.2}, 0.9) == (4, None)
    assert bracket({2: math.nan, 4: 0.9}, 0.9) == (2, 4)
    assert bracket({}, 0.9) == (None, None)


def test_of_drops_that_are_equal_the_first_is_told_from_its_first_peak():
    assert largest_drop({1: 5.0, 2: 5.0, 3: 1.0}) == (4.0, 1, 3)
    assert largest_drop({1: 5.0, 2: 1.0, 3: 5.0, 4: 1.0}) == (4.0, 1, 2)
    assert largest_drop({1: 1.0, 2: 1.0}) == largest_drop({}) == (0.0, None, None)


@given(CURVES, st.floats(-1, 2))
def test_all_from_high_on_reach_the_level_and_low_does_not(values, level):
    low, high = bracket(values, level)
    assert low is None or values[low] < level
    assert all(values[place] >= level for place in values if high is not None and place >= high)
    assert all(place <= (low if low is not None else -1) or place >= high for place in values)


@given(CURVES)
def test_largest_drop_is_the_largest_over_all_pairs(values):
    size, at, to = largest_drop(values)
    brute = max((values[i] - values[j] for i in values for j in values if i <= j), default=0.0)
    assert size == brute
    assert (at is None and size == 0) or values[at] - values[to] == size
