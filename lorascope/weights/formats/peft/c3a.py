"""C3A in PEFT's files: c3a_kernel (d_out / b, d_in / b, b)."""

from lorascope.updates.base import Update
from lorascope.weights.formats.peft.family import Context, Family, Group, families
from lorascope.weights.support import Support


class C3A(Family):
    peft_types = {"C3A": frozenset({"circulant"})}
    methods = {"circulant": "C3A"}
    roles = ("c3a_kernel",)
    marks = frozenset(roles)
    fields = "block_size block_size_pattern init_weights"

    def read(self, group: Group, context: Context) -> Update:
        return Update(group.module, "circulant", {"w": group.stored["c3a_kernel"]})


families.register("c3a")(C3A())

SUPPORT = (Support("C3A", "PEFT's merge in float64", peft="C3A"),)
