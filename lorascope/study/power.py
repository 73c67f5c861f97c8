"""The power of a criterion: how probable its outcomes are if the published effect, or none, were true here.

The estimate is taken as normal about the true value and the square of its standard error as χ² with its degrees of
freedom, so that the interval is that of t. Of a one-sided bound the probability of "reproduced" is then that of the
noncentral t distribution beyond t_{df; 0.975} (Johnson, Kotz and Balakrishnan 1995, ch. 31); of all outcomes it is the
integral over the standard error of the normal probability of the estimates that give them, by the rule of the verdicts
themselves.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lorascope.study.claims import Criterion
from lorascope.study.outcome import ABSENT, REPRODUCED, outcome

NODES = 64  # Gauss–Legendre, over the quantiles of the standard error: 4 digits
OWN_NOISE = "this record's own noise"


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
    supposed, none = criterion.supposed, criterion.no_effect
    reproduced = None if supposed is None else probabilities(criterion, supposed, se, df, criteria)
    absent = None if none is None else probabilities(criterion, none, se, df, criteria)
    return Power(reproduced and reproduced[REPRODUCED], absent and absent[ABSENT], noise)


def probabilities(criterion: Criterion, true: float, se: float, df: float, criteria: int = 1) -> dict[str, float]:
    """The probability of every outcome where the number's true value is `true`."""
    from scipy.stats import chi2, norm

    found = dict.fromkeys((REPRODUCED, ABSENT), 0.0)
    points, weights = np.polynomial.legendre.leggauss(NODES)
    errors = se * np.sqrt(chi2.ppf((points + 1) / 2, df) / df)
    half, wide = t_quantile(df), t_quantile(df, criteria)
    reaches = [sign * width for width in (half, wide) for sign in (1, -1)]
    for error, weight in zip(errors, weights / 2, strict=True):
        # The outcome is the same for all estimates between two places where an end of an interval meets a landmark.
        places = sorted({mark + reach * error for mark in _landmarks(criterion) for reach in reaches})
        edges = [places[0] - error, *places, places[-1] + error]
        below = norm.cdf([-np.inf, *((place - true) / se for place in places), np.inf])
        for (left, right), share in zip(pairwise(edges), np.diff(below), strict=True):
            at = (left + right) / 2
            one, several = ((at - width * error, at + width * error) for width in (half, wide))
            word, _ = outcome(criterion, one, several)
            found[word] = found.get(word, 0.0) + float(weight * share)
    return found


def t_quantile(df: float, criteria: int = 1) -> float:
    """How many standard errors from the estimate the ends of the interval of level 1 − 0.05/criteria are."""
    from scipy.stats import t

    return float(t.ppf(1 - 0.025 / criteria, df))


def _landmarks(criterion: Criterion) -> list[float]:
    marks = [bound for bound in (criterion.at_least, criterion.at_most) if bound is not None]
    if criterion.no_effect is not None:
        for margin in (criterion.distance, criterion.margin or 0.0):
            marks += [criterion.no_effect - margin, criterion.no_effect + margin]
    return marks
