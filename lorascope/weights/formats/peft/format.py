"""PEFT's layout: `adapter_config.json` next to `adapter_model.safetensors`, `.bin` or shards (PEFT 0.21.2).

Every method whose update is a fixed ΔW is read: LoRA, rsLoRA, DoRA, AdaLoRA, VeRA, LoHa, LoKr, IA³, LayerNorm tuning;
and virtual tokens, which are not an update. The others are recognised by their keys and skipped by name. Scales are
PEFT's: α/r or α/√r with its patterns, per module.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lorascope.errors import InputError
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter
from lorascope.weights.formats.base import Bundle, Format, Ledger, Parsed, formats
from lorascope.weights.formats.diffusers import is_diffusers
from lorascope.weights.formats.key_groups import is_packed
from lorascope.weights.formats.kohya import claimed_by_lycoris
from lorascope.weights.formats.peft import tinker
from lorascope.weights.formats.peft.attention import attention, replicated
from lorascope.weights.formats.peft.config import Config
from lorascope.weights.formats.peft.family import Context, Family, Group, Rest
from lorascope.weights.formats.peft.keys import Key, one_adapter
from lorascope.weights.formats.peft.recognise import (
    NO_SCALE,
    all_families,
    betrayed_for_all,
    betrayed_modules,
    family_of,
    family_of_type,
    is_peft,
    kinds_of_type,
    method_not_read,
    method_of_kind,
    notes_of,
    parse,
    read_config,
)
from lorascope.weights.formats.peft.saved import base_copies, take_saved
from lorascope.weights.formats.peft.write import write_peft

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint


class Peft(Format):
    name = "peft"
    about = "Hugging Face PEFT: adapter_config.json and adapter_model.safetensors"

    def claims(self, bundle: Bundle) -> bool:
        if bundle.config is not None and "peft_type" in bundle.config:
            return True
        keys = list(bundle.tensors)
        if is_diffusers(keys, bundle.metadata) or claimed_by_lycoris(keys) or is_packed(keys):
            return False
        return any(is_peft(key) for key in keys)

    def read(self, bundle: Bundle, ledger: Ledger, base: "Checkpoint | None" = None) -> Parsed:
        of_tinker = tinker.is_tinkers(bundle.config)
        config = read_config(tinker.with_type(bundle.config))
        keys = [key for key in map(parse, bundle.tensors) if key is not None]
        adapter = one_adapter(keys)
        context = Context(config, base, notes_of(config), bundle.metadata)
        if of_tinker:
            context.notes.append(tinker.NO_TYPE)
        groups = _without_placeholders(_groups(keys, ledger), ledger)
        reader = _Reader(ledger, context)
        of_modules = reader.updates(groups)
        if NO_SCALE in context.notes and not reader.scaled:
            context.notes.remove(NO_SCALE)  # OFT, (IA)³, tuned norms: ΔW has no scale
        rests = [family.read_rest(ledger, context) for family in all_families()]
        of_modules = tinker.in_hugging_faces_names(of_modules, of_tinker)
        updates = replicated(attention(of_modules, groups), config.raw.get("layer_replication"))
        for rest in rests:
            updates.update(rest.updates)
        _check_type(config, updates)
        copies, modules = base_copies(ledger), {group.module for group in groups}
        whole = take_saved(ledger, config, adapter, modules, context.notes)
        return Parsed(
            updates,
            _method(reader.methods, rests, ledger) or config.peft_type,
            dict(config.raw),
            {**{name: stored for rest in rests for name, stored in rest.saved.items()}, **whole},
            tuple(context.notes),
            {name: reason for rest in rests for name, reason in rest.non_weight_tensors.items()},
            {name: rows for rest in rests for name, rows in rest.rows.items()},
            copies,
        )

    def write(self, adapter: Adapter, folder: Path) -> list[Path]:
        return write_peft(adapter, folder)


@dataclass
class _Reader:
    """Groups of keys to updates, each key taken or skipped. `methods`: the names of what was read, each once;
    `scaled`: whether the ΔW of some module has a scale."""

    ledger: Ledger
    context: Context
    methods: dict[str, None] = field(default_factory=dict)
    scaled: bool = False

    def updates(self, groups: list[Group]) -> dict[str, Update]:
        """All updates by module, in file order; those last that a family reads together."""
        reasons = self._reasons_for_all()
        betrayed = betrayed_modules(self.ledger.left())
        updates: dict[str, Update] = {}
        waiting: dict[Family, list[Group]] = {}
        for group in groups:
            if reasons or group.module in betrayed:
                self._skip(group, reasons[0] if reasons else betrayed[group.module])
                continue
            family = family_of(group)
            self.scaled = self.scaled or family.scales is not None
            if family.waits(group, self.context):
                waiting.setdefault(family, []).append(group)
            else:
                self._add(updates, family, family.read(group, self.context))
                self._take(group, family)
        for family, together in waiting.items():
            for group, result in family.read_together(together, self.context):
                if isinstance(result, str):
                    self._skip(group, result)
                    continue
                for update in result:
                    self._add(updates, family, update)
                self._take(group, family)
        return updates

    def _reasons_for_all(self) -> list[str]:
        """Why no tensor of the file means what its key says."""
        config = self.context.config
        family = family_of_type(config.peft_type)
        unreadable = family.unreadable(config) if family is not None else None
        reasons = [unreadable] if unreadable is not None else []
        if config.given and not kinds_of_type(config.peft_type):
            reasons.append(f"{config.peft_type}: its ΔW is not s·B·A, and lorascope does not know it")
        return reasons + betrayed_for_all(self.ledger.left())

    def _add(self, updates: dict[str, Update], family: Family, update: Update) -> None:
        if update.name in updates:
            raise InputError(f"two updates for one module, {update.name}")
        updates[update.name] = update
        self.methods[family.method_name(update, self.context.config)] = None

    def _take(self, group: Group, family: Family) -> None:
        """Account for every key of a group that became an update."""
        for role, key in group.keys.items():
            if role.endswith(".bias"):
                self.ledger.skip(key.text, family.bias_reason)
            else:
                self.ledger.take(key.text)

    def _skip(self, group: Group, reason: str) -> None:
        for key in group.keys.values():
            self.ledger.skip(key.text, reason)


def _check_type(config: Config, updates: dict[str, Update]) -> None:
    """InputError where the config names another method than the tensors show."""
    kinds = {update.kind for update in updates.values()}
    if config.given and kinds - (kinds_of_type(config.peft_type) or kinds):
        raise InputError(
            f"adapter_config.json says peft_type {config.peft_type}, and the tensors are another method's",
            found=", ".join(sorted(map(method_of_kind, kinds))),
            hint="give the config that was saved with these weights",
        )


def _groups(keys: Iterable[Key], ledger: Ledger) -> list[Group]:
    """Keys of one module together, in file order. InputError where two keys mean the same thing."""
    by_module: dict[tuple[str, int], dict[str, Key]] = {}
    for key in keys:
        role = f"{key.role}.bias" if key.tail == "bias" else key.role
        roles = by_module.setdefault((key.module, key.wrapped), {})
        if role in roles:
            raise InputError(f"two keys mean the same: {roles[role].text!r} and {key.text!r}")
        roles[role] = key
    return [
        Group(module, wrapped, roles, {role: ledger.peek(key.text) for role, key in roles.items()})
        for (module, wrapped), roles in by_module.items()
    ]


def _without_placeholders(groups: list[Group], ledger: Ledger) -> list[Group]:
    """The groups that hold something; the keys of the others are skipped."""
    kept = []
    for group in groups:
        if tinker.is_placeholder(group):
            for key in group.keys.values():
                ledger.skip(key.text, tinker.PLACEHOLDER)
        else:
            kept.append(group)
    return kept


def _method(methods_read: Iterable[str], rests: list[Rest], ledger: Ledger) -> str:
    """The method's name: of the updates, and of whatever else the file holds and is not analysed."""
    names = dict.fromkeys(methods_read)
    for rest in rests:
        names |= dict.fromkeys(rest.methods if rest.updates and rest.methods else map(_named, rest.updates.values()))
    for rest in rests:
        names |= dict.fromkeys(reason.partition(":")[0] for reason in rest.non_weight_tensors.values())
    names |= dict.fromkeys(filter(None, (method_not_read(item.name) for item in ledger.skipped)))
    for rest in rests:
        names |= dict.fromkeys(rest.methods)
    return " + ".join(names)


def _named(update: Update) -> str:
    return method_of_kind(update.kind)


formats.register("peft")(Peft())
