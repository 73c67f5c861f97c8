"""PyTorch's own files (.bin, .pt, .pth), read with `weights_only=True`: a pickle from a stranger executes nothing.

torch is imported when such a file is opened and not before.
"""

import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.errors import InputError, preview
from lorascope.inputs import open_regular
from lorascope.updates.base import Stored
from lorascope.weights.dtypes import of_torch

# Where trainers put the weights among other things: Lightning; litgpt, Megatron; DeepSpeed; many scripts.
STATE_DICTS = ("state_dict", "model", "module", "model_state_dict")


MAX_SIDE = 1 << 48  # of a tensor, empty ones too: an address fits


@dataclass(frozen=True)
class TorchTensor:
    """A tensor that torch has loaded, in its own dtype; mapped from the file where the file allows it."""

    tensor: Any
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def read(self) -> np.ndarray:
        import torch

        return self.tensor.detach().to(torch.float64).numpy()

    def rows(self, start: int, stop: int) -> "TorchTensor":
        """Rows `start` to `stop` of the first axis, without reading the others."""
        return TorchTensor(self.tensor[start:stop], self.dtype)

    def columns(self, start: int, stop: int) -> "TorchTensor":
        """Columns `start` to `stop` of a matrix, without reading the others."""
        return TorchTensor(self.tensor[:, start:stop], self.dtype)


def open_pickle(path: Path) -> dict[str, Stored]:
    """The tensors of a PyTorch file by key; one that holds `{"state_dict": {...}}` and the like is opened deeper.

    Raises:
        InputError: the file is missing, damaged, holds code (which was refused and not executed) or something other
            than tensors by name.
    """
    loaded = _inner(path, _load(path))
    if not isinstance(loaded, Mapping) or not loaded:
        raise InputError(f"{path} holds no tensors by name", found=type(loaded).__name__, expected="a state dict")
    tensors: dict[str, Stored] = {}
    others = []
    for key, value in loaded.items():
        dtype = of_torch(getattr(value, "dtype", None))
        if isinstance(key, str) and dtype and _is_plain(value):
            stored = value.untyped_storage().nbytes()
            if math.prod(value.shape) * value.element_size() > stored or max(value.shape, default=0) >= MAX_SIDE:
                raise InputError(
                    f"{path}: {key} claims more than is stored",
                    found=f"{tuple(value.shape)} in {stored:,} bytes",
                    hint="save it after .contiguous(), best as safetensors",
                )
            tensors[key] = TorchTensor(value, dtype)
        else:
            others.append(f"{key}: {type(value).__name__}")
    if others:
        raise InputError(
            f"{path} holds more than tensors by name",
            found=preview(others),
            hint="save the state dict alone, best as safetensors",
        )
    return tensors


def piece_of_torch(content: Any, path: Path) -> np.ndarray:
    """The one tensor of a file of `torch.save` within another, in float64. InputError where it holds anything else."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in torch's reader
        raise InputError(f"{path} holds a piece that is damaged, or not a tensor", found=_first_line(error)) from None
    if not _is_plain(value):
        raise InputError(f"{path} holds a piece that is not a plain tensor", found=type(value).__name__)
    return value.to(torch.float64).numpy()


def _inner(path: Path, loaded: Any) -> Any:
    """The state dict that a training state holds under one of its usual names, or what was loaded itself.

    InputError where it holds several that differ.
    """
    if not isinstance(loaded, Mapping):
        return loaded
    named = [name for name in STATE_DICTS if isinstance(loaded.get(name), Mapping) and loaded[name]]
    if len(named) > 1 and any(loaded[name] is not loaded[named[0]] for name in named):
        raise InputError(f"{path} holds several state dicts", found=preview(named), hint="save the adapter's alone")
    return loaded[named[0]] if named else loaded


def _load(path: Path) -> Any:
    with open_regular(path) as file:
        if not file.read(1):
            raise InputError(f"{path} is empty")
    _refuse_compressed(path)
    try:
        import torch
    except ImportError:
        raise InputError(f"{path} is a PyTorch file, and torch is not installed", hint="install torch") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on the pickle's protocol, which the outcome makes plain
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} was refused and not executed: it is damaged, or it holds code or objects other than tensors",
            found=_offender(str(error)),
            hint="ask its author for safetensors",
        ) from None
    except Exception as error:  # a damaged file can fail anywhere in torch's reader
        raise InputError(f"{path} is not a PyTorch file, or is damaged", found=_first_line(error)) from None


def _refuse_compressed(path: Path) -> None:
    """InputError where it is a zip whose files are larger than itself: torch stores them as they are."""
    if not _is_zip(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # torch says what is wrong with it
    if size > path.stat().st_size:
        raise InputError(f"{path} is compressed, as torch writes none", found=f"{size:,} bytes unpacked")


def _is_zip(path: Path) -> bool:
    """Whether torch's newer layout; a damaged one may be neither."""
    try:
        return zipfile.is_zipfile(path)
    except (zipfile.BadZipFile, OSError):
        return False


def _offender(message: str) -> str | None:
    """The global that torch refused to call, from its long message; None where the message names none."""
    named = re.search(r"GLOBAL ([\w.]+)", message)
    return f"a call of {named[1]}" if named else None


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def _is_plain(value: Any) -> bool:
    """Whether it is a dense tensor on the host, not quantised, sparse or without data."""
    import torch

    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )
