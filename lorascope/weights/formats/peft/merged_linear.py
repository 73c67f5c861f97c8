"""LoRA on some blocks of a fused layer: `enable_lora` of PEFT up to 0.2, after loralib's MergedLinear (Hu et al. 2021).

GPT-2's `c_attn` is query, key and value in one. `enable_lora: [true, false, true]` adapts the first and the third: with
k blocks enabled, A is (k·r, d_in) and B (k·d, r, 1), a grouped convolution, so that block j is ΔW_j = s·B_j A_j. The
rows of the other blocks are zero.
"""

import numpy as np

from lorascope.errors import InputError
from lorascope.updates.base import Update
from lorascope.weights.formats.peft.config import Config
from lorascope.weights.formats.peft.family import Group
from lorascope.weights.tensors import Mapped


def enabled(config: Config) -> tuple[bool, ...]:
    """Which blocks are adapted; empty where the config knows no blocks. InputError where the field is not a list."""
    value = config.raw.get("enable_lora")
    if value is None or value is False:
        return ()
    if not isinstance(value, list) or not all(type(one) is bool for one in value) or not any(value):
        raise InputError("adapter_config.json: enable_lora is not a list of true and false", found=value)
    return tuple(value)


def merged_linear(group: Group, blocks: tuple[bool, ...], config: Config) -> Update:
    """ΔW (n·d, d_in) of n blocks, as one product: B as a block diagonal with rows of zeros, A as it is.

    Raises:
        InputError: the tensors are not those of so many enabled blocks.
    """
    group.need("lora_A", "lora_B")
    a, b = group.stored["lora_A"], group.stored["lora_B"]
    k, rank = sum(blocks), config.rank_of(group.module)
    fits = len(a.shape) == 2 and a.shape[0] == k * rank and tuple(b.shape[1:]) in ((rank, 1), (rank,))
    if not fits or b.shape[0] % k or "lora_magnitude_vector" in group:
        raise InputError(
            f"the tensors of {group.module} do not fit enable_lora {list(blocks)} and rank {rank}",
            found=" and ".join(f"{group.keys[role].text} {group.shape(role)}" for role in ("lora_A", "lora_B")),
            expected=f"A ({k} · {rank}, d_in) and B ({k} · d, {rank}, 1)",
        )
    d = b.shape[0] // k

    def spread(values: np.ndarray) -> np.ndarray:
        full = np.zeros((len(blocks), d, k, rank))
        for j, block in enumerate(np.flatnonzero(blocks)):
            full[block, :, j, :] = values.reshape(k, d, rank)[j]
        return full.reshape(len(blocks) * d, k * rank)

    return Update(
        name=group.module,
        kind="low_rank",
        roles={"A": a, "B": Mapped(b, (len(blocks) * d, k * rank), spread)},
        scale=config.scale_of(group.module, rank),
        transposed=config.flag("fan_in_fan_out"),
        notes=(f"{k} of {len(blocks)} blocks of {d} rows are adapted (enable_lora), each with rank {rank}",),
    )
