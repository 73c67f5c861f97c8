"""Scaling: W' = diag(l) W, or W' = W diag(l), so ΔW = (l − 1) ⊙ W. The update depends on the base.

Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning" (IA³),
arXiv 2205.05638, §3.3: keys and values are scaled at the output, the feed-forward layer at the input of its second map.
"""

from collections.abc import Mapping

from lorascope.errors import InputError
from lorascope.linalg.arrays import Array
from lorascope.linalg.matrix import Dense, Matrix
from lorascope.updates.base import Kind, Role, kinds


class Scaling(Kind):
    name = "scaling"
    formula = "ΔW = s·(l − 1) ⊙ W"
    needs_base = True
    roles = {
        "out_scale": Role(("d_out",), "factor of each output", optional=True),
        "in_scale": Role(("d_in",), "factor of each input", optional=True),
    }

    def dimensions(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        if len(shapes) != 1:
            raise InputError(
                "a scaling has one vector", found=", ".join(shapes) or "none", expected=" or ".join(self.roles)
            )
        return super().dimensions(shapes)

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """InputError always: one vector says one side of ΔW, the base says the other."""
        raise InputError(
            "the shape of a scaling is known from the base only", found=dict(shapes), hint="pass --base MODEL"
        )

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Matrix:
        """(l − 1) ⊙ W (d_out, d_in), dense. InputError without `base`, or where l does not fit it."""
        if base is None:
            raise InputError("a scaling changes the base weight in proportion", hint="pass --base MODEL")
        self.dimensions({name: tuple(array.shape) for name, array in roles.items()})
        name, vector = next(iter(roles.items()))
        axis = 0 if name == "out_scale" else 1
        if len(vector) != base.shape[axis]:
            raise InputError(f"{name} does not fit the base weight", found=f"{len(vector)} and {tuple(base.shape)}")
        factor = (vector - 1) * scale
        return Dense(base * (factor[:, None] if axis == 0 else factor[None, :]))

    def bias_change(
        self, roles: Mapping[str, Array], scale: float, bias: Array, base: Array | None = None
    ) -> Array | None:
        """(l − 1) ⊙ bias where outputs are scaled, which the bias is part of: as PEFT has it."""
        return (roles["out_scale"] - 1) * scale * bias if "out_scale" in roles else None


kinds.register("scaling")(Scaling())
