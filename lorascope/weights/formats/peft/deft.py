"""DEFT in PEFT's files: deft_P (d_out, r), what is taken out of W, and deft_R (r, d_in), what is put in its place.

`decomposition_method` says how P is used: qr, both times as the Q of its QR decomposition, or relu, the removed part
through relu(P). `para` has no R. `alpha` multiplies R by α/r (PEFT 0.21.2, tuners/deft/layer.py, which computes in
float32; here it is float64).
"""

import numpy as np

from lorascope.errors import InputError
from lorascope.updates.base import Stored, Update
from lorascope.weights.formats.peft.config import Config, ScaleFields
from lorascope.weights.formats.peft.family import Context, Family, Group, contradiction, families
from lorascope.weights.formats.peft.layout import is_transposed_by
from lorascope.weights.support import Support
from lorascope.weights.tensors import Mapped


class Deft(Family):
    peft_types = {"DEFT": frozenset({"replaced_subspace"})}
    methods = {"replaced_subspace": "DEFT"}
    roles = ("deft_P", "deft_R")
    marks = frozenset(roles)
    fields = "decomposition_method init_scale alpha para deft_dropout init_weights"
    scales = ScaleFields(patterns=False)

    def read(self, group: Group, context: Context) -> Update:
        config, para = context.config, context.config.flag("para")
        if not config.given:
            raise InputError("DEFT: without adapter_config.json it is unknown how P was decomposed")
        group.need(*(("deft_P",) if para else self.roles))
        p = group.stored["deft_P"]
        if len(p.shape) != 2:
            raise InputError(
                f"{group.keys['deft_P'].text} is not a matrix", found=tuple(p.shape), expected="(d_out, r)"
            )
        d_out, rank = p.shape
        if rank != min(config.rank_of(group.module), d_out):
            raise contradiction(group, "deft_P", rank, f"rank {config.rank_of(group.module)}")
        method = config.raw.get("decomposition_method", "relu")
        if method not in ("qr", "relu"):
            raise InputError(
                "adapter_config.json: decomposition_method is unknown", found=method, expected="qr or relu"
            )
        q: Stored = Mapped(p, (d_out, rank), lambda values: np.linalg.qr(values)[0]) if method == "qr" else p
        removed = q if method == "qr" else Mapped(p, (d_out, rank), lambda values: np.maximum(values, 0.0))
        roles = {"Q": q, "P": removed} | ({"R": group.stored["deft_R"]} if "deft_R" in group and not para else {})
        transposed = is_transposed_by(group.module, d_out, 0, config, context.base)
        return Update(group.module, "replaced_subspace", roles, _scale(config, rank), transposed)


families.register("deft")(Deft())


def _scale(config: Config, rank: int) -> float:
    """α/r, or 1 where there is no α."""
    alpha = config.raw.get("alpha")
    if alpha is not None and type(alpha) not in (int, float):
        raise InputError("adapter_config.json: alpha is not a number", found=alpha)
    return alpha / rank if alpha else 1.0


SUPPORT = (
    Support(
        "DEFT and PaRa", "PEFT's formula in float64, with its merge to float32's rounding", base="for ΔW", peft="DEFT"
    ),
)
