"""DeLoRA: ΔW = s·B·diag(λ / (r ‖aᵢ‖ ‖bᵢ‖))·A·diag(n), rank-one parts of one length λ/r each.

Bini, Girrbach and Akata 2025, "Decoupling Angles and Strength in Low-rank Adaptation", arXiv 2503.18225, as PEFT
computes it (tuners/delora/layer.py). aᵢ are the rows of A, bᵢ the columns of B; n are the lengths of the columns of the
weight as it was before training, which the file keeps.
"""

from collections.abc import Mapping

from lorascope.errors import InputError
from lorascope.linalg.arrays import Array, namespace
from lorascope.linalg.factored import Factored
from lorascope.updates.base import Kind, Role, kinds

SHORTEST = 1e-4  # a row or a column that is shorter is divided by this


class DeLoRA(Kind):
    name = "delora"
    formula = "ΔW = s·B·diag(λ/(r‖aᵢ‖‖bᵢ‖))·A·diag(n)"
    roles = {
        "A": Role(("r", "d_in"), "projection down, of which only the rows' directions count"),
        "B": Role(("d_out", "r"), "projection up, of which only the columns' directions count"),
        "lambda": Role(("1",), "the strength"),
        "n": Role(("d_in",), "lengths of the columns of the weight before training"),
    }

    def dimensions(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        sizes = super().dimensions(shapes)
        if sizes.pop("1") != 1:
            raise InputError("λ is not one number", found=tuple(shapes["lambda"]), expected="(1,)")
        return sizes

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Factored:
        a, b = roles["A"], roles["B"]
        xp = namespace(a, b)
        lengths = xp.clip(xp.linalg.vector_norm(a, axis=1), min=SHORTEST)
        lengths = lengths * xp.clip(xp.linalg.vector_norm(b, axis=0), min=SHORTEST)
        return Factored(b * (roles["lambda"] * (scale / a.shape[0]) / lengths), a * roles["n"])


kinds.register("delora")(DeLoRA())
