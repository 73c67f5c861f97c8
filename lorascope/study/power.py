"""The power of a criterion: how probable its outcomes are if the published effect, or none, were true here.

The estimate is taken as normal about the true value and the square of its standard error as χ² with its degrees of
freedom, so that the interval is that of t. Of a one-sided bound the probability of "reproduced" is then that of the
noncentral t distribution beyond t_{df; 0.975} (Johnson, Kotz and Balakrishnan 1995, ch. 31); of all outcomes it is the
integral over the standard error of the normal probability of the estimates that give them, by the rule of the verdicts
themselves.
"""

from dataclasses import dataclass

import numpy as np

from lorascope.study.claims import Criterion
from lorascope.study.outcome import ABSENT, REPRODUCED, RULES, rules

NODES = 200  # Gauss–Legendre, over the quantiles of the standard error: a probability to 0.001 or better
OWN_NOISE = "this record's own noise"
# (errors,) weights of the standard errors; (errors, places) ascending; (errors, places + 1) below, between and above
Regions = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Power:
    """Attributes:
    reproduced: P(outcome "reproduced") where the true value is the criterion's `supposed`; None: it has none.
    absent: P(outcome "absent or opposite") where the true value is no effect; None: the criterion has none.
    noise: which results the standard error is of.
    """

    reproduced: float | None
    absent: float | None
    noise: str


def power(criterion: Criterion, se: float, df: float, criteria: int = 1, noise: str = OWN_NOISE) -> Power:
    """The power with this standard error, which has df degrees of freedom.

    Args:
        criteria: how many the claim has.
    """
    regions = _regions(criterion, se, df, criteria)

    def of(word: str, true: float | None) -> float | None:
        return None if true is None else _probabilities(regions, true, se)[word]

    return Power(of(REPRODUCED, criterion.supposed), of(ABSENT, criterion.no_effect), noise)


def probabilities(criterion: Criterion, true: float, se: float, df: float, criteria: int = 1) -> dict[str, float]:
    """The probability of every outcome where the number's true value is `true`."""
    return _probabilities(_regions(criterion, se, df, criteria), true, se)


def _probabilities(regions: Regions, true: float, se: float) -> dict[str, float]:
    from scipy.special import ndtr

    weights, places, applies = regions
    ends = np.full((len(weights), 1), np.inf)
    shares = weights[:, None] * np.diff(ndtr((np.hstack([-ends, places, ends]) - true) / se))
    by_rule = np.bincount(applies.ravel(), shares.ravel(), len(RULES)).tolist()
    found: dict[str, float] = dict.fromkeys((word for word, _ in RULES), 0.0)
    for (word, _), share in zip(RULES, by_rule, strict=True):
        found[word] += share
    return found


def _regions(criterion: Criterion, se: float, df: float, criteria: int) -> Regions:
    """For each of the standard errors that may be found, the rule that applies to every estimate.

    It is the same for all estimates between two places where an end of an interval meets a landmark.
    """
    from scipy.stats import chi2

    points, weights = np.polynomial.legendre.leggauss(NODES)
    errors = se * np.sqrt(chi2.ppf((points + 1) / 2, df) / df)[:, None]
    half, wide = t_quantile(df) * errors, t_quantile(df, criteria) * errors
    reaches = np.hstack([half, -half, wide, -wide])
    places = np.sort((np.array(_landmarks(criterion)) + reaches[:, :, None]).reshape(NODES, -1))
    edges = np.hstack([places[:, :1] - errors, places, places[:, -1:] + errors])
    middles = (edges[:, 1:] + edges[:, :-1]) / 2
    return weights / 2, places, rules(criterion, (middles - half, middles + half), (middles - wide, middles + wide))


def t_quantile(df: float, criteria: int = 1) -> float:
    """How many standard errors from the estimate the ends of the interval of level 1 − 0.05/criteria are."""
    from scipy.stats import t

    return float(t.ppf(1 - 0.025 / criteria, df))


def _landmarks(criterion: Criterion) -> list[float]:
    marks = [bound for bound in (criterion.at_least, criterion.at_most) if bound is not None]
    if criterion.no_effect is not None:
        for margin in (0.0, criterion.distance, criterion.distance if criterion.margin is None else criterion.margin):
            marks += [criterion.no_effect - margin, criterion.no_effect + margin]
    return marks
