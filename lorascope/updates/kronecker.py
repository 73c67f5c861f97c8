"""Kronecker: ΔW = s·w1 ⊗ w2 (LoKr), either operand stored whole or as a product of two factors.

Yeh et al. 2024, "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation",
arXiv 2309.14859, §3.2 (after Edalati et al. 2022, "KronA", arXiv 2212.10650). With w1 (a, b) and w2 (c, d),
d_out = a·c and d_in = b·d. A convolution's kernel is part of d; its Tucker core is contracted with w2_b by the reader.
"""

from collections.abc import Mapping

from lorascope.errors import InputError
from lorascope.linalg.arrays import Array
from lorascope.linalg.factored import Factored
from lorascope.linalg.kronecker import Kronecker
from lorascope.linalg.matrix import Dense, Matrix
from lorascope.updates.base import Kind, Role, bind, kinds


class KroneckerUpdate(Kind):
    name = "kronecker"
    formula = "ΔW = s·w1 ⊗ w2"
    roles = {
        "w1": Role(("a", "b"), "first operand", optional=True),
        "w1_a": Role(("a", "r1"), "first operand, left", optional=True),
        "w1_b": Role(("r1", "b"), "first operand, right", optional=True),
        "w2": Role(("c", "d"), "second operand", optional=True),
        "w2_a": Role(("c", "r2"), "second operand, left", optional=True),
        "w2_b": Role(("r2", "d"), "second operand, right", optional=True),
    }

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Kronecker:
        first, second = _operand(roles, "w1"), _operand(roles, "w2")
        return Kronecker(first.scaled(scale), second)

    def dimensions(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """a, b, c, d (and r1, r2 of factored operands), d_out = a·c, d_in = b·d, and r, the largest rank.

        Raises:
            InputError: as `bind`; and where an operand is absent, half there, or stored both whole and factored.
        """
        for operand in ("w1", "w2"):
            stored = {name for name in shapes if name == operand or name.startswith(operand + "_")}
            if stored not in ({operand}, {operand + "_a", operand + "_b"}):
                raise InputError(
                    f"operand {operand} of a kronecker update is incomplete or doubled",
                    found=", ".join(sorted(stored)) or "nothing",
                    expected=f"{operand}, or {operand}_a and {operand}_b",
                )
        sizes = bind(self, shapes)
        rank = min(sizes["a"], sizes["b"], sizes.get("r1", sizes["a"]))
        rank *= min(sizes["c"], sizes["d"], sizes.get("r2", sizes["c"]))
        return {**sizes, "d_out": sizes["a"] * sizes["c"], "d_in": sizes["b"] * sizes["d"], "r": rank}

    def largest(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Of an operand, or as many as there are singular values."""
        sizes = self.dimensions(shapes)
        return max(sizes["a"] * sizes["b"], sizes["c"] * sizes["d"], sizes["r"])


def _operand(roles: Mapping[str, Array], name: str) -> Matrix:
    """The operand `name` (a, b): stored whole, or factored and kept so where that is the smaller form."""
    if name in roles:
        return Dense(roles[name])
    left, right = roles[name + "_a"], roles[name + "_b"]
    if left.shape[1] >= min(left.shape[0], right.shape[1]):
        return Dense(left @ right)
    return Factored(left, right)


kinds.register("kronecker")(KroneckerUpdate())
