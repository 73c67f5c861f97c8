"""Statistics of claims on intruders, of the tables that the measures of `intruding` make under their own names.

Arrays have one entry for each run of a method. Forgetting and task loss are as `scaled` and `retained` have them.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from lorascope.study.gains import gain
from lorascope.study.measures.intruding import EPSILONS
from lorascope.study.results import Results
from lorascope.study.statistics import area_under_roc, once, spearman

Statistic = Callable[[Results], float]
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
    method, replicate = table["method"].to_numpy(), table["replicate"].to_numpy()
    values = {column: table[column].to_numpy(float) for column in SUMMED}
    lost_method, lost_replicate = lost["method"].to_numpy(), lost["replicate"].to_numpy()
    runs = {}
    for name in dict.fromkeys(method):
        mine, lost_mine = method == name, lost_method == name
        order = np.argsort(lost_replicate[lost_mine])
        units, of = np.unique(replicate[mine], return_inverse=True)
        if list(units) != list(lost_replicate[lost_mine][order]):
            raise ValueError(f"a run of {name} has not been measured in full")
        sums = {column: np.bincount(of, each[mine]) for column, each in values.items()}
        sums["size"] = np.sqrt(sums.pop("squares"))
        for column in ("forgetting", "pair_loss"):
            sums[column] = lost[column].to_numpy()[lost_mine][order]
        runs[name] = sums
    return runs


def of_runs(results: Results, method: str, column: str = "found") -> np.ndarray:
    if method not in (runs := by_run(results)):
        raise ValueError(f"nothing measured of {method}")
    return runs[method][column]


def average(results: Results, method: str, column: str = "found") -> float:
    return float(of_runs(results, method, column).mean())


def slots(method: str, column: str = "found") -> Statistic:
    """The share of leading vectors."""
    return lambda results: average(results, method, column) / average(results, method, "slots")


def to_same_size(method: str, sweep: Iterable[str], column: str = "found") -> Statistic:
    """A method's mean over that of a sweep at the same ‖ΔW‖: between the means of its rates by straight lines."""

    def statistic(results: Results) -> float:
        size = average(results, method, "size")
        sizes, values = ([average(results, each, name) for each in sweep] for name in ("size", column))
        if not sizes[0] <= size <= sizes[-1]:
            raise ValueError("no run of the sweep has a ΔW of this size")
        if not (same := float(np.interp(size, sizes, values))):
            raise ValueError("the sweep has none at this size")
        return average(results, method, column) / same

    return statistic


def over_sweep(results: Results, sweep: Mapping[str, float], column: str) -> np.ndarray:
    """Of the runs of several methods, each with its learning rate."""
    if column == "rate":
        return np.concatenate([np.full(len(of_runs(results, method)), rate) for method, rate in sweep.items()])
    return np.concatenate([of_runs(results, method, column) for method in sweep])


def correlation(sweep: Mapping[str, float], first: str, second: str, given: str | None = None) -> Statistic:
    """Spearman's ρ over the runs of a sweep; partial where a third column is given."""

    def statistic(results: Results) -> float:
        third = None if given is None else over_sweep(results, sweep, given)
        return spearman(over_sweep(results, sweep, first), over_sweep(results, sweep, second), third)

    return statistic


def shuffled(sweep: Mapping[str, float], first: str, second: str, given: str | None = None) -> Statistic:
    """The same with the first column shuffled among the runs: the mean over shuffles."""

    def statistic(results: Results) -> float:
        rng = np.random.default_rng(0)
        x, y = (over_sweep(results, sweep, column) for column in (first, second))
        third = None if given is None else over_sweep(results, sweep, given)
        return float(np.mean([spearman(rng.permutation(x), y, third) for _ in range(SHUFFLES)]))

    return statistic


@once
def after_scaling(results: Results, method: str) -> dict[tuple[str, float], dict[str, np.ndarray]]:
    """By arm and factor: task loss and forgetting of a method's runs that have an intruder."""
    table = results.tables["scaled"]
    table = table[(table["method"].to_numpy() == method) & (table["weights"].to_numpy() > 0)]
    if not len(table):
        raise ValueError("no weight of any run has an intruder")
    arm, factor, replicate = (table[column].to_numpy() for column in ("arm", "factor", "replicate"))
    columns = {column: table[column].to_numpy(float) for column in ("loss", "forgetting")}
    points = {}
    for name in np.unique(arm):
        for value in np.unique(factor):
            rows = np.flatnonzero((arm == name) & (factor == value))
            rows = rows[np.argsort(replicate[rows])]
            points[str(name), float(value)] = {column: each[rows] for column, each in columns.items()}
    return points


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
        now, less = points[arm, factor], []
        for here, at, loss, forgot in zip(now["forgetting"], now["loss"], losses, forgotten, strict=True):
            order = np.argsort(loss)
            less.append(here - np.interp(at, loss[order], forgot[order]))
        return float(np.mean(less) / points[arm, 1.0]["forgetting"].mean())

    return statistic


@once
def factors(results: Results) -> dict[str, np.ndarray]:
    """(weights,) the factor of ΔW for a first intruder: `measured`, predicted from W's `spectrum`, and by the `plain`
    rule that σ₁(ΔW) reaches σ₁₀(W)."""
    table, first = results.tables["critical"], results.tables["leading"]
    margins = dict(zip(_weights(first), first["margin"].to_numpy(float), strict=True))
    plain = 1 / np.array([margins[key] for key in _weights(table)])
    measured, spectrum = (table[column].to_numpy(float) for column in ("measured", "predicted"))
    return {"measured": measured, "spectrum": spectrum, "plain": plain}


def _weights(table: Any) -> list[tuple[Any, ...]]:
    return list(zip(*(table[column].to_numpy() for column in ("method", "replicate", "module")), strict=True))


def within_two(rule: str) -> Statistic:
    """The share of weights whose measured factor a rule gives within 2."""
    return lambda results: float(np.mean(np.abs(np.log2(factors(results)[rule] / factors(results)["measured"])) <= 1))


def auc(methods: Iterable[str], column: str, sign: int = 1) -> Statistic:
    """Area under the ROC curve of a column, times the sign, for whether a weight has an intruder."""

    def statistic(results: Results) -> float:
        table = results.tables["leading"]
        rows = np.isin(table["method"].to_numpy(str), list(methods)) & table["strength"].notna().to_numpy()
        return area_under_roc(table["found"].to_numpy()[rows] > 0, sign * table[column].to_numpy(float)[rows])

    return statistic
