"""torchtune's own checkpoints: `layers.0.attn.q_proj.lora_a.weight`, `.lora_b.weight`, and DoRA's `.magnitude`.

ΔW = alpha/r · lora_b · lora_a with lora_a = A (r, d_in) and lora_b = B (d_out, r); alpha is in the recipe and not in
the file, so scale 1 is reported and a note says so. Names, and for query and key the order of rows, are torchtune's,
whose rotary embedding interleaves where Hugging Face's splits in halves: that permutes those rows and no spectrum.
"""

from typing import TYPE_CHECKING

from lorascope.errors import InputError
from lorascope.updates.base import Update
from lorascope.weights.formats.base import Bundle, Format, Ledger, Parsed, formats
from lorascope.weights.formats.key_groups import KeyGroup, by_module, low_rank_roles
from lorascope.weights.support import Support

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

SUFFIXES = ("lora_a.weight", "lora_b.weight", "magnitude")
NOTES = (
    "scale unknown: torchtune keeps alpha in the recipe, so every number is that of scale 1 (alpha = r)",
    "names and the row order of query and key are torchtune's, not Hugging Face's",
)


class Torchtune(Format):
    name = "torchtune"
    about = "torchtune: lora_a.weight and lora_b.weight"

    def claims(self, bundle: Bundle) -> bool:
        if bundle.config is not None and "peft_type" in bundle.config:
            return False
        return any(key.endswith((".lora_a.weight", ".lora_b.weight")) for key in bundle.tensors)

    def read(self, bundle: Bundle, ledger: Ledger, base: "Checkpoint | None" = None) -> Parsed:
        updates = {module: _update(group, ledger) for module, group in by_module(bundle.tensors, SUFFIXES).items()}
        dora = any(update.kind == "magnitude" for update in updates.values())
        return Parsed(updates, "DoRA" if dora else "LoRA", notes=NOTES)


def _update(group: KeyGroup, ledger: Ledger) -> Update:
    a, b = group.take(ledger, "lora_a.weight"), group.take(ledger, "lora_b.weight")
    roles = low_rank_roles(a, b, None, (group.keys["lora_a.weight"], group.keys["lora_b.weight"]))
    if "magnitude" not in group:
        return Update(group.module, "low_rank", roles)
    magnitude = group.take(ledger, "magnitude")
    if tuple(magnitude.shape) != (b.shape[0],):
        raise InputError(
            f"{group.keys['magnitude']!r} does not fit", found=tuple(magnitude.shape), expected=f"({b.shape[0]},)"
        )
    return Update(group.module, "magnitude", {**roles, "m": magnitude})


formats.register("torchtune")(Torchtune())

SUPPORT = (Support("torchtune", "the writer's formula in float64"),)
