"""What an adapter is before it is written, and how one is drawn: sizes, names and arrays from one source of chance."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lorascope.weights.dtypes import encode

FLOATS = ("F32", "F32", "F32", "F16", "BF16", "F64", "F8_E4M3", "F8_E5M2")


@dataclass
class Tensor:
    """One stored array. `entry` overrides fields of its header entry, or all of it where it is no dict."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes
    entry: Any = field(default_factory=dict)
    stride: tuple[int, ...] | None = None  # in a pickle: claimed of the storage, with `shape`


@dataclass
class Files:
    """An adapter before it is written. Pairs in place of dicts, so that a mutation can name one key twice."""

    format: str
    family: str
    tensors: list[tuple[Any, Tensor]]
    metadata: Any = field(default_factory=dict)
    config: list[tuple[str, Any]] | None = None
    storage: str = "safetensors"
    peft_type: str | None = None
    wrapped: Callable[[dict], Any] = lambda tensors: tensors  # what a pickle holds
    weight_map: Callable[[dict], Any] = lambda names: names  # what an index says


class Raw(str):
    """JSON text that is written as it is."""


class Hand:
    """Draws sizes, names and arrays from one source of chance."""

    def __init__(self, chance: random.Random):
        self.chance = chance
        self.rng = np.random.default_rng(chance.getrandbits(16))
        self.dtype = chance.choice(FLOATS)

    def array(self, *shape: int) -> Tensor:
        values = self.rng.standard_normal(shape) * 0.4
        return Tensor(self.dtype, shape, encode(values, self.dtype))

    def number(self, value: float) -> Tensor:
        return Tensor("F32", (), np.float32(value).tobytes())

    def size(self, least: int = 1, most: int = 7) -> int:
        return self.chance.randint(least, most)

    def maybe(self) -> bool:
        return self.chance.random() < 0.5

    def alpha(self) -> float:
        return self.chance.choice([1, 2, 8, 0.5])

    def modules(self, least: int = 1, most: int = 3) -> list[str]:
        names = [f"model.layers.{n}.{part}" for n in (0, 1) for part in ("self_attn.q_proj", "mlp.down_proj", "v")]
        return self.chance.sample(names, self.size(least, most))

    def kernel(self) -> tuple[int, ...]:
        return self.chance.choice([(), (), (3,), (2, 2), (1, 1)])


FAMILIES: dict[str, tuple[str, Callable[[Hand], Files]]] = {}


def family(format: str):
    """Decorator: a function that draws the tensors, config and metadata of one family of `format`."""

    def keep(build):
        FAMILIES[build.__name__] = (format, build)
        return build

    return keep
