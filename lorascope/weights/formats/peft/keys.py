"""PEFT's keys: `base_model.model.` + module + role, and what `state_dict()` leaks around it.

On disk a key is `base_model.model.<module>.<role>[.weight|.bias]`; in memory the adapter's name stands after the role
(`lora_A.default.weight`). A wrapped module shows up as `.base_layer`, a trained copy as `.modules_to_save`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from lorascope.errors import InputError

PREFIX = "base_model.model."


@dataclass(frozen=True)
class Key:
    """One key taken apart. `wrapped` counts the `.base_layer` segments that were removed from the module's path."""

    text: str
    module: str
    role: str
    adapter: str | None
    tail: str
    wrapped: int


def body(key: str) -> str:
    """The key without PEFT's prefix."""
    return key.removeprefix(PREFIX) if key.startswith(PREFIX) else key.removeprefix("base_model.")


def one_adapter(keys: Iterable[Key]) -> str | None:
    """The adapter's name that leaked into the keys, if any. InputError where there is more than one adapter."""
    names = dict.fromkeys(key.adapter for key in keys)
    if len(names) > 1:
        raise InputError(
            "the file holds more than one adapter",
            found=", ".join(name or "(no name)" for name in names),
            expected="one",
            hint="choose one with --adapter-name NAME (in Python adapter_name=), or save each with save_pretrained",
        )
    return next(iter(names), None)


def plain_parameter(key: str, adapter: str | None) -> str:
    """The base model's name of a parameter stored whole, without what PEFT wraps around it."""
    text = body(key)
    text = re.sub(rf"\.modules_to_save(?:\.{re.escape(adapter or 'default')})?\.", ".", text)
    return re.sub(r"\.(base_layer|original_module|token_adapter)(?=\.)", "", text)
