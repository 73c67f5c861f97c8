"""BitFit: the base's own biases are trained, and nothing else.

Ben Zaken, Ravfogel and Goldberg 2022, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
Language-models", arXiv 2106.10199, §3: b ← b + Δb for every bias, LayerNorms' among them; 0.08 % of BERT-large. §4.2:
the biases of the queries and of the feed-forward network's first layer alone, half of that, do nearly as well.

Biases that are there are trained; none is added, so Llama-like models have nothing to train. Learning rates: the paper
searches 1e-4 to 1e-3 (full fine-tuning: 1e-5 to 5e-5); 1.6e-3 on GPT-3 (Hu et al. 2021). PEFT has no BitFit.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lorascope.errors import InputError
from lorascope.methods.base import methods
from lorascope.methods.own import Own, OwnMethod

Biases = Literal["all", "query-and-intermediate"]
_QUERY = re.compile(r"(?:^|\.)(?:query|q_proj|q_lin|q)\.bias$")
_INTERMEDIATE = re.compile(r"(?:^|\.)(?:intermediate\.dense|fc1|lin1|c_fc|dense_h_to_4h|up_proj|wi)\.bias$")


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
class BitFit(OwnMethod):
    """Trains every bias of the base: b ← b + Δb."""

    name, paper = "bitfit", "Ben Zaken et al. 2022, arXiv 2106.10199"
    Config = BitFitConfig
    config: BitFitConfig

    def select(self, owns: list[Own]) -> list[Own]:
        biases = [own for own in owns if own.attribute == "bias" or own.attribute.endswith("_bias")]
        if not biases:
            raise InputError(
                "BitFit trains the biases of a model, and this one has none",
                hint="Llama-like models have none; layernorm, or ia3, is as small",
            )
        if self.config.biases == "all":
            return biases
        groups = [[own for own in biases if rule.search(own.name)] for rule in (_QUERY, _INTERMEDIATE)]
        if not all(groups):
            missing = "query" if not groups[0] else "first feed-forward"
            raise InputError(f"this model has no {missing} bias of its own", hint="say biases: all")
        return [own for own in biases if any(own in group for group in groups)]

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "biases": self.config.biases}
