"""Which files on disk hold a set of tensors: one file, the shards of an index, or a folder with either."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lorascope.errors import InputError, preview
from lorascope.inputs import misfit, open_regular, read_json, sha256_of
from lorascope.updates.base import Stored
from lorascope.weights.file_names import GGUF, GGUF_MAGIC, HDF5, METADATA, PICKLES
from lorascope.weights.hdf5 import open_hdf5
from lorascope.weights.not_read import refuse_by_name
from lorascope.weights.pickles import open_pickle
from lorascope.weights.safetensors import open_safetensors

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.[a-z]+$")


@dataclass(frozen=True)
class Tensors:
    """Stored arrays by key, in file order, the header's metadata, and the files they lie in."""

    stored: Mapping[str, Stored]
    metadata: Mapping[str, str]
    files: tuple[Path, ...]

    def sha256(self) -> str:
        """The hash of the bytes of all files, in order."""
        return sha256_of(self.files)


def open_tensors(path: Path) -> Tensors:
    """The tensors of one weights file, or of all shards of an index.

    Raises:
        InputError: the file is missing or damaged, is one shard of several, or an index names a shard that is absent
            or lies elsewhere.
    """
    refuse_by_name(path)
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    shard = _SHARD.search(path.name)
    if shard and int(shard[2]) > 1:
        raise InputError(
            f"{path} is shard {int(shard[1])} of {int(shard[2])}, not the whole",
            hint="pass the folder, or the .index.json next to it",
        )
    return _open_file(path)


def _open_file(path: Path) -> Tensors:
    if path.name == METADATA:
        from lorascope.weights.distributed import open_distributed  # rare, and slow to import

        shards = sorted(path.parent.glob("*.distcp"))
        return Tensors(open_distributed(path), {}, (path, *shards))
    if path.suffix.lower() in PICKLES:
        return Tensors(open_pickle(path), {}, (path,))
    if path.name.lower().endswith(HDF5):
        return Tensors(open_hdf5(path), {}, (path,))
    with open_regular(path) as file:
        is_gguf = file.read(len(GGUF_MAGIC)) == GGUF_MAGIC
    if is_gguf or path.suffix.lower() in GGUF:
        from lorascope.weights.gguf_file import open_gguf  # as rare

        of_gguf, values = open_gguf(path)
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
        return Tensors(of_gguf, texts, (path,))
    stored, metadata = open_safetensors(path)
    return Tensors(stored, metadata, (path,))


def _open_shards(index: Path) -> Tensors:
    weight_map = read_json(index).get("weight_map")
    if not weight_map or misfit(weight_map, {str: (str,)}):
        raise InputError(f"{index} has no weight_map from keys to files")
    names = list(dict.fromkeys(weight_map.values()))
    outside = [name for name in names if Path(name).name != name or "\\" in name or name in ("", ".", "..")]
    outside += [name for name in names if len(os.fsencode(name)) > 255 or "\0" in name]
    if outside:
        raise InputError(f"{index} names files outside its folder, which is refused", found=preview(outside))
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise InputError(f"{len(absent)} of {len(names)} shards that {index} names are missing", found=preview(absent))
    parts = {name: _open_file(index.parent / name) for name in names}
    stored: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for name, part in parts.items():
        metadata |= part.metadata
        for key in part.stored:
            owner = weight_map.setdefault(key, name)
            if owner == name and key in stored:
                raise InputError(f"{index}: two shards hold {key!r}")
            if owner == name:
                stored[key] = part.stored[key]
            elif key in parts[owner].stored:
                raise InputError(f"{index}: {key!r} lies in {name} and in {owner}", expected="one shard for each key")
    missing = [key for key in weight_map if key not in stored]
    if missing:
        raise InputError(f"{index} promises keys that its shards do not hold", found=preview(missing))
    return Tensors(stored, metadata, tuple(index.parent / name for name in names))
