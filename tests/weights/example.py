"""One small adapter file, and the dense ΔW that its writer's formula gives: what `examples_<format>.py` are made of."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from lorascope.updates.base import Update


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


def check_roles(update: Update) -> None:
    """AssertionError where a role has another shape than it says before it is read."""
    for role, stored in update.roles.items():
        assert tuple(stored.read().shape) == tuple(stored.shape), f"{update.name}: {role}"


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def double(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)
