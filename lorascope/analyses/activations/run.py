"""The run: arrays of activations in, records out."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lorascope.analyses.activations.result import ActivationsResult, ModuleResponse, Similarity
from lorascope.architectures import depth, module_types
from lorascope.errors import InputError
from lorascope.linalg import cka
from lorascope.weights.adapter import Skipped

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_NAMES = tuple(f"q{100 * quantile:02.0f}" for quantile in QUANTILES)


@dataclass(frozen=True)
class ModuleInput:
    """What was seen of one updated layer.

    Attributes:
        values: (k, 5), one row per token and use: ‖ΔW x‖², ‖W x‖², ‖(W + ΔW) x‖², ⟨ΔW x, W x⟩, ‖x‖².
        uses: how often one pass calls it.
        shape: (d_out, d_in).
        update_norm, base_norm: ‖ΔW‖_F, ‖W‖_F.
    """

    name: str
    values: np.ndarray
    uses: int
    shape: tuple[int, int]
    update_norm: float
    base_norm: float


@dataclass(frozen=True)
class RunInput:
    """One trained model: its layers' responses, what has none, and its hidden states (n, width) by layer."""

    label: str
    method: str
    modules: tuple[ModuleInput, ...]
    left_out: tuple[Skipped, ...]
    hidden: tuple[np.ndarray, ...]


def run(
    runs: Sequence[RunInput],
    base: Sequence[np.ndarray],
    texts: np.ndarray,
    *,
    pooled: bool = False,
    tokens: int = 0,
    source: str = "",
    notes: Sequence[str] = (),
    progress: Callable[[list], Iterable] = iter,
) -> ActivationsResult:
    """Shares of every run's layers, and CKA between all runs and the base.

    Args:
        base: the base model's hidden states, (n, width) by layer, of the same samples as every run's.
        texts: (n,) the text that each sample comes from: the unit of the interval.
        pooled: a sample is the mean over a text's tokens; else one token.
        tokens: how many tokens the shares were measured on.
        source: the texts, in words.
        progress: wraps the list of layers.

    Raises:
        InputError: labels repeat, layers or samples differ between runs, or there are fewer than 4 samples.
    """
    labels = ["base", *(one.label for one in runs)]
    if len(set(labels)) < len(labels):
        raise InputError("two runs go by one name", found=", ".join(labels), hint="name each folder once")
    sides = {"base": tuple(base), **{one.label: one.hidden for one in runs}}
    if len({tuple(state.shape for state in states) for states in sides.values()}) > 1:
        raise InputError(
            "the runs' hidden states do not belong together",
            found="; ".join(f"{label}: {len(states)} of {states[0].shape}" for label, states in sides.items()),
            expected="runs of one base model on the same texts",
        )
    names = [module.name for one in runs for module in one.modules]
    types = module_types(dict.fromkeys(names))
    modules = [response(one.label, module, types[module.name]) for one in runs for module in one.modules]
    left_out = {one.label: one.left_out for one in runs}
    methods = {one.label: one.method for one in runs}
    samples, independent = len(texts), len(np.unique(texts))
    similar = [found for layer in progress(list(range(len(base)))) for found in _similarities(sides, layer, texts)]
    return ActivationsResult(
        tuple(labels[1:]), methods, tuple(modules), tuple(similar), left_out, samples, independent, tokens, pooled,
        base[0].shape[1], source, tuple(notes),
    )  # fmt: skip


def response(label: str, module: ModuleInput, type: str) -> ModuleResponse:
    """The shares of one layer, over its tokens, beside chance."""
    update, base, total, inner, entering = module.values.T
    d_out, d_in = module.shape
    random = module.update_norm**2 * entering / d_in  # E‖ΔW x‖² for a random ΔW of this norm

    def ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
        known = under > 0
        return np.sqrt(over[known] / under[known])

    both = (update > 0) & (base > 0)
    cosine = inner[both] / np.sqrt(update[both] * base[both])
    chance = ratio(random, base)
    return ModuleResponse(
        run=label,
        name=module.name,
        type=type,
        depth=depth(module.name),
        shape=module.shape,
        uses=module.uses,
        tokens=len(update),
        share=_spread(ratio(update, base)),
        share_of_output=_spread(ratio(update, total)),
        cosine=_spread(np.clip(cosine, -1, 1)),
        chance_share=float(chance.mean()) if len(chance) else None,
        chance_cosine=1 / math.sqrt(d_out),
        weight_ratio=module.update_norm / module.base_norm if module.base_norm else None,
        update_gain=_gain(update, module.update_norm, entering, d_in),
        base_gain=_gain(base, module.base_norm, entering, d_in),
    )


def _gain(outgoing: np.ndarray, norm: float, entering: np.ndarray, d_in: int) -> float | None:
    """Root mean square of ‖M x‖ over that of a random M of the same norm."""
    random = norm**2 * float(entering.sum()) / d_in
    return math.sqrt(float(outgoing.sum()) / random) if random > 0 else None


def _spread(values: np.ndarray) -> Mapping[str, float] | None:
    """Mean and quantiles; None where there is nothing."""
    if not len(values):
        return None
    quantiles = np.quantile(values, QUANTILES)
    return {"mean": float(values.mean()), **dict(zip(_NAMES, quantiles.tolist(), strict=True))}


def _similarities(sides: Mapping[str, tuple[np.ndarray, ...]], layer: int, texts: np.ndarray) -> list[Similarity]:
    """CKA between every two sides after one layer. Groups for the interval: whole texts, in a drawn order."""
    units = np.unique(texts)
    order = np.random.default_rng(0).permutation(len(units))
    groups = order[np.searchsorted(units, texts)] % min(cka.GROUPS, len(units))
    try:
        features = {label: cka.Features(states[layer], groups) for label, states in sides.items()}
        found = {(a, b): cka.cka(features[a], features[b], len(units)) for a, b in itertools.combinations(features, 2)}
    except ValueError as error:
        raise InputError(f"hidden states after layer {layer} cannot be compared", found=error) from None
    return [Similarity(a, b, layer, one) for (a, b), one in found.items()]
