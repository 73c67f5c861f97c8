"""DeLoRA in PEFT's files: delora_A (r, d_in), delora_B (d_out, r), delora_lambda (1,) and delora_w_norm (d_in,)."""

from lorascope.updates.base import Update
from lorascope.weights.formats.peft.config import ScaleFields
from lorascope.weights.formats.peft.family import Context, Family, Group, check_rank, families
from lorascope.weights.support import Support


class DeLoRA(Family):
    peft_types = {"DELORA": frozenset({"delora"})}
    methods = {"delora": "DeLoRA"}
    roles = ("delora_A", "delora_B", "delora_lambda", "delora_w_norm")
    marks = frozenset(roles)
    fields = "delora_lambda lambda_pattern module_dropout init_weights"
    scales = ScaleFields()

    def read(self, group: Group, context: Context) -> Update:
        group.need(*self.roles)
        check_rank(group, context.config, group.size("delora_A", 0), "delora_A")
        names = {"A": "delora_A", "B": "delora_B", "lambda": "delora_lambda", "n": "delora_w_norm"}
        return Update(group.module, "delora", {role: group.stored[name] for role, name in names.items()})


families.register("delora")(DeLoRA())

SUPPORT = (Support("DeLoRA", "PEFT's merge in float64", peft="DELORA"),)
