"""Resampled intervals against enumeration by hand, closed forms and scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from lorascope.linalg import bootstrap


def mean(strata):
    return float(np.mean([value for units in strata.values() for value in units]))


def test_means_of_values_drawn_again():
    """Of 0 and 10 each of 0, 5 and 10 in one of four, two of four and one of four draws."""
    drawn = bootstrap.resampled_means([0, 10], np.random.default_rng(0))
    assert drawn.shape == (bootstrap.RESAMPLES,)
    shares = [np.mean(drawn == value) for value in (0, 5, 10)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=4 * 0.5 / math.sqrt(bootstrap.RESAMPLES))  # 4 deviations


def test_the_interval_of_a_mean():
    assert bootstrap.mean_interval([]) == (None, None)
    assert bootstrap.mean_interval([3.0]) == (None, None)
    assert bootstrap.mean_interval([3.0, 3.0]) == (3.0, 3.0)
    assert bootstrap.mean_interval([0.0, 10.0]) == (0.0, 10.0)  # a quarter of the draws lies at each end
    values = np.random.default_rng(1).standard_normal(400)
    half = stats.norm.ppf(0.975) * values.std() / math.sqrt(len(values))
    low, high = bootstrap.mean_interval(list(values))
    assert (values.mean() - low, high - values.mean()) == pytest.approx((half, half), rel=0.1)  # of 50 draws beyond it


def test_the_first_place_that_reaches_a_target():
    below, above = [1.0, 1.0, 1.0], [2.0, 2.0, 2.0]
    assert bootstrap.first_reaching([below, above, above], [10, 20, 30], 2.0) == (20, 20)
    assert bootstrap.first_reaching([below, below], [10, 20], 2.0) == (math.inf, math.inf)
    # Half of the draws of two unequal values have a mean of 1.5 at least, a quarter reaches 2
    assert bootstrap.first_reaching([[1.0, 2.0], above], [1, 7], 2.0) == (1, 7)


def test_all_resamples_of_few_replicates_are_counted():
    """Of n replicates the interval is that of the multinomial law; t with n − 1 degrees widens the tail."""
    values = [1.0, 2.0, 4.0, 8.0]
    draws = np.array(np.meshgrid(*[values] * 4)).reshape(4, -1).mean(axis=0)
    tail = stats.norm.cdf(-math.sqrt(4 / 3) * stats.t.ppf(0.975, 3))
    low, high, reason = bootstrap.expanded_interval(mean, {0: values})
    assert (low, high) == tuple(np.quantile(draws, [tail, 1 - tail], method="inverted_cdf"))
    assert reason == ""


def test_strata_without_influence_do_not_count():
    """One replicate of a stratum that the number does not depend on is no reason against an interval."""
    values = [1.0, 2.0, 4.0, 8.0]
    alone = bootstrap.expanded_interval(mean, {0: values})

    def first(strata):
        return mean({0: strata["a"]})

    assert bootstrap.expanded_interval(first, {"a": values, "b": [5.0]}) == alone
    assert bootstrap.expanded_interval(mean, {0: [5.0]}) == (None, None, "one replicate has no interval")
    assert bootstrap.expanded_interval(mean, {0: values, 1: [5.0]})[2] == "one replicate has no interval"
    assert bootstrap.expanded_interval(lambda strata: None, {0: values})[2].startswith("the number cannot be computed")
    assert bootstrap.expanded_interval(lambda strata: 1.0, {})[2] == "one replicate has no interval"
    assert bootstrap.expanded_interval(lambda strata: 3.0, {0: values, 1: values}, 50) == (3.0, 3.0, "")


def test_the_variances_of_the_parts_are_the_jackknifes():
    """Of a mean it is s²/n."""
    a, b = [1.0, 2.0, 4.0], [3.0, 3.5]
    parts = bootstrap.variance_parts(lambda strata: np.mean(strata["a"]) - np.mean(strata["b"]), {"a": a, "b": b})
    assert parts == {"a": pytest.approx(np.var(a, ddof=1) / 3), "b": pytest.approx(np.var(b, ddof=1) / 2)}
    welch = stats.ttest_ind(a, b, equal_var=False).df
    assert bootstrap.freedom(parts, {"a": a, "b": b}) == pytest.approx(welch, rel=1e-12)
    assert bootstrap.freedom({"a": 0.0, "b": 0.0}, {"a": a, "b": b}) == 1
    assert bootstrap.freedom({}, {"a": a, "b": [1.0] * 5}) == 2
    missing = bootstrap.variance_parts(lambda strata: None if len(strata["a"]) < 3 else sum(strata["a"]), {"a": a})
    assert missing == {"a": 0}  # without any of its replicates there is no number


def test_resamples_of_several_strata_are_drawn():
    """The interval of a difference of means by t, about."""
    rng = np.random.default_rng(0)
    strata = {"a": list(rng.normal(5, 1, 12)), "b": list(rng.normal(3, 2, 9))}
    low, high, reason = bootstrap.expanded_interval(lambda s: np.mean(s["a"]) - np.mean(s["b"]), strata)
    welch = stats.ttest_ind(strata["a"], strata["b"], equal_var=False).confidence_interval()
    assert reason == ""
    # The bootstrap of means has no fourth moment's correction: some percent of the interval's width.
    assert (low, high) == pytest.approx((welch.low, welch.high), abs=0.1 * (welch.high - welch.low))


def test_many_replicates_are_drawn_and_few_are_enumerated():
    one, weights = bootstrap._resamples([1.0, 2.0], 10)
    assert {tuple(each): weight for each, weight in zip(one, weights, strict=True)} == {
        (1.0, 1.0): 0.25, (1.0, 2.0): 0.5, (2.0, 2.0): 0.25,
    }  # fmt: skip
    assert len(bootstrap._resamples(range(7), 10)[0]) == math.comb(13, 7)
    drawn, weights = bootstrap._resamples(range(8), 10)
    assert [len(each) for each in drawn] == [8] * 10
    assert weights.tolist() == [0.1] * 10


def test_a_statistic_is_computed_once_for_the_same_replicates():
    seen = []

    def count(strata):
        seen.append(strata)
        return mean(strata)

    draws = [{0: [1, 2], 1: [5]}, {0: [2, 1], 1: [6]}, {0: [1, 1], 1: [5]}]
    assert bootstrap._computed_once(count, draws, [0]) == [mean(draws[0]), mean(draws[0]), mean(draws[2])]
    assert len(seen) == 2
