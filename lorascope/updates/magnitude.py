"""Magnitude and direction: ΔW = m ⊙ (W + s·B·A) / ‖W + s·B·A‖ − W, one length m for each output.

Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv 2402.09353, eq. 5. The norms are of rows of the
map (d_out, d_in), the paper's columns. Without A and B only the lengths were trained.

Without the base, ΔW cannot be known: `direction` gives the low-rank part s·B·A that turns the rows, which is
then all the file says. It is not ΔW: the division undoes part of it, and m may undo it all.
"""

from collections.abc import Mapping

import numpy as np

from lorascope.errors import InputError
from lorascope.linalg.arrays import Array, namespace
from lorascope.linalg.factored import Factored
from lorascope.linalg.matrix import Dense, Matrix
from lorascope.updates.base import Kind, Role, kinds


class Magnitude(Kind):
    name = "magnitude"
    formula = "ΔW = m ⊙ (W + s·B·A) / ‖W + s·B·A‖_row − W"
    needs_base = True
    has_direction = True
    by_triangles = True
    roles = {
        "A": Role(("r", "d_in"), "projection down", optional=True),
        "B": Role(("d_out", "r"), "projection up", optional=True),
        "m": Role(("d_out",), "length of each row"),
    }

    def dimensions(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        if ("A" in shapes) != ("B" in shapes):
            raise InputError(
                "one factor of the direction is missing", found=", ".join(shapes), expected="A and B, or neither"
            )
        return super().dimensions(shapes)

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """(d_out, d_in); InputError without A, where only the base says d_in."""
        if "A" not in shapes:
            raise InputError("the width of this update is known from the base only", hint="pass --base MODEL")
        return super().shape(shapes)

    def rank(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        """The rank of the direction's update s·B·A. ΔW itself can have full rank: each row is rescaled."""
        return self.dimensions(shapes).get("r")

    def direction(self, roles: Mapping[str, Array], scale: float = 1.0) -> Factored | None:
        """s·B·A, the low-rank part alone, which needs no base; None where only lengths were trained."""
        return Factored(roles["B"] * scale, roles["A"]) if "A" in roles else None

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Matrix:
        """ΔW (d_out, d_in), dense. InputError without `base`, or where it has another shape.

        A row of W + s·B·A that is exactly zero has no direction and gives NaN, as it does in the trained layer.
        """
        if base is None:
            raise InputError("magnitude and direction give ΔW only with the base weight", hint="pass --base MODEL")
        shapes = {name: tuple(array.shape) for name, array in roles.items()}
        expected = self.shape(shapes) if "A" in roles else (len(roles["m"]), base.shape[1])
        if tuple(base.shape) != tuple(expected):
            raise InputError("the base weight has another shape", found=tuple(base.shape), expected=tuple(expected))
        direction = self.direction(roles, scale)
        tuned = base if direction is None else base + direction.dense()
        norms = namespace(tuned).linalg.vector_norm(tuned, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return Dense(tuned * (roles["m"] / norms)[:, None] - base)


kinds.register("magnitude")(Magnitude())
