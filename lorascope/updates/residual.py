"""Low rank on what is left of W: ΔW = s·B·A − S, where S, the start that B and A were given, was taken away from W.

Two kinds, by their start, which is a function of W and the rank:

    pissa   S = U_r Σ_r V_rᵀ, the r leading singular directions of W     Meng et al. 2024, arXiv 2404.02948, eq. 2 to 4
    olora   S = s·Q_r R_r, r columns and rows of W = Q R                  Büyükakyüz 2024, arXiv 2406.01775, alg. 1

PEFT's files with `init_lora_weights` "pissa" and "olora" hold the trained B and A; on loading PEFT takes S from W again
(tuners/lora/layer.py of 0.21). It takes the singular directions in float32, and rounds W − S to W's dtype: some 1e-7 of
‖W‖, which differs between machines, and which is left out here. Of a ΔW that is a hundredth of W that is the fifth
digit. Without the base only the part s·B·A is known, which is not ΔW.
"""

from abc import abstractmethod
from collections.abc import Mapping

from lorascope.errors import InputError
from lorascope.linalg.arrays import Array, namespace
from lorascope.linalg.factored import Factored
from lorascope.updates.base import Kind, Role, kinds


class Residual(Kind):
    """What both have in common."""

    needs_base = True
    has_direction = True
    by_triangles = True
    roles = {"A": Role(("r", "d_in"), "projection down"), "B": Role(("d_out", "r"), "projection up")}

    @abstractmethod
    def start(self, base: Array, rank: int, scale: float) -> Factored:
        """S of W (d_out, d_in), a product of inner size `rank`."""

    def direction(self, roles: Mapping[str, Array], scale: float = 1.0) -> Factored:
        """s·B·A, the part that the file alone gives."""
        return Factored(roles["B"] * scale, roles["A"])

    def rank(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """None: of ΔW it is up to 2r, of the part that the file gives r."""
        self.dimensions(shapes)

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Factored:
        """ΔW as a product of inner size 2r. InputError without `base`, or where it has another shape."""
        if base is None:
            raise InputError(f"{self.name} gives ΔW only with the base weight", hint="pass --base MODEL")
        expected = self.shape({name: tuple(array.shape) for name, array in roles.items()})
        if tuple(base.shape) != expected:
            raise InputError("the base weight has another shape", found=tuple(base.shape), expected=expected)
        start = self.start(base, roles["A"].shape[0], scale)
        xp = namespace(base)
        return Factored(
            xp.concat([roles["B"] * scale, -1.0 * start.left], axis=1), xp.concat([roles["A"], start.right], axis=0)
        )


class Pissa(Residual):
    name = "pissa"
    formula = "ΔW = s·B·A − U_r·Σ_r·V_rᵀ, of W = U·Σ·Vᵀ"

    def start(self, base: Array, rank: int, scale: float) -> Factored:
        u, sigma, vh = namespace(base).linalg.svd(base, full_matrices=False)
        return Factored(u[:, :rank] * sigma[:rank], vh[:rank, :])


class Olora(Residual):
    name = "olora"
    formula = "ΔW = s·B·A − s·Q_r·R_r, of W = Q·R"

    def start(self, base: Array, rank: int, scale: float) -> Factored:
        q, r = namespace(base).linalg.qr(base)
        return Factored(q[:, :rank] * scale, r[:rank, :])


kinds.register("pissa")(Pissa())
kinds.register("olora")(Olora())
