"""GraLoRA in PEFT's files: gralora_A (k, d_in / k, r), gralora_B (k, r, d_out / k), and the hybrid's two Linear."""

from lorascope.errors import InputError
from lorascope.updates.base import Update, kinds
from lorascope.weights.formats.peft.config import ScaleFields
from lorascope.weights.formats.peft.family import Context, Family, Group, check_rank, families
from lorascope.weights.formats.peft.lora import is_transposed
from lorascope.weights.support import Support

_ROLES = {
    "A_blocks": "gralora_A",
    "B_blocks": "gralora_B",
    "A_general": "gralora_A_general",
    "B_general": "gralora_B_general",
}


class GraLoRA(Family):
    peft_types = {"GRALORA": frozenset({"gralora"})}
    methods = {"gralora": "GraLoRA"}
    roles = tuple(_ROLES.values())
    marks = frozenset(roles)
    with_tail = frozenset({"gralora_A_general", "gralora_B_general"})
    fields = "alpha gralora_k hybrid_r gralora_dropout init_weights"
    scales = ScaleFields(default_rank=32, alpha="alpha", patterns=False, default_alpha=64)

    def read(self, group: Group, context: Context) -> Update:
        """ΔW with the scale α / (r + hybrid_r)."""
        config = context.config
        group.need("gralora_A", "gralora_B")
        roles = {role: group.stored[name] for role, name in _ROLES.items() if name in group}
        sizes = kinds.get("gralora").dimensions({role: tuple(stored.shape) for role, stored in roles.items()})
        rank = check_rank(group, config, sizes["w"], "gralora_A")
        hybrid = sizes.get("h", 0)
        if config.given and (config.raw.get("hybrid_r") or 0) != hybrid:
            raise InputError(
                f"adapter_config.json contradicts the tensors of {group.module}",
                found=f"a hybrid of rank {hybrid}", expected=f"hybrid_r {config.raw.get('hybrid_r')}",
            )  # fmt: skip
        shape = sizes["d_out"], sizes["d_in"]
        transposed = is_transposed(group.module, shape, config, context.base)
        return Update(group.module, "gralora", roles, config.scale_of(group.module, rank + hybrid), transposed)


families.register("gralora")(GraLoRA())

SUPPORT = (Support("GraLoRA", "PEFT's merge in float64", peft="GRALORA"),)
