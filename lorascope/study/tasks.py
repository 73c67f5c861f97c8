"""The real tasks that studies share, so that a run which two studies need is trained once.

wordnet: 25 classes of WordNet nouns from their glosses, on MiniLM with a new head. Held-out and test texts are other
glosses. memorise: the same texts with classes drawn from each text's hash, scored on the training texts themselves:
what is learned can only be stored, so that capacity shows (`data.random_labels`).

Scale small cuts the encoder to its first three layers and takes a hundred steps; full is the whole encoder, two and a
half passes over the packaged texts. `--set model.name=... --set data.path=...` names others.

pronounce: a decoder, SmolLM2-135M, learns to say how words are pronounced, "abacus: AE1 B AH0 K AH0 S" (`cmudict`):
next-token loss on packed blocks, no new head, and the base as it is in place of a head alone. Scale small-lm has all 30
layers; its studies share one grid, in the same order, so that one pass over it serves all of them. smoke-lm shows that
a study runs on it.
"""

from collections.abc import Mapping
from typing import Any

from lorascope.study.grid import DECODER, ENCODER, Arm, StudyScale

HEAD_RATE = 2e-2  # of the new head, the same in every arm; alone, at scale small, 0.01 and 0.04 lose more
ALPHA = 16
LORA_RATES = (1e-3, 3.2e-3, 1e-2)  # half a decade apart; the sweep goes on from here
FULL_RATES = (1e-4, 3.2e-4, 1e-3)
SIZES = {  # layers, steps, texts in a step, tokens of a text, held-out texts (None: all)
    "smoke": (1, 4, 8, 16, 40),
    "small": (3, 100, 32, 32, None),
    "full": (None, 625, 32, 64, None),
}
LORA_LM_RATES = (5e-4, 1.6e-3, 5e-3)  # half a decade apart: of arms that show what the rate does
FULL_LM_RATES = (3.2e-5, 1e-4, 3.2e-4)
LORA_LM_START = (2.8e-3, 5e-3, 9e-3)  # of sweeps, around the best at r = 64 of the three above in one replicate, and as
FULL_LM_START = (1.8e-4, 3.2e-4, 5.6e-4)  # close as a sweep ends (`tuning.NEAR`); it goes on where the best is an end
LM_SIZES = {  # layers, steps, training words (of some 14 tokens), held-out words (None: all 400)
    "smoke-lm": (2, 2, 200, 40),
    "small-lm": (None, 150, 6000, None),
}
LM_RANKS = (64, 8, 4, 1)  # of the decoder's grid, in the order in which it is run: what is compared most first
BF16 = True  # the decoder's frozen base, and what is computed; what is trained stays float32
MEMORISED = {"smoke": (16, 4), "small": (960, 180), "full": (2000, 1000)}  # texts, steps
HEAD: Mapping[str, Any] = {"method.name": "full", "method.train": []}
FULL: Mapping[str, Any] = {"method.name": "full", "method.embeddings": False}
UNTRAINED: Mapping[str, Any] = {"method.name": "lora", "method.rank": 1, "training.max_steps": 0}  # ΔW = 0


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


def pronounce(name: str) -> dict[str, dict[str, Any]]:
    """The common config of the decoder's task at a scale."""
    layers, steps, words, held_out = LM_SIZES[name]
    return {
        "model": {"name": "smollm2", "task_type": "CAUSAL_LM", "dropout": 0.0, "num_hidden_layers": layers},
        "data": {
            "path": "cmudict",
            "max_train_samples": words,
            "max_eval_samples": held_out,
            "max_length": 64,
            "add_eos_token": False,  # lines end by themselves
        },
        "training": {
            "max_steps": steps,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 8,
            "bf16": BF16,
        },
    }


def scales(params: Mapping[str, Mapping[str, Any]], replicates: int = 5) -> dict[str, StudyScale]:
    """Scales of the WordNet task with a study's own sizes: of smoke two replicates, scored on a few held-out texts; and
    of the decoder's task, where the study has sizes for "small-lm", which smoke-lm takes if it has none of its own."""
    return _encoder_scales(params, replicates) | (_decoder_scales(params) if "small-lm" in params else {})


def _decoder_scales(params: Mapping[str, Mapping[str, Any]]) -> dict[str, StudyScale]:
    common: dict[str, Any] = {"testbed": DECODER, "by_arm": True}
    small, smoke = params["small-lm"], params.get("smoke-lm", params["small-lm"])
    return {
        "smoke-lm": StudyScale(pronounce("smoke-lm"), 2, smoke, test_split=None, conclusive=False, **common),
        "small-lm": StudyScale(pronounce("small-lm"), 3, small, **common),
    }


def _encoder_scales(params: Mapping[str, Mapping[str, Any]], replicates: int) -> dict[str, StudyScale]:
    return {
        "smoke": StudyScale(wordnet("smoke"), 2, params["smoke"], test_split=None, conclusive=False),
        "small": StudyScale(wordnet("small"), replicates, params["small"]),
        "full": StudyScale(wordnet("full"), replicates, params["full"]),
    }


def lora(rank: int, name: str = "lora", targets: Any = "all-linear") -> dict[str, Any]:
    """Config changes for a LoRA of this rank with the fixed α."""
    return {"method.name": name, "method.rank": rank, "method.alpha": ALPHA, "method.targets": targets}


def easy_task(scale: StudyScale) -> str:
    """What the easy task, in contrast to memorising, is called on the scale's test bed."""
    return "cmudict" if scale.testbed == DECODER else "wordnet"


def rates_of_lora(scale: StudyScale) -> tuple[float, ...]:
    """The rates that a LoRA's sweep begins with, on the scale's test bed."""
    return LORA_LM_START if scale.testbed == DECODER else LORA_RATES


def rates_of_full(scale: StudyScale) -> tuple[float, ...]:
    """The same of full fine-tuning."""
    return FULL_LM_START if scale.testbed == DECODER else FULL_RATES


def reference_arm(scale: StudyScale, labels: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> Arm:
    """What gains are counted from: the frozen base with a trained head, or a decoder as it is."""
    return Arm(labels, UNTRAINED) if scale.testbed == DECODER else head_arm(labels, changes)


def head_arm(labels: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> Arm:
    """The frozen base with a trained head: what an adapter must improve on."""
    return Arm(labels, {**HEAD, **(changes or {})})


def full_arm(
    labels: Mapping[str, Any], changes: Mapping[str, Any] | None = None, rates: tuple[float, ...] = FULL_RATES
) -> Arm:
    """Full fine-tuning of everything but the embeddings."""
    return Arm(labels, {**FULL, **(changes or {})}, rates)


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
HIGH = 64  # r of rsLoRA on the decoder, where its claim is of high ranks, and of the LoRA that it is compared with
HIGH_LORA, HIGH_RSLORA = f"LoRA, r = {HIGH}", f"rsLoRA, r = {HIGH}"
PLUS_LM_RATES = (1.6e-4, 5e-4, 1.6e-3)
LM_VARIANTS: Mapping[str, tuple[Mapping[str, Any], tuple[float, ...]]] = {
    **{name: (changes, LORA_LM_START) for name, (changes, _) in VARIANTS.items() if name != "rsLoRA"},
    "LoRA+": (VARIANTS["LoRA+"][0], PLUS_LM_RATES),
    HIGH_LORA: (lora(HIGH), LORA_LM_START),
    HIGH_RSLORA: (lora(HIGH, "rslora"), LORA_LM_START),
}
# Why no verdict is drawn; said by two studies.
PAIRS_OUT_OF_REACH = (
    "An encoder cut to three layers was never trained for the pre-training's loss: every tuned LoRA (2.72 to 2.83) and "
    "full fine-tuning up to a rate of 1e-4 (2.68) is better at it than the base (2.85), so that it does not show what "
    "is lost by tuning."
)


def variant_arm(name: str, testbed: str = ENCODER) -> Arm:
    """One of VARIANTS, or of a decoder's LM_VARIANTS, tuned; its label `method` is its name."""
    changes, rates = (LM_VARIANTS if testbed == DECODER else VARIANTS)[name]
    return Arm({"method": name}, changes, rates)
