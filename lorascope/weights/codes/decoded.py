"""A weight that is stored in codes: read in pieces that stay in the cache, by rows where the layout allows it."""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from lorascope.errors import InputError
from lorascope.updates.base import Stored
from lorascope.weights.dtypes import FLOAT8, NATIVE, SIZES, encode
from lorascope.weights.safetensors import OnDisk
from lorascope.weights.tensors import Mapped

HINT = "give the same model as it was before it was quantised"
PIECE = 1 << 18  # entries decoded at a time: with fewer, calls and two threads' waiting cost more than the work
_WINDOW = 1 << 21  # entries whose codes are read at a time, by one thread
_THREADS = min(4, os.cpu_count() or 1)


class Codec(Protocol):
    """How codes and their scales become numbers."""

    @property
    def by_rows(self) -> bool:
        """Whether steps of the first axis can be decoded without the others."""
        ...

    def fill(self, sources: tuple[Stored, ...], out: np.ndarray, start: int) -> None:
        """Steps `start` to `start + len(out)` of the first axis into `out`, float32 or float64."""
        ...


class OfMatrices:
    """A codec of matrices (…, m, n) whose codes lie one behind the other: a subclass decodes rows of one."""

    shape: tuple[int, ...]

    def fill(self, sources: tuple[Stored, ...], out: np.ndarray, start: int) -> None:
        if len(self.shape) == 2:
            self._matrix(sources, out, start, 0)
            return
        flat = out.reshape(-1, *out.shape[-2:])
        skipped = start * (len(flat) // max(1, len(out)))
        for each, matrix in enumerate(flat):
            self._matrix(sources, matrix, 0, skipped + each)

    def _matrix(self, sources: tuple[Stored, ...], out: np.ndarray, start: int, skip: int) -> None:
        """Rows of one matrix from row `start` on into `out`; `skip` matrices are before it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Decoded:
    """A weight whose codes become numbers when it is read.

    Attributes:
        shape: of the weight as the model has it, or of the rows of it that this is.
        dtype: what the dequantised numbers are held in.
        scheme: the quantisation's name.
        sources: the codes, then what says how they are meant.
        first: where in the first axis this begins.
    """

    shape: tuple[int, ...]
    dtype: str
    scheme: str
    sources: tuple[Stored, ...]
    codec: Codec
    first: int = 0

    def read(self) -> np.ndarray:
        """The numbers in float64."""
        out = np.empty(self.shape)
        self.into(out)
        return out

    def into(self, out: np.ndarray) -> None:
        """The numbers into `out`, float32 or float64, of the same shape.

        Raises:
            LorascopeError: the file has become shorter since it was opened.
        """
        if out.size == 0:
            return
        if not self.codec.by_rows or out.size <= _WINDOW:
            self.codec.fill(self.sources, out, self.first)
            return
        windows = list(pieces(len(out), _WINDOW * len(out) // out.size))

        def fill(window: tuple[int, int]) -> None:
            self.codec.fill(self.sources, out[slice(*window)], self.first + window[0])

        with ThreadPoolExecutor(min(_THREADS, len(windows))) as pool:
            list(pool.map(fill, windows))  # which raises what one of them raises

    @property
    def rows(self) -> "Callable[[int, int], Decoded] | None":
        """As other stored arrays have it: steps `start` to `stop` of the first axis; None where all must be decoded."""
        return self._rows if self.codec.by_rows and len(self.shape) > 1 else None

    def _rows(self, start: int, stop: int) -> "Decoded":
        return replace(self, shape=(stop - start, *self.shape[1:]), first=self.first + start)


@dataclass(frozen=True)
class Unreadable:
    """A tensor that stands for a weight in a way that is not understood. Reading it raises InputError."""

    shape: tuple[int, ...]
    dtype: str
    reason: str

    def read(self) -> np.ndarray:
        raise InputError(self.reason, hint=HINT)


def raw(stored: Stored, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Entries `start` to `stop` of a stored array in the order of its bytes, in its own type (float8 as uint8)."""
    count = math.prod(stored.shape)
    stop = count if stop is None else min(stop, count)
    native = NATIVE.get(stored.dtype, "u1")
    if isinstance(stored, OnDisk):
        return stored.entries(start, stop).raw().view(native)
    if hasattr(stored, "tensor"):  # torch's, of which only the part is widened
        values = replace(stored, tensor=stored.tensor.reshape(-1)[start:stop]).read()  # type: ignore[type-var]
    else:
        values = stored.read().reshape(-1)[start:stop]
    if SIZES[stored.dtype] == 8:  # of float64, which read() gives, and of indices
        return values.astype(native)
    return np.frombuffer(encode(values, stored.dtype), native)


def stream(stored: Stored, start: int, stop: int) -> np.ndarray:
    """Bytes `start` to `stop` of a stored array of integers, uint8."""
    if isinstance(stored, OnDisk):
        return OnDisk(stored.file, "U8", (stop - start,), stored.offset + start).raw()
    size = SIZES[stored.dtype]
    return raw(stored, start // size, -(-stop // size)).view(np.uint8)[start % size :][: stop - start]


def as_type(stored: Stored, dtype: str) -> Stored:
    """An array of bytes read as a one-byte float: its file said U8."""
    if isinstance(stored, OnDisk):
        return replace(stored, dtype=dtype)
    return Mapped(stored, tuple(stored.shape), lambda values: FLOAT8[dtype][values.astype(np.uint8)])


def pieces(count: int, step: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive parts of `count`, `step` long but for the last."""
    step = max(1, step)
    for start in range(0, count, step):
        yield start, min(start + step, count)
