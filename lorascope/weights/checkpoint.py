"""A full model on disk, sharded or not, read lazily tensor by tensor, its parameters found by the adapters' names."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.errors import InputError, some
from lorascope.updates.base import Stored, Update
from lorascope.weights.dtypes import SIZES
from lorascope.weights.files import PICKLES, SAFETENSORS, Tensors, open_tensors, read_json
from lorascope.weights.safetensors import OnDisk
from lorascope.weights.tensors import Mapped, flattened, reshaped, transposed

_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
)
# Modules that share one parameter in the usual models; a checkpoint stores it once, under either name.
_TIED = (
    "lm_head", "embed_out", "cls.predictions.decoder", "lm_head.decoder", "output_projection",
    "embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in", "shared",
)  # fmt: skip
_MOST_PREFIX = 2  # components by which two namings of one model differ: `model.`, `bert.`, `base_model.model.`


@dataclass(frozen=True)
class Checkpoint:
    """A full model's parameters by name; nothing is read before `weight(...).read()`.

    Attributes:
        path: the file or folder it was opened from.
        config: the model's `config.json`, or empty.
    """

    path: Path
    tensors: Tensors
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stored(self) -> Mapping[str, Stored]:
        """The parameters by their names as stored, in file order."""
        return self.tensors.stored

    def names(self) -> list[str]:
        """The parameters' names as stored, in file order."""
        return list(self.tensors.stored)

    def sha256(self) -> str:
        """The hash of the bytes of its weights files."""
        return self.tensors.sha256()

    @cached_property
    def dtype(self) -> str:
        """The type that most of the bytes have."""
        sizes: Counter[str] = Counter()
        for stored in self.tensors.stored.values():
            sizes[stored.dtype] += SIZES[stored.dtype] * int(np.prod(stored.shape, dtype=np.int64))
        return sizes.most_common(1)[0][0] if sizes else "F32"

    @cached_property
    def _by_suffix(self) -> dict[str, list[str]]:
        """Names as stored, by what is left of them without one or two leading components."""
        found: dict[str, list[str]] = {}
        for name in self.tensors.stored:
            rest = name
            for _ in range(_MOST_PREFIX):
                _, dot, rest = rest.partition(".")
                if dot:
                    found.setdefault(rest, []).append(name)
        return found

    def resolve(self, name: str) -> str | None:
        """The stored name of a module's weight, or of a parameter, whatever prefix either side has; None if absent.

        A tied parameter that is stored under its partner's name (`lm_head`, `embed_tokens`) is found there.
        """
        for ending in ("", ".weight"):
            if found := self._resolve_plain(name + ending):
                return found
        return self._resolve_tied(name.removesuffix(".weight"))

    def _resolve_plain(self, name: str) -> str | None:
        rest = name.removeprefix("base_model.model.")
        for _ in range(_MOST_PREFIX + 1):
            if rest in self.tensors.stored:
                return rest
            if len(matches := self._by_suffix.get(rest, [])) == 1:
                return matches[0]
            _, dot, rest = rest.partition(".")
            if not dot or "." not in rest:
                return None
        return None

    def _resolve_tied(self, name: str) -> str | None:
        if self.config.get("tie_word_embeddings") is False or not _ends_with_any(name, _TIED):
            return None
        partners = [
            stored
            for stored in self.tensors.stored
            if stored.endswith(".weight") and _ends_with_any(stored.removesuffix(".weight"), _TIED)
        ]
        return partners[0] if len(partners) == 1 else None

    def find(self, name: str) -> Stored | None:
        """The stored weight of a module, or a parameter; None where there is none."""
        found = self.resolve(name)
        return self.tensors.stored[found] if found is not None else None

    def weight(self, name: str) -> Stored:
        """As `find`. InputError where the model has no such parameter."""
        found = self.find(name)
        if found is None:
            raise InputError(
                f"{self.path} has no parameter for {name!r}",
                found=some(self.names(), 3),
                hint="is it the base model that this adapter was trained on?",
            )
        return found

    def of(self, update: Update) -> Stored:
        """The base weight W of an update as (d_out, d_in): turned, flattened or sliced as the update says; a vector
        as (d, 1).

        Raises:
            InputError: the model has no such parameter, or one of another shape.
        """
        stored = self.weight(update.base_weight or update.name)
        if update.expert is not None and len(stored.shape) == 3:
            if update.expert >= stored.shape[0]:
                raise InputError(f"{self.path}: {update.name} has {stored.shape[0]} experts", found=update.expert)
            stored = _first_axis(stored, update.expert)
        if len(stored.shape) < 2:
            stored = reshaped(stored, math.prod(stored.shape), 1)  # a bias or a norm's weight is a map of one input
        matrix = flattened(stored) if len(stored.shape) > 2 else stored
        matrix = transposed(matrix) if update.transposed else matrix
        _check_fits(self.path, update, matrix)
        return matrix


def _ends_with_any(name: str, endings: tuple[str, ...]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


def _first_axis(stored: Stored, index: int) -> Stored:
    rest = tuple(stored.shape[1:])
    if isinstance(stored, OnDisk):
        return reshaped(stored.rows(index, index + 1), *rest)
    return Mapped(stored, rest, lambda values: values[index])


def _check_fits(path: Path, update: Update, matrix: Stored) -> None:
    try:
        expected = update.shape
    except InputError:  # a scaling, or lengths alone: only the base knows
        return
    if tuple(matrix.shape) != expected:
        raise InputError(
            f"{path} does not fit the adapter at {update.name}",
            found=tuple(matrix.shape),
            expected=expected,
            hint="give the base model that this adapter was trained on",
        )


def open_checkpoint(path_or_name: str | Path) -> Checkpoint:
    """A full model from a folder, a weights file, or a hub name that is in the local cache. Nothing is downloaded.

    Raises:
        InputError: there is no such model here, the folder holds an adapter or nothing, or a file is damaged.
    """
    path = Path(path_or_name)
    if not path.exists():
        path = _cached(str(path_or_name))
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            raise InputError(
                f"{path} is a GGUF file", expected="safetensors or PyTorch", hint="pass the original model"
            )
        folder, weights = path.parent, path
    else:
        folder, weights = path, _weights_of(path)
    config = folder / "config.json"
    return Checkpoint(path, open_tensors(weights), read_json(config) if config.is_file() else {})


def _weights_of(folder: Path) -> Path:
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    present = sorted(entry.name for entry in folder.iterdir())
    if any(name.startswith("adapter_") for name in present):
        raise InputError(f"{folder} holds an adapter, not a full model", found=some(present))
    candidates = [name for name in present if name.lower().endswith((*SAFETENSORS, *PICKLES))]
    if len(candidates) == 1:
        return folder / candidates[0]
    raise InputError(f"{folder} holds no model", found=some(present) or "an empty folder", expected=_FILES[0])


def _cached(name: str) -> Path:
    """The folder of a hub model in the local cache."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise InputError(f"there is no file or folder {name}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(
            f"there is no file or folder {name}", hint="install huggingface_hub to use hub names"
        ) from None
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except Exception:  # the library raises many kinds; all mean that the model is not here
        raise InputError(
            f"there is no folder {name}, and no model of that name in the local Hugging Face cache",
            hint="download it first, or pass a folder",
        ) from None
