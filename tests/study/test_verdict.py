"""Verdicts against what the bootstrap's definition gives, and the intervals' coverage against the truth."""

import itertools
import json
import math
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lorascope.linalg import bootstrap
from lorascope.study import Claim, Control, Criterion, Results, StudyScale, verdict
from lorascope.study.gains import InUnits
from lorascope.study.results import chosen
from lorascope.study.texts import TextScores
from lorascope.study.verdict import judge_all

NORMAL = [0.2, -0.7, 1.1, 0.4, -0.1]


def results(values):
    runs = pd.DataFrame({"replicate": range(len(values)), "loss": values})
    return Results(runs, {}, StudyScale(), pd.DataFrame())


def mean(found):
    return found.runs["loss"].mean()


def judge(claim, found, **more):
    (judged_claim,) = judge_all([claim], found, testbed="encoder", **more)
    return judged_claim


def judge_criterion(criterion, found):
    return judge(Claim("c", "c", "c", (criterion,)), found).criteria[0]


def judged(values, **landmarks):
    return judge_criterion(Criterion("mean", mean, **landmarks), results(values))


def claim_on(criteria, controls=(), **more):
    """The verdict of a claim on the mean of NORMAL, [-0.58, 0.96] about 0.18."""
    made = [Criterion("m", mean, **landmarks) for landmarks in criteria]
    return judge(
        Claim("c", "c", "c", tuple(made), tuple(Control("m", mean, **c) for c in controls), **more), results(NORMAL)
    )


def interval_of(statistic, strata, most=bootstrap.DRAWN):
    (found,) = bootstrap.expanded_intervals(lambda draws, text, which: [statistic(draws)], 1, strata, most=most)
    return found.low, found.high


def test_the_enumerated_bootstrap_is_the_bootstrap():
    """All 5⁵ equally likely resamples, one by one."""
    found = judged(NORMAL, at_least=0)
    means = np.sort([np.mean(each) for each in itertools.product(NORMAL, repeat=5)])
    tail = stats.norm.cdf(-math.sqrt(5 / 4) * stats.t.ppf(0.975, 4))
    assert found.low == pytest.approx(means[math.ceil(tail * len(means)) - 1])
    assert found.high == pytest.approx(means[math.ceil((1 - tail) * len(means)) - 1])
    assert found.estimate == pytest.approx(np.mean(NORMAL))
    assert (found.se, found.df) == (pytest.approx(np.std(NORMAL, ddof=1) / math.sqrt(5)), 4)


@pytest.mark.parametrize(
    ("landmarks", "outcome"),
    [  # the interval is [-0.58, 0.96]
        ({"at_least": -2}, "reproduced"),
        ({"at_most": 2}, "reproduced"),
        ({"at_least": -2, "at_most": 2}, "reproduced"),
        ({"at_least": 2}, "absent or opposite"),  # without a value of no effect: outside the bound
        ({"at_most": -2}, "absent or opposite"),
        ({"at_least": 0.1}, "inconclusive"),
        ({"at_least": 0.1, "at_most": 0.2}, "inconclusive"),  # the bounds are inside the interval
        ({"at_least": 2, "no_effect": -1}, "weaker"),
        ({"at_most": -2, "no_effect": 1}, "weaker"),
        ({"at_least": 2, "at_most": 3, "no_effect": -1}, "weaker"),
        ({"at_least": 2, "no_effect": 1}, "absent or opposite"),  # the far side of no effect
        ({"at_most": -2, "no_effect": -1}, "absent or opposite"),
        ({"at_least": 2, "no_effect": 0}, "absent or opposite"),  # within 2 of no effect: as near as the bound
        ({"at_least": 2, "no_effect": 0, "margin": 0.5}, "inconclusive"),
        ({"at_least": 0.3, "no_effect": 0, "margin": 1}, "absent or opposite"),
        ({"at_least": 0.3, "no_effect": 0}, "inconclusive"),  # around both landmarks
        ({"at_least": -2, "at_most": -1, "no_effect": -3}, "absent or opposite"),  # beyond both bounds
    ],
)
def test_the_outcome_follows_the_landmarks(landmarks, outcome):
    assert judged(NORMAL, **landmarks).outcome == outcome
    turned = {"at_least": "at_most", "at_most": "at_least"}
    mirrored = {turned.get(name, name): value if name == "margin" else -value for name, value in landmarks.items()}
    assert judged([-value for value in NORMAL], **mirrored).outcome == outcome


def test_an_outcome_says_what_its_word_does_not():
    assert judged(NORMAL, at_least=2, no_effect=1).reason == "the interval is on the opposite side of no effect"
    assert judged(NORMAL, at_least=2, no_effect=0).reason == "the interval is within the margin of no effect"
    assert judged(NORMAL, at_least=0.3, no_effect=0).reason == "the interval contains the bound and no effect"
    assert judged(NORMAL, at_least=2, no_effect=0.3, margin=0.1).reason == "the interval contains no effect"


def test_one_of_several_criteria_is_absent_at_a_stricter_level():
    """Of ten criteria at level 1 − 0.05/10: the interval is wider by the ratio of t, and contains no effect."""
    landmarks = {"at_least": 3, "no_effect": 1, "margin": 0.1}
    assert claim_on([landmarks]).verdict == "absent or opposite"
    assert claim_on([landmarks] * 10).verdict == "inconclusive"
    assert claim_on([landmarks | {"no_effect": 2}] * 10).verdict == "absent or opposite"
    wide = 0.18 + (claim_on([landmarks]).criteria[0].high - 0.18) * stats.t.ppf(0.9975, 4) / stats.t.ppf(0.975, 4)
    for far, word in ((1e-6, "absent or opposite"), (-1e-6, "inconclusive")):
        assert claim_on([landmarks | {"no_effect": wide + far}] * 10).verdict == word


def test_one_replicate_decides_nothing():
    found = judged([1.0], at_least=0)
    assert (found.outcome, found.low, found.estimate, found.power) == ("inconclusive", None, 1.0, None)
    assert "one replicate" in found.reason


def test_what_cannot_be_computed_is_inconclusive_and_says_why():
    def missing(found):
        raise ValueError("no run of rank 4")

    found = judge_criterion(Criterion("x", missing, at_least=0), results(NORMAL))
    assert (found.outcome, found.estimate) == ("inconclusive", None)
    assert "no run of rank 4" in found.reason
    assert judged([float("nan")] * 3, at_least=0).outcome == "inconclusive"


# --- claims -----------------------------------------------------------------------------------------------------------

YES, WEAK = {"at_least": -2}, {"at_least": 2, "no_effect": -1}
NO, OPEN = {"at_least": 3, "no_effect": 1.5}, {"at_least": 0.1}


@pytest.mark.parametrize(
    ("criteria", "controls", "verdict", "decided_by"),
    [
        ([YES, YES], [], "reproduced", 0),
        ([YES, WEAK], [], "weaker", 1),
        ([WEAK, OPEN], [], "inconclusive", 1),
        ([WEAK, OPEN, NO], [], "absent or opposite", 2),
        ([YES], [NO], "reproduced", 0),
        ([YES], [NO, YES], "not specific", 2),
        ([YES], [OPEN, YES], "not specific", 2),
        ([YES], [NO, OPEN], "inconclusive", 2),
        ([WEAK], [YES], "weaker", 0),  # what a control does matters only to a claim that would be reproduced
        ([NO], [OPEN], "absent or opposite", 0),
        ([{"at_least": -4}, {"at_least": -2}], [], "reproduced", 1),  # the one with the least room
    ],
)
def test_a_claims_verdict_and_what_decided_it(criteria, controls, verdict, decided_by):
    found = claim_on(criteria, controls)
    assert (found.verdict, found.decided_by) == (verdict, decided_by)
    assert [c.control for c in found.criteria] == [False] * len(criteria) + [True] * len(controls)


def test_what_a_control_did_is_the_reason():
    assert claim_on([YES], [YES]).reason == "a negative control passes, too"
    found = claim_on([YES], [OPEN])
    assert found.reason == f"a negative control is not decided: {found.criteria[1].reason}"
    assert found.criteria[1].reason


def test_the_outcomes_of_controls():
    found = claim_on([YES], [YES, OPEN, {"at_least": 2}, {"at_least": 0.1, "at_most": 0.2}])
    assert [c.outcome for c in found.criteria[1:]] == ["passed", "inconclusive", "failed", "inconclusive"]


def test_a_control_without_an_interval_is_not_decided():
    claim = Claim("c", "c", "c", (Criterion("m", mean, at_least=0),), (Control("m", mean, at_least=5),))
    control = judge(claim, results([1.0])).criteria[1]
    assert (control.outcome, control.control, control.low, control.estimate) == ("inconclusive", True, None, 1.0)
    assert "one replicate" in control.reason


def test_no_verdict_is_drawn_from_what_is_out_of_reach_or_withdrawn():
    for said in ({"out_of_reach": "too short"}, {"out_of_reach": {"encoder": "too short"}}):
        found = claim_on([YES], **said)
        assert (found.verdict, found.reason, found.p) == ("out of reach", "too short", None)
        assert found.criteria[0].outcome == "reproduced"  # the numbers are told all the same
    assert claim_on([YES], out_of_reach={"decoder": "too short"}).verdict == "reproduced"
    found = claim_on([YES], out_of_reach="too short", withdrawn="a coarse grid")
    assert (found.verdict, found.reason) == ("withdrawn", "a coarse grid")


def test_a_scale_that_shows_that_a_study_runs_decides_nothing():
    found = Results(results(NORMAL).runs, {}, StudyScale(conclusive=False), pd.DataFrame())
    verdict = judge(Claim("c", "c", "c", (Criterion("m", mean, at_least=-2),)), found)
    assert (verdict.verdict, verdict.p) == ("inconclusive", None)
    assert verdict.criteria[0].outcome == "reproduced"  # the number is told all the same


def test_p_is_that_of_the_t_test_and_q_is_benjamini_and_hochbergs():
    first = Claim("one", "c", "c", (Criterion("m", mean, at_least=2, no_effect=-1),))
    second = Claim("two", "c", "c", (*first.criteria, Criterion("m", mean, at_least=0.1)))
    third = Claim("none", "c", "c", (Criterion("m", lambda found: None, at_least=0.1),))
    same = Claim("same", "c", "c", (Criterion("m", lambda found: 1.0, at_least=0.1),))
    found = judge_all([first, second, third, same], results(NORMAL), testbed="encoder")
    p = [stats.ttest_1samp(NORMAL, value).pvalue for value in (-1, 0.1)]
    assert [verdict.p for verdict in found] == [pytest.approx(p[0]), pytest.approx(max(p)), None, None]
    assert [verdict.q for verdict in found[:2]] == pytest.approx(stats.false_discovery_control([p[0], max(p)]))
    assert [verdict.q for verdict in found[2:]] == [None, None]
    assert found[3].criteria[0].power is None  # without noise there is none
    some = judge(Claim("some", "c", "c", (*first.criteria, *third.criteria)), results(NORMAL))
    assert some.p is None  # one of its numbers is missing


def test_the_effect_in_other_units_has_an_interval_of_the_same_draws():
    tenfold = InUnits(mean, {"points": lambda found: 10 * mean(found), "none": lambda found: None})
    found = judge_criterion(Criterion("m", tenfold, at_least=0), results(NORMAL))
    points, none = found.also
    assert (points.unit, points.estimate) == ("points", pytest.approx(1.8))
    assert (points.low, points.high) == (pytest.approx(10 * found.low), pytest.approx(10 * found.high))
    assert (none.unit, none.estimate, none.low) == ("none", None, None)


def test_the_power_is_of_the_noise_that_is_given():
    claim = Claim("c", "c", "c", (Criterion("m", mean, at_least=1, no_effect=0, published=2),))
    own = judge(claim, results(NORMAL)).criteria[0].power
    assert own.noise == "this record's own noise"
    less = judge(claim, results(NORMAL), noise={("c", 0): (0.01, 8.0, "an earlier record")}).criteria[0].power
    assert less.noise == "an earlier record"
    assert (less.reproduced, less.absent) == pytest.approx((1, 0.975), abs=1e-3)  # 2.5 % are above no effect
    assert 0.3 < own.reproduced < 0.9


def test_verdicts_are_json():
    claim = Claim("c", "c", "c", (Criterion("m", mean, at_least=1, no_effect=0),), setting="a model", kind="identity")
    found = json.loads(json.dumps(asdict(judge(claim, results(NORMAL))), allow_nan=False))
    assert (found["setting"], found["kind"], found["criteria"][0]["supposed"]) == ("a model", "identity", 2)


def test_the_texts_of_a_study_are_resampled_with_its_replicates():
    """Five equal runs on texts of unequal losses: all of the variance is the texts'. 5 %: 200 draws of them."""
    losses = np.random.default_rng(0).exponential(size=300).astype(np.float32)
    keys = tuple("abcde")
    scores = TextScores(keys, np.tile(losses, (5, 1)), np.ones((5, 300)), np.ones(300))
    runs = pd.DataFrame({"replicate": range(5), "loss": float(losses.mean()), "key": keys, "accuracy": 1.0})
    found = Results(runs, {}, StudyScale(), pd.DataFrame(), texts={"test": scores})
    criterion = judge_criterion(Criterion("m", mean, at_least=0), found)
    assert criterion.se == pytest.approx(losses.std() / math.sqrt(300), rel=0.15)
    assert criterion.df == 299
    half = stats.t.ppf(0.975, 299) * losses.std() / math.sqrt(300)
    assert criterion.high - criterion.low == pytest.approx(2 * half, rel=0.1)


# --- intervals --------------------------------------------------------------------------------------------------------


def test_many_replicates_are_drawn_and_the_same_each_time():
    values = np.random.default_rng(1).standard_normal(20)
    low, high = interval_of(lambda draws: values[list(draws[0])].mean(), {0: range(20)})
    half = stats.t.ppf(0.975, 19) * np.std(values, ddof=1) / math.sqrt(20)
    assert high - low == pytest.approx(2 * half, rel=0.12)  # 5000 draws of a tail of 2 %
    found = judged(list(values), at_least=0)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)  # rounding: the same draws


def test_only_strings_are_made_pythons_own():
    """Which are quicker to draw and to compare; numbers stay as they are."""
    table = pd.DataFrame({"name": pd.array(["a", "b"], dtype="str"), "loss": [1.0, 2.0], "n": [1, 2]})
    found = verdict._plain(Results(table, {"t": table}, StudyScale(), table, candidates=table))
    for each in (found.runs, found.tables["t"], found.candidates):
        assert [str(dtype) for dtype in each.dtypes] == ["object", "float64", "int64"]
    assert verdict._plain(Results(table, {}, StudyScale(), table)).candidates is None


def test_a_scale_without_verdicts_takes_two_hundred_resamples(monkeypatch):
    monkeypatch.setattr(bootstrap, "DRAWN", 500)
    runs = results(np.random.default_rng(2).standard_normal(30)).runs
    calls = dict.fromkeys((True, False), 0)
    for conclusive in calls:

        def counted(found, conclusive=conclusive):
            calls[conclusive] += 1
            return mean(found)

        found = Results(runs, {}, StudyScale(conclusive=conclusive), pd.DataFrame())
        judge_criterion(Criterion("m", counted, at_least=0), found)
    # Of 30 replicates no two resamples are the same; the estimate and the influences are computed in both.
    assert calls[True] - calls[False] == bootstrap.DRAWN - 200


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
    low, high = interval_of(lambda each: float(np.mean(values[list(each[0])])), {0: range(n)})
    turned_low, turned_high = interval_of(lambda each: -float(np.mean(values[list(each[0])])), {0: range(n)})
    assert (-turned_high, -turned_low) == pytest.approx((low, high), abs=1e-9)


def test_an_interval_against_a_plain_monte_carlo_bootstrap():
    """Quantiles of 200,000 drawn medians of the absolute values of five."""
    values = np.array([0.2, -0.7, 1.1, 0.4, -0.15])
    rng = np.random.default_rng(5)
    drawn = np.median(np.abs(values[rng.integers(0, 5, (200_000, 5))]), axis=1)
    tail = stats.norm.cdf(-math.sqrt(5 / 4) * stats.t.ppf(0.975, 4))
    expected = np.quantile(drawn, [tail, 1 - tail], method="inverted_cdf")
    low, high = interval_of(lambda each: float(np.median(np.abs(values[list(each[0])]))), {0: range(5)})
    assert (low, high) == tuple(expected)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, None])
def test_what_is_no_number_decides_nothing(value):
    found = judge_criterion(Criterion("x", lambda r: value, at_least=0), results(NORMAL))
    assert (found.outcome, found.estimate) == ("inconclusive", None)


def test_a_wrong_statistic_costs_its_own_claim_alone():
    wrong = Claim("w", "w", "w", (Criterion("x", lambda r: None + 1, at_least=0),))
    right = Claim("r", "r", "r", (Criterion("m", mean, at_least=-2),))
    found, other = judge_all([wrong, right], results(NORMAL), testbed="encoder")
    assert (found.verdict, other.verdict) == ("inconclusive", "reproduced")
    assert "TypeError" in found.criteria[0].reason


def test_a_statistic_that_fails_on_many_resamples_has_no_interval():
    def last(found):
        return float(
            found.runs.loc[found.runs["loss"] == NORMAL[0], "loss"].iloc[0]
        )  # IndexError where it is not drawn

    found = judge_criterion(Criterion("x", last, at_least=0), results(NORMAL))
    assert (found.estimate, found.low, found.outcome) == (NORMAL[0], None, "inconclusive")
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
    monkeypatch.setattr(bootstrap, "DRAWN", 1500)
    sorted_order, other_order = (0, 2, 1, 4, 3), (4, 1, 3, 0, 2)  # replicates that go together, and against each other

    def ends(order, *, apart):
        found = judge_criterion(
            Criterion("a - b", difference, at_most=0), two_arms(LOWER, HIGHER, apart=apart, numbered=order)
        )
        return np.array([found.low, found.high])

    one = ends(sorted_order, apart=True)
    width = np.ptp(one)
    assert np.abs(one - ends(other_order, apart=True)).max() < 0.1 * width
    assert np.abs(ends(sorted_order, apart=False) - ends(other_order, apart=False)).max() > 0.2 * width


def test_degrees_of_freedom_are_welchs(monkeypatch):
    """The jackknife's variance of a mean is s²/n, so that they are those of Welch's test."""
    monkeypatch.setattr(bootstrap, "DRAWN", 100)  # of the interval's ends, which are not looked at
    second = [4 * value for value in HIGHER]
    found = judge_criterion(Criterion("a - b", difference, at_most=0), two_arms(LOWER, second))
    assert found.df == pytest.approx(stats.ttest_ind(LOWER, second, equal_var=False).df, rel=1e-9)  # rounding


def test_what_one_arm_decides_is_enumerated_beside_others():
    alone = judged(LOWER, at_least=0)
    criterion = Criterion("a", lambda found: found.runs.loc[found.runs["arm"] == "a", "loss"].mean(), at_least=0)
    among = judge_criterion(criterion, two_arms(LOWER, HIGHER))
    assert (among.low, among.high) == pytest.approx((alone.low, alone.high), rel=1e-12)  # rounding


def test_an_arm_with_one_replicate_has_no_interval():
    found = judge_criterion(Criterion("x", difference, at_most=0), two_arms(LOWER, [1.0], numbered=[0]))
    assert (found.low, found.outcome) == (None, "inconclusive")
    assert "one replicate" in found.reason


def test_what_no_resample_draws_again_has_no_interval_and_no_verdict():
    found = judged(NORMAL, at_least=-2, fixed="the tuned learning rates")
    assert (found.outcome, found.low, found.se) == ("inconclusive", None, None)
    assert found.estimate == pytest.approx(np.mean(NORMAL))
    assert found.reason == "the tuned learning rates are not resampled: no interval"


def test_a_rate_is_chosen_again_in_every_draw_by_its_held_out_loss():
    """Of two rates the second is better on held-out texts in replicates 3 and 4 alone, and is 1 worse on the test."""
    rows = [
        {"method": "a", "replicate": n, "loss": float(place), "held_out_loss": held_out, "key": f"{place}{n}",
         "_arm": 0, "_place": place}
        for place, losses in enumerate(([0.0] * 5, [0.2, 0.2, 0.2, -0.4, -0.4]))
        for n, held_out in enumerate(losses)
    ]  # fmt: skip
    candidates = pd.DataFrame(rows)
    found = Results(chosen(candidates), {}, StudyScale(), pd.DataFrame(), candidates=candidates)
    assert mean(found) == 1  # the mean of the second is -0.04
    draws = list(itertools.product(range(5), repeat=5))
    losses = [mean(found.resampled({0: draw})) for draw in draws[::97]]
    assert losses == [float(sum(n > 2 for n in draw) * 0.6 > 1) for draw in draws[::97]]
    judged_so = judge_criterion(Criterion("mean", mean, at_least=0.5), found)
    assert (judged_so.low, judged_so.high, judged_so.outcome) == (0, 1, "inconclusive")
