"""Where in a live model an adapter's tensors belong: its parameters by the names that files have for them."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lorascope.errors import InputError
from lorascope.updates.base import Update
from lorascope.weights import names as naming
from lorascope.weights.adapter import Adapter
from lorascope.weights.fused_experts import Place, place


@dataclass(frozen=True)
class ModelParameters:
    """The parameters of a model, by their own names and by those that differ by a root (`weights.names`)."""

    model: nn.Module

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """As they were when the model was given: the tied ones under each of their names."""
        return dict(self.model.named_parameters(remove_duplicate=False))

    @cached_property
    def _rootless(self) -> dict[str, list[str]]:
        by_rest: dict[str, list[str]] = {}
        for name in self.parameters:
            for rest in naming.rootless(name):
                by_rest.setdefault(rest, []).append(name)
        return by_rest

    def name(self, wanted: str) -> str | None:
        """The model's own name of a parameter; None where it has none."""
        plain = naming.plain(wanted)
        for one in (plain, *naming.renamed(plain), *naming.rootless(plain)):
            if one in self.parameters:
                return one
        matches = self._rootless.get(plain, [])
        return matches[0] if len(matches) == 1 else None

    def buffer(self, wanted: str) -> Tensor | None:
        """A buffer of the model, such as a BatchNorm's running mean; None where it has none of that name."""
        plain = naming.plain(wanted)
        return next((self._buffers[one] for one in (plain, *naming.rootless(plain)) if one in self._buffers), None)

    @cached_property
    def _buffers(self) -> dict[str, Tensor]:
        return dict(self.model.named_buffers())

    def sharers(self, name: str) -> list[str]:
        """All names of the parameter of that name: more than one where it is tied."""
        wanted = self.parameters[name]
        return [other for other, parameter in self.parameters.items() if parameter is wanted]

    def module(self, name: str) -> tuple[nn.Module, str]:
        """The module that holds the parameter of that name, and the attribute it is."""
        path, _, attribute = name.rpartition(".")
        return self.model.get_submodule(path), attribute

    def current(self, name: str) -> Tensor:
        """The parameter as it is now."""
        module, attribute = self.module(name)
        return getattr(module, attribute)

    @torch.no_grad()
    def put(self, name: str, values: Tensor) -> bool:
        """Give the module of this name its own parameter with these values; whether that untied it from another.

        Whoever shared the old one keeps that. The config then no longer says that embeddings are tied, or saving and
        loading would tie them again.
        """
        module, attribute = self.module(name)
        old = getattr(module, attribute)
        tied = any(
            other is not module and any(parameter is old for parameter in other._parameters.values())
            for other in self.model.modules()
        )
        setattr(module, attribute, nn.Parameter(values.to(old), requires_grad=False))
        if tied:
            untie(self.model)
        return tied


def untie(model: nn.Module) -> None:
    """Let the config say that embeddings are not tied."""
    config: Any = getattr(model, "config", None)
    configs: list[Any] = [config, getattr(config, "text_config", None)]
    for one in configs:
        if getattr(one, "tie_word_embeddings", False):
            one.tie_word_embeddings = False


def weight_name(update: Update) -> str:
    """The name of the parameter that the update changes."""
    return update.base_weight or f"{update.name}.weight"


def oriented(params: ModelParameters, update: Update, name: str) -> Update:
    """The update in the layout that the module at hand stores its weight in. Its shape tells where it can; of a square
    the module's class does: Conv1D and Embedding store (d_in, d_out), and experts that say `is_transposed`.
    """
    from transformers.pytorch_utils import Conv1D

    module, attribute = params.module(name)
    weight = params.current(name)
    fused = update.expert is not None or (weight.ndim == 3 and attribute != "weight")
    if weight.ndim > 2 and not fused:  # a convolution, whose kernel may be flattened into the input axis
        return replace(update, transposed=False)
    if update.kernel or weight.ndim < 2 or (not fused and attribute != "weight"):
        return update
    sides, map_shape = tuple(weight.shape[-2:]), _shape(update)
    if map_shape is not None and map_shape[0] != map_shape[1]:
        return replace(update, transposed=sides != map_shape)
    if fused:
        return replace(update, transposed=bool(getattr(module, "is_transposed", False)))
    if isinstance(module, Conv1D | nn.Embedding | nn.Linear):
        return replace(update, transposed=not isinstance(module, nn.Linear))
    return update


def in_fused(params: ModelParameters, update: Update) -> Place | None:
    """Where the update's weight lies in a parameter that fuses experts; None where the model has it by itself."""
    if params.name(weight_name(update)) is not None:
        return None

    def shape_of(name: str) -> tuple[int, ...] | None:
        there = params.name(name)
        return None if there is None else tuple(params.current(there).shape)

    config: Any = getattr(params.model, "config", None)
    return place(update, shape_of, config.to_dict() if hasattr(config, "to_dict") else {})


def in_model_layout(params: ModelParameters, adapter: Adapter) -> Adapter:
    """The adapter with every update in the layout of the module it belongs to. Our own files say it themselves."""
    if adapter.source.format in ("", "lorascope"):
        return adapter
    updates = {}
    for name, update in adapter.updates.items():
        there = params.name(weight_name(update))
        updates[name] = update if there is None else oriented(params, update, there)
    return replace(adapter, updates=updates)


def _shape(update: Update) -> tuple[int, int] | None:
    try:
        return update.shape
    except InputError:  # a scaling: only the base knows
        return None
