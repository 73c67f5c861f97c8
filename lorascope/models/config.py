"""Which base model, and how it is loaded: the `model:` section of a config."""

from dataclasses import dataclass
from typing import Literal

TaskType = Literal["SEQ_CLS", "CAUSAL_LM"]


@dataclass(frozen=True)
class ModelConfig:
    """The base model.

    Attributes:
        name: a packaged model (minilm, smollm2, ...), a folder, or a hub name.
        task_type: sequence classification or causal language modelling, by PEFT's names.
        head: of a classifier, "native" (the architecture's own) or "mean-pool" (mean over tokens, one linear layer).
        revision: of a hub name, the branch, tag or commit.
        dropout: probability of every dropout inside the base model; null keeps the checkpoint's own.
        num_hidden_layers: only the first so many layers of the base; null keeps all.
        random_init: the architecture with fresh weights, drawn by the run's seed, in place of the pretrained ones: a
            control.
    """

    name: str
    task_type: TaskType = "SEQ_CLS"
    head: Literal["native", "mean-pool"] = "native"
    revision: str | None = None
    dropout: float | None = None
    num_hidden_layers: int | None = None
    random_init: bool = False

    def __post_init__(self) -> None:
        if not (self.dropout is None or 0 <= self.dropout < 1):
            raise ValueError("dropout must lie in [0, 1)")
        if not (self.num_hidden_layers is None or self.num_hidden_layers > 0):
            raise ValueError("num_hidden_layers must be positive")
