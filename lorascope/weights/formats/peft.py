"""PEFT's layout: `adapter_config.json` beside `adapter_model.safetensors`, `.bin` or shards. Checked against PEFT 0.21.2.

Every method whose update is a fixed ΔW is read: LoRA, rsLoRA, DoRA, AdaLoRA, VeRA, LoHa, LoKr, IA³. The others are
recognised by their keys and set aside by name. Scales are PEFT's: α/r or α/√r with its patterns, per module.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lorascope.errors import InputError, some
from lorascope.updates.base import Stored, Update
from lorascope.weights.formats.base import Bundle, Format, Ledger, Parsed, formats
from lorascope.weights.peft import lora
from lorascope.weights.peft.config import CHANGES_DELTA, Config, notes_of, parse_config
from lorascope.weights.peft.keys import (
    PREFIX,
    Key,
    body,
    is_peft,
    is_trained_tokens,
    one_adapter,
    other_method,
    parse,
    plain_parameter,
)

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

_DIFFUSERS = ("unet.", "transformer.", "text_encoder", "controlnet.")


class Peft(Format):
    name = "peft"
    about = "Hugging Face PEFT: adapter_config.json and adapter_model.safetensors"

    def claims(self, bundle: Bundle) -> bool:
        if bundle.config is not None and "peft_type" in bundle.config:
            return True
        if "lora_adapter_metadata" in bundle.metadata:
            return False
        keys = list(bundle.tensors)
        ours = [key for key in keys if is_peft(key)]
        return any(key.startswith("base_model.") or not key.startswith(_DIFFUSERS) for key in ours)

    def read(self, bundle: Bundle, ledger: Ledger, base: "Checkpoint | None" = None) -> Parsed:
        config = parse_config(bundle.config)
        keys = [key for key in map(parse, bundle.tensors) if key is not None]
        adapter = one_adapter(keys)
        groups = _groups(keys, ledger)
        notes = notes_of(config)
        updates: dict[str, Update] = {}
        for group in groups:
            for update in _updates(group, config, ledger, base):
                updates[update.name] = update
        saved = _saved(ledger, config, adapter, {group.module for group in groups}, notes)
        return Parsed(updates, _method(config, updates, ledger), dict(config.raw), saved, tuple(notes))


def _groups(keys: Iterable[Key], ledger: Ledger) -> list[lora.Group]:
    """Keys of one module together, in file order. InputError where two keys mean the same thing."""
    found: dict[tuple[str, int], dict[str, Key]] = {}
    for key in keys:
        role = f"{key.role}.bias" if key.tail == "bias" else key.role
        roles = found.setdefault((key.module, key.wrapped), {})
        if role in roles:
            raise InputError(f"two keys mean the same: {roles[role].text!r} and {key.text!r}")
        roles[role] = key
    return [
        lora.Group(module, wrapped, roles, {role: ledger.peek(key.text) for role, key in roles.items()})
        for (module, wrapped), roles in found.items()
    ]


def _updates(group: lora.Group, config: Config, ledger: Ledger, base: "Checkpoint | None") -> list[Update]:
    """The updates of one module's keys, every one of which is taken or set aside."""
    changed = [reason for field, reason in CHANGES_DELTA.items() if config.flag(field)]
    for role, key in group.keys.items():
        if changed:
            ledger.set_aside(key.text, changed[0])
        elif role.endswith(".bias"):
            ledger.set_aside(
                key.text, "the bias of B: it adds scale · bias to the output, and is no update of the weight"
            )
        else:
            ledger.take(key.text)
    if changed:
        return []
    if "lora_E" in group:
        return [lora.triplet(group, config, base)]
    if "lora_embedding_A" in group or "lora_embedding_B" in group:
        return [lora.embedding(group, config)]
    return [lora.low_rank(group, config, base)]


def _saved(
    ledger: Ledger, config: Config, adapter: str | None, adapted: set[str], notes: list[str]
) -> dict[str, Stored]:
    """What is left: parameters stored whole, copies of the base, and methods that are not analysed."""
    announced = config.names("modules_to_save")
    saved: dict[str, Stored] = {}
    unannounced = []
    for key in ledger.left():
        text = body(key)
        if is_trained_tokens(key):
            ledger.set_aside(
                key, "rows of trainable tokens: they replace the base's rows, and are no update by themselves"
            )
        elif method := other_method(key):
            ledger.set_aside(key, f"{method}: recognised, and not analysed")
        elif ".original_module." in text:
            ledger.set_aside(key, "the base's own copy of a module that was trained whole")
        elif text.endswith((".base_layer.weight", ".base_layer.in_proj_weight")):
            ledger.set_aside(key, "a copy of the base's weight, stored beside the update by PEFT")
        elif _is_whole(key, text, announced):
            name = plain_parameter(key, adapter)
            if name in saved:
                raise InputError(f"two keys mean the parameter {name!r}", found=key)
            saved[name] = ledger.take(key)
            if not _announced(name, announced) and not _is_bias(name, config):
                unannounced.append(name)
    if unannounced:
        notes.append(f"stored whole, though the config does not name them in modules_to_save: {some(unannounced)}")
    return saved


def _is_whole(key: str, text: str, announced: tuple[str, ...]) -> bool:
    """Whether a key can be a parameter that was trained and stored whole."""
    if "lora_" in text or not key.startswith(PREFIX):
        return ".modules_to_save." in text or _announced(text, announced)
    return text.rpartition(".")[2] in ("weight", "bias") or ".modules_to_save." in text or _announced(text, announced)


def _announced(parameter: str, announced: tuple[str, ...]) -> bool:
    """Whether `modules_to_save` names a module on the parameter's path."""
    return any(f".{name}." in f".{parameter}" for name in announced)


def _is_bias(name: str, config: Config) -> bool:
    return name.endswith("bias") and config.raw.get("bias", "none") != "none"


def _method(config: Config, updates: dict[str, Update], ledger: Ledger) -> str:
    names = {"low_rank": "rsLoRA" if config.rslora else "LoRA", "magnitude": "DoRA", "triplet": "AdaLoRA"}
    found = dict.fromkeys(names.get(update.kind, update.kind) for update in updates.values())
    return " + ".join(found) or config.peft_type


formats.register("peft")(Peft())
