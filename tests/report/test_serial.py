"""Blocks as JSON and back; nothing but blocks is ever built from JSON."""

import dataclasses
import json
from types import UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope import blocks
from lorascope.blocks import Block, Lines, Link, Series, Table
from lorascope.errors import InputError
from lorascope.report import serial
from tests.report import demo

BLOCKS = [cls for cls in vars(blocks).values() if isinstance(cls, type) and issubclass(cls, Block) and cls is not Block]
TEXT = st.text(max_size=8)


def values(hint) -> st.SearchStrategy:
    """Any value of an annotation."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(parts)
    if origin in (Union, UnionType):
        return st.one_of(*map(values, parts))
    if origin is tuple and parts[1:] == (...,):
        return st.lists(values(parts[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, parts))
    if dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint)
        return st.builds(hint, **{name: values(each) for name, each in hints.items()})
    plain = {str: TEXT, bool: st.booleans(), int: st.integers(-9, 9), type(None): st.none()}
    return plain[hint] if hint in plain else st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("cls", BLOCKS, ids=lambda cls: cls.__name__)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_block_comes_back_as_it_was(cls, data):
    block = data.draw(values(cls))
    text = json.dumps(serial.to_json([block]), allow_nan=False)
    assert serial.from_json(json.loads(text)) == (block,)


def test_a_whole_page_comes_back_as_it_was():
    page = demo.page()
    assert serial.from_json(json.loads(json.dumps(serial.to_json(page.blocks)))) == page.blocks


LINES = {"type": "Lines", "title": "t", "series": [], "x_label": "x", "y_label": "y"}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "not a block"),
        ("<script>", "not a block"),
        (None, "not a block"),
        ([], "not a block"),
        ({}, "unknown block"),
        ({"type": "Popen", "args": ["ls"]}, "unknown block"),
        ({"type": ["Table"]}, "unknown block"),
        ({"type": "dataclass"}, "unknown block"),
        ({"type": "Link", "text": "a", "file": "b"}, "not a block"),
        ({"type": "Text"}, "damaged"),
        ({"type": "Text", "text": "a", "more": 1}, "damaged"),
        ({"type": "Text", "text": 1}, "damaged"),
        ({"type": "Text", "text": {"type": "Text", "text": "a"}}, "damaged"),
        ({"type": "Heading", "text": "a", "level": True}, "damaged"),
        ({"type": "Text", "text": "a", "where": "nowhere"}, "damaged"),
        ({**LINES, "series": {"type": "Series"}}, "damaged"),
        ({**LINES, "series": [{"type": "Marker", "axis": "x", "value": 1, "label": ""}]}, "damaged"),
        ({**LINES, "markers": [[["x"]]]}, "damaged"),
        ({"type": "Facts", "items": [["a", "b", "c"]]}, "damaged"),
        ({"type": "Claims", "items": [{"type": "Claim", "text": "", "verdict": "yes", "source": "", "checks": []}]},
         "damaged"),
    ],
)  # fmt: skip
def test_what_is_no_block_is_refused(value, said):
    with pytest.raises(InputError, match=said) as refused:
        serial.from_json([value])
    assert len(str(refused.value)) < 600


def test_defaults_are_left_out():
    block = Lines("t", (Series("s", (1.0,), (None,)),), "x", "y")
    (found,) = serial.to_json([block])
    assert set(found) == {"type", "title", "series", "x_label", "y_label"}
    assert serial.to_json([Table((), ((Link("a", "b"),),))])[0]["rows"] == [
        [{"type": "Link", "text": "a", "file": "b"}]
    ]
