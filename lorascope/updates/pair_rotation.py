"""Rotated pairs of outputs: W' = R·W, where R rotates and stretches two rows at a time.

Liao and Monz 2024, "3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching and Composability",
arXiv 2409.00119 (RoAd); PEFT 0.21.2, tuners/road/layer.py. In a group of rows, row x of its first half has row y of its
second half for a partner: x' = c·x − s·y and y' = c'·y + s'·x, with c = α·cos θ and s = α·sin θ.
The bias is part of the output, and is rotated with it.
"""

from collections.abc import Mapping

from lorascope.errors import InputError
from lorascope.linalg.arrays import Array, namespace
from lorascope.linalg.matrix import Dense, Matrix
from lorascope.updates.base import Kind, Role, kinds, needed


class PairRotation(Kind):
    name = "pair_rotation"
    formula = "ΔW = c ⊙ W + s ⊙ (W with each pair of rows (x, y) as (−y, x)) − W"
    needs_base = True
    roles = {
        "c": Role(("row_groups", "2", "half"), "the factor of the row itself"),
        "s": Role(("row_groups", "2", "half"), "the factor of its partner"),
    }

    def dimensions(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        sizes = super().dimensions(shapes)
        if sizes.pop("2") != 2:
            raise InputError("the rows of a group are not in two halves", found=tuple(shapes["c"]))
        return {**sizes, "d_out": 2 * sizes["row_groups"] * sizes["half"]}

    def rank(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.dimensions(shapes)

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Matrix:
        """ΔW (d_out, d_in), dense. InputError without `base`, or where it has another shape."""
        weight = needed(self, roles, base)
        return Dense((self._rotated(roles, weight) - weight) * scale)

    def bias_change(
        self, roles: Mapping[str, Array], scale: float, bias: Array, base: Array | None = None
    ) -> Array | None:
        """R·bias − bias: the layer's output is rotated, its bias too."""
        return (self._rotated(roles, bias[:, None])[:, 0] - bias) * scale

    def _rotated(self, roles: Mapping[str, Array], rows: Array) -> Array:
        xp, c, s = namespace(rows), roles["c"], roles["s"]
        grouped = xp.reshape(rows, (*c.shape, rows.shape[1]))
        partners = xp.stack([-grouped[:, 1, ...], grouped[:, 0, ...]], axis=1)
        return xp.reshape(grouped * c[..., None] + partners * s[..., None], rows.shape)


kinds.register("pair_rotation")(PairRotation())
