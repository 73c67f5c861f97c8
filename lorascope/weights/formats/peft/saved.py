"""What a PEFT file holds next to its updates: parameters stored whole, and copies of the base (PEFT 0.21.2).

A file of `save_pretrained` holds the modules that were trained whole, the trained biases, and the embeddings of a grown
vocabulary. A file of the whole model (`state_dict()`, DeepSpeed's `zero_to_fp32`, FSDP) holds the base too.
"""

import re
from collections.abc import Collection

import numpy as np

from lorascope.architectures import PEFT_HEADS, VOCABULARY
from lorascope.errors import InputError, preview
from lorascope.updates.base import Stored
from lorascope.weights.formats.base import Ledger
from lorascope.weights.formats.diffusers import NORM
from lorascope.weights.formats.peft.config import Config
from lorascope.weights.formats.peft.keys import PREFIX, body, plain_parameter
from lorascope.weights.formats.peft.recognise import method_not_read

COPY = "a copy of the base's weight, stored next to the update by PEFT"
COPIES = ("weight", "in_proj_weight", "in_proj_bias", "out_proj.weight")
BASE_COPY = "the base's own copy of a parameter, in a file that holds the whole model"
# What quantisers keep next to a weight, or in its place: bitsandbytes, GPTQ and AWQ, FP8, HQQ, compressed-tensors.
_QUANTISED = (
    r"(weight\.)?(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+)|SCB|weight_format|qweight|qzeros"
    r"|scales|g_idx|weight_(scale(_inv)?|zero_point|shape|packed|g_idx)|input_scale|W_q|meta|codes|codebooks|biases"
)
_BASE = re.compile(
    rf"(?P<module>.+?)\.(?:base_layer\.)*(?:{_QUANTISED}|weight|in_proj_weight|in_proj_bias|out_proj\.weight)"
)
_BUFFER = re.compile(rf".+\.({_QUANTISED}|inv_freq|rotary_emb\.\w+|position_ids|masked_bias|attn\.bias|token_type_ids)")


def take_saved(
    ledger: Ledger, config: Config, adapter: str | None, modules: Collection[str], notes: list[str]
) -> dict[str, Stored]:
    """The parameters stored whole, by name; every other key that is understood is skipped.

    Args:
        adapter: the adapter's name where it leaked into the keys.
        modules: the paths of the adapted modules.
        notes: gets what is to be said.

    Raises:
        InputError: two keys mean one parameter, and differ.
    """
    announced = (*config.names("modules_to_save"), *PEFT_HEADS.get(str(config.raw.get("task_type")), ()))
    whole = _holds_base(ledger, modules)
    saved: dict[str, Stored] = {}
    unannounced: list[str] = []
    for key in ledger.left():
        text = body(key)
        name = plain_parameter(key, adapter)
        trained = ".modules_to_save." in text or _announced(name, announced) or _is_bias(name, config)
        if reason := _no_parameter(key, text):
            ledger.skip(key, reason)
        elif whole and not trained and (NORM.fullmatch(text) or _is_plain(text) or _BUFFER.fullmatch(text)):
            ledger.skip(key, BASE_COPY)
        elif not _is_whole(key, text, announced) or _is_within(name, text, modules):
            continue
        elif name in saved:
            _same(name, saved[name], key, ledger)
        else:
            saved[name] = ledger.take(key)
            if not trained:
                unannounced.append(name)
    notes += _said(unannounced)
    return saved


def base_copies(ledger: Ledger) -> dict[str, Stored]:
    """The base's weights that stand next to the updates, by parameter. Their keys stay open, for `take_saved`.

    A copy of the base, `….base_layer.weight`, is what PEFT loads into the base before it adds the update; it writes one
    where the vocabulary was resized, and then the base on disk has fewer rows than the trained model had.
    """
    copies: dict[str, Stored] = {}
    for key in ledger.left():
        text = body(key)
        module, below, tail = text.rpartition(".base_layer.")
        if below and tail in COPIES and ".original_module." not in text:
            owner = module.replace(".base_layer", "").removesuffix(".token_adapter")
            copies[f"{owner}.{tail}"] = ledger.peek(key)
    return copies


def _no_parameter(key: str, text: str) -> str | None:
    """Why a key is not a parameter that was trained whole, where it is known by itself."""
    if re.search(r"\.lora_velora_embed(\.[^.]+)?$", text):
        return "a buffer of training alone: VeLoRA's backward pass compresses activations with it, and ΔW is s·B·A"
    if ".lora_monteclora_sampler." in f"{text}.":
        return "a buffer of training alone: MonteCLoRA draws its noise with it, and ΔW is s·B·A"
    if method := method_not_read(key):
        return f"{method}: recognised but not supported for analysis"
    if ".original_module." in text:
        return "original copy of a fully trained module (modules_to_save)"
    if ".base_layer." in text and not text.endswith(".bias"):
        tail = text.rpartition(".base_layer.")[2]
        if tail in COPIES:
            return COPY
        if re.fullmatch(_QUANTISED, tail):
            return "the base's own copy of a quantised weight"
    if re.fullmatch(rf".+\.({_QUANTISED})", text) and "lora_" not in text:
        return "the base's own copy of a quantised weight"
    return None


def _holds_base(ledger: Ledger, modules: Collection[str]) -> bool:
    """Whether the file holds the base too: a weight of its own for every adapted module."""
    owners = set()
    for key in ledger.everything():
        match = _BASE.fullmatch(body(key))
        if match:
            owners.add(re.sub(r"\.base_layer(?=\.|$)", "", match["module"]))
    return bool(modules) and all(module in owners for module in modules)


def _is_plain(text: str) -> bool:
    return text.rpartition(".")[2] in ("weight", "bias") and "lora_" not in text


def _is_whole(key: str, text: str, announced: tuple[str, ...]) -> bool:
    """Whether a key can be a parameter that was trained and stored whole."""
    if ".modules_to_save." in text or _announced(text, announced):
        return True
    if "lora_" in text:
        return False
    return _is_plain(text) if key.startswith(PREFIX) else NORM.fullmatch(text) is not None


def _is_within(name: str, text: str, modules: Collection[str]) -> bool:
    """Whether a parameter lies below an adapted module, where it might be part of the update."""
    if ".modules_to_save." in text or ".base_layer." in text:
        return False
    segments = name.split(".")
    return any(".".join(segments[:end]) in modules for end in range(1, len(segments) - 1))


def _same(name: str, first: Stored, key: str, ledger: Ledger) -> None:
    """One parameter under two keys, as `bias="all"` stores a head's bias. InputError where they differ."""
    other = ledger.peek(key)
    if tuple(first.shape) != tuple(other.shape) or not np.array_equal(first.read(), other.read(), equal_nan=True):
        raise InputError(f"two keys mean the parameter {name!r}, and hold different values", found=key)
    ledger.skip(key, f"the same tensor as {name}: one copy is enough")


def _announced(parameter: str, announced: tuple[str, ...]) -> bool:
    """Whether `modules_to_save` names a module on the parameter's path."""
    return any(f".{name}." in f".{parameter}" for name in announced)


def _is_bias(name: str, config: Config) -> bool:
    return name.endswith("bias") and config.raw.get("bias", "none") != "none"


def _said(unannounced: list[str]) -> list[str]:
    embeddings = [name for name in unannounced if name.split(".")[-2:-1] and name.split(".")[-2] in VOCABULARY]
    others = [name for name in unannounced if name not in embeddings]
    notes = []
    if embeddings:
        notes.append(f"embeddings stored whole, as PEFT does by itself for a resized vocabulary: {preview(embeddings)}")
    if others:
        notes.append(f"full tensors not listed in modules_to_save: {preview(others)}")
    return notes
