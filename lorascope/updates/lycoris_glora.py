"""GLoRA as LyCORIS and ComfyUI have it: ΔW = s·(W·A + B), A = a1·a2 of the inputs and B = b1·b2, both of low rank.

After Chavan et al. 2023, "One-for-All: Generalized LoRA for Parameter-Efficient Fine-tuning", arXiv 2306.07967, of
which these two terms are kept (LyCORIS 4.1.3, modules/glora.py). Of a convolution A acts on the channels, at every
position of the kernel alike: a1 and a2 then have c_in rows and columns, and d_in = c_in · positions.
"""

from collections.abc import Mapping

from lorascope.errors import InputError
from lorascope.linalg.arrays import Array, namespace
from lorascope.linalg.factored import Factored
from lorascope.updates.base import Kind, Role, kinds


class LycorisGlora(Kind):
    name = "lycoris_glora"
    formula = "ΔW = s·(W·a1·a2 + b1·b2)"
    needs_base = True
    roles = {
        "a1": Role(("b", "r1"), "of the inputs' map, left"),
        "a2": Role(("r1", "b"), "of the inputs' map, right"),
        "b1": Role(("d_out", "r"), "projection up"),
        "b2": Role(("r", "d_in"), "projection down"),
    }

    def dimensions(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        sizes = super().dimensions(shapes)
        if sizes["b"] == 0 or sizes["d_in"] % sizes["b"]:
            raise InputError("the inputs of the two products disagree", found=f"{sizes['b']} and {sizes['d_in']}")
        return sizes

    def rank(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """None: that of W·a1·a2 depends on the kernel's positions."""
        self.dimensions(shapes)

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Factored:
        """ΔW as a product of inner size r1·positions + r. InputError without `base`, or where it has another shape."""
        if base is None:
            raise InputError("GLoRA gives ΔW only with the base weight", hint="pass --base MODEL")
        expected = self.shape({name: tuple(array.shape) for name, array in roles.items()})
        if tuple(base.shape) != expected:
            raise InputError("the base weight has another shape", found=tuple(base.shape), expected=expected)
        xp = namespace(base)
        a1, a2 = roles["a1"], roles["a2"]
        channels, rank = a1.shape
        positions = base.shape[1] // channels
        at_each = xp.eye(positions, dtype=base.dtype)
        # W as (d_out, positions, c_in) times a1: (d_out, positions · r1), and a2 put back at each position.
        by_position = xp.permute_dims(base.reshape(base.shape[0], channels, positions), (0, 2, 1))
        left = (by_position @ a1).reshape(base.shape[0], positions * rank)
        right = (a2[None, :, :, None] * at_each[:, None, None, :]).reshape(positions * rank, base.shape[1])
        return Factored(xp.concat([left, roles["b1"]], axis=1) * scale, xp.concat([right, roles["b2"]], axis=0))


kinds.register("lycoris_glora")(LycorisGlora())
