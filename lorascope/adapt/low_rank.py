"""The trained layer of a low-rank update, ΔW = s·B·A, which LoRA and most of its relatives share."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorascope.adapt.dequantise import computes_in, dense_weight
from lorascope.adapt.fused import low_rank
from lorascope.adapt.layer import Delta
from lorascope.adapt.layers import autocast, bias_of, map_weight, plain
from lorascope.errors import InputError
from lorascope.linalg.arrays import Float


class LowRankDelta(Delta):
    """ΔW x = s·B·A·x for Linear and Conv1D. A and B are master weights, in float32 or wider.

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

    def forward_with_base(self, base: nn.Module, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        x = autocast(x)
        if torch.is_grad_enabled() and computes_in(base) == x.dtype and not torch.compiler.is_compiling():
            decode = partial(dense_weight, base)
            return low_rank(x, *self.factors(), self.scale, decode, bias_of(base), self._dropping())
        if (self._dropping() and torch.compiler.is_compiling()) or not plain(base, x):
            return base(x) + self(x)
        return low_rank(x, *self.factors(), self.scale, map_weight(base), bias_of(base), self._dropping())

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
            shapes = f"A {tuple(a.shape)} and B {tuple(b.shape)}"
            raise InputError(
                "the factors do not fit the layer", found=shapes, expected=f"A (r, {d_in}) and B ({d_out}, r)"
            )
        for name, value in (("A", a), ("B", b)):
            parameter = getattr(self, name)
            if parameter.shape == value.shape:
                parameter.copy_(value)
            else:
                setattr(self, name, nn.Parameter(value.to(parameter), requires_grad=parameter.requires_grad))
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

    def forward_with_base(self, base: nn.Module, x: Tensor) -> Float[Tensor, "... d_out"]:
        return base(x) + self(x)
