"""BitFit: the base's own biases are trained, and nothing else.

Ben Zaken, Ravfogel and Goldberg 2022, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
Language-models", arXiv 2106.10199, §3: b ← b + Δb for every bias, LayerNorms' among them; 0.08 % of BERT-large. §4.2:
the biases of the queries and of the feed-forward network's first layer alone, half of that, do nearly as well.

Biases that are there are trained; none is added, so Llama-like models have nothing to train. Learning rates: the paper
searches 1e-4 to 1e-3 (full fine-tuning: 1e-5 to 5e-5); 1.6e-3 on GPT-3 (Hu et al. 2021). PEFT has no BitFit.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from lorascope.adapt.base_params import BaseParam, BaseParamMethod
from lorascope.adapt.method import methods
from lorascope.architectures import FEEDFORWARD_INPUTS, QUERIES, ends_with
from lorascope.errors import InputError

Biases = Literal["all", "query-and-intermediate"]


@dataclass(frozen=True)
class BitFitConfig:
    """Settings of BitFit. On the packaged task (200 steps) 5e-3 is a good learning rate.

    Attributes:
        biases: "all", or the paper's smaller choice: the query's and the feed-forward network's first.
    """

    biases: Biases = "all"

    def __post_init__(self) -> None:
        if self.biases not in get_args(Biases):
            raise InputError("biases is unknown", found=repr(self.biases), expected=", ".join(get_args(Biases)))


@methods.register("bitfit")
class BitFit(BaseParamMethod):
    """Trains every bias of the base: b ← b + Δb."""

    name, paper = "bitfit", "Ben Zaken et al. 2022, arXiv 2106.10199"
    Config = BitFitConfig
    config: BitFitConfig

    def select(self, base_params: list[BaseParam]) -> list[BaseParam]:
        biases = [param for param in base_params if param.attribute == "bias" or param.attribute.endswith("_bias")]
        if not biases:
            raise InputError(
                "BitFit trains the biases of a model, and this one has none",
                hint="Llama-like models have none; layernorm, or ia3, is as small",
            )
        if self.config.biases == "all":
            return biases
        groups = [
            [param for param in biases if ends_with(param.name, (f"{name}.bias" for name in names))]
            for names in (QUERIES, FEEDFORWARD_INPUTS)
        ]
        if not all(groups):
            missing = "query" if not groups[0] else "first feed-forward"
            raise InputError(f"this model has no {missing} bias of its own", hint="say biases: all")
        return [param for param in biases if any(param in group for group in groups)]

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "biases": self.config.biases}
