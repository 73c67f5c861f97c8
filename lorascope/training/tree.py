"""A tree of frozen dataclasses from nested dictionaries, and back. Every wrong key is reported, at once.

The fields are the keys and their annotations are the types: `int`, `float`, `str`, `bool`, `Literal[...]`,
`tuple[T, ...]`, `X | None`, and a dataclass for a section.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from lorascope.errors import LorascopeError

MAX = 2**31 - 1  # of sizes, steps and counts
MAX_SEED = 2**63 - 1


class Wrong(ValueError):
    """A value that does not fit its type; the message says what would."""


def build(cls: type, values: object, where: str, problems: list[str]) -> Any:
    """An instance of the dataclass `cls` from the mapping `values`; None where anything in it is wrong.

    Args:
        where: the dotted path of this section, "" at the root.
        problems: one sentence is appended for each unknown, missing or ill-typed key.
    """
    if not isinstance(values, Mapping):
        problems.append(f"{where or 'the config'} is {shown(values)} and not a section of keys")
        return None
    before = len(problems)
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in values:
        if key not in fields:
            problems.append(unknown(dotted(where, key), key, fields))
    arguments = {}
    for name, field in fields.items():
        path = dotted(where, name)
        if name in values:
            arguments[name] = _value(hints[name], values[name], path, problems)
        elif dataclasses.is_dataclass(hints[name]) and field.default_factory is not dataclasses.MISSING:
            continue
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{path} is missing")
    if len(problems) > before:
        return None
    try:
        return cls(**arguments)
    except (ValueError, LorascopeError) as error:  # the section's own check, in __post_init__
        problems.append(f"{where or 'the config'}: {error}")
        return None


def _value(hint: Any, value: object, path: str, problems: list[str]) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, path, problems)
    try:
        found = convert(hint, value)
        _check_bounded(found, path)
    except Wrong as error:
        problems.append(f"{path} is {shown(value)} and must be {error}")
        return None
    return found


def _check_bounded(value: Any, path: str) -> None:
    """`Wrong` where a number is not finite, or an integer is larger than any size can be."""
    if isinstance(value, float) and not math.isfinite(value):
        raise Wrong("a finite number")
    most = MAX_SEED if path.endswith(("seed", "key")) else MAX
    if isinstance(value, int) and abs(value) > most:
        raise Wrong(f"a whole number of at most {most:,}")
    for each in value if isinstance(value, tuple) else ():
        _check_bounded(each, path)


def convert(hint: Any, value: object) -> Any:
    """`value` as the annotated type. Raises `Wrong` with what was expected.

    A number may be written as a string of one, since YAML reads `1e-3` as a string; nothing else is coerced.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        return _union(arguments, value)
    if origin is Literal:
        if value in arguments:
            return value
        raise Wrong("one of " + ", ".join(map(str, arguments)))
    if origin in (tuple, list):
        try:
            if isinstance(value, list | tuple):
                return tuple(convert(arguments[0], item) for item in value)
        except Wrong:
            pass
        raise Wrong(f"a list of {plain(arguments[0])}s")
    if origin in (dict, Mapping) or hint is dict:
        if isinstance(value, Mapping):
            return dict(value)
        raise Wrong("a mapping")
    if hint is float and isinstance(value, str | int) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            raise Wrong("a number") from None
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise Wrong(plain(hint, article=True))


def _union(arguments: tuple, value: object) -> Any:
    expected = []
    for argument in arguments:
        if argument is type(None):
            if value is None:
                return None
            expected.append("null")
            continue
        try:
            return convert(argument, value)
        except Wrong as error:
            expected.append(str(error))
    raise Wrong(" or ".join(expected))


def plain(hint: Any, article: bool = False) -> str:
    names = {int: "whole number", float: "number", str: "string", bool: "true or false"}
    name = names.get(hint, str(hint))
    return f"a {name}" if article and hint is not bool else name


def shown(value: object) -> str:
    """The value as the reader typed it, kept short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def dotted(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def unknown(path: str, key: object, known: typing.Iterable[str]) -> str:
    """A sentence on an unknown key, with the nearest known one or all of them."""
    known = list(known)
    near = difflib.get_close_matches(str(key), known, n=1)
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
