"""Intruder dimensions of trained updates, what they do to the base, and how strong a ΔW must be to have one."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.linalg.factored import Factored
from lorascope.linalg.matrix import Matrix
from lorascope.study.definition import Scalar
from lorascope.study.measures.finished import matrices, opened, singular_values

if TYPE_CHECKING:
    from lorascope.weights.base_svd import SvdCache

K, EPSILON = 10, 0.5
EPSILONS = (0.3, 0.5, 0.7, 0.9)
LAMBDAS = (0.3, 0.5, 0.7)
Row = dict[str, Scalar]


def leading(folders: Sequence[Path], method: str) -> Iterator[Row]:
    """The leading singular vectors of every weight of a run.

    With them two changes with a known answer: ten random directions, twice as strong as W's first, are all intruders;
    ΔW's singular values on W's own directions are none.
    """
    from lorascope.weights.base_svd import SvdCache

    run, cache = opened(folders[0]), SvdCache(None)
    rng = np.random.default_rng(run.config.training.seed)
    for name in matrices(run):
        weight, delta = run.base_weight(name), run.delta(name)
        module = measured(name, weight, delta, cache)
        intruders = module.intruders(EPSILON, K)
        changes = _changes_with_known_counts(weight, delta, rng)
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
            **{kind: len(measured(name, weight, d, cache).intruders(EPSILON, K)) for kind, d in changes.items()},
        }


def _changes_with_known_counts(weight: np.ndarray, delta: Matrix, rng: np.random.Generator) -> dict[str, Factored]:
    """Changes whose first K directions are all intruders (`planted`), and none (`aligned`)."""
    u, sigma, vh = np.linalg.svd(weight, full_matrices=False)
    a, b = (np.linalg.qr(rng.standard_normal((side, K)))[0] for side in weight.shape)
    sigma_delta = singular_values(delta)[:K]
    return {
        "planted": Factored(a * (2 * sigma[0]), b.T),
        "aligned": Factored(u[:, : len(sigma_delta)] * sigma_delta, vh[: len(sigma_delta)]),
    }


def retained(folders: Sequence[Path], method: str, texts: int) -> list[Row]:
    """What a run has lost of the base."""
    from lorascope.study.measures.retention import Retention

    lost = Retention(opened(folders[0]), texts)
    return [{**lost.score(), "pair_loss_of_base": lost.base["pair_loss"]}]


def scaled(folders: Sequence[Path], method: str, texts: int, split: str | None) -> list[Row]:
    """Task loss and forgetting with the top intruder of every weight scaled by λ, and with the controls."""
    from lorascope.analyses import intruders
    from lorascope.analyses.intruders.intervention import ARMS, intervene
    from lorascope.models import assets
    from lorascope.study.measures.retention import Retention
    from lorascope.weights.checkpoint import open_checkpoint

    run = opened(folders[0], texts, split)
    lost = Retention(run, texts)

    def evaluate(deltas: Mapping[str, Any]) -> dict[str, float]:
        run.put(deltas)
        score = run.score()
        return {"loss": score.loss, "accuracy": score.accuracy, **lost.score()}

    result = intruders.run(run.adapter, open_checkpoint(assets.resolve(run.config.model.name)), k=K, epsilon=EPSILON)
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
    from lorascope.weights.base_svd import SvdCache

    run, cache = opened(folders[0]), SvdCache(None)
    for name in matrices(run):
        weight, delta = run.base_weight(name), run.delta(name)
        first = singular_values(delta)[0]
        noise = noise_spectrum(*weight.shape)
        noise = noise * np.linalg.norm(weight) / np.linalg.norm(noise)
        predicted = {
            kind: float(deformation.levels_of(sigma, weight.shape, K)[1][K - 1] / first)
            for kind, sigma in (("predicted", cache.of(weight).sigma), ("of_noise", noise))
        }
        low, high = np.log2(predicted["predicted"]) + np.array([-5.0, 5.0])
        while high - low > 0.1:
            middle = (low + high) / 2
            there = measured(name, weight, delta.scaled(2.0**middle), cache).intruders(EPSILON, K)
            low, high = (low, middle) if there else (middle, high)
        yield {"module": name, "measured": float(2.0 ** ((low + high) / 2)), **predicted}


def measured(name: str, weight: np.ndarray, delta: Matrix, cache: "SvdCache") -> Any:
    from lorascope.analyses.intruders.module import measure

    facts = {"name": name, "parameter": name, "type": "", "depth": None, "transposed": False, "kind": ""}
    return measure(facts, cache.of(weight), weight, delta, K)
