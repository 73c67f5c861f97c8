"""LoRA-drop: a LoRA of its own for the layers that a short trial shows to matter, one shared LoRA for all others.

Zhou et al. 2024, arXiv 2402.07721. There is no code of the authors'; this is the paper's method, and where the paper is
silent, what is said here.

1. A sample of the training texts is drawn, with every class in proportion (`sample_fraction`).
2. A LoRA in every layer is trained on it briefly (`sample_epochs`), with the run's own settings.
3. Each layer is scored on the same sample by the size of its output: g_i = Σ_x ‖ΔW_i x_i‖², summed over texts and
   tokens, x_i being what enters layer i; I_i = g_i/Σ_j g_j. A layer is one adapted matrix, and all of them are compared
   with each other.
4. The fewest layers whose I sum to `threshold` keep a LoRA of their own.
5. All others share one A and one B for each shape (d_out, d_in) among them, whose gradients add up. `rest: drop` gives
   them none at all.
6. Training starts afresh, from the initialisation. A shared pair starts as its first layer's would have.

r·(d_in + d_out) numbers are trained for each layer kept and for each shape shared. A file holds the shared pair once
for every layer that uses it, since PEFT has no sharing: it is a plain LoRA, and loads in PEFT as one. Loaded here
again, its layers no longer share. Steps 1 to 4 are a `Method.calibrate`: without one (a method that is injected by
hand) every layer has its own LoRA, until `apply_calibration({"kept": [...]})`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import fsum
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lorascope.adapt.calibration import Calibration
from lorascope.adapt.inject import layer_generator
from lorascope.adapt.layer import AdaptedLayer, Site
from lorascope.adapt.low_rank import LowRankDelta
from lorascope.adapt.method import methods
from lorascope.adapt.protocols import AdaptedModel
from lorascope.errors import InputError, LorascopeError, preview
from lorascope.methods.initialise import initialisation
from lorascope.methods.lora import LoRA, LoRAConfig

Rest = Literal["share", "drop"]


@dataclass(frozen=True)
class LoRADropConfig(LoRAConfig):
    """LoRA's settings, and how layers are chosen. The rate is LoRA's; with few layers kept, twice that does no harm.

    Attributes:
        threshold: T, the share of the importance that the layers kept must hold; the paper's is 0.9.
        sample_fraction: the share of the training texts that layers are scored on.
        sample_epochs: passes over them in the trial.
        rest: what the other layers get: "share" one LoRA for each shape, or "drop", none.
        keep: paths of the layers to keep, or their ends; with it there is no trial.
    """

    threshold: float = 0.9
    sample_fraction: float = 0.1
    sample_epochs: float = 3.0
    rest: Rest = "share"
    keep: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("threshold", "sample_fraction"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise InputError(f"{name} is not a valid share", found=getattr(self, name), expected="0 < share ≤ 1")
        if not self.sample_epochs > 0:
            raise InputError("sample_epochs is too small", found=self.sample_epochs, expected="more than 0")
        if self.rest not in get_args(Rest):
            raise InputError("rest is unknown", found=repr(self.rest), expected=", ".join(get_args(Rest)))
        if self.rest == "share" and initialisation(self.init).from_base:
            raise InputError(
                f"layers cannot share a LoRA that starts from their weights ({self.init})", hint="say rest: drop"
            )


@methods.register("lora_drop")
class LoRADrop(LoRA):
    """Trains A and B of the layers that matter, and one pair for the others of each shape."""

    name, paper = "lora_drop", "Zhou et al. 2024, arXiv 2402.07721"
    Config = LoRADropConfig
    config: LoRADropConfig
    calibrates = True
    layer_kinds = ("linear", "conv1d", "embedding")

    def __init__(self, config: LoRADropConfig | None = None, **settings: Any):
        super().__init__(config, **settings)
        self.kept: tuple[str, ...] | None = None  # None: not chosen yet, every layer has its own
        self.scores: dict[str, float] | None = None  # I by layer

    def total_parameter_count(self, model: nn.Module, sites: list[Site]) -> int:
        kept = self.kept if self.kept is not None else self._named([site.name for site in sites])
        rest = [site for site in sites if site.name not in kept]
        if self.config.rest == "drop":
            rest = []
        shared = {_shape(site): site for site in rest}
        kept_sites = [site for site in sites if site.name in kept]
        return sum(self.parameter_count(site) for site in (*kept_sites, *shared.values()))

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), **({} if self.kept is None else {"lora_drop": self._learned()})}

    def summary(self) -> dict[str, Any]:
        return {} if self.kept is None else self._learned()

    def calibrate(self, calibration: Calibration) -> dict[str, Any]:
        injected = self._injected()
        if self.config.keep is not None:
            return {"kept": self._named(list(injected.layers))}
        sample = stratified(calibration.length, calibration.labels, self.config.sample_fraction, calibration.seed)
        calibration.train(sample, self.config.sample_epochs)
        scores = importances(output_sizes(injected, sample, calibration))
        return {"kept": fewest(scores, self.config.threshold), "scores": scores}

    def apply_calibration(self, learned: Mapping[str, Any]) -> None:
        """Share or drop the LoRAs of the layers that are not in `learned["kept"]`.

        Raises:
            InputError: it names layers that are not there, or keeps none where the others are dropped.
        """
        injected = self._injected()
        self.kept, self.scores = tuple(learned["kept"]), learned.get("scores")
        unknown_keys = [name for name in self.kept if name not in injected.layers]
        if unknown_keys or not (self.kept or self.config.rest == "share"):
            raise InputError(
                "the layers to keep are not the adapted ones", found=preview(unknown_keys or ["none"]),
                expected=preview(injected.layers),
            )  # fmt: skip
        rest = {name: layer for name, layer in injected.layers.items() if name not in self.kept}
        if self.config.rest == "drop":
            injected.drop(rest)
            return
        first: dict[tuple, AdaptedLayer] = {}
        for layer in rest.values():
            owner = first.setdefault(_shape_of(layer), layer)
            layer.delta.A, layer.delta.B = owner.delta.A, owner.delta.B

    def _learned(self) -> dict[str, Any]:
        settings = {"threshold": self.config.threshold, "rest": self.config.rest, "kept": list(self.kept or ())}
        return settings if self.scores is None else {**settings, "scores": self.scores}

    def _named(self, layers: Sequence[str]) -> list[str]:
        """The layers that `keep` names, all of them where it is not given. InputError where a name means none."""
        keep = self.config.keep
        if keep is None:
            return list(layers)
        for name in keep:
            if not any(_ends(layer, name) for layer in layers):
                raise InputError(f"keep: no adapted layer is named {name!r}", expected=preview(layers))
        return [layer for layer in layers if any(_ends(layer, name) for name in keep)]

    def _injected(self) -> AdaptedModel:
        assert self.injected is not None, "the method is not in a model yet"
        return self.injected


def stratified(length: int, labels: Sequence[int] | None, fraction: float, seed: int) -> list[int]:
    """About fraction·length of the texts, at least one, drawn without replacement and sorted.

    With labels, every class has the share of its own texts, to within one text, that keeps the total.
    """
    order = torch.randperm(length, generator=layer_generator(seed, "the sample", "lora_drop")).numpy()
    total = max(1, round(fraction * length))
    classes = np.zeros(length, dtype=int) if labels is None else np.unique(labels, return_inverse=True)[1]
    wanted = np.bincount(classes) * (total / length)
    count = np.floor(wanted).astype(int)
    # the largest remainders get the texts that are left; of equals, the first class
    count[np.argsort(count - wanted, kind="stable")[: total - count.sum()]] += 1
    return sorted(int(i) for c, n in enumerate(count) for i in order[classes[order] == c][:n])


def output_sizes(injected: AdaptedModel, sample: Sequence[int], calibration: Calibration) -> dict[str, float]:
    """g_i = Σ_x ‖ΔW_i x_i‖² of every layer over the sample, summed in float64."""
    sums = {name: torch.zeros((), dtype=torch.float64) for name in injected.layers}

    def add(name: str, layer: AdaptedLayer, inputs: tuple[Tensor, ...]) -> None:
        sums[name] += layer.delta(inputs[0]).double().square().sum().cpu()

    hooks = [layer.register_forward_pre_hook(partial(add, name)) for name, layer in injected.layers.items()]
    try:
        calibration.look(sample)
    finally:
        for hook in hooks:
            hook.remove()
    device = next(iter(injected.trainable().values())).device
    return dict(zip(sums, calibration.agree(torch.stack(list(sums.values())).to(device)).tolist(), strict=True))


def importances(sizes: Mapping[str, float]) -> dict[str, float]:
    """I_i = g_i/Σg. LorascopeError where the trial left nothing to compare."""
    total = fsum(sizes.values())
    if not (np.isfinite(total) and total > 0):
        raise LorascopeError(
            "LoRA-drop's trial left no updates that could be compared", found=f"a total size of {total}",
            hint="train it longer with method.sample_epochs, or lower optim.learning_rate where it diverged",
        )  # fmt: skip
    return {name: size / total for name, size in sizes.items()}


def fewest(scores: Mapping[str, float], threshold: float) -> list[str]:
    """The fewest layers whose scores sum to the threshold, in the order of `scores`; of equals, the first.

    A sum counts as reached where it falls short by no more than the rounding of the shares.
    """
    ranked = sorted(scores, key=lambda name: -scores[name])
    enough = threshold - len(ranked) * np.finfo(float).eps
    count = next((k for k in range(1, len(ranked)) if fsum(scores[name] for name in ranked[:k]) >= enough), len(ranked))
    return [name for name in scores if name in ranked[:count]]


def _ends(path: str, name: str) -> bool:
    return path == name or path.endswith("." + name)


def _shape(site: Site) -> tuple:
    return site.kind == "embedding", site.d_in, site.d_out


def _shape_of(layer: AdaptedLayer) -> tuple:
    delta = cast(LowRankDelta, layer.delta)
    return layer.embedding, delta.A.shape[1], delta.B.shape[0]
