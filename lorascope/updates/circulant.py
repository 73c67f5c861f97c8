"""Circulant blocks: ΔW = s/d_in · C, whose blocks (b, b) are circulant, each by the vector that is its first row.

Chen et al. 2024, "Parameter-Efficient Fine-Tuning via Circular Convolution" (C3A), arXiv 2407.19342, as PEFT computes
it (tuners/c3a/layer.py), which divides by d_in.
"""

from collections.abc import Mapping

from lorascope.linalg.arrays import Array
from lorascope.linalg.circulant import BlockCirculant
from lorascope.updates.base import Kind, Role, kinds


class Circulant(Kind):
    name = "circulant"
    formula = "ΔW = s/d_in · C(w)"
    roles = {"w": Role(("m", "n", "block"), "the first row of each circulant block")}

    def dimensions(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """m, n, block, d_out = m·block and d_in = n·block."""
        sizes = super().dimensions(shapes)
        return {**sizes, "d_out": sizes["m"] * sizes["block"], "d_in": sizes["n"] * sizes["block"]}

    def largest(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Of ΔW, whose singular vectors are as many."""
        sizes = self.dimensions(shapes)
        return sizes["d_out"] * sizes["d_in"]

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> BlockCirculant:
        kernel = roles["w"]
        return BlockCirculant(kernel * (scale / max(kernel.shape[1] * kernel.shape[2], 1)))


kinds.register("circulant")(Circulant())
