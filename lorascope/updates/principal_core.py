"""A core between W's leading singular directions: ΔW = U·Σ^(1−p)·(R − 1)·Σ^p·Vᵀ, of W ≈ U·Σ·Vᵀ in r directions.

Wu et al. 2026, "Efficient Orthogonal Fine-Tuning with Principal Subspace Adaptation" (PSOFT), ICLR 2026; PEFT 0.21.2,
tuners/psoft/layer.py. Its scale α/r divides the factors and multiplies their product, and so is not in ΔW. Two kinds:

    principal_core         p = 0, `ab_svd_init` psoft_init: U·Σ·(R − 1)·Vᵀ
    principal_core_halved  p = 1/2, pissa_init: U·Σ^½·(R − 1)·Σ^½·Vᵀ

R belongs to the signs that PEFT's SVD gave the directions: torch's, in float32, on the machine it ran on. Its signs
are taken from torch here too, and the directions from float64; ΔW's singular values do not depend on them. `draw` is
there where PEFT drew a randomised SVD (`psoft_svd` lowrank): its power iterations and its seed; then the directions
are PEFT's own, drawn again with torch.
"""

from collections.abc import Mapping

import numpy as np

from lorascope.errors import InputError
from lorascope.linalg.arrays import Array, namespace
from lorascope.linalg.factored import Factored
from lorascope.updates.base import Kind, Role, kinds, needed


class PrincipalCore(Kind):
    name = "principal_core"
    formula = "ΔW = s·U·Σ·(R − 1)·Vᵀ, of W ≈ U·Σ·Vᵀ"
    needs_base = True
    share = 0.0  # of Σ, the power that is on the right
    roles = {
        "R": Role(("r", "r"), "trained core"),
        "draw": Role(("2",), "power iterations and seed of a randomised SVD", optional=True),
    }

    def dimensions(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        sizes = super().dimensions(shapes)
        if sizes.pop("2", 2) != 2:
            raise InputError("draw is not two numbers", found=tuple(shapes["draw"]), expected="iterations and seed")
        return sizes

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Factored:
        """ΔW as a product of inner size r. InputError without `base`, or where it has fewer than r directions."""
        weight, core = needed(self, roles, base), roles["R"]
        rank = len(core)
        if rank > min(weight.shape):
            raise InputError("the base weight has another shape", found=tuple(weight.shape), expected=f"{rank} or more")
        u, sigma, vh = _leading(weight, rank, roles.get("draw"))
        xp = namespace(weight, core)
        left = u * sigma ** (1 - self.share) * scale
        right = (sigma**self.share)[:, None] * vh
        return Factored(left, (core - xp.eye(rank, dtype=core.dtype)) @ right)


class PrincipalCoreHalved(PrincipalCore):
    name = "principal_core_halved"
    formula = "ΔW = s·U·Σ^½·(R − 1)·Σ^½·Vᵀ, of W ≈ U·Σ·Vᵀ"
    share = 0.5


def _leading(weight: Array, rank: int, draw: Array | None) -> tuple[Array, Array, Array]:
    """U (d_out, r), Σ (r,) and Vᵀ (r, d_in) of W, in the arrays of W's library."""
    import torch

    given = weight if isinstance(weight, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(weight))
    values = given.detach().cpu()
    if draw is None:
        u, sigma, vh = (part.double() for part in torch.linalg.svd(values, full_matrices=False))
        single = torch.linalg.svd(values.float(), full_matrices=False)[2].double()
        signs = torch.where((single[:rank] * vh[:rank]).sum(1) < 0, -1.0, 1.0).double()
        u, sigma, vh = u[:, :rank] * signs, sigma[:rank], signs[:, None] * vh[:rank]
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(draw[1]))
            u, sigma, v = torch.svd_lowrank(values.float(), q=rank, niter=int(draw[0]))
        u, sigma, vh = u.double(), sigma.double(), v.T.double()
    if isinstance(weight, torch.Tensor):
        return u.to(weight), sigma.to(weight), vh.to(weight)
    return u.numpy(), sigma.numpy(), vh.numpy()


kinds.register("principal_core")(PrincipalCore())
kinds.register("principal_core_halved")(PrincipalCoreHalved())
