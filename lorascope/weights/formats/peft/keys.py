"""PEFT's keys: `base_model.model.` + module + role, and what `state_dict()` leaks around it.

On disk a key is `base_model.model.<module>.<role>[.weight|.bias]`; in memory the adapter's name stands after the role
(`lora_A.default.weight`). A wrapped module shows up as `.base_layer`, a trained copy as `.modules_to_save`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from lorascope.errors import InputError

PREFIX = "base_model.model."

# The roles that make an update, by the method that writes them.
LORA = ("lora_A", "lora_B", "lora_E", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
VERA = ("vera_lambda_b", "vera_lambda_d", "vera_A", "vera_B")
IA3 = ("ia3_l",)
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
ROLES = (*LORA, *VERA, *IA3, *LOHA, *LOKR)
WITH_TAIL = frozenset({"lora_A", "lora_B", "lora_magnitude_vector"})  # modules: their parameter is `.weight`

# Methods that are recognised by the first letters of a segment of the key, and not analysed.
OTHERS = {
    "adamss_": "AdaMSS", "beft_": "BEFT", "boft_": "BOFT", "c3a_": "C3A", "deft_": "DEFT", "delora_": "DeLoRA",
    "fourierft_": "FourierFT", "frod_": "FROD", "glora_": "GLoRA", "gralora_": "GraLoRA", "hira_": "HiRA",
    "hra_": "HRA", "lily_": "Lily", "ln_tuning_": "LayerNorm tuning", "miss_": "MiSS", "oft_": "OFT", "osf_": "OSF",
    "peanut_": "PEANuT", "poly_": "Poly", "psoft_": "PSOFT", "pvera_": "PVeRA", "randlora_": "RandLoRA",
    "road_": "RoAd", "shadow_": "Shadow", "shira_": "SHiRA", "supertuning_": "Supertuning", "tinylora_": "TinyLoRA",
    "unilora_": "UniLoRA", "vblora_": "VB-LoRA", "waveft_": "WaveFT", "bone_": "Bone", "lora_arrow": "Arrow",
    "lora_diag": "KaSA", "lora_monteclora": "MonteCLoRA", "internal_xlora_classifier": "X-LoRA",
    "adaption_": "LLaMA-Adapter", "prompt_embeddings": "prompt or prefix tuning", "prompt_encoder": "prompt tuning",
}  # fmt: skip
_OTHER = re.compile(r"(?:^|\.)(" + "|".join(map(re.escape, OTHERS)) + r")")
_ROLE = re.compile(r"^(?:(?P<module>.+)\.)?(?P<role>" + "|".join(ROLES) + r")(?:\.(?P<rest>[^.]+(?:\.[^.]+)?))?$")
_TOKENS = re.compile(r"^(?:(?P<module>.+?)\.)?(?:token_adapter\.)?trainable_tokens_(?:delta|original)(?:\.[^.]+)?$")
_UNPREFIXED = re.compile(r"\.(lora_[AB]\.weight|lora_([ABE]|embedding_[AB])\.[^.]+(\.weight)?|lora_embedding_[AB])$")


@dataclass(frozen=True)
class Key:
    """One key taken apart. `wrapped` counts the `.base_layer` segments that were removed from the module's path."""

    text: str
    module: str
    role: str
    adapter: str | None
    tail: str
    wrapped: int = 0


def body(key: str) -> str:
    """The key without PEFT's prefix."""
    return key.removeprefix(PREFIX) if key.startswith(PREFIX) else key.removeprefix("base_model.")


def parse(key: str) -> Key | None:
    """The parts of a key that carries one of `ROLES`; None for any other."""
    match = _ROLE.match(body(key))
    if match is None:
        return None
    role, rest = match["role"], (match["rest"] or "").split(".") if match["rest"] else []
    tail = rest.pop() if role in WITH_TAIL and rest and rest[-1] in ("weight", "bias") else ""
    if len(rest) > 1:
        return None
    segments = (match["module"] or "").split(".")
    module = [segment for segment in segments if segment != "base_layer"]
    return Key(key, ".".join(module), role, rest[0] if rest else None, tail, len(segments) - len(module))


def other_method(key: str) -> str | None:
    """The name of the method, recognised and not analysed, that this key belongs to."""
    match = _OTHER.search(body(key))
    return OTHERS[match[1]] if match else None


def betrayed_modules(keys: Iterable[str]) -> dict[str, str]:
    """Modules whose A and B are no plain LoRA, by the key of another method beside them, and why.

    So a file of KaSA's is known without its config: `lora_diag` stands between A and B.
    """
    found = {}
    for key in keys:
        match = _OTHER.search(body(key))
        if match and OTHERS[match[1]] not in ("LayerNorm tuning", "BEFT"):
            module = body(key)[: match.start()].replace(".base_layer", "")
            found[module] = f"{OTHERS[match[1]]}: its tensors stand beside A and B, and change what they mean"
    return found


def betrayed_for_all(keys: Iterable[str]) -> list[str]:
    """Why no A and B of the file mean a plain LoRA, by a key above all modules."""
    mixture = any("internal_xlora_classifier" in key for key in keys)
    return ["X-LoRA: each token mixes several adapters, each scaled by a classifier"] if mixture else []


def is_trained_tokens(key: str) -> bool:
    """Whether the key holds the rows of trainable tokens."""
    return _TOKENS.match(body(key)) is not None


def is_peft(key: str) -> bool:
    """Whether a key alone, without a config, is PEFT's spelling."""
    if key.startswith("base_model."):
        return parse(key) is not None or other_method(key) is not None or is_trained_tokens(key)
    return key == "prompt_embeddings" or _UNPREFIXED.search(key) is not None


def one_adapter(keys: Iterable[Key]) -> str | None:
    """The adapter's name that leaked into the keys, if any. InputError where there is more than one adapter."""
    names = dict.fromkeys(key.adapter for key in keys)
    if len(names) > 1:
        raise InputError(
            "the file holds more than one adapter",
            found=", ".join(name or "(no name)" for name in names),
            expected="one",
            hint="save each with save_pretrained",
        )
    return next(iter(names), None)


def plain_parameter(key: str, adapter: str | None) -> str:
    """The base model's name of a parameter stored whole, without what PEFT wraps around it."""
    text = body(key)
    text = re.sub(rf"\.modules_to_save(?:\.{re.escape(adapter or 'default')})?\.", ".", text)
    return re.sub(r"\.(base_layer|original_module|token_adapter)(?=\.)", "", text)
