"""Arrays of activations in, one record for each run's layer and one for each pair of models and layer out."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from lorascope.analyses.base import Metric, Result
from lorascope.analyses.spectral_metrics import RELATIVE_NORM
from lorascope.analyses.toolkit import Row, choose, median, value
from lorascope.architectures import depth, module_types
from lorascope.errors import InputError
from lorascope.linalg import cka
from lorascope.run_data import LayerActivations, Recorded
from lorascope.weights.adapter import Skipped

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_NAMES = tuple(f"q{100 * quantile:02.0f}" for quantile in QUANTILES)

LAYER_METRICS = (
    Metric(
        "share.mean", "‖ΔWx‖/‖Wx‖", "percent", "mean over tokens", null="chance_share", term="Share",
        formula="‖ΔW x‖/‖W x‖ and ‖ΔW x‖/‖(W + ΔW) x‖, x the inputs of the layer in the trained model, no bias",
        source="mean and quantiles over tokens other than padding",
        meaning="How strongly the update acts on real inputs: near 0 the output of the layer hardly changes, at"
        " 100 % the update's part of it is as large as the base's.",
    ),
    Metric(
        "chance_share", "random ΔW", "percent", "the same by a random ΔW of this norm: ‖ΔW‖_F‖x‖/(√d_in‖Wx‖)",
        formula="E‖ΔW x‖² = ‖ΔW‖_F²‖x‖²/d_in for a ΔW whose rows point anywhere", source="exact, any rank",
        term="Random ΔW",
        meaning="The share that an update of this norm would have whatever the inputs: a share above it means that the"
        " update reads directions in which the inputs are strong.",
    ),
    replace(RELATIVE_NORM, key="weight_ratio", help="Frobenius norms, no inputs"),
    Metric(
        "update_gain", "gain of ΔW", help="root mean square of ‖ΔWx‖ over that of a random ΔW of its norm", term="Gain",
        formula="√(Σ‖M x‖²/(‖M‖_F² Σ‖x‖²/d_in)): 1 for a random M, √d_in at most", source="M = ΔW or W",
        meaning="How a matrix responds to real inputs: above 1 it reads directions in which they are strong, below 1"
        " directions in which they are weak.",
    ),
    Metric("base_gain", "gain of W", help="the same of W", term="Gain"),
    Metric("share.q05", "5 %", "percent", "5 % of tokens have a smaller share", term="Share"),
    Metric("share.q95", "95 %", "percent", "95 % of tokens have a smaller share", term="Share"),
    Metric("share_of_output.mean", "of output", "percent", "‖ΔWx‖/‖(W + ΔW)x‖, mean over tokens", term="Share"),
    Metric(
        "cosine.mean", "cosine", help="of ΔWx and Wx, mean over tokens", null="chance_cosine", term="Cosine",
        formula="⟨ΔW x, W x⟩/(‖ΔW x‖ ‖W x‖); by chance 0 ± 1/√d_out for one token", source="mean over tokens",
        meaning="Whether the update adds to what the layer says or works against it: positive strengthens the output,"
        " negative weakens it, about 0 turns it.",
    ),
    Metric("chance_cosine", "±chance", help="1/√d_out: standard deviation of one token's cosine for a random ΔW",
           term="Cosine"),
    Metric("uses", "uses", "int", "how often one pass calls the layer"),
)  # fmt: skip
CKA_METRICS = (
    Metric(
        "value", "CKA", help="debiased; by chance 0 on average", null="chance_sd", term="CKA, debiased",
        formula="HSIC(K, L)/√(HSIC(K, K) HSIC(L, L)), K = XXᵀ, with the unbiased HSIC",
        source="Kornblith et al. 2019, arXiv 1905.00414; Song et al. 2012, eq. 5",
        meaning="How alike two models represent the same texts: 1 if their hidden states agree up to rotation and"
        " scale, about 0 if they are unrelated.",
    ),
    Metric(
        "low", "95 % from", help="lower end of the 95 % interval over texts", term="Interval",
        formula="95 %, texts omitted in 20 groups (jackknife): resampling would repeat samples, and each repeated pair"
        " brings the bias back", source="Efron and Stein 1981",
        meaning="How much the CKA could differ with other texts: a wide interval asks for more of them.",
    ),
    Metric("high", "to", help="upper end of the 95 % interval over texts", term="Interval"),
    Metric(
        "chance_sd", "chance ±", help="one s.d.; the mean is 0", term="CKA by chance",
        formula="samples of one side permuted: mean 0, standard deviation √(2/(n(n − 3)))",
        source="Mantel's moments of U-centred matrices, Székely and Rizzo 2014",
        meaning="How far from 0 the CKA of unrelated hidden states lies: a CKA below two of these shows no similarity.",
    ),
    Metric(
        "biased", "biased CKA", help="the usual estimator", null="biased_chance", term="CKA, biased",
        formula="the same with tr(KHLH); by chance tr(KH)tr(LH)/(n − 1) in its place", source="for comparison",
        meaning="The usual estimate, to compare with other papers: with few texts it is high even for unrelated"
        " states.",
    ),
    Metric("biased_chance", "biased, by chance", help="what the usual estimator gives unrelated states",
           term="CKA, biased"),
)  # fmt: skip
METRICS = (*LAYER_METRICS, *CKA_METRICS)
SUMMARISED = ("share", "chance_share", "weight_ratio", "update_gain", "base_gain", "cosine")


@dataclass(frozen=True)
class ModuleResponse:
    """One updated layer of one run, over tokens of real texts.

    Attributes:
        run, name, type, depth, shape: whose it is; (d_out, d_in).
        uses: how often one pass calls it; tokens: rows that were recorded, over all uses.
        share: ‖ΔW x‖/‖W x‖: mean and the quantiles q05 … q95 over tokens. None where W x is zero.
        share_of_output: ‖ΔW x‖/‖(W + ΔW) x‖, a bias left out.
        cosine: of ΔW x and W x; None where ΔW is zero.
        chance_share: mean of ‖ΔW‖_F‖x‖/(√d_in ‖W x‖): the share by a random ΔW of this norm.
        chance_cosine: 1/√d_out, the standard deviation of one token's cosine for a random ΔW; its mean is 0.
        weight_ratio: ‖ΔW‖_F/‖W‖_F.
        update_gain: root mean square of ‖ΔW x‖ over that of a random ΔW of its norm; base_gain: the same of W.
    """

    run: str
    name: str
    type: str
    depth: int | None
    shape: tuple[int, int]
    uses: int
    tokens: int
    share: Mapping[str, float] | None
    share_of_output: Mapping[str, float] | None
    cosine: Mapping[str, float] | None
    chance_share: float | None
    chance_cosine: float
    weight_ratio: float | None
    update_gain: float | None
    base_gain: float | None


@dataclass(frozen=True)
class Similarity:
    """Hidden states of two models after one layer; layer 0 is the embeddings."""

    a: str
    b: str
    layer: int
    cka: cka.Cka

    @property
    def pair(self) -> str:
        return f"{self.a} · {self.b}"

    def record(self) -> Row:
        return {"a": self.a, "b": self.b, "layer": self.layer, **asdict(self.cka)}


@dataclass(frozen=True, repr=False)
class ActivationsResult(Result):
    """Responses of every run's layers, and similarities between all models.

    Attributes:
        runs: their labels; `methods` what each trained.
        skipped: updates without such numbers, and why; `adapter` is the run's label.
        samples: of CKA, from `texts` texts; a sample is one token, or with `pooled` the mean over a text.
        tokens: how many the shares were measured on.
        width: of the hidden states.
        source: the texts, in words.
    """

    analysis = "activations"

    runs: tuple[str, ...]
    methods: Mapping[str, str]
    modules: tuple[ModuleResponse, ...]
    similarities: tuple[Similarity, ...]
    skipped: tuple[Skipped, ...]
    samples: int
    texts: int
    tokens: int
    pooled: bool
    width: int
    source: str = ""
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[Row, ...]:
        """One for each layer of a run, and for each pair and layer of hidden states; `kind` says which."""
        return (
            *({"kind": "module", **asdict(module)} for module in self.modules),
            *({"kind": "cka", **one.record()} for one in self.similarities),
        )

    def of(self, run: str) -> tuple[ModuleResponse, ...]:
        return tuple(module for module in self.modules if module.run == run)

    @cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        return tuple(dict.fromkeys((one.a, one.b) for one in self.similarities))

    @property
    def layers(self) -> int:
        """How many layers have hidden states, the embeddings among them."""
        return 1 + max((one.layer for one in self.similarities), default=-1)

    def similarity(self, a: str, b: str) -> tuple[Similarity, ...]:
        """By layer."""
        return tuple(one for one in self.similarities if (one.a, one.b) == (a, b))

    def summary(self) -> Row:
        return {
            "runs": {label: self._summary(label) for label in self.runs},
            "last_layer_cka": {one.pair: one.cka.value for one in self.similarities if one.layer == self.layers - 1},
            "sample": "mean over a text's tokens" if self.pooled else "token",
            "samples": self.samples,
            "texts": self.texts,
            "width": self.width,
            "tokens": self.tokens,
        }

    def _summary(self, label: str) -> Row:
        modules = self.of(label)
        medians: dict[str, Any] = {
            f"median_{key}": median(_one_number(value(module, key)) for module in modules) for key in SUMMARISED
        }
        skipped = sum(item.adapter == label for item in self.skipped)
        return {"method": self.methods[label], "modules": len(modules), **medians, "skipped": skipped}

    def record(self) -> Row:
        return {
            "source": self.source,
            "summary": self.summary(),
            "modules": [asdict(module) for module in self.modules],
            "cka": [one.record() for one in self.similarities],
        }


def _one_number(measured: Any) -> float | None:
    return measured.get("mean") if isinstance(measured, Mapping) else measured


def run(
    recorded: Recorded, *, modules: str | None = None, progress: Callable[[list], Iterable] = iter
) -> ActivationsResult:
    """Shares of every run's layers, and CKA between all runs and the base.

    Args:
        recorded: activations of runs of one base model on the same texts, as `training.activations.record` gives them.
        modules: a regular expression; only layers whose name it matches are measured.
        progress: wraps the list of layers with hidden states.

    Raises:
        InputError: labels repeat, layers or samples differ between runs, there are fewer than 4 samples, or `modules`
            is not a regular expression or matches no layer.
    """
    labels = ["base", *(one.label for one in recorded.runs)]
    if len(set(labels)) < len(labels):
        raise InputError("two runs go by one name", found=", ".join(labels), hint="name each folder once")
    states = {"base": recorded.base, **{one.label: one.hidden for one in recorded.runs}}
    if len({tuple(state.shape for state in each) for each in states.values()}) > 1:
        raise InputError(
            "the runs' hidden states do not belong together",
            found="; ".join(f"{label}: {len(each)} of {each[0].shape}" for label, each in states.items()),
            expected="runs of one base model on the same texts",
        )
    names = dict.fromkeys(layer.name for one in recorded.runs for layer in one.layers)
    types, wanted = module_types(names), set(choose(names, modules))
    responses = [
        response(one.label, layer, types[layer.name])
        for one in recorded.runs
        for layer in one.layers
        if layer.name in wanted
    ]
    texts = recorded.texts
    layers = progress(list(range(len(recorded.base))))
    return ActivationsResult(
        runs=tuple(labels[1:]),
        methods={one.label: one.method for one in recorded.runs},
        modules=tuple(responses),
        similarities=tuple(one for layer in layers for one in _similarities(states, layer, texts)),
        skipped=tuple(item for one in recorded.runs for item in one.skipped),
        samples=len(texts),
        texts=len(np.unique(texts)),
        tokens=recorded.tokens,
        pooled=recorded.pooled,
        width=recorded.base[0].shape[1],
        source=recorded.source,
        notes=recorded.notes,
    )


def response(label: str, layer: LayerActivations, type: str) -> ModuleResponse:
    """The shares of one layer over its tokens, and those of a random ΔW."""
    update, base, total, inner, entering = layer.values.T
    d_out, d_in = layer.shape
    random = layer.update_norm**2 * entering / d_in  # E‖ΔW x‖² for a random ΔW of this norm

    def ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
        positive = under > 0
        return np.sqrt(over[positive] / under[positive])

    both = (update > 0) & (base > 0)
    cosine = inner[both] / np.sqrt(update[both] * base[both])
    chance = ratio(random, base)
    return ModuleResponse(
        run=label,
        name=layer.name,
        type=type,
        depth=depth(layer.name),
        shape=layer.shape,
        uses=layer.uses,
        tokens=len(update),
        share=_over_tokens(ratio(update, base)),
        share_of_output=_over_tokens(ratio(update, total)),
        cosine=_over_tokens(np.clip(cosine, -1, 1)),
        chance_share=float(chance.mean()) if len(chance) else None,
        chance_cosine=1 / math.sqrt(d_out),
        weight_ratio=layer.update_norm / layer.base_norm if layer.base_norm else None,
        update_gain=_gain(update, layer.update_norm, entering, d_in),
        base_gain=_gain(base, layer.base_norm, entering, d_in),
    )


def _gain(outgoing: np.ndarray, norm: float, entering: np.ndarray, d_in: int) -> float | None:
    """Root mean square of ‖M x‖ over that of a random M of the same norm."""
    random = norm**2 * float(entering.sum()) / d_in
    return math.sqrt(float(outgoing.sum()) / random) if random > 0 else None


def _over_tokens(values: np.ndarray) -> Mapping[str, float] | None:
    """Mean and quantiles; None where there is nothing."""
    if not len(values):
        return None
    quantiles = np.quantile(values, QUANTILES)
    return {"mean": float(values.mean()), **dict(zip(_NAMES, quantiles.tolist(), strict=True))}


def _similarities(states: Mapping[str, tuple[np.ndarray, ...]], layer: int, texts: np.ndarray) -> list[Similarity]:
    """CKA between every two models after one layer. Groups for the interval: whole texts, in a drawn order."""
    units = np.unique(texts)
    order = np.random.default_rng(0).permutation(len(units))
    groups = order[np.searchsorted(units, texts)] % min(cka.GROUPS, len(units))
    try:
        features = {label: cka.Features(each[layer], groups) for label, each in states.items()}
        return [
            Similarity(a, b, layer, cka.cka(features[a], features[b], len(units)))
            for a, b in itertools.combinations(features, 2)
        ]
    except ValueError as error:
        raise InputError(f"hidden states after layer {layer} cannot be compared", found=error) from None
