"""What lies next to a trained adapter's files: `lorascope.json`, which says what model it belongs to, and a README.md.

An adapter names its base, and no more. The card also says which head it was trained with, the classes' names in their
order, and sizes of the base by which another model is told from it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from torch import nn

from lorascope.errors import InputError
from lorascope.inputs import ANY, read_json
from lorascope.models import assets
from lorascope.models.config import ModelConfig, TaskType
from lorascope.outputs import write_json, write_text
from lorascope.weights.io import CARD, adapter_folder

ADAPTER_CONFIG = "adapter_config.json"
SHAPE = {
    "model": {
        "task_type": frozenset(get_args(TaskType)),
        "head": frozenset(("native", "mean-pool")),
        "name?": (str,),
        "num_hidden_layers?": lambda value: value is None or (type(value) is int and value > 0),
        "random_init?": (bool,),
    },
    "labels": [(str,)],
    "base?": {str: ANY},
    "drawn?": {"seed": lambda value: type(value) is int and 0 <= value < 1 << 63, "parameters": [(str,)]},
}
# Sizes that tell one model from another, by transformers' names; the first of each line that a config has.
_SIZES = (("model_type",), ("hidden_size", "n_embd", "d_model"), ("num_hidden_layers", "n_layer", "num_layers"))


def base_name(name: str) -> str:
    """A base model's name as other programs can use it: a folder by its absolute path, a hub name as it is. A packaged
    model keeps its name, which the card explains."""
    if name in assets.ASSETS or not Path(name).exists():
        return name
    return str(Path(name).absolute())


def write_card(
    folder: Path, config: ModelConfig, labels: Sequence[str], model: nn.Module, method: str, facts: Mapping[str, Any]
) -> None:
    """Write `lorascope.json` and README.md into an adapter's folder.

    Args:
        config: of the base model.
        labels: the classes' names, in their order.
        model: the base model with the adapter in it, whose sizes are recorded.
        method: the method's name.
        facts: further keys of `lorascope.json`.
    """
    card = {"model": asdict(config), "labels": list(labels), "base": {**_origin(config), **sizes_of(model)}}
    write_json(folder / CARD, {**card, **facts})
    write_text(folder / "README.md", _readme(config, labels, method))


def read_card(folder: Path) -> dict[str, Any] | None:
    """What `lorascope train` left with the adapter; None where it left nothing. InputError where it is damaged."""
    folder = adapter_folder(folder)
    path = (folder if folder.is_dir() else folder.parent) / CARD
    if not os.path.lexists(path):
        return None
    card = read_json(path, SHAPE, hint="restore the file: it says what model the adapter is of")
    check_config(path.parent)
    return card


def check_config(folder: Path) -> None:
    """InputError where a run's adapter has lost its config: its scale would be taken for 1."""
    if folder.is_dir() and not os.path.lexists(folder / ADAPTER_CONFIG):
        raise InputError(f"the adapter in {folder} has no {ADAPTER_CONFIG}", hint="restore the file")


def check_base(card: Mapping[str, Any], model: nn.Module, base: str) -> None:
    """InputError where the model at hand is not the one that the adapter was trained on, by its sizes."""
    sizes = sizes_of(model)
    for key, trained_on in card.get("base", {}).items():
        if key in sizes and sizes[key] != trained_on and key != "vocab_size":
            raise InputError(
                f"{base} is not the model that this adapter was trained on",
                found=f"{key} {sizes[key]}",
                expected=f"{key} {trained_on}",
                hint=f"give {card['model'].get('name', 'its base model')}",
            )


def sizes_of(model: nn.Module) -> dict[str, Any]:
    """What a model's config says of its size."""
    config = getattr(model, "config", None)
    sizes = {}
    for names in _SIZES:
        name = next((each for each in names if getattr(config, each, None) is not None), None)
        if name is not None:
            sizes[names[0]] = getattr(config, name)
    return sizes


def _origin(model: ModelConfig) -> dict[str, str]:
    if model.name not in assets.ASSETS:
        return {"name": base_name(model.name)}
    about = assets.ASSETS[model.name].about
    where = f"lorascope.models.assets.resolve({model.name!r}) gives its folder"
    return {"name": model.name, "about": f"{about}; a packaged model of lorascope: {where}"}


def _readme(model: ModelConfig, labels: Sequence[str], method: str) -> str:
    origin = _origin(model)
    base = f"`{origin['name']}`" + (f" ({origin['about']})" if "about" in origin else "")
    lines = [f"# {method} adapter", "", f"Base model: {base}.", f"Task: {model.task_type}."]
    if labels:
        lines += ["", "Classes, by number: " + ", ".join(f"{i} {name}" for i, name in enumerate(labels)) + "."]
    lines += ["", *_how_to_load(model, len(labels), origin["name"]), ""]
    return "\n".join(lines)


def _how_to_load(model: ModelConfig, classes: int, base: str) -> list[str]:
    if model.head == "mean-pool" and model.task_type == "SEQ_CLS":
        return [
            "Its head sits on the mean of the encoder's last hidden states, which no class of transformers computes:",
            "PEFT refuses this adapter on `AutoModelForSequenceClassification`. Merge it, and load what that writes:",
            "",
            f"    lorascope merge ADAPTER --base {base} --output merged",
            "    AutoModelForSequenceClassification.from_pretrained('merged', trust_remote_code=True)",
        ]
    auto = "AutoModelForCausalLM" if model.task_type == "CAUSAL_LM" else "AutoModelForSequenceClassification"
    more = f", num_labels={classes}" if classes else ""
    return [
        "With PEFT, where its layout has a place for this method:",
        "",
        f"    base = {auto}.from_pretrained({base!r}{more})",
        "    model = PeftModel.from_pretrained(base, ADAPTER)",
        "",
        f"Or merged into its base: `lorascope merge ADAPTER --base {base} --output merged`.",
    ]
