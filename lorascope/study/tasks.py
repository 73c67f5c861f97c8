"""The real tasks that studies share, so that a run which two studies need is trained once.

wordnet: 25 classes of WordNet nouns from their glosses, on MiniLM with a new head. Held-out and test texts are other
glosses. memorise: the same texts with classes drawn from each text's hash, scored on the training texts themselves:
what is learned can only be stored, so that capacity shows (`data.random_labels`).

Scale small cuts the encoder to its first three layers and takes a hundred steps; full is the whole encoder, two and a
half passes over the packaged texts. `--set model.name=... --set data.path=...` names others.
"""

from collections.abc import Mapping
from typing import Any

from lorascope.study.grid import Arm, StudyScale

HEAD_RATE = 2e-2  # of the new head, the same in every arm; alone, at scale small, 0.01 and 0.04 lose more
ALPHA = 16
LORA_RATES = (1e-3, 3.2e-3, 1e-2)  # half a decade apart; the sweep goes on from here
FULL_RATES = (1e-4, 3.2e-4, 1e-3)
SIZES = {  # layers, steps, texts in a step, tokens of a text, held-out texts (None: all)
    "smoke": (1, 4, 8, 16, 40),
    "small": (3, 100, 32, 32, None),
    "full": (None, 625, 32, 64, None),
}
MEMORISED = {"smoke": (16, 4), "small": (960, 180), "full": (2000, 1000)}  # texts, steps
HEAD: Mapping[str, Any] = {"method.name": "full", "method.train": []}
FULL: Mapping[str, Any] = {"method.name": "full", "method.embeddings": False}


def wordnet(name: str) -> dict[str, dict[str, Any]]:
    """The common config of the task at a scale."""
    layers, steps, batch, length, held_out = SIZES[name]
    return {
        "model": {
            "name": "minilm",
            "task_type": "SEQ_CLS",
            "head": "mean-pool",
            "dropout": 0.0,
            "num_hidden_layers": layers,
        },
        "data": {
            "path": "wordnet-classes",
            "max_train_samples": min(8000, steps * batch),
            "max_eval_samples": held_out,
            "max_length": length,
        },
        "optim": {"head_learning_rate": HEAD_RATE},
        "training": {"max_steps": steps, "per_device_train_batch_size": batch, "group_by_length": True},
    }


def memorise(name: str) -> dict[str, Any]:
    """The changes that make the task one of capacity."""
    texts, steps = MEMORISED[name]
    rows = {"data.random_labels": True, "data.max_train_samples": texts, "data.max_eval_samples": texts}
    return {**rows, "data.eval_split": "train", "training.max_steps": steps}


def scales(params: Mapping[str, Mapping[str, Any]], replicates: int = 5) -> dict[str, StudyScale]:
    """Scales of the WordNet task with a study's own sizes: of smoke two replicates, scored on a few held-out texts."""
    return {
        "smoke": StudyScale(wordnet("smoke"), 2, params["smoke"], test_split=None, conclusive=False),
        "small": StudyScale(wordnet("small"), replicates, params["small"]),
        "full": StudyScale(wordnet("full"), replicates, params["full"]),
    }


def lora(rank: int, name: str = "lora", targets: Any = "all-linear") -> dict[str, Any]:
    """Config changes for a LoRA of this rank with the fixed α."""
    return {"method.name": name, "method.rank": rank, "method.alpha": ALPHA, "method.targets": targets}


def head_arm(labels: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> Arm:
    """The frozen base with a trained head: what an adapter must improve on."""
    return Arm(labels, {**HEAD, **(changes or {})})


def full_arm(labels: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> Arm:
    """Full fine-tuning of everything but the embeddings."""
    return Arm(labels, {**FULL, **(changes or {})}, FULL_RATES)


PLUS_RATES = (1e-4, 3.2e-4, 1e-3)  # of A, where B's is a multiple of it
VARIANTS: Mapping[str, tuple[Mapping[str, Any], tuple[float, ...]]] = {  # r = 8; config changes, learning rates
    "LoRA": (lora(8), LORA_RATES),
    "rsLoRA": (lora(8, "rslora"), LORA_RATES),
    "LoRA+": ({**lora(8, "lora_plus"), "method.loraplus_lr_ratio": 16.0}, PLUS_RATES),
    "DoRA": (lora(8, "dora"), LORA_RATES),
    "PiSSA": ({**lora(8), "method.init": "pissa"}, LORA_RATES),
    "OLoRA": ({**lora(8), "method.init": "olora"}, LORA_RATES),
    "LoRA-FA": (lora(8, "lora_fa"), LORA_RATES),
}
# Why no verdict is drawn; said by two studies.
PAIRS_OUT_OF_REACH = (
    "An encoder cut to three layers was never trained for the pre-training's loss: every tuned LoRA (2.72 to 2.83) and "
    "full fine-tuning up to a rate of 1e-4 (2.68) is better at it than the base (2.85), so that it does not show what "
    "is lost by tuning."
)


def variant_arm(name: str) -> Arm:
    """One of VARIANTS, tuned; its label `method` is its name."""
    changes, rates = VARIANTS[name]
    return Arm({"method": name}, changes, rates)
