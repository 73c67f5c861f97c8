"""PyTorch's distributed checkpoints (DCP: FSDP, accelerate, Megatron): a folder with `.metadata` and `*.distcp`.

`.metadata` is a pickle that says of every tensor its type, its size and the pieces it lies in; each piece is a file of
`torch.save` within a `.distcp`, at an offset. The pickle is read with stand-ins for the dozen classes that torch writes
into it, which do nothing; any other name refuses the file. Pieces are opened with `weights_only=True`. So nothing of
a stranger's is executed. Source: torch/distributed/checkpoint/metadata.py and filesystem.py (torch 2.13).
"""

import io
import math
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from lorascope.errors import InputError, preview
from lorascope.inputs import open_regular
from lorascope.updates.base import Stored
from lorascope.weights.dtypes import SIZES, of_torch
from lorascope.weights.pickles import MAX_SIDE, STATE_DICTS, piece_of_torch

MAX_METADATA = 256 << 20  # bytes
GATHER = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch {} OUTPUT.pt gathers it into one file"
_MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
_CLASSES = frozenset(
    """
    Metadata TensorStorageMetadata BytesStorageMetadata TensorProperties ChunkStorageMetadata MetadataIndex StorageMeta
    _StorageInfo _StoragePrefix _MEM_FORMAT_ENCODING SerializationFormat
    """.split()  # noqa: SIM905
)


class _Record:
    """A stand-in for an object of torch's: whatever state the pickle gives it, and no behaviour."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            vars(self).update({str(key): value for key, value in state.items()})
        else:
            self.values = state

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def _as_tuple(values: Any = ()) -> tuple[Any, ...]:
    return tuple(values)


def _as_text(*parts: Any) -> str:
    return "/".join(map(str, parts))


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in _MODULES and name in _CLASSES:
            return _Record
        if (module, name) == ("torch", "Size"):
            return _as_tuple
        if module == "torch" and of_torch(name) is not None:
            return name
        if module.startswith("pathlib") and name.endswith("Path"):
            return _as_text
        if (module, name) in (("torch.serialization", "_get_layout"), ("collections", "OrderedDict")):
            return dict if name == "OrderedDict" else _as_text
        raise pickle.UnpicklingError(f"{module}.{name}")


@dataclass(frozen=True)
class Piece:
    """A block of a tensor: where it begins in it, how large it is, and where its bytes are."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    path: Path
    start: int
    length: int


@dataclass(frozen=True)
class Pieces:
    """A tensor that lies in pieces, put together when it is read."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    def read(self) -> np.ndarray:
        out = np.full(self.shape, np.nan)
        for piece in self.pieces:
            with open_regular(piece.path) as file:
                file.seek(piece.start)
                values = piece_of_torch(io.BytesIO(file.read(piece.length)), piece.path)
            if tuple(values.shape) != piece.sizes:
                raise InputError(f"{piece.path}: a piece has another size", found=values.shape, expected=piece.sizes)
            at = tuple(slice(o, o + size) for o, size in zip(piece.offsets, piece.sizes, strict=True))
            out[at] = values
        return out


def open_distributed(metadata: Path) -> dict[str, Stored]:
    """The tensors of the model in a distributed checkpoint, by key; an optimizer's and other states are left out.

    Raises:
        InputError: a file is missing or damaged, holds other objects than torch writes, or pieces do not make a tensor.
    """
    loaded = _load(metadata)
    state, storage = getattr(loaded, "state_dict_metadata", None), getattr(loaded, "storage_data", None)
    if not isinstance(state, dict) or not isinstance(storage, dict):
        raise _damaged(metadata, "it names no tensors")
    places = dict(_places(metadata, storage))
    names = _of_the_model(state, getattr(loaded, "planner_data", None), metadata)
    tensors: dict[str, Stored] = {}
    for key, name in names.items():
        if (pieces := getattr(state[key], "chunks", None)) is not None:
            tensors[name] = _tensor(metadata, key, state[key], pieces, places)
    if not tensors:
        raise InputError(f"{metadata.parent} is a distributed checkpoint without tensors", found=preview(state))
    return tensors


def _load(metadata: Path) -> Any:
    with open_regular(metadata) as file:
        content = file.read(MAX_METADATA + 1)
    if len(content) > MAX_METADATA:
        raise InputError(f"{metadata} is too large", expected=f"at most {MAX_METADATA:,} bytes")
    try:
        return _Reader(io.BytesIO(content)).load()
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{metadata} was refused and not executed: it is damaged, or holds other objects than torch writes",
            found=str(error)[:200],
            hint=GATHER.format(metadata.parent),
        ) from None
    except Exception as error:  # a damaged pickle can fail anywhere
        raise _damaged(metadata, type(error).__name__) from None


def _damaged(metadata: Path, why: str) -> InputError:
    return InputError(f"{metadata} is damaged: {why}", hint="copy the folder again")


def _places(metadata: Path, storage: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, tuple[int, ...]], Any]]:
    """Where each piece lies, by the tensor's key and the piece's offsets."""
    for index, info in storage.items():
        key, offset = getattr(index, "fqn", None), getattr(index, "offset", None) or ()
        if not isinstance(key, str) or not _sizes(offset):
            raise _damaged(metadata, "a piece without a name or a place")
        yield (key, tuple(offset)), info


def _of_the_model(state: Mapping[Any, Any], planner: Any, metadata: Path) -> dict[str, str]:
    """The keys of the model's tensors, and their names in it: the state dict that a training state holds under one of
    its usual names, or all. `planner` has the path of each key in what was saved."""
    paths: dict[str, tuple[str, ...]] = {}
    for key in state:
        path = planner.get(key) if isinstance(planner, dict) else None
        texts = isinstance(path, tuple) and all(isinstance(part, str) for part in path)
        paths[str(key)] = tuple(path) if path and texts else (str(key),)
    roots = [name for name in STATE_DICTS if any(path[0] == name and len(path) > 1 for path in paths.values())]
    if len(roots) > 1:
        raise InputError(f"{metadata.parent} holds several state dicts", found=preview(roots), hint="save one alone")
    if roots:
        return {key: ".".join(path[1:]) for key, path in paths.items() if path[0] == roots[0] and len(path) > 1}
    return {key: key for key in paths}


def _tensor(metadata: Path, key: str, entry: Any, pieces: Any, places: Mapping[Any, Any]) -> Pieces:
    shape, properties = getattr(entry, "size", None), getattr(getattr(entry, "properties", None), "values", None)
    name = properties[0] if isinstance(properties, tuple) and properties else None
    dtype = of_torch(getattr(getattr(entry, "properties", None), "dtype", None) or name)
    if dtype is None or not _sizes(shape) or not isinstance(pieces, list):
        raise _damaged(metadata, f"{key!r} has no type or size that is known")
    found = [_piece(metadata, key, tuple(shape), piece, places) for piece in pieces]
    if sum(math.prod(piece.sizes) for piece in found) != math.prod(shape):
        raise _damaged(metadata, f"the pieces of {key!r} do not make {tuple(shape)}")
    if SIZES[dtype] * math.prod(shape) > sum(piece.length for piece in found):
        raise _damaged(metadata, f"{key!r} claims more than is stored")
    return Pieces(dtype, tuple(shape), tuple(found))


def _piece(metadata: Path, key: str, shape: tuple[int, ...], piece: Any, places: Mapping[Any, Any]) -> Piece:
    offsets, sizes = getattr(piece, "offsets", None), getattr(piece, "sizes", None)
    if not _sizes(offsets) or not _sizes(sizes) or not len(offsets) == len(sizes) == len(shape):
        raise _damaged(metadata, f"a piece of {key!r} has no place")
    if any(o + size > side for o, size, side in zip(offsets, sizes, shape, strict=True)):
        raise _damaged(metadata, f"a piece of {key!r} lies outside it")
    info = places.get((key, tuple(offsets)))
    name = getattr(info, "relative_path", None)
    extent = getattr(info, "offset", None), getattr(info, "length", None)
    if not isinstance(name, str) or Path(name).name != name or not _sizes(extent):
        raise _damaged(metadata, f"a piece of {key!r} lies in no file of the folder")
    path, (start, length) = metadata.parent / name, extent
    if not path.is_file() or path.stat().st_size < start + length:
        raise InputError(f"{path}, a shard of {metadata.parent}, is missing or truncated", hint="copy the folder again")
    return Piece(tuple(offsets), tuple(sizes), path, start, length)


def _sizes(values: Any) -> TypeGuard[tuple[int, ...]]:
    """Whether it is a tuple of sizes."""
    return isinstance(values, tuple) and all(type(value) is int and 0 <= value < MAX_SIDE for value in values)
