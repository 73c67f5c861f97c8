"""Put a method's updates into a model, and take them out again: wrap, freeze, merge, export, load.

injected = inject(model, "lora_plus", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
optimizer = torch.optim.AdamW(injected.parameter_groups(lr=1e-3))
...train...
io.write(injected.export(), folder)
"""

import copy
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lorascope.adapt import carried, saving
from lorascope.adapt.dequantise import leave_config
from lorascope.adapt.hooks import watch
from lorascope.adapt.layer import AdaptedLayer, Delta, Merged, Site, TrainedPart
from lorascope.adapt.method import Method, make_method
from lorascope.adapt.modules import replace_modules, sharers, trained_copy, unshare, untie_config
from lorascope.adapt.settings import targets_of
from lorascope.adapt.targets import CARRIES, find_sites, match_modules, refuse_adapted
from lorascope.blocks import Finding
from lorascope.errors import InputError, preview
from lorascope.updates.base import Stored, Update
from lorascope.weights.adapter import Adapter, Rows, Source
from lorascope.weights.formats.peft.tokens import TOKENS
from lorascope.weights.tensors import InMemory

STORED_AS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
DEFAULT = "default"  # PEFT's name of the first adapter


def injected_in(model: nn.Module) -> "Injected | None":
    """The active adapter of this model; None where it has none, or none is active."""
    held = carried.held_by(model)
    return None if held is None else held.adapters.get(held.active)


def inject(
    model: nn.Module,
    method: str | type[Method] | Method,
    *,
    targets: str | Collection[str] | None = None,
    modules_to_save: str | Collection[str] | None = None,
    seed: int = 0,
    adapter_name: str | None = None,
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
        adapter_name: of a model that has an adapter already, the name of this further one, which then is the active
            one; see `several.py`. The first is called "default" unless it is given a name.
        settings: of a method given by name or class, the fields of its `Config`: `rank=8`, or by PEFT's names `r`,
            `lora_alpha`, `lora_dropout`.

    Raises:
        InputError: a setting is wrong, nothing matches, the method cannot adapt such a layer, or the model carries an
            adapter already.
    """
    with carried.making_room(model, adapter_name):
        injected = _injected(model, method, targets, modules_to_save, seed, settings)
    injected.name = adapter_name or DEFAULT
    carried.hold(model, injected.name, injected)
    watch(injected)
    return injected


def _injected(
    model: nn.Module,
    method: str | type[Method] | Method,
    targets: str | Collection[str] | None,
    modules_to_save: str | Collection[str] | None,
    seed: int,
    settings: dict[str, Any],
) -> "Injected":
    refuse_adapted(model)
    targets = targets_of(targets, settings)
    method = make_method(method, settings, targets)
    targets = method.default_targets() if targets is None else targets
    modules_to_save = [modules_to_save] if isinstance(modules_to_save, str) else list(modules_to_save or ())
    saved = match_modules(model, modules_to_save, "modules_to_save")
    saved = [path for path in saved if not any(path.startswith(other + ".") for other in saved)]
    sites = find_sites(model, targets, excluded=saved) if method.uses_targets and targets != () else []
    layers = _adapted_layers(model, method, sites, seed)
    originals = {path: model.get_submodule(path) for path in saved}
    model.requires_grad_(False)
    replace_modules(model, [(layer.base, layer) for layer in layers.values()])
    copies = {path: trained_copy(module) for path, module in originals.items()}
    replace_modules(model, [(originals[path], copies[path]) for path in originals])
    parts = method.install(model, seed)
    setattr(model, CARRIES, tuple(parts))
    injected = Injected(model, method, layers, originals, copies, parts)
    method.injected = injected
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
        saved: the modules trained as a whole, by path.
        parts: trained pieces that are no layer's update, by name.
        name: the adapter's name among several in one model.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        layers: dict[str, AdaptedLayer],
        originals: dict[str, nn.Module],
        saved: dict[str, nn.Module],
        parts: dict[str, TrainedPart] | None = None,
    ):
        self.model, self.method, self.layers, self.originals, self.saved = model, method, layers, originals, saved
        self.name = DEFAULT
        self.parts = parts or {}
        self._untied_config = False
        self._on = True
        self.stepped = False  # whether an optimiser has stepped what is in here; see `adapt/hooks.py`

    def __repr__(self) -> str:
        layers = f"{len(self.layers)} layers, " if self.layers else ""
        return f"<{type(self.model).__name__} with {self.method.name}: {layers}{self.parameter_count():,} trainable>"

    @property
    def enabled(self) -> bool:
        """Whether it takes part in forward passes."""
        return self._on

    @property
    def merged(self) -> bool:
        """Whether some of it is in the weights."""
        return any(layer.merged for layer in self.layers.values()) or any(part.merged for part in self.parts.values())

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

    def print_trainable_parameters(self) -> None:
        """How many numbers train, and of how many in all, in PEFT's words."""
        print(carried.trainable_words(self.parameter_count(), self.model))

    def save_pretrained(
        self, folder: str | Path, tokenizer: Any = None, findings: Sequence[Finding] | None = None
    ) -> list[Path]:
        """Write the adapter, its complete config, the label names, a tokenizer and a model card; the files written.

        `lorascope.save` does the same, with what `analyze` finds in the card. Arguments and errors: `saving.py`.
        """
        return saving.save_adapter(self, folder, tokenizer, findings)

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
            untied = tuple(sharers(self.model, layer.base))
            reports.append(replace(layer.merge(), untied=untied))
        for part in self.parts.values():
            reports += part.merge()
        if any(report.untied for report in reports):
            self._untied_config = untie_config(self.model)
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
    def disabled(self) -> Iterator[None]:
        """The base alone inside the `with` block; `disable_adapter` by PEFT's name."""
        before = self._on
        self.disable()
        try:
            yield
        finally:
            self._set_enabled(before)

    disable_adapter = disabled

    def _set_enabled(self, on: bool) -> None:
        if on == self._on:
            return
        carried.check_turn(self.model, self.name, on)
        self._on = on
        pairs: list[tuple[nn.Module, nn.Module]] = [(layer.base, layer) for layer in self.layers.values()]
        pairs += [(original, self.saved[path]) for path, original in self.originals.items()]
        replace_modules(self.model, pairs if on else [(here, aside) for aside, here in pairs])
        for part in self.parts.values():
            part.set_enabled(on)

    def remove(self) -> nn.Module:
        """The base model as it was before `inject`, but frozen: merged weights go back, trained copies are dropped."""
        if not carried.another_is_active(self.model, self.name):
            self.enable()
            self.unmerge()
            for part in self.parts.values():
                part.remove()
            self._unwrap()
            replace_modules(self.model, [(self.saved[path], original) for path, original in self.originals.items()])
        carried.let_go(self.model, self.name)
        return self.model

    def merge_and_unload(self) -> list[Merged]:
        """Merge for good: the model is then an ordinary one, of plain layers in the base's dtypes, ready to be saved.

        Modules trained as a whole stay, in the dtype of the ones they replace. Nothing can be taken back afterwards.
        """
        self.enable()
        reports = self.merge()
        self._unwrap()
        leave_config(self.model, [report.name for report in reports])
        for path, original in self.originals.items():
            if any(sharers(self.model, module) for module in original.modules()):
                untie_config(self.model)
            plain = copy.deepcopy(original)
            plain.load_state_dict(self.saved[path].state_dict())
            replace_modules(self.model, [(self.saved[path], plain)])
        carried.let_go_of_all(self.model)
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
                kernel=layer.kernel,
            )
            for name, layer in self.layers.items()
        }
        saved = {f"{p}.{n}": in_memory(t) for p, part in self.saved.items() for n, t in part.state_dict().items()}
        reasons: dict[str, str] = {}
        rows: dict[str, Rows] = {}
        for part in self.parts.values():
            updates |= part.updates()
            rows |= part.rows()
            saved |= {name: in_memory(tensor) for name, tensor in part.tensors().items()}
            reasons |= {name: part.reason for name in part.tensors() if part.reason}
        shared = {"modules_to_save": list(self.saved)} if self.saved else {}
        all_settings = {**self.method.settings(), **shared, **settings}
        source = Source(method=self.method.name)
        return Adapter(updates, all_settings, source, saved, non_weight_tensors=reasons, rows=rows)

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
        lost = [item for item in lost if not (adapter.rows and item.reason == TOKENS)]
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
            part.load_rows(adapter.rows)
        unshare([layer.delta for layer in self.layers.values()])
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


def _is_copy_of_the_base(key: str) -> bool:
    return ".base_layer." in key or ".original_module." in key


def _stored(delta: Delta) -> dict[str, Stored]:
    """The roles as files hold them."""
    kept = delta.stored()
    return {role: kept[role] if role in kept else in_memory(tensor) for role, tensor in delta.roles().items()}


def in_memory(tensor: Tensor) -> InMemory:
    """The tensor for a file: numpy has no bfloat16, so values travel as float32 with the dtype's name."""
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
