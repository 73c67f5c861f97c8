"""LoRA and rsLoRA: ΔW = s·B·A, with A (r, d_in) and B (d_out, r) trained.

LoRA: Hu et al. 2021, arXiv 2106.09685, §4.1: s = α/r, A random and B zero, so that training starts at the base model.
The paper draws a Gaussian A; its code, and PEFT's, draw kaiming_uniform(a=√5), which is U(−1/√d_in, 1/√d_in), for every
layer but embeddings. `init` offers both, and the other starts of `initialise.py`.

rsLoRA: Kalajdzievski 2023, arXiv 2312.03732: s = α/√r and nothing else, so that the update does not shrink as r grows.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from lorascope.adapt.base_params import base_parameters, frozen_parameters
from lorascope.adapt.convolution import LowRankConvDelta
from lorascope.adapt.inject import layer_generator
from lorascope.adapt.layer import Site, TrainedPart
from lorascope.adapt.layers import check_dropout, check_rank
from lorascope.adapt.low_rank import LowRankDelta, LowRankEmbeddingDelta
from lorascope.adapt.method import Method, methods
from lorascope.adapt.parameter_parts import LowRankParameter, TrainedRows, map_sizes, matching
from lorascope.adapt.protocols import AdaptedModel
from lorascope.adapt.rates import loraplus_groups
from lorascope.errors import InputError
from lorascope.methods.initialise import initialisation


@dataclass(frozen=True)
class LoRAConfig:
    """Settings of LoRA.

    Attributes:
        rank: r.
        alpha: α; the scale is α/r, or α/√r with `use_rslora`.
        dropout: probability of dropping an entry of the update's input (and only the update's) while training.
        use_rslora: divide by √r.
        init: how A and B start: kaiming, gaussian, a-orthonormal, b-orthonormal, orthogonal, a-zero, zero-both, pissa,
            pissa_niter_k or olora; see `initialise.py`.
        loraplus_lr_ratio: B's learning rate over A's, LoRA+'s λ; null leaves them equal. See `rates.py`.
        loraplus_lr_embedding: with a ratio, the rate of embeddings' A and B.
        target_parameters: names of parameters to put A and B on, such as mlp.experts.gate_up_proj: matrices, or stacks
            of experts' matrices. Without targets, these alone.
        trainable_token_indices: rows of the input embedding to train as they are.
    """

    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    use_rslora: bool = False
    init: str = "kaiming"
    loraplus_lr_ratio: float | None = None
    loraplus_lr_embedding: float = 1e-6
    target_parameters: tuple[str, ...] = ()
    trainable_token_indices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_rank(self.rank)
        if self.target_parameters and self.dropout:
            raise InputError("dropout cannot reach the input of target_parameters", hint="set it to 0")
        check_dropout(self.dropout)
        if self.loraplus_lr_ratio is not None and not self.loraplus_lr_ratio > 0:
            raise InputError("loraplus_lr_ratio is not positive", found=self.loraplus_lr_ratio)
        if not self.loraplus_lr_embedding > 0:
            raise InputError("loraplus_lr_embedding is not positive", found=self.loraplus_lr_embedding)
        initialisation(self.init)

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.use_rslora else self.rank)


@dataclass(frozen=True)
class RsLoRAConfig(LoRAConfig):
    """LoRA's settings, with the scale α/√r."""

    use_rslora: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.use_rslora:
            raise InputError("rslora without use_rslora is plain LoRA", hint="say method: lora")


@methods.register("lora")
class LoRA(Method):
    """Trains A and B of every layer: r·(d_in + d_out) parameters each."""

    name, paper, kind = "lora", "Hu et al. 2021, arXiv 2106.09685", "low_rank"
    Config: ClassVar[type] = LoRAConfig
    config: LoRAConfig
    layer_kinds: ClassVar[tuple[str, ...]] = ("linear", "conv1d", "embedding", "conv")

    def make(self, site: Site, generator: torch.Generator) -> LowRankDelta:
        (a, b), from_base = self.start(site, generator)
        if site.kind == "embedding":
            return LowRankEmbeddingDelta(a, b, self.config.scale, site.weight.dtype, site.padding_idx, from_base)
        if site.kind == "conv":
            return self._convolution(site, a, b, from_base)
        return LowRankDelta(a, b, self.config.scale, self.config.dropout, from_base)

    def _convolution(self, site: Site, a: Tensor, b: Tensor, from_base: bool) -> LowRankDelta:
        if from_base:
            raise InputError(
                f"init {self.config.init} takes directions from a matrix", found=f"{site.name}, a convolution"
            )
        return LowRankConvDelta(a, b, self.config.scale, self.config.dropout, site.layer)

    def start(self, site: Site, generator: torch.Generator) -> tuple[tuple[Tensor, Tensor], bool]:
        """A (r, d_in) and B (d_out, r), and whether their product is subtracted from the base weight.

        Both are master weights, in float32 or wider.
        """
        init = initialisation(self.config.init)
        a, b = init.factors(site, self.config.rank, self.config.scale, generator)
        return (a.to(site.master_dtype), b.to(site.master_dtype)), init.from_base

    def default_targets(self) -> str | tuple[str, ...]:
        return () if self.config.target_parameters else super().default_targets()

    def install(self, model: nn.Module, seed: int) -> dict[str, TrainedPart]:
        names, indices = self.config.target_parameters, self.config.trainable_token_indices
        if names and type(self).make is not LoRA.make:
            raise InputError(f"{self.name} has no target_parameters", hint="use lora or rslora")
        if names and self.config.init != "kaiming":
            raise InputError("target_parameters start as kaiming has it", found=f"init {self.config.init}")
        params = frozen_parameters(model) if names or indices else []
        parts: dict[str, TrainedPart] = {}
        for param in matching(params, names) if names else ():
            experts, d_out, d_in = map_sizes(param)
            generator = layer_generator(seed, param.name, self.salt())
            dtype = torch.promote_types(param.parameter.dtype, torch.float32)
            a = torch.empty(experts, self.config.rank, d_in).uniform_(-(d_in**-0.5), d_in**-0.5, generator=generator)
            b = torch.zeros(experts, d_out, self.config.rank)
            device = param.parameter.device
            a, b = a.to(device, dtype), b.to(device, dtype)
            parts[param.name] = LowRankParameter(param, a, b, self.config.scale).install()
        if indices:
            table = cast(Any, model).get_input_embeddings()
            weight = getattr(table, "weight", None)
            found = [param for param in params if param.parameter is weight]
            if not found or not isinstance(table, nn.Embedding):
                raise InputError("trainable_token_indices need an input embedding that is not adapted otherwise")
            parts[found[0].name] = TrainedRows(found[0], indices).install()
        return parts

    def parameter_count(self, site: Site) -> int:
        return self.config.rank * (site.d_in + site.d_out)

    def total_parameter_count(self, model: nn.Module, sites: list[Site]) -> int:
        names, indices = self.config.target_parameters, self.config.trainable_token_indices
        total = super().total_parameter_count(model, sites)
        for param in matching(base_parameters(model), names) if names else ():
            experts, d_out, d_in = map_sizes(param)
            total += experts * self.config.rank * (d_out + d_in)
        width = cast(Any, model).get_input_embeddings().weight.shape[1] if indices else 0
        return total + len(indices) * width

    def salt(self) -> str:
        return f"rank={self.config.rank}"

    def parameter_groups(self, injected: AdaptedModel, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        config = self.config
        if config.loraplus_lr_ratio is None:
            return super().parameter_groups(injected, lr, weight_decay)
        return loraplus_groups(injected, lr, weight_decay, config.loraplus_lr_ratio, config.loraplus_lr_embedding)

    def settings(self) -> dict[str, Any]:
        config = self.config
        return {
            "peft_type": "LORA",
            "r": config.rank,
            "lora_alpha": config.alpha,
            "lora_dropout": config.dropout,
            "use_rslora": config.use_rslora,
            **({"target_parameters": list(config.target_parameters)} if config.target_parameters else {}),
        }


@methods.register("rslora")
class RsLoRA(LoRA):
    """LoRA with the scale α/√r."""

    name, paper = "rslora", "Kalajdzievski 2023, arXiv 2312.03732"
    Config = RsLoRAConfig
