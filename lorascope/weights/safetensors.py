"""safetensors files, read lazily with numpy and the standard library, and written atomically.

The format: 8 bytes n, little endian; n bytes of JSON, `{key: {"dtype", "shape", "data_offsets": [begin, end]}}` with an
optional `__metadata__` of strings; then the tensors' bytes without gap or overlap. A header is believed only after it
was checked against the file's size, so that nothing is allocated on its word.

Tensors are read at their positions in small pieces that are decoded while they are in the cache. The file is not
mapped: mapped pages would count as this process's memory, and memory must not grow with the file.
"""

import json
import math
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lorascope.errors import InputError, LorascopeError, preview
from lorascope.inputs import cannot_read, open_regular
from lorascope.outputs import json_text, write_bytes
from lorascope.portable import read_at
from lorascope.updates.base import Stored
from lorascope.weights.dtypes import SIZES, decode_into, encode

MAX_HEADER = 32 << 20  # bytes, in memory some ten times that; a header of 10,000 tensors has 1 MB
MAX_TENSORS = 250_000
MAX_AXES = 32
LONGEST_KEY = 2_000  # characters
_WRITTEN = 1 << 23  # entries encoded at a time, of what can be read by rows
PIECE = 1 << 18  # bytes read and decoded at a time: small enough for the second-level cache

_scratch = threading.local()


class OpenFile:
    """A file opened for positional reads, closed when the last tensor that needs it is gone."""

    def __init__(self, path: Path):
        self.path = path
        self._file = open_regular(path)
        self.size = os.fstat(self._file.fileno()).st_size

    def __del__(self) -> None:
        try:  # without contextlib, which is gone where the interpreter ends
            self._file.close()
        except Exception:  # it was never opened
            return

    def read_into(self, buffer: Any, offset: int) -> None:
        """Fill `buffer` from `offset`. LorascopeError where the file has become shorter since it was opened."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view):
            try:
                count = read_at(self._file, view[done:], offset + done)
            except OSError as error:
                raise cannot_read(self.path, error) from None
            if count == 0:
                raise LorascopeError(
                    f"{self.path} was truncated while being read", hint="read it again when it is complete"
                )
            done += count


@dataclass(frozen=True, slots=True)
class OnDisk:
    """A tensor in an open file: its type, shape, and where its bytes begin."""

    file: OpenFile
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * SIZES[self.dtype]

    def raw(self) -> np.ndarray:
        """The bytes as stored, (nbytes,) uint8."""
        out = np.empty(self.nbytes, np.uint8)
        self.file.read_into(out, self.offset)
        return out

    def read(self) -> np.ndarray:
        size = SIZES[self.dtype]
        out = np.empty(math.prod(self.shape), np.float64)
        if self.dtype == "F64" and sys.byteorder == "little":
            self.file.read_into(out, self.offset)
            return out.reshape(self.shape)
        scratch = _piece()
        step = PIECE // size
        for start in range(0, out.size, step):
            part = out[start : start + step]
            raw = scratch[: part.size * size]
            self.file.read_into(raw, self.offset + start * size)
            decode_into(raw, self.dtype, part)
        return out.reshape(self.shape)

    def rows(self, start: int, stop: int) -> "OnDisk":
        """Rows `start` to `stop` of the first axis, without reading the others."""
        row = math.prod(self.shape[1:]) * SIZES[self.dtype]
        return OnDisk(self.file, self.dtype, (stop - start, *self.shape[1:]), self.offset + start * row)

    def entries(self, start: int, stop: int) -> "OnDisk":
        """Entries `start` to `stop` in the order of the bytes, as a vector."""
        return OnDisk(self.file, self.dtype, (stop - start,), self.offset + start * SIZES[self.dtype])

    def columns(self, start: int, stop: int) -> "ColumnsOnDisk":
        """Columns `start` to `stop` of a matrix, without reading the others."""
        return ColumnsOnDisk(self, start, stop)


@dataclass(frozen=True, slots=True)
class ColumnsOnDisk:
    """Some columns of a matrix in an open file: a part of each row."""

    whole: OnDisk
    start: int
    stop: int

    @property
    def dtype(self) -> str:
        return self.whole.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole.shape[0], self.stop - self.start

    def read(self) -> np.ndarray:
        out = np.empty(self.shape, np.float64)
        size, (rows, width) = SIZES[self.dtype], self.whole.shape
        for row in range(rows):
            begin = self.whole.offset + (row * width + self.start) * size
            out[row] = OnDisk(self.whole.file, self.dtype, self.shape[1:], begin).read()
        return out


def _piece() -> np.ndarray:
    if not hasattr(_scratch, "buffer"):
        _scratch.buffer = np.empty(PIECE, np.uint8)
    return _scratch.buffer


def open_safetensors(path: Path) -> tuple[dict[str, OnDisk], dict[str, str]]:
    """The tensors of a safetensors file in the order of their bytes, and its metadata. Only the header is read.

    Raises:
        InputError: the file is missing, empty or truncated, is another kind of file, or its header contradicts itself
            or the file's size.
    """
    file = OpenFile(path)
    header, begin = _header(file)
    metadata = header.pop("__metadata__", {}) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _corrupt(path, "__metadata__ is not a map of strings")
    entries = sorted((_entry(path, key, value) for key, value in header.items()), key=lambda entry: entry[3:])
    position = 0
    for key, dtype, shape, start, stop in entries:
        if start != position:
            what = "overlaps the tensor before it" if start < position else "leaves a gap before it"
            raise _corrupt(path, f"{key!r} begins at byte {start} and {what}, which ends at {position}")
        if stop - start != math.prod(shape) * SIZES[dtype]:
            raise _corrupt(
                path,
                f"{key!r} has {stop - start} bytes, and {dtype} {list(shape)} takes {math.prod(shape) * SIZES[dtype]}",
            )
        position = stop
    if begin + position != file.size:
        truncated = " (the file is truncated)" if begin + position > file.size else ""
        raise _corrupt(path, f"its header promises {begin + position} bytes, the file has {file.size}{truncated}")
    return {key: OnDisk(file, dtype, shape, begin + start) for key, dtype, shape, start, _ in entries}, metadata


def _header(file: OpenFile) -> tuple[dict[str, Any], int]:
    """The parsed header and the position where the tensors' bytes begin."""
    path = file.path
    if file.size < 8:
        raise InputError(
            f"{path} is {'empty' if file.size == 0 else 'not a safetensors file'}", found=f"{file.size} bytes"
        )
    start = bytearray(min(16, file.size))
    file.read_into(memoryview(start), 0)
    if start[8:9] != b"{":
        _refuse_other_kinds(path, bytes(start))
    length = int.from_bytes(start[:8], "little")
    if MAX_HEADER < length < file.size:
        _too_much(path, "a larger header", f"{length:,} bytes", MAX_HEADER)
    if 8 + length > file.size:
        raise InputError(
            f"{path} is not a safetensors file, or is truncated",
            found=f"a header of {length} bytes in a file of {file.size}",
            hint="download or save it again",
        )
    text = bytearray(length)
    file.read_into(memoryview(text), 8)
    if (count := text.count(b'"dtype"')) > MAX_TENSORS:
        _too_much(path, "more tensors", f"{count:,}", MAX_TENSORS)
    try:
        header = json.loads(bytes(text).decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"its header is not valid JSON ({error})") from None
    if not isinstance(header, dict):
        raise _corrupt(path, "its header is not a JSON object")
    return header, 8 + length


def _too_much(path: Path, what: str, found: str, most: int) -> NoReturn:
    raise InputError(f"{path} has {what} than lorascope reads", found=found, expected=f"at most {most:,}")


def _refuse_other_kinds(path: Path, start: bytes) -> None:
    """A clear word where a pickle, a zip, a GGUF or an LFS pointer was given in place of safetensors."""
    if start.startswith(b"version "):
        raise InputError(f"{path} is a Git LFS pointer, not the file itself", hint="run `git lfs pull` there")
    if start.startswith(b"PK\x03\x04") or (start[:1] == b"\x80" and start[1] in (2, 3, 4, 5)):
        raise InputError(
            f"{path} is a pickle or a zip, not a safetensors file",
            hint="if it is a PyTorch checkpoint you trust, name it .bin or .pt; it is read without executing code",
        )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"duplicate keys {preview(name for name, count in counts.items() if count > 1)}")
    return values


def _entry(path: Path, key: str, value: Any) -> tuple[str, str, tuple[int, ...], int, int]:
    """(key, dtype, shape, start, stop) of one header entry, each of the right type and size."""
    try:
        key.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell and no terminal or file can take
        raise _corrupt(path, f"the key {key!r} is not valid text") from None
    if len(key) > LONGEST_KEY:
        _too_much(path, "a longer key", f"{len(key):,} characters", LONGEST_KEY)
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _corrupt(path, f"the entry of {key!r} is not dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise InputError(
            f"{path} holds {key!r} in a type lorascope cannot read", found=dtype, expected=", ".join(SIZES)
        )
    if not _sizes(shape) or len(shape) > MAX_AXES:
        raise _corrupt(path, f"the shape of {key!r} is {shape}")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _corrupt(path, f"the data_offsets of {key!r} are {offsets}")
    return key, dtype, tuple(shape), offsets[0], offsets[1]


def _sizes(values: Any) -> bool:
    """Whether it is a list of sizes, each a non-negative integer that an address fits."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 48 for value in values)


def _corrupt(path: Path, why: str) -> InputError:
    return InputError(f"{path} is not a valid safetensors file: {why}", hint="download or save it again")


def write_safetensors(path: Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> None:
    """Write `tensors` to `path` atomically, each in its own dtype: same tensors, same bytes.

    Raises:
        LorascopeError: the disk is full, or the folder cannot be written. Nothing is left behind.
    """
    order = sorted(tensors, key=lambda key: (-SIZES[tensors[key].dtype], key))  # so that each is aligned to its size
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for key in order:
        stored = tensors[key]
        end = position + math.prod(stored.shape) * SIZES[stored.dtype]
        header[key] = {"dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": [position, end]}
        position = end
    text = json_text(header).encode("utf-8", errors="backslashreplace")
    text += b" " * (-len(text) % 8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LorascopeError(f"cannot write {path}: its folder: {error.strerror or error}") from None
    write_bytes(path, _bytes(len(text).to_bytes(8, "little") + text, tensors, order))


def _bytes(start: bytes, tensors: Mapping[str, Stored], order: list[str]) -> Iterator[bytes]:
    yield start
    for key in order:
        stored = tensors[key]
        if isinstance(stored, OnDisk):
            yield stored.raw().tobytes()
            continue
        rows, count = getattr(stored, "rows", None), math.prod(stored.shape)
        if rows is None or count <= _WRITTEN:
            yield encode(stored.read(), stored.dtype)
            continue
        step = max(1, _WRITTEN * stored.shape[0] // count)
        for first in range(0, stored.shape[0], step):
            yield encode(rows(first, min(first + step, stored.shape[0])).read(), stored.dtype)
