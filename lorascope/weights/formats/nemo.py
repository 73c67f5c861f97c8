"""NeMo and Megatron-Bridge: `….linear_in.weight` (r, d_in) and `….linear_out.weight` (d_out, r) of an adapter.

    NeMo 1            ….self_attention.adapter_layer.lora_kqv_adapter.linear_in.weight
    NeMo 2, Bridge    decoder.layers.0.self_attention.linear_qkv.adapter.linear_in.weight
    canonical LoRA    ….linear_qkv.adapter.adapter_q.linear_in.weight, .adapter_k., .adapter_up., ...

ΔW = alpha/r · linear_out · linear_in (`ParallelLinearAdapter`, whose activation is the identity for LoRA). alpha is in
the run's config: `peft.alpha` of a run_config.yaml, or `peft.lora_tuning.alpha` of NeMo 1's model_config.yaml, next to
the weights or in the folder above. Without either scale 1 is reported, NeMo 1's default (alpha = r), with a note.

The rows of a fused query, key and value are interleaved by group: of each group its queries, its key, its value. With a
base of Hugging Face's names, whose config says how many heads there are, they are taken apart, and so are the halves of
linear_fc1 (gate and up). NeMo's bottlenecks (`adapter_1.linear_in`) have a nonlinearity between the two and are none of
this. Source: NVIDIA-NeMo/Megatron-Bridge, `peft/utils.py`, `models/conversion/param_mapping.py` (`split_qkv_weights`).
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.errors import InputError
from lorascope.inputs import read_yaml
from lorascope.updates.base import Stored, Update
from lorascope.weights.formats.base import Bundle, Format, Ledger, Parsed, formats
from lorascope.weights.formats.key_groups import KeyGroup, by_module, low_rank_roles
from lorascope.weights.support import Support
from lorascope.weights.tensors import Mapped

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

SUFFIXES = ("linear_in.weight", "linear_out.weight", "weight_magnitude")
CONFIGS = ("run_config.yaml", "model_config.yaml")
NO_ALPHA = (
    "scale unknown: NeMo keeps alpha in the run's config, and no run_config.yaml or model_config.yaml is next to this"
    " file, so every number is that of scale 1 (alpha = r)"
)
NAMES = "names, and the order of rows of a fused query, key and value, are Megatron's, not Hugging Face's"
_LORA = re.compile(r".*\.(adapter_layer\.lora_\w+|linear_\w+(\.adapter)?\.adapter(_(q|k|v|gate|up))?)")
_PART = re.compile(
    r"(?:.*\.)?layers\.(?P<layer>\d+)\.(?P<owner>self_attention|mlp)\."
    r"(?P<linear>linear_\w+|adapter_layer\.lora_\w+)(?:(?:\.adapter)?\.adapter_(?P<one>q|k|v|gate|up))?"
)
_WHOLE = {
    "linear_proj": "self_attn.o_proj", "linear_fc2": "mlp.down_proj",
    "adapter_layer.lora_dense_attention_adapter": "self_attn.o_proj",
    "adapter_layer.lora_4htoh_adapter": "mlp.down_proj",
}  # fmt: skip
_QKV = ("linear_qkv", "adapter_layer.lora_kqv_adapter")
_FC1 = ("linear_fc1", "adapter_layer.lora_hto4h_adapter")
_ONE = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj"} | {
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
}


class Nemo(Format):
    name = "nemo"
    about = "LoRA of NeMo and Megatron-Bridge: linear_in.weight and linear_out.weight"

    def claims(self, bundle: Bundle) -> bool:
        if bundle.config is not None and "peft_type" in bundle.config:
            return False
        return any(map(_LORA.fullmatch, by_module(bundle.tensors, SUFFIXES)))

    def read(self, bundle: Bundle, ledger: Ledger, base: "Checkpoint | None" = None) -> Parsed:
        groups = {m: group for m, group in by_module(bundle.tensors, SUFFIXES).items() if _LORA.fullmatch(m)}
        settings = _settings(bundle.path)
        alpha = settings.get("alpha")
        notes = [] if alpha is not None else [NO_ALPHA]
        updates: dict[str, Update] = {}
        kept = False
        for group in groups.values():
            update = _update(group, ledger, alpha)
            parts = list(_in_hugging_face(update, base)) if base is not None else []
            kept = kept or not parts
            for one in parts or [update]:
                if one.name in updates:
                    raise InputError(f"two updates for one module, {one.name}", found=group.module)
                updates[one.name] = one
        dora = any(update.kind == "magnitude" for update in updates.values())
        return Parsed(updates, "DoRA" if dora else "LoRA", settings, notes=(*notes, *([NAMES] if kept else [])))


def _settings(path: Path) -> dict[str, Any]:
    """What a run's config says of the adapter: dim and alpha; empty where there is none that can be read. InputError
    where alpha is no number."""
    folder = path if path.is_dir() else path.parent
    places = (place / name for place in (folder, folder.parent) for name in CONFIGS)
    config = next((place for place in places if place.is_file()), None)
    if config is None:
        return {}
    try:
        tuning = _peft_section(read_yaml(config))
    except InputError:  # an object of the trainer's own in it, say: then alpha is not known
        return {}
    alpha, dim = tuning.get("alpha"), tuning.get("dim", tuning.get("adapter_dim"))
    if alpha is None and dim is not None:
        alpha = dim  # both versions' default
    if alpha is None:
        return {}
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise InputError(f"{config}: alpha of the adapter is not a number", found=alpha)
    return {"alpha": float(alpha), **({"dim": dim} if type(dim) is int else {})}


def _peft_section(whole: Mapping[str, Any]) -> Mapping[str, Any]:
    """`peft`, or `model.peft.lora_tuning`; empty where there is none."""
    model = whole.get("model")
    section = whole.get("peft") or (model.get("peft") if isinstance(model, Mapping) else None)
    inner = section.get("lora_tuning", section) if isinstance(section, Mapping) else {}
    return inner if isinstance(inner, Mapping) else {}


def _update(group: KeyGroup, ledger: Ledger, alpha: float | None) -> Update:
    inner, outer = group.take(ledger, SUFFIXES[0]), group.take(ledger, SUFFIXES[1])
    if len(inner.shape) != 2:
        raise InputError(f"{group.keys[SUFFIXES[0]]!r} is not a matrix", found=tuple(inner.shape), expected="(r, d_in)")
    roles = low_rank_roles(inner, outer, None, (group.keys[SUFFIXES[0]], group.keys[SUFFIXES[1]]))
    scale = 1.0 if alpha is None else alpha / inner.shape[0]
    name = group.module.removesuffix(".adapter").replace(".adapter.adapter_", ".adapter_")
    magnitude = group.optional(ledger, SUFFIXES[2])
    if magnitude is None:
        return Update(name, "low_rank", roles, scale)
    if tuple(magnitude.shape) != (outer.shape[0],):
        found = tuple(magnitude.shape)
        raise InputError(f"{group.keys[SUFFIXES[2]]!r} does not fit", found=found, expected=f"({outer.shape[0]},)")
    return Update(name, "magnitude", {**roles, "m": magnitude}, scale)


def _in_hugging_face(update: Update, base: "Checkpoint") -> Iterator[Update]:
    """The update as those of Hugging Face's modules; nothing where the base has none of these, or heads do not fit."""
    match = _PART.fullmatch(update.name)
    if match is None:
        return
    layer, linear, rows = f"model.layers.{match['layer']}.", match["linear"], update.shape[0]
    parts: dict[str, np.ndarray | None] = {}
    if match["one"]:
        parts = {_ONE[match["one"]]: None}
    elif linear in _WHOLE:
        parts = {_WHOLE[linear]: None}
    elif linear in _QKV and (split := _of_heads(base.config, rows)) is not None:
        parts = {_ONE[part]: index for part, index in split.items()}
    elif linear in _FC1 and rows % 2 == 0:
        parts = {_ONE["gate"]: np.arange(rows // 2), _ONE["up"]: np.arange(rows // 2, rows)}
    if not all(_fits(base, layer + part, rows if index is None else len(index)) for part, index in parts.items()):
        return
    for part, index in parts.items():
        roles = {
            role: stored if index is None or role == "A" else _rows(stored, index)
            for role, stored in update.roles.items()
        }
        yield Update(layer + part, update.kind, roles, update.scale)


def _fits(base: "Checkpoint", module: str, rows: int) -> bool:
    weight = base.find(module)
    return weight is not None and weight.shape[0] == rows


def _of_heads(config: Mapping[str, Any], rows: int) -> dict[str, np.ndarray] | None:
    """The rows of query, key and value in a fused weight of `rows` rows; None where the config does not fit it."""
    inner = config.get("text_config")
    whole = inner if isinstance(inner, Mapping) else config
    heads = whole.get("num_attention_heads")
    groups = whole.get("num_key_value_heads") or heads
    if type(heads) is not int or type(groups) is not int or groups < 1 or heads % groups:
        return None
    slots = heads // groups + 2
    width, rest = divmod(rows, groups * slots)
    if rest or width == 0:
        return None
    by_group = np.arange(rows).reshape(groups, slots, width)
    return {"q": by_group[:, :-2].reshape(-1), "k": by_group[:, -2].reshape(-1), "v": by_group[:, -1].reshape(-1)}


def _rows(stored: Stored, index: np.ndarray) -> Stored:
    return Mapped(stored, (len(index), *stored.shape[1:]), lambda values: values[index])


formats.register("nemo")(Nemo())

SUPPORT = (
    Support("NeMo and Megatron-Bridge: LoRA", "the writer's formula in float64", base="for Hugging Face's names"),
    Support("NeMo and Megatron-Bridge: DoRA", "the writer's formula in float64", base="for ΔW; B·A without"),
)
