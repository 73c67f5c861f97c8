"""Tinker's adapters: PEFT's keys and `{"lora_alpha", "r"}` as the whole config, with names of Tinker's own.

    model.unembed_tokens                 lm_head (found under the embedding where the base ties the two)
    model.layers.N.attn.q_proj           model.layers.N.self_attn.q_proj (gpt-oss)
    ….mlp.experts.w1, .w2, .w3           ….mlp.experts.E.gate_proj, .down_proj, .up_proj, each in three axes

A factor of shape (1, ...) is that of all experts of its layer. The scale is lora_alpha/r.

Source: thinking-machines-lab/tinker-cookbook, `tinker_cookbook/weights/_adapter.py` and `_merge_utils.py`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lorascope.errors import InputError
from lorascope.updates.base import Update
from lorascope.weights.formats.expert_factors import PROJECTIONS
from lorascope.weights.formats.peft.family import Group

NO_TYPE = "adapter_config.json has no peft_type: read as LoRA with scale lora_alpha/r, as Tinker writes it"
PLACEHOLDER = "an empty placeholder of a projection that this model does not have"
_EXPERT = re.compile(r"(?P<owner>.+\.experts)\.(?P<part>w[123])\[(?P<expert>\d+)\]")
_ATTENTION = re.compile(r"(model\.layers\.\d+)\.attn\.([qkvo]_proj)")


def is_tinkers(config: Mapping[str, Any] | None) -> bool:
    """Whether a config is that of an adapter of PEFT's layout which does not name its type."""
    return config is not None and "peft_type" not in config and {"r", "lora_alpha"} <= config.keys()


def with_type(config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The config with PEFT's type of LoRA where it is Tinker's."""
    return {"peft_type": "LORA", **config} if config is not None and is_tinkers(config) else config


def is_placeholder(group: Group) -> bool:
    """Whether both factors of a layer's experts are empty. AdaLoRA's, of rank 0, have two axes."""
    shapes = [group.shape(role) for role in group.stored]
    return "lora_A" in group and all(len(shape) == 3 and math.prod(shape) == 0 for shape in shapes)


def in_hugging_faces_names(updates: Mapping[str, Update], of_tinker: bool) -> dict[str, Update]:
    """The updates by the names that Hugging Face's models give their modules, as Tinker's own exporter names them.
    InputError where two would have one name."""
    renamed: dict[str, Update] = {}
    for update in updates.values():
        one = _renamed(update, of_tinker)
        if one.name in renamed:
            raise InputError(f"two updates for one module, {one.name}", found=update.name)
        renamed[one.name] = one
    return renamed


def _renamed(update: Update, of_tinker: bool) -> Update:
    if match := _EXPERT.fullmatch(update.name):
        name = f"{match['owner']}.{match['expert']}.{PROJECTIONS[match['part']]}"
        return replace(update, name=name, base_weight=None, expert=None)
    name = re.sub(r"^(model\.)?unembed_tokens$", "lm_head", update.name)
    if of_tinker:
        name = _ATTENTION.sub(r"\1.self_attn.\2", name)
    return update if name == update.name else replace(update, name=name)
