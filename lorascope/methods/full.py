"""Full fine-tuning: every parameter of the base is trained, or those that `train` and `freeze` leave.

Masters are float32, also of a base in bfloat16, which then sees them rounded. The file holds them, so that ΔW = T − W
is exact; of a base narrower than float32 it holds ΔW itself (`methods/own.py` says why). As large as the model: the
`lorascope merge` of such a file is an ordinary model folder.

Learning rates lie far below an adapter's: 5e-6 on GPT-3 (Hu et al. 2021, arXiv 2106.09685, §5), 1e-5 to 5e-5 on
BERT-like models; AdamW's weight decay, 0 by default, pulls towards zero and not towards the base.
"""

from dataclasses import dataclass
from typing import Any

from lorascope.methods.base import methods
from lorascope.methods.own import Own, OwnMethod, chosen


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
class Full(OwnMethod):
    """Trains all of the base: T = W + ΔW without any restriction."""

    name, paper = "full", "Howard and Ruder 2018, arXiv 1801.06146"
    Config = FullConfig
    config: FullConfig

    def select(self, owns: list[Own]) -> list[Own]:
        if not self.config.embeddings:
            owns = [own for own in owns if not own.is_embedding]
        return chosen(owns, self.config.train, self.config.freeze)

    def settings(self) -> dict[str, Any]:
        config = self.config
        train = None if config.train is None else list(config.train)
        return {**super().settings(), "train": train, "freeze": list(config.freeze), "embeddings": config.embeddings}
