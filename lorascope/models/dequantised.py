"""A quantised base as a plain model: its codes turned into numbers, in a folder that transformers opens."""

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorascope.errors import InputError
from lorascope.linalg.rounding import UNIT_ROUNDOFF
from lorascope.outputs import write_json
from lorascope.weights.checkpoint import Checkpoint
from lorascope.weights.dtypes import SIZES
from lorascope.weights.quantised import HINT, Decoded, Unreadable, scheme_name, scheme_of
from lorascope.weights.safetensors import write_safetensors
from lorascope.weights.tensors import Cast

_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_OF_QUANTISATION = ("quantization_config", "quantization", "compression_config")


def is_quantised(checkpoint: Checkpoint) -> bool:
    """Whether any weight is stored in codes that are decoded."""
    return any(isinstance(stored, Decoded) for stored in checkpoint.stored.values())


def refuse_unreadable(checkpoint: Checkpoint, base: str) -> None:
    """InputError where the base has weights that are not decoded, or its config says codes and its files hold none."""
    bad = next((one for one in checkpoint.stored.values() if isinstance(one, Unreadable)), None)
    if bad is not None:
        raise InputError(
            f"the base {base} is quantised in a way that lorascope does not read", found=bad.reason, hint=HINT
        )
    scheme = scheme_name(checkpoint.config)
    if scheme and not is_quantised(checkpoint):
        raise InputError(
            f"the base {base} is quantised with {scheme}",
            hint="merge into the same model as it was before it was quantised: its files hold no codes of that scheme",
        )


def as_numbers(checkpoint: Checkpoint | None, base: str, dtype: str) -> str | None:
    """A sentence of what a quantised base takes where its codes are turned into numbers; None of a plain one.

    Args:
        dtype: of the numbers, torch's name.

    Raises:
        InputError: this machine has less memory free.
    """
    if checkpoint is None or not is_quantised(checkpoint):
        return None
    size = SIZES[_DTYPES[dtype]] * sum(math.prod(stored.shape) for stored in checkpoint.stored.values())
    free = _free_memory()
    scheme = scheme_name(checkpoint.config) or next(s for s in map(scheme_of, checkpoint.stored.values()) if s)
    if free is not None and size > free:
        raise InputError(
            f"the base {base} is quantised ({scheme}), and its weights as {dtype} do not fit into memory",
            found=f"{size / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free",
            hint="run it on a machine with more memory",
        )
    return f"the base's codes ({scheme}) were turned into numbers: {size / 1e9:.3g} GB as {dtype}"


def _free_memory() -> int | None:
    """Bytes that a process may take without others being swapped out; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


@contextmanager
def plain_folder(checkpoint: Checkpoint | None, base: str, dtype: str) -> Iterator[str]:
    """A place that transformers opens as a plain model: `base` itself, or of a quantised one a folder that is removed.

    Args:
        checkpoint: the base's files; None where only transformers can open it.
        dtype: of the numbers: torch's name, or "auto" for the one that the config names (bfloat16 where it names none).

    Raises:
        InputError: the base has no config.
        LorascopeError: the folder cannot be written.
    """
    if checkpoint is None or not is_quantised(checkpoint):
        yield base
        return
    if "model_type" not in checkpoint.config:
        raise InputError(f"the base {base} has no config.json", hint="put the original model's next to it")
    with tempfile.TemporaryDirectory(prefix="lorascope-", ignore_cleanup_errors=True) as place:
        _write(checkpoint, Path(place), _storage(checkpoint.config, dtype))
        yield place


def _storage(config: Any, dtype: str) -> str:
    """safetensors' name of the dtype that dequantised numbers are written in."""
    inner = config.get("text_config")
    named = [one.get(key) for one in (config, inner) if isinstance(one, dict) for key in ("dtype", "torch_dtype")]
    stated = next((str(name) for name in named if name in _DTYPES), "bfloat16")
    return _DTYPES[stated if dtype == "auto" else dtype]


def _write(checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    tensors = {
        name: Cast(stored, dtype) if isinstance(stored, Decoded) else stored
        for name, stored in checkpoint.stored.items()
        if isinstance(stored, Decoded) or stored.dtype in UNIT_ROUNDOFF or len(stored.shape) < 2
    }
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    config = {key: value for key, value in checkpoint.config.items() if key not in _OF_QUANTISATION}
    write_json(folder / "config.json", config)
    source = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    generation = source / "generation_config.json"
    if generation.is_file():
        write_json(folder / generation.name, json.loads(generation.read_text()))
