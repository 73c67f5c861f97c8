"""Verdicts against what the bootstrap's definition gives, and the intervals' coverage against the truth."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lorascope.linalg.bootstrap import expanded_interval, freedom, variance_parts
from lorascope.study import Claim, Control, Criterion, Results, StudyScale, verdict

NORMAL = [0.2, -0.7, 1.1, 0.4, -0.1]


def results(values):
    runs = pd.DataFrame({"replicate": range(len(values)), "loss": values})
    return Results(runs, {}, StudyScale(), pd.DataFrame())


def mean(found):
    return found.runs["loss"].mean()


def judged(values, **bounds):
    return verdict.judge_criterion(Criterion("mean", mean, **bounds), results(values))


def test_the_enumerated_bootstrap_is_the_bootstrap():
    """All 5⁵ equally likely resamples, one by one."""
    found = judged(NORMAL, at_least=0)
    means = np.sort([np.mean(each) for each in itertools.product(NORMAL, repeat=5)])
    tail = stats.norm.cdf(-math.sqrt(5 / 4) * stats.t.ppf(0.975, 4))
    assert found.low == pytest.approx(means[math.ceil(tail * len(means)) - 1])
    assert found.high == pytest.approx(means[math.ceil((1 - tail) * len(means)) - 1])
    assert found.estimate == pytest.approx(np.mean(NORMAL))


def test_intervals_cover_the_truth():
    """Of normal means with n = 5, a percentile interval covers 83 %, this one must cover 93 % or more (Hesterberg)."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        values = rng.standard_normal(5)
        low, high, _ = expanded_interval(lambda drawn, values=values: values[list(drawn[0])].mean(), {0: range(5)})
        inside += low <= 0 <= high
    assert 0.915 <= inside / 400 <= 0.99  # 0.95 less two standard errors and a half, for few replicates


def test_held_not_held_and_undecided():
    assert judged(NORMAL, at_least=-2).verdict == "held"
    assert judged(NORMAL, at_most=2).verdict == "held"
    assert judged(NORMAL, at_least=-2, at_most=2).verdict == "held"
    assert judged(NORMAL, at_least=2).verdict == "not held"
    assert judged(NORMAL, at_most=-2).verdict == "not held"
    assert judged(NORMAL, at_least=0.1).verdict == "undecided"
    assert judged(NORMAL, at_least=0.1, at_most=0.2).verdict == "undecided"  # the bounds lie inside the interval


def test_one_replicate_decides_nothing():
    found = judged([1.0], at_least=0)
    assert (found.verdict, found.low, found.estimate) == ("undecided", None, 1.0)
    assert "one replicate" in found.reason


def test_what_cannot_be_computed_is_undecided_and_says_why():
    def missing(found):
        raise ValueError("no run of rank 4")

    found = verdict.judge_criterion(Criterion("x", missing, at_least=0), results(NORMAL))
    assert (found.verdict, found.estimate) == ("undecided", None)
    assert "no run of rank 4" in found.reason
    assert judged([float("nan")] * 3, at_least=0).verdict == "undecided"


def test_a_claim_needs_all_its_criteria_and_its_controls_to_fail():
    def claim(criteria, controls=()):
        made = Claim("c", "c", "c", tuple(Criterion("m", mean, **b) for b in criteria), controls)
        return verdict.judge(made, results(NORMAL)).verdict

    held, failed, open_ = {"at_least": -2}, {"at_least": 2}, {"at_least": 0.1}
    assert claim([held, held]) == "held"
    assert claim([held, failed]) == "not held"
    assert claim([open_, failed]) == "not held"
    assert claim([held, open_]) == "undecided"
    assert claim([held], (Control("m", mean, **failed),)) == "held"
    assert claim([held], (Control("m", mean, **held),)) == "undecided"
    assert claim([failed], (Control("m", mean, **held),)) == "undecided"
    assert claim([held], (Control("m", mean, **open_),)) == "undecided"


def test_a_scale_that_shows_that_a_study_runs_decides_nothing():
    found = Results(results(NORMAL).runs, {}, StudyScale(conclusive=False), pd.DataFrame())
    judged = verdict.judge(Claim("c", "c", "c", (Criterion("m", mean, at_least=-2),)), found)
    assert judged.verdict == "undecided"
    assert judged.criteria[0].verdict == "held"  # the number is told all the same


def test_many_replicates_are_drawn_and_the_same_each_time():
    values = np.random.default_rng(1).standard_normal(20)
    low, high, _ = expanded_interval(lambda draws: values[list(draws[0])].mean(), {0: range(20)})
    half = stats.t.ppf(0.975, 19) * np.std(values, ddof=1) / math.sqrt(20)
    assert high - low == pytest.approx(2 * half, rel=0.12)  # 5000 draws of a tail of 2 %
    found = judged(list(values), at_least=0)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)  # rounding: the same draws


def test_a_bound_is_needed():
    with pytest.raises(ValueError, match="no bound"):
        Criterion("x", mean)


def test_replicates_are_resampled_in_all_tables_together():
    runs = pd.DataFrame({"replicate": [0, 0, 1], "loss": [1.0, 2.0, 3.0]})
    other = pd.DataFrame({"replicate": [0, 1], "x": [10.0, 20.0]})
    drawn = Results(runs, {"o": other}, StudyScale(), pd.DataFrame()).resampled({0: [1, 1, 0]})
    assert list(drawn.runs["loss"]) == [3.0, 3.0, 1.0, 2.0]
    assert list(drawn.runs["replicate"]) == [0, 1, 2, 2]
    assert list(drawn.tables["o"]["x"]) == [20.0, 20.0, 10.0]


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7, 9])
def test_an_interval_turns_with_its_statistic(n):
    """That of −x is that of x, turned: both ends follow one rule, with drawn resamples (n = 9), too: they are the same
    draws. 1e-9: rounding."""
    values = np.random.default_rng(n).standard_normal(n)
    low, high, _ = expanded_interval(lambda each: float(np.mean(values[list(each[0])])), {0: range(n)})
    turned_low, turned_high, _ = expanded_interval(lambda each: -float(np.mean(values[list(each[0])])), {0: range(n)})
    assert (-turned_high, -turned_low) == pytest.approx((low, high), abs=1e-9)


def test_an_interval_against_a_plain_monte_carlo_bootstrap():
    """Quantiles of 200,000 drawn medians of the absolute values of five."""
    values = np.array([0.2, -0.7, 1.1, 0.4, -0.15])
    rng = np.random.default_rng(5)
    drawn = np.median(np.abs(values[rng.integers(0, 5, (200_000, 5))]), axis=1)
    tail = stats.norm.cdf(-math.sqrt(5 / 4) * stats.t.ppf(0.975, 4))
    expected = np.quantile(drawn, [tail, 1 - tail], method="inverted_cdf")
    low, high, _ = expanded_interval(lambda each: float(np.median(np.abs(values[list(each[0])]))), {0: range(5)})
    assert (low, high) == tuple(expected)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, None])
def test_what_is_no_number_decides_nothing(value):
    found = verdict.judge_criterion(Criterion("x", lambda r: value, at_least=0), results(NORMAL))
    assert (found.verdict, found.estimate) == ("undecided", None)


def test_a_wrong_statistic_costs_its_own_claim_alone():
    wrong = Claim("w", "w", "w", (Criterion("x", lambda r: None + 1, at_least=0),))
    found = verdict.judge(wrong, results(NORMAL))
    assert found.verdict == "undecided"
    assert "TypeError" in found.criteria[0].reason


def test_a_statistic_that_fails_on_many_resamples_has_no_interval():
    def last(found):
        return float(
            found.runs.loc[found.runs["loss"] == NORMAL[0], "loss"].iloc[0]
        )  # IndexError where it is not drawn

    found = verdict.judge_criterion(Criterion("x", last, at_least=0), results(NORMAL))
    assert (found.estimate, found.low, found.verdict) == (NORMAL[0], None, "undecided")
    assert "resamples" in found.reason


# --- several strata ---------------------------------------------------------------------------------------------------


def two_arms(first, second, *, apart=True, numbered=range(5)):
    """Runs of two arms, the second's replicates numbered as said."""
    rows = [("a", i, value) for i, value in enumerate(first)]
    rows += [("b", i, value) for i, value in zip(numbered, second, strict=True)]
    runs = pd.DataFrame(rows, columns=["arm", "replicate", "loss"])
    strata = {"runs": [0] * len(first) + [1] * len(second)} if apart else {}
    return Results(runs, {}, StudyScale(), pd.DataFrame(), strata)


def difference(found):
    first, losses = found.runs["arm"].to_numpy() == "a", found.runs["loss"].to_numpy()
    return float(losses[first].sum() / first.sum() - losses[~first].sum() / (~first).sum())


LOWER, HIGHER = [0.1, 0.3, 0.2, 0.5, 0.4], [1.0, 1.6, 1.1, 1.4, 1.2]


def test_strata_are_resampled_apart():
    found = two_arms([1.0, 2.0], [3.0, 4.0], numbered=range(2)).resampled({0: [1, 1], 1: [0, 1]})
    assert list(found.runs["loss"]) == [2.0, 2.0, 3.0, 4.0]
    assert list(found.runs["replicate"]) == [0, 1, 0, 1]


def test_an_interval_of_two_arms_does_not_depend_on_how_replicates_are_numbered(monkeypatch):
    """Its ends move by the noise of 1500 draws alone; resampled together they would move by a third of the width.

    Noise: of a quantile at 2 % the standard deviation is √(0.02·0.98/1500)/φ(2), 7 % of the bootstrap's, which is a
    fourth of the width: 2 % of it, so that 10 % is more than three times that of a difference.
    """
    monkeypatch.setattr(verdict, "DRAWN", 1500)
    sorted_order, other_order = (0, 2, 1, 4, 3), (4, 1, 3, 0, 2)  # replicates that go together, and against each other

    def ends(order, *, apart):
        found = verdict.judge_criterion(
            Criterion("a - b", difference, at_most=0), two_arms(LOWER, HIGHER, apart=apart, numbered=order)
        )
        return np.array([found.low, found.high])

    one = ends(sorted_order, apart=True)
    width = np.ptp(one)
    assert np.abs(one - ends(other_order, apart=True)).max() < 0.1 * width
    assert np.abs(ends(sorted_order, apart=False) - ends(other_order, apart=False)).max() > 0.2 * width


def test_degrees_of_freedom_are_welchs():
    """The jackknife's variance of a mean is s²/n, so that they are those of Welch's test."""
    found = two_arms(LOWER, [4 * value for value in HIGHER])
    parts = variance_parts(lambda draws: difference(found.resampled(draws)), found.replicates)
    expected = stats.ttest_ind(LOWER, [4 * value for value in HIGHER], equal_var=False).df
    assert freedom(parts, found.replicates) == pytest.approx(expected, rel=1e-9)  # rounding
    assert freedom({0: 1.0, 1: 0.0}, {0: range(5), 1: range(5)}) == 4
    assert freedom({}, {0: range(5), 1: range(3)}) == 2


@pytest.mark.parametrize("spread", [1.0, 5.0])
def test_intervals_of_two_arms_cover_the_truth(spread):
    rng = np.random.default_rng(0)
    inside, trials, strata = 0, 200, {0: range(5), 1: range(5)}
    for _ in range(trials):
        first, second = rng.standard_normal(5).tolist(), (spread * rng.standard_normal(5)).tolist()

        def statistic(draws, first=first, second=second):
            return (sum(first[i] for i in draws[0]) / len(draws[0])) - sum(second[i] for i in draws[1]) / len(draws[1])

        low, high, _ = expanded_interval(statistic, strata, 1000)
        inside += low <= 0 <= high
    assert 0.91 <= inside / trials <= 0.995  # 0.95 less two and a half, and plus three, standard errors


def test_what_one_arm_decides_is_enumerated_beside_others():
    alone = judged(LOWER, at_least=0)
    criterion = Criterion("a", lambda found: found.runs.loc[found.runs["arm"] == "a", "loss"].mean(), at_least=0)
    among = verdict.judge_criterion(criterion, two_arms(LOWER, HIGHER))
    assert (among.low, among.high) == pytest.approx((alone.low, alone.high), rel=1e-12)  # rounding


def test_an_arm_with_one_replicate_has_no_interval():
    found = verdict.judge_criterion(Criterion("x", difference, at_most=0), two_arms(LOWER, [1.0], numbered=[0]))
    assert (found.low, found.verdict) == (None, "undecided")
    assert "one replicate" in found.reason
