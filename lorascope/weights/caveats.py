"""When s·B·A is not what is added to the base that the user has: what every command that adds it must refuse or say."""

import re

from lorascope.weights.adapter import Adapter
from lorascope.weights.formats.peft.recognise import all_families

STARTS_IN_W = ("pissa", "olora")  # kinds of update whose formula subtracts the start of B·A from W again
_LAYER = re.compile(r"(?:^|\.)(\d+)(?=\.)")


def of_another_base(adapter: Adapter) -> str | None:
    """Why ΔW belongs to a base that is not the original one; None where it belongs to the original."""
    return next(filter(None, (family.other_base(adapter) for family in all_families())), None)


def fewer_layers(adapter: Adapter, layers: int | None) -> str | None:
    """A sentence where the adapter is in the first so many layers, all of them, and the base has another number: the
    files then leave it open whether this is the base. None where they do not, or where the config chose the layers."""
    if not layers or isinstance(adapter.settings.get("target_modules"), str):
        return None
    if adapter.settings.get("layers_to_transform") or adapter.settings.get("layer_replication"):
        return None
    adapted = {int(match[1]) for name in adapter.updates if (match := _LAYER.search(name))}
    if adapted != set(range(len(adapted))) or len(adapted) in (0, layers):
        return None
    where = "in layer 0" if len(adapted) == 1 else f"in layers 0 to {len(adapted) - 1}"
    return f"the adapter is {where}, and the base has {layers}: is it the base that this adapter was trained on?"


def not_for_all_tokens(adapter: Adapter) -> str | None:
    """Why the update is not a fixed change of a weight; None where it is one."""
    return next(filter(None, (family.not_for_all_tokens(adapter.settings) for family in all_families())), None)
