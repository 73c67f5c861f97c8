"""kohya-ss sd-scripts: `lora_unet_…`, `lora_te_…`, `lora_te1_…` with `.lora_down.weight`, `.lora_up.weight`, `.alpha`.

ΔW = alpha/r · up · down, with down = A (r, d_in) and up = B (d_out, r); alpha is a stored scalar, and where it is
absent (files of 2022) or 0, sd-scripts takes alpha = r. Convolutions: down (r, c_in, k, k), up (d_out, r, 1, 1).
LyCORIS's LoCon, saved through sd-scripts, adds a Tucker core `.lora_mid.weight` (r, r, k, k) and DoRA's `.dora_scale`.

Module names are lossy: sd-scripts wrote every dot as `_`. A base model gives them back; without one they stay as they
are and a note says so. ComfyUI's variant keeps the dots (`diffusion_model.blocks.0.q.lora_down.weight`), and is read.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lorascope.errors import InputError
from lorascope.inputs import parse_json
from lorascope.updates.base import Stored, Update
from lorascope.weights.formats.base import Bundle, Format, Ledger, Parsed, formats
from lorascope.weights.formats.key_groups import (
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
from lorascope.weights.tensors import reshaped

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

SUFFIXES = ("lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale", "scalar")
PREFIXES = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_te3_", "lora_prior_unet_", "lycoris_")
LYCORIS_SUFFIXES = (  # what only LyCORIS writes: with one of these the whole file is LyCORIS's
    *(f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *(f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
    *("diff", "diff_b", "w_norm", "b_norm", "on_input", "oft_blocks", "lambda_layer"),
)
GLORA = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")  # each alone could be a layer of some model
LONGEST_SETTING = 300


class Kohya(Format):
    name = "kohya"
    about = "LoRA of kohya-ss sd-scripts: lora_unet_….lora_down.weight"

    def claims(self, bundle: Bundle) -> bool:
        return not claimed_by_lycoris(bundle.tensors) and any(
            key.endswith((".lora_down.weight", ".lora_up.weight")) and not key.startswith("base_model.")
            for key in bundle.tensors
        )

    def read(self, bundle: Bundle, ledger: Ledger, base: "Checkpoint | None" = None) -> Parsed:
        groups = by_module(bundle.tensors, SUFFIXES)
        updates = [update for group in groups.values() if (update := read_pair(group, ledger))]
        skip_embeddings(bundle.tensors, ledger)
        names = resolve(groups, base, PREFIXES)
        return Parsed(
            updates=rename(updates, names),
            method="DoRA" if any(u.kind == "magnitude" for u in updates) else "LoRA",
            settings=settings(bundle.metadata),
            saved=comfy_extras(ledger),
            notes=name_notes(groups, names, base is not None),
        )


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


def read_pair(group: KeyGroup, ledger: Ledger) -> Update | None:
    """The update of a down/up pair; None where DoRA's magnitude lies along the inputs and all of it is skipped."""
    if "dora_scale" in group and _along_inputs(ledger.peek(group.keys["dora_scale"])):
        group.skip(
            ledger,
            "DoRA with its norm along the inputs (LyCORIS wd_on_output=False): "
            "lorascope has DoRA along the outputs, as in PEFT and the paper",
        )
        return None
    down, up = group.take(ledger, "lora_down.weight"), group.take(ledger, "lora_up.weight")
    mid = group.optional(ledger, "lora_mid.weight")
    roles = low_rank_roles(down, up, mid, (group.keys["lora_down.weight"], group.keys["lora_up.weight"]))
    scale = alpha_scale(group, ledger, down.shape[0]) * scalar(group, ledger)
    kind = "low_rank"
    if "dora_scale" in group:
        kind, roles = "magnitude", {**roles, "m": magnitude(group, ledger, up.shape[0])}
    return Update(group.module, kind, roles, scale, kernel=kernel_of(mid or down))


def scalar(group: KeyGroup, ledger: Ledger) -> float:
    """LyCORIS's trained factor on ΔW, which its current files have folded into a tensor and its first ones stored."""
    stored = group.optional(ledger, "scalar")
    return 1.0 if stored is None else number(stored, group.keys["scalar"])


def magnitude(group: KeyGroup, ledger: Ledger, d_out: int) -> Stored:
    """`dora_scale` (d_out, 1, ...) as m (d_out,)."""
    stored = group.take(ledger, "dora_scale")
    if tuple(stored.shape[:1]) != (d_out,) or any(side != 1 for side in stored.shape[1:]):
        raise InputError(
            f"{group.keys['dora_scale']!r} does not fit", found=tuple(stored.shape), expected=f"({d_out}, 1)"
        )
    return reshaped(stored, d_out)


def _along_inputs(stored: Stored) -> bool:
    return len(stored.shape) > 1 and stored.shape[0] == 1 and stored.shape[1] > 1


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

SUPPORT = (Support("kohya, sd-scripts and ComfyUI", "the writer's formula in float64"),)
