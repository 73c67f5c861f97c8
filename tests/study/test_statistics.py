"""What statistics of claims share, against scipy and hand-counted examples."""

import numpy as np
import pytest
from scipy import stats

from lorascope.study import statistics


def test_slope_and_rank_correlation_agree_with_scipy():
    rng = np.random.default_rng(3)
    x, y, z = rng.integers(0, 6, 30), rng.standard_normal(30), rng.standard_normal(30)
    assert statistics.slope(x, y) == pytest.approx(stats.linregress(x, y).slope, rel=1e-12)
    assert statistics.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    ranks = [stats.rankdata(each) for each in (x, y, z)]
    left = [each - np.polyval(np.polyfit(ranks[2], each, 1), ranks[2]) for each in ranks[:2]]  # residuals, given z
    assert statistics.spearman(x, y, z) == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-12)


def test_area_under_roc_counts_pairs():
    positive, score = [True, True, False, False, False], [3.0, 1.0, 1.0, 0.0, 2.0]
    assert statistics.area_under_roc(positive, score) == pytest.approx((3 + 1.5) / 6)
    with pytest.raises(ValueError, match="none"):
        statistics.area_under_roc([False, False], [1.0, 2.0])


def test_once_computes_again_for_other_results():
    calls = []

    @statistics.once
    def total(results, factor):
        calls.append(factor)
        return sum(results) * factor

    first, second = [1, 2], [1, 2]  # equal, and not the same
    assert [total(first, 1), total(first, 1), total(first, 2), total(second, 1), total(first, 1)] == [3, 3, 6, 3, 3]
    assert calls == [1, 2, 1, 1]


def test_crossing_is_log_linear_between_two_sizes_of_the_grid():
    sizes, values = np.array([1.0, 10.0, 100.0]), np.array([0.2, 0.1, 0.6])  # the running maximum: 0.2, 0.2, 0.6
    assert statistics.crossing(sizes, values, 0.4) == pytest.approx(10**1.5)
    assert statistics.crossing(sizes, values, 0.4, on_grid=True) == 100
    assert statistics.crossing(sizes, values, 0.2) == 1
    assert statistics.crossing(sizes, values, 0.9, beyond=True) == 1000
    with pytest.raises(ValueError, match="no size"):
        statistics.crossing(sizes, values, 0.9)
