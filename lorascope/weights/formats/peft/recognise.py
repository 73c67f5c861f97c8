"""What a key or a config of PEFT's is, by the families that are registered, and by the names of those not read."""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from lorascope.errors import InputError, preview
from lorascope.weights.formats.peft.config import COMMON, Config, ScaleFields, parse_config
from lorascope.weights.formats.peft.family import Family, Group, families
from lorascope.weights.formats.peft.keys import Key, body

# Methods by the first letters of a segment of the key; not analysed, but where a family has such roles or `rest_keys`.
NOT_READ = {
    "adamss_": "AdaMSS", "beft_": "BEFT", "boft_": "BOFT", "deft_": "DEFT",
    "fourierft_": "FourierFT", "frod_": "FROD", "glora_": "GLoRA", "hira_": "HiRA",
    "hra_": "HRA", "lily_": "Lily", "ln_tuning_": "LayerNorm tuning", "miss_": "MiSS", "oft_": "OFT", "osf_": "OSF",
    "peanut_": "PEANuT", "poly_": "Poly", "psoft_": "PSOFT", "pvera_": "PVeRA", "randlora_": "RandLoRA",
    "road_": "RoAd", "shadow_": "Shadow", "shira_": "SHiRA", "supertuning_": "Supertuning", "tinylora_": "TinyLoRA",
    "unilora_": "UniLoRA", "vblora_": "VB-LoRA", "waveft_": "WaveFT", "bone_": "Bone", "lora_arrow": "Arrow",
    "lora_diag": "KaSA", "lora_monteclora": "MonteCLoRA", "internal_xlora_classifier": "X-LoRA",
    "adaption_": "LLaMA-Adapter", "prompt_embeddings": "prompt or prefix tuning", "prompt_encoder": "prompt tuning",
}  # fmt: skip
_NOT_READ = re.compile(r"(?:^|\.)(" + "|".join(map(re.escape, NOT_READ)) + r")")
_BESIDE_LORA = (
    "LayerNorm tuning",
    "BEFT",
    "MonteCLoRA",
)  # what trains other parameters, and leaves A and B what they are


def all_families() -> list[Family]:
    return [family for _, family in families.items()]


def known_fields() -> frozenset[str]:
    """Every field that a PEFT config of the methods read can have; another one is named in the notes."""
    return COMMON.union(*(family.fields.split() for family in all_families()))


def family_of_type(peft_type: Any) -> Family | None:
    """The family that has this PEFT type; None of a type that no family has."""
    if not isinstance(peft_type, str):
        return None
    return next((family for family in all_families() if peft_type in family.peft_types), None)


def kinds_of_type(peft_type: str) -> frozenset[str]:
    """The kinds of update that files of this PEFT type may hold; empty where no family reads updates of it."""
    family = family_of_type(peft_type)
    return family.peft_types[peft_type] if family is not None else frozenset()


def method_of_kind(kind: str) -> str:
    return next((family.methods[kind] for family in all_families() if kind in family.methods), kind)


def read_config(raw: Mapping[str, Any] | None) -> Config:
    """The config of a file, with its family's fields for rank and scale. InputError as of `parse_config`."""
    if raw is None:
        return parse_config(None, ScaleFields())
    family = family_of_type(raw.get("peft_type"))
    return parse_config(raw, family.scales if family is not None else None)


NO_SCALE = (
    "scale unknown: there is no adapter_config.json next to this file, so α, rsLoRA and patterns are unknown; "
    "every number is that of B·A with scale 1"
)


def notes_of(config: Config) -> list[str]:
    """What the config says that a reader of the numbers should know."""
    if not config.given:
        return [NO_SCALE]
    notes = []
    unknown = sorted(set(config.raw) - known_fields())
    if unknown:
        notes.append(f"unknown fields in adapter_config.json were ignored: {preview(unknown)}")
    family = family_of_type(config.peft_type)
    return notes + (family.notes(config) if family is not None else [])


def parse(key: str) -> Key | None:
    """The parts of a key that carries a role of some family; None for any other."""
    match = _role_pattern().match(body(key))
    if match is None:
        return None
    role, rest = match["role"], (match["rest"] or "").split(".") if match["rest"] else []
    tail = rest.pop() if role in _roles_with_tail() and rest and rest[-1] in ("weight", "bias") else ""
    if len(rest) > 1:
        return None
    segments = (match["module"] or "").split(".")
    module = [segment for segment in segments if segment != "base_layer"]
    return Key(key, ".".join(module), role, rest[0] if rest else None, tail, len(segments) - len(module))


@cache
def _role_pattern() -> re.Pattern[str]:
    roles = "|".join(re.escape(role) for family in all_families() for role in family.roles)
    return re.compile(rf"^(?:(?P<module>.+)\.)?(?P<role>{roles})(?:\.(?P<rest>[^.]+(?:\.[^.]+)?))?$")


@cache
def _roles_with_tail() -> frozenset[str]:
    return frozenset().union(*(family.with_tail for family in all_families()))


def family_of(group: Group) -> Family:
    """The family that has all roles of a module. InputError where they are of two."""
    found = _with_roles(frozenset(role.removesuffix(".bias") for role in group.keys), tuple(all_families()))
    if found is None:
        raise InputError(f"{group.module} has keys of two methods", found=", ".join(group.keys))
    return found


@cache
def _with_roles(roles: frozenset[str], families: tuple[Family, ...]) -> Family | None:
    marked = [family for family in families if roles & family.marks]
    return next((family for family in marked or families if roles <= set(family.roles)), None)


def method_not_read(key: str) -> str | None:
    """The name of the method, recognised and not analysed, that this key belongs to."""
    match = _not_read(key)
    return NOT_READ[match[1]] if match else None


def _not_read(key: str) -> re.Match[str] | None:
    match = _NOT_READ.search(body(key))
    return match if match and match[1] not in _rest_keys() and parse(key) is None else None


@cache
def _rest_keys() -> frozenset[str]:
    return frozenset().union(*(family.rest_keys for family in all_families()))


def betrayed_modules(keys: Iterable[str]) -> dict[str, str]:
    """Modules whose A and B are not a plain LoRA, by the key of another method next to them, and why.

    So a file of KaSA's is known without its config: `lora_diag` stands between A and B.
    """
    reasons = {}
    for key in keys:
        match = _not_read(key)
        if match and NOT_READ[match[1]] not in _BESIDE_LORA:
            module = body(key)[: match.start()].replace(".base_layer", "")
            reasons[module] = f"{NOT_READ[match[1]]}: its tensors stand next to A and B, and change what they mean"
    return reasons


def betrayed_for_all(keys: Iterable[str]) -> list[str]:
    """Why no A and B of the file mean a plain LoRA, by a key above all modules."""
    mixture = any("internal_xlora_classifier" in key for key in keys)
    return ["X-LoRA: each token mixes several adapters, each scaled by a classifier"] if mixture else []


def is_peft(key: str) -> bool:
    """Whether a key alone, without a config, is PEFT's spelling."""
    if key.startswith("base_model.") and (parse(key) is not None or _NOT_READ.search(body(key))):
        return True
    return any(family.claims_key(key) for family in all_families())
