"""BEFT in PEFT's files: beft_bias (1, d_out), which is added to the bias of a Linear (arXiv 2509.15974)."""

import math

from lorascope.errors import InputError
from lorascope.updates.base import Update
from lorascope.weights.formats.peft.config import Config
from lorascope.weights.formats.peft.family import Context, Family, Group, families
from lorascope.weights.support import Support
from lorascope.weights.tensors import reshaped


class BEFT(Family):
    peft_types = {"BEFT": frozenset({"dense"})}
    roles = ("beft_bias",)
    marks = frozenset(roles)
    fields = "init_weights"

    def method_name(self, update: Update, config: Config) -> str:
        return "BEFT"

    def read(self, group: Group, context: Context) -> Update:
        """The change of the bias, as a map of one input (d_out, 1)."""
        bias, name = group.stored["beft_bias"], f"{group.module}.bias"
        size = math.prod(bias.shape)
        if tuple(bias.shape) not in ((size,), (1, size)):
            raise InputError(f"{group.keys['beft_bias'].text} is not a vector", found=bias.shape, expected="(1, d_out)")
        return Update(name, "dense", {"delta": reshaped(bias, size, 1)}, base_weight=name)


families.register("beft")(BEFT())

SUPPORT = (Support("BEFT", "PEFT's merge in float64", peft="BEFT"),)
