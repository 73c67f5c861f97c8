"""Arrays that may still be on disk: the `Stored` implementations every reader shares."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lorascope.updates.base import Stored


@dataclass(frozen=True)
class InMemory:
    """An array already in memory. `dtype` is safetensors' name of what it was stored as, or would be."""

    values: np.ndarray
    dtype: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def read(self) -> np.ndarray:
        return self.values.astype(np.float64)


@dataclass(frozen=True)
class Mapped:
    """A reshaped, transposed, sliced or combined view of a stored array, computed when it is read."""

    source: Stored
    shape: tuple[int, ...]
    function: Callable[[np.ndarray], np.ndarray]

    @property
    def dtype(self) -> str:
        return self.source.dtype

    def read(self) -> np.ndarray:
        return self.function(self.source.read())
