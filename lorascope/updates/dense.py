"""Dense updates: ΔW stored whole, or the tuned weight stored whole, from which the base is taken away.

Two kinds, because one needs the base and the other does not: `dense` (role delta) and `tuned` (role tuned).
"""

from collections.abc import Mapping

from lorascope.errors import InputError
from lorascope.linalg import matrix
from lorascope.linalg.arrays import Array
from lorascope.linalg.matrix import Matrix
from lorascope.updates.base import Kind, Role, kinds


class Dense(Kind):
    name = "dense"
    formula = "ΔW = s·D"
    roles = {"delta": Role(("d_out", "d_in"), "the update, stored whole")}

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Matrix:
        return matrix.Dense(roles["delta"] if scale == 1 else roles["delta"] * scale)


class Tuned(Kind):
    name = "tuned"
    formula = "ΔW = s·(T − W)"
    needs_base = True
    roles = {"tuned": Role(("d_out", "d_in"), "the tuned weight, stored whole")}

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Matrix:
        """s·(T − W). InputError without `base`, or where it has another shape."""
        if base is None:
            raise InputError("a tuned weight gives an update only with its base", hint="pass --base MODEL")
        if tuple(base.shape) != tuple(roles["tuned"].shape):
            raise InputError(
                "the tuned and the base weight differ in shape",
                found=f"{tuple(roles['tuned'].shape)} and {tuple(base.shape)}",
            )
        return matrix.Dense((roles["tuned"] - base) * scale)


kinds.register("dense")(Dense())
kinds.register("tuned")(Tuned())
