"""KaSA in PEFT's files: LoRA's A and B with lora_diag (r,) between them, on a base without its smallest directions."""

from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter
from lorascope.weights.formats.peft.config import Config
from lorascope.weights.formats.peft.family import Context, Group, check_rank, families
from lorascope.weights.formats.peft.lora import LoRA, is_transposed, mismatch
from lorascope.weights.support import Support
from lorascope.weights.tensors import reshaped


class KaSA(LoRA):
    """Its files have LoRA's peft_type, and `kasa_config`; without a config they are known by `lora_diag`."""

    peft_types = {}
    methods = {"kasa": "KaSA"}
    roles = ("lora_A", "lora_B", "lora_diag")
    marks = frozenset({"lora_diag"})
    fields = ""
    kinds_written = frozenset()

    def read(self, group: Group, context: Context) -> Update:
        group.need(*self.roles)
        a, b, e = (group.stored[role] for role in self.roles)
        if len(a.shape) != 2 or len(b.shape) != 2 or b.shape[1] != a.shape[0] or tuple(e.shape) != (a.shape[0],):
            raise mismatch(group, *self.roles)
        rank = a.shape[0]
        check_rank(group, context.config, rank, "lora_A")
        shape = b.shape[0], a.shape[1]
        return Update(
            group.module,
            "kasa",
            {"A": a, "B": b, "E": reshaped(e, rank, 1)},
            context.config.scale_of(group.module, rank),
            is_transposed(group.module, shape, context.config, context.base),
        )

    def waits(self, group: Group, context: Context) -> bool:
        return False

    def claims_key(self, key: str) -> bool:
        return False

    def method_name(self, update: Update, config: Config) -> str:
        return "KaSA"

    def can_write(self, adapter: Adapter) -> bool:
        return False


families.register("kasa")(KaSA())

SUPPORT = (
    Support("KaSA", "PEFT's merge in float64", base="for ΔW; B·diag(E)·A without", peft="LORA.kasa_config"),
)  # fmt: skip
