"""One small adapter file, and the dense ΔW that its writer's formula gives: what `examples_<format>.py` are made of."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from lorascope.updates.base import Update
from lorascope.weights.checkpoint import Checkpoint
from lorascope.weights.files import Tensors
from lorascope.weights.formats.base import Bundle
from lorascope.weights.io import read_bundle
from lorascope.weights.tensors import InMemory


@dataclass(frozen=True)
class Example:
    """`expected`: ΔW (d_out, d_in) in float64 by module name, a convolution's kernel flattened into d_in."""

    name: str
    tensors: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    metadata: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        path = folder / f"{self.name}.safetensors"
        save_file({key: np.ascontiguousarray(value) for key, value in self.tensors.items()}, path, self.metadata)
        return path


def read_arrays(arrays: dict[str, np.ndarray], config=None, base=None, folder: Path = Path("memory")):
    """What `io.read` gives of a file with these arrays next to this config; `folder`: in which other files may lie."""
    kinds = {"float32": "F32", "float64": "F64", "int64": "I64"}
    stored = {key: InMemory(arrays[key], kinds[arrays[key].dtype.name]) for key in sorted(arrays)}
    return read_bundle(Bundle(folder, stored, {}, config), base)


def base_of(arrays: dict[str, np.ndarray], config=None) -> Checkpoint:
    """A base model with these weights."""
    stored = {key: InMemory(values, "F32") for key, values in arrays.items()}
    return Checkpoint(Path("base"), Tensors(stored, {}, ()), config or {})


def check_roles(update: Update) -> None:
    """AssertionError where a role has another shape than it says before it is read."""
    for role, stored in update.roles.items():
        assert tuple(stored.read().shape) == tuple(stored.shape), f"{update.name}: {role}"


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def double(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)
