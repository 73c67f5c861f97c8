"""KaSA: ΔW = s·B·diag(E)·A − S, where S, the r trailing singular directions of W, was taken away before training.

Wang et al. 2024, "KaSA: Knowledge-Aware Singular-Value Adaptation of Large Language Models", arXiv 2412.06071. PEFT
(tuners/lora/variants.py) takes S from W again on loading, by torch's SVD in float32, as here, and rounds W − S to W's
dtype, which is left out.
Without the base only the trained part s·B·diag(E)·A is known.
"""

from collections.abc import Mapping

from lorascope.errors import InputError
from lorascope.linalg.arrays import Array
from lorascope.linalg.factored import Factored
from lorascope.updates.base import Role, kinds
from lorascope.updates.residual import Residual, in_single, like


class KaSA(Residual):
    name = "kasa"
    formula = "ΔW = s·B·diag(E)·A − Σ σ_i·u_i·v_iᵀ over W's r smallest σ"
    roles = {**Residual.roles, "E": Role(("r", "1"), "the weight of each pair of directions")}

    def dimensions(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        sizes = super().dimensions(shapes)
        if sizes.pop("1") != 1:
            raise InputError("E is not one number for each pair", found=tuple(shapes["E"]), expected="(r, 1)")
        return sizes

    def direction(self, roles: Mapping[str, Array], scale: float = 1.0) -> Factored:
        """s·B·diag(E)·A, the part that the file alone gives."""
        return Factored(roles["B"] * scale, roles["A"] * roles["E"])

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Factored:
        trained = {"A": roles["A"] * roles["E"], "B": roles["B"], "E": roles["E"]}
        return super().delta(trained, scale, base)

    def start(self, base: Array, rank: int, scale: float) -> Factored:
        import torch

        u, sigma, vh = torch.linalg.svd(in_single(base), full_matrices=False)
        kept = len(sigma) - rank
        if kept < 1:
            raise InputError("KaSA leaves no direction of the base weight", found=f"rank {rank}", expected=base.shape)
        return Factored(like(base, u[:, kept:]) * like(base, sigma[kept:]), like(base, vh[kept:]))


kinds.register("kasa")(KaSA())
