"""(IA)³: activations multiplied by a trained vector, y = l ⊙ (W x + bias) or y = W (l ⊙ x) + bias.

Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
arXiv 2205.05638, §3.3: keys and values are scaled as they leave their maps, l (d_out,), and the feed-forward layer's
inner activations as they enter its second map, l (d_in,). l starts at 1. In weights: ΔW = (l − 1) ⊙ W, by rows or by
columns; where outputs are scaled the bias is too, which merging respects.

The paper's model is T5, without biases; PEFT scales the activation and so the bias, and this does as PEFT does.
Targets are the user's: PEFT's for the usual models are [key, value, output.dense] (BERT), [k_proj, v_proj, down_proj]
(Llama), [c_attn, mlp.c_proj] (GPT-2). Its name rule is by endings, so that BERT's `output.dense` also takes in the
attention's, which the paper leaves alone.

Learning rates: the paper 3e-3 (Adafactor); with AdamW far more than LoRA's: 1e-4 is much too low (PEFT's own
comparison: GSM8K 31 % at 1e-4, 40 % at 1e-3, 46 % at 5e-3 on all of attention).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorascope.adapt.layer import Delta, Site
from lorascope.adapt.layers import autocast, weight_of
from lorascope.adapt.method import Method, methods
from lorascope.architectures import FEEDFORWARD_OUTPUTS
from lorascope.errors import InputError
from lorascope.linalg.arrays import Float

# The second map of the feed-forward layer, in the usual models: PEFT's lists, together.


@dataclass(frozen=True)
class IA3Config:
    """Settings of (IA)³.

    Attributes:
        feedforward_modules: endings of the names of those targets whose inputs are scaled, not their outputs.
    """

    feedforward_modules: tuple[str, ...] = FEEDFORWARD_OUTPUTS


class ScalingDelta(Delta):
    """ΔW = (l − 1) ⊙ W: `out_scale` l (d_out,) over the rows, or `in_scale` l (d_in,) over the columns."""

    kind, scale = "scaling", 1.0

    def __init__(self, site: Site, role: str):
        super().__init__()
        size = site.d_out if role == "out_scale" else site.d_in
        self.l = nn.Parameter(torch.ones(size, dtype=site.master_dtype))
        self.role, self.sizes = role, {"out_scale": site.d_out, "in_scale": site.d_in}
        self._layer, self._transposed = (site.layer,), site.transposed  # in a tuple: the base's module, not ours

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        """ΔW x. The change of the bias is the layer's affair: see `forward_with_base`."""
        weight = weight_of(self._layer[0])
        weight, x = (weight.t() if self._transposed else weight), autocast(x)
        less = self.l - 1
        if self.role == "in_scale":
            return F.linear((x * less).to(x.dtype), weight.to(x.dtype))
        return (F.linear(x, weight.to(x.dtype)) * less).to(x.dtype)

    def forward_with_base(self, base: nn.Module, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        """The whole layer's output, the product in the dtype of l, a master weight: a narrow l would spoil it."""
        if self.role == "in_scale":
            return base((x * self.l).to(x.dtype))
        y = base(x)
        return (y * self.l).to(y.dtype)

    def roles(self) -> dict[str, Tensor]:
        return {self.role: self.l}

    @torch.no_grad()
    def load_roles(self, roles: Mapping[str, Tensor], scale: float) -> None:
        """Take l, over rows or columns as the file has it."""
        ((role, l),) = roles.items()
        if l.shape != (self.sizes[role],) or scale != 1.0:
            found = f"{role} {tuple(l.shape)}, scale {scale:g}"
            raise InputError("the scaling does not fit the layer", found=found, expected=f"({self.sizes[role]},)")
        if role == self.role:
            self.l.copy_(l)
        else:
            self.role, self.l = role, nn.Parameter(l.to(self.l))


@methods.register("ia3")
class IA3(Method):
    """Trains one factor for each output of a layer, or for each input of a feed-forward layer's second map."""

    name, paper, kind = "ia3", "Liu et al. 2022, arXiv 2205.05638", "scaling"
    Config = IA3Config
    config: IA3Config
    layer_kinds = ("linear", "conv1d")

    def make(self, site: Site, generator: torch.Generator) -> ScalingDelta:
        return ScalingDelta(site, self.role(site))

    def role(self, site: Site) -> str:
        """Which side of the layer is scaled."""
        return "in_scale" if site.name.endswith(tuple(self.config.feedforward_modules)) else "out_scale"

    def parameter_count(self, site: Site) -> int:
        return site.d_in if self.role(site) == "in_scale" else site.d_out

    def settings(self) -> dict[str, Any]:
        return {"peft_type": "IA3"}
