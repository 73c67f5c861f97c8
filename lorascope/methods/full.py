"""Full fine-tuning: every parameter of the base is trained, or those that `train` and `freeze` leave.

Master weights are float32, also of a base in bfloat16, which then sees them rounded. The file holds them, so that
ΔW = T − W is exact; of a base narrower than float32 it holds ΔW itself (`adapt/base_params.py` says why). As large as
the model: the `lorascope merge` of such a file is an ordinary model folder.

Learning rates lie far below an adapter's: 5e-6 on GPT-3 (Hu et al. 2021, arXiv 2106.09685, §5), 1e-5 to 5e-5 on
BERT-like models; AdamW's weight decay, 0 by default, pulls towards zero and not towards the base.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lorascope.adapt.base_params import BaseParam, BaseParamMethod, select_by_name
from lorascope.adapt.layer import TrainedPart
from lorascope.adapt.method import methods
from lorascope.errors import InputError, preview
from lorascope.patterns import Pattern


@dataclass(frozen=True)
class FullConfig:
    """Settings of full fine-tuning. On the packaged task (MiniLM, 200 steps) 5e-4 is a good learning rate.

    Attributes:
        train: regular expressions; only parameters in whose names one of them is found are trained. null: all. An empty
            list: none, so that only modules_to_save train (a new head on a frozen base, to compare others with).
        freeze: regular expressions; parameters in whose names one of them is found stay as they are.
        embeddings: train the embeddings, too.
    """

    train: tuple[str, ...] | None = None
    freeze: tuple[str, ...] = ()
    embeddings: bool = True


@methods.register("full")
class Full(BaseParamMethod):
    """Trains all of the base: T = W + ΔW without any restriction."""

    name, paper = "full", "Howard and Ruder 2018, arXiv 1801.06146"
    Config = FullConfig
    config: FullConfig

    def select(self, base_params: list[BaseParam]) -> list[BaseParam]:
        if not self.config.embeddings:
            base_params = [param for param in base_params if not param.is_embedding]
        return select_by_name(base_params, self.config.train, self.config.freeze)

    def install(self, model: nn.Module, seed: int) -> dict[str, TrainedPart]:
        refuse_codes(model, self.name, self.config.train, self.config.freeze)
        return super().install(model, seed)

    def settings(self) -> dict[str, Any]:
        config = self.config
        train = None if config.train is None else list(config.train)
        return {**super().settings(), "train": train, "freeze": list(config.freeze), "embeddings": config.embeddings}


def refuse_codes(model: nn.Module, method: str, train: Sequence[str] | None, freeze: Sequence[str]) -> None:
    """InputError where a parameter that `train` and `freeze` choose is stored as codes, of four or eight bits, which no
    optimiser can move: what is left to train would be no full fine-tuning.
    """
    codes = {
        name: parameter.dtype
        for name, parameter in model.named_parameters()
        if not parameter.is_floating_point() or parameter.element_size() < 2
    }
    chosen = [Pattern(each, "train") for each in train or ()]
    kept = [Pattern(each, "freeze") for each in freeze]
    wanted = [
        name
        for name in codes
        if (train is None or any(each.search(name) for each in chosen)) and not any(each.search(name) for each in kept)
    ]
    if wanted:
        raise InputError(
            f"{method} cannot train a quantised base",
            found=f"{len(wanted)} parameters stored as codes, {preview(wanted, 2)} ({codes[wanted[0]]})",
            hint="name the model as it was before it was quantised, or use method: lora, which leaves the codes alone",
        )
