"""AdaLoRA in PEFT's files: lora_A (r, d_in), lora_B (d_out, r) and lora_E (r, 1), the triplets that are left."""

from typing import TYPE_CHECKING

from lorascope.errors import InputError, preview
from lorascope.updates.base import Stored, Update
from lorascope.weights.adapter import Adapter
from lorascope.weights.formats.peft.config import Config, ScaleFields
from lorascope.weights.formats.peft.family import Context, Group, Written, contradiction, families
from lorascope.weights.formats.peft.keys import PREFIX
from lorascope.weights.formats.peft.lora import LoRA, is_transposed, mismatch
from lorascope.weights.formats.peft.rank_patterns import exact_alpha
from lorascope.weights.support import Support

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint


class AdaLoRA(LoRA):
    """Its config has LoRA's fields, and means the same by them, but for ranks and scale."""

    peft_types = {"ADALORA": frozenset({"triplet", "low_rank"})}
    methods = {"triplet": "AdaLoRA"}
    roles = ("lora_A", "lora_B", "lora_E")
    marks = frozenset({"lora_E"})
    fields = f"{LoRA.fields} target_r init_r tinit tfinal deltaT beta1 beta2 orth_reg_weight total_step"
    scales = ScaleFields("init_r", 12, patterns=False)  # its rank_pattern is a mask over triplets, not a rank
    kinds_written = frozenset({"triplet"})

    def read(self, group: Group, context: Context) -> Update:
        return triplet(group, context.config, context.base)

    def waits(self, group: Group, context: Context) -> bool:
        return False

    def claims_key(self, key: str) -> bool:
        return False  # LoRA's spelling in memory covers lora_E

    def write(self, adapter: Adapter) -> Written:
        return _written(adapter)


families.register("adalora")(AdaLoRA())


def triplet(group: Group, config: Config, base: "Checkpoint | None" = None) -> Update:
    """AdaLoRA: ΔW = s / (init_r + 1e-5) · B (E ⊙ A), where s is lora_alpha, or the rank where that is not positive.

    `ranknum`, which PEFT divides by, is not in the file: on loading it is the initial rank, whatever rank is left.
    """
    group.need("lora_A", "lora_B", "lora_E")
    a, b, e = (group.stored[role] for role in ("lora_A", "lora_B", "lora_E"))
    if len(a.shape) != 2 or len(b.shape) != 2 or b.shape[1] != a.shape[0] or tuple(e.shape) != (a.shape[0], 1):
        raise mismatch(group, "lora_A", "lora_B", "lora_E")
    rank = a.shape[0]
    scale = 1.0
    notes: tuple[str, ...] = ()
    if config.given:
        if rank > config.rank:
            raise contradiction(group, "lora_A", rank, f"at most init_r {config.rank}")
        scale = (config.alpha if config.alpha > 0 else float(rank)) / (config.rank + 1e-5)
    if rank == 0:
        notes = ("AdaLoRA pruned every triplet of this module: ΔW is zero",)
    return Update(
        name=group.module,
        kind="triplet",
        roles={"A": a, "B": b, "E": e},
        scale=scale,
        transposed=is_transposed(group.module, (b.shape[0], a.shape[1]), config, base),
        notes=notes,
    )


def _written(adapter: Adapter) -> Written:
    """AdaLoRA: PEFT divides by init_r + 1e-5, so α is made to give each scale back; all modules must agree on it."""
    updates = list(adapter.updates.values())
    ranks = {update.name: update.roles["A"].shape[0] for update in updates}
    init = int(adapter.settings.get("init_r") or max(ranks.values()))
    scales = {update.scale for update in updates}
    if len(scales) > 1 or init < max(ranks.values()) or min(scales) <= 0:
        raise InputError(
            "PEFT's AdaLoRA has one positive scale, and one initial rank, for all modules", found=preview(scales)
        )
    tensors: dict[str, Stored] = {}
    for update in updates:
        tensors |= {f"{PREFIX}{update.name}.lora_{role}": update.roles[role] for role in "ABE"}
    pattern = {f"{name}.lora_E": [i < rank for i in range(init)] for name, rank in ranks.items() if rank < init}
    config = {
        "peft_type": "ADALORA",
        "init_r": init,
        "lora_alpha": exact_alpha(lambda alpha: alpha / (init + 1e-5), scales.pop(), init + 1e-5),
        "total_step": adapter.settings.get("total_step") or 1,
        "rank_pattern": pattern or None,
    }
    return Written(tensors, config)


SUPPORT = (Support("AdaLoRA", "PEFT's merge in float64", peft="ADALORA"),)
