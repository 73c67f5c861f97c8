"""Weights that are in memory and not in a file: state dicts, PEFT models, whole models, read as their files would be.

What PEFT would write is asked of PEFT itself (`get_peft_model_state_dict` and the config), so that a model in memory
gives the numbers of its files. torch and PEFT are imported by whoever hands over their objects.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.errors import InputError
from lorascope.updates.base import Stored
from lorascope.weights.checkpoint import Checkpoint
from lorascope.weights.files import Tensors
from lorascope.weights.formats.base import Bundle
from lorascope.weights.tensors import InMemory

STORED_AS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
FLOATING = ("F64", "F32", "F16", "BF16")
PREFIX = "base_model.model."  # of PEFT's keys, which transformers' own `add_adapter` puts there only on writing


def in_memory(array: Any) -> InMemory:
    """A copy of a torch tensor or a numpy array, as a file would hold it.

    numpy has no bfloat16, so such values travel as float32 with the dtype's name.

    Raises:
        InputError: files have no such dtype.
    """
    name = str(array.dtype).removeprefix("torch.")
    if name not in STORED_AS:
        raise InputError("a tensor cannot be taken", found=f"dtype {name}", expected=" or ".join(STORED_AS))
    if isinstance(array, np.ndarray):
        return InMemory(array.copy(), STORED_AS[name])
    tensor = array.detach().cpu()
    values = (tensor.float() if name == "bfloat16" else tensor).numpy()
    return InMemory(np.array(values), STORED_AS[name])


@dataclass(frozen=True)
class Live:
    """A tensor of a model in memory, copied only when it is read."""

    tensor: Any
    dtype: str
    first: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        shape = tuple(self.tensor.shape)
        return shape if self.first is None else (self.first[1] - self.first[0], *shape[1:])

    def read(self) -> np.ndarray:
        part = self.tensor if self.first is None else self.tensor[self.first[0] : self.first[1]]
        return part.detach().cpu().double().numpy()

    def rows(self, start: int, stop: int) -> "Live":
        offset = 0 if self.first is None else self.first[0]
        return Live(self.tensor, self.dtype, (offset + start, offset + stop))


@dataclass(frozen=True)
class LiveTensors(Tensors):
    """Where `Checkpoint` has the files of a model: its tensors in memory."""

    def sha256(self) -> str:
        """None is read from a file, so there is no hash of one."""
        return ""


def checkpoint_of(model: Any) -> Checkpoint:
    """A model in memory as a base model: its parameters, copied one at a time when they are read.

    Raises:
        InputError: this is not an `nn.Module`, or an adapter is in it.
    """
    if not is_model(model):
        raise InputError(
            "this is not a base model",
            found=f"a {type(model).__name__}",
            expected="a folder, a file, a name or an nn.Module",
        )
    if is_peft(model) or getattr(model, "_lorascope_parts", None) is not None:
        raise InputError(
            f"the {type(model).__name__} carries an adapter, so its weights are not the base's alone",
            hint="give the base model by its folder or name, or one that was loaded anew",
        )
    return Checkpoint(Path(type(model).__name__), LiveTensors(live_tensors(model), {}, ()), config_of(model))


def is_model(source: Any) -> bool:
    """Whether this is an `nn.Module`, without importing torch."""
    return hasattr(source, "state_dict") and hasattr(source, "named_modules")


def live_tensors(model: Any) -> dict[str, Stored]:
    """The floating parameters of a model by name; a tied parameter once, under its first name."""
    named = model.named_parameters()
    stored = ((name, parameter, STORED_AS.get(_dtype(parameter), "")) for name, parameter in named)
    return {name: Live(parameter, dtype) for name, parameter, dtype in stored if dtype in FLOATING}


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def config_of(model: Any) -> dict[str, Any]:
    """A transformers model's `config.json`; empty where the model has none."""
    return dict(model.config.to_dict()) if hasattr(getattr(model, "config", None), "to_dict") else {}


def bundle_of_state(tensors: Mapping[str, Any], config: Any = None, path: str = "state dict") -> Bundle:
    """A state dict and its `adapter_config.json` as a reader of files takes them.

    Args:
        tensors: torch tensors or numpy arrays by key.
        config: the config as a dictionary, a path to its file, or a PEFT config.
        path: how messages call it.
    """
    stored = {key: in_memory(value) for key, value in tensors.items() if hasattr(value, "dtype")}
    if not stored:
        raise InputError(f"the {path} holds no tensors", found=f"{len(tensors)} entries")
    return Bundle(Path(path), stored, {"format": "pt"}, _config(config))


def bundle_of_peft(model: Any, adapter_name: str | None = None) -> Bundle:
    """What PEFT would write for one adapter of a model: a `PeftModel`, or a transformers model with `add_adapter`.

    Args:
        adapter_name: which of its adapters; the active one by default.

    Raises:
        InputError: there is no such adapter.
    """
    from peft import PeftModel, get_peft_model_state_dict

    names = list(model.peft_config)
    active = model.active_adapters
    active = active() if callable(active) else active
    active = list(active) if isinstance(active, list | tuple) else [active]
    name = adapter_name or active[0]
    if name not in names:
        raise InputError(f"the model has no adapter {name!r}", expected=f"one of {', '.join(names)}")
    state = get_peft_model_state_dict(model, adapter_name=name)
    if not isinstance(model, PeftModel):
        state = {PREFIX + key: value for key, value in state.items()}
    # As safetensors orders a file: wide dtypes first, then by name.
    ordered = sorted(state.items(), key=lambda item: (-item[1].element_size(), item[0]))
    config = {**(_config(model.peft_config[name]) or {}), "inference_mode": True}
    if config.get("task_type") is None and isinstance(model, PeftModel):
        base = type(model.get_base_model())
        config["auto_mapping"] = {"base_model_class": base.__name__, "parent_library": base.__module__}
    bundle = bundle_of_state(dict(ordered), config, f"{type(model).__name__} in memory")
    return replace(bundle, notes=_of_several(name, active))


def _of_several(name: str, active: Sequence[str]) -> tuple[str, ...]:
    """What to say of one adapter where the model computes with several."""
    if len(active) < 2 or name not in active:
        return ()
    return (f"{len(active)} adapters are active, {', '.join(active)}: this is {name} alone, the model adds up all",)


def is_peft(source: Any) -> bool:
    """Whether PEFT has put an adapter into this model."""
    return is_model(source) and bool(getattr(source, "peft_config", None))


def _config(config: Any) -> dict[str, Any] | None:
    if config is None:
        return None
    if isinstance(config, str | Path):
        from lorascope.inputs import read_json

        path = Path(config)
        return dict(read_json(path / "adapter_config.json" if path.is_dir() else path))
    values = dict(config) if isinstance(config, Mapping) else config.to_dict()
    return json.loads(json.dumps(values, default=_plain))


def _plain(value: Any) -> Any:
    """As PEFT writes what JSON has no word for: a set is a list, an enumeration its value."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return getattr(value, "value", None) or str(value)
