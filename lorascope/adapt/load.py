"""A trained adapter put back into a model as trainable layers, of the method that trains such updates."""

from dataclasses import fields, replace
from typing import Any, Protocol, runtime_checkable

from torch import nn

from lorascope.adapt import carried
from lorascope.adapt.inject import Injected, inject
from lorascope.adapt.method import Method, methods
from lorascope.adapt.model_parameters import ModelParameters, in_model_layout, weight_name
from lorascope.adapt.settings import ALIASES, settings_of
from lorascope.adapt.targets import refuse_adapted
from lorascope.errors import InputError, preview
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter
from lorascope.weights.formats.peft.experts_written import on_parameter


@runtime_checkable
class _HasParameters(Protocol):
    """A config of a method that trains other parameters than layers' weights, too."""

    target_parameters: tuple[str, ...]
    trainable_token_indices: tuple[int, ...]


# Of a file that names no method of ours, the method that trains its kind of update.
TRAINS = {"low_rank": "lora", "magnitude": "dora", "triplet": "adalora", "vera": "vera", "scaling": "ia3"}
OF_TRAINING_ALONE = ("dropout", "init", "loraplus_lr_ratio")  # settings that a file's ΔW does not depend on


def load(model: nn.Module, adapter: Adapter, adapter_name: str | None = None) -> Injected:
    """Inject the method that trains the adapter's kind of update, and fill its layers.

    Args:
        model: the base model; changed in place.
        adapter: as `weights.io.read` gives it.
        adapter_name: as for `inject`.

    Raises:
        InputError: no method here trains such updates, or the adapter does not fit the model.
    """
    with carried.making_room(model, adapter_name):
        refuse_adapted(model)
        return _load(model, adapter, adapter_name)


def _load(model: nn.Module, adapter: Adapter, adapter_name: str | None) -> Injected:
    method = method_of(adapter)
    there = ModelParameters(model)
    named = in_model_layout(there, adapter)
    method, named = _of_parameters(method, there, named)
    of_parameters = [update for update in named.updates.values() if on_parameter(update)]
    modules = {update.name: _module(there, update) for update in named.updates.values() if not on_parameter(update)}
    missing = [name for name, module in modules.items() if module is None]
    if missing:
        raise InputError(
            f"the model has no {preview(missing, 3)}",
            found=type(model).__name__,
            expected="the base model that the adapter was trained on",
        )
    updates = {
        module: replace(update, name=module)
        for update in named.updates.values()
        if (module := modules.get(update.name))
    }
    layers = list(updates)
    updates |= {update.name: update for update in of_parameters}
    saved = {there.name(name) or name: stored for name, stored in named.saved.items()}
    whole = list(dict.fromkeys(name.rpartition(".")[0] for name in saved if name not in named.non_weight_tensors))
    targets = (layers or None) if method.uses_targets else None
    injected = inject(model, method, targets=targets, modules_to_save=whole, adapter_name=adapter_name)
    try:
        injected.load(replace(named, updates=updates, saved=saved))
    except BaseException:
        injected.remove()
        raise
    return injected


def method_of(adapter: Adapter) -> Method:
    """A fresh instance of the method that trains the adapter's updates, with the file's settings where it has them.

    Raises:
        InputError: the updates are of several kinds, or of one that no method trains.
    """
    if adapter.source.method in methods.names():
        name = adapter.source.method
    else:
        trained_kinds = sorted({update.kind for update in adapter.updates.values()})
        if len(trained_kinds) != 1 or trained_kinds[0] not in TRAINS:
            raise InputError(
                "no method here trains these updates",
                found=", ".join(trained_kinds) or "none",
                expected=f"one of {', '.join(TRAINS)}",
                hint="lorascope.merge puts any ΔW into the weights",
            )
        name = TRAINS[trained_kinds[0]]
    cls = methods.get(name)
    known = {field.name for field in fields(cls.Config) if field.init}
    return cls(settings_of(name, cls.Config, _settings(adapter, known)))


def _settings(adapter: Adapter, known: set[str]) -> dict[str, Any]:
    """The file's settings that the method has, by our names; those that only training needs keep their defaults."""
    ours = {ALIASES.get(name, name): value for name, value in adapter.settings.items()}
    wanted = known - set(OF_TRAINING_ALONE)
    return {name: value for name, value in ours.items() if name in wanted and isinstance(value, int | float | bool)}


def _of_parameters(method: Method, there: ModelParameters, adapter: Adapter) -> tuple[Method, Adapter]:
    """The method set to train those parameters and rows of tokens that the file has, and both by the model's names."""
    if not isinstance(getattr(method, "config", None), _HasParameters):
        return method, adapter
    updates: dict[str, Update] = {}
    names: dict[str, None] = {}
    for update in adapter.updates.values():
        name = there.name(weight_name(update)) if on_parameter(update) else None
        if name is None:
            updates[update.name] = update
            continue
        names[name] = None
        path = name if update.expert is None else f"{name}[{update.expert}]"
        updates[path] = replace(update, name=path, base_weight=name)
    rows = {there.name(name) or name: each for name, each in adapter.rows.items()}
    if len(rows) > 1:
        raise InputError("trained rows of several embeddings cannot be trained further", found=preview(rows))
    indices = next((each.indices for each in rows.values()), ())
    if not names and not indices:
        return method, adapter
    config = replace(method.config, target_parameters=tuple(names), trainable_token_indices=indices)
    return type(method)(config), replace(adapter, updates=updates, rows=rows)


def _module(there: ModelParameters, update: Update) -> str | None:
    name = there.name(weight_name(update))
    return None if name is None else name.removesuffix(".weight")
