"""HiRA in PEFT's files: hira_A (r, d_in) and hira_B (d_out, r), whose product W is multiplied by, entry by entry.

Of an embedding hira_embedding_A (r, vocabulary) and hira_embedding_B (width, r); of a convolution A (r, c_in, *kernel)
and B (d_out, r, 1, …) (PEFT 0.21.2, tuners/hira/layer.py). There is no scale.
"""

from lorascope.updates.base import Update
from lorascope.weights.formats.peft.config import ScaleFields
from lorascope.weights.formats.peft.family import Context, Family, Group, check_rank, families
from lorascope.weights.formats.peft.lora import is_transposed, mismatch
from lorascope.weights.support import Support
from lorascope.weights.tensors import flattened


class HiRA(Family):
    peft_types = {"HIRA": frozenset({"modulated"})}
    methods = {"modulated": "HiRA"}
    roles = ("hira_A", "hira_B", "hira_embedding_A", "hira_embedding_B")
    marks = frozenset(roles)
    fields = "hira_dropout init_weights"
    scales = ScaleFields(default_rank=32)

    def read(self, group: Group, context: Context) -> Update:
        embedding = "hira_embedding_A" in group or "hira_embedding_B" in group
        names = self.roles[2:] if embedding else self.roles[:2]
        group.need(*names)
        a, b = (group.stored[name] for name in names)
        if len(a.shape) < 2 or len(b.shape) != len(a.shape) or b.shape[1] != a.shape[0] or set(b.shape[2:]) - {1}:
            raise mismatch(group, *names)
        if a.shape[0] != context.config.raw.get("r"):  # PEFT 0.21.2 has rank_pattern in the config, and does not use it
            check_rank(group, context.config, a.shape[0], names[0])
        kernel, (a, b) = tuple(a.shape[2:]), (flattened(a), flattened(b))
        shape = b.shape[0], a.shape[1]
        transposed = embedding or is_transposed(group.module, shape, context.config, context.base, kernel)
        return Update(
            group.module, "modulated", {"A": a, "B": b}, transposed=transposed, kernel=kernel, embedding=embedding
        )


families.register("hira")(HiRA())

SUPPORT = (Support("HiRA", "PEFT's merge in float64", base="for ΔW", peft="HIRA"),)
