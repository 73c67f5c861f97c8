"""Intruder dimensions of trained updates, what they do to the base, and how strong a ΔW must be to have one."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.linalg.cached_svd import CachedSVD
from lorascope.linalg.factored import Factored
from lorascope.linalg.matrix import Matrix
from lorascope.study.grid import Scalar
from lorascope.study.measures.finished import opened, singular_values, windows

if TYPE_CHECKING:
    from lorascope.training.reopen import Reopened

K, EPSILON = 10, 0.5
EPSILONS = (0.3, 0.5, 0.7, 0.9)
LAMBDAS = (0.3, 0.5, 0.7)
Row = dict[str, Scalar]


def leading(folders: Sequence[Path], method: str) -> Iterator[Row]:
    """The leading singular vectors of every weight of a run.

    With them two changes with a known answer: ten random directions, twice as strong as W's first, are all intruders;
    ΔW's singular values on W's own directions are none.
    """
    run = opened(folders[0])
    rng = np.random.default_rng(run.config.training.seed)
    for name, weight, delta, sigma, cached in _decomposed(run):
        module = measured(name, weight, delta, cached)
        intruders = module.intruders(EPSILON, K)
        changes = _changes_with_known_counts(weight, sigma, rng, cached)
        yield {
            "module": name,
            "slots": len(module.vectors),
            "energy": sum(v.sigma**2 for v in module.vectors),
            "energy_found": sum(v.sigma**2 for v in intruders),
            "margin": module.spike_margin,
            "squares": module.delta_norm**2,
            "chance": module.chance["left"],
            "strength": module.prediction.strength if module.prediction else None,
            "found": len(intruders),
            **{f"found_{epsilon}": len(module.intruders(epsilon, K)) for epsilon in EPSILONS},
            **{kind: len(measured(name, weight, d, cached).intruders(EPSILON, K)) for kind, d in changes.items()},
        }


def _decomposed(run: "Reopened") -> Iterator[tuple[str, np.ndarray, Matrix, np.ndarray, CachedSVD]]:
    """Of every changed matrix: its name, W, ΔW, ΔW's singular values, and the decomposition of W."""
    from lorascope.weights.base_svd import SvdCache

    cache = SvdCache(None, place=run.place)
    for names in windows(run):
        weights, deltas = [run.base_weight(name) for name in names], [run.delta(name) for name in names]
        cache.prepare(weights)
        sigmas = singular_values(deltas, run.place)
        for name, weight, delta, sigma in zip(names, weights, deltas, sigmas, strict=True):
            yield name, weight, delta, sigma, cache.of(weight)


def _changes_with_known_counts(
    weight: np.ndarray, sigma_delta: np.ndarray, rng: np.random.Generator, cached: CachedSVD
) -> dict[str, Factored]:
    """Changes whose first K directions are all intruders (`planted`), and none (`aligned`).

    Args:
        sigma_delta: ΔW's singular values.
        cached: the decomposition of `weight`.
    """
    a, b = (np.linalg.qr(rng.standard_normal((side, K)))[0] for side in weight.shape)
    k = min(K, len(sigma_delta), cached.rank)
    u, v = cached.leading(weight, k)
    return {"planted": Factored(a * (2 * cached.sigma[0]), b.T), "aligned": Factored(u * sigma_delta[:k], v.T)}


def retained(folders: Sequence[Path], method: str, texts: int) -> list[Row]:
    """What a run has lost of the base."""
    from lorascope.study.measures.forgetting import lost_of

    lost = lost_of(opened(folders[0]), texts)
    return [{**lost.score(), "pair_loss_of_base": lost.base["pair_loss"]}]


def scaled(folders: Sequence[Path], method: str, texts: int, split: str | None) -> list[Row]:
    """Task loss and forgetting with the top intruder of every weight scaled by λ, and with the controls."""
    from lorascope.analyses import intruders
    from lorascope.analyses.intruders.intervention import ARMS, intervene
    from lorascope.models import assets
    from lorascope.study.measures.forgetting import lost_of
    from lorascope.weights.base_svd import SvdCache
    from lorascope.weights.checkpoint import open_checkpoint

    run = opened(folders[0], texts, split)
    lost = lost_of(run, texts)

    def evaluate(deltas: Mapping[str, Any]) -> dict[str, float]:
        run.put(deltas)
        score = run.score()
        return {"loss": score.loss, "accuracy": score.accuracy, **lost.score()}

    base, cache = open_checkpoint(assets.resolve(run.config.model.name)), SvdCache(None, place=run.place)
    result = intruders.run(run.adapter, base, k=K, epsilon=EPSILON, cache=cache)
    made = intervene(result, "", run.base_weight, run.delta, evaluate, lambdas=LAMBDAS)
    rows: list[Row] = [{"arm": arm, "factor": 1.0, "norm": 1.0, **made.trained} for arm in ARMS]
    rows += [{"factor": point["lambda"], **{k: v for k, v in point.items() if k != "lambda"}} for point in made.points]
    return [{**row, "weights": len(made.modules)} for row in rows]


def critical(folders: Sequence[Path], method: str) -> Iterator[Row]:
    """By how much ΔW must be multiplied for its first intruder: found by bisection, and from W's spectrum alone.

    With it the same from the spectrum of noise that has W's shape and norm.
    """
    from lorascope.linalg import deformation
    from lorascope.linalg.noise import noise_spectrum

    for name, weight, delta, sigma, cached in _decomposed(opened(folders[0])):
        noise = noise_spectrum(*weight.shape)
        noise = noise * np.linalg.norm(weight) / np.linalg.norm(noise)
        predicted = {
            kind: float(deformation.levels_of(sigma_w, weight.shape, K)[1][K - 1] / sigma[0])
            for kind, sigma_w in (("predicted", cached.sigma), ("of_noise", noise))
        }
        low, high = np.log2(predicted["predicted"]) + np.array([-5.0, 5.0])
        while high - low > 0.1:
            middle = (low + high) / 2
            there = measured(name, weight, delta.scaled(2.0**middle), cached).intruders(EPSILON, K)
            low, high = (low, middle) if there else (middle, high)
        yield {"module": name, "measured": float(2.0 ** ((low + high) / 2)), **predicted}


def measured(name: str, weight: np.ndarray, delta: Matrix, cached: CachedSVD) -> Any:
    from lorascope.analyses.intruders.module import measure

    facts = {"name": name, "parameter": name, "type": "", "depth": None, "transposed": False, "kind": ""}
    return measure(facts, cached, weight, delta, K)
