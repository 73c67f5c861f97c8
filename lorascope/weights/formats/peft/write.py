"""Writing PEFT's layout: the two files that `PeftModel.from_pretrained` loads.

Each array keeps its dtype, bit for bit. The same adapter gives the same bytes: keys are ordered, and nothing of the day
or the machine is written.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.architectures import EMBEDDINGS
from lorascope.errors import InputError, preview
from lorascope.outputs import write_json
from lorascope.patterns import Pattern
from lorascope.updates.base import Stored, Update
from lorascope.weights.adapter import Adapter
from lorascope.weights.formats.base import refuse_loss
from lorascope.weights.formats.peft.config import KNOWN, Config, parse_config
from lorascope.weights.formats.peft.keys import PREFIX
from lorascope.weights.formats.peft.norms import norm_keys
from lorascope.weights.formats.peft.vectors import WIDTHS, draw_projections
from lorascope.weights.safetensors import write_safetensors
from lorascope.weights.tensors import reshaped

_PLAIN = re.compile(r"[\w.-]+")  # a path that is its own regex

Part = tuple[dict[str, Stored], dict[str, Any]]  # tensors by key, fields of the config


def write_peft(adapter: Adapter, folder: Path) -> list[Path]:
    """Write `adapter` into `folder`; the two files.

    Raises:
        InputError: PEFT has no place for this adapter: kinds of several methods, or a shape that no module of PEFT has.
        LorascopeError: the folder cannot be written; nothing half-written is left.
    """
    refuse_loss(adapter)
    write = _writer(adapter)
    tensors, fields = write(adapter)
    widths = fields.pop(WIDTHS, None)
    saved, saved_fields = _saved(adapter)
    saved = {**saved, **_base_copies(adapter)}
    targets = {"target_modules": _targets(adapter)}
    config = {**_passed_on(adapter), **targets, **fields, **saved_fields, "inference_mode": True}
    files = [folder / "adapter_model.safetensors", folder / "adapter_config.json"]
    write_safetensors(
        files[0], {**tensors, **saved}, {"format": "pt", **({WIDTHS: json.dumps(widths)} if widths else {})}
    )
    write_json(files[1], config, sort_keys=True)
    return files


def _writer(adapter: Adapter) -> Callable[[Adapter], Part]:
    """The one method of PEFT that has a place for all kinds of this adapter."""
    kinds = {update.kind for update in adapter.updates.values()}
    for own, write in _WRITERS:
        if kinds and kinds <= own:
            return write
    raise InputError(
        "PEFT's layout holds one method in a file",
        found=", ".join(sorted(kinds)) or "no updates",
        expected="updates that one PEFT config can describe",
    )


def _passed_on(adapter: Adapter) -> dict[str, Any]:
    """Fields of the settings that PEFT knows, as they were; not those of old PEFT's fused layers, written as one."""
    dropped = ("auto_mapping", "enable_lora", "merge_weights")
    kept = {key: value for key, value in adapter.settings.items() if key in KNOWN and key not in dropped}
    return {"base_model_name_or_path": None, "task_type": None, **kept}


def _targets(adapter: Adapter) -> Any:
    """`target_modules` as it was, where that still names every module by PEFT's rule; else their exact paths."""
    names = list(adapter.updates)
    named = adapter.settings.get("target_modules")
    if isinstance(named, list) and all(any(n == t or n.endswith(f".{t}") for t in named) for n in names):
        return named
    if isinstance(named, str):
        pattern = Pattern(named, "adapter_config.json: target_modules")
        if all(map(pattern.fullmatch, names)):
            return named
    return names


def _saved(adapter: Adapter) -> Part:
    """Parameters stored whole, under their plain names; biases of adapted modules below `.base_layer`."""
    bias = adapter.settings.get("bias", "none") != "none"
    announced = list(adapter.settings.get("modules_to_save") or [])
    tensors = {}
    for name, stored in adapter.saved.items():
        module, _, parameter = name.rpartition(".")
        if bias and parameter == "bias":
            inner = ".base_layer" if module in adapter.updates else ""
            tensors[f"{PREFIX}{module}{inner}.bias"] = stored
            continue
        tensors[PREFIX + name] = stored
        if not any(f".{own}." in f".{name}" for own in announced):
            announced.append(module)
    return tensors, {"modules_to_save": announced or None}


def _base_copies(adapter: Adapter) -> dict[str, Stored]:
    """Weights of the base that the file held: those that an update is added to, below `.base_layer`."""
    names = {update.base_weight or f"{update.name}.weight" for update in adapter.updates.values()}
    copies = {}
    for name, stored in adapter.base.items():
        module, _, parameter = name.rpartition(".")
        copies[f"{PREFIX}{module}.base_layer.{parameter}" if name in names else PREFIX + name] = stored
    return copies


def _lora(adapter: Adapter) -> Part:
    """LoRA, rsLoRA and DoRA: linear maps, Conv1D, convolutions and embeddings."""
    updates = list(adapter.updates.values())
    dora = {update.kind == "magnitude" for update in updates}
    if len(dora) > 1:
        raise InputError("PEFT's use_dora is for all modules or none, and this adapter mixes both")
    tensors: dict[str, Stored] = {}
    for update in updates:
        _refuse(update, update.expert is not None, "writing fused experts is not supported")
        _refuse(update, "A" not in update.roles, "PEFT's DoRA has no place for magnitudes without A and B")
        tensors |= _lora_keys(update)
    fields = _scales(adapter, [(u, u.roles["A"].shape[0]) for u in updates], "lora_alpha", may_rslora=True)
    turned = {update.transposed for update in updates if not update.embedding and not _like_embedding(update)}
    return tensors, {
        "peft_type": "LORA",
        "use_dora": dora == {True},
        "fan_in_fan_out": True in turned,
        "init_lora_weights": adapter.settings.get("init_lora_weights", True),
        **fields,
    }


def _lora_keys(update: Update) -> dict[str, Stored]:
    start = f"{PREFIX}{update.name}"
    a, b = update.roles["A"], update.roles["B"]
    keys: dict[str, Stored]
    if update.embedding or _like_embedding(update):
        keys = {f"{start}.lora_embedding_A": a, f"{start}.lora_embedding_B": b}
    else:
        if update.kernel:
            c_in, rest = divmod(a.shape[1], math.prod(update.kernel))
            _refuse(update, rest != 0, "the input axis does not divide by the kernel")
            _refuse(update, any("grouped" in note for note in update.notes), "a grouped convolution is not written")
            a = reshaped(a, a.shape[0], c_in, *update.kernel)
            b = reshaped(b, *b.shape, *(1,) * len(update.kernel))
        keys = {f"{start}.lora_A.weight": a, f"{start}.lora_B.weight": b}
    if "m" in update.roles:
        m, plain = update.roles["m"], not update.kernel
        keys[f"{start}.lora_magnitude_vector"] = m if plain else reshaped(m, 1, m.shape[0], *(1,) * len(update.kernel))
    return keys


def _like_embedding(update: Update) -> bool:
    """Whether an update that does not say so is an embedding's: stored turned, under a name that embeddings have."""
    return update.transposed and (update.name.endswith(EMBEDDINGS) or "embedding" in update.name.rpartition(".")[2])


def _adalora(adapter: Adapter) -> Part:
    """AdaLoRA: PEFT divides by init_r + 1e-5, so α is made to give each scale back; all modules must agree on it."""
    updates = list(adapter.updates.values())
    ranks = {update.name: update.roles["A"].shape[0] for update in updates}
    init = int(adapter.settings.get("init_r") or max(ranks.values()))
    scales = {update.scale for update in updates}
    if len(scales) > 1 or init < max(ranks.values()) or min(scales) <= 0:
        raise InputError(
            "PEFT's AdaLoRA has one positive scale, and one initial rank, for all modules", found=preview(scales)
        )
    tensors: dict[str, Stored] = {}
    for update in updates:
        tensors |= {f"{PREFIX}{update.name}.lora_{role}": update.roles[role] for role in "ABE"}
    pattern = {f"{name}.lora_E": [i < rank for i in range(init)] for name, rank in ranks.items() if rank < init}
    return tensors, {
        "peft_type": "ADALORA",
        "init_r": init,
        "lora_alpha": _exact(lambda alpha: alpha / (init + 1e-5), scales.pop(), init + 1e-5),
        "total_step": adapter.settings.get("total_step") or 1,
        "rank_pattern": pattern or None,
    }


def _vera(adapter: Adapter) -> Part:
    """VeRA. The projections must be one pair, of which every module has the first columns and rows.

    They are stored, unless the settings say `save_projection: false` and their key does give these very numbers.
    """
    updates = list(adapter.updates.values())
    widest = max(updates, key=lambda update: update.roles["A"].shape[1])
    tallest = max(updates, key=lambda update: update.roles["B"].shape[0])
    _refuse(widest, any(update.scale != 1 for update in updates), "PEFT's VeRA has no scale")
    a, b = widest.roles["A"].read(), tallest.roles["B"].read()
    key = adapter.settings.get("projection_prng_key")
    redrawn = adapter.settings.get("save_projection") is False and _is_draw(key, a, b)
    tensors: dict[str, Stored] = {}
    if not redrawn:
        tensors = {"base_model.vera_A": widest.roles["A"], "base_model.vera_B": tallest.roles["B"]}
    for update in updates:
        mine = update.read()
        same = mine["A"].shape[0] == a.shape[0] and np.array_equal(mine["A"], a[:, : mine["A"].shape[1]])
        same = same and np.array_equal(mine["B"], b[: mine["B"].shape[0]])
        _refuse(update, not same, "PEFT's VeRA shares one pair of projections; write it as LoRA instead")
        tensors[f"{PREFIX}{update.name}.vera_lambda_b"] = update.roles["b"]
        tensors[f"{PREFIX}{update.name}.vera_lambda_d"] = update.roles["d"]
    return tensors, {
        "peft_type": "VERA",
        "r": a.shape[0],
        "save_projection": not redrawn,
        WIDTHS: {update.name: update.roles["A"].shape[1] for update in updates},
        "fan_in_fan_out": any(update.transposed for update in updates),
    }


def _is_draw(key: Any, a: np.ndarray, b: np.ndarray) -> bool:
    """Whether PEFT draws this pair from this key."""
    if type(key) is not int or not 0 <= key < 1 << 63:
        return False
    drawn = draw_projections(key, a.shape[0], a.shape[1], b.shape[0])
    return np.array_equal(drawn[0], a) and np.array_equal(drawn[1], b)


def _ia3(adapter: Adapter) -> Part:
    """IA³: (d_out, 1), or (1, d_in) for the modules whose inputs are scaled."""
    tensors: dict[str, Stored] = {}
    inward = []
    for update in adapter.updates.values():
        _refuse(update, update.scale != 1, "PEFT's IA3 has no scale")
        (role, l), *_ = update.roles.items()
        shape: tuple[int, ...] = (1, l.shape[0]) if role == "in_scale" or update.kernel else (l.shape[0], 1)
        tensors[f"{PREFIX}{update.name}.ia3_l"] = reshaped(l, *shape, *(1,) * len(update.kernel))
        if role == "in_scale":
            inward.append(update.name)
    turned = any(update.transposed for update in adapter.updates.values())
    return tensors, {
        "peft_type": "IA3",
        "target_modules": list(adapter.updates),  # PEFT wants feedforward_modules to be some of these
        "feedforward_modules": inward,
        "fan_in_fan_out": turned,
    }


def _loha(adapter: Adapter) -> Part:
    tensors: dict[str, Stored] = {}
    for update in adapter.updates.values():
        _refuse(update, bool(update.kernel), "a Tucker core was folded into its factor and cannot be written back")
        tensors |= {f"{PREFIX}{update.name}.hada_{role}": stored for role, stored in update.roles.items()}
    ranked = [(update, update.roles["w1_b"].shape[0]) for update in adapter.updates.values()]
    return tensors, {"peft_type": "LOHA", **_scales(adapter, ranked, "alpha", may_rslora=False)}


def _layernorm(adapter: Adapter) -> Part:
    """LayerNorm tuning: the tuned vectors, whole."""
    tensors, modules = norm_keys(dict(adapter.updates))
    return tensors, {"peft_type": "LN_TUNING", "target_modules": modules}


_WRITERS: tuple[tuple[set[str], Callable[[Adapter], Part]], ...] = (
    ({"low_rank", "magnitude", "pissa", "olora"}, _lora),
    ({"triplet"}, _adalora),
    ({"vera"}, _vera),
    ({"scaling"}, _ia3),
    ({"hadamard"}, _loha),
    ({"tuned"}, _layernorm),
)


def _refuse(update: Update, wrong: bool, why: str) -> None:
    if wrong:
        raise InputError(f"{update.name}: {why}")


def _scales(
    adapter: Adapter, ranked: list[tuple[Update, int]], alpha_field: str, *, may_rslora: bool
) -> dict[str, Any]:
    """r, α and their patterns that give every module its rank and its scale: the settings' own where they do."""
    fields = ("r", alpha_field, "rank_pattern", "alpha_pattern", "use_rslora")
    own = {field: adapter.settings[field] for field in fields if field in adapter.settings}
    kind = "LORA" if may_rslora else "LOHA"
    if "r" in own and alpha_field in own and _gives(parse_config({"peft_type": kind, **own}), ranked):
        return own
    rslora = may_rslora and bool(adapter.settings.get("use_rslora"))
    ranks = {update.name: rank for update, rank in ranked}
    alphas = {update.name: _alpha(update.scale, rank, rslora) for update, rank in ranked}
    r, alpha = _commonest(ranks.values()), _commonest(alphas.values())
    return {
        "r": r,
        alpha_field: alpha,
        "rank_pattern": _as_pattern(ranks, r),
        "alpha_pattern": _as_pattern(alphas, alpha),
        **({"use_rslora": rslora} if may_rslora else {}),
    }


def _gives(config: Config, ranked: Iterable[tuple[Update, int]]) -> bool:
    return all(
        config.rank_of(update.name) == rank and config.scale_of(update.name, rank) == update.scale
        for update, rank in ranked
    )


def _as_pattern(values: Mapping[str, Any], usual: Any) -> dict[str, Any]:
    """What differs from the usual, by the module's path as it is, which every PEFT understands.

    PEFT takes the first key k for which `(.*\\.)?(k)$` matches a path; up to 0.13 `.*\\.k$`, and else the path itself.
    So the path `layers.1.q` also catches `enc.layers.1.q`. A module that another's path would catch is named by what
    stands before it too, `(?<=^enc\\.)layers\\.1\\.q`, which all of them read. It comes first: JSON's keys are sorted.
    """
    unusual = [name for name, value in values.items() if value != usual]
    keyed: dict[str, list[str]] = {}
    for name in unusual:
        keyed.setdefault(_any_character(name), []).append(name)
    pattern = {}
    for name, value in values.items():
        tails = [name, *(name[i + 1 :] for i, character in enumerate(name) if character == ".")]
        catching = (other for tail in tails for other in keyed.get(_any_character(tail), ()))
        if any(other != name and values[other] != value for other in catching):
            before, dot, rest = name.partition(".")
            own = f"(?<=^{re.escape(before)}\\.){re.escape(rest)}" if dot else f"(?<=^){re.escape(name)}"
            pattern[own] = value
    return pattern | {name if _PLAIN.fullmatch(name) else f"^{re.escape(name)}": values[name] for name in unusual}


def _any_character(path: str) -> str:
    """A path in which a dot, which matches any character, is the same as what else joins words."""
    return path.replace("_", ".").replace("-", ".")


def _commonest(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _alpha(scale: float, rank: int, rslora: bool) -> float:
    divisor = math.sqrt(rank) if rslora else rank
    return _exact(lambda alpha: alpha / divisor, scale, divisor)


def _exact(scale_of: Callable[[float], float], scale: float, factor: float) -> float:
    """The α for which `scale_of(α)` is `scale` to the last bit, a whole number where one does; else the nearest."""
    alpha = scale * factor
    for candidate in (round(alpha), alpha, math.nextafter(alpha, math.inf), math.nextafter(alpha, -math.inf)):
        if scale_of(candidate) == scale:
            return candidate
    return alpha
