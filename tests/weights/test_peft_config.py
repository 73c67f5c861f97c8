"""What a PEFT config says of rank and scale: each family's defaults against PEFT's own, and values that are none."""

import dataclasses
import json
import math

import numpy as np
import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils.other import get_pattern_key

from lorascope.errors import InputError
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter
from lorascope.weights.formats.peft import tinker
from lorascope.weights.formats.peft.config import ScaleFields, parse_config
from lorascope.weights.formats.peft.rank_patterns import scale_fields
from lorascope.weights.formats.peft.recognise import all_families
from lorascope.weights.tensors import InMemory

PLAIN = {"peft_type": "LORA"}
TYPES = sorted((str(getattr(kind, "value", kind)), kind) for kind in PEFT_TYPE_TO_CONFIG_MAPPING)


@pytest.mark.parametrize("name", [name for name, _ in TYPES])
def test_what_a_config_leaves_out_is_what_peft_takes(name):
    """Of every family that reads rank or scale from the config; of a field that PEFT's has not, anything serves."""
    family = next((each for each in all_families() if name in each.peft_types), None)
    if family is None or family.scales is None:
        return
    usual = {field.name: field.default for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[dict(TYPES)[name]])}
    found = parse_config({"peft_type": name}, family.scales)
    assert found.rank == (usual.get(family.scales.rank) or found.rank)
    assert found.alpha == (usual.get(family.scales.alpha) or found.alpha)


@pytest.mark.parametrize(
    ("config", "is_tinkers"),
    [
        (None, False), ({}, False), ({"r": 4}, False), ({"lora_alpha": 4}, False), ({"r": 4, "lora_alpha": 4}, True),
        ({"r": 4, "lora_alpha": 4, "peft_type": "LORA"}, False), ({"r": 4, "lora_alpha": 4, "peft_type": None}, False),
    ],
)  # fmt: skip
def test_a_config_without_a_type_is_tinkers_where_it_says_rank_and_scale(config, is_tinkers):
    assert tinker.is_tinkers(config) == is_tinkers
    assert tinker.with_type(config) == ({"peft_type": "LORA", **config} if is_tinkers else config)


def test_a_bare_file_has_scale_one():
    bare = parse_config(None, ScaleFields())
    assert (bare.given, bare.peft_type, bare.scale_of("q", 4)) == (False, "", 1.0)


def test_patterns_count_where_the_family_has_them():
    raw = PLAIN | {"r": 4, "lora_alpha": 6, "rank_pattern": {"q": 2}, "alpha_pattern": {"q": 10}, "use_rslora": True}
    of_modules = parse_config(raw, ScaleFields(rslora=True))
    assert [of_modules.rank_of(name) for name in ("l.q", "l.v")] == [2, 4]
    assert [of_modules.scale_of(name, 4) for name in ("l.q", "l.v")] == [5, 3]
    without = parse_config(raw, ScaleFields(patterns=False))
    assert (without.rank_of("l.q"), without.scale_of("l.q", 4)) == (4, 1.5)
    unknown = parse_config({"peft_type": "later", "r": "x", "lora_alpha": []}, None)
    assert (unknown.peft_type, unknown.given, unknown.rank) == ("LATER", True, 1)


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("value", [1, 2, 0, -1, 1.5, True, "2", None, math.nan, math.inf, [2]])
def test_which_numbers_a_pattern_may_have(field, value):
    """Whole ranks from 1 on, any finite α."""
    raw = PLAIN | {field: {"q": value}}
    is_rank = type(value) is int and value > 0
    is_alpha = type(value) in (int, float) and math.isfinite(value)
    if is_rank if field == "rank_pattern" else is_alpha:
        assert getattr(parse_config(raw, ScaleFields()), field).get("l.q", 7) == value
    else:
        with pytest.raises(InputError, match=rf"{field}\['q'\] is not a {'rank' if 'rank' in field else 'number'}"):
            parse_config(json.loads(json.dumps(raw)), ScaleFields())


def test_ranks_are_whole_and_positive():
    assert parse_config(PLAIN | {"r": 3.0}, ScaleFields()).rank == 3
    for wrong in (0, -1, 2.5):
        with pytest.raises(InputError, match="the rank is not a positive integer"):
            parse_config(PLAIN | {"r": wrong}, ScaleFields())
    with pytest.raises(InputError, match="has no peft_type"):
        parse_config({"r": 4}, ScaleFields())


def fields_of(ranks, settings=()):
    """What is written of modules with these ranks, whose scale is 0.5."""
    roles = {name: {"A": InMemory(np.ones((r, 4))), "B": InMemory(np.ones((4, r)))} for name, r in ranks.items()}
    updates = {name: Update(name, "low_rank", roles[name], scale=0.5) for name in ranks}
    adapter = Adapter(updates, dict(settings))
    return scale_fields(adapter, [(updates[name], r) for name, r in ranks.items()], ScaleFields(rslora=True))


@pytest.mark.parametrize(
    "ranks",
    [
        {"l.q": 2, "l.v": 2, "l.o": 3},
        {"l.q": 3, "enc.l.q": 2, "l.v": 2},  # the path of one is the end of the other's
        {"l.q": 3, "enc.l.q": 4, "dec.l.q": 5, "l.v": 2, "l.o": 2},
        {"l.q": 3, "enc.l.q": 3, "l.v": 2, "l.o": 2, "l.u": 2},
        {"l_q": 3, "l.q": 2, "l-q": 4, "v": 2, "o": 2},  # a dot matches any character
        {"q": 3, "l.q": 2, "v": 2},
        {"a (b)": 3, "l.q": 2, "v": 2},
    ],
)
def test_what_is_written_gives_every_module_its_rank_and_scale(ranks):
    """By our reading and by PEFT's own rule."""
    written = json.loads(json.dumps(fields_of(ranks), sort_keys=True))
    config = parse_config(PLAIN | written, ScaleFields(rslora=True))
    for name, rank in ranks.items():
        assert (config.rank_of(name), config.scale_of(name, rank)) == (rank, 0.5)
        pattern = written["rank_pattern"]
        assert pattern.get(get_pattern_key(pattern.keys(), name), written["r"]) == rank


def test_a_pattern_names_what_differs_and_no_more():
    assert fields_of({"l.q": 3, "l.v": 2, "l.o": 2}) == {
        "r": 2, "lora_alpha": 1, "rank_pattern": {"l.q": 3}, "alpha_pattern": {"l.q": 1.5}, "use_rslora": False
    }  # fmt: skip
    assert fields_of({"l.q": 3, "enc.l.q": 3, "v": 2, "o": 2, "u": 2})["rank_pattern"] == {"l.q": 3, "enc.l.q": 3}
    kept = {"r": 8, "lora_alpha": 4, "rank_pattern": {"q": 3}, "alpha_pattern": {"q": 1.5}}
    assert fields_of({"l.q": 3, "l.v": 8}, kept) == kept  # the settings' own, where they give the same
    assert fields_of({"l.q": 4, "l.v": 8}, kept)["rank_pattern"] != kept["rank_pattern"]
    assert fields_of({"l.q": 4}, {"use_rslora": True}) == {
        "r": 4, "lora_alpha": 1, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": True
    }  # fmt: skip
