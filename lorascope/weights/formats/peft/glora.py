"""GLoRA in PEFT's files: five paths, glora_A to glora_E. A multiplies W and B is added to it; C, D, E are the bias's.

A path is a product, `Xd` and `Xu`; one number for each output or one number, `X`; or nothing, `zeros`, which PEFT
stores as such (PEFT 0.21.2, tuners/glora/layer.py).
"""

import math
from operator import itemgetter

from lorascope.errors import InputError
from lorascope.updates.base import Stored, Update
from lorascope.weights.formats.peft.family import Context, Family, Group, families
from lorascope.weights.support import Support
from lorascope.weights.tensors import Combined, Mapped, reshaped

_TAILS = ("Xd", "Xu", "X", "zeros")
BIAS = "it changes the layer's bias too (paths C, D and E)"


class Glora(Family):
    peft_types = {"GLORA": frozenset({"glora"})}
    methods = {"glora": "GLoRA"}
    roles = tuple(f"glora_{path}.{tail}" for path in "ABCDE" for tail in _TAILS)
    marks = frozenset(roles)
    fields = "config_A_B config_C config_D_E init_weights"

    def read(self, group: Group, context: Context) -> Update:
        roles = {**_weight_path(group, "A"), **_weight_path(group, "B")}
        if not roles:  # the bias alone changes, and A and B are zeros in the shape of W
            group.need("glora_A.zeros", "glora_B.zeros")
            roles = {path: _first_column(group.stored[f"glora_{path}.zeros"]) for path in "AB"}
        c, d, e = (_bias_path(group, path) for path in "CDE")
        there = {name: path for name, path in (("C", c), ("D", d), ("E", e)) if path is not None}
        if there:  # the others are zeros, which PEFT stores
            zeros = {name: group.stored[f"glora_{name}.zeros"] for name in "CDE" if f"glora_{name}.zeros" in group}
            there |= {name: reshaped(stored, math.prod(stored.shape)) for name, stored in zeros.items()}
        if there and set(there) != set("CDE"):
            raise InputError(f"a path of the bias of {group.module} is missing", found=", ".join(group.stored))
        return Update(group.module, "glora", {**roles, **there}, notes=(BIAS,) if there else ())


families.register("glora")(Glora())


def _weight_path(group: Group, path: str) -> dict[str, Stored]:
    """A or B by the kind's roles; nothing where the path is not there."""
    key = f"glora_{path}"
    if f"{key}.Xd" in group or f"{key}.Xu" in group:
        group.need(f"{key}.Xd", f"{key}.Xu")
        return {path: group.stored[f"{key}.Xd"], f"{path}_up": group.stored[f"{key}.Xu"]}
    if f"{key}.X" in group:
        x = group.stored[f"{key}.X"]
        return {path.lower() if len(x.shape) == 1 else path: x}
    return {}


def _first_column(stored: Stored) -> Stored:
    if len(stored.shape) != 2 or 0 in stored.shape:
        raise InputError("the zeros of a path of GLoRA have not the shape of W", found=tuple(stored.shape))
    return Mapped(stored, (stored.shape[0], 1), itemgetter((slice(None), slice(0, 1))))


def _bias_path(group: Group, path: str) -> Stored | None:
    """C, D or E as a vector; None where the path is not there."""
    key = f"glora_{path}"
    if f"{key}.Xd" in group or f"{key}.Xu" in group:
        group.need(f"{key}.Xd", f"{key}.Xu")
        down, up = group.stored[f"{key}.Xd"], group.stored[f"{key}.Xu"]
        if len(down.shape) != 2 or tuple(up.shape) != (down.shape[1], 1):
            raise InputError(
                f"path {path} of {group.module} is not a vector", found=(tuple(down.shape), tuple(up.shape))
            )
        return Combined((down, up), (down.shape[0],), lambda left, right: (left @ right)[:, 0])
    if f"{key}.X" in group:
        x = group.stored[f"{key}.X"]
        return reshaped(x, math.prod(x.shape))
    return None


SUPPORT = (Support("GLoRA", "PEFT's merge in float64", base="for ΔW", peft="GLORA"),)
