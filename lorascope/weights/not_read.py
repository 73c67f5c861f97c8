"""Files that hold trained weights and that lorascope does not read, by what they are: a name and what to do instead.

A file is known by its ending before it is opened, and by its keys or its config where no format claims it.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lorascope.errors import FullModelError, InputError, preview

_PEFT = "save it with PEFT's save_pretrained"
_TORCH = "load it there, and save the tensors by name as safetensors"

# What the name ends in: what it is, and what to do.
ENDINGS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    ((".keras",), "a Keras model (a zip)", "save its weights alone: model.save_weights"),
    ((".msgpack",), "a Flax file (msgpack)", "load it with from_flax=True, and save it as safetensors"),
    ((".npz", ".npy"), "a numpy archive", "save the arrays by name as safetensors: safetensors.numpy.save_file"),
    ((".ggml", ".ggla"), "a file of llama.cpp from before GGUF", "pass the adapter or model it was converted from"),
    ((".onnx",), "an ONNX graph", "pass the checkpoint it was exported from"),
    ((".ckpt.index", ".ckpt.meta"), "a TensorFlow checkpoint", _TORCH),
    ((".tflite", ".mlmodel", ".engine", ".trt"), "a compiled model", "pass the checkpoint it was made of"),
    ((".distcp",), "a shard of a PyTorch distributed checkpoint", "pass its folder, with .metadata in it"),
    ((".nemo", ".tar", ".tar.gz", ".tgz", ".zip", ".7z"), "an archive", "unpack it, and pass the weights file in it"),
    ((".orbax", ".zarr"), "a checkpoint of JAX", "orbaxport converts Orbax's to safetensors"),
)
_TENSORFLOW_DATA = re.compile(r"\.data-\d{5}-of-\d{5}$")

# What some key looks like: what the file is, and what to do.
KEYS: tuple[tuple[str, str, str], ...] = (
    (r"intkey_|(^|\.)(rotate_layer|learned_source)\.", "a ReFT: it edits hidden states, and no weight", ""),
    (r"\.adapter_layer\.|\.adapter(_[a-z]+)?\.linear_(in|out)\.", "a NeMo or Megatron adapter that is not LoRA", ""),
    (r"\.oft_diag$", "an OFT of LyCORIS's first versions (oft_diag), which hold rotations and not what makes them", ""),
    (r"^lora_controlnet$", "a Control-LoRA of Stability AI: a ControlNet, in part as low-rank changes of a UNet", ""),
    (r"weight_m_wdecomp", "a DoRA of NVlabs' repository (weight_m_wdecomp)", _PEFT),
    (r"(^|\.)medusa_head\.", "Medusa's heads for decoding, and no update of a weight", ""),
    (r"^(image_proj|ip_adapter)\.", "an IP-Adapter: attention layers of its own, and no update of a weight", ""),
    (r"^(emb_params|string_to_param\b.*|string_to_token|clip_[lg]|t5xxl)$",
     "a textual inversion: embeddings of new tokens, and no update of a weight", ""),
    (r"^(prompt_encoder|prefix_encoder)\.", "an encoder of prompts or prefixes, and no update of a weight", ""),
    (r"^direction\.\d+$", "a control vector of llama.cpp: added to hidden states, and no update of a weight", ""),
    (r"spectral_shifts?", "an SVDiff: shifts of the base's singular values, which lorascope does not compute", ""),
    (r"(^|\.)(exp_avg|exp_avg_sq|optimizer|param_groups)(\.|$)", "the state of an optimizer",
     "pass the adapter that was saved next to it"),
)  # fmt: skip
_KEYS = tuple((re.compile(pattern), what, hint) for pattern, what, hint in KEYS)
_ADAPTER_WORDS = re.compile(
    r"(^|[._])(lora|loha|lokr|hada|dora|adapters?|oft|boft|ia3|vera|peft|lokr|ln_tuning|prompt|prefix|houlsby)", re.I
)


def refuse_by_name(path: Path) -> None:
    """InputError where the file's name says that it is of a kind that lorascope does not read."""
    name = path.name.lower()
    kind_and_hint = next(((what, hint) for endings, what, hint in ENDINGS if name.endswith(endings)), None)
    if kind_and_hint is None and _TENSORFLOW_DATA.search(name):
        kind_and_hint = "a TensorFlow checkpoint", _TORCH
    if kind_and_hint is not None:
        raise InputError(f"{path} is {kind_and_hint[0]}, which lorascope does not read", hint=kind_and_hint[1])


def is_foreign(name: str) -> bool:
    """Whether a file of this name holds weights in a form that lorascope does not read."""
    return name.lower().endswith(tuple(e for endings, _, _ in ENDINGS for e in endings)) or bool(
        _TENSORFLOW_DATA.search(name)
    )


def refuse_unclaimed(path: Path, keys: Iterable[str], config: Mapping[str, Any] | None, two_checkpoints: str) -> None:
    """InputError that says what a file is which no format claims, where its config or keys tell; FullModelError of a
    full model.

    Args:
        two_checkpoints: what to do with full models.
    """
    keys = list(keys)
    if kind_and_hint := _by_config(config or {}):
        raise InputError(f"{path} is {kind_and_hint[0]}", found=preview(keys, 3), hint=kind_and_hint[1])
    for pattern, what, hint in _KEYS:
        matching = [key for key in keys if pattern.search(key)]
        if matching:
            raise InputError(
                f"{path} is {what}", found=preview(matching, 3), hint=hint or "lorascope does not read these yet"
            )
    if _is_model(keys):
        raise FullModelError(
            f"{path} is a full model checkpoint, not an adapter", found=preview(keys, 3), hint=two_checkpoints
        )


# What keys of each dialect have in them, the more particular first: for a file that none claims.
_MARKS = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("GGUF", r"\.weight\.lora_[ab]$"),
        ("LyCORIS", r"(^|[._])(hada_|lokr_|oft_|boft_|glora|dora_scale)"),
        ("kohya's or ComfyUI's", r"^lora_(unet|te\d?|transformer)_|[._]lora_(down|up|mid)\b"),
        ("diffusers", r"[._]lora(_linear_layer)?\.(down|up)\b|\.processor\."),
        ("MLX's or torchtune's", r"\.lora_[ab](\.|$)|\.magnitude$"),
        ("JAX's or Keras's", r"_lora_[ab]$|lora_kernel"),
        ("NeMo's or Megatron's", r"\.adapter_layer\.|\.adapter(_\w+)?\.|linear_(in|out)\b"),
        ("AdapterHub's", r"\.(adapters|loras|refts)\.[^.]+\."),
        ("PEFT's", r"^base_model\.|lora_([ABE]|embedding|magnitude)|\.(vera|ia3|modules_to_save)"),
    )
)


def nearest(keys: Iterable[str]) -> tuple[str, list[str]] | None:
    """The dialect whose marks most of the keys have, and the keys that have none; None where no key has any."""
    keys = list(keys)
    counts = [(sum(bool(pattern.search(key)) for key in keys), name, pattern) for name, pattern in _MARKS]
    most, name, pattern = max(counts, key=lambda each: each[0])
    return (name, [key for key in keys if not pattern.search(key)]) if most else None


def names_an_adapter(keys: Iterable[str]) -> bool:
    """Whether some key has a word of an adapter in it, which no parameter of a plain model has."""
    return any(map(_ADAPTER_WORDS.search, keys))


def _by_config(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """What an `adapter_config.json` that is not PEFT's belongs to."""
    if "peft_type" in config:
        return None
    if isinstance(config.get("config"), Mapping) and config.keys() & {"name", "model_class", "hidden_size"}:
        sort = config["config"].get("architecture") or "bottleneck: a small network between two layers"
        return f"an adapter of AdapterHub ({sort})", "of AdapterHub's adapters, lorascope reads LoRA"
    if {"r", "lora_alpha"} <= config.keys():
        what = "an adapter whose adapter_config.json has no peft_type, such as Tinker writes"
        return what, 'where its keys are PEFT\'s, add "peft_type": "LORA" to that file'
    return None


def _is_model(keys: list[str]) -> bool:
    """Whether the keys are those of a whole model: nearly all are parameters by plain names, and none an adapter's."""
    plain = sum(key.rpartition(".")[2] in ("weight", "bias", "gamma", "beta") for key in keys)
    # The rest is buffers: masks, position ids, running means.
    return plain >= 0.8 * len(keys) and not names_an_adapter(keys)
