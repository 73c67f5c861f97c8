"""Frozen dataclasses from nested dictionaries, and back. Every wrong key is reported, at once.

The fields are the keys and their annotations are the types; msgspec checks each value against its annotation. A whole
section is not given to msgspec, which stops at the first mistake and takes no unknown key for one.
"""

import dataclasses
import difflib
import math
import numbers
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from lorascope.errors import LorascopeError

MAX = 2**31 - 1  # of sizes, steps and counts
MAX_SEED = 2**63 - 1
NAMES = {int: "whole number", float: "number", str: "string"}


class Wrong(ValueError):
    """A value that does not fit its type; the message says what would."""


def build(cls: type, values: object, where: str, problems: list[str], aliases: Mapping[str, str] | None = None) -> Any:
    """An instance of the dataclass `cls` from the mapping `values`; None where anything in it is wrong.

    Args:
        where: the dotted path of this section, "" at the root.
        problems: one sentence is appended for each unknown, missing or ill-typed key.
        aliases: other names of fields, each to the field's own.
    """
    return build_together([cls], values, where, problems, aliases)[0]


def build_together(
    classes: Sequence[type],
    values: object,
    where: str,
    problems: list[str],
    aliases: Mapping[str, str] | None = None,
) -> list[Any]:
    """Instances of several dataclasses whose fields are the keys of one section; see `build`."""
    if not isinstance(values, Mapping):
        problems.append(f"{where or 'the config'} is {shown(values)} and not a section of keys")
        return [None] * len(classes)
    fields = [field.name for cls in classes for field in dataclasses.fields(cls) if field.init]
    spelled = _spellings(values, fields, where, problems, aliases or {})
    return [_instance(cls, values, spelled, where, problems) for cls in classes]


def _spellings(
    values: Mapping[Any, Any], fields: Sequence[str], where: str, problems: list[str], aliases: Mapping[str, str]
) -> dict[str, Any]:
    """The key in `values` of each field that is given."""
    also = [alias for alias, field in aliases.items() if field in fields]
    spelled: dict[str, Any] = {}
    for key in values:
        field = key if key in fields else aliases.get(key)
        if field is None or field not in fields:
            problems.append(unknown(dotted(where, key), key, fields, also))
        elif field in spelled:
            problems.append(f"{dotted(where, spelled[field])} and {dotted(where, key)} are the same setting")
        else:
            spelled[field] = key
    return spelled


def _instance(cls: type, values: Mapping[Any, Any], spelled: Mapping[str, Any], where: str, problems: list[str]) -> Any:
    before, arguments = len(problems), {}
    hints = typing.get_type_hints(cls)
    for field in (each for each in dataclasses.fields(cls) if each.init):
        if field.name in spelled:
            key = spelled[field.name]
            arguments[field.name] = _value(hints[field.name], values[key], dotted(where, key), problems)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{dotted(where, field.name)} is missing")
    if len(problems) > before:
        return None
    try:
        return cls(**arguments)
    except (ValueError, LorascopeError) as error:  # the section's own check, in __post_init__
        problems.append(f"{where}: {error}" if where else str(error))
        return None


def _value(hint: Any, value: object, path: str, problems: list[str]) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, path, problems)
    try:
        converted = convert(hint, value)
        _check_bounded(converted, path)
    except Wrong as error:
        problems.append(f"{path} is {shown(value)} and must be {error}")
        return None
    return converted


def _check_bounded(value: Any, path: str) -> None:
    """`Wrong` where a number is not finite, or an integer is larger than any size can be."""
    if isinstance(value, float) and not math.isfinite(value):
        raise Wrong("a finite number")
    largest = MAX_SEED if path.endswith(("seed", "key")) else MAX
    if isinstance(value, int) and abs(value) > largest:
        raise Wrong(f"a whole number of at most {largest:,}")
    for each in value if isinstance(value, tuple) else ():
        _check_bounded(each, path)


def convert(hint: Any, value: object) -> Any:
    """`value` as the annotated type: a list becomes a tuple, a whole number a float, numpy's numbers Python's.

    A number may be written as a string, since YAML reads `1e-3` as one; nothing else is coerced.

    Raises:
        Wrong: the value does not fit; the message says what would.
    """
    if isinstance(value, numbers.Number) and type(value) not in (bool, int, float):
        item = getattr(value, "item", None)
        value = item() if item is not None else value
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError:
        options = typing.get_args(hint) or (hint,)
        if isinstance(value, str) and float in options:
            try:
                return float(value)
            except ValueError:
                pass
        raise Wrong(in_words(hint)) from None


def in_words(hint: Any) -> str:
    """What fits an annotation: "a whole number or null"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(in_words, arguments))
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (tuple, list):
        return f"a list of {NAMES.get(arguments[0], str(arguments[0]))}s"
    if hint is bool:
        return "true or false"
    if hint is type(None):
        return "null"
    return f"a {NAMES[hint]}" if hint in NAMES else "a mapping" if dict in (hint, origin) else str(hint)


def shown(value: object) -> str:
    """The value as the reader typed it, kept short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def dotted(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def unknown(path: str, key: object, known: Sequence[str], also: Sequence[str] = ()) -> str:
    """A sentence on an unknown key, with the nearest known one (or one of `also`), or all that are known."""
    near = difflib.get_close_matches(str(key), [*known, *also], n=1)
    return f"{path} is unknown (" + (f"did you mean {near[0]}?)" if near else "known: " + ", ".join(known) + ")")


def dump(section: Any) -> Any:
    """The tree as nested dictionaries and lists: plain YAML and JSON types."""
    if dataclasses.is_dataclass(section) and not isinstance(section, type):
        return {field.name: dump(getattr(section, field.name)) for field in dataclasses.fields(section) if field.init}
    if isinstance(section, Mapping):
        return {key: dump(value) for key, value in section.items()}
    if isinstance(section, list | tuple):
        return [dump(item) for item in section]
    return section
