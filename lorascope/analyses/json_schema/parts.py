"""What JSON schemas are made of: objects of exactly these keys, lists, numbers that may be null, dataclasses."""

import dataclasses
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lorascope.analyses.rules import RULES

Schema = dict[str, Any]
ANY: Schema = {}
OBJECT: Schema = {"type": "object"}
TEXT, COUNT, NUMBER = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": ["number", "null"]}
FLAG, INTEGER = {"type": "boolean"}, {"type": ["integer", "null"]}
TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
RANK: Schema = {"type": ["integer", "null"], "minimum": 0}


def closed(properties: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """An object of exactly these keys, the optional ones as they come."""
    more = dict(optional or {})
    return {
        "type": "object", "properties": {**properties, **more}, "required": list(properties),
        "additionalProperties": False,
    }  # fmt: skip


def numbers(*keys: str) -> dict[str, Schema]:
    """These keys, each a number or null."""
    return dict.fromkeys(keys, NUMBER)


def listed(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def by_name(values: Schema) -> Schema:
    """An object whose keys depend on the input: names of modules, of adapters, of settings."""
    return {"type": "object", "additionalProperties": values}


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def of(hint: Any) -> Schema:
    """The schema of an annotation: plain types, unions, tuples, mappings, literals, dataclasses."""
    origin, arguments = get_origin(hint), get_args(hint)
    plain = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
    if hint in plain:
        return {"type": plain[hint]}
    if origin in (Union, types.UnionType):
        return {"anyOf": [of(each) for each in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (tuple, list):
        if arguments[1:] == (...,) or origin is list:
            return listed(of(arguments[0]))
        return {"type": "array", "prefixItems": [of(each) for each in arguments], "minItems": len(arguments),
                "maxItems": len(arguments)}  # fmt: skip
    if dataclasses.is_dataclass(hint):
        return closed(fields(hint))
    if origin is not None and issubclass(origin, Mapping):
        return by_name(of(arguments[1]))
    return ANY


def fields(cls: Any, without: Iterable[str] = ()) -> dict[str, Schema]:
    """The fields of a dataclass, by their annotations."""
    hints = get_type_hints(cls)
    return {field.name: of(hints[field.name]) for field in dataclasses.fields(cls) if field.name not in without}


FINDING = closed({
    "severity": {"enum": ["error", "warning", "note"]}, "rule": {"enum": list(RULES)},
    "rule_name": {"enum": [rule.name for rule in RULES.values()]}, "module": TEXT_OR_NULL, "modules": listed(TEXT),
    "text": TEXT, "action": TEXT_OR_NULL, "command": TEXT_OR_NULL,
})  # fmt: skip
SKIPPED = closed({"name": TEXT, "reason": TEXT}, {"stage": TEXT, "adapter": TEXT})
