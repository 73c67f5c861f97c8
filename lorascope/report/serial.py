"""Blocks as JSON and back, so that a page can be drawn again from a file, anywhere, without what made it."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from lorascope import blocks
from lorascope.blocks import Block
from lorascope.errors import InputError

_TYPES = {name: cls for name, cls in vars(blocks).items() if dataclasses.is_dataclass(cls)}


def to_json(items: Iterable[Block]) -> list[Any]:
    """JSON types only: an object with `type` for each dataclass, defaults left out."""
    return [_plain(block) for block in items]


def from_json(values: Iterable[Any]) -> tuple[Block, ...]:
    """What `to_json` gave. InputError where it is something else: nothing but blocks is ever built."""
    found = tuple(_built(value) for value in values)
    if wrong := [each for each in found if not isinstance(each, Block)]:
        raise InputError("a page holds something that is no block", found=type(wrong[0]).__name__)
    return found


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        own = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if getattr(value, f.name) != f.default}
        return {"type": type(value).__name__} | {name: _plain(each) for name, each in own.items()}
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
        return cls(**{name: _built(each) for name, each in value.items() if name != "type"})
    except TypeError as error:
        raise InputError(f"a {cls.__name__} of the page is damaged", found=error) from None
