"""What the base's config says of the model: its task by PEFT's names, and what shares the embeddings' weight."""

from collections.abc import Iterable, Mapping
from typing import Any

from lorascope.architectures import PEFT_HEADS, TOKEN_EMBEDDINGS
from lorascope.architectures.classes import CONDITIONAL, is_masked, output_of_class, task_of_class
from lorascope.weights.adapter import Skipped
from lorascope.weights.checkpoint import Checkpoint
from lorascope.weights.delta import Pair

_SAME = "tied: the same numbers as "


def task_type(config: Mapping[str, Any]) -> str | None:
    """PEFT's `task_type` of the class that the config names; None for a bare model, and where it names none."""
    name = _architecture(config)
    if name.endswith(CONDITIONAL):
        return "SEQ_2_SEQ_LM" if config.get("is_encoder_decoder", True) and "text_config" not in config else "CAUSAL_LM"
    return task_of_class(name)


def task_head(base: Checkpoint, task: str | None) -> frozenset[str]:
    """The base's parameters in heads of which PEFT wants the whole weight in every adapter of a task: it takes all
    modules whose names end so for `modules_to_save`."""
    heads = PEFT_HEADS.get(task or "", ())
    return frozenset(n for n in base.stored if any(part.endswith(heads) for part in n.split(".")[:-1] if heads))


def tied_modules(base: Checkpoint, pairs: Iterable[Pair], skipped: Iterable[Skipped]) -> dict[str, str]:
    """Modules that share the weight of a pair, and are in no pair themselves: the pair's name by theirs.

    The output layer of a tied model is not in its file, or is there with the same numbers: a LoRA on the embedding
    alone would leave it as it was.
    """
    pairs = list(pairs)
    tied = {}
    by_parameter = {pair.parameter: pair.name for pair in pairs}
    for item in skipped:
        if item.reason.startswith(_SAME):
            twin = item.reason.removeprefix(_SAME).partition(",")[0]
            name = by_parameter.get(twin) or by_parameter.get(base.resolve(twin) or "")
            if name:
                tied[item.name.removesuffix(".weight")] = name
    output = _output(base)
    for pair in pairs:
        if output and pair.name.rpartition(".")[2] in TOKEN_EMBEDDINGS and pair.embedding and output not in tied:
            tied[output] = pair.name
    return {name: of for name, of in tied.items() if name not in {pair.name for pair in pairs}}


def is_shared_further(base: Checkpoint, pair: Pair) -> bool:
    """Whether an embedding is also that of the encoder and of the decoder, or of an output layer of unknown name."""
    if not pair.embedding or pair.name.rpartition(".")[2] not in TOKEN_EMBEDDINGS:
        return False
    both = bool(base.config.get("is_encoder_decoder")) and pair.name.rpartition(".")[2] == "shared"
    name = _architecture(base.config)
    return both or (is_masked(name) and output_of_class(name) is None and _is_tied(base.config))


def _output(base: Checkpoint) -> str | None:
    """The output layer that is tied to the embeddings and not in the file; None where there is none."""
    name = _architecture(base.config)
    if not _is_tied(base.config):
        return None
    output = output_of_class(name)
    return output if output and f"{output}.weight" not in base.stored else None


def _is_tied(config: Mapping[str, Any]) -> bool:
    inner = config.get("text_config")
    ties = [part.get("tie_word_embeddings") for part in (config, inner) if isinstance(part, Mapping)]
    return False not in ties  # transformers ties by default


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
