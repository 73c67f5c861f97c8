"""Blocks as JSON and back, so that a page can be drawn again from a file, anywhere, without what made it."""

import dataclasses
import math
import types
from collections.abc import Iterable
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lorascope import blocks
from lorascope.blocks import Block
from lorascope.errors import InputError

_TYPES: dict[str, type] = {
    name: cls for name, cls in vars(blocks).items() if isinstance(cls, type) and dataclasses.is_dataclass(cls)
}


def to_json(items: Iterable[Block]) -> list[Any]:
    """JSON types only: an object with `type` for each dataclass, defaults left out."""
    return [_plain(block) for block in items]


def from_json(values: Iterable[Any]) -> tuple[Block, ...]:
    """What `to_json` gave. InputError where it is something else: nothing but blocks is ever built."""
    try:
        found = tuple(_built(value) for value in values)
    except RecursionError:
        raise InputError("a page is nested too deep") from None
    if wrong := [each for each in found if not isinstance(each, Block)]:
        raise InputError("a page holds something that is not a block", found=type(wrong[0]).__name__)
    return found


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        changed = {
            f.name: getattr(value, f.name) for f in dataclasses.fields(value) if getattr(value, f.name) != f.default
        }
        return {"type": type(value).__name__} | {name: _plain(each) for name, each in changed.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _built(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_built(each) for each in value)
    if not isinstance(value, dict):
        return value
    cls = _TYPES.get(str(value.get("type")))
    if cls is None:
        raise InputError(
            "a page holds an unknown block", found=repr(value.get("type"))[:60], expected=", ".join(_TYPES)
        )
    try:
        made = cls(**{name: _built(each) for name, each in value.items() if name != "type"})
    except TypeError as error:
        raise InputError(f"a {cls.__name__} of the page is damaged", found=str(error)[:120]) from None
    for name, hint in _hints(cls).items():
        if not _fits(getattr(made, name), hint):
            raise InputError(
                f"a {cls.__name__} of the page is damaged", found=f"{repr(getattr(made, name))[:60]} as its {name}"
            )
    return made


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is what a field's annotation says: blocks hold tuples, unions, words and plain types alone."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in parts)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if parts[1:] == (...,):
            return all(_fits(each, parts[0]) for each in value)
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return isinstance(value, hint)
    return type(value) is (hint or type(None))
