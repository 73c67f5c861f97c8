"""OSF in PEFT's files: U_low (d_out, k), S_low (k,) and V_low (k, d_in), what W's trailing directions became.

PEFT 0.21.2, tuners/osf/layer.py. Which directions those were, W tells: all but the min(d_out, d_in) − k leading ones.
"""

from lorascope.updates.base import Update
from lorascope.weights.formats.peft.family import Context, Family, Group, families
from lorascope.weights.support import Support


class OSF(Family):
    peft_types = {"OSF": frozenset({"replaced_tail"})}
    methods = {"replaced_tail": "OSF"}
    roles = ("osf_svd_params.U_low", "osf_svd_params.S_low", "osf_svd_params.V_low")
    marks = frozenset(roles)
    fields = "effective_rank target_svd_config init_weights"

    def read(self, group: Group, context: Context) -> Update:
        group.need(*self.roles)
        roles = {role.rpartition(".")[2][0]: group.stored[role] for role in self.roles}
        return Update(group.module, "replaced_tail", roles)


families.register("osf")(OSF())

SUPPORT = (
    Support("OSF", "PEFT's formula in float64, with its merge to float32's rounding", base="for ΔW", peft="OSF"),
)
