"""Put a method's updates into a model, and take them out again: wrap, freeze, merge, export, load.

injected = inject(model, "lora_plus", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
optimizer = torch.optim.AdamW(injected.parameter_groups(lr=1e-3))
...train...
io.write(injected.export(), folder)
"""

import copy
import hashlib
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lorascope.adapt.hooks import watch
from lorascope.adapt.layer import AdaptedLayer, Delta, Merged, Site, TrainedPart
from lorascope.adapt.method import Method, make_method
from lorascope.adapt.settings import targets_of
from lorascope.adapt.targets import CARRIES, find_sites, match_modules, refuse_adapted
from lorascope.errors import InputError, preview
from lorascope.updates.base import Stored, Update
from lorascope.weights.adapter import Adapter, Source
from lorascope.weights.tensors import InMemory

STORED_AS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


_by_model: weakref.WeakValueDictionary[int, "Injected"] = weakref.WeakValueDictionary()


def injected_in(model: nn.Module) -> "Injected | None":
    """What was put into this model, where it is still kept by somebody."""
    found = _by_model.get(id(model))
    return found if found is not None and found.model is model else None


def inject(
    model: nn.Module,
    method: str | type[Method] | Method,
    *,
    targets: str | Collection[str] | None = None,
    modules_to_save: str | Collection[str] | None = None,
    seed: int = 0,
    **settings: Any,
) -> "Injected":
    """Freeze `model`, give every target layer a fresh update of `method`, and make trained copies of whole modules.

    A method that does not work layer by layer (`uses_targets` false) installs its parts in place of updates.

    Args:
        model: the base model; changed in place.
        method: a registered name ("lora"), its class, or an instance, which serves one model.
        targets: names, a regular expression, or attention / mlp / all-linear (`targets.py`), which is the default; by
            PEFT's name, `target_modules`.
        modules_to_save: names of modules to train as a whole, a classification head say. The model gets a trained
            copy, in float32 where the base is narrower; the original stays aside, untouched.
        seed: every layer draws from its own stream, made from this seed and its name.
        settings: of a method given by name or class, the fields of its `Config`: `rank=8`, or by PEFT's names `r`,
            `lora_alpha`, `lora_dropout`.

    Raises:
        InputError: a setting is wrong, nothing matches, the method cannot adapt such a layer, or the model carries an
            adapter already.
    """
    refuse_adapted(model)
    targets = targets_of(targets, settings)
    method = make_method(method, settings, targets)
    targets = "all-linear" if targets is None else targets
    modules_to_save = [modules_to_save] if isinstance(modules_to_save, str) else list(modules_to_save or ())
    saved = match_modules(model, modules_to_save, "modules_to_save")
    saved = [path for path in saved if not any(path.startswith(other + ".") for other in saved)]
    sites = find_sites(model, targets, excluded=saved) if method.uses_targets else []
    layers = _adapted_layers(model, method, sites, seed)
    originals = {path: model.get_submodule(path) for path in saved}
    model.requires_grad_(False)
    replace_modules(model, [(layer.base, layer) for layer in layers.values()])
    replace_modules(model, [(module, _trained_copy(module)) for module in originals.values()])
    parts = method.install(model, seed)
    setattr(model, CARRIES, tuple(parts))
    injected = Injected(model, method, layers, originals, parts)
    method.injected = injected
    _by_model[id(model)] = injected
    watch(injected)
    return injected


def _adapted_layers(model: nn.Module, method: Method, sites: list[Site], seed: int) -> dict[str, AdaptedLayer]:
    """A fresh update around each of these layers, by path. InputError where the method cannot adapt one."""
    wrong = [site.name for site in sites if site.kind not in method.layer_kinds]
    if wrong:
        raise InputError(f"{method.name} cannot adapt {preview(wrong, 3)}", expected=f"layers of {method.layer_kinds}")
    method.prepare(model, sites)
    layers = {}
    for site in sites:
        delta = method.make(site, layer_generator(seed, site.name, method.salt())).to(site.weight.device)
        layers[site.name] = AdaptedLayer(site, delta)
    return layers


def layer_generator(seed: int, name: str, salt: str = "") -> torch.Generator:
    """A CPU generator of this layer's own, seeded by a hash of (seed, name, salt).

    Layers then neither depend on the order they are visited in nor repeat each other. The salt matters where runs are
    compared: A (8, d_in) and A (64, d_in) drawn from *one* stream share their first 8 rows exactly, so that the
    subspaces of two ranks overlap perfectly before any training; a method salts with its rank.
    """
    digest = hashlib.sha256(f"{seed}\n{name}\n{salt}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)  # torch takes 63 bits


class Injected:
    """A model with updates in it. Everything that is trained, saved or loaded goes through here; never the base.

    Attributes:
        model: the base model, with adapted layers in place.
        method: what made the updates.
        layers: adapted layers by their path in the base model.
        originals: the frozen modules that `saved` took the place of.
        parts: trained pieces that are no layer's update, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        layers: dict[str, AdaptedLayer],
        originals: dict[str, nn.Module],
        parts: dict[str, TrainedPart] | None = None,
    ):
        self.model, self.method, self.layers, self.originals = model, method, layers, originals
        self.parts = parts or {}
        self._untied_config = False
        self._on = True
        self.stepped = False  # whether an optimiser has stepped what is in here; see `adapt/hooks.py`

    def __repr__(self) -> str:
        layers = f"{len(self.layers)} layers, " if self.layers else ""
        return f"<{type(self.model).__name__} with {self.method.name}: {layers}{self.parameter_count():,} trainable>"

    @property
    def saved(self) -> dict[str, nn.Module]:
        """The modules trained as a whole, by path."""
        return {path: self.model.get_submodule(path) for path in self.originals}

    def _parts(self) -> dict[str, nn.Module]:
        return {**{name: layer.delta for name, layer in self.layers.items()}, **self.parts, **self.saved}

    def trainable(self) -> dict[str, nn.Parameter]:
        """Everything that trains, by stable name: `<layer's path>.<role>`, and `<module's path>.<parameter>`.

        A parameter that several layers share stands here once, under the first layer's name.
        """
        named: dict[int, tuple[str, nn.Parameter]] = {}
        for path, part in self._parts().items():
            for name, parameter in part.named_parameters():
                if parameter.requires_grad:
                    named.setdefault(id(parameter), (f"{path}.{name}", parameter))
        return dict(named.values())

    def parameter_groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """What a torch optimiser is made of, by the method's rule: LoRA+ gives B a higher rate than A."""
        return self.method.parameter_groups(self, lr, weight_decay)

    def parameter_count(self) -> int:
        """How many numbers train: updates and saved modules."""
        return sum(parameter.numel() for parameter in self.trainable().values())

    def state_dict(self) -> dict[str, Tensor]:
        """The adapter's own state: trained parameters, frozen roles, buffers, saved modules. Never the base."""
        return {f"{path}.{name}": t for path, part in self._parts().items() for name, t in part.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True) -> None:
        """Take a state that `state_dict` gave.

        Raises:
            InputError: a shape differs; with `strict`, a key is missing or unknown.
        """
        current = self.state_dict()
        missing, unknown = [k for k in current if k not in state], [k for k in state if k not in current]
        if strict and (missing or unknown):
            raise InputError(
                "the state is not of this adapter",
                found=f"unknown {preview(unknown, 3)}" if unknown else f"no {preview(missing, 3)}",
                expected=f"the {len(current)} keys of {self.method.name}",
                hint="use the targets and the method it was saved with",
            )
        for key in current.keys() & state.keys():
            if current[key].shape != state[key].shape:
                raise InputError(
                    f"{key} has another shape", found=tuple(state[key].shape), expected=tuple(current[key].shape)
                )
        for path, part in self._parts().items():
            part_state = {name: state[f"{path}.{name}"] for name in part.state_dict() if f"{path}.{name}" in state}
            part.load_state_dict(part_state, strict=False)

    def drop(self, names: Collection[str]) -> None:
        """Take the updates of these layers out for good: the model gets their own layers back."""
        gone = [self.layers.pop(name) for name in names]
        replace_modules(self.model, [(layer, layer.base) for layer in gone])

    def merge(self) -> list[Merged]:
        """Add every update to its weight. What each layer lost to rounding, and which weights were untied by it.

        A weight that two layers share (tied embeddings) is untied first: only the adapted layer changes. The model's
        config then says `tie_word_embeddings: false`, so that a saved copy keeps both.
        """
        reports = []
        for layer in self.layers.values():
            untied = tuple(_sharers(self.model, layer.base))
            reports.append(replace(layer.merge(), untied=untied))
        for part in self.parts.values():
            reports += part.merge()
        if any(report.untied for report in reports):
            self._untied_config = _untie_config(self.model)
        return reports

    def unmerge(self) -> None:
        """Put every original weight back, bit for bit, tied where it was tied."""
        for layer in self.layers.values():
            layer.unmerge()
        for part in self.parts.values():
            part.unmerge()
        if self._untied_config:
            config: Any = self.model.config
            config.tie_word_embeddings = True
            self._untied_config = False

    def enable(self) -> None:
        """Let the adapter take part in forward passes again."""
        self._set_enabled(True)

    def disable(self) -> None:
        """Leave the adapter out of forward passes: the base alone runs. Merged weights stay where they are."""
        self._set_enabled(False)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The base alone inside the `with` block, as PEFT's method of this name."""
        before = self._on
        self.disable()
        try:
            yield
        finally:
            self._set_enabled(before)

    def _set_enabled(self, on: bool) -> None:
        if on == self._on:
            return
        self._on = on
        replace_modules(
            self.model, [(layer.base, layer) if on else (layer, layer.base) for layer in self.layers.values()]
        )
        for part in self.parts.values():
            part.set_enabled(on)

    def remove(self) -> nn.Module:
        """The base model as it was before `inject`, but frozen: merged weights go back, trained copies are dropped."""
        self.unmerge()
        for part in self.parts.values():
            part.remove()
        self._unwrap()
        replace_modules(
            self.model, [(self.model.get_submodule(path), original) for path, original in self.originals.items()]
        )
        return self.model

    def merge_and_unload(self) -> list[Merged]:
        """Merge for good: the model is then an ordinary one, of plain layers in the base's dtypes, ready to be saved.

        Modules trained as a whole stay, in the dtype of the ones they replace. Nothing can be taken back afterwards.
        """
        reports = self.merge()
        self._unwrap()
        for path, original in self.originals.items():
            if any(_sharers(self.model, module) for module in original.modules()):
                _untie_config(self.model)
            plain = copy.deepcopy(original)
            plain.load_state_dict(self.model.get_submodule(path).state_dict())
            replace_modules(self.model, [(self.model.get_submodule(path), plain)])
        return reports

    def _unwrap(self) -> None:
        setattr(self.model, CARRIES, ())
        replace_modules(self.model, [(layer, layer.base) for layer in self.layers.values()])

    def export(self, **settings: Any) -> Adapter:
        """The adapter as files hold it. `settings` are added to the method's own (base model's name, task type)."""
        updates = {
            name: Update(
                name,
                layer.delta.kind,
                _stored(layer.delta),
                layer.delta.scale,
                layer.transposed,
                embedding=layer.embedding,
            )
            for name, layer in self.layers.items()
        }
        saved = {f"{p}.{n}": in_memory(t) for p, part in self.saved.items() for n, t in part.state_dict().items()}
        reasons: dict[str, str] = {}
        for part in self.parts.values():
            updates |= part.updates()
            saved |= {name: in_memory(tensor) for name, tensor in part.tensors().items()}
            reasons |= {name: part.reason for name in part.tensors() if part.reason}
        shared = {"modules_to_save": list(self.saved)} if self.saved else {}
        all_settings = {**self.method.settings(), **shared, **settings}
        return Adapter(updates, all_settings, Source(method=self.method.name), saved, non_weight_tensors=reasons)

    @torch.no_grad()
    def load(self, adapter: Adapter) -> None:
        """Fill the layers from an adapter that was read. A layer takes the file's rank and scale where they differ.

        Call it before an optimiser is made: where the rank differs, the layer gets new parameters. What layers shared
        becomes each one's own, as a file has it.

        Raises:
            InputError: the file's modules are not the ones injected, a kind differs, a shape does not fit, or the file
                holds something that is no update.
        """
        lost = [item for item in adapter.skipped if not _is_copy_of_the_base(item.name)]
        if lost:
            raise InputError(f"loading would lose {preview([item.name for item in lost], 3)}", found=lost[0].reason)
        own_saved = {f"{path}.{n}": t for path, part in self.saved.items() for n, t in part.state_dict().items()}
        of_parts = {name for part in self.parts.values() for name in part.updates()}
        tensors_of_parts = {name for part in self.parts.values() for name in part.tensors()}
        _same_names("modules", adapter.updates, {**self.layers, **dict.fromkeys(of_parts)})
        _same_names("saved tensors", adapter.saved, {**own_saved, **dict.fromkeys(tensors_of_parts)})
        for part in self.parts.values():
            tensors = {name: torch.from_numpy(adapter.saved[name].read()) for name in part.tensors()}
            part.load({name: adapter.updates[name] for name in part.updates()}, tensors)
        _unshare([layer.delta for layer in self.layers.values()])
        for name, layer in self.layers.items():
            update, delta = adapter.updates[name], layer.delta
            if update.kind != delta.kind:
                raise InputError(f"{name} holds another kind of update", found=update.kind, expected=delta.kind)
        self.method.prepare_load(adapter)
        for name, layer in self.layers.items():
            update, delta = adapter.updates[name], layer.delta
            delta.load_roles({role: torch.from_numpy(a) for role, a in update.read().items()}, update.scale)
        for key, tensor in own_saved.items():
            values = torch.from_numpy(adapter.saved[key].read())
            if values.shape != tensor.shape:
                raise InputError(f"{key} has another shape", found=tuple(values.shape), expected=tuple(tensor.shape))
            tensor.copy_(values)


def replace_modules(model: nn.Module, pairs: Sequence[tuple[nn.Module, nn.Module]]) -> None:
    """Put each pair's second module wherever its first stands: a module may hang in the model under several names."""
    new = {id(old): module for old, module in pairs}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if id(child) in new:
                parent._modules[name] = new[id(child)]


def _unshare(modules: Sequence[nn.Module]) -> None:
    """Give every module its own copy of a trained parameter that an earlier one has."""
    seen: set[int] = set()
    for module in modules:
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in seen and parameter.requires_grad:
                setattr(module, name, nn.Parameter(parameter.detach().clone()))
            seen.add(id(parameter))


def _trained_copy(module: nn.Module) -> nn.Module:
    """A copy to train, in float32 where the base is narrower; it then takes and gives the base's own dtype."""
    trained = copy.deepcopy(module).requires_grad_(True)
    narrow = {p.dtype for p in module.parameters() if p.is_floating_point()} & {torch.bfloat16, torch.float16}
    if narrow:
        trained.float()
        dtype = next(iter(narrow))
        trained.register_forward_pre_hook(lambda _, inputs: tuple(_cast(x, torch.float32) for x in inputs))
        trained.register_forward_hook(lambda _, __, output: _cast(output, dtype))
    return trained


def _cast(x: Any, dtype: torch.dtype) -> Any:
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x


def _sharers(model: nn.Module, layer: nn.Module) -> list[str]:
    """Paths of the other modules that hold one of the layer's own parameters."""
    parameters = {id(p) for p in layer._parameters.values() if p is not None}
    return [
        path.removesuffix(".base")
        for path, module in model.named_modules()
        if module is not layer and any(id(p) in parameters for p in module._parameters.values())
    ]


def _untie_config(model: nn.Module) -> bool:
    """Let the config say that embeddings are not tied, or a saved copy would lose one; whether it said so before."""
    config: Any = getattr(model, "config", None)
    tied = bool(getattr(config, "tie_word_embeddings", False))
    if tied:
        config.tie_word_embeddings = False
    return tied


def _is_copy_of_the_base(key: str) -> bool:
    return ".base_layer." in key or ".original_module." in key


def _stored(delta: Delta) -> dict[str, Stored]:
    """The roles as files hold them."""
    kept = delta.stored()
    return {role: kept[role] if role in kept else in_memory(tensor) for role, tensor in delta.roles().items()}


def in_memory(tensor: Tensor) -> InMemory:
    """The tensor for a file: numpy has no bfloat16, so values travel as float32 beside the dtype's name."""
    tensor = tensor.detach().cpu()
    if tensor.dtype not in STORED_AS:
        raise InputError("a tensor cannot be exported", found=str(tensor.dtype), expected="a floating dtype")
    values = tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
    return InMemory(np.array(values), STORED_AS[tensor.dtype])


def _same_names(what: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    extra, missing = [n for n in found if n not in expected], [n for n in expected if n not in found]
    if extra or missing:
        raise InputError(
            f"the adapter's {what} are not the model's",
            found=preview(extra, 3) if extra else f"none for {preview(missing, 3)}",
            expected=preview(expected, 3),
            hint="inject with the modules of the file as targets and modules_to_save",
        )
