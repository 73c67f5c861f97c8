"""LoRA and rsLoRA: ΔW = s·B·A, with A (r, d_in) and B (d_out, r) trained.

LoRA: Hu et al. 2021, arXiv 2106.09685, §4.1: s = α/r, A random and B zero, so that training starts at the base model.
The paper draws a Gaussian A; its code, and PEFT's, draw kaiming_uniform(a=√5), which is U(−1/√d_in, 1/√d_in), for every
layer but embeddings. `init` offers both, and the other starts of `initialise.py`.

rsLoRA: Kalajdzievski 2023, arXiv 2312.03732: s = α/√r and nothing else, so that the update does not shrink as r grows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorascope.errors import InputError
from lorascope.linalg.arrays import Float
from lorascope.methods.base import Delta, Method, Site, methods
from lorascope.methods.fused import low_rank
from lorascope.methods.initialise import initialisation
from lorascope.methods.layers import autocast, check_dropout, check_rank, plain
from lorascope.methods.rates import loraplus_groups

if TYPE_CHECKING:
    from lorascope.methods.inject import Injected


@dataclass(frozen=True)
class LoRAConfig:
    """Settings of LoRA.

    Attributes:
        rank: r.
        alpha: α; the scale is α/r, or α/√r with `use_rslora`.
        dropout: probability of dropping an entry of the update's input (and only the update's) while training.
        use_rslora: divide by √r.
        init: how A and B start: kaiming, gaussian, orthogonal, a-zero, zero-both, pissa, pissa_niter_k or olora; see
            `initialise.py`.
        loraplus_lr_ratio: B's learning rate over A's, LoRA+'s λ; null leaves them equal. See `rates.py`.
        loraplus_lr_embedding: with a ratio, the rate of embeddings' A and B.
    """

    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    use_rslora: bool = False
    init: str = "kaiming"
    loraplus_lr_ratio: float | None = None
    loraplus_lr_embedding: float = 1e-6

    def __post_init__(self) -> None:
        check_rank(self.rank)
        check_dropout(self.dropout)
        if self.loraplus_lr_ratio is not None and not self.loraplus_lr_ratio > 0:
            raise InputError("loraplus_lr_ratio is not positive", found=self.loraplus_lr_ratio)
        if not self.loraplus_lr_embedding > 0:
            raise InputError("loraplus_lr_embedding is not positive", found=self.loraplus_lr_embedding)
        initialisation(self.init)

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.use_rslora else self.rank)


@dataclass(frozen=True)
class RsLoRAConfig(LoRAConfig):
    """LoRA's settings, with the scale α/√r."""

    use_rslora: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.use_rslora:
            raise InputError("rslora without use_rslora is plain LoRA", hint="say method: lora")


class LowRankDelta(Delta):
    """ΔW x = s·B·A·x for Linear and Conv1D. A and B are the masters, in float32 or wider.

    With `from_start` the values given are a start to measure from, kept as A₀ and B₀: ΔW = s·(B·A − B₀·A₀).
    """

    kind = "low_rank"

    def __init__(
        self,
        a: Float[Tensor, "r d_in"],
        b: Float[Tensor, "d_out r"],
        scale: float,
        dropout: float = 0.0,
        from_start: bool = False,
    ):
        super().__init__()
        self.A, self.B = nn.Parameter(a), nn.Parameter(b)
        self.register_buffer("A0", a.clone() if from_start else None)
        self.register_buffer("B0", b.clone() if from_start else None)
        self.scale, self.dropout = scale, dropout

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        x = autocast(x)
        if torch.compiler.is_compiling():  # a mask's seed is drawn outside of any graph
            return low_rank(self._dropped(x), *self.factors(), self.scale)
        return low_rank(x, *self.factors(), self.scale, dropout=self._dropping())

    def onto(self, base: nn.Module, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        x = autocast(x)
        if (self._dropping() and torch.compiler.is_compiling()) or not plain(base, x):
            return base(x) + self(x)
        weight = base.weight if isinstance(base, nn.Linear) else base.weight.t()
        return low_rank(x, *self.factors(), self.scale, weight, base.bias, self._dropping())

    def factors(self) -> tuple[Float[Tensor, "k d_in"], Float[Tensor, "d_out k"]]:
        """A and B as the product takes them; a kind with further roles folds them in here.

        With a start they are [A − A₀; A₀] and [B, B − B₀], of rank 2r: see `initialise.py`.
        """
        if self.A0 is None:
            return self.A, self.B
        return torch.cat([self.A - self.A0, self.A0]), torch.cat([self.B, self.B - self.B0], dim=1)

    def roles(self) -> dict[str, Tensor]:
        return dict(zip("AB", self.factors(), strict=True))

    @torch.no_grad()
    def load_roles(self, roles: Mapping[str, Tensor], scale: float) -> None:
        """Take A and B of any rank; where it differs, the parameters are new ones. ΔW is then theirs: a start goes."""
        (a, b), (d_in, d_out) = (roles["A"], roles["B"]), (self.A.shape[1], self.B.shape[0])
        if a.shape[1:] != (d_in,) or b.shape != (d_out, a.shape[0]):
            found = f"A {tuple(a.shape)} and B {tuple(b.shape)}"
            raise InputError(
                "the factors do not fit the layer", found=found, expected=f"A (r, {d_in}) and B ({d_out}, r)"
            )
        for name, value in (("A", a), ("B", b)):
            own = getattr(self, name)
            if own.shape == value.shape:
                own.copy_(value)
            else:
                setattr(self, name, nn.Parameter(value.to(own), requires_grad=own.requires_grad))
        self.scale, self.A0, self.B0 = scale, None, None

    def _dropping(self) -> float:
        """The probability of dropping an entry of x now."""
        return self.dropout if self.training else 0.0

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self._dropping()) if self._dropping() else x


class LowRankEmbeddingDelta(LowRankDelta):
    """ΔW of an embedding: token i gets s·B·A[:, i], in the dtype of the base's weight."""

    def __init__(
        self,
        a: Tensor,
        b: Tensor,
        scale: float,
        dtype: torch.dtype,
        padding_idx: int | None,
        from_start: bool = False,
    ):
        super().__init__(a, b, scale, from_start=from_start)
        self.dtype, self.padding_idx = dtype, padding_idx

    def forward(self, x: Tensor) -> Float[Tensor, "... d_out"]:
        """Token ids (...) → (..., d_out). Dropout has no place here: ids are not numbers to be scaled."""
        # padding_idx keeps the padding token's column of A without gradient, as its row of the base is.
        a, b = self.factors()
        h = F.embedding(x, a.t(), padding_idx=self.padding_idx).to(self.dtype)  # (..., r)
        return (h * self.scale) @ b.t().to(self.dtype)

    def onto(self, base: nn.Module, x: Tensor) -> Float[Tensor, "... d_out"]:
        return base(x) + self(x)


@methods.register("lora")
class LoRA(Method):
    """Trains A and B of every layer: r·(d_in + d_out) numbers each."""

    name, paper, kind = "lora", "Hu et al. 2021, arXiv 2106.09685", "low_rank"
    Config = LoRAConfig
    config: LoRAConfig

    def make(self, site: Site, generator: torch.Generator) -> LowRankDelta:
        (a, b), from_base = self.start(site, generator)
        if site.kind == "embedding":
            return LowRankEmbeddingDelta(a, b, self.config.scale, site.weight.dtype, site.layer.padding_idx, from_base)
        return LowRankDelta(a, b, self.config.scale, self.config.dropout, from_base)

    def start(self, site: Site, generator: torch.Generator) -> tuple[tuple[Tensor, Tensor], bool]:
        """A (r, d_in) and B (d_out, r) as masters, and whether the base gives their product up."""
        init = initialisation(self.config.init)
        a, b = init.factors(site, self.config.rank, self.config.scale, generator)
        return (a.to(site.master_dtype), b.to(site.master_dtype)), init.from_base

    def parameter_count(self, site: Site) -> int:
        return self.config.rank * (site.d_in + site.d_out)

    def salt(self) -> str:
        return f"rank={self.config.rank}"

    def parameter_groups(self, injected: "Injected", lr: float, weight_decay: float) -> list[dict[str, Any]]:
        config = self.config
        if config.loraplus_lr_ratio is None:
            return super().parameter_groups(injected, lr, weight_decay)
        return loraplus_groups(injected, lr, weight_decay, config.loraplus_lr_ratio, config.loraplus_lr_embedding)

    def settings(self) -> dict[str, Any]:
        config = self.config
        return {
            "peft_type": "LORA",
            "r": config.rank,
            "lora_alpha": config.alpha,
            "lora_dropout": config.dropout,
            "use_rslora": config.use_rslora,
        }


@methods.register("rslora")
class RsLoRA(LoRA):
    """LoRA with the scale α/√r."""

    name, paper = "rslora", "Kalajdzievski 2023, arXiv 2312.03732"
    Config = RsLoRAConfig
