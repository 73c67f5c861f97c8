"""Low rank: ΔW = scale · B A, with A (r, d_in) and B (d_out, r).

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, §4.1. LoRA, rsLoRA, LoRA+,
LoRA-FA, LoRA-drop and PiSSA are methods on this kind: they differ in scale, initialisation and training, not in ΔW.
"""

from collections.abc import Mapping

from lorascope.linalg.arrays import Array
from lorascope.linalg.factored import Factored
from lorascope.updates.base import Kind, Role, kinds


class LowRank(Kind):
    name = "low_rank"
    formula = "ΔW = s·B·A"
    by_triangles = True
    roles = {"A": Role(("r", "d_in"), "projection down"), "B": Role(("d_out", "r"), "projection up")}

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Factored:
        return Factored(roles["B"] if scale == 1 else roles["B"] * scale, roles["A"])


kinds.register("low_rank")(LowRank())
