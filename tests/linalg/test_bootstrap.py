"""Resampled intervals against enumeration by hand, closed forms and scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from lorascope.linalg import bootstrap


def mean(strata):
    return float(np.mean([value for units in strata.values() for value in units]))


def alone(statistic):
    """Statistics that are one, of replicates alone."""
    return lambda draws, text_draw, which: [statistic(draws) for _ in which]


def expanded_interval(statistic, strata, most=bootstrap.DRAWN):
    (found,) = bootstrap.expanded_intervals(alone(statistic), 1, strata, most=most)
    return found.low, found.high, found.reason


def variance_parts(statistic, strata):
    (found,) = bootstrap.variance_parts(alone(statistic), 1, strata)
    return found


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
    drawn = np.random.default_rng(0).integers(0, 400, (2000, 400))  # the same each time
    assert (low, high) == pytest.approx(np.percentile(values[drawn].mean(axis=1), [2.5, 97.5]), rel=1e-12)
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
    low, high, reason = expanded_interval(mean, {0: values})
    assert (low, high) == tuple(np.quantile(draws, [tail, 1 - tail], method="inverted_cdf"))
    assert reason == ""


def test_strata_without_influence_do_not_count():
    """One replicate of a stratum that the number does not depend on is no reason against an interval."""
    values = [1.0, 2.0, 4.0, 8.0]
    found = expanded_interval(mean, {0: values})

    def first(strata):
        return mean({0: strata["a"]})

    assert expanded_interval(first, {"a": values, "b": [5.0]}) == found
    assert expanded_interval(mean, {0: [5.0]}) == (None, None, "one replicate has no interval")
    assert expanded_interval(mean, {0: values, 1: [5.0]})[2] == "one replicate has no interval"
    assert expanded_interval(lambda strata: None, {0: values})[2].startswith("the number cannot be computed")
    assert expanded_interval(lambda strata: 1.0, {})[2] == "one replicate has no interval"
    assert expanded_interval(lambda strata: 3.0, {0: values, 1: values}, 50) == (3.0, 3.0, "")


def test_the_variances_of_the_parts_are_the_jackknifes():
    """Of a mean it is s²/n."""
    a, b = [1.0, 2.0, 4.0], [3.0, 3.5]
    parts = variance_parts(lambda strata: np.mean(strata["a"]) - np.mean(strata["b"]), {"a": a, "b": b})
    assert parts == {"a": pytest.approx(np.var(a, ddof=1) / 3), "b": pytest.approx(np.var(b, ddof=1) / 2)}
    welch = stats.ttest_ind(a, b, equal_var=False).df
    assert bootstrap.freedom(parts, {"a": 3, "b": 2}) == pytest.approx(welch, rel=1e-12)
    assert bootstrap.freedom({"a": 0.0, "b": 0.0}, {"a": 3, "b": 2}) == 1
    assert bootstrap.freedom({}, {"a": 3, "b": 5, bootstrap.TEXTS: 0}) == 2
    missing = variance_parts(lambda strata: None if len(strata["a"]) < 3 else sum(strata["a"]), {"a": a})
    assert missing == {"a": 0}  # without any of its replicates there is no number


def test_resamples_have_the_variance_of_n_and_not_of_n_less_one():
    """Of each stratum (n − 1)/n of the variance that its own values show; of none, what the smallest would have."""
    assert bootstrap._widening({"a": 2.0}, {"a": 5}) == 1.25
    assert bootstrap._widening({"a": 1.0, "b": 3.0}, {"a": 2, "b": 4}) == 4 / (1 / 2 + 3 * 3 / 4)
    assert bootstrap._widening({"a": 0.0}, {"a": 5, "b": 2}) == 1.25
    assert bootstrap._widening({}, {"a": 5, "b": 3, bootstrap.TEXTS: 0}) == 1.5


def test_resamples_of_several_strata_are_drawn():
    """The interval of a difference of means by t, about."""
    rng = np.random.default_rng(0)
    strata = {"a": list(rng.normal(5, 1, 12)), "b": list(rng.normal(3, 2, 9))}
    low, high, reason = expanded_interval(lambda s: np.mean(s["a"]) - np.mean(s["b"]), strata)
    welch = stats.ttest_ind(strata["a"], strata["b"], equal_var=False).confidence_interval()
    assert reason == ""
    # The bootstrap of means has no fourth moment's correction: some percent of the interval's width.
    assert (low, high) == pytest.approx((welch.low, welch.high), abs=0.1 * (welch.high - welch.low))


def test_many_replicates_are_drawn_and_few_are_enumerated():
    made = bootstrap.resamples_of_one({0: [1.0, 2.0], 1: [5.0]}, 0, 10)
    assert {tuple(each[0]): weight for each, weight in zip(made.draws, made.weights, strict=True)} == {
        (1.0, 1.0): 0.25, (1.0, 2.0): 0.5, (2.0, 2.0): 0.25,
    }  # fmt: skip
    assert all(each[1] == [5.0] for each in made.draws)
    made = bootstrap.resamples_of_one({0: range(7)}, 0, 10)
    assert len(made.draws) == math.comb(13, 7)
    assert made.weights.sum() == pytest.approx(1)
    made = bootstrap.resamples_of_one({0: range(8), 1: [5.0]}, 0, 10)
    assert [(len(each[0]), each[1]) for each in made.draws] == [(8, [5.0])] * 10
    assert made.weights.tolist() == [0.1] * 10


def test_each_resample_is_made_once_for_all_statistics():
    """Of two replicates the first statistic needs 3 resamples, the second, of another stratum, 3 others; the sum of
    both needs each pair of these at most once, though 50 are drawn."""
    seen = []

    def statistics(draws, text_draw, which):
        seen.append((tuple(sorted(draws["a"])), tuple(sorted(draws["b"])), tuple(which)))
        a, b = sum(draws["a"]), sum(draws["b"])
        return [(a, b, a + b, 2 * a + b)[i] for i in which]

    found = bootstrap.expanded_intervals(statistics, 4, {"a": [1.0, 2.0], "b": [10.0, 30.0]}, most=50)
    resamples = [each for each in seen if each[2] != (0, 1, 2, 3)]  # and not those of the jackknife
    assert len(resamples) == len(set(resamples))
    assert [each[2] for each in resamples].count((0,)) == [each[2] for each in resamples].count((1,)) == 3
    assert 3 < [each[2] for each in resamples].count((2, 3)) <= 9
    assert [(each.low, each.high) for each in found] == [(2, 4), (20, 60), (22, 64), (24, 68)]
    shown = []
    bootstrap.expanded_intervals(statistics, 2, {"a": [1.0], "b": [10.0, 30.0]}, progress=lambda *n: shown.append(n))
    assert shown == [(1, 3), (2, 3), (3, 3)]  # the first has one replicate, and no interval


def test_standard_errors_are_the_jackknifes_or_the_resamples():
    """Of a mean s/√n. The median of 1, 2, 2, 2, 3 is the same without any of them: its error is that of the resamples,
    times √(n/(n − 1))."""
    values = np.array([1.0, 2.0, 2.0, 2.0, 3.0])
    (of_mean,) = bootstrap.expanded_intervals(alone(lambda draws: values[list(draws[0])].mean()), 1, {0: range(5)})
    assert (of_mean.se, of_mean.df) == (pytest.approx(np.std(values, ddof=1) / math.sqrt(5)), 4)
    median = alone(lambda draws: float(np.median(values[list(draws[0])])))
    (of_median,) = bootstrap.expanded_intervals(median, 1, {0: range(5)})
    every = np.median(np.array(np.meshgrid(*[values] * 5)).reshape(5, -1), axis=0)
    assert of_median.se == pytest.approx(every.std() * math.sqrt(5 / 4))


def crossed(a, b, n_texts, trials, rng):
    """Scores of 5 replicates on texts: the effects of both, and noise of 1, whose mean has variance 1/(5 n)."""
    seeds, texts = a * rng.standard_normal((trials, 5, 1)), b * rng.standard_normal((trials, 1, n_texts))
    return seeds + texts + rng.standard_normal((trials, 5, n_texts))


def over_texts(scores, draws=200):
    """The interval of the mean score over replicates and texts."""
    n = scores.shape[1]
    counts = np.random.default_rng(1).multinomial(n, np.full(n, 1 / n), size=draws)
    drawn = np.column_stack([scores @ counts.T / n, scores.mean(axis=1)])  # the last one: all texts as they are

    def statistics(draw, text_draw, which):
        return [float(drawn[list(draw[0]), -1 if text_draw is None else text_draw].mean())] * len(which)

    (found,) = bootstrap.expanded_intervals(statistics, 1, {0: range(len(scores))}, texts=n, text_draws=draws, most=400)
    return found


def test_an_interval_over_replicates_and_texts_covers_both():
    """80 trials, with four times as much variance of texts as of replicates: 95 % less three standard errors of the
    share. Over replicates alone it is the interval of another number, and covers some 70 %."""
    covered = fixed = 0
    for scores in crossed(0.5, 4.0, 80, 80, np.random.default_rng(3)):
        both, means = over_texts(scores), scores.mean(axis=1).tolist()
        low, high, _ = expanded_interval(mean, {0: means})
        covered += both.low <= 0 <= both.high
        fixed += low <= 0 <= high
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / 80) < covered / 80
    assert fixed / 80 < 0.8


def test_the_variance_over_draws_of_the_texts_is_that_of_a_sample():
    """Of four draws with the values 1, 2, 4 and none: 7/3, by n − 1. What never varies does not depend on the texts."""
    values = [1.0, 2.0, None, 4.0]
    parts = bootstrap._text_parts(lambda strata, k, which: [values[k], 5.0, None], 3, {}, 4)
    assert parts == [pytest.approx(7 / 3), None, None]


def test_the_error_over_replicates_and_texts_is_the_sum_of_both():
    """The jackknife's part is s²/5 of the replicates' means, that of the texts s²/n of the texts' means. 10 %: 200
    draws of the texts give a variance to 10 %, and so an error to 5 %."""
    (scores,) = crossed(0.5, 2.0, 400, 1, np.random.default_rng(4))
    found = over_texts(scores)
    seeds, texts = scores.mean(axis=1).var(ddof=1) / 5, scores.mean(axis=0).var() / 400
    assert found.se == pytest.approx(math.sqrt(seeds + texts), rel=0.1)
    assert found.df == pytest.approx((seeds + texts) ** 2 / (seeds**2 / 4 + texts**2 / 399), rel=0.2)
    without = over_texts(np.repeat(scores.mean(axis=1)[:, None], 400, axis=1).round(6))
    assert without.df == 4  # scores that are the same on all texts do not depend on them


def test_the_ends_where_the_weights_round_to_less_than_one():
    ordered = np.array([1.0, 2.0, 3.0])
    assert bootstrap.ends(ordered, np.array([0.25, 0.75, 1 - 1e-15]), 0.0) == (1, 3)
    assert bootstrap.ends(ordered, np.array([0.25, 0.75, 1.0]), 0.25) == (1, 2)
    assert bootstrap.ends(ordered, np.array([0.25, 0.75, 1.0]), 0.3) == (2, 2)


def test_resamples_without_a_value_leave_their_weight_to_the_others(rng):
    """4 % of them: the rest is as if it were all that there is. Of 6 % there is no interval."""
    values, weights = rng.standard_normal(1000), rng.uniform(1, 2, 1000)
    weights *= 0.96 / weights.sum()
    parts, sizes = {"a": 0.2, "b": 0.1}, {"a": 4, "b": 6, "texts": 0}
    with_nan = bootstrap._interval(np.append(values, np.nan), np.append(weights, 0.04), parts, sizes)
    assert with_nan == bootstrap._interval(values, weights / 0.96, parts, sizes)
    none = bootstrap._interval(np.append(values, np.nan), np.append(weights * 0.94 / 0.96, 0.06), parts, sizes)
    assert (none.low, none.high, none.se) == (None, None, None)
    assert "most resamples" in none.reason


def test_texts_alone_are_drawn_two_hundred_times():
    strata, seen = {"a": [1.0, 2.0]}, []

    def statistics(draws, text_draw, which):
        if draws is strata and text_draw is not None:
            seen.append(text_draw)
        return [float(np.mean(draws["a"])) for _ in which]

    for draws in (300, 7):
        bootstrap.expanded_intervals(statistics, 1, strata, texts=10, text_draws=draws, most=5)
    assert seen == [*range(200), *range(7)]
