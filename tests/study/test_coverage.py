"""How often intervals of few replicates contain the true value: the table, its simulation, and what is known."""

import math
from itertools import pairwise

import numpy as np
import pytest

from lorascope.linalg import bootstrap
from lorascope.study import coverage as simulation
from lorascope.study.coverage import COVERAGE, coverage, simulated


def interval_of(statistic, strata, most=bootstrap.DRAWN):
    (found,) = bootstrap.expanded_intervals(lambda draws, text, which: [statistic(draws)], 1, strata, most=most)
    return found.low, found.high


def test_the_table_of_coverage_is_what_is_simulated():
    assert simulated(5, 1) == COVERAGE[1][5]
    assert simulated(3, 2, trials=500) == pytest.approx(COVERAGE[2][3], abs=3 * math.sqrt(0.05 * 0.95 / 500))


def test_coverage_is_less_with_few_replicates():
    assert coverage(5, 1) < 0.93 < coverage(5, 2) < 0.96
    assert (coverage(50, 3), coverage(50, 1)) == (COVERAGE[2][10], COVERAGE[1][10])
    with pytest.raises(ValueError, match="1 replicates have no interval"):
        coverage(1, 1)


def test_the_simulated_intervals_are_those_of_the_verdicts():
    """The same trials, one by one by the function that judges."""
    rng = np.random.default_rng(20261129)
    trials = rng.standard_normal((1, 4, 300))[0].T
    inside = 0
    for values in trials:
        low, high = interval_of(lambda draws, values=values: float(values[list(draws[0])].mean()), {0: range(4)})
        inside += low <= 0 <= high
    assert simulated(4, 1, trials=300) == inside / 300


def test_so_are_those_of_a_difference_in_several_steps(monkeypatch):
    """20 trials at once, and the 10 that are left; 300 resamples."""
    monkeypatch.setattr(simulation, "STEP", 20)
    monkeypatch.setattr(bootstrap, "DRAWN", 300)
    rng = np.random.default_rng(20261129)
    trials = np.concatenate([rng.standard_normal((2, 3, size)) for size in (20, 10)], axis=2)
    inside = []
    for k in range(30):

        def difference(draws, values=trials[:, :, k]):
            return float(values[0, list(draws[0])].mean() - values[1, list(draws[1])].mean())

        low, high = interval_of(difference, {0: range(3), 1: range(3)}, most=300)
        inside.append(low <= 0 <= high)
    assert simulated(3, 2, trials=30) == sum(inside) / 30
    assert 0 < sum(inside) < 30


ERROR = 0.0031  # of a share of 5,000 trials, at most: √(0.95 · 0.05 / 5000); of smaller shares it is computed


def test_the_least_coverages_are_known():
    """The interval of so few replicates spans all resampled means, so that it misses where all values have one sign
    (one stratum), or where those of one are all above the other's (two): 2/2ⁿ and 2/C(2n, n)."""
    known = {(1, n): 1 - 2 / 2**n for n in (2, 3, 4)} | {(2, n): 1 - 2 / math.comb(2 * n, n) for n in (2, 3)}
    for (strata, n), share in known.items():
        assert coverage(n, strata) == pytest.approx(share, abs=3 * math.sqrt(share * (1 - share) / 5000))


@pytest.mark.parametrize("strata", [1, 2])
def test_coverage_rises_to_what_is_stated(strata):
    table = {n: coverage(n, strata) for n in range(2, 11)}
    assert table == COVERAGE[strata]
    assert all(after > before - 3 * math.sqrt(2) * ERROR for before, after in pairwise(table.values()))
    assert table[10] == pytest.approx(0.95, abs=3 * ERROR)
