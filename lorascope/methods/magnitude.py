"""Only the lengths of the weight's rows: ΔW = (m/‖W‖ − 1) ⊙ W, m (d_out,) trained from ‖W‖ on.

DoRA's m without its A and B (Liu et al. 2024, arXiv 2402.09353, eq. 5): one number for each output, as (IA)³'s scale
and BitFit's bias have, and no random matrix. y = (m/‖W‖) ⊙ (x Wᵀ) + bias; the bias is not scaled, as it is not in DoRA.

The file is a DoRA of rank 1 whose A and B are zero, which PEFT loads with the same outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorascope.adapt.layer import Delta, Site
from lorascope.adapt.layers import autocast, bias_of, plain, weight_of
from lorascope.adapt.method import Method, methods
from lorascope.errors import InputError
from lorascope.linalg.arrays import Float
from lorascope.methods.dora import row_lengths


@dataclass(frozen=True)
class MagnitudeConfig:
    """No settings. Lengths stand rates well above LoRA's; they start near ‖W‖, so that a step is a share of the row."""


class MagnitudeDelta(Delta):
    """ΔW of a Linear or a Conv1D by its rows' lengths. W is read from the layer, which never changes."""

    kind, scale = "magnitude", 1.0
    lengths: Tensor

    def __init__(self, site: Site):
        super().__init__()
        lengths = row_lengths(site)
        self.m = nn.Parameter(lengths.clone())
        self.register_buffer("lengths", lengths, persistent=False)
        self._layer, self._transposed = (site.layer,), site.transposed  # in a tuple: the base's module, not ours
        self.d_in = site.d_in

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        x = autocast(x)
        return (self._product(x) * (self.m / self.lengths - 1)).to(x.dtype)

    def forward_with_base(self, base: nn.Module, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        """In one product, of which the gradient keeps x Wᵀ and not x. g stays in float32 on a narrow base."""
        x = autocast(x)
        if not plain(base, x):
            return base(x) + self(x)
        y = self._product(x) * (self.m / self.lengths)
        bias = bias_of(base)
        return (y if bias is None else y + bias).to(x.dtype)

    def _product(self, x: Tensor) -> Tensor:
        weight = weight_of(self._layer[0])
        return F.linear(x, (weight.t() if self._transposed else weight).to(x.dtype))

    def roles(self) -> dict[str, Tensor]:
        """m, with an A (1, d_in) and a B (d_out, 1) of zeros, with which it is a DoRA that PEFT has a place for."""
        return {"A": self.m.new_zeros(1, self.d_in), "B": self.m.new_zeros(len(self.m), 1), "m": self.m}

    @torch.no_grad()
    def load_roles(self, roles: Mapping[str, Tensor], scale: float) -> None:
        """Take m. InputError where the file turns rows as well."""
        if "A" in roles and bool(roles["A"].any()) and bool(roles["B"].any()):
            raise InputError("the file turns the rows as well", expected="lengths alone", hint="use method: dora")
        if roles["m"].shape != self.m.shape:
            raise InputError("m does not fit the layer", found=tuple(roles["m"].shape), expected=tuple(self.m.shape))
        self.m.copy_(roles["m"])


@methods.register("magnitude")
class Magnitude(Method):
    """Trains the rows' lengths of every layer: d_out parameters each."""

    name, paper, kind = "magnitude", "Liu et al. 2024, arXiv 2402.09353, eq. 5 with m alone", "magnitude"
    Config = MagnitudeConfig
    layer_kinds = ("linear", "conv1d")

    def make(self, site: Site, generator: torch.Generator) -> MagnitudeDelta:
        return MagnitudeDelta(site)

    def parameter_count(self, site: Site) -> int:
        return site.d_out

    def settings(self) -> dict[str, Any]:
        return {"peft_type": "LORA", "use_dora": True, "r": 1, "lora_alpha": 1.0, "lora_dropout": 0.0}
