"""Statistics of claims on intruders, of the tables that the measures of `intruding` make under their own names.

Arrays have one entry for each run of a method. Forgetting and task loss are as `scaled` and `retained` have them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lorascope.study import statistics as ranks
from lorascope.study.gains import gain
from lorascope.study.measures.intruding import EPSILONS
from lorascope.study.results import Results
from lorascope.study.statistics import area_under_roc, once

if TYPE_CHECKING:
    import pandas as pd

Statistic = Callable[[Results], float]
Sweep = Mapping[str, float] | Callable[[Results], Mapping[str, float]]  # learning rates by method, or those of a scale
SUMMED = (
    "found",
    "slots",
    "squares",
    "energy",
    "energy_found",
    "planted",
    "aligned",
    *(f"found_{e}" for e in EPSILONS),
)
USUAL = 0.7  # the λ that Shuttleworth et al. report
SHUFFLES = 20  # of the runs, over which a control takes the mean: one alone may be far from 0 by chance


@once
def by_run(results: Results) -> dict[str, dict[str, np.ndarray]]:
    """Of each method the sums over the weights of each run, its ‖ΔW‖ (`size`), and what it has forgotten.

    Raises:
        ValueError: a run has one of the two measurements alone.
    """
    table, lost = results.tables["leading"], results.tables["retained"]
    methods = list(dict.fromkeys(table["method"].to_numpy()))
    units = 1 + int(max(table["replicate"].max(), lost["replicate"].max()))
    size = units * len(methods)
    place, lost_place = (_runs(each, methods, units) for each in (table, lost))
    there = np.bincount(place, minlength=size).reshape(-1, units) > 0
    lost_there = np.bincount(lost_place, minlength=size).reshape(-1, units) > 0
    if (there != lost_there).any():
        raise ValueError("a run has not been measured in full")
    values = {column: (place, table[column].to_numpy(float)) for column in SUMMED}
    values |= {column: (lost_place, lost[column].to_numpy(float)) for column in ("forgetting", "pair_loss")}
    sums = {name: np.bincount(*each, minlength=size).reshape(-1, units) for name, each in values.items()}
    sums["size"] = np.sqrt(sums.pop("squares"))
    return {
        method: {column: each[i][there[i]] for column, each in sums.items()} for i, method in enumerate(methods)
    }  # fmt: skip


def _runs(table: "pd.DataFrame", methods: Sequence[str], units: int) -> np.ndarray:
    """(rows,) of a table the number of each row's run, units · its method + its replicate; below 0: another method."""
    return _codes(table, "method", methods) * units + table["replicate"].to_numpy(int)


def _codes(table: "pd.DataFrame", column: str, names: Sequence[str]) -> np.ndarray:
    """(rows,) the places of a column's values among the names; far below 0 where it is not one of them."""
    places = {name: i for i, name in enumerate(names)}
    return np.array([places.get(name, -(10**6)) for name in table[column].to_numpy()])


def of_runs(results: Results, method: str, column: str = "found") -> np.ndarray:
    if method not in (runs := by_run(results)):
        raise ValueError(f"nothing measured of {method}")
    return runs[method][column]


def average(results: Results, method: str, column: str = "found") -> float:
    return float(of_runs(results, method, column).mean())


def slots(method: str, column: str = "found") -> Statistic:
    """The share of leading vectors."""
    return lambda results: average(results, method, column) / average(results, method, "slots")


def rates_by_method(results: Results, sweep: Sweep) -> Mapping[str, float]:
    return sweep(results) if callable(sweep) else sweep


def to_same_size(method: str, sweep: Sweep, column: str = "found") -> Statistic:
    """A method's mean over that of a sweep at the same ‖ΔW‖: between the means of its rates by straight lines."""

    def statistic(results: Results) -> float:
        size = average(results, method, "size")
        methods = rates_by_method(results, sweep)
        sizes, values = ([average(results, each, name) for each in methods] for name in ("size", column))
        if not sizes[0] <= size <= sizes[-1]:
            raise ValueError("no run of the sweep has a ΔW of this size")
        if not (same := float(np.interp(size, sizes, values))):
            raise ValueError("the sweep has none at this size")
        return average(results, method, column) / same

    return statistic


def over_sweep(results: Results, sweep: Sweep, column: str) -> np.ndarray:
    """Of the runs of several methods, each with its learning rate."""
    sweep = rates_by_method(results, sweep)
    if column == "rate":
        return np.concatenate([np.full(len(of_runs(results, method)), rate) for method, rate in sweep.items()])
    return np.concatenate([of_runs(results, method, column) for method in sweep])


def correlation(sweep: Sweep, first: str, second: str, given: str | None = None) -> Statistic:
    """Spearman's ρ over the runs of a sweep; partial where a third column is given."""

    def statistic(results: Results) -> float:
        third = None if given is None else over_sweep(results, sweep, given)
        return ranks.spearman(over_sweep(results, sweep, first), over_sweep(results, sweep, second), third)

    return statistic


def shuffled(sweep: Sweep, first: str, second: str, given: str | None = None) -> Statistic:
    """The same with the first column shuffled among the runs: the mean over shuffles."""

    def statistic(results: Results) -> float:
        rng = np.random.default_rng(0)
        x, y = (ranks.ranked(over_sweep(results, sweep, column)) for column in (first, second))
        third = None if given is None else ranks.ranked(over_sweep(results, sweep, given))
        return float(np.mean([ranks.correlation(rng.permutation(x), y, third) for _ in range(SHUFFLES)]))

    return statistic


@once
def after_scaling(results: Results, method: str) -> dict[tuple[str, float], dict[str, np.ndarray]]:
    """By arm and factor: task loss and forgetting of a method's runs that have an intruder."""
    table = results.tables["scaled"]
    rows = np.flatnonzero((table["method"].to_numpy() == method) & (table["weights"].to_numpy() > 0))
    if not len(rows):
        raise ValueError("no weight of any run has an intruder")
    rows = rows[np.argsort(table["replicate"].to_numpy()[rows], kind="stable")]
    places: dict[tuple[str, float], list[np.intp]] = {}
    for arm, factor, row in zip(table["arm"].to_numpy()[rows], table["factor"].to_numpy()[rows], rows, strict=True):
        places.setdefault((arm, factor), []).append(row)
    columns = {column: table[column].to_numpy(float) for column in ("loss", "forgetting")}
    return {point: {name: each[at] for name, each in columns.items()} for point, at in places.items()}


def spared(method: str, arm: str) -> Statistic:
    """The share of the forgetting that is gone at λ = 0.7."""

    def statistic(results: Results) -> float:
        points = after_scaling(results, method)
        return float(1 - points[arm, USUAL]["forgetting"].mean() / points[arm, 1.0]["forgetting"].mean())

    return statistic


def cost(method: str, arm: str) -> Statistic:
    """The rise of the task's test loss at λ = 0.7, over the method's gain."""

    def statistic(results: Results) -> float:
        points = after_scaling(results, method)
        if (gained := gain(results, method)) <= 0:
            raise ValueError("the run gained nothing that could be lost")
        return float((points[arm, USUAL]["loss"].mean() - points[arm, 1.0]["loss"].mean()) / gained)

    return statistic


def at_equal_loss(method: str, arm: str, factor: float) -> Statistic:
    """Forgetting at λ less that of ΔW shrunk as a whole to the same task loss, over the forgetting as trained.

    Each run has a path of its own, through its points at all factors that shrink ΔW, by straight lines. Where scaling
    costs more than the strongest shrinking, the end of the path stands for it, with a lower task loss.
    """

    def statistic(results: Results) -> float:
        points = after_scaling(results, method)
        path = [point for (name, _), point in points.items() if name in ("step", "shrink")]
        losses, forgotten = (np.array([point[column] for point in path]).T for column in ("loss", "forgetting"))
        now = points[arm, factor]
        less: list[float] = []
        for here, at, loss, forgot in zip(now["forgetting"], now["loss"], losses, forgotten, strict=True):
            order = np.argsort(loss)
            less.append(float(here - np.interp(at, loss[order], forgot[order])))
        return float(np.mean(less) / points[arm, 1.0]["forgetting"].mean())

    return statistic


@once
def factors(results: Results) -> dict[str, np.ndarray]:
    """(weights,) the factor of ΔW for a first intruder: `measured`, predicted from W's `spectrum`, and by the `plain`
    rule that σ₁(ΔW) reaches σ₁₀(W)."""
    table, first = results.tables["critical"], results.tables["leading"]
    methods, modules = list(dict.fromkeys(table["method"].to_numpy())), list(dict.fromkeys(table["module"].to_numpy()))
    units = 1 + int(max(table["replicate"].max(), first["replicate"].max()))
    margins = np.full(units * len(methods) * len(modules), np.nan)
    place, first_place = (
        _codes(each, "module", modules) + len(modules) * _runs(each, methods, units) for each in (table, first)
    )
    margins[first_place[first_place >= 0]] = first["margin"].to_numpy(float)[first_place >= 0]
    measured, spectrum = (table[column].to_numpy(float) for column in ("measured", "predicted"))
    return {"measured": measured, "spectrum": spectrum, "plain": 1 / margins[place]}


def within_two(rule: str) -> Statistic:
    """The share of weights whose measured factor a rule gives within 2."""
    return lambda results: float(np.mean(np.abs(np.log2(factors(results)[rule] / factors(results)["measured"])) <= 1))


def auc(sweep: Sweep, column: str, sign: int = 1) -> Statistic:
    """Area under the ROC curve of a column, times the sign, for whether a weight has an intruder."""

    def statistic(results: Results) -> float:
        table = results.tables["leading"]
        methods = list(rates_by_method(results, sweep))
        rows = np.isin(table["method"].to_numpy(str), methods) & table["strength"].notna().to_numpy()
        return area_under_roc(table["found"].to_numpy()[rows] > 0, sign * table[column].to_numpy(float)[rows])

    return statistic
