"""The rule of the verdicts with ends that are exactly on a landmark, and the landmarks themselves."""

import math

import numpy as np
import pytest

from lorascope.study import Claim, Control, Criterion
from lorascope.study.claims import reworded
from lorascope.study.outcome import control_outcome, outcome, rules

OPPOSITE, NEAR = "the interval is on the opposite side of no effect", "the interval is within the margin of no effect"
BEYOND, OUTSIDE = "the effect is larger than the bounds allow", "the interval is outside the bound"
BOUND, NONE = "the interval contains the bound", "the interval contains no effect"
FROM_ONE = {"at_least": 1, "no_effect": 0}
SMALL, BAND = FROM_ONE | {"margin": 0.25}, {"at_least": 1, "at_most": 2, "no_effect": 0}


def criterion(**landmarks):
    return Criterion("x", lambda results: None, **landmarks)


@pytest.mark.parametrize(
    ("landmarks", "interval", "word", "reason"),
    [
        (FROM_ONE, (1, 3), "reproduced", ""),  # the bound itself keeps the bound
        (SMALL, (0.5, 1), "inconclusive", BOUND),  # an effect as large as the bound is no weaker one
        (FROM_ONE, (0.5, 0.75), "weaker", ""),
        (FROM_ONE, (-1, 1), "absent or opposite", NEAR),  # the margin itself is within the margin
        (FROM_ONE, (-1.5, 1), "inconclusive", f"{BOUND} and no effect"),
        (FROM_ONE, (-1, 1.5), "inconclusive", f"{BOUND} and no effect"),
        (SMALL, (0, 0.5), "inconclusive", NONE),  # an effect of 0 is no weak one
        (SMALL, (-0.25, 0.25), "absent or opposite", NEAR),
        (SMALL, (-0.5, 0.25), "inconclusive", NONE),
        (SMALL, (-3, 0), "absent or opposite", OPPOSITE),
        (SMALL, (-3, 0.5), "inconclusive", NONE),
        (BAND, (1, 2), "reproduced", ""),
        (BAND, (1, 2.5), "inconclusive", BOUND),
        (BAND, (2, 3), "inconclusive", BOUND),
        (BAND, (2.5, 3), "absent or opposite", BEYOND),
        ({"at_least": 1}, (0, 1), "inconclusive", BOUND),
        ({"at_least": 1}, (0, 0.5), "absent or opposite", OUTSIDE),
        ({"at_least": 1, "at_most": 2}, (2.5, 3), "absent or opposite", OUTSIDE),
    ],
)
def test_ends_on_a_landmark(landmarks, interval, word, reason):
    """All ends are exact in binary; the mirrored criterion has the same outcome."""
    assert outcome(criterion(**landmarks), interval, interval) == (word, reason)
    other = {"at_least": "at_most", "at_most": "at_least"}
    mirrored = {other.get(name, name): value if name == "margin" else -value for name, value in landmarks.items()}
    ends = -interval[1], -interval[0]
    assert outcome(criterion(**mirrored), ends, ends) == (word, reason)
    assert rules(criterion(**landmarks), *[tuple(np.full(3, end) for end in interval)] * 2).shape == (3,)


@pytest.mark.parametrize(
    ("landmarks", "narrow", "wide", "expected"),
    [
        (SMALL, (-3, -1), (-4, 0.5), ("inconclusive", "the interval is too wide")),
        (SMALL, (-0.25, 0.125), (-0.5, 0.5), ("inconclusive", NONE)),
        (BAND, (2.5, 3), (2, 4), ("inconclusive", "the interval is too wide")),
        (FROM_ONE, (1, 3), (0.5, 4), ("reproduced", "")),
        (SMALL, (0.5, 0.75), (-1, 2), ("weaker", "")),
    ],
)
def test_absence_is_of_the_wide_interval_and_all_else_of_the_narrow_one(landmarks, narrow, wide, expected):
    """The narrow intervals of the first three alone would be absent."""
    made = criterion(**landmarks)
    assert outcome(made, narrow, wide) == expected
    assert (outcome(made, narrow, narrow)[0] == "absent or opposite") == (expected[0] == "inconclusive")


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((1, 2), ("passed", "")),
        ((0, 1), ("inconclusive", BOUND)),
        ((0, 0.5), ("failed", "")),
        ((2, 3), ("inconclusive", BOUND)),
        ((2.5, 3), ("failed", "")),
    ],
)
def test_a_control_fails_where_all_of_its_interval_is_outside(interval, expected):
    assert control_outcome(Control("x", lambda results: None, at_least=1, at_most=2), interval) == expected


# --- landmarks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("landmarks", "distance", "supposed", "upward"),
    [
        ({"at_least": 3, "no_effect": 1}, 2, 5, True),
        ({"at_most": -3, "no_effect": 1}, 4, -7, False),
        ({"at_least": 3, "at_most": 9, "no_effect": 1}, 2, 5, True),
        ({"at_least": 3, "at_most": 9, "no_effect": 10}, 1, 8, False),
        ({"at_least": 3, "no_effect": 1, "expected": 4}, 2, 4, True),
        ({"at_least": 3, "no_effect": 1, "expected": 4, "published": 0}, 2, 0, True),  # a published 0 is a number
        ({"at_least": 3}, math.nan, None, False),
        ({"at_most": 3, "expected": 2}, math.nan, 2, False),
    ],
)
def test_what_a_criterion_says_of_its_landmarks(landmarks, distance, supposed, upward):
    made = criterion(**landmarks)
    assert made.distance == pytest.approx(distance, nan_ok=True)
    assert (made.supposed, made.upward) == (supposed, upward)


def test_both_ends_of_a_bound_satisfy_it_so_that_no_effect_cannot_be_there():
    made = criterion(at_least=1, at_most=2)
    assert [made.satisfied_by(value) for value in (0.5, 1, 1.5, 2, 2.5)] == [False, True, True, True, False]
    assert criterion(at_least=1).satisfied_by(math.inf)
    assert criterion(at_most=1).satisfied_by(-math.inf)
    for landmarks in ({"at_least": 1, "no_effect": 1}, {"at_most": 2, "no_effect": 2}, {"at_least": 1, "no_effect": 5}):
        with pytest.raises(ValueError, match=r"no effect, .* satisfies the criterion 'x'"):
            criterion(**landmarks)


def test_a_claim_is_out_of_reach_where_it_says_so():
    def beyond(reason):
        return Claim("c", "c", "c", (criterion(at_least=1),), out_of_reach=reason).beyond("encoder")

    assert [beyond(each) for each in (None, "short", {"encoder": "small"}, {"decoder": "small"})] == [
        None, "short", "small", None
    ]  # fmt: skip


def test_other_words_of_notes_and_origins():
    first, second = (Criterion("x", len, at_least=1.0, origin=origin) for origin in ("ours: half a point", "a table"))
    claims = [
        Claim("one", "half a point", "a", (first, second), note="Two of three. Not here."),
        Claim("two", "", "", ()),
    ]
    found, other = reworded(iter(claims), {"half a point": "a point", " Not here.": "", "table": "figure"})
    assert (found.note, found.text) == ("Two of three.", "half a point")
    assert [criterion.origin for criterion in found.criteria] == ["ours: a point", "a figure"]
    assert other == claims[1]
    with pytest.raises(ValueError, match="no note or origin has the words 'five'"):
        reworded(claims, {"half a point": "a point", "five": "six"})


def test_what_a_criterion_leaves_out():
    made = criterion(at_least=1)
    stated = (
        made.at_most,
        made.unit,
        made.no_effect,
        made.published,
        made.expected,
        made.origin,
        made.margin,
        made.fixed,
    )
    assert stated == (None, "float", None, None, None, "", None, "")
    claim = Claim("c", "c", "c", (made,))
    assert (claim.controls, claim.note, claim.kind, claim.out_of_reach, claim.withdrawn, claim.amended) == (
        (), "", "observation", None, None, ""
    )  # fmt: skip
