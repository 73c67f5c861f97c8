"""kohya-ss sd-scripts: `lora_unet_…`, `lora_te_…`, `lora_te1_…` with `.lora_down.weight`, `.lora_up.weight`, `.alpha`.

ΔW = alpha/r · up · down, with down = A (r, d_in) and up = B (d_out, r); alpha is a stored scalar, and where it is
absent (files of 2022) or 0, sd-scripts takes alpha = r. Convolutions: down (r, c_in, k, k), up (d_out, r, 1, 1).
LyCORIS's LoCon, saved through sd-scripts, adds a Tucker core `.lora_mid.weight` (r, r, k, k) and DoRA's `.dora_scale`.

A fused projection may be trained in parts (sd-scripts' `split_qkv` for FLUX), each with a pair of its own that gives so
many rows: `.lora_down.0.weight`, `.lora_up.0.weight`, `.lora_down.1.weight`, ... with one alpha over the rank of a part
(networks/lora_flux.py). They are read as the one pair that they are: the A stacked, the B along a diagonal.

Module names are lossy: sd-scripts wrote every dot as `_`. A base model gives them back; without one they stay as they
are and a note says so. ComfyUI's variant keeps the dots (`diffusion_model.blocks.0.q.lora_down.weight`), and is read.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.errors import InputError
from lorascope.inputs import parse_json
from lorascope.updates.base import Stored, Update
from lorascope.weights.formats.base import Bundle, Format, Ledger, Parsed, formats
from lorascope.weights.formats.key_groups import (
    MAX_PARTS,
    KeyGroup,
    alpha_scale,
    by_module,
    comfy_extras,
    kernel_of,
    low_rank_roles,
    number,
    rename,
    resolve,
)
from lorascope.weights.support import Support
from lorascope.weights.tensors import Combined, reshaped

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

PARTS = tuple(f"lora_{side}.{part}.weight" for side in ("down", "up") for part in range(MAX_PARTS))
SUFFIXES = (
    *("lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale", "magnitude", "scalar"),
    *PARTS,
)
PREFIXES = (
    *("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_te3_", "lora_prior_unet_", "lycoris_"),
    *("lora_transformer_", "lora_transformer_2_", "lora_prior_", "oft_unet_", "oft_te_", "oft_te1_", "oft_te2_"),
)
LYCORIS_SUFFIXES = (  # what only LyCORIS writes: with one of these the whole file is LyCORIS's
    *(f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *(f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
    *("diff", "diff_b", "w_norm", "b_norm", "on_input", "oft_blocks", "oft_blocks.0", "lambda_layer", "oft_R.weight"),
)
GLORA = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")  # each alone could be a layer of some model
LONGEST_SETTING = 300
DORA = ("magnitude", "dora_low_rank", "dora_hadamard", "dora_kronecker")
_PAIR = re.compile(r"\.lora_(down|up)(\.[0-7])?\.weight")


class Kohya(Format):
    name = "kohya"
    about = "LoRA of kohya-ss sd-scripts: lora_unet_….lora_down.weight"

    def claims(self, bundle: Bundle) -> bool:
        if claimed_by_lycoris(bundle.tensors) or of_two_spellings(bundle.tensors):
            return False
        return any(_PAIR.search(key) and not key.startswith("base_model.") for key in bundle.tensors)

    def read(self, bundle: Bundle, ledger: Ledger, base: "Checkpoint | None" = None) -> Parsed:
        groups = by_module(bundle.tensors, SUFFIXES)
        updates = [read_pair(group, ledger) for group in groups.values()]
        skip_embeddings(bundle.tensors, ledger)
        names = resolve(groups, base, PREFIXES)
        return Parsed(
            updates=rename(updates, names),
            method="DoRA" if any(u.kind in DORA for u in updates) else "LoRA",
            settings=settings(bundle.metadata),
            saved=comfy_extras(ledger),
            notes=name_notes(groups, names, base is not None),
        )


def of_two_spellings(keys: Iterable[str]) -> bool:
    """Whether some pairs are lora_A and lora_B, others lora_down and lora_up: ComfyUI reads such files, key by key."""
    halves = (key.rpartition(".lora_") for key in keys if not key.startswith("base_model."))
    ends = {end.split(".")[0] for _, found, end in halves if found}  # a module may itself be called "up"
    return bool(ends & {"A", "B"}) and bool(ends & {"down", "up"})


def claimed_by_lycoris(keys: Iterable[str]) -> bool:
    """Whether these keys hold something that only LyCORIS writes, outside PEFT's `base_model.` namespace."""
    endings = tuple("." + suffix for suffix in LYCORIS_SUFFIXES)
    ours = {key for key in keys if not key.startswith("base_model.")}
    return any(
        key.endswith(endings)
        or (key.startswith("lycoris_") and key.endswith(".lora_down.weight"))
        or (key.endswith("." + GLORA[0]) and all(key.removesuffix(GLORA[0]) + other in ours for other in GLORA))
        for key in ours
    )


def read_pair(group: KeyGroup, ledger: Ledger) -> Update:
    """The update of a down/up pair, or of the pairs of a projection's parts; with DoRA's magnitude where it has one."""
    parts = [int(suffix.split(".")[1]) for suffix in PARTS if suffix in group]
    if parts:
        count = max(parts) + 1
        roles, kernel = _parts(group, ledger, count), tuple[int, ...]()
        rank = roles["A"].shape[0] // count
    else:
        down, up = group.take(ledger, "lora_down.weight"), group.take(ledger, "lora_up.weight")
        mid = group.optional(ledger, "lora_mid.weight")
        roles = low_rank_roles(down, up, mid, (group.keys["lora_down.weight"], group.keys["lora_up.weight"]))
        rank, kernel = down.shape[0], kernel_of(mid or down)
    scale = alpha_scale(group, ledger, rank) * scalar(group, ledger)
    update = Update(group.module, "low_rank", roles, scale, kernel=kernel)
    return decomposed(group, ledger, update)


def _parts(group: KeyGroup, ledger: Ledger, count: int) -> dict[str, Stored]:
    """A (count·r, d_in) and B (d_out, count·r), block diagonal, of the pairs of a projection's parts."""
    downs = [group.take_matrix(ledger, f"lora_down.{part}.weight") for part in range(count)]
    ups = [group.take_matrix(ledger, f"lora_up.{part}.weight") for part in range(count)]
    rank, d_in = downs[0].shape[:2]
    if any(down.shape != (rank, d_in) for down in downs) or any(up.shape[1:] != (rank,) for up in ups):
        raise InputError(
            f"the parts of {group.module} do not fit together",
            found=", ".join(str(tuple(stored.shape)) for stored in (*downs, *ups)),
            expected="(r, d_in) of each lora_down, (rows, r) of each lora_up",
        )

    def along_the_diagonal(*values: np.ndarray) -> np.ndarray:
        whole, row = np.zeros((sum(map(len, values)), count * rank)), 0
        for part, rows in enumerate(values):
            whole[row : row + len(rows), part * rank : (part + 1) * rank] = rows
            row += len(rows)
        return whole

    a = Combined(tuple(downs), (count * rank, d_in), lambda *values: np.concatenate(values))
    b = Combined(tuple(ups), (sum(up.shape[0] for up in ups), count * rank), along_the_diagonal)
    return {"A": a, "B": b}


def scalar(group: KeyGroup, ledger: Ledger) -> float:
    """LyCORIS's trained factor on ΔW, which its first files store and its current ones have in a tensor."""
    stored = group.optional(ledger, "scalar")
    return 1.0 if stored is None else number(stored, group.keys["scalar"])


def decomposed(group: KeyGroup, ledger: Ledger, update: Update) -> Update:
    """The update with DoRA's magnitude on top, where the module has one: of the outputs, `dora_scale` (d_out, 1, ...),
    or of the inputs, (1, d_in, 1, ...), which is OneTrainer's default and LyCORIS's `wd_on_output=False`."""
    suffix = "dora_scale" if "dora_scale" in group else "magnitude"  # the latter is ai-toolkit's, (d_out,)
    stored = group.optional(ledger, suffix)
    if stored is None:
        return update
    key = group.keys[suffix]
    axis = 1 if len(stored.shape) > 1 and stored.shape[0] == 1 and stored.shape[1] > 1 else 0
    sides = tuple(stored.shape)
    if any(side != 1 for side in (*sides[:axis], *sides[axis + 1 :])) or not sides:
        expected = "(d_out, 1) or (1, d_in)"
        raise InputError(f"{key!r} does not fit", found=sides, expected=expected)
    lengths = reshaped(stored, sides[axis])
    if update.kind == "low_rank" and axis == 0:
        if update.roles["B"].shape[0] != sides[0]:
            expected = f"({update.roles['B'].shape[0]}, 1)"
            raise InputError(f"{key!r} does not fit", found=sides, expected=expected)
        return replace(update, kind="magnitude", roles={**update.roles, "m": lengths})
    return replace(update, kind=f"dora_{update.kind}", roles={**update.roles, ("m", "m_in")[axis]: lengths})


def skip_embeddings(keys: Iterable[str], ledger: Ledger) -> None:
    """sd-scripts can bundle textual-inversion embeddings with an adapter."""
    for key in keys:
        if key.startswith("bundle_emb.") and key in ledger:
            ledger.skip(key, "a textual-inversion embedding bundled with the adapter: new tokens, not an update")


def settings(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What sd-scripts wrote about the training (`ss_…`), the long tables (tag counts, buckets) by their length."""
    settings_read: dict[str, Any] = {}
    for key, value in metadata.items():
        if key == "ss_network_args":
            settings_read[key] = _json(value)
        elif key.startswith("ss_"):
            settings_read[key] = value if len(value) <= LONGEST_SETTING else f"({len(value)} characters)"
    return settings_read


def name_notes(modules: Iterable[str], names: Mapping[str, str], had_base: bool) -> tuple[str, ...]:
    """What to say about underscored names that stay as they are."""
    lossy = [module for module in modules if "." not in module and module not in names]
    if not lossy:
        return ()
    if had_base:
        return (f"{len(lossy)} module names fit no single module of the base and keep underscores for dots",)
    return ("module names keep the file's underscores, which stand for dots; a base model gives the real names back",)


def _json(value: str) -> Any:
    try:
        return parse_json(value)
    except ValueError:
        return value


formats.register("kohya")(Kohya())

SUPPORT = (
    Support("kohya, sd-scripts and ComfyUI", "the writer's formula in float64", base="for ΔW of DoRA"),
    Support("sd-scripts: a fused projection in parts", "sd-scripts' formula in float64"),
)
