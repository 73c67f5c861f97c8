"""NeMo and Megatron-Bridge: `….linear_in.weight` (r, d_in) and `….linear_out.weight` (d_out, r) of an adapter.

    NeMo 1            ….self_attention.adapter_layer.lora_kqv_adapter.linear_in.weight
    NeMo 2, Bridge    decoder.layers.0.self_attention.linear_qkv.adapter.linear_in.weight, .adapter_q., .adapter_up.

ΔW = alpha/r · linear_out · linear_in (`ParallelLinearAdapter`, whose activation is the identity for LoRA). alpha is in
the run's config and not in the file: scale 1 is reported, NeMo 1's default (alpha = r), and a note says so. The
rows of a fused query, key and value are interleaved by group, which permutes rows and no spectrum. NeMo's bottlenecks
(`adapter_1.linear_in`) have a nonlinearity between the two and are none of this.
"""

import re
from typing import TYPE_CHECKING

from lorascope.errors import InputError
from lorascope.updates.base import Update
from lorascope.weights.formats.base import Bundle, Format, Ledger, Parsed, formats
from lorascope.weights.formats.key_groups import KeyGroup, by_module, low_rank_roles
from lorascope.weights.support import Support

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

SUFFIXES = ("linear_in.weight", "linear_out.weight")
NOTES = (
    "scale unknown: NeMo keeps alpha in the run's config, so every number is that of scale 1 (alpha = r)",
    "names, and the order of rows of a fused query, key and value, are Megatron's, not Hugging Face's",
)
_LORA = re.compile(r".*\.(adapter_layer\.lora_\w+|linear_\w+\.adapter(_(q|k|v|gate|up))?)")


class Nemo(Format):
    name = "nemo"
    about = "LoRA of NeMo and Megatron-Bridge: linear_in.weight and linear_out.weight"

    def claims(self, bundle: Bundle) -> bool:
        if bundle.config is not None and "peft_type" in bundle.config:
            return False
        return any(map(_LORA.fullmatch, by_module(bundle.tensors, SUFFIXES)))

    def read(self, bundle: Bundle, ledger: Ledger, base: "Checkpoint | None" = None) -> Parsed:
        groups = {
            module: group for module, group in by_module(bundle.tensors, SUFFIXES).items() if _LORA.fullmatch(module)
        }
        updates = [_update(group, ledger) for group in groups.values()]
        return Parsed({update.name: update for update in updates}, "LoRA", notes=NOTES)


def _update(group: KeyGroup, ledger: Ledger) -> Update:
    inner, outer = group.take(ledger, SUFFIXES[0]), group.take(ledger, SUFFIXES[1])
    if len(inner.shape) != 2:
        raise InputError(f"{group.keys[SUFFIXES[0]]!r} is not a matrix", found=tuple(inner.shape), expected="(r, d_in)")
    roles = low_rank_roles(inner, outer, None, (group.keys[SUFFIXES[0]], group.keys[SUFFIXES[1]]))
    return Update(group.module.removesuffix(".adapter"), "low_rank", roles)


formats.register("nemo")(Nemo())

SUPPORT = (Support("NeMo and Megatron-Bridge", "the writer's formula in float64"),)
