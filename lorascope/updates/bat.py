"""Block affine: ΔW = s·(W·M + M), taken block by block of W (b, b), with one M for each block of outputs.

Kang and Yin 2024, "MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing Structure", arXiv 2409.15371,
the variant Bat (block affine transformation), as PEFT computes it (tuners/miss/layer.py, `get_delta_weight`).
"""

from collections.abc import Mapping

from lorascope.errors import InputError
from lorascope.linalg.arrays import Array, namespace
from lorascope.linalg.matrix import Dense, Matrix
from lorascope.updates.base import Kind, Role, kinds


class Bat(Kind):
    name = "bat"
    formula = "ΔW[i, j] = s·(W[i, j]·M_i + M_i)"
    needs_base = True
    roles = {"M": Role(("m", "block", "block"), "one matrix for each block of outputs")}

    def dimensions(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """m, block and d_out = m·block."""
        sizes = super().dimensions(shapes)
        return {**sizes, "d_out": sizes["m"] * sizes["block"]}

    def rank(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """None: up to that of ΔW's shape, which the base says."""
        self.dimensions(shapes)

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """InputError always: the blocks say d_out, the base says d_in."""
        raise InputError("the width of this update is known from the base only", hint="pass --base MODEL")

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Matrix:
        """ΔW (d_out, d_in), dense. InputError without `base`, or where it does not divide into the blocks."""
        if base is None:
            raise InputError("the update multiplies the base weight", hint="pass --base MODEL")
        m = roles["M"]
        n, r, _ = m.shape
        if r < 1 or base.shape[0] != n * r or base.shape[1] % r:
            raise InputError(
                "the base weight does not divide into the blocks", found=tuple(base.shape), expected=(n, r)
            )
        xp = namespace(base)
        blocks = xp.reshape(base, (n, r, -1, r))
        changed = xp.matmul(blocks, m[:, None, :, :]) + m[:, :, None, :]
        return Dense(xp.reshape(changed, base.shape) * scale)


kinds.register("bat")(Bat())
