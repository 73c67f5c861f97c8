"""DoRA: the weight's rows in length and direction, ΔW = m ⊙ (W + s·B·A)/‖W + s·B·A‖ − W.

Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv 2402.09353, eq. 5. A (r, d_in) and B (d_out, r)
turn the rows of W (d_out, d_in), m (d_out,) sets their lengths and starts at ‖W‖. (The paper writes the weight the
other way round and speaks of columns; its code and PEFT's take the norm over the inputs, as here.)

The norm counts as a constant in the gradient, §4.3: the paper found a quarter of the memory saved and at most 0.2
points lost. `detach_norm: false` gives the exact gradient.

Dropout acts on the input of A and on nothing else, as in LoRA. The paper's code and PEFT's drop the base's input too,
in y = W x + (g − 1)·W x̃ + g·s·B·A x̃: one more product with W, and noise of the size of g − 1 on the frozen part.

PEFT multiplies B·A with an identity matrix of d_in², for the sake of FSDP, and keeps it for backward; `fused_dora.py`
does not, and gives the same gradients.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorascope.adapt.dequantise import dense_weight, is_quantised
from lorascope.adapt.dropout import dropped_product
from lorascope.adapt.fused_dora import apart, folded, row_norms
from lorascope.adapt.layer import Delta, Site
from lorascope.adapt.layers import autocast, bias_of, plain, weight_of
from lorascope.adapt.low_rank import LowRankDelta, LowRankEmbeddingDelta
from lorascope.adapt.method import methods
from lorascope.errors import InputError
from lorascope.linalg.arrays import Float
from lorascope.methods.lora import LoRA, LoRAConfig


@dataclass(frozen=True)
class DoRAConfig(LoRAConfig):
    """LoRA's settings. The paper: LLaMA-7B 2e-4 (r = 16) and 1e-4 (r = 32), α = 2r, dropout 0.05; the authors advise
    a slightly lower rate than LoRA's, and find half of its rank enough.

    Attributes:
        detach_norm: treat ‖W + s·B·A‖ as a constant in the gradient, as the paper does.
    """

    detach_norm: bool = True


class MagnitudeMixin(LowRankDelta):
    """What a low-rank update of directions adds to one: the lengths m, and what the norms are made of."""

    kind = "magnitude"
    squares: Tensor

    def measure(self, site: Site, detach_norm: bool) -> None:
        """Set m to the rows' lengths. InputError where a row of W has none, or W is no float."""
        lengths = row_lengths(site)
        self.m = nn.Parameter(lengths.clone())
        self.register_buffer("squares", lengths.square(), persistent=False)  # of W, which never changes
        self.detach_norm = detach_norm
        self._layer, self._transposed = (site.layer,), site.transposed  # in a tuple: the base's module, not ours

    @property
    def base_weight(self) -> Float[Tensor, "d_out d_in"]:
        weight = dense_weight(self._layer[0])
        return weight.t() if self._transposed else weight

    def norms(self) -> Float[Tensor, " d_out"]:
        """‖W + s·B·A‖ of each row; a constant unless the norm is trained through."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_norm):
            return row_norms(self.squares, self.base_weight, *self.factors(), self.scale)

    def roles(self) -> dict[str, Tensor]:
        return {**super().roles(), "m": self.m}

    @torch.no_grad()
    def load_roles(self, roles: Mapping[str, Tensor], scale: float) -> None:
        """Take A and B of any rank, and m."""
        if "A" not in roles:
            raise InputError("the file holds lengths alone", expected="A, B and m", hint="use method: magnitude")
        if roles["m"].shape != self.m.shape:
            raise InputError("m does not fit the layer", found=tuple(roles["m"].shape), expected=tuple(self.m.shape))
        super().load_roles(roles, scale)
        self.m.copy_(roles["m"])

    def changed(self, base: Tensor, update: Tensor) -> Tensor:
        """ΔW x from W x and s·B·A x: (g − 1) ⊙ W x + g ⊙ s·B·A x, in their dtype."""
        gain = self.m / self.norms()
        return (base * (gain - 1) + update * gain).to(base.dtype)


class DoRADelta(MagnitudeMixin):
    """ΔW of a Linear or a Conv1D."""

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        x = autocast(x)
        base = F.linear(x, self.base_weight.to(x.dtype))
        return self.changed(base, LowRankDelta.forward(self, x))

    def forward_with_base(self, base: nn.Module, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        x = autocast(x)
        if is_quantised(base):  # its own product, and none with the numbers of its codes
            out, bias = base(x), bias_of(base)
            product = out if bias is None else out - bias.to(out.dtype)
            return out + self.changed(product, LowRankDelta.forward(self, x))
        if not plain(base, x):
            return base(x) + self(x)
        a, b = self.factors()
        dropping = self._dropping()
        if x.dtype == self.m.dtype == self.base_weight.dtype and self.detach_norm and not dropping:
            return folded(x, a, b, self.m, self.scale, self.base_weight, bias_of(base))
        h = dropped_product(x, a, dropping) if dropping else F.linear(x, a.to(x.dtype))
        return apart(x, h, b, self.m, self.norms(), self.scale, self.base_weight, bias_of(base))


class DoRAEmbeddingDelta(MagnitudeMixin, LowRankEmbeddingDelta):
    """ΔW of an embedding; a row of the map is one of the width's coordinates over the whole vocabulary."""

    def forward(self, x: Tensor) -> Float[Tensor, "... d_out"]:
        return self.changed(F.embedding(x, weight_of(self._layer[0])), LowRankEmbeddingDelta.forward(self, x))

    forward_with_base = Delta.forward_with_base


@methods.register("dora")
class DoRA(LoRA):
    """Trains A, B and the rows' lengths of every layer: r·(d_in + d_out) + d_out parameters each."""

    name, paper, kind = "dora", "Liu et al. 2024, arXiv 2402.09353", "magnitude"
    detached_terms = "the norm of W + s·B·A"
    Config = DoRAConfig
    config: DoRAConfig
    layer_kinds = ("linear", "conv1d", "embedding")

    def make(self, site: Site, generator: torch.Generator) -> MagnitudeMixin:
        (a, b), from_base = self.start(site, generator)
        config = self.config
        delta: MagnitudeMixin
        if site.kind == "embedding":
            dtype, padding_idx = site.weight.dtype, site.padding_idx
            delta = DoRAEmbeddingDelta(a, b, config.scale, dtype, padding_idx, from_base)
        else:
            delta = DoRADelta(a, b, config.scale, config.dropout, from_base)
        delta.measure(site, config.detach_norm)
        return delta

    def parameter_count(self, site: Site) -> int:
        return super().parameter_count(site) + site.d_out

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "use_dora": True}


def row_lengths(site: Site) -> Float[Tensor, " d_out"]:
    """‖W‖ of each row of the map, in the master weights' dtype. InputError where a row is zero."""
    weight = dense_weight(site.layer)
    weight = weight.t() if site.transposed else weight
    lengths = torch.linalg.vector_norm(weight, dim=1, dtype=site.master_dtype)
    if (lengths == 0).any():
        where = int((lengths == 0).nonzero()[0])
        raise InputError(
            f"{site.name} has a row of zeros, which has no direction",
            found=f"row {where} of {len(lengths)}",
            hint="leave this layer out of targets",
        )
    return lengths
