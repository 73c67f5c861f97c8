"""Several adapters in one file: which there are, and the tensors of one of them.

`state_dict()` of a model with several of PEFT's adapters puts each one's name after the role (`lora_A.NAME.weight`,
`modules_to_save.NAME.weight`); AdapterHub's files put it after what the adapter is (`loras.NAME.lora_A`).
"""

import re
from collections.abc import Mapping

from lorascope.errors import InputError, preview
from lorascope.updates.base import Stored
from lorascope.weights.adapter import Skipped
from lorascope.weights.formats.peft.recognise import parse

_NAMED = re.compile(r"\.(?:modules_to_save|loras|adapters|prefix_tunings|prompt_tunings|refts)\.(?P<name>[^.]+)\.")


def adapter_of(key: str) -> str | None:
    """The name of the adapter that a key is of; None where it carries none."""
    if match := _NAMED.search(key):
        return None if match["name"] in ("weight", "bias") else match["name"]
    parsed = parse(key)
    return parsed.adapter if parsed is not None else None


def only(tensors: Mapping[str, Stored], name: str, where: object) -> tuple[dict[str, Stored], tuple[Skipped, ...]]:
    """The tensors of one adapter and those that are no adapter's; and the others, each with its adapter's name.

    Raises:
        InputError: no tensor is of an adapter of that name.
    """
    owners = {key: adapter_of(key) for key in tensors}
    names = dict.fromkeys(owner for owner in owners.values() if owner is not None)
    if not names and name == "default":  # PEFT saves each of several in a folder of its own, without its name
        return dict(tensors), ()
    if name not in names:
        raise InputError(
            f"{where} holds no adapter named {name!r}",
            found=preview(names) or "one adapter, whose keys carry no name",
            expected="one of the names in its keys" if names else "no --adapter-name",
        )
    kept = {key: stored for key, stored in tensors.items() if owners[key] in (None, name)}
    others = ((key, owner) for key, owner in owners.items() if owner not in (None, name))
    return kept, tuple(Skipped(key, f"of another adapter in the file, {owner!r}") for key, owner in others)
