"""litgpt's `lit_model.pth.lora`: bare lora_A and lora_B, with the settings in YAML files next to it.

`hyperparameters.yaml` has lora_r, lora_alpha and which projections were trained (lora_query, lora_key, lora_value);
`model_config.yaml` has the model's heads. A fused projection has A (k·r, d_in) of its k trained parts and B of their
rows one below the other, (rows, r): each part has its r rows of A. In the fused weight, `attn.qkv` has query, key and
value one below the other, and `attn.attn` of older versions has them interleaved by group. No format lives here.

Source: Lightning-AI/litgpt, `litgpt/lora.py` (`LoRAQKVLinear`), `litgpt/scripts/merge_lora.py`, `litgpt/config.py`.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.errors import InputError
from lorascope.inputs import read_yaml
from lorascope.updates.base import Stored, Update
from lorascope.weights.tensors import Mapped

UNKNOWN = (
    "litgpt's fused query, key and value: grouped-query attention makes them unequal, "
    "and their sizes are in the model's config, which the file does not hold: put model_config.yaml next to it"
)
PARTS = ("query", "key", "value")
_HYPERPARAMETERS, _MODEL = "hyperparameters.yaml", "model_config.yaml"


@dataclass(frozen=True)
class Settings:
    """What lies next to a file. `scale`: alpha over r, None where that is not said; `sizes`: rows of query, key and
    value, None where that is not said; `trained`: which of them, None likewise; `groups`: of keys."""

    scale: float | None = None
    sizes: tuple[int, int, int] | None = None
    trained: tuple[bool, bool, bool] | None = None
    groups: int = 1


def settings(path: Path) -> Settings:
    """The settings next to a weights file. InputError where one is there and is damaged."""
    folder = path if path.is_dir() else path.parent
    training, model = _read(folder / _HYPERPARAMETERS), _read(folder / _MODEL)
    r, alpha = _count(training, "lora_r"), training.get("lora_alpha")
    scale = alpha / r if r and isinstance(alpha, int | float) and math.isfinite(alpha) else None
    trained: tuple[bool, bool, bool] | None = None
    if all(type(training.get(f"lora_{part}")) is bool for part in PARTS):
        query, key, value = (bool(training[f"lora_{part}"]) for part in PARTS)
        trained = query, key, value
    heads, width = _count(model, "n_head"), _count(model, "n_embd")
    groups = _count(model, "n_query_groups") or heads
    size = _count(model, "head_size") or (width // heads if width and heads else 0)
    if not (heads and groups and size):
        return Settings(scale, None, trained)
    return Settings(scale, (heads * size, groups * size, groups * size), trained, groups)


def _count(values: Mapping[str, Any], name: str) -> int:
    """A positive number of a config; 0 where there is none."""
    value = values.get(name)
    return value if type(value) is int and 0 < value < 1 << 20 else 0


def _read(path: Path) -> Mapping[str, Any]:
    return read_yaml(path) if path.is_file() else {}


def fused(module: str, a: Stored, b: Stored, settings: Settings) -> Update:
    """The update of a fused query, key and value, whose sizes are known.

    Raises:
        InputError: the factors do not fit the sizes.
    """
    assert settings.sizes is not None
    parts, r = a.shape[0] // b.shape[1], b.shape[1]
    choices = [settings.trained] if settings.trained is not None else itertools.product((True, False), repeat=3)
    fits = [
        flags
        for flags in choices
        if sum(flags) == parts and sum(size for size, on in zip(settings.sizes, flags, strict=True) if on) == b.shape[0]
    ]
    usual = [flags for flags in fits if flags in ((True, False, True), (True, True, True))] or fits
    if not usual or a.shape[0] != parts * r:
        raise InputError(
            f"{module}: the factors do not fit the model's heads",
            found=f"A {tuple(a.shape)} and B {tuple(b.shape)}",
            expected=f"query, key and value of {settings.sizes} rows",
        )
    index = _rows(settings.sizes, settings.groups, interleaved=module.endswith(".attn.attn"))
    blocks = [(part, settings.sizes[part]) for part in range(3) if usual[0][part]]

    def place(values: np.ndarray) -> np.ndarray:
        out, start = np.zeros((sum(settings.sizes or ()), parts * r)), 0
        for number, (part, size) in enumerate(blocks):
            out[index[part], number * r : (number + 1) * r] = values[start : start + size]
            start += size
        return out

    trained = " and ".join(PARTS[part] for part, _ in blocks)
    guessed = "" if len(fits) == 1 else f": others fit too, and {_HYPERPARAMETERS}, which tells, is not there"
    notes = () if all(usual[0]) else (f"trained: {trained}{guessed}",)
    left = Mapped(b, (sum(settings.sizes), parts * r), place)
    return Update(module, "low_rank", {"A": a, "B": left}, notes=notes)


def _rows(sizes: tuple[int, int, int], groups: int, interleaved: bool) -> list[np.ndarray]:
    """Which rows of the fused weight are the query's, the key's, the value's."""
    query, key, value = sizes
    if not interleaved:
        return [np.arange(query), np.arange(query, query + key), np.arange(query + key, query + key + value)]
    width = key // groups
    by_group = np.arange(sum(sizes)).reshape(groups, -1, width)
    return [by_group[:, :-2].reshape(-1), by_group[:, -2].reshape(-1), by_group[:, -1].reshape(-1)]
