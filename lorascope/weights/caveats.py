"""When s·B·A is not what is added to the base that the user has: what every command that adds it must refuse or say."""

import re

from lorascope.weights.adapter import Adapter
from lorascope.weights.formats.peft.config import CHANGES_BASE

_LAYER = re.compile(r"(?:^|\.)(\d+)(?=\.)")
STARTS_IN_W = ("pissa", "olora")  # kinds of update whose formula takes the start away from W again


def of_another_base(adapter: Adapter) -> str | None:
    """Why ΔW belongs to a base that is not the original one; None where it belongs to the original.

    PEFT's CorDA, LoftQ, LoRA-GA and PiSSA by randomised SVD take the start of B·A away from W, which cannot be computed
    again: it depends on data, on a quantisation or on random numbers.
    """
    start = adapter.settings.get("init_lora_weights")
    if not isinstance(start, str) or not start.lower().startswith(CHANGES_BASE):
        return None
    if adapter.updates and all(update.kind in STARTS_IN_W for update in adapter.updates.values()):
        return None
    return f"A and B belong to a base from which their beginning was taken away (init_lora_weights {start!r})"


def fewer_layers(adapter: Adapter, layers: int | None) -> str | None:
    """A sentence where the adapter is in the first so many layers, all of them, and the base has another number: the
    files then leave it open whether this is the base. None where they do not, or where the config chose the layers."""
    if not layers or isinstance(adapter.settings.get("target_modules"), str):
        return None
    if adapter.settings.get("layers_to_transform") or adapter.settings.get("layer_replication"):
        return None
    found = {int(match[1]) for name in adapter.updates if (match := _LAYER.search(name))}
    if found != set(range(len(found))) or len(found) in (0, layers):
        return None
    where = "in layer 0" if len(found) == 1 else f"in layers 0 to {len(found) - 1}"
    return f"the adapter is {where}, and the base has {layers}: is it the base that this adapter was trained on?"


def not_for_all_tokens(adapter: Adapter) -> str | None:
    """Why the update is no fixed change of a weight; None where it is one."""
    if adapter.settings.get("alora_invocation_tokens"):
        return "an activated LoRA (aLoRA) applies only to tokens after its invocation tokens"
    return None
