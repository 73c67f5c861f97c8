"""Magnitude and direction on top of other kinds: ΔW = (W + D)·(m / ‖W + D‖) − W, D an update of another kind.

Liu et al. 2024, "DoRA", arXiv 2402.09353, eq. 5, as LyCORIS (`weight_decompose`, functional/general.py of 4.1.3) and
OneTrainer (module/LoRAModule.py) have it: m is a length of each row (role m, `wd_on_out`) or of each input (role m_in),
which of a convolution is a channel at all positions of the kernel. `magnitude` is the kind of rows with D = s·B·A.
"""

from collections.abc import Mapping

import numpy as np

from lorascope.errors import InputError
from lorascope.linalg.arrays import Array, namespace
from lorascope.linalg.matrix import Dense, Matrix
from lorascope.updates.base import Kind, Role, bind, kinds
from lorascope.updates.hadamard import Hadamard
from lorascope.updates.kronecker import KroneckerUpdate
from lorascope.updates.low_rank import LowRank

LENGTHS = {
    "m": Role(("rows",), "length of each row of W'", optional=True),
    "m_in": Role(("channels",), "length of each input of W'", optional=True),
}


class Decomposed(Kind):
    needs_base = True

    def __init__(self, name: str, inner: Kind):
        self.name, self.inner = name, inner  # type: ignore[misc]  # one instance for each inner kind
        self.formula = f"ΔW = (W + D)·(m / ‖W + D‖) − W, D: {inner.formula}"  # type: ignore[misc]
        self.roles = {**inner.roles, **LENGTHS}  # type: ignore[misc]
        self.has_direction = "A" in inner.roles  # type: ignore[misc]

    def dimensions(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """Those of the inner kind. InputError where there is not one m, or it does not fit."""
        lengths = [name for name in LENGTHS if name in shapes]
        if len(lengths) != 1:
            raise InputError("a magnitude has one vector", found=", ".join(lengths) or "none", expected="m or m_in")
        (name,) = lengths
        if len(shapes[name]) != 1:
            bind(self, shapes)  # which says how many axes it should have
        sizes = self.inner.dimensions({role: shape for role, shape in shapes.items() if role not in LENGTHS})
        (count,) = shapes[name]
        whole = sizes["d_out" if name == "m" else "d_in"]
        if count != whole and (name == "m" or count == 0 or whole % count):
            raise InputError(f"{name} does not fit the update", found=count, expected=whole)
        return sizes

    def rank(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        """The rank of D. ΔW itself can have full rank: each row or column is rescaled."""
        return self.dimensions(shapes).get("r")

    def largest(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        sizes = self.dimensions(shapes)
        inner = {role: shape for role, shape in shapes.items() if role not in LENGTHS}
        return max(self.inner.largest(inner), sizes["d_out"] * sizes["d_in"])

    def direction(self, roles: Mapping[str, Array], scale: float = 1.0) -> Matrix | None:
        """D, which needs no base."""
        return self.inner.delta({role: array for role, array in roles.items() if role not in LENGTHS}, scale)

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Matrix:
        """ΔW (d_out, d_in), dense. InputError without `base`, or where it has another shape."""
        if base is None:
            raise InputError("magnitude and direction give ΔW only with the base weight", hint="pass --base MODEL")
        sizes = self.dimensions({name: tuple(array.shape) for name, array in roles.items()})
        expected = sizes["d_out"], sizes["d_in"]
        if tuple(base.shape) != expected:
            raise InputError("the base weight has another shape", found=tuple(base.shape), expected=expected)
        xp = namespace(base)
        direction = self.direction(roles, scale)
        assert direction is not None
        tuned = base + direction.dense()
        with np.errstate(divide="ignore", invalid="ignore"):
            if "m" in roles:
                return Dense(tuned * (roles["m"] / xp.linalg.vector_norm(tuned, axis=1))[:, None] - base)
            channels = tuned.reshape(base.shape[0], len(roles["m_in"]), -1)
            lengths = xp.linalg.vector_norm(channels, axis=(0, 2))
            return Dense((channels * (roles["m_in"] / lengths)[None, :, None]).reshape(base.shape) - base)


kinds.register("dora_low_rank")(Decomposed("dora_low_rank", LowRank()))
kinds.register("dora_hadamard")(Decomposed("dora_hadamard", Hadamard()))
kinds.register("dora_kronecker")(Decomposed("dora_kronecker", KroneckerUpdate()))
