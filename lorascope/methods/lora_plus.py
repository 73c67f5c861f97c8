"""LoRA+: LoRA whose B learns λ times faster than its A.

Hayou, Ghosh, Yu 2024, "LoRA+: Efficient Low Rank Adaptation of Large Models", arXiv 2402.12354, §5. ΔW = s·B·A as in
LoRA; the optimiser alone differs. The rule stands in `rates.py`, and every method of the LoRA family takes it by its
option `loraplus_lr_ratio`; this is LoRA with it on.
"""

from dataclasses import dataclass
from typing import ClassVar

from lorascope.adapt.method import methods
from lorascope.methods.lora import LoRA, LoRAConfig


@dataclass(frozen=True)
class LoRAPlusConfig(LoRAConfig):
    """LoRA's settings, with B's rate 16 times A's.

    `optim.learning_rate` is A's, η_A, and the head's. The authors' scripts: RoBERTa-base on MNLI 5e-5 with a ratio of
    80, GPT-2 on MNLI 2e-4 with 10, and Adam's β₂ = 0.99; their advice is half of LoRA's rate, or less.

    Attributes:
        loraplus_lr_ratio: λ. The paper's practical value; larger for harder tasks.
    """

    loraplus_lr_ratio: float = 16.0


@methods.register("lora_plus")
class LoRAPlus(LoRA):
    """LoRA with B's learning rate λ times A's."""

    name, paper = "lora_plus", "Hayou, Ghosh, Yu 2024, arXiv 2402.12354"
    Config: ClassVar[type] = LoRAPlusConfig
