"""Low rank on what is left of W: ΔW = s·B·A − S, where S, the start that B and A were given, was taken away from W.

Two kinds, by their start, which is a function of W and the rank:

    pissa   S = U_r Σ_r V_rᵀ, the r leading singular directions of W     Meng et al. 2024, arXiv 2404.02948, eq. 2 to 4
    olora   S = s·Q_r R_r, r columns and rows of W = Q R                  Büyükakyüz 2024, arXiv 2406.01775, alg. 1

PEFT's files with `init_lora_weights` "pissa" and "olora" hold the trained B and A; on loading PEFT takes S from W
again (tuners/lora/layer.py of 0.21), by torch's SVD or QR of W in float32. That S differs from the exact one by 1e-7
of ‖W‖, and by more where σ_r is close to σ_{r+1}; of a ΔW that is a hundredth of W that is the fifth digit or the
third. So S is computed here as PEFT computes it, in float32 with torch. What PEFT rounds besides, W − S to W's dtype,
is left out: it is of full rank and belongs to no update (6e-8 of W's entries in float32, 2e-3 in bfloat16). Without
the base only the part s·B·A is known, which is not ΔW.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

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
        import torch

        u, sigma, vh = torch.linalg.svd(in_single(base), full_matrices=False)
        return Factored(like(base, u[:, :rank]) * like(base, sigma[:rank]), like(base, vh[:rank]))


class Olora(Residual):
    name = "olora"
    formula = "ΔW = s·B·A − s·Q_r·R_r, of W = Q·R"

    def start(self, base: Array, rank: int, scale: float) -> Factored:
        import torch

        q, r = torch.linalg.qr(in_single(base))
        return Factored(like(base, q[:, :rank]) * scale, like(base, r[:rank]))


def in_single(base: Array) -> Any:
    """W as a torch tensor in float32, where it is: what PEFT takes a start from."""
    import torch

    given = base if isinstance(base, torch.Tensor) else torch.from_numpy(np.asarray(base, np.float32))
    return given.detach().float()


def like(base: Array, part: Any) -> Array:
    """A factor of a start, a torch tensor, in the arrays and the dtype of W."""
    import torch

    return part.to(base) if isinstance(base, torch.Tensor) else part.numpy().astype(base.dtype)


kinds.register("pissa")(Pissa())
kinds.register("olora")(Olora())
