"""Where a module's weight stands in the base, for files that do not tell a layer's shape."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lorascope.architectures import LINEAR_HEADS, is_conv1d
from lorascope.errors import InputError
from lorascope.updates.base import MAX_EXPANDED, Stored
from lorascope.weights.formats.peft.family import Context
from lorascope.weights.quantised import HINT, Unreadable


@dataclass(frozen=True)
class Place:
    """The weight of a module in the base, as a map: (d_out, d_in), and whether it is stored the other way round."""

    d_out: int
    d_in: int
    transposed: bool
    weight: Stored

    @property
    def shape(self) -> tuple[int, int]:
        return self.d_out, self.d_in


def place_of(module: str, context: Context) -> Place:
    """The place of a module whose shape the file does not tell.

    Raises:
        InputError: there is no base, or none that has a matrix there.
    """
    if context.base is None:
        raise InputError(
            f"{module}: the file does not say the layer's shape, and ΔW depends on it", hint="pass --base MODEL"
        )
    weight = context.base.weight(module)
    if isinstance(weight, Unreadable):
        raise InputError(f"{module}: {weight.reason}", hint=HINT)
    if len(weight.shape) != 2:
        raise InputError(f"the base weight of {module} is not a matrix", found=tuple(weight.shape))
    rows, columns = weight.shape
    conv1d = is_conv1d(module, context.base.config)
    if conv1d is None:
        conv1d = context.config.flag("fan_in_fan_out") and not module.endswith(LINEAR_HEADS)
    return Place(columns, rows, True, weight) if conv1d else Place(rows, columns, False, weight)


@dataclass(frozen=True)
class Filled:
    """A matrix made of fewer numbers than it has entries, when it is read.

    Attributes:
        sources: what the file holds of it; and the base's weight of the same shape, which shows that such a matrix is
            not too large. Only `function` reads them.
        numbers: how many trained numbers it is made of.
    """

    sources: tuple[Stored, ...]
    shape: tuple[int, int]
    function: Callable[[], np.ndarray]
    numbers: int

    @property
    def dtype(self) -> str:
        return self.sources[0].dtype

    def read(self) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # the analyses say what is not finite
            return self.function()


def refuse_unseen(module: str, shape: tuple[int, int]) -> None:
    """InputError where a matrix of so many entries would be made on the word of a few indices alone."""
    if math.prod(shape) > MAX_EXPANDED:
        raise InputError(
            f"{module}: the file does not say the layer's shape, and its indices reach {shape}",
            hint="pass --base MODEL",
        )


def whole_numbers(values: np.ndarray, below: int, what: str) -> np.ndarray:
    """Indices as integers (PEFT stores them as floats on Windows). InputError where one is no index below `below`."""
    whole = np.isfinite(values) & (values == np.floor(values)) & (values >= 0) & (values < below)
    if not whole.all():
        raise InputError(
            f"{what} holds {values[~whole].flat[0]:g}, which is not an index", expected=f"0 to {below - 1}"
        )
    return values.astype(np.int64)
