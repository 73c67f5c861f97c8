"""What an adapter's file says of its training: base model, trigger words, tool, steps, title, license.

Trainers of image models write it into the safetensors header, as strings, JSON in some of them:

    modelspec.…                                 Stability AI's ModelSpec, which sd-scripts, OneTrainer and others write
    ss_…                                        kohya's sd-scripts and what reads its files (musubi-tuner, ai-toolkit)
    software, training_info, name, version      ai-toolkit (toolkit/metadata.py, BaseSDTrainProcess.py)
    ot_branch, ot_revision, ot_config           OneTrainer (modelSaver/mixin/DtypeModelSaverMixin.py)

Nothing of it is needed to read the updates, and nothing of it is believed: texts are cut, and their control characters
escaped. Tags are those of the captions, counted by folder; a folder's name begins with how often it was repeated.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from lorascope.errors import cut, printable
from lorascope.inputs import parse_json

PREFIXES = ("modelspec.", "ss_", "ot_", "sshs_")
OF_AI_TOOLKIT = ("software", "training_info", "name", "version")
LONGEST = 300  # characters of a value that is kept whole
MAX_ENTRIES = 500
MAX_TAGS = 5
MAX_TABLE = 1 << 22  # characters of a table of tags that is looked into
_FOLDER = re.compile(r"(\d+)_(.+)", re.DOTALL)


def kept(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The entries that speak of the training: JSON as its value, long ones by their length."""
    by_ai_toolkit = "software" in metadata or "training_info" in metadata
    entries: dict[str, Any] = {}
    for key, text in metadata.items():
        if isinstance(text, str) and (key.startswith(PREFIXES) or (by_ai_toolkit and key in OF_AI_TOOLKIT)):
            if len(entries) == MAX_ENTRIES:
                break
            whole = len(text) <= LONGEST
            entries[key] = (_value(text) if text.startswith("{") else text) if whole else f"({len(text)} characters)"
    return entries


def training(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the entries mean, under names of our own; what is not said is not there. JSON types only.

    Returns:
        base_model, architecture, title, author, license, usage_hint, tool, steps, epochs, images, learning_rate,
        optimizer, resolution, date, merged_from, as text; trigger_words and frequent_tags, lists of text.
    """
    software = _mapping(metadata.get("software"))
    progress = _mapping(metadata.get("training_info"))
    config = _mapping(metadata.get("ot_config"))
    optimizer = config.get("optimizer")
    found = {
        "base_model": _first(metadata, "ss_sd_model_name") or _text(config.get("base_model_name"))
        or _first(metadata, "ss_base_model_version"),
        "architecture": _first(metadata, "modelspec.architecture", "ss_base_model_version")
        or _text(config.get("model_type")),
        "title": _first(metadata, "modelspec.title", "ss_output_name", *(["name"] if software or progress else [])),
        "author": _first(metadata, "modelspec.author"),
        "license": _first(metadata, "modelspec.license"),
        "usage_hint": _first(metadata, "modelspec.usage_hint"),
        "tool": _tool(metadata, software),
        "steps": _text(progress.get("step")) or _first(metadata, "ss_steps", "ss_max_train_steps"),
        "epochs": _text(progress.get("epoch")) or _first(metadata, "ss_epoch", "ss_num_epochs")
        or _text(config.get("epochs")),
        "images": _first(metadata, "ss_num_train_images"),
        "learning_rate": _first(metadata, "ss_unet_lr", "ss_learning_rate") or _text(config.get("learning_rate")),
        "optimizer": _first(metadata, "ss_optimizer")
        or _text(optimizer.get("optimizer") if isinstance(optimizer, Mapping) else optimizer),
        "resolution": _first(metadata, "modelspec.resolution", "ss_resolution") or _text(config.get("resolution")),
        "date": _first(metadata, "modelspec.date"),
        "merged_from": _first(metadata, "modelspec.merged_from"),
    }  # fmt: skip
    folders = dict(_folders(metadata.get("ss_tag_frequency")))
    words = [_first(metadata, "modelspec.trigger_phrase"), *(name for name, tags in folders.items() if name in tags)]
    counts: Counter[str] = Counter()
    for tags in folders.values():
        counts.update(tags)
    lists = {
        "trigger_words": list(dict.fromkeys(word for word in words if word))[:MAX_TAGS],
        "frequent_tags": [f"{tag} ({count})" for tag, count in counts.most_common(MAX_TAGS)],
    }
    return {key: value for key, value in (found | lists).items() if value}


def _tool(metadata: Mapping[str, str], software: Mapping[str, Any]) -> str:
    if name := _text(software.get("name")):
        return f"{name} {_text(software.get('version'))}".strip()
    if "ot_branch" in metadata or "ot_revision" in metadata:
        return "OneTrainer"
    if any(key.startswith("ss_") for key in metadata) and "ss_network_module" in metadata:
        return f"sd-scripts' {module}" if (module := _first(metadata, "ss_network_module")) else "sd-scripts"
    return _first(metadata, "modelspec.implementation")


def _folders(table: str | None) -> Iterator[tuple[str, dict[str, int]]]:
    """The folders of `ss_tag_frequency` by their names, without the number of repeats, and the tags counted in each."""
    for name, tags in (_mapping(table) if table and len(table) <= MAX_TABLE else {}).items():
        if isinstance(tags, Mapping):
            match = _FOLDER.fullmatch(name)
            counted = {_text(tag): count for tag, count in tags.items() if isinstance(count, int) and tag.strip()}
            yield _text(match[2] if match else name), counted


def _first(metadata: Mapping[str, str], *keys: str) -> str:
    """The first of these entries that says something."""
    texts = (_text(metadata.get(key)) for key in keys)
    return next((text for text in texts if text not in ("", "None", "null")), "")


def _text(value: Any) -> str:
    """A text, or number, on one line; empty for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return cut(printable(" ".join(cut(str(value), 4 * LONGEST).split())), LONGEST)


def _mapping(text: str | None) -> Mapping[str, Any]:
    value = _value(text) if text else {}
    return value if isinstance(value, Mapping) else {}


def _value(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return text
