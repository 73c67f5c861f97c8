"""RandLoRA: ΔW = s·Σ Bᵢ·diag(λᵢ)·A·diag(γᵢ), with A and the bases Bᵢ frozen and random, and so of full rank.

Albert et al. 2025, "RandLoRA: Full-Rank Parameter-Efficient Fine-Tuning of Large Models", arXiv 2502.00987, eq. 3. PEFT
(tuners/randlora/layer.py, `get_scaled_bases`) lists the rank-one terms of B by (basis, rank) and those of A by (rank,
basis) and multiplies them in these two orders, which is what its files mean. A is on the shorter side of ΔW: the inputs
where there are not more of them than outputs, else the outputs, and then everything is transposed.
"""

from collections.abc import Mapping

from lorascope.errors import InputError
from lorascope.linalg.arrays import Array, namespace
from lorascope.linalg.matrix import Dense, Matrix
from lorascope.updates.base import Kind, Role, bind, kinds

TALL = frozenset({"lambda", "gamma_in", "A_in", "B_out"})
WIDE = frozenset({"lambda", "gamma_out", "A_out", "B_in"})


class RandLoRA(Kind):
    name = "randlora"
    formula = "ΔW = s·Σ B_i·diag(λ_i)·A·diag(γ_i)"
    roles = {
        "lambda": Role(("r", "n"), "trained weight of every random direction, by basis"),
        "gamma_in": Role(("n", "d_in"), "trained weights of the inputs, by basis", optional=True),
        "A_in": Role(("r", "d_in"), "frozen projection of the inputs", optional=True),
        "B_out": Role(("d_out", "n", "r"), "frozen bases of the outputs", optional=True),
        "gamma_out": Role(("n", "d_out"), "trained weights of the outputs, by basis", optional=True),
        "A_out": Role(("r", "d_out"), "frozen projection of the outputs", optional=True),
        "B_in": Role(("d_in", "n", "r"), "frozen bases of the inputs", optional=True),
    }

    def dimensions(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        if set(shapes) not in (TALL, WIDE):
            raise InputError(
                "the roles do not make a randlora update",
                found=", ".join(shapes) or "none",
                expected=f"{', '.join(sorted(TALL))}; or {', '.join(sorted(WIDE))}",
            )
        return bind(self, shapes)

    def rank(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        sizes = self.dimensions(shapes)
        return min(sizes["n"] * sizes["r"], sizes["d_out"], sizes["d_in"])

    def largest(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        sizes = self.dimensions(shapes)
        return max(sizes["d_out"], sizes["d_in"]) * max(sizes["n"] * sizes["r"], sizes["d_out"], sizes["d_in"])

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Matrix:
        """ΔW (d_out, d_in), dense."""
        side, other = ("in", "out") if "A_in" in roles else ("out", "in")
        a, gamma, bases = roles[f"A_{side}"], roles[f"gamma_{side}"], roles[f"B_{other}"]
        xp = namespace(a, bases)
        (r, n), narrow, wide = roles["lambda"].shape, a.shape[1], bases.shape[0]
        terms = roles["lambda"][:, :, None] * a[:, None, :] * gamma[None, :, :]
        product = xp.reshape(bases, (wide, n * r)) @ xp.reshape(terms * scale, (r * n, narrow))
        return Dense(product if side == "in" else product.T)


kinds.register("randlora")(RandLoRA())
