"""LayerNorm tuning: gain and offset of every normalisation are trained, and nothing else.

Zhao, Tu, Wei, Mei and Xie 2024, "Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning", arXiv
2312.11420, §3 (PEFT's LN Tuning): y = (x − μ)/σ ⊙ g + b with g (d,), b (d,) trained; RMSNorms have g alone. The paper
trains only the norms of the attention blocks, and PEFT those that `target_modules` names; here it is every one, final
norms included. Files are PEFT's.

The tuned values themselves are stored, as PEFT does, also of a bfloat16 base.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from lorascope.adapt.base_params import BaseParam, BaseParamMethod, fp32_master_weights, frozen_parameters
from lorascope.adapt.layer import TrainedPart
from lorascope.adapt.method import methods
from lorascope.errors import InputError


@dataclass(frozen=True)
class LayerNormConfig:
    """Settings of LayerNorm tuning. On the packaged task (200 steps) 5e-3 is a good learning rate.

    Attributes:
        bias: train the offsets as well as the gains.
    """

    bias: bool = True


@methods.register("layernorm")
class LayerNorm(BaseParamMethod):
    """Trains gain and offset of every LayerNorm and RMSNorm."""

    name, paper, format = "layernorm", "Zhao et al. 2024, arXiv 2312.11420", "peft"
    Config = LayerNormConfig
    config: LayerNormConfig

    def select(self, base_params: list[BaseParam]) -> list[BaseParam]:
        wanted = ("weight", "bias") if self.config.bias else ("weight",)
        chosen_params = [param for param in base_params if is_norm(param.module) and param.attribute in wanted]
        if not chosen_params:
            raise InputError("this model has no LayerNorm or RMSNorm with parameters to train")
        return chosen_params

    def install(self, model: nn.Module, seed: int) -> dict[str, TrainedPart]:
        return fp32_master_weights(self.select(frozen_parameters(model)), store_values=True)

    def settings(self) -> dict[str, Any]:
        return {"peft_type": "LN_TUNING"}


def is_norm(module: nn.Module) -> bool:
    """Whether it normalises over features: torch's two, and the architectures' own by their class names."""
    return isinstance(module, (nn.LayerNorm, nn.RMSNorm)) or type(module).__name__.endswith(("LayerNorm", "RMSNorm"))
