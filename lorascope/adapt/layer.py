"""One layer of a model with its one update: the place, the trained part, and both together.

Shapes are those of the map y = W x: W (d_out, d_in). Where a layer stores its weight as (d_in, d_out), as GPT-2's
Conv1D and every Embedding do, its `Site` says `transposed`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from lorascope.adapt.dequantise import dense_weight, is_quantised, plain_linear, requantising_loss
from lorascope.adapt.layers import bias_of, weight_of
from lorascope.adapt.weight_sum import MergedWeight, rounded_sum, widened
from lorascope.errors import InputError
from lorascope.linalg.arrays import Float
from lorascope.updates.base import Stored, Update, dense, kinds
from lorascope.weights.adapter import Rows


@dataclass(frozen=True)
class Site:
    """One layer of the base model that can carry an update.

    Attributes:
        name: its path in the base model, `model.layers.0.self_attn.q_proj`.
        layer: the layer itself.
        kind: what sort of layer it is.
        d_in, d_out: the sizes of the map; of an embedding, (vocabulary, width); of a convolution, (c_in·k, c_out).
        transposed: the weight is stored as (d_in, d_out).
    """

    name: str
    layer: nn.Module
    kind: Literal["linear", "conv1d", "embedding", "conv"]
    d_in: int
    d_out: int
    transposed: bool

    @property
    def weight(self) -> Tensor:
        """The stored weight: (d_out, d_in), or (d_in, d_out) where `transposed`, or a kernel (c_out, c_in, ...)."""
        return weight_of(self.layer)

    @property
    def padding_idx(self) -> int | None:
        """Of an embedding, the token that has no gradient."""
        return cast(int | None, self.layer.padding_idx)

    @property
    def master_dtype(self) -> torch.dtype:
        """What trained parameters are kept in: float32, whatever the base is stored in; float64 on a float64 base."""
        weight = self.weight
        return torch.promote_types(weight.dtype, torch.float32) if weight.is_floating_point() else torch.float32


class Delta(nn.Module, ABC):
    """The trained part of one layer: the roles of one update, and how it acts on the layer's input.

    Attributes:
        kind: the registered name of its kind in `lorascope.updates`.
        scale: the resolved scale, α/r and the like.
    """

    kind: str
    scale: float

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Only the update's output, ΔW applied to x, in x's floating dtype: (..., d_in) → (..., d_out).

        Of an embedding, x holds token ids (...) and the output has the dtype of the base's weight.
        """

    @abstractmethod
    def roles(self) -> dict[str, Tensor]:
        """The arrays by role name, in the kind's shapes, in the dtype they are trained in."""

    def load_roles(self, roles: Mapping[str, Tensor], scale: float) -> None:
        """Take these arrays and this scale, as read from a file. InputError where the method cannot hold them."""
        raise InputError(f"{type(self).__name__} cannot be filled from a file")

    def stored(self) -> dict[str, Stored]:
        """Those of the roles that an export need not copy: views of a shared array, or a draw in place of numbers."""
        return {}

    def forward_with_base(self, base: nn.Module, x: Tensor) -> Tensor:
        """base(x) plus the update's output. A kind that can do both in fewer passes overrides this."""
        return base(x) + self(x)

    @torch.no_grad()
    def weight(self, base: Tensor | None = None) -> Float[Tensor, "d_out d_in"]:
        """ΔW multiplied out, in the dtype of the roles. `base` is W (d_out, d_in), for kinds that need it."""
        return dense(kinds.get(self.kind).delta(self.roles(), self.scale, base))


@dataclass(frozen=True)
class Merged(MergedWeight):
    """What merging did to one layer; its `name` is the layer's path in the base model.

    Attributes:
        untied: paths of the layers that shared this weight and now keep the old one alone.
        requantising_loss: of a base in codes, ‖Q(W + ΔW) − (W + ΔW)‖_F / ‖ΔW‖_F: what coding the sum again would lose.
    """

    untied: tuple[str, ...] = ()
    requantising_loss: float | None = None


class AdaptedLayer(nn.Module):
    """A frozen layer and its one update: forward(x) = base(x) + delta(x)."""

    def __init__(self, site: Site, delta: Delta):
        super().__init__()
        self.base, self.delta = site.layer, delta
        self.name, self.transposed, self.embedding = site.name, site.transposed, site.kind == "embedding"
        self.kernel = tuple(site.weight.shape[2:]) if site.kind == "conv" else ()
        # Gemma's embeddings multiply their output by √width, which the update's output must share.
        self.output_scale = float(getattr(site.layer, "embed_scale", 1.0)) if self.embedding else 1.0
        self._original: nn.Parameter | None = None
        self._original_bias: nn.Parameter | None = None
        self._coded: tuple[nn.Module, ...] = ()  # of a merged layer whose weight is in codes, that layer
        self.train(site.layer.training)

    @property
    def weight(self) -> Tensor:
        """The layer's weight as it is now, for model code that asks a layer for its dtype or device."""
        return weight_of(self.base)

    @property
    def bias(self) -> Tensor | None:
        return bias_of(self.base)

    @property
    def merged(self) -> bool:
        return self._original is not None or bool(self._coded)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) → (..., d_out), or token ids (...) → (..., d_out)."""
        if self.merged:
            return self.base(x)
        if self.output_scale != 1.0:
            return self.base(x) + self.delta(x) * self.output_scale
        return self.delta.forward_with_base(self.base, x)

    @torch.no_grad()
    def merge(self) -> Merged:
        """Put W + ΔW in W's place, summed in float32 or wider and rounded once to W's dtype.

        The base gets a new parameter and the old one is kept aside: whoever shares the old one (tied embeddings) keeps
        it unchanged, and `unmerge` brings back the very same bits. Both are in memory until then. A weight in codes is
        dequantised, and an ordinary Linear takes the layer's place.

        Raises:
            InputError: the layer is merged already, or a number in the sum is NaN or infinite.
        """
        if self.merged:
            raise InputError(f"{self.name} is merged already", hint="unmerge it first")
        if is_quantised(self.base):
            return self._merge_coded()
        original = cast(nn.Parameter, self.base.weight)
        wide = widened(original)
        wide = wide.flatten(1) if self.kernel else wide
        delta = self.delta.weight(wide.t() if self.transposed else wide)
        native = delta.view(original.shape) if self.kernel else delta.t() if self.transposed else delta
        stored, what_it_did = rounded_sum(self.name, original, native)
        bias = self._merged_bias(self.base)
        self.base.weight = nn.Parameter(stored, requires_grad=False)
        self._original = original
        self._put_bias(bias)
        return Merged(**vars(what_it_did))

    def _merge_coded(self) -> Merged:
        base, dense = self.base, dense_weight(self.base)
        delta = self.delta.weight(widened(dense))
        stored, what_it_did = rounded_sum(self.name, dense, delta)
        merged = plain_linear(base, stored)
        bias = self._merged_bias(merged)
        self.base, self._coded = merged, (base,)
        self._put_bias(bias)
        return Merged(**vars(what_it_did), requantising_loss=requantising_loss(base, stored, delta))

    def _merged_bias(self, base: nn.Module) -> Tensor | None:
        """The bias with what the update does to it, where it acts on the output as a whole; else None."""
        bias = bias_of(base)
        if bias is None:
            return None
        change = kinds.get(self.delta.kind).bias_change(self.delta.roles(), self.delta.scale, widened(bias))
        return None if change is None else rounded_sum(f"{self.name}.bias", bias, change)[0]

    def _put_bias(self, bias: Tensor | None) -> None:
        if bias is not None:
            self._original_bias = cast(nn.Parameter, self.base.bias)
            self.base.bias = nn.Parameter(bias, requires_grad=False)

    def unmerge(self) -> None:
        """Put the original weight and bias back, bit for bit. Nothing happens where nothing is merged."""
        if self._coded:
            (self.base,) = self._coded
            self._original_bias, self._coded = None, ()
        if self._original is not None:
            self.base.weight = self._original
        if self._original_bias is not None:
            self.base.bias = self._original_bias
        self._original = self._original_bias = None


class TrainedPart(nn.Module, ABC):
    """A trained piece that is not the update of one layer's map: parameters of the base itself, a soft prompt, a
    bottleneck between two layers. Its parameters and buffers are the adapter's; it must own none of the base's modules.

    Attributes:
        reason: why its tensors are no weight update, where they are none.
        context_tokens: how many positions of the context it takes at inference.
    """

    reason: ClassVar[str] = ""

    @property
    def context_tokens(self) -> int:
        return 0

    @property
    def merged(self) -> bool:
        """Whether it is in the weights."""
        return False

    def updates(self) -> dict[str, Update]:
        """What it changes in weights of the base, by name; nothing by default."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds of it besides `updates`, by name: all of its state by default."""
        return dict(self.state_dict())

    def rows(self) -> dict[str, Rows]:
        """Trained rows of embeddings, by the embedding's parameter."""
        return {}

    def load_rows(self, rows: Mapping[str, Rows]) -> None:
        """Take the rows of a file. InputError where they do not fit."""

    @abstractmethod
    def load(self, updates: Mapping[str, Update], tensors: Mapping[str, Tensor]) -> None:
        """Take what a file holds under the names of `updates` and `tensors`. InputError where it does not fit."""

    @abstractmethod
    def remove(self) -> None:
        """Take it out of the model again, which then is what it was, bit for bit."""

    def set_enabled(self, on: bool) -> None:
        """Take part in the forward pass, or leave it to the base alone; nothing by default."""

    def merge(self) -> list[Merged]:
        """Put it into the weights. InputError where no weight can hold it."""
        raise InputError(f"{type(self).__name__} cannot be merged", hint="it does not change a weight")

    def unmerge(self) -> None:
        """Undo `merge`; nothing happens where nothing is merged."""
