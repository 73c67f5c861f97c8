"""A trained adapter put back into a model as trainable layers, of the method that trains such updates."""

from dataclasses import fields, replace
from typing import Any

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
    modules = {update.name: _module(there, update) for update in named.updates.values()}
    missing = [name for name, module in modules.items() if module is None]
    if missing:
        raise InputError(
            f"the model has no {preview(missing, 3)}",
            found=type(model).__name__,
            expected="the base model that the adapter was trained on",
        )
    updates = {
        module: replace(update, name=module) for update in named.updates.values() if (module := modules[update.name])
    }
    saved = {there.name(name) or name: stored for name, stored in named.saved.items()}
    whole = list(dict.fromkeys(name.rpartition(".")[0] for name in saved if name not in named.non_weight_tensors))
    targets = list(updates) if method.uses_targets else None
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
        found = sorted({update.kind for update in adapter.updates.values()})
        if len(found) != 1 or found[0] not in TRAINS:
            raise InputError(
                "no method here trains these updates",
                found=", ".join(found) or "none",
                expected=f"one of {', '.join(TRAINS)}",
                hint="lorascope.merge puts any ΔW into the weights",
            )
        name = TRAINS[found[0]]
    cls = methods.get(name)
    known = {field.name for field in fields(cls.Config) if field.init}
    return cls(settings_of(name, cls.Config, _settings(adapter, known)))


def _settings(adapter: Adapter, known: set[str]) -> dict[str, Any]:
    """The file's settings that the method has, by our names; those that only training needs keep their defaults."""
    ours = {ALIASES.get(name, name): value for name, value in adapter.settings.items()}
    wanted = known - set(OF_TRAINING_ALONE)
    return {name: value for name, value in ours.items() if name in wanted and isinstance(value, int | float | bool)}


def _module(there: ModelParameters, update: Update) -> str | None:
    name = there.name(weight_name(update))
    return None if name is None else name.removesuffix(".weight")
