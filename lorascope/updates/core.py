"""Core: ΔW = scale · B R A, a trained r × r core R between two frozen bases.

Bałazy et al. 2024, "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters", arXiv 2405.17604: A and B
are made of the base weight's largest singular vectors, A = Σ_r V_rᵀ (r, d_in) and B = U_r (d_out, r) for W = U Σ Vᵀ.
"""

from collections.abc import Mapping

from lorascope.linalg.arrays import Array
from lorascope.linalg.factored import Factored
from lorascope.updates.base import Kind, Role, kinds


class Core(Kind):
    name = "core"
    formula = "ΔW = s·B·R·A"
    by_triangles = True
    roles = {
        "A": Role(("r", "d_in"), "frozen projection down"),
        "R": Role(("r", "r"), "trained core"),
        "B": Role(("d_out", "r"), "frozen projection up"),
    }

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Factored:
        return Factored(roles["B"] @ roles["R"] * scale, roles["A"])


kinds.register("core")(Core())
