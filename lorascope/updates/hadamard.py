"""Hadamard: ΔW = s·(w1_a w1_b) ∘ (w2_a w2_b), the elementwise product of two low-rank matrices (LoHa).

Hyeon-Woo, Ye-Bin and Oh 2022, "FedPara: Low-rank Hadamard Product", arXiv 2108.06098, §2.1, Proposition 1: the rank is
at most r². It is reached through the Khatri–Rao products, because

    (Σ_p a_p b_pᵀ) ∘ (Σ_q c_q d_qᵀ) = Σ_pq (a_p ∘ c_q)(b_p ∘ d_q)ᵀ,

which is a factored matrix of inner size r². The reader contracts a convolution's Tucker cores with w1_b and w2_b.
"""

from collections.abc import Mapping

from lorascope.linalg.arrays import Array
from lorascope.linalg.factored import Factored
from lorascope.linalg.matrix import Dense, Matrix
from lorascope.updates.base import Kind, Role, kinds


class Hadamard(Kind):
    name = "hadamard"
    formula = "ΔW = s·(w1_a·w1_b) ∘ (w2_a·w2_b)"
    roles = {
        "w1_a": Role(("d_out", "r"), "first product, left"),
        "w1_b": Role(("r", "d_in"), "first product, right"),
        "w2_a": Role(("d_out", "r"), "second product, left"),
        "w2_b": Role(("r", "d_in"), "second product, right"),
    }

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Matrix:
        """A `Factored` of inner size r² where that is below min(d_out, d_in), else ΔW itself (d_out, d_in)."""
        w1_a, w1_b, w2_a, w2_b = (roles[name] for name in self.roles)
        (d_out, r), d_in = w1_a.shape, w1_b.shape[1]
        if r * r >= min(d_out, d_in):
            return Dense((w1_a @ w1_b) * (w2_a @ w2_b) * scale)
        left = (w1_a[:, :, None] * w2_a[:, None, :]).reshape(d_out, r * r)
        right = (w1_b[:, None, :] * w2_b[None, :, :]).reshape(r * r, d_in)
        return Factored(left * scale, right)

    def largest(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Of the Khatri–Rao products, or of ΔW."""
        sizes = self.dimensions(shapes)
        return min(sizes["r"] ** 2, sizes["d_out"], sizes["d_in"]) * max(sizes["d_out"], sizes["d_in"])

    def rank(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """min(r², d_out, d_in)."""
        sizes = self.dimensions(shapes)
        return min(sizes["r"] ** 2, sizes["d_out"], sizes["d_in"])


kinds.register("hadamard")(Hadamard())
