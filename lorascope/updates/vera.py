"""VeRA: ΔW = scale · diag(b) B diag(d) A, with A and B frozen and random, d and b trained.

Kopiczko, Blankevoort and Asano 2024, "VeRA: Vector-based Random Matrix Adaptation", arXiv 2310.11454, eq. 2. A, B are
those of this module: where one pair serves several shapes, its first d_in columns and d_out rows.
"""

from collections.abc import Mapping

from lorascope.linalg.arrays import Array
from lorascope.linalg.factored import Factored
from lorascope.updates.base import Kind, Role, kinds


class Vera(Kind):
    name = "vera"
    formula = "ΔW = s·diag(b)·B·diag(d)·A"
    roles = {
        "A": Role(("r", "d_in"), "frozen projection down"),
        "B": Role(("d_out", "r"), "frozen projection up"),
        "d": Role(("r",), "trained scaling between A and B"),
        "b": Role(("d_out",), "trained scaling of the output"),
    }

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Factored:
        left = roles["B"] * roles["b"][:, None] * scale
        return Factored(left, roles["A"] * roles["d"][:, None])


kinds.register("vera")(Vera())
