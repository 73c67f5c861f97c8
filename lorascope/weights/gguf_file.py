"""GGUF files of llama.cpp, read lazily with numpy and the standard library: metadata, and tensors by name.

The format (version 2 and 3, little endian; ggml's `docs/gguf.md`): "GGUF", version, counts of tensors and of metadata
entries; the entries, each name, type and value; then of each tensor its name, sizes (the fastest axis first), type and
offset; then the bytes, from a multiple of `general.alignment` on. Nothing is allocated on the header's word: every
size is checked against the file's own first.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.errors import InputError
from lorascope.updates.base import Stored
from lorascope.weights.file_names import GGUF_MAGIC
from lorascope.weights.safetensors import LONGEST_KEY, MAX_TENSORS, OnDisk, OpenFile

VERSIONS = (2, 3)
MAX_ENTRIES = 100_000  # of metadata; a model has some forty
MAX_TEXT = 1 << 20  # bytes of one text that is kept: a chat template
MAX_AXES = 4
_WINDOW = 1 << 20  # bytes of the header that are held
_LONGEST_LIST = 4096  # of numbers that are kept; a tokenizer's are counted and passed over
_STRING, _ARRAY = 8, 9
# Of metadata: how each type is packed, by its number.
_PACKED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# Of tensors: types that are stored entry by entry, by ggml's number and in safetensors' names.
PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}


@dataclass(frozen=True)
class BlockType:
    """A type that is stored in blocks of `entries` numbers and `nbytes` bytes; `decode` takes (n, nbytes) uint8 and
    gives (n, entries) float64."""

    name: str
    entries: int
    nbytes: int
    decode: Callable[[np.ndarray], np.ndarray]


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    """A scale in float16, and 32 codes: W = scale · code."""
    scale = blocks[:, :2].copy().view("<f2").astype(np.float64)
    return scale * blocks[:, 2:].view(np.int8)


def _by_package(number: int) -> Callable[[np.ndarray], np.ndarray]:
    """ggml's reference dequantisation as the package gguf has it, in float32."""

    def decode(blocks: np.ndarray) -> np.ndarray:
        try:
            from gguf.constants import GGMLQuantizationType
            from gguf.quants import dequantize
        except ImportError:
            raise InputError("reading this GGUF file needs a package that is not installed", found="gguf") from None
        try:
            return dequantize(blocks, GGMLQuantizationType(number)).astype(np.float64)
        except (NotImplementedError, ValueError):
            raise InputError(f"the installed gguf does not know ggml's type {number}", hint="update it") from None

    return decode


# Of each type: its number, the numbers of a block, and its bytes (ggml-common.h).
_SIZES = {
    "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210),
    "IQ2_XXS": (16, 256, 66), "IQ2_XS": (17, 256, 74), "IQ3_XXS": (18, 256, 98), "IQ1_S": (19, 256, 50),
    "IQ4_NL": (20, 32, 18), "IQ3_S": (21, 256, 110), "IQ2_S": (22, 256, 82), "IQ4_XS": (23, 256, 136),
    "IQ1_M": (29, 256, 56), "TQ1_0": (34, 256, 54), "TQ2_0": (35, 256, 66), "MXFP4": (39, 32, 17),
}  # fmt: skip
# By ggml's number of the type.
QUANTISED: dict[int, BlockType] = {
    8: BlockType("Q8_0", 32, 34, _q8_0),
    **{number: BlockType(name, entries, size, _by_package(number)) for name, (number, entries, size) in _SIZES.items()},
}


@dataclass(frozen=True)
class Blocks:
    """A tensor in blocks in an open file, whose rows each are whole blocks."""

    file: OpenFile
    type: BlockType
    shape: tuple[int, ...]
    offset: int
    dtype: str = "F32"  # what the numbers are held in where they are decoded

    def read(self) -> np.ndarray:
        out = np.empty(math.prod(self.shape))
        step = max(1, (1 << 18) // self.type.nbytes)
        count = out.size // self.type.entries
        for start in range(0, count, step):
            part = min(step, count - start)
            raw = np.empty((part, self.type.nbytes), np.uint8)
            self.file.read_into(raw, self.offset + start * self.type.nbytes)
            first = start * self.type.entries
            out[first : first + part * self.type.entries] = self.type.decode(raw).reshape(-1)
        return out.reshape(self.shape)

    def rows(self, start: int, stop: int) -> "Blocks":
        """Rows `start` to `stop` of the first axis, without reading the others."""
        row = math.prod(self.shape[1:]) // self.type.entries * self.type.nbytes
        return Blocks(self.file, self.type, (stop - start, *self.shape[1:]), self.offset + start * row)


@dataclass(frozen=True)
class Undecoded:
    """A tensor of a type that is not decoded. Reading it raises InputError."""

    shape: tuple[int, ...]
    type: int
    dtype: str = "U8"

    def read(self) -> np.ndarray:
        raise InputError(f"a tensor of ggml's type {self.type} is not decoded", hint="convert it to f16 or q8_0")


def open_gguf(path: Path) -> tuple[dict[str, Stored], dict[str, Any]]:
    """The tensors by name in the order of the header, each (..., rows, columns), and the metadata.

    Of the metadata, texts, numbers and short lists of numbers are kept; of every other list its length.

    Raises:
        InputError: the file is missing, damaged or truncated, or of a version or byte order that is not read.
    """
    file = OpenFile(path)
    reader = _Reader(file)
    if reader.take(4) != GGUF_MAGIC:
        raise InputError(f"{path} is not a GGUF file", found="other first bytes", expected="GGUF")
    version = reader.number("I")
    if version not in VERSIONS:
        byte_swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        what = "big-endian" if byte_swapped else f"version {version}"
        raise InputError(
            f"{path} is a GGUF file that is not read", found=what, expected="little-endian, version 2 or 3"
        )
    tensors, entries = reader.number("Q"), reader.number("Q")
    if tensors > MAX_TENSORS or entries > MAX_ENTRIES:
        raise reader.damaged(f"it announces {tensors:,} tensors and {entries:,} entries of metadata")
    metadata = dict(reader.entry() for _ in range(entries))
    infos = [reader.tensor() for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20:
        raise reader.damaged(f"general.alignment is {alignment!r}")
    begin = -(-reader.position // alignment) * alignment
    stored: dict[str, Stored] = {}
    for info in infos:
        if info[0] in stored:
            raise reader.damaged(f"two tensors are named {info[0]!r}")
        stored[info[0]] = _stored(file, info, begin)
    return stored, metadata


class _Reader:
    """The header, read in order through a window of the file."""

    def __init__(self, file: OpenFile):
        self.file = file
        self.position = 0
        self._window, self._begin = b"", 0

    def damaged(self, why: str) -> InputError:
        return InputError(f"{self.file.path} is not a valid GGUF file: {why}", hint="download or save it again")

    def take(self, count: int) -> bytes:
        """The next `count` bytes. InputError where the file ends before."""
        if count > self.file.size - self.position:
            raise self.damaged(f"{count:,} bytes are promised at {self.position:,}, and it has {self.file.size:,}")
        start = self.position - self._begin
        if start < 0 or start + count > len(self._window):
            window = bytearray(min(max(count, _WINDOW), self.file.size - self.position))
            self.file.read_into(window, self.position)
            self._window, self._begin, start = bytes(window), self.position, 0
        self.position += count
        return self._window[start : start + count]

    def skip(self, count: int) -> None:
        if count > self.file.size - self.position:
            raise self.damaged(f"{count:,} bytes are promised at {self.position:,}, and it has {self.file.size:,}")
        self.position += count

    def number(self, packed: str) -> Any:
        return struct.unpack(f"<{packed}", self.take(struct.calcsize(f"<{packed}")))[0]

    def text(self, most: int) -> str:
        length = self.number("Q")
        if length > most:
            raise self.damaged(f"a text of {length:,} bytes, and {most:,} are the most")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged("a text that is not UTF-8") from None

    def entry(self) -> tuple[str, Any]:
        """A name and a value of the metadata."""
        name = self.text(LONGEST_KEY)
        return name, self.value(self.number("I"))

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text(MAX_TEXT)
        if kind in _PACKED:
            return self.number(_PACKED[kind])
        if kind != _ARRAY:
            raise self.damaged(f"metadata of type {kind}")
        return self._list(self.number("I"), self.number("Q"))

    def _list(self, kind: int, count: int) -> Any:
        """A short list of numbers; of another one its length."""
        if kind in _PACKED:
            size = struct.calcsize(f"<{_PACKED[kind]}")
            if count <= _LONGEST_LIST:
                return list(struct.unpack(f"<{count}{_PACKED[kind]}", self.take(count * size)))
            self.skip(count * size)
        elif kind == _STRING:
            if count > (self.file.size - self.position) // 8:
                raise self.damaged(f"{count:,} texts are promised")
            for _ in range(count):
                self.skip(self.number("Q"))
        else:
            raise self.damaged(f"a list of type {kind}")
        return {"length": count}

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape, type, offset) of a tensor, the slowest axis first."""
        name = self.text(LONGEST_KEY)
        axes = self.number("I")
        if axes > MAX_AXES:
            raise self.damaged(f"{name!r} has {axes} axes")
        shape = tuple(self.number("Q") for _ in range(axes))[::-1]
        if max(shape, default=0) >= 1 << 48 or math.prod(shape) >= 1 << 56:
            raise self.damaged(f"the shape of {name!r} is {shape}")
        kind, offset = self.number("I"), self.number("Q")
        if offset >= 1 << 60:
            raise self.damaged(f"{name!r} begins at {offset}")
        return name, shape, kind, offset


def _stored(file: OpenFile, info: tuple[str, tuple[int, ...], int, int], begin: int) -> Stored:
    """A tensor by what the header says of it. InputError where the file does not hold it."""
    name, shape, kind, offset = info
    stored: Stored
    if kind in PLAIN:
        stored = OnDisk(file, PLAIN[kind], shape, begin + offset)
        size = stored.nbytes
    elif kind in QUANTISED:
        of_blocks = QUANTISED[kind]
        if not shape or shape[-1] % of_blocks.entries:
            raise InputError(f"{file.path}: {name!r} does not divide into blocks of {of_blocks.entries}", found=shape)
        stored = Blocks(file, of_blocks, shape, begin + offset)
        size = math.prod(shape) // of_blocks.entries * of_blocks.nbytes
    else:
        return Undecoded(shape, kind)
    if (end := begin + offset + size) > file.size:
        raise InputError(f"{file.path} is truncated", found=f"{file.size:,} bytes", expected=f"{end:,} or more")
    return stored
