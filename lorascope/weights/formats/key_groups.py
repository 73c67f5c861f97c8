"""What the dialects that store a handful of tensors per module share: pairing keys, scales, convolutions, names.

No format lives here. `kohya.py`, `lycoris.py`, `diffusers.py` and `loralib.py` build on it.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lorascope.architectures.image import place
from lorascope.errors import InputError
from lorascope.updates.base import Stored, Update
from lorascope.weights.formats.base import Ledger
from lorascope.weights.tensors import Combined, flattened, reshaped

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint


MAX_PARTS = 8  # of a fused projection; FLUX has four


@dataclass(frozen=True)
class KeyGroup:
    """The keys of one module: what follows its name -> the whole key."""

    module: str
    keys: Mapping[str, str]

    def __contains__(self, suffix: str) -> bool:
        return suffix in self.keys

    def take(self, ledger: Ledger, suffix: str) -> Stored:
        """The stored array, taken. InputError naming the key where it is missing next to its partner."""
        if suffix not in self.keys:
            raise InputError(
                f"{self.module} is incomplete: {f'{self.module}.{suffix}'!r} is missing",
                found=", ".join(self.keys.values()),
                hint="the file was cut or filtered; save it again",
            )
        return ledger.take(self.keys[suffix])

    def take_matrix(self, ledger: Ledger, suffix: str) -> Stored:
        """As `take`. InputError where the array has fewer than two axes, or no entries."""
        stored = self.take(ledger, suffix)
        if len(stored.shape) < 2 or 0 in stored.shape:
            raise InputError(f"{self.keys[suffix]!r} is not a matrix or a kernel", found=f"shape {tuple(stored.shape)}")
        return stored

    def optional(self, ledger: Ledger, suffix: str) -> Stored | None:
        return ledger.take(self.keys[suffix]) if suffix in self.keys else None

    def skip(self, ledger: Ledger, reason: str, suffixes: Iterable[str] | None = None) -> None:
        """Set these keys aside: all that are not yet accounted for (None), or those of them among `suffixes`."""
        for suffix, key in self.keys.items():
            if key in ledger and (suffixes is None or suffix in suffixes):
                ledger.skip(key, reason)


def by_module(keys: Iterable[str], suffixes: Iterable[str]) -> dict[str, KeyGroup]:
    """The keys that end in `.` and one of `suffixes`, by module in file order; the longest suffix that fits wins."""
    ordered = sorted(suffixes, key=len, reverse=True)
    keys_by_module: dict[str, dict[str, str]] = {}
    for key in keys:
        suffix = next((s for s in ordered if key.endswith("." + s)), None)
        if suffix is not None:
            keys_by_module.setdefault(key[: -len(suffix) - 1], {})[suffix] = key
    return {module: KeyGroup(module, groups) for module, groups in keys_by_module.items()}


def is_packed(keys: Iterable[str]) -> bool:
    """Whether the file is Nunchaku's: a pair without `.weight`, and no quantised weight, as its base models have."""
    keys = list(keys)
    return any(key.endswith((".lora_down", ".lora_up")) for key in keys) and not any(
        key.endswith((".qweight", ".wscales")) for key in keys
    )


# What ComfyUI reads next to a pair: the shape to which it widens the base's weight, and parameters that it replaces.
RESHAPE, SET = ".reshape_weight", ".set_weight"
WIDENED = "the shape to which ComfyUI widens the base's weight before ΔW is added: no update by itself"


def comfy_extras(ledger: Ledger) -> dict[str, Stored]:
    """ComfyUI's keys next to the pairs, each accounted for; the parameters that it sets whole, by name."""
    saved = {}
    for key in ledger.left():
        if key.endswith(RESHAPE):
            ledger.skip(key, WIDENED)
        elif key.endswith(SET):
            saved[key.removesuffix(SET)] = ledger.take(key)
    return saved


def number(stored: Stored, key: str) -> float:
    """The one finite number that `key` holds."""
    if math.prod(stored.shape) != 1:
        raise InputError(f"{key!r} is not a single number", found=f"shape {tuple(stored.shape)}")
    value = float(stored.read().reshape(()))
    if not math.isfinite(value):
        raise InputError(f"{key!r} is not a finite number", found=value)
    return value


def alpha_scale(group: KeyGroup, ledger: Ledger, rank: int, suffix: str = "alpha") -> float:
    """alpha / rank; 1 where alpha is absent or 0, which sd-scripts and LyCORIS both read as "alpha is the rank"."""
    stored = group.optional(ledger, suffix)
    alpha = number(stored, group.keys[suffix]) if stored is not None else 0.0
    return alpha / rank if alpha else 1.0


def low_rank_roles(down: Stored, up: Stored, mid: Stored | None, keys: tuple[str, str]) -> dict[str, Stored]:
    """A (r, d_in·k) and B (d_out, r) of a pair of linear maps or convolutions, a Tucker core contracted with A.

    Args:
        down: (r, d_in) or (r, d_in, *kernel); with `mid` (r, d_in, 1, ...).
        up: (d_out, r) or (d_out, r, 1, ...): it has no kernel of its own, which makes the pair a matrix product.
        mid: (r, r, *kernel) or None. ΔW[o, i, k] = Σ_pq up[o, p] mid[p, q, k] down[q, i].
        keys: of down and up, to name.
    """
    if len(down.shape) < 2 or len(up.shape) < 2 or 0 in (*down.shape, *up.shape):
        raise InputError(f"{keys[0]!r} and {keys[1]!r} are not matrices", found=f"{down.shape} and {up.shape}")
    if math.prod(up.shape[2:]) != 1:
        raise InputError(f"{keys[1]!r} has a kernel of its own", found=tuple(up.shape), expected="(d_out, r, 1, ...)")
    if down.shape[0] != up.shape[1] and mid is None:
        raise InputError(
            f"{keys[0]!r} and {keys[1]!r} disagree on the rank",
            found=f"{tuple(down.shape)} and {tuple(up.shape)}",
            expected="(r, d_in, ...) and (d_out, r, ...)",
        )
    b = reshaped(up, up.shape[0], up.shape[1])
    if mid is None:
        return {"A": flattened(down), "B": b}
    if len(mid.shape) < 2 or mid.shape[:2] != (up.shape[1], down.shape[0]) or math.prod(down.shape[2:]) != 1:
        raise InputError(
            f"the Tucker core between {keys[0]!r} and {keys[1]!r} does not fit",
            found=f"{tuple(down.shape)}, {tuple(mid.shape)}, {tuple(up.shape)}",
            expected="(r, d_in, 1, ...), (r, r, ...), (d_out, r, 1, ...)",
        )
    return {"A": contracted(mid, reshaped(down, *down.shape[:2])), "B": b}


def contracted(core: Stored, right: Stored) -> Stored:
    """A Tucker core (p, q, *kernel) contracted with the right factor (q, d_in): (p, d_in·k), kernel positions last."""
    (p, _, *kernel), d_in = core.shape, right.shape[1]

    def contract(core: np.ndarray, right: np.ndarray) -> np.ndarray:
        return np.einsum("pqk,qi->pik", core.reshape(*core.shape[:2], -1), right).reshape(p, -1)

    return Combined((core, right), (p, d_in * math.prod(kernel)), contract)


def kernel_of(weight: Stored) -> tuple[int, ...]:
    return tuple(weight.shape[2:])


def base_modules(base: "Checkpoint") -> list[str]:
    """The modules of the base that own a weight."""
    return [name.removesuffix(".weight") for name in base.names() if name.endswith(".weight")]


def rename(updates: Iterable[Update], names: Mapping[str, str]) -> dict[str, Update]:
    """The updates by their names in the base, where `names` knows them."""
    return {(name := names.get(u.name, u.name)): replace(u, name=name) for u in updates}


def resolve(modules: Iterable[str], base: "Checkpoint | None", prefixes: tuple[str, ...]) -> dict[str, str]:
    """Names with `_` in place of dots, in the base's own spelling, where exactly one of its modules fits.

    A base in another scheme of names, diffusers' for Stability AI's, say, is understood where one module of the one is
    one of the other.

    `lora_unet_mid_block_attentions_0_proj_in` cannot be undone by rule: `mid.block` or `mid_block`? The base knows.
    Left out: names that fit no module of the base, names that fit several, and several names that fit one module (the
    two text encoders of SDXL).
    """
    if base is None:
        return {}
    spelled: dict[str, list[str]] = {}
    placed: dict[str, list[str]] = {}
    for module in base_modules(base):
        spelled.setdefault(module.replace(".", "_"), []).append(module)
        if (where := _placed(module)) is not None:
            placed.setdefault(where, []).append(module)
    resolved: dict[str, str] = {}
    modules = list(modules)
    for module in modules:
        bare = next((module.removeprefix(p) for p in prefixes if module.startswith(p)), module)
        found = spelled.get(bare) or placed.get(_placed(module) or "", [])
        if len(found) == 1:
            resolved[module] = found[0]
    owners: dict[str, int] = {}
    for name in (*resolved.values(), *modules):
        owners[name] = owners.get(name, 0) + 1
    return {module: name for module, name in resolved.items() if owners[name] == 1}


def _placed(module: str) -> str | None:
    """The module in diffusers' scheme, in flat form; None where it is several there, or has other rows."""
    where = place(module)
    if len(where.parts) > 1 or where.swapped or where.swapped_if_two:
        return None
    (part,) = where.parts
    return part.replace(".", "_")
