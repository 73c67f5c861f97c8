"""LoRA-XS: ΔW = s·B R A, with a core R (r, r) trained between frozen singular bases of the weight itself.

Bałazy, Banaei, Aberer and Tabor 2024, arXiv 2405.17604: W = U Σ Vᵀ gives A = Σ_r V_rᵀ (r, d_in) and B = U_r (d_out, r),
and R starts at N(0, (10⁻⁵)²), which is almost but not exactly the base model. r² numbers train in each layer, whatever
its width. s = α/r, as in LoRA.

The paper writes x W for a row x, so that its first factor, U_r Σ_r there, is our A: the singular values are on the
input's side, in its code too. `basis` offers what that code offers besides: the smallest singular vectors, and no SVD
at all but two Kaiming-uniform matrices. `init_std: 0.0` starts at the base model exactly.

A singular vector's sign is free: here the largest entry of each column of U is positive, so that the bases do not
depend on the library. They are part of an adapter's state and of its file, which so needs no base to be analysed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lorascope.adapt.layer import Site
from lorascope.adapt.layers import check_dropout, check_rank
from lorascope.adapt.low_rank import LowRankDelta
from lorascope.adapt.method import Method, methods
from lorascope.errors import InputError
from lorascope.linalg.arrays import Float

Basis = Literal["top", "bottom", "random"]


@dataclass(frozen=True)
class LoRAXSConfig:
    """Settings of LoRA-XS.

    Attributes:
        rank: r.
        alpha: α; the scale is α/r.
        dropout: probability of dropping an entry of the update's input (and only the update's) while training.
        init_std: the standard deviation of R's start.
        basis: "top" or "bottom", which singular vectors of W; or "random".
    """

    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    init_std: float = 1e-5
    basis: Basis = "top"

    def __post_init__(self) -> None:
        check_rank(self.rank)
        check_dropout(self.dropout)
        if self.init_std < 0:
            raise InputError("init_std is negative", found=self.init_std, expected="0 or more")
        if self.basis not in get_args(Basis):
            raise InputError("basis is unknown", found=repr(self.basis), expected=", ".join(get_args(Basis)))


class CoreDelta(LowRankDelta):
    """ΔW x = s·B·R·A·x; A and B are frozen. As B·R is small, the product is LoRA's, of A and B·R."""

    kind = "core"

    def __init__(self, a: Float[Tensor, "r d_in"], core: Float[Tensor, "r r"], b: Tensor, scale: float, dropout: float):
        super().__init__(a, b, scale, dropout)
        self.A.requires_grad_(False)
        self.B.requires_grad_(False)
        self.R = nn.Parameter(core)

    def factors(self) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"]]:
        return self.A, self.B @ self.R

    def roles(self) -> dict[str, Tensor]:
        return {"A": self.A, "R": self.R, "B": self.B}

    @torch.no_grad()
    def load_roles(self, roles: Mapping[str, Tensor], scale: float) -> None:
        """Take A, R and B of any rank; the bases are then the file's."""
        super().load_roles({"A": roles["A"], "B": roles["B"]}, scale)
        if self.R.shape == roles["R"].shape:
            self.R.copy_(roles["R"])
        else:
            self.R = nn.Parameter(roles["R"].to(self.R))


@methods.register("lora_xs")
class LoRAXS(Method):
    """Trains the core R of every layer: r² parameters each."""

    name, paper, kind, format = "lora_xs", "Bałazy et al. 2024, arXiv 2405.17604", "core", "lorascope"
    Config = LoRAXSConfig
    config: LoRAXSConfig
    layer_kinds = ("linear", "conv1d")
    not_identity = "R starts at N(0, (10⁻⁵)²), as in the paper; init_std: 0.0 starts at the base model"

    def make(self, site: Site, generator: torch.Generator) -> CoreDelta:
        config = self.config
        a, b = bases(site, config.rank, config.basis, generator)
        core = torch.empty(config.rank, config.rank).normal_(std=config.init_std, generator=generator)
        dtype, scale = site.master_dtype, config.alpha / config.rank
        return CoreDelta(a.to(dtype), core.to(dtype), b.to(dtype), scale, config.dropout)

    def parameter_count(self, site: Site) -> int:
        return self.config.rank**2

    def salt(self) -> str:
        return f"rank={self.config.rank}"

    def settings(self) -> dict[str, Any]:
        config = self.config
        return {
            "r": config.rank,
            "lora_alpha": config.alpha,
            "lora_dropout": config.dropout,
            "init_std": config.init_std,
            "basis": config.basis,
        }


@torch.no_grad()
def bases(
    site: Site, rank: int, basis: Basis, generator: torch.Generator
) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"]]:
    """The frozen A and B of a layer. InputError where the weight has no so many singular vectors, or is no float."""
    if basis == "random":
        bounds = site.d_in**-0.5, rank**-0.5  # what kaiming_uniform(a=√5) comes to
        a = torch.empty(rank, site.d_in).uniform_(-bounds[0], bounds[0], generator=generator)
        return a, torch.empty(site.d_out, rank).uniform_(-bounds[1], bounds[1], generator=generator)
    most = min(site.d_in, site.d_out)
    if rank > most:
        raise InputError(f"{site.name} has no {rank} singular vectors", found=f"{most}", hint="lower the rank")
    if not site.weight.is_floating_point():
        raise InputError(f"{site.name} has no singular vectors", found=f"a {site.weight.dtype} weight")
    weight = site.weight.t() if site.transposed else site.weight
    u, sigma, vh = torch.linalg.svd(weight.to(site.master_dtype), full_matrices=False)
    chosen = slice(0, rank) if basis == "top" else slice(most - rank, most)
    u, sigma, vh = u[:, chosen], sigma[chosen], vh[chosen]
    largest = u.gather(0, u.abs().argmax(0, keepdim=True)).squeeze(0)  # of each column
    sign = torch.where(largest < 0, -1.0, 1.0).to(u)
    return (vh * (sigma * sign)[:, None]).contiguous(), (u * sign).contiguous()
