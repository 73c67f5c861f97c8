"""What readers of dialects decide by a shape, a number or a name, at the values where that changes."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorascope.errors import InputError
from lorascope.updates.base import Update, dense
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.formats import (
    expert_factors,
    gguf,
    key_groups,
    litgpt,
    loralib,
)
from lorascope.weights.formats.base import Bundle, Ledger, formats
from lorascope.weights.formats.peft import lora_variants, merged_linear
from lorascope.weights.formats.peft import lycoris as of_peft
from lorascope.weights.formats.peft.family import Context, Group
from lorascope.weights.formats.peft.keys import Key
from lorascope.weights.formats.peft.recognise import read_config
from lorascope.weights.tensors import InMemory


def array(*shape):
    return InMemory(np.random.default_rng(0).standard_normal(shape).astype("f4"))


def number(value):
    return InMemory(np.array(value, np.float32))


def parsed(format, shapes, base=None, config=None, metadata=None, path="a"):
    """What a format makes of arrays of these shapes, and the ledger after it."""
    tensors = {key: array(*shape) if isinstance(shape, tuple) else number(shape) for key, shape in shapes.items()}
    ledger = Ledger(tensors)
    return formats.get(format).read(Bundle(path, tensors, metadata or {}, config), ledger, base), ledger


def base_of(folder, config=None, **shapes):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ones(shape, "f4") for name, shape in shapes.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config or {}))
    return open_checkpoint(folder)


# --- experts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "rank", "swapped", "shared"),
    [
        ((3, 2, 5), (3, 6, 2), None, False, False),
        ((3, 5, 2), (3, 2, 6), None, True, False),
        ((1, 2, 5), (3, 6, 2), None, False, True),
        ((3, 2, 5), (1, 6, 2), None, False, True),
        ((1, 2, 5), (1, 6, 2), None, False, False),
        ((2, 2, 5), (3, 6, 2), None, None, False),
        ((2, 2, 5), (4, 6, 2), None, None, False),
        ((3, 2, 5), (3, 6, 3), None, None, False),
        ((3, 0, 5), (3, 6, 0), None, None, False),
        ((3, 2, 0), (3, 6, 2), None, None, False),
        ((6, 5), (3, 6, 2), None, None, False),
        ((3, 2, 5), (6, 6), None, None, False),
        ((3, 2, 4), (3, 4, 2), None, False, False),  # both ways fit
        ((3, 2, 4), (3, 4, 2), 2, False, False),
        ((3, 2, 4), (3, 4, 2), 4, True, False),
        ((3, 2, 4), (3, 4, 2), 3, False, False),
        ((3, 2, 5), (3, 6, 2), 5, False, False),
        ((3, 5, 2), (3, 2, 6), 5, True, False),
    ],
)
def test_the_axes_of_experts_factors(a, b, rank, swapped, shared):
    assert expert_factors.axes_swapped(array(*a), array(*b), rank) is swapped
    if swapped is not None:
        assert expert_factors.is_shared(array(*a), array(*b)) is shared
        updates = list(expert_factors.per_expert("p", array(*a), array(*b), 2.0, ("a", "b"), rank))
        assert [update.name for update in updates] == [f"p[{e}]" for e in range(max(a[0], b[0]))]
        notes = (*([expert_factors.SWAPPED] if swapped else []), *([expert_factors.SHARED] if shared else []))
        for e, update in enumerate(updates):
            down, up = (x.read().astype(float)[e % len(x.read())] for x in (array(*a), array(*b)))
            expected = 2 * (up.T @ down.T if swapped else up @ down)
            np.testing.assert_allclose(dense(update.delta()), expected, rtol=0, atol=1e-13)
            assert (update.notes, update.expert, update.base_weight) == (notes, e, "p")


def test_experts_in_one_matrix_are_told_by_b():
    (first, second) = expert_factors.per_expert("p", array(4, 5), array(2, 6, 2), 1.0, ("a", "b"))
    for e, update in enumerate((first, second)):
        np.testing.assert_array_equal(update.read()["A"], array(4, 5).read()[2 * e : 2 * e + 2])
    with pytest.raises(InputError, match="do not fit together"):
        list(expert_factors.per_expert("p", array(5, 5), array(2, 6, 2), 1.0, ("a", "b")))


@pytest.mark.parametrize(
    ("path", "there", "name"),
    [
        ("l.switch_mlp.up_proj", "l.experts.1.up_proj", "l.experts.1.up_proj"),
        ("l.switch_mlp.up_proj", "l.experts.1.w3", "l.experts.1.w3"),
        ("l.mlp.experts.up_proj", "l.mlp.experts.1.up_proj", "l.mlp.experts.1.up_proj"),
        ("l.mlp.experts.x", "l.mlp.experts.1.x", "l.mlp.experts.1.x"),
        ("l.switch_mlp.up_proj", "l.experts.0.up_proj", None),
        ("l.switch_mlp.up_proj", "l.switch_mlp.up_proj", None),
    ],
)
def test_an_expert_s_name_in_a_base_that_keeps_them_apart(path, there, name, tmp_path):
    update = Update(f"{path}[1]", "low_rank", {"A": array(1, 2), "B": array(3, 1)}, base_weight=path, expert=1)
    base = base_of(tmp_path, **{f"{there}.weight": (3, 2)})
    found = expert_factors.in_base(update, base)
    assert found == (update if name is None else Update(name, "low_rank", update.roles))
    assert expert_factors.in_base(update, None) == update


# --- gguf -------------------------------------------------------------------------------------------------------------


Q = "blk.0.attn_q.weight"
GGUF_PAIR = {f"{Q}.lora_a": (2, 6), f"{Q}.lora_b": (8, 2)}
LLAMA, UNKNOWN = {"general.architecture": "llama"}, {"general.architecture": "falcon"}


@pytest.mark.parametrize(
    ("metadata", "heads", "notes", "scale"),
    [
        (LLAMA, None, ["ROWS"], 1.0),
        (LLAMA, 4, [], 1.0),
        (LLAMA, 3, ["ROWS"], 1.0),  # which do not divide the rows
        (LLAMA, 8, ["ROWS"], 1.0),  # heads of one row, which has no pair
        (LLAMA | {"llama.attention.head_count": 4}, None, ["OLLAMA"], 1.0),
        (LLAMA | {"llama.attention.head_count": 4}, 4, ["OLLAMA"], 1.0),
        (LLAMA | {"adapter.lora.alpha": "6"}, 4, ["CONVERTER"], 3.0),
        (LLAMA | {"adapter.lora.alpha": "0"}, 4, [], 1.0),
        (LLAMA | {"adapter.alora.invocation_tokens": "x"}, 4, ["ALORA"], 1.0),
        (UNKNOWN, 4, ["NAMES"], 1.0),
        ({}, None, ["NAMES"], 1.0),
    ],
)
def test_what_is_said_of_a_gguf_adapter(metadata, heads, notes, scale, tmp_path):
    base = base_of(tmp_path, {"num_attention_heads": heads}, **{"x.weight": (1, 1)}) if heads else None
    found, ledger = parsed("gguf", {**GGUF_PAIR, "blk.0.attn_norm.weight": (6,)}, base, metadata=metadata)
    assert found.notes == tuple(getattr(gguf, note) for note in notes)
    known = metadata.get("general.architecture") == "llama"
    assert list(found.updates) == ["model.layers.0.self_attn.q_proj" if known else "blk.0.attn_q"]
    assert [update.scale for update in found.updates.values()] == [scale]
    assert [(item.name, item.reason) for item in ledger.skipped] == [("blk.0.attn_norm.weight", gguf.NORM)]
    assert ledger.left() == []


@pytest.mark.parametrize(
    ("a", "b", "valid"),
    [
        ((2, 6), (8, 2), True), ((1, 6), (8, 1), True), ((2, 1), (1, 2), True), ((0, 6), (8, 0), False),
        ((2, 0), (8, 2), False), ((2, 6), (0, 2), False), ((2, 6), (8, 3), False), ((6,), (8, 2), False),
        ((2, 6), (8,), False), ((1, 2, 6), (8, 2), False), ((2, 6), (8, 2, 1), False), ((2, 6), (), False),
    ],
)  # fmt: skip
def test_which_factors_of_gguf_fit(a, b, valid):
    shapes = {f"{Q}.lora_a": a, f"{Q}.lora_b": b}
    if valid:
        (update,) = parsed("gguf", shapes)[0].updates.values()
        assert update.shape == (b[0], a[1])
    else:
        with pytest.raises(InputError, match=r"fit together|do not fit"):
            parsed("gguf", shapes)


@pytest.mark.parametrize(
    ("block", "architecture", "name"),
    [
        ("ffn_down_exps", "qwen3moe", "model.layers.3.mlp.experts.1.down_proj"),
        ("ffn_up_exps", "llama", "model.layers.3.block_sparse_moe.experts.1.w3"),
        ("ffn_up_exps", "falcon", "blk.3.ffn_up_exps[1]"),
        ("other_exps", "llama", "blk.3.other_exps[1]"),
    ],
)
def test_names_of_experts_in_gguf(block, architecture, name):
    shapes = {f"blk.3.{block}.weight.lora_a": (2, 2, 6), f"blk.3.{block}.weight.lora_b": (2, 8, 2)}
    found, _ = parsed("gguf", shapes, metadata={"general.architecture": architecture})
    assert list(found.updates)[1] == name
    assert found.updates[name].expert == (1 if "[" in name else None)


def test_two_tensors_of_one_module_of_gguf(tmp_path):
    shapes = {
        f"model.layers.0.self_attn.q_proj.weight.{half}": s for half, s in (("lora_a", (2, 6)), ("lora_b", (8, 2)))
    }
    with pytest.raises(InputError, match="two tensors are of one module"):
        parsed("gguf", {**GGUF_PAIR, **shapes}, metadata=LLAMA)


@pytest.mark.parametrize("text", ["x", "nan", "inf", ""])
def test_an_alpha_of_gguf_that_is_none(text):
    with pytest.raises(InputError, match="is not a number"):
        gguf._alpha({gguf.ALPHA: text})


# --- loralib, litgpt, MLX, JAX -------------------------------------------------------------------


@pytest.mark.parametrize(("ranknum", "valid"), [(2.0, True), (1.0, True), (0.5, True), (0.0, False), (-1.0, False)])
def test_adalora_divides_by_a_rank_that_is_positive(ranknum, valid):
    shapes = {"q.lora_A": (3, 5), "q.lora_B": (6, 3), "q.lora_E": (3, 1), "q.ranknum": ranknum}
    if valid:
        assert parsed("loralib", shapes)[0].updates["q"].scale == 3 / (ranknum + 1e-5)
    else:
        with pytest.raises(InputError, match="is not a rank"):
            parsed("loralib", shapes)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"alpha": 6, "r": 3}, 2.0), ({"alpha": 6, "r": 1}, 6.0),
        ({"alpha": 6.0, "r": 3, "composition_mode": "add"}, 2.0),
        ({"alpha": 6, "r": 0}, "are not numbers"), ({"alpha": 6, "r": 3.0}, "are not numbers"),
        ({"alpha": "6", "r": 3}, "are not numbers"), ({"alpha": math.inf, "r": 3}, "are not numbers"),
        ({"alpha": 6, "r": 2}, "contradicts the tensors"), ({"alpha": 6, "r": 3, "use_gating": True}, "or a gate"),
        ({"alpha": 6, "r": 3, "composition_mode": "scale"}, "or a gate"),
    ],
)  # fmt: skip
def test_adapterhub_s_scale(config, scale):
    shapes = {"l.q.loras.n.lora_A": (3, 5), "l.q.loras.n.lora_B": (6, 3)}
    if isinstance(scale, str):
        with pytest.raises(InputError, match=scale):
            parsed("loralib", shapes, config={"config": config})
    else:
        found, _ = parsed("loralib", shapes, config={"config": config})
        assert {name: update.scale for name, update in found.updates.items()} == {"l.q": scale}
        assert (found.settings, found.notes) == (config, ())
        other = {"l.q.loras.m.lora_A": (3, 5), "l.q.loras.m.lora_B": (6, 3)}
        with pytest.raises(InputError, match="one adapter"):
            parsed("loralib", {**shapes, **other}, config={"config": config})


@pytest.mark.parametrize(
    ("module", "within"),
    [("q", False), ("q.conv", False), ("q.gate", True), ("q.a.b", True), ("p.q", False), ("qq.x", False), ("", False)],
)
def test_what_lies_within_an_adapted_module(module, within):
    assert loralib._is_within(module, {"q"}) is within


@pytest.mark.parametrize(
    ("trained", "rows", "notes"),
    [
        (None, 12, 0), (None, 9, "trained: query and value: others fit too"), (None, 6, "trained: query"),
        ((True, False, True), 9, "trained: query and value"), ((False, True, True), 6, "trained: key and value"),
    ],
)  # fmt: skip
def test_which_parts_of_a_fused_projection_were_trained(trained, rows, notes):
    """Of 6 rows of query and 3 each of key and value: some numbers of rows have one meaning alone."""
    parts = {12: 3, 9: 2, 6: 2 if trained else 1}[rows]
    settings = litgpt.Settings(1.0, (6, 3, 3), trained, 1)
    update = litgpt.fused("t.attn.qkv", array(2 * parts, 5), array(rows, 2), settings)
    assert update.shape == (12, 5)
    if not notes:
        assert update.notes == ()
    else:
        assert update.notes[0].startswith(notes)
        assert ("others fit too" in update.notes[0]) == (rows == 9 and trained is None)


@pytest.mark.parametrize(
    ("training", "model", "expected"),
    [
        ("lora_r: 4\nlora_alpha: 8", "n_head: 4\nn_embd: 8", litgpt.Settings(2.0, (8, 8, 8), None, 4)),
        ("lora_r: 4", "n_head: 4\nn_embd: 8\nn_query_groups: 2", litgpt.Settings(None, (8, 4, 4), None, 2)),
        ("lora_r: 0\nlora_alpha: 8", "n_head: 4\nhead_size: 3", litgpt.Settings(None, (12, 12, 12), None, 4)),
        ("lora_r: 1\nlora_alpha: 3", "n_head: 4", litgpt.Settings(3.0, None, None, 1)),
        ("lora_r: 4\nlora_alpha: .inf", "n_embd: 4", litgpt.Settings(None, None, None, 1)),
        ("lora_r: true\nlora_alpha: 3", "n_head: 1048576\nhead_size: 3", litgpt.Settings(None, None, None, 1)),
        ("x: 1", "n_head: 1048575\nhead_size: 1", litgpt.Settings(None, (1048575,) * 3, None, 1048575)),
        (
            "lora_query: true\nlora_key: false\nlora_value: true",
            "x: 1",
            litgpt.Settings(None, None, (True, False, True)),
        ),
        ("lora_query: true\nlora_key: 0\nlora_value: true", "x: 1", litgpt.Settings()),
    ],
)
def test_what_lies_next_to_litgpt_s_weights(training, model, expected, tmp_path):
    (tmp_path / "hyperparameters.yaml").write_text(training)
    (tmp_path / "model_config.yaml").write_text(model)
    assert litgpt.settings(tmp_path) == litgpt.settings(tmp_path / "lit_model.pth.lora") == expected
    assert litgpt.settings(tmp_path / "none" / "lit_model.pth.lora") == litgpt.Settings()


def test_a_missing_half_of_mlx_is_named():
    for lost, there in (("lora_a", "lora_b"), ("lora_b", "lora_a")):
        with pytest.raises(InputError, match=f"m.{lost}' is missing"):
            parsed("mlx", {f"m.{there}": (3, 5)})
    for lost, there in (("A", "B"), ("B", "A")):
        with pytest.raises(InputError, match=f"m.{lost}' is missing"):
            parsed("mlx", {f"m.{there}": (3, 5)}, config={"rank": 3, "alpha": 1})


@pytest.mark.parametrize(
    ("config", "scale", "notes"),
    [
        (None, 1.0, ["NO_CONFIG"]), ({}, 1.0, ["NO_CONFIG"]), ({"lora_parameters": {"scale": 3}}, 3.0, []),
        ({"lora_parameters": {"scale": 3, "alpha": 1}}, 3.0, ["OLD_ALPHA"]),
        ({"lora_parameters": {"alpha": 1}}, 1.0, ["NO_CONFIG"]), ({"lora_parameters": None}, 1.0, ["NO_CONFIG"]),
    ],
)  # fmt: skip
def test_what_is_said_of_mlx_s_scale(config, scale, notes):
    from lorascope.weights.formats import mlx

    found, _ = parsed("mlx", {"m.lora_a": (5, 2), "m.lora_b": (2, 6)}, config=config)
    assert (found.updates["m"].scale, found.notes) == (scale, tuple(getattr(mlx, note) for note in notes))
    for bad in (
        {"lora_parameters": [1]},
        {"lora_parameters": {"scale": True}},
        {"lora_parameters": {"scale": math.nan}},
    ):
        with pytest.raises(InputError, match=r"is not (an object|a number)"):
            parsed("mlx", {"m.lora_a": (5, 2), "m.lora_b": (2, 6)}, config=bad)


def test_whole_weights_of_mlx():
    shapes = {"m.weight": (3, 2), "m.bias": (3,), "n.weight": (3,), "c.weight": (3, 2, 1)}
    found, ledger = parsed("mlx", {**shapes, "m.scales": (3, 1)}, config={"fine_tune_type": "full"})
    assert {n: (u.kind, u.base_weight) for n, u in found.updates.items()} == {"m": ("tuned", "m.weight")}
    assert (set(found.saved), ledger.left()) == ({"m.bias", "n.weight", "c.weight"}, ["m.scales"])


@pytest.mark.parametrize(
    ("stored", "transposed"), [((5, 8), True), ((8, 5), False), (None, False), ((5, 8, 1), False), ((5, 9), False)]
)
def test_a_base_of_keras_stores_d_in_first(stored, transposed, tmp_path):
    base = base_of(tmp_path, **{"m.weight": stored}) if stored else None
    found, _ = parsed("jax", {"m.w_lora_a": (5, 2), "m.w_lora_b": (2, 4, 2)}, base)
    assert found.updates["m"].transposed is transposed
    square = parsed(
        "jax", {"m.w_lora_a": (5, 2), "m.w_lora_b": (2, 5)}, base_of(tmp_path / "s", **{"m.weight": (5, 5)})
    )
    assert square[0].updates["m"].transposed is False
    with pytest.raises(InputError, match="two updates for one module"):
        parsed("jax", {f"m.{kind}_{side}": (2, 2) for kind in ("w_lora", "kernel_lora") for side in "ab"})


def test_what_is_said_of_keras_hub_s_numbers():
    from lorascope.weights.formats import jax

    for prefix, notes in (("lora.3", (jax.NO_ALPHA, jax.NAMES)), ("m", (jax.NO_ALPHA,))):
        pair = {f"{prefix}.lora_kernel_a": (5, 2), f"{prefix}.lora_kernel_b": (2, 6)}
        found, ledger = parsed("jax", {**pair, "lora.rank": (), "lora.vars.rank": ()})
        assert found.notes == notes
        assert {(item.name, item.reason) for item in ledger.skipped} == {
            ("lora.rank", jax.RANK), ("lora.vars.rank", jax.RANK)
        }  # fmt: skip


# --- what PEFT writes, too --------------------------------------------------------------------------------------------


def group(module, **shapes):
    keys = {role: Key(f"{module}.{role}", module, role, None, "", 0) for role in shapes}
    return Group(module, 0, keys, {role: array(*shape) for role, shape in shapes.items()})


def test_peft_s_lokr_of_a_one_dimensional_convolution_with_its_first_operand_in_two():
    """kron(w1 (1, a, b), w2 (c, d, k)), read in the order of its entries as (a·c, b·d·k)."""
    module = group("m", lokr_w1_a=(2, 5), lokr_w1_b=(5, 3), lokr_w2=(4, 6, 7))
    update = of_peft.lokr(module, read_config({"peft_type": "LOKR", "r": 5, "alpha": 10}))
    w1, w2 = array(2, 5).read() @ array(5, 3).read(), array(4, 6, 7).read()
    expected = 2 * np.kron(w1[None], w2).reshape(8, 126)
    np.testing.assert_allclose(dense(update.delta()), expected, rtol=0, atol=1e-12)
    assert (update.kernel, update.shape) == ((7,), (8, 126))


FITS = {"lora_A": (4, 5), "lora_B": (6, 2)}


@pytest.mark.parametrize(
    ("shapes", "valid"),
    [
        (FITS, True), ({**FITS, "lora_B": (6, 2, 1)}, True), ({**FITS, "lora_B": (7, 2)}, False),
        ({**FITS, "lora_A": (6, 5)}, False), ({**FITS, "lora_A": (4, 5, 1)}, False), ({**FITS, "lora_A": (4,)}, False),
        ({**FITS, "lora_B": (6, 2, 2)}, False), ({**FITS, "lora_B": (6, 3)}, False),
        ({**FITS, "lora_magnitude_vector": (9,)}, False),
    ],
)  # fmt: skip
def test_the_blocks_of_a_merged_linear(shapes, valid):
    """Two of three blocks of three rows, with r = 2: the second has rows of zeros."""
    config = read_config({"peft_type": "LORA", "r": 2, "lora_alpha": 6})
    if not valid:
        with pytest.raises(InputError, match="do not fit enable_lora"):
            merged_linear.merged_linear(group("m", **shapes), (True, False, True), config)
        return
    update = merged_linear.merged_linear(group("m", **shapes), (True, False, True), config)
    a, b = array(4, 5).read(), array(*shapes["lora_B"]).read().reshape(6, 2)
    expected = 3 * np.concatenate([b[:3] @ a[:2], np.zeros((3, 5)), b[3:] @ a[2:]])
    np.testing.assert_allclose(dense(update.delta()), expected, rtol=0, atol=1e-13)
    assert update.notes[0].startswith("2 of 3 blocks of 3 rows are adapted (enable_lora), each with rank 2")


@pytest.mark.parametrize(
    ("width", "factor", "columns"), [(12, 0.75, 12), (3, 1.0, 3), (24, 0.75, 12), (None, 0.75, 12)]
)
def test_qalora_pools_where_the_base_does_not_show_that_a_has_its_width(width, factor, columns, tmp_path):
    base = base_of(tmp_path, **{"m.weight": (8, width)}) if width else None
    config = read_config({"peft_type": "LORA", "r": 2, "use_qalora": True, "qalora_group_size": 4})
    found, scale = lora_variants.in_loras_shape(group("m", lora_A=(2, 3), lora_B=(8, 2)), Context(config, base, []))
    assert (scale, found.shape("lora_A")) == (factor, (2, columns))
    np.testing.assert_array_equal(found.stored["lora_A"].read(), np.repeat(array(2, 3).read(), columns // 3, axis=1))


def test_numbers_and_scales_of_key_groups():
    assert key_groups.number(number(3.0), "k") == key_groups.number(InMemory(np.full((1, 1), 3.0)), "k") == 3.0
    for bad, said in ((array(2), "not a single number"), (number(np.inf), "not a finite number")):
        with pytest.raises(InputError, match=said):
            key_groups.number(bad, "k")
    for alpha, scale in ((6.0, 3.0), (0.0, 1.0), (-2.0, -1.0), (None, 1.0)):
        tensors = {} if alpha is None else {"m.alpha": number(alpha)}
        keys = key_groups.KeyGroup("m", {"alpha": "m.alpha"} if tensors else {})
        assert key_groups.alpha_scale(keys, Ledger(tensors), 2) == scale
