"""Verdicts: an estimate, its interval over replicates, and what it says about the claim. Computed, never typed.

The interval is an expanded percentile bootstrap over replicates, and over the texts where these are resampled too:
`linalg.bootstrap.expanded_intervals`. Replicates of one stratum (`strata`) are resampled together and those of
different strata apart. A criterion's outcome is `outcome.outcome`; a claim's verdict is made of them in `_combined`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.linalg import bootstrap
from lorascope.linalg.bootstrap import Draws, Interval
from lorascope.linalg.haar import false_discovery
from lorascope.study.claims import Claim, Criterion
from lorascope.study.outcome import (
    ABSENT,
    FAILED,
    INCONCLUSIVE,
    OUTCOMES,
    PASSED,
    REPRODUCED,
    WEAKER,
    control_outcome,
    outcome,
)
from lorascope.study.power import Power, power, t_quantile
from lorascope.study.results import Results
from lorascope.study.texts import TEST

if TYPE_CHECKING:
    import pandas as pd

NOT_SPECIFIC, OUT_OF_REACH, WITHDRAWN = "not specific", "out of reach", "withdrawn"
VERDICTS = REPRODUCED, WEAKER, ABSENT, INCONCLUSIVE, NOT_SPECIFIC, OUT_OF_REACH, WITHDRAWN
__all__ = [
    "ABSENT", "FAILED", "INCONCLUSIVE", "NOT_SPECIFIC", "OUTCOMES", "OUT_OF_REACH", "PASSED", "REPRODUCED", "VERDICTS",
    "WEAKER", "WITHDRAWN", "Also", "JudgedCriterion", "Verdict", "judge_all",
]  # fmt: skip
SHOWN = 200  # resamples of a scale without verdicts
Statistic = Callable[[Results], float | None]
Noise = Mapping[tuple[str, int], tuple[float, float, str]]  # of (claim, place): se, df and which results' noise it is


@dataclass(frozen=True)
class Also:
    """A criterion's effect in another unit."""

    unit: str
    estimate: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class JudgedCriterion:
    """A criterion with its estimate, interval and outcome.

    Attributes:
        text, at_least, at_most, no_effect, published, supposed, origin, margin, unit: the criterion's.
        estimate: on all replicates; None where it could not be computed, for the `reason`.
        low, high: the 95 % interval; None of a single replicate.
        se, df: standard error of the estimate, and the degrees of freedom of its square.
        outcome: one of `OUTCOMES`.
        reason: of an outcome that its word does not explain.
        control: whether it is a negative control.
        also: the effect in other units.
    """

    text: str
    at_least: float | None
    at_most: float | None
    no_effect: float | None
    published: float | None
    supposed: float | None
    origin: str
    margin: float | None
    unit: str
    estimate: float | None
    low: float | None
    high: float | None
    se: float | None
    df: float | None
    outcome: str
    reason: str = ""
    control: bool = False
    power: Power | None = None
    also: tuple[Also, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A claim with its verdict.

    Attributes:
        name, text, source, note, setting, kind: the claim's.
        verdict: one of `VERDICTS`.
        reason: why it is so, where the word alone does not say.
        criteria: the criteria, then the controls.
        decided_by: the place of the one that decided.
        p: two-sided, of no effect (of the bound, where there is no such value): the largest over the criteria. None:
            a number is missing, none has noise, or no verdict is drawn.
        q: the false discovery rate among the study's claims at which this one counts (Benjamini and Hochberg 1995).
    """

    name: str
    text: str
    source: str
    note: str
    setting: str
    kind: str
    verdict: str
    reason: str
    criteria: tuple[JudgedCriterion, ...] = field(default=())
    decided_by: int | None = None
    p: float | None = None
    q: float | None = None


def judge_all(
    claims: Sequence[Claim],
    results: Results,
    *,
    testbed: str,
    noise: Noise | None = None,
    progress: bootstrap.Progress | None = None,
) -> list[Verdict]:
    """The verdicts of a study's claims on its results. Each resample is made once, for all of them.

    Args:
        testbed: on which the results were found.
        noise: of criteria and controls by claim and place: from earlier results, for the power.
        progress: called with the number of resamples done and their total.
    """
    criteria = [criterion for claim in claims for criterion in (*claim.criteria, *claim.controls)]
    wanted = [criterion.statistic for criterion in criteria]
    wanted += [function for criterion in criteria for function in _other_units(criterion).values()]
    numbers = _Numbers(wanted, results, progress)
    verdicts = []
    for claim in claims:
        known = {} if noise is None else {place: value for (name, place), value in noise.items() if name == claim.name}
        judged = [_judged(c, numbers, len(claim.criteria), known.get(i)) for i, c in enumerate(claim.criteria)]
        judged += [_judged_control(control, numbers) for control in claim.controls]
        verdicts.append(_verdict(claim, tuple(judged), results.scale.conclusive, claim.beyond(testbed)))
    q = false_discovery([verdict.p for verdict in verdicts])
    return [replace(verdict, q=value) for verdict, value in zip(verdicts, q, strict=True)]


class _Numbers:
    """The estimates and intervals of statistics, each computed once."""

    def __init__(self, wanted: Sequence[Statistic], results: Results, progress: bootstrap.Progress | None):
        functions = list({id(function): function for function in wanted}.values())
        estimates = [_estimate(function, results) for function in functions]
        computed = [i for i, (value, _) in enumerate(estimates) if value is not None]

        results = _plain(results)

        def statistics(draws: Draws, text_draw: int | None, which: Sequence[int]) -> list[float | None]:
            resample = results.resampled(draws, text_draw)
            return [_estimate(functions[computed[i]], resample)[0] for i in which]

        intervals = bootstrap.expanded_intervals(
            statistics,
            len(computed),
            results.replicates,
            texts=len(results.texts[TEST].targets) if TEST in results.texts else 0,
            text_draws=results.text_draws,
            most=bootstrap.DRAWN if results.scale.conclusive else SHOWN,
            progress=progress,
        )
        by_place = dict(zip(computed, intervals, strict=True))
        self._found = {
            id(function): (value, by_place.get(i, Interval(None, None, reason=reason)))
            for i, (function, (value, reason)) in enumerate(zip(functions, estimates, strict=True))
        }

    def __getitem__(self, function: Statistic) -> tuple[float | None, Interval]:
        return self._found[id(function)]


def _plain(results: Results) -> Results:
    """The same with strings as Python's: pandas' own take several times as long to draw and to compare."""

    def plain(table: "pd.DataFrame | None") -> Any:
        if table is None:
            return None
        return table.astype({column: object for column in table if table[column].dtype == "str"})

    tables = {name: plain(table) for name, table in results.tables.items()}
    return replace(results, runs=plain(results.runs), tables=tables, candidates=plain(results.candidates))


def _estimate(statistic: Statistic, results: Results) -> tuple[float | None, str]:
    """The statistic, or None and why. A ValueError is how a study says that; NaN and infinity are not numbers."""
    try:
        with np.errstate(all="ignore"):
            value = statistic(results)
        if value is None or math.isnan(value):
            return None, "it could not be computed: a run or a number that it needs is missing"
        if math.isinf(value):
            return None, "it could not be computed: it is infinite"
        return float(value), ""
    except ValueError as error:
        return None, f"it could not be computed: {error}"
    except Exception as error:  # a study's other claims, and its numbers, are not lost for one wrong statistic
        return None, f"it could not be computed: {type(error).__name__}: {error}"


def _other_units(criterion: Criterion) -> Mapping[str, Statistic]:
    return getattr(criterion.statistic, "also", {})


def _judged(
    criterion: Criterion, numbers: _Numbers, criteria: int, noise: tuple[float, float, str] | None
) -> JudgedCriterion:
    """The criterion, one of `criteria` of its claim."""
    judged = _without_outcome(criterion, numbers)
    if judged.estimate is not None and judged.low is not None and judged.high is not None and judged.df is not None:
        stretch = t_quantile(judged.df, criteria) / t_quantile(judged.df)
        low, high = (judged.estimate + stretch * (end - judged.estimate) for end in (judged.low, judged.high))
        word, reason = outcome(criterion, (judged.low, judged.high), (low, high))
        judged = replace(judged, outcome=word, reason=reason)
    se, df, *words = noise or (judged.se, judged.df)
    if se and df:
        judged = replace(judged, power=power(criterion, se, df, criteria, *words))
    return judged


def _judged_control(control: Criterion, numbers: _Numbers) -> JudgedCriterion:
    judged = replace(_without_outcome(control, numbers), control=True)
    if judged.low is None or judged.high is None:
        return judged
    word, reason = control_outcome(control, (judged.low, judged.high))
    return replace(judged, outcome=word, reason=reason)


def _without_outcome(criterion: Criterion, numbers: _Numbers) -> JudgedCriterion:
    """The criterion with its numbers, inconclusive so far."""
    stated = ("text", "at_least", "at_most", "no_effect", "published", "supposed", "origin", "margin", "unit")
    estimate, interval = numbers[criterion.statistic]
    if criterion.fixed:
        interval = Interval(None, None, reason=f"{criterion.fixed} are not resampled: no interval")
    also = []
    for unit, function in _other_units(criterion).items():
        value, ends = numbers[function]
        also.append(Also(unit, value, ends.low, ends.high))
    return JudgedCriterion(
        **{name: getattr(criterion, name) for name in stated},
        estimate=estimate,
        low=interval.low,
        high=interval.high,
        se=interval.se,
        df=interval.df,
        outcome=INCONCLUSIVE,
        reason=interval.reason,
        also=tuple(also),
    )


def _verdict(claim: Claim, judged: tuple[JudgedCriterion, ...], conclusive: bool, out_of_reach: str | None) -> Verdict:
    """The claim's verdict: what keeps it from being judged comes first."""
    word, decided_by, reason = _combined(judged)
    if claim.withdrawn is not None:
        word, reason = WITHDRAWN, claim.withdrawn
    elif out_of_reach is not None:
        word, reason = OUT_OF_REACH, out_of_reach
    elif not conclusive:
        word, reason = INCONCLUSIVE, "the scale only shows that the study runs"
    drawn = conclusive and word not in (WITHDRAWN, OUT_OF_REACH)
    return Verdict(
        **{name: getattr(claim, name) for name in ("name", "text", "source", "note", "setting", "kind")},
        verdict=word,
        reason=reason,
        criteria=judged,
        decided_by=decided_by,
        p=_p([c for c in judged if not c.control]) if drawn else None,
    )


def _combined(judged: Sequence[JudgedCriterion]) -> tuple[str, int, str]:
    """The verdict that the outcomes give, the place of the one that decides, and why."""
    for word in (ABSENT, INCONCLUSIVE, WEAKER):
        for place, criterion in enumerate(judged):
            if not criterion.control and criterion.outcome == word:
                return word, place, criterion.reason
    for word, verdict in ((PASSED, NOT_SPECIFIC), (INCONCLUSIVE, INCONCLUSIVE)):
        for place, control in enumerate(judged):
            if control.control and control.outcome == word:
                why = "passes, too" if word == PASSED else f"is not decided: {control.reason}"
                return verdict, place, f"a negative control {why}"
    return REPRODUCED, min((_clear_by(c), i) for i, c in enumerate(judged) if not c.control)[1], ""


def _clear_by(criterion: JudgedCriterion) -> float:
    """How many standard errors the estimate is from the nearest bound."""
    bounds = [bound for bound in (criterion.at_least, criterion.at_most) if bound is not None]
    if not criterion.se or criterion.estimate is None:
        return math.inf
    return min(abs(criterion.estimate - bound) for bound in bounds) / criterion.se


def _p(criteria: Sequence[JudgedCriterion]) -> float | None:
    """The claim's p: the largest over its criteria, of which those without noise have none."""
    from scipy.stats import t

    if any(criterion.se is None for criterion in criteria):
        return None
    values = []
    for criterion in criteria:
        if criterion.se and criterion.df and criterion.estimate is not None:
            far = _clear_by(criterion)
            if criterion.no_effect is not None:
                far = abs(criterion.estimate - criterion.no_effect) / criterion.se
            values.append(float(2 * t.sf(far, criterion.df)))
    return max(values, default=None)
