"""The decomposition of each base weight, computed once and kept on disk, for all analyses of one base model.

A file holds one weight: the singular vectors of its shorter side (p, p) and the singular values, in float64. Half of
the bytes would hold float32, but the longer side's vectors are computed from these as Wᵀu/σ, which multiplies their
rounding by σ₁/σ: in float64 every cosine is good to nine digits down to σ₁/1000, in float32 to three.

The key is a checksum of the weight's numbers, so that nothing depends on a name, a date or the dtype of the file, and
checkpoints that share a weight share its file. What is read is checked against the weight itself, which costs four
products with a vector: a damaged file is computed again, and no result depends on the key.
"""

import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lorascope.errors import InputError, LorascopeError
from lorascope.linalg.arrays import Array
from lorascope.linalg.cached_svd import CachedSVD, decompose, decompose_together
from lorascope.linalg.orthonormal import Orthonormal
from lorascope.weights.safetensors import open_safetensors, write_safetensors
from lorascope.weights.tensors import InMemory

FOLDER = "svd"
_VERSION = "2"  # of the files: another one is computed again
_LINE = 1024  # numbers between two that count alike in a fingerprint


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class SvdCache:
    """Decompositions by the weights' numbers.

    Attributes:
        folder: where they lie, made when the first is written; None keeps none.
        place: puts matrices where they are to be decomposed, such as on a GPU; None leaves them.
        say: what is told a damaged file, or a folder that cannot be written.
        hits, computed, damaged: how many were read, computed, and computed because what lay there was damaged.
        read_bytes, written_bytes: the sizes of what was read and written.
    """

    folder: Path | None
    say: Callable[[str], None] = _say
    place: Callable[[np.ndarray], Array] | None = None
    hits: int = field(default=0, init=False)
    computed: int = field(default=0, init=False)
    damaged: int = field(default=0, init=False)
    read_bytes: int = field(default=0, init=False)
    written_bytes: int = field(default=0, init=False)
    _ready: dict[str, CachedSVD] = field(default_factory=dict, init=False)

    def of(self, weight: np.ndarray) -> CachedSVD:
        """The decomposition of a float64 matrix (m, n): read, or else computed and kept.

        Raises:
            ValueError: the matrix is empty, or holds NaN or infinite entries.
        """
        path = self._path(weight)
        decomposition = self._read(path, weight)
        if decomposition is None:
            decomposition = self._ready.pop(_name(weight), None) if self._ready else None
            decomposition = decompose(weight) if decomposition is None else decomposition
            self.computed += 1
            self._write(path, decomposition)
        return decomposition

    def prepare(self, weights: Sequence[np.ndarray]) -> None:
        """Decompose at `place` those of the weights that `of` is about to be asked for, of each shape all together."""
        if self.place is None:
            return
        missing: dict[tuple[int, ...], list[np.ndarray]] = {}
        for weight in weights:
            path = self._path(weight)
            if weight.size and np.isfinite(weight).all() and not (path and path.is_file()):
                missing.setdefault(weight.shape, []).append(weight)
        for together in missing.values():
            decompositions = decompose_together(together, self.place)
            self._ready |= {_name(weight): each for weight, each in zip(together, decompositions, strict=True)}

    def kept(self, weight: np.ndarray) -> CachedSVD | None:
        """The decomposition where it is there already; nothing is computed."""
        return self._read(self._path(weight), weight)

    def _path(self, weight: np.ndarray) -> Path | None:
        if self.folder is None:
            return None
        return self.folder / f"{_VERSION}-{_name(weight)}.safetensors"

    def _read(self, path: Path | None, weight: np.ndarray) -> CachedSVD | None:
        if path is None or not path.is_file():
            return None
        try:
            stored, _ = open_safetensors(path)
            shape, basis = (int(weight.shape[0]), int(weight.shape[1])), Orthonormal(stored["short"].read())
            decomposition = CachedSVD(shape, basis, stored["sigma"].read())
            sound = decomposition.is_of(weight)
        except (InputError, LorascopeError, KeyError, ValueError, OSError):
            sound = False
        if not sound:
            self.damaged += 1
            self.say(f"{path} is damaged: the decomposition is computed again")
            return None
        self.hits += 1
        self.read_bytes += path.stat().st_size
        return decomposition

    def _write(self, path: Path | None, decomposition: CachedSVD) -> None:
        """Keep it, whole or not at all. Where the folder cannot be written the run goes on, and says so once."""
        if path is None or self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            stored = {
                "short": InMemory(decomposition.basis.dense(), "F64"),
                "sigma": InMemory(decomposition.sigma, "F64"),
            }
            write_safetensors(path, stored, {"lorascope": f"singular value decomposition, version {_VERSION}"})
            self.written_bytes += path.stat().st_size
        except (OSError, LorascopeError) as error:
            self.say(f"the decompositions cannot be kept in {self.folder}: {error}")
            self.folder = None


def _name(weight: np.ndarray) -> str:
    return f"{weight.shape[0]}x{weight.shape[1]}-{_fingerprint(weight)}"


def _fingerprint(weight: np.ndarray) -> str:
    """96 bits of the numbers. Two weights that share them would take turns at one file, and `is_of` tell them apart."""
    straight = weight if weight.flags.c_contiguous or not weight.flags.f_contiguous else weight.T
    words = np.ascontiguousarray(straight, dtype=np.float64).view(np.uint64).reshape(-1)
    whole = len(words) - len(words) % _LINE
    sums = words[:whole].reshape(-1, _LINE).sum(axis=0, dtype=np.uint64)  # cheaper than a checksum of all
    total = int(sums.sum(dtype=np.uint64) + words[whole:].sum(dtype=np.uint64))  # of all, modulo 2⁶⁴
    return f"{zlib.crc32(words[whole:].tobytes(), zlib.crc32(sums.tobytes())):08x}{total:016x}"
