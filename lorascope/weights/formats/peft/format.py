"""PEFT's layout: `adapter_config.json` beside `adapter_model.safetensors`, `.bin` or shards (PEFT 0.21.2).

Every method whose update is a fixed ΔW is read: LoRA, rsLoRA, DoRA, AdaLoRA, VeRA, LoHa, LoKr, IA³, LayerNorm tuning;
and virtual tokens, which are no update. The others are recognised by their keys and set aside by name. Scales are
PEFT's: α/r or α/√r with its patterns, per module.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lorascope.errors import InputError
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter
from lorascope.weights.formats.base import Bundle, Format, Ledger, Parsed, formats
from lorascope.weights.formats.diffusers import is_diffusers
from lorascope.weights.formats.kohya import claimed_by_lycoris
from lorascope.weights.formats.peft import lora, lycoris, vectors
from lorascope.weights.formats.peft.attention import attention, replicated
from lorascope.weights.formats.peft.config import CHANGES_DELTA, Config, notes_of, parse_config
from lorascope.weights.formats.peft.experts import assign, experts, parameters_of
from lorascope.weights.formats.peft.held import base_copies, token_rows
from lorascope.weights.formats.peft.keys import (
    IA3,
    LOHA,
    LOKR,
    VERA,
    Key,
    betrayed_for_all,
    betrayed_modules,
    is_peft,
    is_trained_tokens,
    one_adapter,
    other_method,
    parse,
)
from lorascope.weights.formats.peft.merged import enabled, merged_linear
from lorascope.weights.formats.peft.norms import norms
from lorascope.weights.formats.peft.prompts import holds_prompt, take_prompt, write_prompt
from lorascope.weights.formats.peft.saved import take_saved
from lorascope.weights.formats.peft.write import write_peft
from lorascope.weights.tensors import Recent

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint


class Peft(Format):
    name = "peft"
    about = "Hugging Face PEFT: adapter_config.json and adapter_model.safetensors"

    def claims(self, bundle: Bundle) -> bool:
        if bundle.config is not None and "peft_type" in bundle.config:
            return True
        keys = list(bundle.tensors)
        if is_diffusers(keys, bundle.metadata) or claimed_by_lycoris(keys):
            return False
        return any(is_peft(key) for key in keys)

    def read(self, bundle: Bundle, ledger: Ledger, base: "Checkpoint | None" = None) -> Parsed:
        config = parse_config(bundle.config)
        keys = [key for key in map(parse, bundle.tensors) if key is not None]
        adapter = one_adapter(keys)
        reader = _Reader(config, ledger, base, notes_of(config), vectors.widths_of(bundle.metadata))
        groups = _groups(keys, ledger)
        updates = replicated(attention(reader.updates(groups), groups), config.raw.get("layer_replication"))
        updates = {**updates, **norms(ledger)}
        _check_type(config, updates)
        prompt, parts = take_prompt(config, ledger)
        rows, copies = token_rows(ledger, config), base_copies(ledger)
        modules = {group.module for group in groups}
        saved = {**prompt, **take_saved(ledger, config, adapter, modules, reader.notes)}
        method = _method(config, updates, ledger, parts)
        return Parsed(updates, method, dict(config.raw), saved, tuple(reader.notes), parts, rows, copies)

    def write(self, adapter: Adapter, folder: Path) -> list[Path]:
        return write_prompt(adapter, folder) if holds_prompt(adapter) else write_peft(adapter, folder)


@dataclass
class _Reader:
    """Groups of keys to updates, each key taken or set aside."""

    config: Config
    ledger: Ledger
    base: "Checkpoint | None"
    notes: list[str]
    widths: Mapping[str, int]
    recent: Recent = field(default_factory=Recent)

    def updates(self, groups: list[lora.Group]) -> dict[str, Update]:
        """All updates by module, in file order, fused parameters and VeRA last."""
        changed = [reason for name, reason in CHANGES_DELTA.items() if self.config.flag(name)]
        if self.config.given and self.config.peft_type not in _TYPES:
            changed.append(f"{self.config.peft_type}: its ΔW is not s·B·A, and lorascope does not know it")
        changed += betrayed_for_all(self.ledger.left())
        betrayed = betrayed_modules(self.ledger.left())
        found: dict[str, Update] = {}
        fused: dict[str, list[lora.Group]] = {}
        vera: list[lora.Group] = []
        for group in groups:
            if changed:
                self._set_aside(group, changed[0])
            elif group.module in betrayed:
                self._set_aside(group, betrayed[group.module])
            elif group.stored.keys() & set(VERA):
                vera.append(group)
            elif "lora_A" in group and parameters_of(group.module, self.config):
                fused.setdefault(group.module, []).append(group)
            else:
                self._add(found, self._one(group))
                self._take(group)
        for wrappers in fused.values():
            for group, parameter in assign(wrappers, self.config, self.base, self.notes):
                for update in experts(group, parameter, self.config, self.base, self.recent):
                    self._add(found, update)
                self._take(group)
        if vera:
            self._vera(found, vera)
        return found

    def _one(self, group: lora.Group) -> Update:
        """The update of one ordinary module, by the roles it has."""
        if "lora_E" in group:
            return lora.triplet(group, self.config, self.base)
        if "lora_embedding_A" in group or "lora_embedding_B" in group:
            return lora.embedding(group, self.config)
        if "ia3_l" in group:
            return vectors.ia3(group, self.config, self.base)
        if group.stored.keys() & set(LOHA):
            return lycoris.loha(group, self.config)
        if group.stored.keys() & set(LOKR):
            return lycoris.lokr(group, self.config)
        if blocks := enabled(self.config):
            return merged_linear(group, blocks, self.config)
        return lora.low_rank(group, self.config, self.base)

    def _vera(self, found: dict[str, Update], groups: list[lora.Group]) -> None:
        """VeRA: the shared projections stand under no module, or (in a raw state dict) again under each."""
        modules = [group for group in groups if "vera_lambda_b" in group or "vera_lambda_d" in group]
        holders = sorted((group for group in groups if "vera_A" in group), key=lambda group: group.module)
        stored = None
        if holders:
            holders[0].need("vera_A", "vera_B")
            stored = holders[0].stored["vera_A"], holders[0].stored["vera_B"]
        results = vectors.vera(modules, stored, self.config, self.base, self.notes, self.widths) if modules else {}
        for group in sorted(groups, key=lambda group: group.module not in results):  # the projections last
            result = results.get(group.module)
            if isinstance(result, Update):
                self._add(found, result)
                self._take(group)
            elif result is None and holders and group is holders[0] and found:
                self._take(group)
            else:
                self._set_aside(group, result or "VeRA's projection, of which one copy is enough")

    def _add(self, found: dict[str, Update], update: Update) -> None:
        if update.name in found:
            raise InputError(f"two updates for one module, {update.name}")
        found[update.name] = update

    def _take(self, group: lora.Group) -> None:
        """Account for every key of a group that became an update. InputError where a role of another method is left."""
        own = next(family for family in _FAMILIES if group.stored.keys() & (set(family) - {"lora_magnitude_vector"}))
        for role, key in group.keys.items():
            if role.endswith(".bias"):
                self.ledger.skip(key.text, B_BIAS)
            elif role in own:
                self.ledger.take(key.text)
            else:
                raise InputError(f"{group.module} has keys of two methods", found=", ".join(group.keys))

    def _set_aside(self, group: lora.Group, reason: str) -> None:
        for key in group.keys.values():
            self.ledger.skip(key.text, reason)


B_BIAS = "the bias of B: it adds scale · bias to the output, beside the weight"
_FAMILIES = (
    ("lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"),
    ("lora_A", "lora_B", "lora_E", "lora_magnitude_vector"),
    VERA,
    IA3,
    LOHA,
    LOKR,
)
_NAMES = {
    "low_rank": "LoRA", "magnitude": "DoRA", "triplet": "AdaLoRA", "vera": "VeRA", "scaling": "IA³",
    "hadamard": "LoHa", "kronecker": "LoKr", "dense": "LoKr", "pissa": "PiSSA", "olora": "OLoRA",
    "tuned": "LayerNorm tuning",
}  # fmt: skip
_TYPES = {
    "LORA": {"low_rank", "magnitude", "pissa", "olora"}, "ADALORA": {"triplet", "low_rank"}, "VERA": {"vera"},
    "IA3": {"scaling"},
    "LOHA": {"hadamard"}, "LOKR": {"kronecker", "dense"}, "LN_TUNING": {"tuned"},
}  # fmt: skip


def _check_type(config: Config, updates: dict[str, Update]) -> None:
    """InputError where the config names another method than the tensors show."""
    kinds = {update.kind for update in updates.values()}
    if config.given and kinds - _TYPES.get(config.peft_type, kinds):
        raise InputError(
            f"adapter_config.json says peft_type {config.peft_type}, and the tensors are another method's",
            found=", ".join(sorted(_NAMES.get(kind, kind) for kind in kinds)),
            hint="give the config that was saved with these weights",
        )


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


def _method(config: Config, updates: dict[str, Update], ledger: Ledger, parts: dict[str, str]) -> str:
    """The method's name: of the updates' kinds, and of whatever else the file holds and is not analysed."""
    names = {**_NAMES, "low_rank": "rsLoRA" if config.rslora else "LoRA"}
    found = dict.fromkeys(names.get(update.kind, update.kind) for update in updates.values())
    found |= dict.fromkeys(reason.partition(":")[0] for reason in parts.values())
    others = dict.fromkeys(filter(None, (other_method(item.name) for item in ledger.skipped)))
    if any(is_trained_tokens(item.name) for item in ledger.skipped):
        others["trainable tokens"] = None
    return " + ".join([*found, *others]) or config.peft_type


formats.register("peft")(Peft())
