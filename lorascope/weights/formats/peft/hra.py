"""HRA in PEFT's files: hra_u (d_in, r), the directions of r reflections (PEFT 0.21.2, tuners/hra/layer.py).

`apply_GS` makes them orthonormal first, by Gram and Schmidt: the product of such reflections depends on their span
alone, and the Q of a QR decomposition has that.
"""

import numpy as np

from lorascope.errors import InputError
from lorascope.updates.base import Update
from lorascope.weights.formats.peft.config import ScaleFields
from lorascope.weights.formats.peft.family import Context, Family, Group, check_rank, families
from lorascope.weights.formats.peft.layout import is_transposed_by
from lorascope.weights.support import Support
from lorascope.weights.tensors import Mapped


class HRA(Family):
    peft_types = {"HRA": frozenset({"reflections"})}
    methods = {"reflections": "HRA"}
    roles = ("hra_u",)
    marks = frozenset(roles)
    fields = "apply_GS init_weights"
    scales = ScaleFields(patterns=False)

    def read(self, group: Group, context: Context) -> Update:
        u, config = group.stored["hra_u"], context.config
        if len(u.shape) != 2 or u.shape[1] > u.shape[0]:
            raise InputError(f"{group.keys['hra_u'].text} is not (d_in, r)", found=tuple(u.shape))
        check_rank(group, config, u.shape[1], "hra_u")
        if config.flag("apply_GS"):
            u = Mapped(u, tuple(u.shape), lambda values: np.linalg.qr(values)[0])
        transposed = is_transposed_by(group.module, u.shape[0], 1, config, context.base)
        return Update(group.module, "reflections", {"u": u}, transposed=transposed)


families.register("hra")(HRA())

SUPPORT = (Support("HRA", "PEFT's merge in float64", base="for ΔW", peft="HRA"),)
