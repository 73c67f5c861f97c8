"""The power of criteria against the noncentral t distribution, two one-sided tests, and simulated verdicts."""

import math

import numpy as np
import pytest
from scipy import stats

from lorascope.study import Criterion
from lorascope.study.outcome import RULES, rules
from lorascope.study.power import power, probabilities


def criterion(**landmarks):
    return Criterion("x", lambda results: None, **landmarks)


@pytest.mark.parametrize("df", [3, 8, 40])
@pytest.mark.parametrize("true", [0.5, 1.0, 2.0, 3.0])
def test_the_power_of_a_one_sided_bound_is_the_noncentral_ts(df, true):
    """P((estimate − bound)/se > t) with se of df degrees of freedom. 1e-3: what the integral is good for."""
    expected = stats.nct.sf(stats.t.ppf(0.975, df), df, (true - 1) / 0.4)
    found = power(criterion(at_least=1, no_effect=0, published=true), 0.4, df)
    assert found.reproduced == pytest.approx(expected, abs=1e-3)
    turned = power(criterion(at_most=-1, no_effect=0, published=-true), 0.4, df)
    assert turned.reproduced == pytest.approx(found.reproduced, abs=1e-9)


def test_absence_is_two_one_sided_tests_or_the_far_side():
    """With much noise no interval is within the margin, and that on the far side alone is: 2.5 % of no effect. With
    little all are within. Of four criteria it is at a level of 0.05/4."""
    wanted = criterion(at_least=1, no_effect=0)
    assert power(wanted, 50, 8).absent == pytest.approx(0.025, abs=1e-3)
    assert power(wanted, 50, 8, 4).absent == pytest.approx(0.025 / 4, abs=1e-3)
    # 2.5 % of the intervals are above no effect: these are weaker
    assert power(wanted, 0.01, 8).absent == pytest.approx(0.975, abs=1e-3)


def test_a_claim_has_one_criterion_where_nothing_else_is_said():
    wanted = criterion(at_least=1, no_effect=0)
    assert probabilities(wanted, -1, 0.5, 8) == probabilities(wanted, -1, 0.5, 8, 1)
    assert probabilities(wanted, -1, 0.5, 8) != probabilities(wanted, -1, 0.5, 8, 2)
    assert power(wanted, 0.5, 8) == power(wanted, 0.5, 8, 1) != power(wanted, 0.5, 8, 2)


def test_what_is_not_stated_has_no_power():
    assert power(criterion(at_least=1), 1, 4).absent is None
    assert power(criterion(at_least=1), 1, 4).reproduced is None
    assert power(criterion(at_least=1, expected=3), 1, 4).reproduced > 0


@pytest.mark.parametrize(
    ("landmarks", "true"),
    [
        ({"at_least": 1, "no_effect": 0}, 2),
        ({"at_least": 1, "no_effect": 0, "margin": 0.6}, 0),
        ({"at_least": 1, "no_effect": 0}, -0.3),
        ({"at_least": 1, "no_effect": 0, "margin": 1.6}, -0.3),
        ({"at_least": 1, "at_most": 3, "no_effect": 0}, 2),
        ({"at_least": 1, "at_most": 3, "no_effect": 4}, 3.5),
        ({"at_least": -1, "at_most": 1}, 0),
    ],
)
def test_probabilities_are_those_of_simulated_verdicts(landmarks, true):
    """20,000 estimates and standard errors, each with its interval of t and its outcome; three standard errors, and
    the 0.001 that the integral is good for."""
    trials, se, df, criteria = 20_000, 0.35, 5, 3
    rng = np.random.default_rng(7)
    estimates = rng.normal(true, se, trials)
    errors = se * np.sqrt(rng.chisquare(df, trials) / df)
    half, wide = (stats.t.ppf(1 - 0.025 / k, df) * errors for k in (1, criteria))
    made = criterion(**landmarks)
    applies = rules(made, (estimates - half, estimates + half), (estimates - wide, estimates + wide))
    words = [RULES[rule][0] for rule in applies]
    expected = probabilities(made, true, se, df, criteria)
    assert sum(expected.values()) == pytest.approx(1)
    for word, share in expected.items():
        assert words.count(word) / trials == pytest.approx(
            share, abs=3 * math.sqrt(share * (1 - share) / trials) + 1e-3
        )
