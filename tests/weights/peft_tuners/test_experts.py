"""Factors of the experts of a layer: which they are, and of which parameter."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorascope.errors import InputError
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.formats.peft import (
    experts,
)
from lorascope.weights.formats.peft.family import Context, Group
from lorascope.weights.formats.peft.keys import Key
from lorascope.weights.formats.peft.recognise import read_config
from lorascope.weights.tensors import InMemory


def config(peft_type="LORA", **raw):
    return read_config({"peft_type": peft_type, **raw})


def array(*shape):
    return InMemory(np.random.default_rng(0).standard_normal(shape).astype("f4"))


def group(module, *, wrapped=0, **shapes):
    keys = {role: Key(f"{module}.{role}", module, role, None, "", wrapped) for role in shapes}
    return Group(module, wrapped, keys, {role: array(*shape) for role, shape in shapes.items()})


def context(config, base=None):
    return Context(config, base, [])


def base_of(folder, config=None, **shapes):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ones(shape, "f4") for name, shape in shapes.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config or {}))
    return open_checkpoint(folder)


@pytest.mark.parametrize(
    ("module", "a", "b", "raw", "found"),
    [
        ("l.experts", (6, 4), (5, 6), {"r": 2}, True),
        ("l.experts", (6, 4), (5, 7), {"r": 2}, False),
        ("l.experts", (0, 4), (5, 0), {"r": 2}, False),
        ("l.experts.down", (6, 4), (5, 6), {"r": 2}, True),
        ("l.experts.down", (6, 4), (5, 6), {"r": 6}, False),
        ("l.experts.down", (6, 4), (5, 6), {"r": 4}, False),
        ("l.experts.down", (6, 4), (5, 6), None, False),
        ("l.experts.0.down", (6, 4), (5, 6), {"r": 2}, False),
        ("l.mlp", (6, 4), (5, 6), {"r": 2}, False),
        ("l.mlp", (6, 4), (5, 6), {"r": 2, "target_parameters": ["mlp.weight"]}, True),
        ("l.mlp", (6, 4), (5, 6), {"r": 2, "target_parameters": ["lp.weight"]}, False),
        ("l.mlp", (3, 2, 4), (3, 5, 2), {"r": 2}, True),  # upright
        ("l.mlp", (3, 4, 2), (3, 2, 5), {"r": 2}, True),  # axes swapped
        ("l.mlp", (3, 2, 4), (3, 5, 3), {"r": 2}, False),
        ("l.mlp", (3, 4, 2), (3, 3, 1), {"r": 3}, False),  # a convolution: A (r, c_in, k), B (d_out, r, 1)
        ("l.mlp", (3, 1, 2), (3, 3, 1), {"r": 3}, False),
        ("l.experts.conv", (3, 4, 2), (3, 3, 1), {"r": 3}, True),
        ("l.mlp", (3, 2, 4), (5, 6), {"r": 2}, False),
    ],
)
def test_which_factors_are_experts(module, a, b, raw, found):
    given = read_config(None) if raw is None else config(**raw)
    assert experts.are_experts(group(module, lora_A=a, lora_B=b), given) is found
    assert experts.are_experts(group(module, lora_A=a), given) is False
    assert experts.are_experts(group(module, lora_B=b), given) is False


@pytest.mark.parametrize("count", [1, 3])
def test_experts_in_three_axes(count):
    given = context(config(r=2, lora_alpha=6))
    ((_, updates),) = experts.read_experts([group("l.experts.x", lora_A=(count, 2, 4), lora_B=(count, 5, 2))], given)
    assert [(update.name, update.scale, update.expert) for update in updates] == [
        (f"l.experts.x[{e}]", 3.0, e) for e in range(count)
    ]
    assert given.notes == [experts.THREE_AXES]
    list(experts.read_experts([group("l.experts.y", lora_A=(count, 2, 4), lora_B=(count, 5, 2))], given))
    assert given.notes == [experts.THREE_AXES]  # once
    with pytest.raises(InputError, match="experts with more than A and B"):
        list(
            experts.read_experts([group("l.experts.x", lora_A=(1, 2, 4), lora_B=(1, 5, 2), lora_magnitude=(5,))], given)
        )
    for a, b in (((3, 2, 4), (5, 6)), ((6, 4), (3, 5, 3))):
        with pytest.raises(InputError, match=r"the factors of the experts of l\.experts\.x do not fit"):
            list(experts.read_experts([group("l.experts.x", lora_A=a, lora_B=b)], given))


@pytest.mark.parametrize(
    ("shapes", "found"),
    [
        ({"l.experts.down_proj": (3, 5, 4)}, "l.experts.down_proj"),
        ({"l.experts.down_proj": (3, 4, 5)}, "l.experts.down_proj"),
        ({"l.experts.down_proj": (3, 5, 9)}, "l.experts.gate_up_proj"),
        ({"l.experts.gate_up_proj": (3, 5, 4), "l.experts.down_proj": (3, 5, 4)}, "l.experts.gate_up_proj"),
    ],
)
def test_a_parameter_of_experts_is_guessed_by_the_base_s_shapes(shapes, found, tmp_path):
    """Where one alone fits; else it is the one that models have first."""
    given = context(config(r=2), base_of(tmp_path, **shapes))
    wrapper = group("l.experts", lora_A=(6, 4), lora_B=(5, 6))
    ((_, updates),) = experts.read_experts([wrapper], given)
    assert [update.base_weight for update in updates] == ([found] * 3 if "gate" not in found else [GUESSED] * 3)
    assert len(given.notes) == 1


def test_two_parameters_of_experts_are_told_apart_by_the_base_s_shapes(tmp_path):
    """Without a base, and where the shapes say nothing else, the inner wrapper is of what models have first."""
    wrappers = [
        group("l.experts", wrapped=wrapped, lora_A=(6, d_in), lora_B=(d_out, 6))
        for wrapped, d_out, d_in in ((0, 7, 4), (1, 5, 4))
    ]
    in_order = {"l.experts.gate_up_proj": (3, 5, 4), "l.experts.down_proj": (3, 7, 4)}
    turned = {"l.experts.gate_up_proj": (3, 7, 4), "l.experts.down_proj": (3, 5, 4)}
    for shapes, first in ((None, "gate_up_proj"), (in_order, "gate_up_proj"), (turned, "down_proj")):
        given = context(config(r=2), base_of(tmp_path / str(first), **shapes) if shapes else None)
        found = {each.wrapped: updates for each, updates in experts.read_experts(wrappers, given)}
        assert [update.base_weight for update in found[1]] == [f"l.experts.{first}"] * 3
        assert {update.base_weight for update in found[0]} == {
            f"l.experts.{'down_proj' if first == 'gate_up_proj' else 'gate_up_proj'}"
        }


GUESSED = f"l.experts.{experts.USUAL_EXPERT_PARAMETERS[1][0]}" if 1 in experts.USUAL_EXPERT_PARAMETERS else "l.experts"
