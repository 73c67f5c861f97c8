"""HDF5 files of Keras (`.weights.h5`, `.lora.h5`), by h5py where that is installed: arrays by path.

A file can point to others: links and datasets that lie elsewhere are refused, and so are virtual ones. The path of a
dataset is its key, with dots for slashes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.errors import InputError
from lorascope.inputs import open_regular
from lorascope.updates.base import MAX_ENTRIES, Stored
from lorascope.weights.dtypes import of_torch

MAX_OBJECTS = 100_000  # groups and datasets
DEEPEST = 50


@dataclass(frozen=True)
class Dataset:
    """An array of an HDF5 file, read when it is asked for; the file is opened anew for each."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> np.ndarray:
        import h5py

        with h5py.File(self.path, "r") as file:
            return np.asarray(file[self.name][()], np.float64)


def open_hdf5(path: Path) -> dict[str, Stored]:
    """The numeric arrays of the file by key; texts and other things are left out.

    Raises:
        InputError: h5py is not installed, the file is damaged, too large, or points outside itself.
    """
    open_regular(path).close()
    try:
        import h5py
    except ImportError:
        raise InputError(
            f"{path} is an HDF5 file of Keras, which h5py reads, and it is not installed", hint="pip install h5py"
        ) from None
    try:
        with h5py.File(path, "r") as file:
            return dict(_datasets(file, path, h5py))
    except InputError:
        raise
    except Exception as error:  # a damaged file can fail anywhere in HDF5
        raise InputError(f"{path} is not an HDF5 file, or is damaged", found=str(error).splitlines()[0][:200]) from None


def _datasets(file: Any, path: Path, h5py: Any) -> list[tuple[str, Stored]]:
    arrays: list[tuple[str, Stored]] = []
    groups, seen = [("", file, 0)], 0
    while groups:
        place, group, depth = groups.pop(0)
        for name in group:
            seen += 1
            if seen > MAX_OBJECTS or depth > DEEPEST:
                raise InputError(f"{path} has more groups than any model", expected=f"at most {MAX_OBJECTS:,}")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise InputError(f"{path} holds a link to something else, which is refused", found=f"{place}/{name}")
            item, key = group[name], f"{place}/{name}"
            if isinstance(item, h5py.Group):
                groups.append((key, item, depth + 1))
            elif isinstance(item, h5py.Dataset) and (dtype := of_torch(str(item.dtype))) is not None:
                if item.external or item.is_virtual:
                    raise InputError(f"{path}: {key} lies in another file, which is refused")
                if item.size > MAX_ENTRIES:
                    raise InputError(f"{path}: {key} is too large", found=item.shape)
                arrays.append((key.strip("/").replace("/", "."), Dataset(path, key, tuple(item.shape), dtype)))
    return arrays
