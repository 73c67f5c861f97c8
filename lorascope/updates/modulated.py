"""Modulation by a low-rank matrix: ΔW = s·W ⊙ (B·A), each weight changed in proportion to itself.

Huang et al. 2025, "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large Language Models", ICLR 2025.
The rank of ΔW is up to r times that of W, so B·A says little about it: without the base ΔW is not known.
"""

from collections.abc import Mapping

from lorascope.linalg.arrays import Array
from lorascope.linalg.matrix import Dense, Matrix
from lorascope.updates.base import Kind, Role, kinds, needed


class Modulated(Kind):
    name = "modulated"
    formula = "ΔW = s·W ⊙ (B·A)"
    needs_base = True
    roles = {"A": Role(("r", "d_in"), "projection down"), "B": Role(("d_out", "r"), "projection up")}

    def rank(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """None: r is the rank of what W is multiplied by, entry by entry, and not of ΔW."""
        self.dimensions(shapes)

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Matrix:
        """ΔW (d_out, d_in), dense. InputError without `base`, or where it has another shape."""
        return Dense(needed(self, roles, base) * (roles["B"] @ roles["A"]) * scale)


kinds.register("modulated")(Modulated())
