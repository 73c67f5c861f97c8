"""Reflections: ΔW = W·(H₁·…·H_r − 1), H_i = 1 − 2·u_i·u_iᵀ / ‖u_i‖², so that ΔW has rank r at most.

Yuan, Liu and Xu 2024, "Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection
Adaptation" (HRA), arXiv 2405.17484, eq. 3. The product is 1 − U·T·Uᵀ with T⁻¹ the upper triangle of UᵀU, its diagonal
halved (Schreiber and Van Loan 1989, "A Storage-Efficient WY Representation"), so W is multiplied by U alone.
"""

from collections.abc import Mapping

from lorascope.linalg.arrays import Array, namespace
from lorascope.linalg.factored import Factored
from lorascope.updates.base import Kind, Role, kinds, needed


class Reflections(Kind):
    name = "reflections"
    formula = "ΔW = W·(Π(1 − 2·u·uᵀ/‖u‖²) − 1)"
    needs_base = True
    roles = {"u": Role(("d_in", "r"), "the directions that are reflected, one in each column, the first on W first")}

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Factored:
        """ΔW as a product of inner size r. InputError without `base`, or where it has another shape."""
        weight, u = needed(self, roles, base), roles["u"]
        xp = namespace(weight, u)
        gram = u.T @ u
        inverse = xp.triu(gram) - xp.eye(len(gram), dtype=gram.dtype) * gram / 2
        left = xp.linalg.solve(inverse.T, (weight @ u).T).T  # W·U·T
        return Factored(left * -scale, u.T)


kinds.register("reflections")(Reflections())
