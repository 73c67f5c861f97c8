"""What scaling an intruder does to the scores, compared with the same done to other directions.

Shuttleworth et al. 2024, §5: in each weight W' = W + ΔW + (λ − 1) u σ vᵀ, with the top intruder (u, σ, v) of W + ΔW.
Five arms at each λ; the weights without an intruder stay as trained in all of them:

    intruder    the top intruder of each weight, or all among the k leading vectors
    neighbour   the nearest leading direction that is not an intruder, scaled in the same way
    shrink      ΔW scaled as a whole to the norm that the first arm leaves it: ‖ΔW + (λ − 1) Σ u σ vᵀ‖_F
    step        ΔW scaled down as a whole, so as to move as far as in the first arm, ‖(1 − λ) Σ u σ vᵀ‖_F; at most to 0
    random      a random direction a bᵀ in the place of u vᵀ, with the same (λ − 1) σ

If what matters is that ΔW is smaller, shrink does as well as intruder; if any damage of that size would do, random
does. Where an intruder contains more of W than of ΔW, scaling it makes ‖ΔW‖ larger, and the norm-matched ΔW is not
smaller: then compare with step. The model is evaluated by a function that is passed in.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorascope.analyses.intruders.module import ModuleIntruders, in_bases
from lorascope.analyses.intruders.result import ARMS, Intervention, IntrudersResult, Scores
from lorascope.errors import InputError
from lorascope.linalg import svd_update
from lorascope.linalg.factored import Factored
from lorascope.linalg.matrix import Dense, Matrix
from lorascope.weights.base_svd import SvdCache

LAMBDAS = (0.0, 0.3, 0.5, 0.7, 0.9, 1.0)
BEYOND = 10  # more leading vectors, among which a neighbour is looked for


@dataclass(frozen=True)
class _Weight:
    """One weight's ΔW and the directions that are scaled: left (m, j), sigma (j,), right (n, j) of each arm."""

    record: ModuleIntruders
    delta: Matrix
    positions: tuple[int, ...]  # of the intruders among the leading vectors
    neighbour_positions: tuple[int, ...]
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


def intervene(  # a result, the run it is of, and how it is scaled
    result: IntrudersResult,
    run: str,
    weight: Callable[[str], np.ndarray],
    delta: Callable[[str], Any],
    evaluate: Callable[[Mapping[str, Any]], Scores],
    *,
    lambdas: Sequence[float] = LAMBDAS,
    all_intruders: bool = False,
    cache: SvdCache | None = None,
    seed: int = 0,
    texts: Mapping[str, int] | None = None,
    progress: Callable[[list], Any] = iter,
) -> Intervention:
    """Scale the intruders of a trained run, and the controls, and evaluate each.

    Args:
        result: the intruders of the run's adapter, by the names of its updates.
        run: the run's folder, for the record.
        weight: the base weight W (d_out, d_in) of an update, by its name.
        delta: its trained ΔW.
        evaluate: scores of the model with W + deltas[name] in every weight, and W where a name is absent.
        lambdas: the factors of the intruders' singular values; 1 is the trained model.
        all_intruders: scale all intruders among the leading vectors, not the top one alone.
        cache: of the base's decompositions.
        seed: of the random directions.
        texts: how many texts the scores are of, for the record.
        progress: wraps the list of evaluations.

    Raises:
        InputError: a λ is negative or not finite.
    """
    wrong = [f for f in lambdas if not (np.isfinite(f) and f >= 0)]
    if wrong:
        raise InputError("λ scales a singular value", found=wrong[0], expected="0 or more")
    rng = np.random.default_rng(seed)
    cache = cache if cache is not None else SvdCache(None)
    trained = {module.name: delta(module.name) for module in result.rows}
    weights = [
        _directions(result, module, weight(module.name), trained[module.name], all_intruders, cache, rng)
        for module in result.rows
        if result.of(module)
    ]
    jobs = [(arm, float(f)) for f in lambdas if f != 1 for arm in ARMS] if weights else []
    base, as_trained = evaluate({}), evaluate(trained)
    total = sum(w.norm**2 for w in weights)
    points = []
    for arm, factor in progress(jobs):
        changes = {w.record.name: w.change(arm, factor) for w in weights}
        points.append({
            "arm": arm, "lambda": factor, **evaluate({**trained, **changes}),
            "norm": float(np.sqrt(sum(change.frobenius_norm() ** 2 for change in changes.values()) / total)),
        })  # fmt: skip
    modules = tuple(
        {"name": w.record.name, "intruders": list(w.positions), "neighbours": list(w.neighbour_positions)}
        for w in weights
    )
    without = tuple(w.record.name for w in weights if not w.neighbour_positions)
    scaled = "all" if all_intruders else "top"
    return Intervention(run, scaled, modules, without, dict(base), dict(as_trained), tuple(points), dict(texts or {}))


def _directions(
    result: IntrudersResult,
    module: ModuleIntruders,
    weight: np.ndarray,
    delta: Matrix,
    all_intruders: bool,
    cache: SvdCache,
    rng: np.random.Generator,
) -> _Weight:
    cached, change = cache.of(weight), in_bases(delta)
    updated = svd_update.leading(cached, weight, change, result.k + BEYOND)
    u, v = svd_update.vectors(cached, weight, change, updated)
    closest = cached.cosines(updated.left).max(axis=0, initial=0.0)
    at = [i for i in range(min(result.k, len(closest))) if closest[i] < result.epsilon]
    at = at if all_intruders else at[:1]
    next_to = _neighbours(at, [i for i in range(len(closest)) if closest[i] >= result.epsilon])
    noise = [rng.standard_normal((size, len(at))) for size in weight.shape]
    a, b = (one / np.linalg.norm(one, axis=0) for one in noise)
    s = updated.sigma
    inner = u[:, at].T @ delta
    return _Weight(
        module, delta, tuple(i + 1 for i in at), tuple(i + 1 for i in next_to),
        (u[:, at], s[at], v[:, at]), (u[:, next_to], s[next_to], v[:, next_to]), (a, s[at], b),
        delta.frobenius_norm(), float(np.sum(s[at] * np.einsum("jn,nj->j", inner, v[:, at]))),
    )  # fmt: skip


def _neighbours(positions: list[int], others: list[int]) -> list[int]:
    """For each intruder's position the nearest of the others, each taken once; the weaker of two as near."""
    free, chosen = list(others), []
    for position in positions:
        if free:
            chosen.append(min(free, key=lambda other: (abs(other - position), -other)))
            free.remove(chosen[-1])
    return chosen
