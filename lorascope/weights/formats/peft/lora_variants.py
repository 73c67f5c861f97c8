"""Options of PEFT's LoRA whose A and B have another shape than LoRA's, brought into LoRA's; and one that has not.

BD-LoRA     one factor is block diagonal, its blocks stored side by side (PEFT's tuners/lora/variants.py)
QALoRA      the inputs are averaged in groups of g and multiplied by d_in / g, so A is (r, d_in / g); arXiv 2309.14717
MonteCLoRA  training adds noise to A; the merge and inference take A as it is
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lorascope.errors import InputError
from lorascope.updates.base import Stored
from lorascope.weights.formats.peft.config import Config
from lorascope.weights.formats.peft.family import Context, Group
from lorascope.weights.tensors import Mapped

SHAPING = ("use_bdlora", "use_qalora")  # fields that are not true of factors in LoRA's shape
MONTECLORA = "MonteCLoRA: ΔW is the mean s·B·A; training sampled around it"


def in_loras_shape(group: Group, context: Context) -> tuple[Group, float]:
    """A module's factors as LoRA's, and what multiplies its scale. InputError where they do not fit the config."""
    config = context.config
    if config.flag("use_bdlora"):
        return _unblocked(group, config), 1.0
    if config.flag("use_qalora"):
        return _unpooled(group, context)
    if config.flag("kasa_config"):
        group.need("lora_A", "lora_B", "lora_diag")
    return group, 1.0


def _unblocked(group: Group, config: Config) -> Group:
    """The factor that is block diagonal written out with its zeros. Patterns name a module by a part of its path."""
    options = config.raw["use_bdlora"]
    blocks = options.get("nblocks", 1) if isinstance(options, Mapping) else None
    if not isinstance(options, Mapping) or type(blocks) is not int or blocks < 1:
        raise InputError("adapter_config.json: use_bdlora does not say how many blocks there are", found=options)
    stored = dict(group.stored)
    for role, field in (("lora_A", "target_modules_bd_a"), ("lora_B", "target_modules_bd_b")):
        if role in stored and any(pattern in group.module for pattern in _patterns(options, field)):
            stored[role] = _block_diagonal(stored[role], blocks, group.keys[role].text)
    return replace(group, stored=stored)


def _patterns(options: Mapping[str, Any], field: str) -> list[str]:
    value = options.get(field) or []
    if not isinstance(value, list) or not all(isinstance(pattern, str) for pattern in value):
        raise InputError(f"adapter_config.json: use_bdlora's {field} is not a list of names", found=value)
    return value


def _block_diagonal(stored: Stored, blocks: int, key: str) -> Stored:
    """(m, n) as n-wide blocks (m / blocks, n) on the diagonal of (m, n · blocks)."""
    if len(stored.shape) != 2 or stored.shape[0] % blocks:
        raise InputError(f"{key} does not divide into {blocks} blocks", found=stored.shape)
    rows, columns = stored.shape

    def spread(values: np.ndarray) -> np.ndarray:
        full = np.zeros((blocks, rows // blocks, blocks, columns))
        for index, block in enumerate(values.reshape(blocks, rows // blocks, columns)):
            full[index, :, index, :] = block
        return full.reshape(rows, blocks * columns)

    return Mapped(stored, (rows, blocks * columns), spread)


def _unpooled(group: Group, context: Context) -> tuple[Group, float]:
    """A with each column once for every input of its group.

    PEFT pools where the layer is GPTQ's, and nowhere else: where the base shows that A has the layer's width, it is
    plain LoRA.
    """
    size = context.config.raw.get("qalora_group_size", 16)
    if type(size) is not int or size < 1:
        raise InputError("adapter_config.json: qalora_group_size is not a count", found=size)
    group.need("lora_A", "lora_B")
    a = group.stored["lora_A"]
    if len(a.shape) != 2:
        raise InputError(f"{group.keys['lora_A'].text} is not a matrix", found=a.shape)
    rank, pooled = a.shape
    weight = context.base.find(group.module) if context.base is not None else None
    if weight is not None and pooled in weight.shape and pooled * size not in weight.shape:
        return group, 1.0
    full = Mapped(a, (rank, pooled * size), lambda values: np.repeat(values, size, axis=1))
    return replace(group, stored={**group.stored, "lora_A": full}), pooled / size
