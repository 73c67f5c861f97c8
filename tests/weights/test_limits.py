"""What readers of files refuse, guess and allow, at the values where that changes."""

import math

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorascope.errors import InputError
from lorascope.updates.base import MAX_EXPANDED, Update
from lorascope.weights.adapter import Adapter
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.formats import bottlenecks, gguf, jax, key_groups, kohya, loralib, nemo, rotations
from lorascope.weights.formats.base import Bundle, Ledger
from lorascope.weights.formats.peft import experts, layernorm, merged_linear, places, rank_patterns, tinker, vera
from lorascope.weights.formats.peft.config import ScaleFields, parse_config
from lorascope.weights.formats.peft.family import Group
from lorascope.weights.formats.peft.keys import Key
from lorascope.weights.tensors import InMemory


def array(*shape):
    return InMemory(np.random.default_rng(0).standard_normal(shape))


def group(module, wrapped=0, **shapes):
    keys = {role: Key(f"{module}.{role}", module, role, None, "", wrapped) for role in shapes}
    return Group(module, wrapped, keys, {role: array(*shape) for role, shape in shapes.items()})


def update(name, kind, scale=1.0, base_weight=None, **shapes):
    return Update(name, kind, {role: array(*shape) for role, shape in shapes.items()}, scale, base_weight=base_weight)


def test_indices_are_whole_numbers_below_a_bound():
    assert places.whole_numbers(np.array([0.0, 3.0]), 4, "it").tolist() == [0, 3]
    for bad in (-1.0, 4.0, 0.5, np.nan, np.inf, -np.inf):
        with pytest.raises(InputError, match=r"it holds .* which is not an index.*0 to 3"):
            places.whole_numbers(np.array([1.0, bad]), 4, "it")


def test_a_matrix_that_no_base_shows_is_as_large_as_may_be():
    places.refuse_unseen("m", (2, MAX_EXPANDED // 2))
    with pytest.raises(InputError, match="pass --base"):
        places.refuse_unseen("m", (1, MAX_EXPANDED + 1))


def test_blocks_of_a_merged_linear_are_a_list_of_flags():
    def enabled(value):
        return merged_linear.enabled(parse_config({"peft_type": "LORA", "enable_lora": value}, None))

    assert enabled([True, False]) == (True, False)
    assert enabled(None) == enabled(False) == ()
    for bad in ([False, False], [], [True, 1], "x", True, {"a": True}):
        with pytest.raises(InputError, match="list of true and false"):
            enabled(bad)


def test_norms_are_written_as_pefts_and_nothing_else_is():
    """The parameter's name is the update's where it does not say of which weight it is."""
    norms = {
        "l.0.norm.weight": update("l.0.norm.weight", "tuned", tuned=(7, 1)),
        "other": update("other", "tuned", base_weight="l.1.norm.bias", tuned=(5, 1)),
    }
    tensors, modules = layernorm.norm_keys(norms)
    assert modules == ["l.0.norm", "l.1.norm"]
    assert {key: stored.shape for key, stored in tensors.items()} == {
        "base_model.model.l.0.norm.ln_tuning_layers.weight": (7,),
        "base_model.model.l.1.norm.ln_tuning_layers.bias": (5,),
    }
    for bad in (
        update("n.weight", "tuned", tuned=(7, 2)),
        update("n.weight", "tuned", 2.0, tuned=(7, 1)),
        update("n.gain", "tuned", tuned=(7, 1)),
    ):
        with pytest.raises(InputError, match="norms only"):
            layernorm.norm_keys({bad.name: bad})


@pytest.mark.parametrize(
    ("gate_up", "down", "first"),
    [
        ((2, 10, 6), (2, 6, 5), "gate_up_proj"),
        ((2, 6, 10), (2, 5, 6), "gate_up_proj"),
        ((2, 6, 5), (2, 10, 6), "down_proj"),
        ((2, 6, 5), None, "down_proj"),
        (None, (2, 10, 6), "down_proj"),
        ((2, 10, 6), None, "gate_up_proj"),
        (None, None, "gate_up_proj"),
        ((2, 10, 6), (2, 10, 6), None),
        ((2, 10, 6), (2, 9, 6), None),
        ((2, 9, 6), None, None),
    ],
)
def test_the_base_s_shapes_tell_which_parameter_a_wrapper_is_of(gate_up, down, first, tmp_path):
    """The first wrapper is of (10, 6), the second of (6, 5). What the base does not have may be either."""
    wrappers = [
        group("m.experts", 1, lora_A=(4, 6), lora_B=(10, 4)),
        group("m.experts", 0, lora_A=(4, 5), lora_B=(6, 4)),
    ]
    stored = {"m.experts.gate_up_proj": gate_up, "m.experts.down_proj": down, "m.other": (1,)}
    tensors = {name: np.zeros(shape, "f4") for name, shape in stored.items() if shape is not None}
    save_file(tensors, tmp_path / "m.safetensors")
    base = open_checkpoint(tmp_path / "m.safetensors")
    if first is None:
        with pytest.raises(InputError, match="does not fit the adapter"):
            experts._by_shape(wrappers, ["gate_up_proj", "down_proj"], base)
    else:
        assert experts._by_shape(wrappers, ["gate_up_proj", "down_proj"], base)[0] == first


def test_widths_of_a_header_that_are_none():
    for text in (
        "{",
        "[1]",
        '{"m": 0}',
        '{"m": "3"}',
        '{"m": 1.5}',
        '{"m": true}',
        '{"m": 3, "n": 0}',
        f'{{"m": {1 << 48}}}',
    ):
        assert vera.widths_of({vera.WIDTHS: text}) == {}
    assert vera.widths_of({}) == {}
    most = (1 << 48) - 1
    assert vera.widths_of({vera.WIDTHS: f'{{"m": {most}, "n": 1}}'}) == {"m": most, "n": 1}


def test_a_key_that_peft_draws_these_projections_from():
    a, b = vera.draw_projections(3, 2, 5, 7)
    assert (a.shape, b.shape) == ((2, 5), (7, 2))
    assert np.abs(a).max() <= math.sqrt(6 / 5)
    assert np.abs(b).max() <= math.sqrt(6 / 2)
    assert vera._is_draw(3, a, b)
    assert vera._is_draw(0, *vera.draw_projections(0, 2, 5, 7))
    for key in (4, True, 3.0, "3", None, -1, 1 << 63):
        assert not vera._is_draw(key, a, b)
    assert not vera._is_draw(3, a + 1, b)
    assert not vera._is_draw(3, a, b + 1)


@pytest.mark.parametrize(
    ("outputs", "one_width"),
    [
        ({"l.0.q_proj": 4, "l.1.q_proj": 4, "l.0.v_proj": 2}, True),
        ({"l.0.q_proj": 4, "l.1.q_proj": 5}, False),
        ({"l.0.q_proj": 4, "l.1.q_proj": 5, "l.0.v_proj": 2}, False),
        ({"l.0.down_proj": 4, "l.1.down_proj": 4}, True),
        ({"l.0.down_proj": 4, "l.0.q_proj": 4}, False),
    ],
)
def test_modules_that_all_read_the_hidden_state(outputs, one_width):
    groups = [group(module, vera_lambda_b=(size,), vera_lambda_d=(3,)) for module, size in outputs.items()]
    assert vera._all_read_hidden(groups) is one_width


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_alpha_and_rank_give_every_module_its_scale(rslora, known):
    """Settings that do are kept, others are made: read again they say the same ranks and scales."""
    fields = ScaleFields(default_rank=8, alpha="lora_alpha", rslora=True)
    divisor = (lambda r: math.sqrt(r)) if rslora else (lambda r: r)
    ranked = [
        (update(n, "low_rank", 16 / divisor(r), A=(r, 5), B=(6, r)), r) for n, r in (("a", 4), ("b", 4), ("c", 2))
    ]
    settings = {"use_rslora": rslora}
    if known:
        settings |= {"r": 4, "lora_alpha": 16, "rank_pattern": {"c": 2}}
    found = rank_patterns.scale_fields(Adapter({u.name: u for u, _ in ranked}, settings), ranked, fields)
    assert (found["r"], found["lora_alpha"], found["rank_pattern"]) == (4, 16, {"c": 2})
    assert ("alpha_pattern" in found) != known
    config = parse_config({"peft_type": "LORA", **found}, fields)
    for one, rank in ranked:
        assert (config.rank_of(one.name), config.scale_of(one.name, rank)) == (rank, one.scale)
    wrong = {**settings, "r": 4, "lora_alpha": 17, "rank_pattern": {"c": 2}}
    assert rank_patterns.scale_fields(Adapter({}, wrong), ranked, fields)["lora_alpha"] == 16
    without_rank = {key: value for key, value in wrong.items() if key != "r"}
    assert rank_patterns.scale_fields(Adapter({}, without_rank), ranked, fields)["r"] == 4


def test_placeholders_have_three_axes_and_no_entries():
    assert tinker.is_placeholder(group("m", lora_A=(0, 2, 7), lora_B=(0, 5, 2)))
    assert not tinker.is_placeholder(group("m", lora_A=(0, 7), lora_B=(5, 0)))
    assert not tinker.is_placeholder(group("m", lora_A=(0, 2, 7), lora_B=(1, 5, 2)))
    assert not tinker.is_placeholder(group("m", lora_A=(1, 1, 1), lora_B=(1, 1, 1)))
    assert not tinker.is_placeholder(group("m", lora_B=(0, 5, 2)))


def test_a_base_of_nunchaku_s_is_no_adapter():
    assert key_groups.is_packed(["a.lora_down", "a.lora_up"])
    assert key_groups.is_packed(["a.lora_up"])
    assert not key_groups.is_packed(["a.lora_down.weight"])
    for quantised in ("a.qweight", "a.wscales"):
        assert not key_groups.is_packed(["a.lora_down", "a.lora_up", quantised])


def test_modules_of_their_own_are_named_by_what_they_are(tmp_path):
    tensors = {"l.0.adapters.n.adapter_down.0.weight": array(2, 3), "l.0.refts.n.w": array(2)}
    ledger = Ledger(tensors)
    parsed = bottlenecks.Bottlenecks().read(Bundle(tmp_path, tensors, config={"config": {"x": 1}}), ledger)
    assert (parsed.method, parsed.settings, set(parsed.saved)) == ("bottleneck + ReFT", {"x": 1}, set(tensors))
    assert not ledger.left()


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        ({"num_attention_heads": 4, "num_key_value_heads": 2}, (4, 2)),
        ({"num_attention_heads": 4}, (4, 4)),
        ({"text_config": {"num_attention_heads": 4, "num_key_value_heads": 1}}, (4, 1)),
        ({"text_config": 1, "num_attention_heads": 4}, (4, 4)),
        ({"num_attention_heads": 4, "num_key_value_heads": -1}, None),
        ({"num_attention_heads": 0}, None),
        ({"num_attention_heads": "4"}, None),
        ({"num_attention_heads": 4, "num_key_value_heads": "2"}, None),
        ({}, None),
    ],
)
def test_heads_by_a_config(config, heads):
    """And of NeMo the rows of each group of 24 fused ones: its queries, its key, its value."""
    assert gguf._heads(config) == heads
    split = nemo._of_heads(config, 24)
    if heads is None or 24 % (heads[1] * (heads[0] // heads[1] + 2)):
        assert split is None
        return
    count, groups = heads
    width = 24 // (groups * (count // groups + 2))
    rows = {"q": [], "k": [], "v": []}
    for row in range(24):
        place = row // width % (count // groups + 2)
        rows["v" if place == count // groups + 1 else "k" if place == count // groups else "q"].append(row)
    assert {part: index.tolist() for part, index in split.items()} == rows


def test_heads_that_do_not_divide():
    assert nemo._of_heads({"num_attention_heads": 4, "num_key_value_heads": 3}, 24) is None
    assert nemo._of_heads({"num_attention_heads": 4, "num_key_value_heads": 2}, 25) is None
    assert nemo._of_heads({"num_attention_heads": 4, "num_key_value_heads": 2}, 0) is None


def test_where_a_config_of_nemo_s_lies(tmp_path):
    """In the weights' folder or in the one above, NeMo 2's before NeMo 1's; a file's folder is its own."""
    inner = tmp_path / "weights"
    inner.mkdir()
    (inner / "a.safetensors").touch()
    assert nemo._settings(inner) == nemo._settings(inner / "a.safetensors") == {}
    for place, name, dim in (
        (tmp_path, "model_config.yaml", 1),
        (tmp_path, "run_config.yaml", 2),
        (inner, "model_config.yaml", 3),
        (inner, "run_config.yaml", 4),
    ):
        (place / name).write_text(f"peft:\n  dim: {dim}\n  alpha: 8\n")
        assert nemo._settings(inner) == nemo._settings(inner / "a.safetensors") == {"alpha": 8.0, "dim": dim}
    for text, said in (
        ("dim: 2.5\n  alpha: 3", {"alpha": 3.0}),
        ("adapter_dim: 5", {"alpha": 5.0, "dim": 5}),
        ("x: 1", {}),
    ):
        (inner / "run_config.yaml").write_text(f"peft:\n  {text}\n")
        assert nemo._settings(inner) == said
    for bad in ("true", ".inf", "much"):
        (inner / "run_config.yaml").write_text(f"peft:\n  alpha: {bad}\n")
        with pytest.raises(InputError, match="not a number"):
            nemo._settings(inner)


def test_a_layer_of_which_some_rows_were_trained():
    """The base's longer side is the layer's where A has the shorter one, else its first."""
    for weight, whole in (((24, 5), 24), ((5, 24), 24), ((7, 24), 7), ((24, 7), 24)):
        made = loralib._linear("m", array(4, 5), array(8, 4), 1, array(*weight))
        assert made.notes[0].startswith(f"a fused layer of {whole} rows of which 8 were trained")
    assert loralib._linear("m", array(4, 5), array(8, 4), 1, array(8, 5)).notes == ()


def test_empty_factors_are_refused():
    for a, b in (
        ((0, 3), (3, 4)),
        ((5, 3), (3, 0)),
        ((5, 0), (0, 4)),
        ((5,), (3, 4)),
        ((5, 3), (3,)),
        ((5, 3), (2, 4)),
    ):
        ledger = Ledger({"m.a": array(*a), "m.b": array(*b)})
        with pytest.raises(InputError, match="do not fit together"):
            jax._update("m", False, {"a": "m.a", "b": "m.b"}, ledger, None)


def test_a_scalar_multiplies_glora(tmp_path):
    shapes = {"a1.weight": (12, 3), "a2.weight": (3, 12), "b1.weight": (24, 3), "b2.weight": (3, 12)}
    tensors = {f"m.{key}": array(*shape) for key, shape in shapes.items()}
    tensors |= {"m.scalar": InMemory(np.array(0.25)), "m.alpha": InMemory(np.array(6.0))}
    found = key_groups.by_module(tensors, [*shapes, "scalar", "alpha"])["m"]
    assert rotations.glora(found, Ledger(tensors)).scale == 0.25 * 6 / 3


def test_a_magnitude_is_of_inputs_where_it_has_a_first_axis_of_one():
    """(1, d_in) and (1, d_in, 1, 1) are of inputs, (1, 1) is of the one output that there is."""
    for shape, role in (((1, 5), "m_in"), ((1, 5, 1, 1), "m_in"), ((6, 1), "m"), ((6,), "m")):
        keys = {"m.lora_down.weight": array(2, 5), "m.lora_up.weight": array(6, 2), "m.dora_scale": array(*shape)}
        found = key_groups.by_module(keys, kohya.SUFFIXES)["m"]
        assert role in kohya.read_pair(found, Ledger(keys)).roles
    keys = {"m.lora_down.weight": array(2, 5), "m.lora_up.weight": array(1, 2), "m.dora_scale": array(1, 1)}
    assert kohya.read_pair(key_groups.by_module(keys, kohya.SUFFIXES)["m"], Ledger(keys)).kind == "magnitude"


def test_one_module_is_found_by_one_name_only(tmp_path):
    """Two that would be spelled alike are left as they are."""
    names = ["a.b.c.weight", "a.b_d.weight", "a.b.d.weight"]
    save_file({name: np.zeros((2, 2), "f4") for name in names}, tmp_path / "m.safetensors")
    base = open_checkpoint(tmp_path / "m.safetensors")
    assert key_groups.resolve(["lora_unet_a_b_c", "lora_unet_a_b_d"], base, ("lora_unet_",)) == {
        "lora_unet_a_b_c": "a.b.c"
    }
