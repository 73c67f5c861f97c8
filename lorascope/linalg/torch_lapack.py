"""LAPACK routines from the library that torch carries, without importing torch.

On x86-64 Linux that is Intel's MKL, whose reduction of a symmetric matrix beats OpenBLAS's on Intel processors and
loses to it on AMD's. Loading the library costs a sixth of the time that `import torch` takes, and 100 MB of memory.
"""

import ctypes
import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

_FILE = ("lib", "libtorch_cpu.so")


@cache
def routine(name: str) -> Callable[..., Any] | None:
    """The routine of that name, in lower case and with its underscore; None where torch or the routine is missing."""
    library = _library()
    found = getattr(library, name, None) if library is not None else None
    if found is not None:
        found.restype = None
    return found


@cache
def _library() -> ctypes.CDLL | None:
    import platform  # slow to import, and rarely needed

    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    try:
        spec = importlib.util.find_spec("torch")
        if spec is None or spec.origin is None:
            return None
        return ctypes.CDLL(str(Path(spec.origin).parent.joinpath(*_FILE)))
    except (ImportError, OSError, ValueError):  # no torch, another layout, or a library that it needs is missing
        return None
