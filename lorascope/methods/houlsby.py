"""Houlsby adapters: a bottleneck in series with every sublayer, h ← h + U·f(D·h + b₁) + b₂.

Houlsby et al. 2019, arXiv 1902.00751, §2.1: D (m, d) brings the sublayer's output h (…, d) down to m numbers, f is a
nonlinearity, U (d, m) brings them up again, and a residual runs around both. One adapter stands after the attention's
last projection and one after the feed-forward network's second one, each before the block's own residual (and, in BERT,
before the LayerNorm). 2·m·d + d + m numbers each. D and U start at a truncated N(0, 0.01²), biases at zero, so that the
adapter is nearly the identity. The paper searches m in {8, 64, 256} and learning rates from 3e-5 to 3e-3.

The paper and its code train gain and offset of every LayerNorm besides, and LoRA's paper counts them in when it
compares; later code mostly does not: `layer_norms: false`. The paper's code has the sublayer's dropout before the
adapter, here it comes after it.

`placement: pfeiffer` keeps the feed-forward adapter of each block alone, which Pfeiffer et al. 2021 (arXiv 2005.00247)
found to do as well with half the numbers; their second LayerNorm around it is not reproduced.

A bottleneck is no change of a weight: it can neither be merged nor analysed as ΔW, and costs two products in every
sublayer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorascope.adapt.base_params import BaseParam, base_parameters, fp32_master_weights, frozen_parameters
from lorascope.adapt.inject import layer_generator
from lorascope.adapt.layer import Site, TrainedPart
from lorascope.adapt.layers import weight_of
from lorascope.adapt.method import Method, methods
from lorascope.adapt.sublayers import sublayer_outputs
from lorascope.errors import InputError
from lorascope.linalg.arrays import Float
from lorascope.methods.layernorm import is_norm
from lorascope.updates.base import Update

Placement = Literal["houlsby", "pfeiffer"]
Nonlinearity = Literal["gelu", "relu", "silu", "tanh"]
NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class HoulsbyConfig:
    """Settings of Houlsby adapters. On the packaged task a learning rate of 3e-3 does well.

    Attributes:
        bottleneck: m.
        placement: "houlsby", after both sublayers, or "pfeiffer", after the feed-forward one alone.
        nonlinearity: f; the paper's code has gelu.
        layer_norms: train the LayerNorms, too.
        init_std: standard deviation of D and U at the start, cut at two of them. 0 makes U zero, and the fresh adapter
            the identity.
    """

    bottleneck: int = 64
    placement: Placement = "houlsby"
    nonlinearity: Nonlinearity = "gelu"
    layer_norms: bool = True
    init_std: float = 1e-2

    def __post_init__(self) -> None:
        if self.bottleneck < 1:
            raise InputError("bottleneck is too small", found=self.bottleneck, expected="a whole number from 1")
        if self.init_std < 0:
            raise InputError("init_std is negative", found=self.init_std)
        if self.placement not in get_args(Placement):
            raise InputError("placement is unknown", found=repr(self.placement), expected="houlsby or pfeiffer")
        if self.nonlinearity not in NONLINEARITIES:
            raise InputError(
                "nonlinearity is unknown", found=repr(self.nonlinearity), expected=", ".join(NONLINEARITIES)
            )


class Bottleneck(TrainedPart):
    """One adapter, behind the layer at `path`. Its parameters are float32 or wider; it computes in h's dtype."""

    reason = "a bottleneck between two layers: a nonlinear map, and no change of a weight"

    def __init__(self, path: str, layer: nn.Module, width: int, config: HoulsbyConfig, generator: torch.Generator):
        super().__init__()
        self.path, self.nonlinearity = path, NONLINEARITIES[config.nonlinearity]
        dtype = torch.promote_types(weight_of(layer).dtype, torch.float32)
        std, m = config.init_std, config.bottleneck
        down, up = torch.empty(m, width), torch.zeros(width, m)
        nn.init.trunc_normal_(down, std=std or 1e-2, a=-2 * (std or 1e-2), b=2 * (std or 1e-2), generator=generator)
        if std:
            nn.init.trunc_normal_(up, std=std, a=-2 * std, b=2 * std, generator=generator)
        self.down, self.down_bias = nn.Parameter(down.to(dtype)), nn.Parameter(torch.zeros(m, dtype=dtype))
        self.up, self.up_bias = nn.Parameter(up.to(dtype)), nn.Parameter(torch.zeros(width, dtype=dtype))
        self._layer = (layer,)  # in a tuple, so that the base's layer is no child of this module
        self.to(weight_of(layer).device)
        self._hook: Any = None
        self.set_enabled(True)

    def forward(self, h: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """h + U·f(D·h + b₁) + b₂."""
        down, down_bias, up, up_bias = (p.to(h.dtype) for p in (self.down, self.down_bias, self.up, self.up_bias))
        return h + F.linear(self.nonlinearity(F.linear(h, down, down_bias)), up, up_bias).to(h.dtype)

    def set_enabled(self, on: bool) -> None:
        if on and self._hook is None:
            self._hook = self._layer[0].register_forward_hook(lambda _, __, output: self(output))
        elif not on and self._hook is not None:
            self._hook.remove()
            self._hook = None

    def remove(self) -> None:
        self.set_enabled(False)

    def tensors(self) -> dict[str, Tensor]:
        return {f"{self.path}.adapter.{name}": tensor for name, tensor in self.state_dict().items()}

    @torch.no_grad()
    def load(self, updates: Mapping[str, Update], tensors: Mapping[str, Tensor]) -> None:
        """Take D, U and the biases, of any m."""
        loaded = {name: tensors[f"{self.path}.adapter.{name}"] for name in self.state_dict()}
        width, m = self.up.shape[0], loaded["down"].shape[0]
        wanted = {"down": (m, width), "down_bias": (m,), "up": (width, m), "up_bias": (width,)}
        for name, tensor in loaded.items():
            if tuple(tensor.shape) != wanted[name]:
                raise InputError(
                    f"{self.path}.adapter.{name} has another shape", found=tuple(tensor.shape), expected=wanted[name]
                )
            setattr(self, name, nn.Parameter(tensor.to(getattr(self, name))))


def _hidden_size(model: nn.Module) -> int:
    config: Any = model.config
    return config.hidden_size


@methods.register("houlsby")
class Houlsby(Method):
    """Trains a bottleneck of 2·m·d + d + m parameters after each sublayer, and the LayerNorms."""

    name, paper, kind, format = "houlsby", "Houlsby et al. 2019, arXiv 1902.00751", "", "lorascope"
    Config = HoulsbyConfig
    config: HoulsbyConfig
    layer_kinds = ()
    uses_targets = False
    not_sharded: str | None = (
        "it trains the LayerNorms, which every process must hold whole, unless layer_norms is false"
    )
    not_identity = "the bottlenecks start near the identity, not at it"

    def __init__(self, config: HoulsbyConfig | None = None, **settings: Any):
        super().__init__(config, **settings)
        if not self.config.layer_norms:
            self.not_sharded = None

    def install(self, model: nn.Module, seed: int) -> dict[str, TrainedPart]:
        parts: dict[str, TrainedPart] = {}
        for path in self._places(model):
            layer, generator = model.get_submodule(path), layer_generator(seed, path, f"m={self.config.bottleneck}")
            parts[f"{path}.adapter"] = Bottleneck(path, layer, _hidden_size(model), self.config, generator)
        return {**parts, **fp32_master_weights(self._norms(frozen_parameters(model)))}

    def total_parameter_count(self, model: nn.Module, sites: list[Site]) -> int:
        d, m = _hidden_size(model), self.config.bottleneck
        norms = sum(param.parameter.numel() for param in self._norms(base_parameters(model)))
        return len(self._places(model)) * (2 * m * d + d + m) + norms

    def settings(self) -> dict[str, Any]:
        return {"method": self.name, **vars(self.config)}

    def _norms(self, base_params: list[BaseParam]) -> list[BaseParam]:
        return [param for param in base_params if is_norm(param.module)] if self.config.layer_norms else []

    def _places(self, model: nn.Module) -> list[str]:
        pairs = sublayer_outputs(model)
        return [path for pair in pairs for path in (pair[1:] if self.config.placement == "pfeiffer" else pair)]
