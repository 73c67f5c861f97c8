"""MLX: `adapters.safetensors` and `adapter_config.json` of mlx_lm, whose factors are stored the other way round.

    Linear         lora_a (d_in, r), lora_b (r, d_out)            W += s·(lora_a lora_b)ᵀ
    SwitchLinear   lora_a (E, r, d_in), lora_b (E, d_out, r)      W_e += s·lora_b_e lora_a_e, for each expert
    Embedding      lora_a (V, r), lora_b (r, d)                   W (V, d) += s·lora_a lora_b
    DoRA           and m, the lengths of W's rows                 W' = m ⊙ (W + ΔW) / ‖W + ΔW‖_row

s is `lora_parameters.scale` of the config, and is not divided by r. With `fine_tune_type` "full" the file holds whole
weights, and ΔW needs the base. mlx_vlm writes A (d_in, r) and B (r, d_out), with `alpha` as s.

Source: ml-explore/mlx-lm, `mlx_lm/tuner/lora.py`, `dora.py` and `utils.py`; Blaizzy/mlx-vlm, `mlx_vlm/trainer/lora.py`.
"""

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lorascope.architectures import is_embedding
from lorascope.errors import InputError
from lorascope.updates.base import Stored, Update
from lorascope.weights.formats.base import Bundle, Format, Ledger, Parsed, formats
from lorascope.weights.formats.expert_factors import in_base, per_expert
from lorascope.weights.formats.key_groups import KeyGroup, by_module
from lorascope.weights.support import Support
from lorascope.weights.tensors import transposed

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

SUFFIXES = ("lora_a", "lora_b", "m")
VLM_SUFFIXES = ("A", "B")
NO_CONFIG = (
    "scale unknown: there is no adapter_config.json with lora_parameters.scale next to this file, so every number is "
    "that of scale 1; mlx_lm's default is 20"
)
OLD_ALPHA = (
    "lora_parameters has alpha: mlx_lm's versions of early 2024 multiplied the scale by alpha/r; the numbers here are "
    "today's, with the scale alone"
)
WHOLE = "whole weights, tuned by MLX (fine_tune_type full): ΔW = W' − W"
_WRITTEN = ("weight", "bias")


class Mlx(Format):
    name = "mlx"
    about = "MLX (mlx_lm, mlx_vlm): lora_a (d_in, r) and lora_b (r, d_out), or whole weights"

    def claims(self, bundle: Bundle) -> bool:
        config = bundle.config or {}
        if "peft_type" in config:
            return False
        return bool(_pairs(bundle)) or (_is_full(config) and not any(".lora_" in key for key in bundle.tensors))

    def read(self, bundle: Bundle, ledger: Ledger, base: "Checkpoint | None" = None) -> Parsed:
        config = bundle.config or {}
        pairs = _pairs(bundle)
        if not pairs:
            return _whole(config, ledger)
        scale = _scale(config, vlm=_is_vlm(bundle))
        updates = {}
        for group in pairs.values():
            for update in _updates(group, ledger, 1.0 if scale is None else scale, base):
                updates[update.name] = update
        notes = (NO_CONFIG,) if scale is None else ()
        if scale is not None and "alpha" in (config.get("lora_parameters") or {}):
            notes = (OLD_ALPHA,)
        dora = any(update.kind == "magnitude" for update in updates.values())
        embeds = any(is_embedding(module) for module in updates)
        return Parsed(updates, "DoRA" if dora else "LoRA", {**config, **(_TIED if embeds else {})}, notes=notes)


# mlx_lm's LoRAEmbedding adds ΔW to the output layer as well where this is the embedding (`as_linear`), and its fuse
# leaves them one: PEFT's `ensure_weight_tying`.
_TIED = {"ties": "kept", "ensure_weight_tying": True}


def _pairs(bundle: Bundle) -> dict[str, KeyGroup]:
    """The keys of adapted modules: those with a factor."""
    suffixes = VLM_SUFFIXES if _is_vlm(bundle) else SUFFIXES
    groups = by_module(bundle.tensors, suffixes)
    return {
        module: group
        for module, group in groups.items()
        if any(suffix in group for suffix in suffixes[:2]) and not module.endswith(".weight")
    }


def _is_vlm(bundle: Bundle) -> bool:
    return bundle.config is not None and {"rank", "alpha"} <= bundle.config.keys() and "r" not in bundle.config


def _is_full(config: Mapping[str, Any]) -> bool:
    return config.get("fine_tune_type") == "full"


def _scale(config: Mapping[str, Any], vlm: bool) -> float | None:
    """What multiplies the product; None where the config does not say. InputError where it is no number."""
    parameters = config.get("lora_parameters") or {}
    if not isinstance(parameters, Mapping):
        raise InputError("adapter_config.json: lora_parameters is not an object", found=type(parameters).__name__)
    name, scale = ("alpha", config.get("alpha")) if vlm else ("lora_parameters.scale", parameters.get("scale"))
    if scale is None:
        return None
    if type(scale) not in (int, float) or not math.isfinite(scale):
        raise InputError(f"adapter_config.json: {name} is not a number", found=scale)
    return float(scale)


def _updates(group: KeyGroup, ledger: Ledger, scale: float, base: "Checkpoint | None") -> Iterator[Update]:
    first, second = (SUFFIXES if "lora_a" in group or "lora_b" in group else VLM_SUFFIXES)[:2]
    a, b = group.take(ledger, first), group.take(ledger, second)
    keys = group.keys[first], group.keys[second]
    if len(b.shape) == 3:
        for update in per_expert(group.module, a, b, scale, keys):
            yield in_base(update, base)
        return
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[0] or 0 in (*a.shape, *b.shape):
        raise InputError(
            f"{keys[0]!r} and {keys[1]!r} do not fit together",
            found=f"{tuple(a.shape)} and {tuple(b.shape)}",
            expected="(d_in, r) and (r, d_out)",
        )
    yield _of_matrix(group, ledger, a, b, scale)


def _of_matrix(group: KeyGroup, ledger: Ledger, a: Stored, b: Stored, scale: float) -> Update:
    embedding = is_embedding(group.module)
    m = group.optional(ledger, "m")
    if m is None:
        roles = {"A": transposed(a), "B": transposed(b)}
        return Update(group.module, "low_rank", roles, scale, transposed=embedding, embedding=embedding)
    # An embedding's lengths are those of the rows of W (V, d): of tokens, as a linear map's are of outputs.
    roles = {"A": b, "B": a} if embedding else {"A": transposed(a), "B": transposed(b)}
    if tuple(m.shape) != (roles["B"].shape[0],):
        expected = f"({roles['B'].shape[0]},)"
        raise InputError(f"{group.keys['m']!r} does not fit", found=tuple(m.shape), expected=expected)
    return Update(group.module, "magnitude", {**roles, "m": m}, scale)


def _whole(config: Mapping[str, Any], ledger: Ledger) -> Parsed:
    """Tuned weights: matrices as updates that need the base, the rest as stored."""
    updates, saved = {}, {}
    for key in ledger.left():
        module, _, parameter = key.rpartition(".")
        if parameter not in _WRITTEN:
            continue
        stored = ledger.take(key)
        if parameter == "weight" and len(stored.shape) == 2:
            updates[module] = Update(module, "tuned", {"tuned": stored}, base_weight=key)
        else:
            saved[key] = stored
    return Parsed(updates, "full fine-tuning", dict(config), saved, (WHOLE,))


formats.register("mlx")(Mlx())

SUPPORT = (
    Support("MLX (mlx_lm): LoRA, experts, embeddings", "mlx_lm's fuse in float64"),
    Support("MLX (mlx_lm): DoRA", "mlx_lm's fuse in float64", base="for ΔW; B·A without"),
    Support("MLX (mlx_lm): whole weights", "mlx_lm's fuse in float64", base="for ΔW"),
    Support("MLX (mlx_vlm): LoRA", "the writer's formula in float64"),
)
