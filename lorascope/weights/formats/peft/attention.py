"""LoRA on `nn.MultiheadAttention`, as PEFT's own layer computes it, and layers that PEFT replicates.

PEFT puts one pair of factors on `in_proj_weight` (query, key and value fused) and one on `out_proj`, whose keys lie
below `.base_layer.out_proj`. Its layer adds out_proj's update twice, in training as in merging: once itself, once by
merging the wrapped out_proj (`lora.MultiheadAttention.merge` of PEFT 0.21.2). What it computes is the update.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lorascope.errors import InputError
from lorascope.updates.base import Update
from lorascope.weights.formats.peft.family import Group

_DOUBLED = "nn.MultiheadAttention: PEFT's layer adds out_proj's update twice, so the scale here is 2·α/r"
_LAYER = re.compile(r"^((?:.*?\.)?(?:layers|layer|h)\.)(\d+)(?=\.)")


def attention(updates: Mapping[str, Update], groups: Sequence[Group]) -> dict[str, Update]:
    """The updates with those of torch's attention under the names and at the scale of its parameters."""
    inside = {group.module for group in groups if group.owner != group.module}
    owners = {module.removesuffix(".out_proj") for module in inside} & updates.keys()
    renamed: dict[str, Update] = {}
    for name, update in updates.items():
        if name in owners:
            update = replace(update, name=f"{name}.in_proj_weight", base_weight=f"{name}.in_proj_weight")
        elif name in inside and name.removesuffix(".out_proj") in owners:
            update = replace(update, scale=2 * update.scale, notes=(*update.notes, _DOUBLED))
        renamed[update.name] = update
    return renamed


def replicated(updates: Mapping[str, Update], ranges: Any) -> dict[str, Update]:
    """The updates with the base's weight of each replicated layer: `layer_replication` [[0, 2], [1, 3]] makes layers 0
    to 3 of the base's 0, 1, 1, 2.

    Raises:
        InputError: `ranges` is not a list of ranges, or a module lies in a layer that they do not make.
    """
    if not ranges:
        return dict(updates)
    pairs = ranges if isinstance(ranges, list) else []
    valid = all(
        isinstance(p, list | tuple) and len(p) == 2 and all(type(n) is int and 0 <= n < 10_000 for n in p)
        for p in pairs
    )
    if not pairs or not valid:
        raise InputError(
            "adapter_config.json: layer_replication is not a list of ranges",
            found=repr(ranges)[:200],
            expected="[[0, 2], …]",
        )
    source = [layer for start, stop in pairs for layer in range(start, stop)]
    with_origin = {}
    for name, update in updates.items():
        match = _LAYER.match(name)
        if match is None:
            with_origin[name] = update
            continue
        if int(match[2]) >= len(source):
            raise InputError(
                f"{name} lies in a layer that layer_replication does not make",
                expected=f"layers 0 to {len(source) - 1}",
            )
        origin = f"{match[1]}{source[int(match[2])]}{(update.base_weight or f'{name}.weight')[match.end() :]}"
        note = f"a replica of the base's layer {source[int(match[2])]}"
        with_origin[name] = replace(update, base_weight=origin, notes=(*update.notes, note))
    return with_origin
