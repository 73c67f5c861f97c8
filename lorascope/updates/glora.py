"""GLoRA: ΔW = W ⊙ A + B, and the bias b becomes b + b ⊙ D + E + W·C.

Chavan et al. 2023, "One-for-All: Generalized LoRA for Parameter-Efficient Fine-tuning", arXiv 2306.07967, §3. A and B
are each a product of two factors, one number for each output, one number, or nothing.
"""

from collections.abc import Mapping

from lorascope.errors import InputError
from lorascope.linalg.arrays import Array, namespace
from lorascope.linalg.matrix import Dense, Matrix
from lorascope.updates.base import Kind, Role, kinds, needed


class GLoRA(Kind):
    name = "glora"
    formula = "ΔW = s·(W ⊙ A + B)"
    needs_base = True
    roles = {
        "A": Role(("d_out", "r_A"), "what W is multiplied by: left factor, or one number for each output", True),
        "A_up": Role(("r_A", "d_in"), "right factor of A", optional=True),
        "a": Role(("1",), "A as one number", optional=True),
        "B": Role(("d_out", "r_B"), "what is added to W: left factor, or one number for each output", optional=True),
        "B_up": Role(("r_B", "d_in"), "right factor of B", optional=True),
        "b": Role(("1",), "B as one number", optional=True),
        "C": Role(("d_in",), "W·C is added to the bias", optional=True),
        "D": Role(("n_D",), "what the bias is multiplied by, one number or one for each output", optional=True),
        "E": Role(("n_E",), "what is added to the bias, one number or one for each output", optional=True),
    }

    def dimensions(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """InputError also where A and B have two forms, a factor lacks the other, or one of C, D, E is absent."""
        sizes = super().dimensions(shapes)
        forms = [_form(shapes, name) for name in "AB"]
        there = {name for name in "CDE" if name in shapes}
        if forms[0] != forms[1] or sizes.pop("1", 1) != 1 or there not in (set(), set("CDE")):
            raise InputError(
                "the paths of a glora update do not belong together", found=", ".join(shapes), expected="A as B"
            )
        return sizes

    def rank(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.dimensions(shapes)

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Matrix:
        """ΔW (d_out, d_in), dense. InputError without `base`, or where it has another shape."""
        weight = needed(self, roles, base)
        gate, added = _path(roles, "A"), _path(roles, "B")
        zero = namespace(weight).zeros_like(weight)
        return Dense(((zero if gate is None else weight * gate) + (zero if added is None else added)) * scale)

    def bias_change(
        self, roles: Mapping[str, Array], scale: float, bias: Array, base: Array | None = None
    ) -> Array | None:
        """b ⊙ D + E + W·C; None where these paths are not there."""
        if "C" not in roles:
            return None
        return (bias * roles["D"] + roles["E"] + needed(self, roles, base) @ roles["C"]) * scale


def _form(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    """In which form A or B is there. InputError where it is half there."""
    present = tuple(role for role in (name, f"{name}_up", name.lower()) if role in shapes)
    forms = {(): "none", (name, f"{name}_up"): "factors", (name,): "vector", (name.lower(),): "number"}
    if present not in forms or (present == (name,) and shapes[name][1] != 1):
        raise InputError(f"path {name} of a glora update is incomplete or doubled", found=", ".join(present))
    return forms[present]


def _path(roles: Mapping[str, Array], name: str) -> Array | None:
    """A or B, in a shape that broadcasts to W's; None where it is not there."""
    if name.lower() in roles:
        return roles[name.lower()]
    if f"{name}_up" in roles:
        return roles[name] @ roles[f"{name}_up"]
    return roles.get(name)


kinds.register("glora")(GLoRA())
