"""What PEFT's families take from names and flags: layers that are more than one weight, notes, keys, targets."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorascope.errors import InputError
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.formats.base import Ledger
from lorascope.weights.formats.peft import (
    attention,
    ia3,
    keys,
    layout,
    lora,
    recognise,
    rest,
    saved,
    tokens,
    vera,
    write,
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


def updates_of(*names):
    return {name: Update(name, "low_rank", {"A": array(1, 2), "B": array(3, 1)}) for name in names}


@pytest.mark.parametrize(
    ("ranges", "layers"),
    [
        ([[0, 2], [1, 3]], [0, 1, 1, 2]), ([(9998, 9999)], [9998]), ([[0, 9999]], None), (None, None), ([], None),
    ],
)  # fmt: skip
def test_replicated_layers_are_copies_of_the_base_s(ranges, layers):
    names = [f"m.layers.{n}.q" for n in range(len(layers or [0]))]
    found = attention.replicated(updates_of(*names, "head"), ranges)
    assert found["head"].base_weight is None
    for name, layer in zip(names, layers or [0], strict=True):
        assert found[name].base_weight == (f"m.layers.{layer}.q.weight" if ranges else None)
    if layers:
        with pytest.raises(InputError, match=f"layers 0 to {len(layers) - 1}"):
            attention.replicated(updates_of(f"m.layers.{len(layers)}.q"), ranges)


@pytest.mark.parametrize(
    "ranges", [[[0, 10_000]], [[-1, 2]], [[0]], [[0, 1, 2]], [[0, True]], [[0, 1.0]], "x", {"a": 1}, [3]]
)
def test_ranges_of_layers_that_are_none(ranges):
    with pytest.raises(InputError, match="not a list of ranges"):
        attention.replicated(updates_of("m.layers.0.q"), ranges)


@pytest.mark.parametrize(
    ("shape", "axis", "size", "transposed"),
    [
        ((6, 4), 0, 6, False), ((4, 6), 0, 6, True), ((6, 4), 1, 4, False), ((4, 6), 1, 4, True),
        ((6, 4), 0, 9, True), ((4, 4), 0, 4, True), ((4, 6, 1), 0, 6, True), (None, 0, 6, True),
    ],
)  # fmt: skip
def test_which_way_round_a_weight_lies(shape, axis, size, transposed, tmp_path):
    """Where its shape does not tell, the config's flag counts, which says transposed here."""
    base = base_of(tmp_path, **{"q.weight": shape or (1,), "p.weight": (1, 1)}) if shape else None
    flagged, plain = (config(fan_in_fan_out=flag) for flag in (True, False))
    assert layout.is_transposed_by("q", size, axis, flagged, base) is transposed
    told = shape in ((6, 4), (4, 6)) and size in shape
    assert layout.is_transposed_by("q", size, axis, plain, base) is (transposed if told else False)


@pytest.mark.parametrize(
    ("stored", "shape", "transposed"),
    [((6, 4), (6, 4), False), ((4, 6), (6, 4), True), ((4, 4), (4, 4), None), ((9, 8), (6, 4), None)],
)
def test_which_way_round_lora_s_weight_lies(stored, shape, transposed, tmp_path):
    base = base_of(tmp_path, **{"q.weight": stored})
    for flag in (True, False):
        expected = flag if transposed is None else transposed
        assert lora.is_transposed("q", shape, config(fan_in_fan_out=flag), base) is expected
        assert lora.is_transposed("q", shape, config(fan_in_fan_out=flag), None) is flag
        assert lora.is_transposed("q", shape, config(fan_in_fan_out=flag), base, (3,)) is False


# --- what is said ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "starts"),
    [
        ({}, []), ({"init_lora_weights": True}, []), ({"init_lora_weights": "gaussian"}, []),
        ({"init_lora_weights": "pissa"}, ["init_lora_weights is 'pissa'"]),
        ({"init_lora_weights": "PiSSA_niter_4"}, ["init_lora_weights is 'PiSSA_niter_4'"]),
        ({"monteclora_config": {"a": 1}}, ["MonteCLoRA"]), ({"alora_invocation_tokens": [1]}, ["activated LoRA"]),
        ({"layer_replication": [[0, 1]]}, ["layer_replication"]), ({"unheard_of": 1}, ["unknown fields"]),
    ],
)  # fmt: skip
def test_what_a_config_of_lora_says(raw, starts):
    notes = recognise.notes_of(config(**raw))
    assert len(notes) == len(starts)
    assert all(note.startswith(start) for note, start in zip(notes, starts, strict=True))
    if "pissa" in raw.get("init_lora_weights", "") if isinstance(raw.get("init_lora_weights"), str) else False:
        assert notes[0].endswith("needs that base")


@pytest.mark.parametrize(
    ("start", "kind", "embedding", "other"),
    [
        ("pissa", "pissa", False, False), ("pissa", "low_rank", False, True), ("pissa", "low_rank", True, False),
        ("olora", "olora", False, False), ("loftq", "low_rank", True, True), ("corda", "low_rank", False, True),
        ("gaussian", "low_rank", False, False), (True, "low_rank", False, False), (None, "low_rank", False, False),
    ],
)  # fmt: skip
def test_a_start_that_belongs_to_another_base(start, kind, embedding, other):
    update = Update("q", kind, {"A": array(1, 2), "B": array(3, 1)}, embedding=embedding)
    found = lora.LORA.other_base(Adapter({"q": update}, {"init_lora_weights": start}))
    assert (found is not None) is other
    assert lora.LORA.other_base(Adapter({}, {"init_lora_weights": "pissa"})) is not None


def test_what_changes_the_meaning_of_a_and_b():
    assert lora.LORA.unreadable(config(arrow_config={"top_k": 2})).startswith("Arrow routes")
    assert lora.LORA.unreadable(config(arrow_config=None)) is None
    assert "invocation tokens" in lora.LORA.not_for_all_tokens({"alora_invocation_tokens": [1]})
    assert lora.LORA.not_for_all_tokens({"alora_invocation_tokens": []}) is None


@pytest.mark.parametrize(
    ("raw", "kind", "name"),
    [
        ({}, "low_rank", "LoRA"), ({"use_rslora": True}, "low_rank", "rsLoRA"), ({}, "magnitude", "DoRA"),
        ({"use_rslora": True}, "magnitude", "DoRA"), ({"use_qalora": True}, "low_rank", "QALoRA"),
        ({"use_bdlora": {"nblocks": 1}}, "low_rank", "BD-LoRA"), ({"use_qalora": True}, "magnitude", "DoRA"),
        ({}, "pissa", "PiSSA"), ({}, "unheard_of", "unheard_of"),
    ],
)  # fmt: skip
def test_the_name_of_a_method(raw, kind, name):
    assert lora.LORA.method_name(SimpleNamespace(kind=kind), config(**raw)) == name


@pytest.mark.parametrize(
    ("shape", "indices", "rows"),
    [
        ((2, 4), [3, 1], (3, 1)), ((2, 4), {"e": [0, 5]}, (0, 5)), ((2, 4), {"m.e": [0, 5]}, (0, 5)),
        ((2, 4), {"x.e": [0, 5]}, None), ((2, 4), {"me": [0, 5]}, None), ((2, 4), [3], None), ((2, 4, 1), [3, 1], None),
        ((2,), [3, 1], None), ((2, 4), [3, -1], None), ((2, 4), [3, True], None), ((2, 4), "31", None),
        ((2, 4), None, None), ((0, 4), [], None),
    ],
)  # fmt: skip
def test_which_rows_of_an_embedding_were_trained(shape, indices, rows):
    key = "base_model.model.m.e.token_adapter.trainable_tokens_delta"
    copy = "base_model.model.m.e.token_adapter.trainable_tokens_original"
    ledger = Ledger({key: array(*shape), copy: array(2, 4), "base_model.model.x": array(1)})
    given = config(trainable_token_indices=indices)
    if rows is None:
        with pytest.raises(InputError, match=r"rows that adapter_config\.json names|does not say which rows"):
            tokens.token_rows(ledger, given)
        return
    found = tokens.token_rows(ledger, given)
    assert {name: one.indices for name, one in found.items()} == {"m.e.weight": rows}
    assert [item.name for item in ledger.skipped] == [key, copy]
    assert ledger.left() == ["base_model.model.x"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("q.lora_velora_embed.default", "a buffer of training alone: VeLoRA"),
        ("q.lora_velora_embed", "a buffer of training alone: VeLoRA"),
        ("q.lora_monteclora_sampler.x", "a buffer of training alone: MonteCLoRA"),
        ("q.lora_monteclora_sampler", "a buffer of training alone: MonteCLoRA"),
        ("q.shadow_x.weight", "Shadow: recognised"),
        ("head.original_module.weight", "original copy"),
        ("q.base_layer.weight", saved.COPY),
        ("q.base_layer.base_layer.weight", saved.COPY),
        ("q.base_layer.in_proj_bias", saved.COPY),
        ("q.base_layer.out_proj.weight", saved.COPY),
        ("q.base_layer.qweight", "the base's own copy of a quantised"),
        ("q.base_layer.weight.absmax", "the base's own copy of a quantised"),
        ("q.base_layer.bias", None),
        ("q.base_layer.other", None),
        ("q.qweight", "the base's own copy of a quantised"),
        ("q.scales", "the base's own copy of a quantised"),
        ("q.lora_A.scales", None),
        ("q.weight", None),
    ],
)
def test_keys_that_are_no_trained_parameter(text, reason):
    found = saved._no_parameter(f"base_model.model.{text}", text)
    assert (found is None) if reason is None else found.startswith(reason)


@pytest.mark.parametrize(
    ("name", "text", "within"),
    [
        ("q.x.weight", "q.x.weight", True), ("q.weight", "q.weight", False), ("q.x.y.weight", "q.x.y.weight", True),
        ("p.q.weight", "p.q.weight", False), ("l.k.gate.weight", "l.k.gate.weight", True), ("x", "x", False),
        ("q.x.weight", "q.modules_to_save.x.weight", False), ("q.x.weight", "q.base_layer.x.weight", False),
    ],
)  # fmt: skip
def test_what_lies_below_an_adapted_module(name, text, within):
    assert saved._is_within(name, text, {"q", "l.k", ""}) is within


@pytest.mark.parametrize(
    ("name", "raw", "found"),
    [
        ("q.bias", {}, False), ("q.bias", {"bias": "none"}, False), ("q.bias", {"bias": "all"}, True),
        ("q.in_proj_bias", {"bias": "lora_only"}, True), ("q.weight", {"bias": "all"}, False),
    ],
)  # fmt: skip
def test_which_parameters_are_trained_biases(name, raw, found):
    assert saved._is_bias(name, config(**raw)) is found


# The module's tensors for a rank, of the families that say nothing of it where it is PEFT's default.
DEFAULTS = {
    "HIRA": (32, lambda r: {"hira_A": (r, 4), "hira_B": (5, r)}),
    "HRA": (8, lambda r: {"hra_u": (40, r)}),
    "DEFT": (8, lambda r: {"deft_P": (40, r), "deft_R": (r, 4)}),
    "DELORA": (8, lambda r: {"delora_A": (r, 4), "delora_B": (5, r), "delora_lambda": (1,), "delora_w_norm": (4,)}),
    "PSOFT": (32, lambda r: {"psoft_R.weight": (r * (r - 1) // 2,)}),
    "GRALORA": (32, lambda r: {"gralora_A": (1, 4, r), "gralora_B": (1, r, 5)}),
    "ADALORA": (12, lambda r: {"lora_A": (r, 4), "lora_B": (5, r), "lora_E": (r, 1)}),
    "LOHA": (8, lambda r: {f"hada_w{n}_{half}": (5, r) if half == "a" else (r, 4) for n in "12" for half in "ab"}),
    "LORA": (8, lambda r: {"lora_A": (r, 4), "lora_B": (5, r)}),
}  # fmt: skip


@pytest.mark.parametrize("peft_type", DEFAULTS)
def test_a_config_without_a_rank_has_peft_s(peft_type):
    rank, shapes = DEFAULTS[peft_type]
    family = recognise.family_of_type(peft_type)
    assert family.read(group("q", **shapes(rank)), context(config(peft_type))).name == "q"
    for other in (rank + 1, rank - 1)[: 1 if peft_type == "ADALORA" else 2]:  # AdaLoRA's may be pruned
        with pytest.raises(InputError, match="contradicts the tensors"):
            family.read(group("q", **shapes(other)), context(config(peft_type)))


@pytest.mark.parametrize(("alpha", "numerator"), [(6, 6.0), (0, 2.0), (-1, 2.0), (0.5, 0.5)])
def test_adalora_takes_the_rank_where_alpha_is_not_positive(alpha, numerator):
    shapes = {"lora_A": (2, 4), "lora_B": (5, 2), "lora_E": (2, 1)}
    update = recognise.family_of_type("ADALORA").read(
        group("q", **shapes), context(config("ADALORA", init_r=3, lora_alpha=alpha))
    )
    assert (update.scale, update.notes) == (numerator / (3 + 1e-5), ())


@pytest.mark.parametrize(("known", "drawn"), [({"q": 5, "k": 4}, True), ({"q": 5}, False), ({}, False)])
def test_vera_s_projections_are_drawn_again_where_all_widths_are_known(known, drawn):
    groups = [group(name, vera_lambda_b=(6,), vera_lambda_d=(2,)) for name in "qk"]
    given = Context(config("VERA", r=2), None, [], {vera.WIDTHS: json.dumps(known)})
    found = vera.vera(groups, None, given)
    if drawn:
        assert {name: update.shape for name, update in found.items()} == {"q": (6, 5), "k": (6, 4)}
    else:
        assert found == dict.fromkeys("qk", vera.NO_PROJECTION)


@pytest.mark.parametrize(
    ("names", "starts"),
    [
        ([], []), (["m.embed_tokens.weight"], ["embeddings stored whole"]), (["m.norm.weight"], ["full tensors"]),
        (["m.embed_tokens.weight", "lm_head.weight", "weight"], ["embeddings stored whole", "full tensors"]),
    ],
)  # fmt: skip
def test_what_is_said_of_parameters_that_nobody_announced(names, starts):
    notes = saved._said(names)
    assert len(notes) == len(starts)
    assert all(note.startswith(start) for note, start in zip(notes, starts, strict=True))


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("base_model.model.q.lora_A.weight", ("q", "lora_A", None, "weight", 0)),
        ("base_model.model.q.lora_A.default.weight", ("q", "lora_A", "default", "weight", 0)),
        ("base_model.model.q.lora_B.bias", ("q", "lora_B", None, "bias", 0)),
        ("base_model.model.q.base_layer.base_layer.lora_A.weight", ("q", "lora_A", None, "weight", 2)),
        ("base_model.model.q.lora_embedding_A.x", ("q", "lora_embedding_A", "x", "", 0)),
        ("base_model.vera_A", ("", "vera_A", None, "", 0)),
        ("q.ia3_l", ("q", "ia3_l", None, "", 0)),
        ("base_model.model.q.lora_A.a.b.weight", None),
        ("base_model.model.q.ia3_l.a.b", None),
        ("base_model.model.q.weight", None),
        ("base_model.model.q.xlora_A.weight", None),
    ],
)
def test_the_parts_of_a_key(key, expected):
    found = recognise.parse(key)
    parts = None if found is None else (found.module, found.role, found.adapter, found.tail, found.wrapped)
    assert parts == expected


def test_names_of_parameters_and_of_adapters():
    assert keys.plain_parameter("base_model.model.h.modules_to_save.weight", None) == "h.weight"
    assert keys.plain_parameter("base_model.model.h.modules_to_save.default.weight", None) == "h.weight"
    assert keys.plain_parameter("base_model.model.h.modules_to_save.x.weight", "x") == "h.weight"
    assert keys.plain_parameter("base_model.model.h.modules_to_save.x.weight", None) == "h.x.weight"
    assert keys.plain_parameter("base_model.e.token_adapter.base_layer.weight", None) == "e.weight"
    ones = [Key("a", "q", "lora_A", name, "weight", 0) for name in ("x", "x")]
    assert keys.one_adapter(ones) == "x"
    assert keys.one_adapter([]) is None
    with pytest.raises(InputError, match=r"more than one adapter; found x, \(no name\)"):
        keys.one_adapter([*ones, Key("a", "q", "lora_A", None, "weight", 0)])


def test_numbered_keys_leave_no_number_out():
    assert rest.numbered({"A.1": "b", "A.0": "a", "B.0": "c", "AB.0": "d"}, "A") == ["a", "b"]
    assert rest.numbered({"B.0": "c"}, "A") == []
    for wrong in ({"A.1": "b"}, {"A.0": "a", "A.2": "b"}):
        with pytest.raises(InputError, match="of A, and not A"):
            rest.numbered(wrong, "A")


@pytest.mark.parametrize(
    ("settings", "names", "targets"),
    [
        ({"target_modules": ["q"]}, ["l.0.q", "q"], ["q"]), ({"target_modules": ["q"]}, ["l.xq"], ["l.xq"]),
        ({"target_modules": ["q", "v"]}, ["l.q"], ["q", "v"]), ({"target_modules": ["v"]}, ["l.q"], ["l.q"]),
        ({"target_modules": r".*\.q"}, ["l.q"], r".*\.q"), ({"target_modules": r".*\.q"}, ["l.q", "v"], ["l.q", "v"]),
        ({"target_modules": r"l"}, ["l.q"], ["l.q"]), ({}, ["l.q"], ["l.q"]), ({}, [], []),
    ],
)  # fmt: skip
def test_which_modules_a_written_config_targets(settings, names, targets):
    assert write._targets(Adapter(updates_of(*names), settings)) == targets


@pytest.mark.parametrize(("size", "shape", "flag"), [(4, (1, 4), True), (4, (4, 1), False), (1, (1, 1), True)])
def test_factors_of_inputs_and_of_outputs(size, shape, flag):
    raw = {"feedforward_modules": ["q"] if flag else []}
    update = ia3.ia3(group("l.q", ia3_l=shape), config("IA3", **raw))
    assert {role: stored.shape for role, stored in update.roles.items()} == {
        "in_scale" if flag else "out_scale": (size,)
    }
    assert update.notes == (() if flag else ("it scales the output's bias too",))
    if size > 1:
        with pytest.raises(InputError, match="contradicts the tensors"):
            ia3.ia3(group("l.q", ia3_l=shape), config("IA3", feedforward_modules=[] if flag else ["q"]))
    assert math.isclose(update.scale, 1.0)
