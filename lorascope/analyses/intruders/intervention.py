"""What scaling an intruder does to the scores, beside the same done to other directions.

Shuttleworth et al. 2024, §5: in each weight W' = W + ΔW + (λ − 1) u σ vᵀ, with the top intruder (u, σ, v) of W + ΔW.
Five arms at each λ; the weights without an intruder stay as trained in all of them:

    intruder    the top intruder of each weight, or all among the k leading vectors
    neighbour   the nearest leading direction that is no intruder, scaled in the same way
    shrink      ΔW scaled as a whole to the norm that the first arm leaves it: ‖ΔW + (λ − 1) Σ u σ vᵀ‖_F
    step        ΔW scaled down as a whole, so as to move as far as in the first arm, ‖(1 − λ) Σ u σ vᵀ‖_F; at most to 0
    random      a random direction a bᵀ in the place of u vᵀ, with the same (λ − 1) σ

If what matters is that ΔW is smaller, shrink does as well as intruder; if any damage of that size would do, random
does. Where an intruder holds more of W than of ΔW, scaling it makes ‖ΔW‖ larger, and the norm-matched ΔW is no smaller:
then step is the one to read. The model is evaluated by a function that is handed in.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lorascope.analyses.intruders.module import ModuleIntruders, in_bases
from lorascope.analyses.intruders.result import IntrudersResult
from lorascope.blocks import Block, Column, Finding, Heading, Lines, Marker, Series, Table
from lorascope.errors import InputError
from lorascope.linalg import svd_update as changed
from lorascope.linalg.factored import Factored
from lorascope.linalg.matrix import Dense, Matrix
from lorascope.weights.base_svd import SvdCache

ARMS = ("intruder", "neighbour", "shrink", "step", "random")
LAMBDAS = (0.0, 0.3, 0.5, 0.7, 0.9, 1.0)
BEYOND = 10  # more leading vectors, among which a neighbour is looked for
Scores = Mapping[str, float]  # "loss", "accuracy", and where other texts were given "retained_loss"


@dataclass(frozen=True)
class Intervention:
    """Scores by arm and λ.

    Attributes:
        run: the folder of the run.
        scaled: "top", the first intruder of each weight, or "all" among the k leading vectors.
        modules: the weights that were changed, with the positions of their intruders and of the neighbours.
        without: weights with an intruder of which no leading vector is none, so that there is no neighbour.
        base: scores of the base weights, with what was trained beside them (a head) as trained.
        trained: scores as trained, λ = 1.
        points: one record for each arm and λ < 1: arm, lambda, loss, accuracy, retained_loss, and `norm`, ‖ΔW‖_F over
            the changed weights relative to the trained one's.
        texts: how many texts each score is of.
    """

    run: str
    scaled: str
    modules: tuple[Mapping[str, Any], ...]
    without: tuple[str, ...]
    base: Scores
    trained: Scores
    points: tuple[Mapping[str, Any], ...]
    texts: Mapping[str, int] = field(default_factory=dict)

    def at(self, arm: str, factor: float) -> Mapping[str, Any]:
        """The record of one arm at one λ; at 1 all are the trained model."""
        if factor == 1:
            return {"arm": arm, "lambda": 1.0, "norm": 1.0, **self.trained}
        return next(p for p in self.points if p["arm"] == arm and p["lambda"] == factor)

    def lambdas(self) -> list[float]:
        return sorted({point["lambda"] for point in self.points} | {1.0})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def findings(self) -> list[Finding]:
        """What happened where the first arm lost least: each arm's scores, and no verdict that they do not give."""
        if not self.points:
            return [Finding("note", "no weight has an intruder to scale: the intervention changes nothing")]
        found = []
        for key, name in (("loss", "held-out loss"), ("retained_loss", "loss on the other texts")):
            if key not in self.trained:
                continue
            factor = min((f for f in self.lambdas() if f < 1), key=lambda f: abs(f - 0.7))
            moved = {arm: self.at(arm, factor)[key] - self.trained[key] for arm in ARMS}
            text = (
                f"λ = {factor:g}: the {name} is {self.trained[key]:.4g} as trained and {self.base[key]:.4g} without ΔW;"
                f" it moves by {moved['intruder']:+.3g} with the intruders scaled, {moved['shrink']:+.3g} with ΔW"
                f" shrunk to the same norm, {moved['step']:+.3g} with it shrunk by as much,"
                f" {moved['neighbour']:+.3g} with a neighbouring direction scaled and {moved['random']:+.3g} with a"
                " random one"
            )
            found.append(Finding("note", text))
        grown = [f for f in self.lambdas() if self.at("intruder", f)["norm"] > 1]
        if grown:
            text = (
                f"at λ = {', '.join(f'{f:g}' for f in grown)} scaling the intruders makes ‖ΔW‖ larger, for they hold"
                " more of W than of ΔW: the norm-matched control is then no shrink, and the step is the one to read"
            )
            found.append(Finding("warning", text))
        if self.without:
            text = f"no neighbour that is no intruder in {len(self.without)} weights: they stay as trained in that arm"
            found.append(Finding("warning", text, self.without[0]))
        return found

    def blocks(self) -> list[Block]:
        return _blocks(self)


@dataclass(frozen=True)
class _Weight:
    """One weight's ΔW and the directions that are scaled: left (m, j), sigma (j,), right (n, j) of each arm."""

    record: ModuleIntruders
    delta: Any
    positions: tuple[int, ...]
    beside: tuple[int, ...]
    intruders: tuple[np.ndarray, np.ndarray, np.ndarray]
    neighbours: tuple[np.ndarray, np.ndarray, np.ndarray]
    random: tuple[np.ndarray, np.ndarray, np.ndarray]
    norm: float
    along: float  # Σ σ uᵀ ΔW v over the intruders

    def shrunk(self, factor: float) -> float:
        """By what ΔW is scaled for the norm that scaling the intruders leaves it."""
        cut = factor - 1
        left = self.norm**2 + 2 * cut * self.along + cut**2 * float(np.sum(self.intruders[1] ** 2))
        return float(np.sqrt(max(left, 0.0))) / self.norm

    def stepped(self, factor: float) -> float:
        """By what ΔW is scaled to move as far as scaling the intruders moves it."""
        return max(1 - abs(1 - factor) * float(np.linalg.norm(self.intruders[1])) / self.norm, 0.0)

    def change(self, arm: str, factor: float) -> Matrix:
        """ΔW in one arm."""
        if arm in ("shrink", "step"):
            scale = self.shrunk(factor) if arm == "shrink" else self.stepped(factor)
            return self.delta.scaled(scale)
        u, s, v = {"intruder": self.intruders, "neighbour": self.neighbours, "random": self.random}[arm]
        product = self.delta.factors()
        if product is None:
            return Dense(self.delta.dense() + (u * ((factor - 1) * s)) @ v.T)
        return Factored(
            np.concatenate([product.left, u * ((factor - 1) * s)], axis=1),
            np.concatenate([product.right, v.T], axis=0),
        )


def intervene(
    result: IntrudersResult,
    run: str,
    weight: Callable[[str], np.ndarray],
    delta: Callable[[str], Any],
    evaluate: Callable[[Mapping[str, Any]], Scores],
    *,
    lambdas: Sequence[float] = LAMBDAS,
    all_of_them: bool = False,
    cache: SvdCache | None = None,
    seed: int = 0,
    texts: Mapping[str, int] | None = None,
    progress: Callable[[list], Any] = iter,
) -> Intervention:
    """Scale the intruders of a trained run, and the controls, and evaluate each.

    Args:
        result: the intruders of the run's adapter, by the names of its updates.
        run: the run's folder, to be named.
        weight: the base weight W (d_out, d_in) of an update, by its name.
        delta: its trained ΔW.
        evaluate: scores of the model with W + deltas[name] in every weight, and W where a name is absent.
        lambdas: the factors of the intruders' singular values; 1 is the trained model.
        all_of_them: scale all intruders among the leading vectors, not the top one alone.
        cache: of the base's decompositions.
        seed: of the random directions.
        texts: how many texts the scores are of, to be stated.
        progress: wraps the list of evaluations.

    Raises:
        InputError: a λ is negative or not finite.
    """
    wrong = [f for f in lambdas if not (np.isfinite(f) and f >= 0)]
    if wrong:
        raise InputError("λ scales a singular value", found=wrong[0], expected="0 or more")
    rng = np.random.default_rng(seed)
    cache = cache if cache is not None else SvdCache(None)
    trained = {module.name: delta(module.name) for module in result.modules}
    found = [
        _directions(result, module, weight(module.name), trained[module.name], all_of_them, cache, rng)
        for module in result.modules
        if module.intruders(result.epsilon, result.k)
    ]
    jobs = [(arm, float(f)) for f in lambdas if f != 1 for arm in ARMS] if found else []
    base, as_trained = evaluate({}), evaluate(trained)
    whole = sum(w.norm**2 for w in found)
    points = []
    for arm, factor in progress(jobs):
        changes = {w.record.name: w.change(arm, factor) for w in found}
        points.append({
            "arm": arm, "lambda": factor, **evaluate({**trained, **changes}),
            "norm": float(np.sqrt(sum(change.frobenius_norm() ** 2 for change in changes.values()) / whole)),
        })  # fmt: skip
    modules = tuple(
        {"name": w.record.name, "intruders": list(w.positions), "neighbours": list(w.beside)} for w in found
    )
    without = tuple(w.record.name for w in found if not w.beside)
    scaled = "all" if all_of_them else "top"
    return Intervention(run, scaled, modules, without, dict(base), dict(as_trained), tuple(points), dict(texts or {}))


def _directions(
    result: IntrudersResult,
    module: ModuleIntruders,
    weight: np.ndarray,
    delta: Matrix,
    all_of_them: bool,
    cache: SvdCache,
    rng: np.random.Generator,
) -> _Weight:
    known, change = cache.of(weight), in_bases(delta)
    found = changed.leading(known, weight, change, result.k + BEYOND)
    u, v = changed.vectors(known, weight, change, found)
    closest = known.cosines(found.left).max(axis=0, initial=0.0)
    mine = [i for i in range(min(result.k, len(closest))) if closest[i] < result.epsilon]
    mine = mine if all_of_them else mine[:1]
    beside = _neighbours(mine, [i for i in range(len(closest)) if closest[i] >= result.epsilon])
    noise = [rng.standard_normal((size, len(mine))) for size in weight.shape]
    a, b = (one / np.linalg.norm(one, axis=0) for one in noise)
    s = found.sigma
    inner = u[:, mine].T @ delta
    return _Weight(
        module, delta, tuple(i + 1 for i in mine), tuple(i + 1 for i in beside),
        (u[:, mine], s[mine], v[:, mine]), (u[:, beside], s[beside], v[:, beside]), (a, s[mine], b),
        delta.frobenius_norm(), float(np.sum(s[mine] * np.einsum("jn,nj->j", inner, v[:, mine]))),
    )  # fmt: skip


def _neighbours(mine: list[int], others: list[int]) -> list[int]:
    """For each intruder's position the nearest of the others, each taken once; the weaker of two as near."""
    free, chosen = list(others), []
    for position in mine:
        if free:
            chosen.append(min(free, key=lambda other: (abs(other - position), -other)))
            free.remove(chosen[-1])
    return chosen


def _blocks(made: Intervention) -> list[Block]:
    if not made.points:
        return []
    keys = [key for key in ("loss", "accuracy", "retained_loss") if key in made.trained]
    titles = {"loss": "held-out loss", "accuracy": "accuracy", "retained_loss": "loss on other texts"}
    columns = [Column("arm", "scaled"), Column("lambda", "λ", "float"), Column("norm", "‖ΔW‖ of trained", "percent")]
    columns += [Column(key, titles[key], "percent" if key == "accuracy" else "float", 4) for key in keys]
    rows: list[tuple] = [("nothing: as trained", 1.0, 1.0, *(made.trained[key] for key in keys))]
    rows += [
        (arm, f, made.at(arm, f)["norm"], *(made.at(arm, f)[key] for key in keys))
        for f in sorted((f for f in made.lambdas() if f != 1), reverse=True)
        for arm in ARMS
    ]
    rows.append(("everything: the base", 0.0, 0.0, *(made.base[key] for key in keys)))
    what = "the top intruder" if made.scaled == "top" else "every intruder among the leading vectors"
    number = ", ".join(f"{count} {name}" for name, count in made.texts.items())
    caption = (
        f"{what[0].upper()}{what[1:]} of {len(made.modules)} weights, and the controls: neighbour, the nearest leading"
        " direction that is no intruder; shrink, ΔW as a whole to the norm that the first arm leaves; step, ΔW as a"
        " whole shrunk by as much as the first arm moves it; random, a random"
        f" direction of the same size. ‖ΔW‖ over these weights.{f' Scores of {number}.' if number else ''}"
    )
    losses = [key for key in keys if key != "accuracy"]
    figures = [_figure(made, losses, titles, "Loss")]
    if "accuracy" in keys:
        figures.append(_figure(made, ["accuracy"], titles, "Accuracy"))
    return [
        Heading("Scaling the intruders"),
        Table(tuple(columns), tuple(rows), title="Scores with the intruders scaled by λ", caption=caption),
        *figures,
    ]  # fmt: skip


def _figure(made: Intervention, keys: list[str], titles: Mapping[str, str], what: str) -> Lines:
    """A line for each arm, a panel for each set of texts."""
    at = tuple(made.lambdas())
    series = [
        Series(arm, at, tuple(made.at(arm, f)[key] for f in at), titles[key] if len(keys) > 1 else "")
        for key in keys
        for arm in ARMS
    ]
    marks = tuple(Marker("y", made.base[key], "base", titles[key] if len(keys) > 1 else None) for key in keys)
    caption = "λ = 1 is the trained model; the line of the base is the score without any ΔW."
    return Lines(f"{what} against λ", tuple(series), "λ", what.lower(), markers=marks, where="page", caption=caption)
