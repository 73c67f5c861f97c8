"""Arrays that may still be on disk: the `Stored` implementations every reader shares."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

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

    def rows(self, start: int, stop: int) -> "InMemory":
        """Rows `start` to `stop` of the first axis."""
        return InMemory(self.values[start:stop], self.dtype)

    def columns(self, start: int, stop: int) -> "InMemory":
        """Columns `start` to `stop` of a matrix."""
        return InMemory(self.values[:, start:stop], self.dtype)


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
        with np.errstate(over="ignore", invalid="ignore"):  # the analyses say what is not finite
            return self.function(self.source.read())


@dataclass(frozen=True)
class Combined:
    """One array computed from several stored ones when it is read: a Tucker core contracted with a factor, say."""

    sources: tuple[Stored, ...]
    shape: tuple[int, ...]
    function: Callable[..., np.ndarray]

    @property
    def dtype(self) -> str:
        return self.sources[0].dtype

    def read(self) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            return self.function(*(source.read() for source in self.sources))


@dataclass
class Recent:
    """The last few arrays read, shared by the slices of fused tensors: each is decoded once, and few are held."""

    most: int = 2
    held: list[tuple[Stored, np.ndarray]] = field(default_factory=list)

    def read(self, stored: Stored) -> np.ndarray:
        for source, values in self.held:
            if source is stored:
                return values
        values = stored.read()
        self.held = [*self.held, (stored, values)][-self.most :]
        return values


@dataclass(frozen=True)
class Slice:
    """A slice of a fused stored array, decoded through `recent` so that its siblings need not decode it again."""

    source: Stored
    shape: tuple[int, ...]
    function: Callable[[np.ndarray], np.ndarray]
    recent: Recent

    @property
    def dtype(self) -> str:
        return self.source.dtype

    def read(self) -> np.ndarray:
        return self.function(self.recent.read(self.source))


@dataclass(frozen=True)
class Gathered:
    """Some rows of a stored array, by their indices; the others are not read where the file allows that."""

    source: Stored
    indices: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.indices), *self.source.shape[1:]

    @property
    def dtype(self) -> str:
        return self.source.dtype

    def read(self) -> np.ndarray:
        rows = getattr(self.source, "rows", None)
        if rows is None or not self.indices:
            return self.source.read()[list(self.indices)]
        return np.concatenate([rows(index, index + 1).read() for index in self.indices])


@dataclass(frozen=True)
class OneHot:
    """Row i has a 1 in column `indices[i]`, of `width` columns."""

    indices: tuple[int, ...]
    width: int
    dtype: str = "F64"

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.indices), self.width

    def read(self) -> np.ndarray:
        values = np.zeros(self.shape)
        values[np.arange(len(self.indices)), list(self.indices)] = 1
        return values


@dataclass(frozen=True)
class Cast:
    """A stored array, to be written in another dtype."""

    source: Stored
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.shape)

    def read(self) -> np.ndarray:
        return self.source.read()

    @property
    def rows(self) -> Callable[[int, int], "Cast"] | None:
        """Steps of the first axis, where the source has them."""
        rows = getattr(self.source, "rows", None)
        return None if rows is None else lambda start, stop: Cast(rows(start, stop), self.dtype)


def reshaped(stored: Stored, *shape: int) -> Stored:
    """`stored` in another shape of the same size; itself where it has that shape already."""
    if tuple(stored.shape) == shape:
        return stored
    if math.prod(stored.shape) != math.prod(shape):
        raise ValueError(f"cannot reshape {tuple(stored.shape)} to {shape}")
    return Mapped(stored, shape, lambda values: values.reshape(shape))


def flattened(stored: Stored) -> Stored:
    """A stored array of one or more axes as a matrix: the first axis kept, the others joined."""
    first, *rest = stored.shape
    return reshaped(stored, first, math.prod(rest))


def transposed(stored: Stored) -> Stored:
    """The transpose of a stored matrix."""
    rows, columns = stored.shape
    return Mapped(stored, (columns, rows), lambda values: values.T)


def first_rows(stored: Stored, count: int) -> Stored:
    """The first `count` rows of a stored array, without reading the others where the file allows that."""
    if stored.shape[0] == count:
        return stored
    rows = getattr(stored, "rows", None)
    if rows is not None:
        return rows(0, count)
    return Mapped(stored, (count, *stored.shape[1:]), lambda values: values[:count])


def slot(stored: Stored, index: int) -> Stored:
    """`stored[index]`, without reading the rest where the file allows that."""
    rest = tuple(stored.shape[1:])
    rows = getattr(stored, "rows", None)
    if rows is not None:
        return reshaped(rows(index, index + 1), *rest)
    return Mapped(stored, rest, lambda values: values[index])
