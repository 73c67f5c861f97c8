"""Triplets: ΔW = scale · B (E ⊙ A), the r rows of A weighed by E.

Zhang et al. 2023, "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", arXiv 2303.10512, §3.1,
where it is P Λ Q: P = B (d_out, r), Λ = diag(E), Q = A (r, d_in). P and Q are kept near orthogonal by a penalty, so
E are not the singular values.
"""

from collections.abc import Mapping

from lorascope.errors import InputError
from lorascope.linalg.arrays import Array
from lorascope.linalg.factored import Factored
from lorascope.updates.base import Kind, Role, kinds


class Triplet(Kind):
    name = "triplet"
    formula = "ΔW = s·B·diag(E)·A"
    by_triangles = True
    roles = {
        "A": Role(("r", "d_in"), "right factors, Q in the paper"),
        "B": Role(("d_out", "r"), "left factors, P in the paper"),
        "E": Role(("r", "1"), "the weight of each triplet, Λ in the paper"),
    }

    def dimensions(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        sizes = super().dimensions(shapes)
        if sizes.pop("1") != 1:
            raise InputError("E is not one number for each triplet", found=tuple(shapes["E"]), expected="(r, 1)")
        return sizes

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Factored:
        return Factored(roles["B"] * scale, roles["A"] * roles["E"])


kinds.register("triplet")(Triplet())
