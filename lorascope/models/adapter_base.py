"""The base model that an adapter belongs to, opened to be merged into: its class, its head, its number of classes."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorascope.errors import InputError
from lorascope.inputs import read_json
from lorascope.models import assets
from lorascope.models import loading as models
from lorascope.models.card import ADAPTER_CONFIG, check_base, read_card
from lorascope.models.config import ModelConfig
from lorascope.models.dequantised import plain_folder, refuse_unreadable
from lorascope.weights.adapter import Adapter
from lorascope.weights.checkpoint import Checkpoint, open_checkpoint
from lorascope.weights.io import adapter_folder

CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}  # PEFT's task types
WITH_CLASSES = ("SEQ_CLS", "TOKEN_CLS")


def checkpoint_of(base: str) -> Checkpoint | None:
    """The base's files, which tell how adapters of it are meant; None where only transformers can open it.

    Raises:
        InputError: the base is quantised in a way that is not decoded.
    """
    try:
        checkpoint = open_checkpoint(assets.resolve(base))
    except InputError:
        return None
    refuse_unreadable(checkpoint, base)
    return checkpoint


def load_base(
    adapter: Adapter,
    folder: Path,
    base: str,
    dtype: torch.dtype | str = "auto",
    checkpoint: Checkpoint | None = None,
) -> tuple[nn.Module, Any]:
    """The base model that the adapter belongs to, with its head, and the model's tokenizer where it has one.
    Codes of a quantised base are turned into numbers.

    The card that `lorascope train` leaves with the adapter says which head; of another writer's adapter, its task
    type does, and where it names none, the class that the base was saved from.

    Args:
        checkpoint: the base's files, as `checkpoint_of` gives them.

    Raises:
        InputError: the model cannot be loaded, or nothing says of what class it is.
    """
    with plain_folder(checkpoint, base, str(dtype).removeprefix("torch.")) as place:
        model = _loaded(adapter, folder, base, place, dtype)
    config: Any = model.config
    config._name_or_path = base
    try:
        return model, models.load_tokenizer(ModelConfig(base))
    except (InputError, TypeError):  # some models come without one; they are merged all the same
        return model, None


def _loaded(adapter: Adapter, folder: Path, base: str, place: str, dtype: torch.dtype | str) -> nn.Module:
    """The model from `place`, which holds `base`, or the numbers of its codes."""
    card = read_card(folder)
    if card is None:
        model = _of_task(adapter, place, dtype)
    else:
        trained_on = card["model"]
        if trained_on.get("random_init"):
            raise InputError(f"{folder} was trained on random weights, which only its run's seed gives again")
        config = ModelConfig(
            place, trained_on["task_type"], trained_on["head"], num_hidden_layers=trained_on.get("num_hidden_layers")
        )
        if drawn := card.get("drawn"):
            torch.manual_seed(drawn["seed"])
        model = models.load_model(config, len(card["labels"]) or 2, dtype)
        check_base(card, model, base)
        name_classes(model, card["labels"])
    codes = [name for name, parameter in model.named_parameters() if not parameter.is_floating_point()]
    if codes:
        raise InputError(
            f"the base {base} is quantised", found=f"{codes[0]} holds codes", hint="give the original model"
        )
    return model


def base_named(folder: Path) -> str:
    """The base model that an adapter's own files name: what was trained with lorascope by its card, another by its
    config.

    Raises:
        InputError: they name none, or one that is not on this machine: a file that one was given reaches no network.
    """
    folder = adapter_folder(folder)
    card = read_card(folder)
    if card is not None and isinstance(name := card["model"].get("name"), str):
        return name
    path = (folder if folder.is_dir() else folder.parent) / ADAPTER_CONFIG
    name = read_json(path).get("base_model_name_or_path") if os.path.lexists(path) else None
    if not isinstance(name, str) or not name:
        raise InputError(f"the files of {folder} do not name its base model", hint="pass --base MODEL")
    if not Path(name).exists() and (Path(name).is_absolute() or checkpoint_of(name) is None):
        hint = "pass --base MODEL" if Path(name).is_absolute() else f"pass --base {name} to have it downloaded"
        raise InputError(f"the base model that {folder} names is not on this machine", found=name, hint=hint)
    return name


def seeded(folder: Path) -> list[str]:
    """Parameters that the adapter's base does not hold, and that `load_base` draws by the seed of the run."""
    card = read_card(folder)
    return [] if card is None else list(card.get("drawn", {}).get("parameters", ()))


def name_classes(model: nn.Module, labels: list[str]) -> None:
    """Put the classes' names into the model's config, from which transformers' pipelines take them."""
    if labels:
        config: Any = model.config
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}


def _of_task(adapter: Adapter, base: str, dtype: torch.dtype | str) -> nn.Module:
    import transformers

    task = adapter.settings.get("task_type")
    config = models.load_config(base)
    mapping = adapter.settings.get("auto_mapping")
    mapped_class = [mapping.get("base_model_class")] if isinstance(mapping, Mapping) and task not in CLASSES else []
    named = [name for name in (*mapped_class, *(config.architectures or ())) if isinstance(name, str) and _opens(name)]
    mapped = type(config) in getattr(transformers, CLASSES[task])._model_mapping if task in CLASSES else False
    if mapped and not (task == "FEATURE_EXTRACTION" and named):  # whose head, where the base has one, is not used
        auto = getattr(transformers, CLASSES[str(task)])
    else:
        if not named:
            raise InputError(
                "neither the adapter nor the base says what kind of model they are of",
                found=f"the task type {task!r}, and the architectures {config.architectures}",
                expected=f"one of {', '.join(CLASSES)}",
                hint="set task_type in its adapter_config.json",
            )
        auto = getattr(transformers, named[0])
    labels = _labels(auto, config, adapter.saved) if task in WITH_CLASSES or task not in CLASSES else {}
    return models.load_class(auto, base, dtype, **labels)


def _opens(name: str) -> bool:
    """Whether transformers has a model class of that name."""
    import transformers

    cls = getattr(transformers, name, None)
    return isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)


def _labels(auto: Any, config: Any, saved: Mapping[str, Any]) -> dict[str, Any]:
    """How many classes the adapter's own head has, where that is another number than the base's config says: found from
    the parameter that differs in its first axis from the head of an empty model."""
    with torch.device("meta"):
        empty = auto.from_config(config) if hasattr(auto, "from_config") else auto(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in empty.named_parameters()}
    sizes = {
        stored.shape[0]
        for name, stored in saved.items()
        if name in shapes
        and len(stored.shape) == len(shapes[name])
        and tuple(stored.shape[1:]) == shapes[name][1:]
        and shapes[name][0] == config.num_labels != stored.shape[0]
    }
    return {"num_labels": sizes.pop(), "ignore_mismatched_sizes": True} if len(sizes) == 1 else {}
