"""lorascope's own layout, which holds any `Adapter`: `adapter_model.safetensors` next to `adapter_config.json`.

For whatever PEFT's layout has no place for: kinds of update it does not know, soft prompts, bottlenecks between layers.
Keys are `updates.<module>.<role>` (roles have no dots, so the last one divides), `saved.<parameter>` for tensors stored
whole, and `parts.<name>` for trained tensors that are not a weight update. The safetensors metadata says
{"format": "lorascope", "schema": "1"}. The config is the record that gives the keys their meaning:

    {"format": "lorascope", "schema": 1, "method": "lora_xs", "settings": {...}, "notes": [...],
     "modules": {"layers.0.q_proj": {"kind": "core", "scale": 1.0, "roles": ["A", "R", "B"], "transposed": true}},
     "saved": ["classifier.weight"], "parts": {"prompt": "a soft prompt: no weight update"}}

A frozen random array may be given by its draw in place of its numbers, `"drawn": {"A": {"shape", "bound", "seed"}}`.
Where all updates come from one random subspace, `subspace` is its plan, its coordinates are parts, and each module says
which of the plan's parameters it is: `"projected": {"delta": {"index", "shape", "turned"}}`.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.errors import InputError, preview
from lorascope.outputs import write_text
from lorascope.updates.base import Stored, Update, kinds
from lorascope.weights.adapter import Adapter
from lorascope.weights.drawn import Drawn
from lorascope.weights.formats.base import Bundle, Format, Ledger, Parsed, formats, refuse_loss
from lorascope.weights.random_subspace import LAMBDA, THETA, Plan, Projected, Subspace, subspace_of
from lorascope.weights.safetensors import write_safetensors
from lorascope.weights.support import Support

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

NAME, SCHEMA = "lorascope", 1
_PLAIN = {"kernel": (), "base_weight": None, "expert": None, "notes": (), "transposed": False, "embedding": False}


class BaseParam(Format):
    name = NAME
    about = "lorascope's own: adapter_config.json (format: lorascope) and adapter_model.safetensors; holds any adapter"

    def claims(self, bundle: Bundle) -> bool:
        return bundle.metadata.get("format") == NAME or (bundle.config or {}).get("format") == NAME

    def read(self, bundle: Bundle, ledger: Ledger, base: "Checkpoint | None" = None) -> Parsed:
        record = _record(bundle)
        modules = _typed(record, "modules", dict)
        saved = {name: _take(ledger, f"saved.{name}") for name in _strings(record, "saved")}
        non_weight_tensors = _typed(record, "parts", dict)
        for name, reason in non_weight_tensors.items():
            if type(reason) is not str or name in saved:
                raise _wrong(f"parts.{name}", reason, "a reason, under a name that nothing else has")
            saved[name] = _take(ledger, f"parts.{name}")
        subspace = _subspace(record, saved)
        updates = {name: _update(name, entry, ledger, subspace) for name, entry in modules.items()}
        settings, method = _typed(record, "settings", dict), _typed(record, "method", str)
        return Parsed(updates, method, settings, saved, _strings(record, "notes"), non_weight_tensors)

    def write(self, adapter: Adapter, folder: Path) -> list[Path]:
        """Write the two files.

        Raises:
            InputError: something was read and not understood, or a setting is not a JSON value.
            LorascopeError: the folder cannot be written; nothing half-written is left.
        """
        refuse_loss(adapter)
        tensors: dict[str, Stored] = {}
        modules = {}
        for name, update in adapter.updates.items():
            modules[name] = _entry(update)
            held = {role: stored for role, stored in update.roles.items() if not isinstance(stored, (Drawn, Projected))}
            tensors |= {f"updates.{name}.{role}": stored for role, stored in held.items()}
        for name, stored in adapter.saved.items():
            tensors[f"{'parts' if name in adapter.non_weight_tensors else 'saved'}.{name}"] = stored
        record = {
            "format": NAME,
            "schema": SCHEMA,
            "method": adapter.source.method,
            "settings": dict(sorted(adapter.settings.items())),
            "modules": modules,
            "saved": [name for name in adapter.saved if name not in adapter.non_weight_tensors],
            "parts": dict(adapter.non_weight_tensors),
            "notes": list(adapter.notes),
        }
        if subspace := subspace_of(adapter.updates):
            record["subspace"] = subspace.plan.to_json()
        files = [folder / "adapter_model.safetensors", folder / "adapter_config.json"]
        text = _json(record)
        write_safetensors(files[0], tensors, {"format": NAME, "schema": str(SCHEMA)})
        write_text(files[1], text)
        return files


def _entry(update: Update) -> dict[str, Any]:
    """What the record says of one update: its kind, scale and roles, and of the rest what is not as usual."""
    entry: dict[str, Any] = {"kind": update.kind, "scale": float(update.scale), "roles": list(update.roles)}
    drawn = {role: stored.to_json() for role, stored in update.roles.items() if isinstance(stored, Drawn)}
    projected = {role: stored.to_json() for role, stored in update.roles.items() if isinstance(stored, Projected)}
    given = {key: value for key, value in (("drawn", drawn), ("projected", projected)) if value}
    values = {key: getattr(update, key) for key in _PLAIN}
    rest = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    unusual = {key: value for key, value in rest.items() if values[key] != _PLAIN[key]}
    return {**entry, **given, **unusual}


def _update(name: str, entry: Any, ledger: Ledger, subspace: Subspace | None = None) -> Update:
    """One module's update. InputError where the record does not describe one."""
    here = f"modules.{name}"
    if not isinstance(entry, dict) or entry.keys() - {"kind", "scale", "roles", "drawn", "projected", *_PLAIN}:
        raise _wrong(
            here, preview(entry) if isinstance(entry, dict) else entry, "kind, scale, roles and what belongs to them"
        )
    kind, scale = _typed(entry, "kind", str, here), entry.get("scale")
    if not isinstance(scale, (int, float)) or isinstance(scale, bool) or not math.isfinite(scale):
        raise _wrong(f"{here}.scale", scale, "a number")
    kind_roles = kinds.get(kind).roles
    unknown = [role for role in _strings(entry, "roles", here) if role not in kind_roles]
    if unknown:
        raise _wrong(f"{here}.roles", preview(unknown), f"roles of a {kind} update: {', '.join(kind_roles)}")
    drawn = _typed(entry, "drawn", dict, here) if "drawn" in entry else {}
    projected = _typed(entry, "projected", dict, here) if "projected" in entry else {}
    if projected and subspace is None:
        raise _wrong(f"{here}.projected", projected, "a subspace in the record")

    def stored(role: str) -> Stored:
        if role in drawn:
            return Drawn.of_json(drawn[role], f"{here}.drawn.{role}")
        if role in projected and subspace is not None:
            return Projected.of_json(projected[role], subspace, f"{here}.projected.{role}")
        return _take(ledger, f"updates.{name}.{role}")

    roles = {role: stored(role) for role in entry["roles"]}
    return Update(name, kind, roles, float(scale), **_rest(entry, here))


def _subspace(record: Mapping[str, Any], saved: Mapping[str, Stored]) -> Subspace | None:
    """The random subspace that the file's coordinates span, where it has one."""
    if "subspace" not in record:
        return None
    if THETA not in saved:
        raise _wrong("parts", preview(saved), f"{THETA}, of which the record's subspace speaks")
    return Subspace(Plan.of_json(record["subspace"]), saved[THETA], saved.get(LAMBDA))


def _rest(entry: Mapping[str, Any], here: str) -> dict[str, Any]:
    """The fields of an update that are rarely there, each of the right type."""
    options: dict[str, Any] = {}
    for key in _PLAIN.keys() & entry.keys():
        value = entry[key]
        if key in ("transposed", "embedding"):
            valid = type(value) is bool
        elif key == "expert":
            valid = type(value) is int and value >= 0
        elif key == "base_weight":
            valid = type(value) is str
        else:
            sort = str if key == "notes" else int
            valid = type(value) is list and all(type(item) is sort for item in value)
        if not valid:
            raise _wrong(f"{here}.{key}", value, f"what lorascope writes there, such as {_PLAIN[key]!r}")
        options[key] = tuple(value) if isinstance(value, list) else value
    return options


def _record(bundle: Bundle) -> Mapping[str, Any]:
    if bundle.config is None:
        raise InputError(
            f"{bundle.path} is of lorascope's own format, and its adapter_config.json is missing",
            hint="put the adapter_config.json that was written with it next to it",
        )
    if bundle.config.get("format") != NAME:
        raise _wrong("format", bundle.config.get("format"), repr(NAME))
    if bundle.config.get("schema") != SCHEMA:
        raise InputError(
            f"{bundle.path} is of another version of lorascope's format",
            found=f"schema {bundle.config.get('schema')!r}",
            expected=SCHEMA,
            hint="read it with the lorascope it was written by, or a newer one",
        )
    return bundle.config


def _take(ledger: Ledger, key: str) -> Stored:
    if key not in ledger:
        raise InputError(f"adapter_config.json promises {key!r}, which the weights file does not hold")
    return ledger.take(key)


def _typed(values: Mapping[str, Any], key: str, sort: type, here: str = "") -> Any:
    value = values.get(key)
    if not isinstance(value, sort):
        raise _wrong(f"{here}.{key}".lstrip("."), value, f"a {sort.__name__}")
    return value


def _strings(values: Mapping[str, Any], key: str, here: str = "") -> tuple[str, ...]:
    """A list of different strings."""
    value = _typed(values, key, list, here)
    if not all(type(item) is str for item in value) or len(set(value)) < len(value):
        raise _wrong(f"{here}.{key}".lstrip("."), preview(value), "different strings")
    return tuple(value)


def _wrong(where: str, found: Any, expected: str) -> InputError:
    found = found if isinstance(found, str) else repr(found)
    return InputError(f"adapter_config.json: {where} is wrong", found=found[:200], expected=expected)


def _json(record: Mapping[str, Any]) -> str:
    try:
        return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError("this adapter's settings cannot be written as JSON", found=str(error)) from None


formats.register(NAME)(BaseParam())

SUPPORT = (Support("lorascope", "its own formula in float64, and the trained layer"),)
