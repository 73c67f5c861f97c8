"""Ticks of axes: numbers that a reader expects there."""

import pytest

from lorascope.report import ticks

RANKS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


@pytest.mark.parametrize(
    ("data", "log", "shown"),
    [
        (tuple(range(25, 201, 25)), False, [25, 50, 75, 100, 125, 150, 175, 200]),
        (tuple(range(25, 501, 25)), False, [100, 200, 300, 400, 500]),
        (RANKS, True, [1, 2, 4, 8, 16, 32, 64]),
        (RANKS, False, [1, 8, 16, 24, 32, 40, 48, 56, 64]),
        (tuple(range(1, 17)), False, [1, 2, 4, 6, 8, 10, 12, 14, 16]),
        (tuple(range(1, 385)), True, [1, 2, 4, 8, 16, 32, 64, 128, 256]),
        ((100.0, 200.0, 400.0, 800.0, 1600.0), True, [100, 200, 400, 800, 1600]),
        ((66_048.0, 264_192.0, 4_227_072.0), True, []),  # parameters: round numbers, as on any log axis
        ((344.0, 648.0, 944.0, 5504.0), True, []),
        ((1.0, 2.0, 3.0), False, [1, 2, 3]),
    ],
)
def test_what_counts_is_ticked_by_its_own_values_or_by_two(data, log, shown):
    assert ticks.of_counts((min(data), max(data)), data, log, 480.0) == shown


def test_values_of_a_narrow_panel_are_not_all_ticked():
    steps = tuple(range(25, 201, 25))
    assert ticks.of_counts((25, 200), steps, False, 120.0) == [50, 100, 150, 200]


def test_a_log_axis_has_round_numbers():
    assert ticks.at(66_048, 4_227_072, True, 6) == [1e5, 2e5, 5e5, 1e6, 2e6]
    assert ticks.labels([1e5, 2e5, 5e5, 1e6, 2e6]) == ["10⁵", "2·10⁵", "5·10⁵", "10⁶", "2·10⁶"]
    assert ticks.at(1.0, 1e6, True, 6) == [10.0**k for k in range(7)]
    assert ticks.labels([500.0, 2000.0, 50_000.0]) == ["500", "2,000", "50,000"]
