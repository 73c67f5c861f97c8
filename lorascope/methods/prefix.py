"""Prefix tuning: trained keys and values before those of the text, in every layer; the model itself stays frozen.

Li and Liang 2021, arXiv 2101.00190, §4.2: layer l attends over [K_l; k(X)] and [V_l; v(X)], with K_l, V_l (n, heads ·
head_dim) for n virtual tokens. §4.3: trained directly they are unstable, so that the paper computes them from a smaller
P' (n, d') by a network, K, V = W₂·tanh(W₁·P' + b₁) + b₂ (`prefix_projection`), which is dropped after training: a file
holds the keys and values alone. §7.4: directly trained ones start best as the keys and values that the frozen model has
for real tokens, which is `init: vocab` or `text` here; PEFT's code draws N(0, 1).

Numbers trained: n · 2·layers·heads·head_dim directly; with the projection to a hidden size h (512 in the paper for
GPT-2, 800 for summaries) n·d' + d'·h + h + (h + 1)·2·layers·heads·head_dim, with d' = heads·head_dim as in PEFT.

Positions of the text begin at n. Keys are what attention compares with: where positions are rotations (RoPE), virtual
keys are stored as they are used, unrotated, as in PEFT, whose PREFIX_TUNING files (`prompt_embeddings`, of shape
(n, layers · 2 · heads · head_dim), each layer's key before its value) go both ways.

How: each attention is handed, in place of its cache, an object that puts K_l and V_l in front, and a mask that lets
every token see them. So it works in encoders, which take no cache, under gradient checkpointing, where transformers
drops the cache and PEFT therefore refuses, and while text is generated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorascope.adapt.inject import layer_generator
from lorascope.adapt.layer import Site, TrainedPart
from lorascope.adapt.layers import bias_of, weight_of
from lorascope.adapt.method import Method, methods
from lorascope.adapt.protocols import AdaptedModel
from lorascope.adapt.sublayers import (
    Heads,
    attentions,
    backbone,
    by_name,
    input_embeddings,
    key_value_sizes,
    learned_positions,
    parameters,
    quietly,
    require_room,
)
from lorascope.errors import InputError
from lorascope.linalg.arrays import Float
from lorascope.methods.prompt import KEY, initial_tokens, require_init, require_virtual_tokens
from lorascope.updates.base import Update

Init = Literal["vocab", "text", "gaussian"]


@dataclass(frozen=True)
class PrefixConfig:
    """Settings of prefix tuning. The paper's learning rates are 5e-5 to 8e-5, over many more steps; on the packaged
    task, with its head, 1e-2 and an `encoder_lr_ratio` of 0.03 do well, and one rate for both (5e-4, 3e-3) does not.

    Attributes:
        num_virtual_tokens: n, taken from the context; the paper has 10 for tables and 200 for summaries.
        prefix_projection: compute keys and values by a network while training.
        encoder_hidden_size: the network's hidden size, h.
        encoder_lr_ratio: the network's learning rate, and P''s, by that of everything else. A step of Adam moves a sum
            of h terms h times as far as a number that is trained directly; a head that trains besides wants a rate at
            which the network diverges. The paper has no head, and one rate.
        init: without the network, "vocab" (the frozen model's keys and values of drawn tokens), "text" (those of
            `init_text`) or "gaussian", N(0, init_std²).
        init_text: for "text".
        init_std: for "gaussian".
        tokenizer_name_or_path: for "text"; null takes the base model's own.
    """

    num_virtual_tokens: int = 20
    prefix_projection: bool = True
    encoder_hidden_size: int = 512
    encoder_lr_ratio: float = 1.0
    init: Init = "vocab"
    init_text: str | None = None
    init_std: float = 1.0
    tokenizer_name_or_path: str | None = None

    def __post_init__(self) -> None:
        require_virtual_tokens(self.num_virtual_tokens)
        require_init(self.init, get_args(Init), self.init_text)
        if self.encoder_hidden_size < 1 or self.init_std < 0 or self.encoder_lr_ratio <= 0:
            raise InputError("encoder_hidden_size and encoder_lr_ratio must be positive, and init_std not negative")


class Prepended:
    """What an attention gets as its cache: `update` gives keys and values with the virtual ones in front.

    Args:
        key, value: (heads, n, head_dim).
        cache: the attention's own cache, which holds the text alone.
    """

    def __init__(self, key: Tensor, value: Tensor, cache: Any):
        self.key, self.value, self.cache = key, value, cache

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values (batch, heads, t, head_dim) → (batch, heads, n + t, head_dim)."""
        if self.cache is not None:
            key, value = self.cache.update(key, value, layer_idx, *args, **kwargs)
        virtual_key, virtual_value = (t.to(key).expand(len(key), -1, -1, -1) for t in (self.key, self.value))
        return torch.cat([virtual_key, key], 2), torch.cat([virtual_value, value], 2)


class Prefix(TrainedPart):
    """Keys and values of n virtual tokens in every layer, in float32 or wider."""

    reason = "keys and values of virtual tokens in every layer, and no change of a weight"

    def __init__(
        self, model: nn.Module, sizes: Heads, table: Float[Tensor, "n _"], network: nn.Sequential | None = None
    ):
        super().__init__()
        self.sizes = sizes
        self.table, self.network = nn.Parameter(table), network
        self._places = (backbone(model), attentions(model))  # in a tuple, so that they are no children of this module
        self._limit = learned_positions(backbone(model))
        self._computed: tuple[Any, Tensor] | None = None
        self._hooks: list[Any] = []
        self.set_enabled(True)

    @property
    def context_tokens(self) -> int:
        return self.table.shape[0]

    def prompt_embeddings(self) -> Float[Tensor, "n all"]:
        """All keys and values as files hold them: (n, layers · 2 · heads · head_dim).

        Where no gradient is wanted, what the network gave is kept until a number in it changes.
        """
        if self.network is None:
            return self.table
        if torch.is_grad_enabled():
            return self.network(self.table)
        state = tuple((p.data_ptr(), p._version) for p in self.parameters())
        if self._computed is None or self._computed[0] != state:
            self._computed = (state, self.network(self.table))
        return self._computed[1]

    def keys_values(self, layer: int) -> Float[Tensor, "2 heads n head_dim"]:
        """The key and the value of one layer; of the network, only the rows of this layer are multiplied."""
        _, heads, head_dim = self.sizes
        width = 2 * self.sizes.width
        columns = slice(layer * width, (layer + 1) * width)
        if self.network is None or not torch.is_grad_enabled():
            both = self.prompt_embeddings()[:, columns]
        else:
            *hidden, last = self.network.children()
            bias = bias_of(last)
            h = self.table
            for each in hidden:
                h = each(h)
            both = F.linear(h, weight_of(last)[columns], None if bias is None else bias[columns])
        return both.unflatten(1, (2, heads, head_dim)).permute(1, 2, 0, 3)

    def set_enabled(self, on: bool) -> None:
        if on and not self._hooks:
            self._hooks = _hooked_attentions(self._places[1], self._before_attention)
            self._hooks.append(_hooked_positions(self._places[0], self._moved))
        elif not on:
            for hook in self._hooks:
                hook.remove()
            self._hooks = []

    def remove(self) -> None:
        self.set_enabled(False)

    def tensors(self) -> dict[str, Tensor]:
        return {KEY: self.prompt_embeddings()}

    @torch.no_grad()
    def load(self, updates: Mapping[str, Update], tensors: Mapping[str, Tensor]) -> None:
        """Take keys and values of any n. They are then trained directly: no network gives exactly these."""
        table, width = tensors[KEY], self.sizes.layers * 2 * self.sizes.width
        if table.ndim != 2 or table.shape[1] != width:
            raise InputError(f"{KEY} has another shape", found=tuple(table.shape), expected=f"(n, {width})")
        self.table, self.network = nn.Parameter(table.to(self.table)), None

    def _moved(self, past: int, tokens: int) -> int:
        require_room(self.context_tokens, past + tokens, self._limit)
        return self.context_tokens

    def _before_attention(self, layer: int, module: nn.Module, call: dict[str, Any]) -> None:
        """Put this layer's keys and values, and a mask that shows them, into the call of an attention."""
        key, value = self.keys_values(layer)
        cache = call.get("past_key_values")
        mask, tokens = call.get("attention_mask"), call["hidden_states"].shape[1]
        if mask is None and tokens > 1 and getattr(module, "is_causal", False):
            past = 0 if cache is None else cache.get_seq_length(layer)
            mask = torch.ones(1, 1, tokens, past + tokens, dtype=torch.bool, device=key.device).tril(past)
        if mask is not None:
            if not isinstance(mask, Tensor) or mask.ndim != 4:
                raise InputError("a prefix needs a mask of (batch, 1, tokens, tokens)", found=type(mask).__name__)
            call["attention_mask"] = F.pad(mask, (self.context_tokens, 0), value=mask.dtype == torch.bool)
        call["past_key_values"] = Prepended(key, value, cache)


def _hooked_attentions(modules: list[nn.Module], change: Any) -> list[Any]:
    """Hooks that let `change(layer, module, call)` alter the arguments of every attention."""

    def hook(layer: int) -> Any:
        names = parameters(modules[layer])

        def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            call = by_name(names, args, kwargs)
            change(layer, module, call)
            return (), call

        return before

    return [m.register_forward_pre_hook(hook(i), with_kwargs=True) for i, m in enumerate(modules)]


def _hooked_positions(base: nn.Module, moved: Any) -> Any:
    """A hook that moves the text's positions on by `moved(past tokens, new tokens)`.

    Where the embeddings count positions themselves (BERT, RoBERTa), they are told of so many tokens before.
    """
    embeddings = getattr(base, "embeddings", None)
    counting = isinstance(embeddings, nn.Module) and "past_key_values_length" in parameters(embeddings)
    module: nn.Module = embeddings if isinstance(embeddings, nn.Module) and counting else base
    names = parameters(module)
    if "position_ids" not in names:
        raise InputError(
            "a prefix cannot be put before this model's text: its positions cannot be moved",
            found=type(base).__name__,
            expected="a model that takes position_ids",
        )

    def before(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        call = by_name(names, args, kwargs)
        x = call["input_ids"] if call.get("input_ids") is not None else call["inputs_embeds"]
        cache = call.get("past_key_values")
        past = call.get("past_key_values_length", 0) if counting else cache.get_seq_length() if cache is not None else 0
        n = moved(past, x.shape[1])
        if call.get("position_ids") is not None:
            call["position_ids"] = call["position_ids"] + n
        elif counting:
            call["past_key_values_length"] = past + n
        else:
            call["position_ids"] = torch.arange(past + n, past + n + x.shape[1], device=x.device)[None]
        return (), call

    return module.register_forward_pre_hook(before, with_kwargs=True)


class _Recorder:
    """A cache that keeps what the model puts into it: (batch, heads, t, head_dim) each."""

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.key, self.value = key, value
        return key, value


@torch.no_grad()
def real_keys_values(model: nn.Module, tokens: Tensor) -> Float[Tensor, "n all"]:
    """The frozen model's own keys and values of these tokens (n,), laid out as a file's."""
    modules = attentions(model)
    recorders = [_Recorder() for _ in modules]
    hooks = _hooked_attentions(modules, lambda layer, _, call: call.update(past_key_values=recorders[layer]))
    restore = quietly(model)
    try:
        base = backbone(model)
        base(input_ids=tokens[None].to(input_embeddings(base).weight.device))
    finally:
        restore()
        for hook in hooks:
            hook.remove()
    recorded = [cast(Tensor, tensor) for r in recorders for tensor in (r.key, r.value)]  # (1, heads, n, head_dim) each
    pairs = [tensor[0].transpose(0, 1).flatten(1) for tensor in recorded]  # (n, width) each
    return torch.cat(pairs, 1)


@methods.register("prefix")
class PrefixTuning(Method):
    """Trains keys and values of n virtual tokens in every layer, through a small network."""

    name, paper, kind = "prefix", "Li and Liang 2021, arXiv 2101.00190", ""
    Config = PrefixConfig
    config: PrefixConfig
    layer_kinds = ()
    uses_targets = False
    not_identity = "virtual tokens are seen by every other token, whatever they hold"

    def install(self, model: nn.Module, seed: int) -> dict[str, TrainedPart]:
        sizes, generator = key_value_sizes(model), layer_generator(seed, KEY, f"n={self.config.num_virtual_tokens}")
        weight = input_embeddings(backbone(model)).weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        table, network = self._initial(model, sizes, generator)
        part = Prefix(model, sizes, table.to(weight.device, dtype), network and network.to(weight.device, dtype))
        return {"prefix": part}

    def total_parameter_count(self, model: nn.Module, sites: list[Site]) -> int:
        sizes, n, h = key_value_sizes(model), self.config.num_virtual_tokens, self.config.encoder_hidden_size
        width, out = sizes.width, 2 * sizes.layers * sizes.width
        return n * width + width * h + h + (h + 1) * out if self.config.prefix_projection else n * out

    def parameter_groups(self, injected: AdaptedModel, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """The network and its input at a rate of their own, everything else at `lr`."""
        part = injected.parts["prefix"]
        of_network = {id(p) for p in part.parameters()} if part.network is not None else set()
        trained = list(injected.trainable().values())
        groups = (
            ([p for p in trained if id(p) not in of_network], lr),
            ([p for p in trained if id(p) in of_network], lr * self.config.encoder_lr_ratio),
        )
        return [{"params": params, "lr": rate, "weight_decay": weight_decay} for params, rate in groups if params]

    def settings(self) -> dict[str, Any]:
        """Of PEFT's PREFIX_TUNING, without a projection: what a file holds is what the network gave."""
        part = next(iter(self.injected.parts.values())) if self.injected else None
        sizes = {} if part is None else _peft_sizes(part.sizes)
        return {
            "peft_type": "PREFIX_TUNING",
            "num_virtual_tokens": part.context_tokens if part else self.config.num_virtual_tokens,
            "num_transformer_submodules": 1,
            "prefix_projection": False,
            **sizes,
        }

    def _initial(
        self, model: nn.Module, sizes: Heads, generator: torch.Generator
    ) -> tuple[Tensor, nn.Sequential | None]:
        """The table (n, ...) and, with a projection, its network."""
        config, n = self.config, self.config.num_virtual_tokens
        if config.prefix_projection:
            table = torch.empty(n, sizes.width).normal_(generator=generator)
            out = 2 * sizes.layers * sizes.width
            return table, _network(sizes.width, config.encoder_hidden_size, out, generator)
        if config.init == "gaussian":
            out = 2 * sizes.layers * sizes.width
            return torch.empty(n, out).normal_(std=config.init_std, generator=generator), None
        return real_keys_values(model, initial_tokens(backbone(model), config, generator)), None


def _network(width: int, hidden: int, out: int, generator: torch.Generator) -> nn.Sequential:
    """W₂·tanh(W₁·x + b₁) + b₂, uniform in ±1/√d_in as torch's Linear is, drawn from `generator`."""
    first, last = nn.Linear(width, hidden), nn.Linear(hidden, out)
    with torch.no_grad():
        for layer in (first, last):
            bound = layer.in_features**-0.5
            for parameter in layer.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
    return nn.Sequential(first, nn.Tanh(), last)


def _peft_sizes(sizes: Heads) -> dict[str, int]:
    return {"num_layers": sizes.layers, "num_attention_heads": sizes.heads, "token_dim": sizes.width}
