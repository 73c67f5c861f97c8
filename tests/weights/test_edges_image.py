"""What readers of image models' dialects decide by a shape, a number or a name, at the values where that changes."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorascope.architectures.image import place
from lorascope.errors import InputError
from lorascope.updates.base import MAX_EXPANDED, Update, dense
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.formats import (
    diffusers,
    key_groups,
    kohya,
    lycoris,
    nunchaku,
    rotations,
)
from lorascope.weights.formats.base import Bundle, Ledger, formats
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


# --- kohya, LyCORIS and rotations -------------------------------------------------------------------------------------


def test_one_part_of_a_projection_and_none_left_out():
    """Block diagonal of as many parts as the highest number says."""
    one, _ = parsed("kohya", {"m.lora_down.0.weight": (2, 5), "m.lora_up.0.weight": (3, 2), "m.alpha": 3.0})
    assert (one.updates["m"].shape, one.updates["m"].scale) == ((3, 5), 1.5)
    three = {f"m.lora_down.{n}.weight": (2, 5) for n in range(3)} | {
        f"m.lora_up.{n}.weight": (3 + n, 2) for n in range(3)
    }
    update = parsed("kohya", three)[0].updates["m"]
    assert (update.shape, update.roles["A"].shape, update.roles["B"].shape) == ((12, 5), (6, 5), (12, 6))
    for n in range(3):
        for other in ({f"m.lora_down.{n}.weight": (2, 6)}, {f"m.lora_up.{n}.weight": (4, 3)}):
            with pytest.raises(InputError, match="do not fit together"):
                parsed("kohya", three | other)
    with pytest.raises(InputError, match="is missing"):
        parsed("kohya", {key: shape for key, shape in three.items() if ".1." not in key})


def test_a_bundled_embedding_is_skipped_as_what_it_is():
    shapes = {"m.lora_down.weight": (2, 5), "m.lora_up.weight": (3, 2), "bundle_emb.x": (2, 8)}
    _, ledger = parsed("kohya", shapes)
    assert [(i.name, i.reason.split(":")[0]) for i in ledger.skipped] == [
        ("bundle_emb.x", "a textual-inversion embedding bundled with the adapter")
    ]


def test_settings_of_sd_scripts():
    metadata = {"ss_a": "x" * 300, "ss_b": "x" * 301, "ss_network_args": '{"a": 1}', "other": "x"}
    assert kohya.settings(metadata) == {"ss_a": "x" * 300, "ss_b": "(301 characters)", "ss_network_args": {"a": 1}}
    assert kohya.settings({"ss_network_args": "{"}) == {"ss_network_args": "{"}


def test_what_is_said_of_underscores():
    assert kohya.name_notes(["a_b", "c.d"], {}, had_base=True)[0].startswith("1 module names fit no single")
    assert "stand for dots" in kohya.name_notes(["a_b"], {}, had_base=False)[0]
    assert kohya.name_notes(["a_b", "c.d"], {"a_b": "a.b"}, had_base=True) == ()


@pytest.mark.parametrize(
    ("shape", "kept"),
    [
        ((4, 3), True), ((4, 3, 2), True), ((1, 4, 3), False), ((1, 3), True), ((4, 3, 2, 2, 2), True),
        ((4, 3, 2, 2, 2, 2), False), ((4,), False), ((), False), ((1, 3, 2, 2), True),
    ],
)  # fmt: skip
def test_which_differences_are_of_matrices(shape, kept):
    found, ledger = parsed("lycoris", {"m.diff": shape})
    assert list(found.updates) == (["m"] if kept else [])
    assert len(ledger.skipped) == (not kept)
    if kept:
        assert (found.updates["m"].shape, found.updates["m"].kernel) == ((shape[0], math.prod(shape[1:])), shape[2:])


WHOLE, WHOLE_RS, AMBIGUOUS = lycoris.WHOLE_SCALE, lycoris.WHOLE_RS, lycoris.AMBIGUOUS
TOP = (1 << 14) - 1


@pytest.mark.parametrize(
    ("rs_lora", "ranks", "alpha", "factor", "said"),
    [
        (None, (), 8.0, 1.0, AMBIGUOUS),  # of rank 8, or of rank 4 with rs_lora
        (None, (4,), 8.0, 2.0, WHOLE_RS),
        (None, (8,), 8.0, 1.0, WHOLE),
        (None, (4, 8), 8.0, 1.0, AMBIGUOUS),
        (True, (), 8.0, 2.0, WHOLE_RS),
        (False, (4,), 8.0, 1.0, WHOLE),
        (None, (), 7.0, 1.0, WHOLE),
        (True, (), 7.0, 1.0, WHOLE),
        (None, (), 5.0**1.5, 5.0**0.5, WHOLE_RS),  # no whole number
        (None, (), 1.0, 1.0, WHOLE),  # of rank 1 both are one
        (True, (), 2.0**1.5, 2.0**0.5, WHOLE_RS),
        (True, (), TOP**1.5, TOP**0.5, WHOLE_RS),
        (True, (), (TOP + 1.0) ** 1.5, 1.0, WHOLE),
        (True, (), -8.0, 1.0, WHOLE),
        (True, (), 8.001, 1.0, WHOLE),
        (True, (), 8.000001, 2.0, WHOLE_RS),
    ],
)
def test_the_scale_of_a_lokr_whose_operands_are_whole(rs_lora, ranks, alpha, factor, said):
    found, note = lycoris._LokrRanks(rs_lora, frozenset(ranks))._factor(alpha, 1e-6)
    assert (found, note) == (pytest.approx(factor, rel=1e-12), said)


@pytest.mark.parametrize(
    ("metadata", "rs_lora", "ranks"),
    [
        ({}, None, {3}), ({"ss_network_dim": "16"}, None, {3, 16}), ({"ss_network_dim": "x"}, None, {3}),
        ({"ss_network_args": '{"rs_lora": "True"}'}, True, {3}), ({"ss_network_args": "{}"}, False, {3}),
        ({"ss_network_args": '{"rs_lora": false}'}, False, {3}), ({"ss_network_args": "x"}, None, {3}),
    ],
)  # fmt: skip
def test_what_a_file_says_of_ranks(metadata, rs_lora, ranks):
    tensors = {"m.lokr_w2_b": array(3, 4), "n.lokr_w1_a": array(5, 6), "o.lokr_w1_b": array()}
    found = lycoris._LokrRanks.of(Bundle("a", tensors, metadata))
    assert (found.rs_lora, found.ranks) == (rs_lora, frozenset(ranks))


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"lokr_w1": (2, 2), "lokr_w2": (2, 2), "lokr_t2": (2, 2, 3)}, "no lokr_w2_a and lokr_w2_b"),
        ({"lokr_w1": (2, 2), "lokr_w2": (2, 2), "lokr_w2_a": (2, 2)}, "w2 both whole and factored"),
        ({"lokr_w1": (2, 2), "lokr_w1_b": (2, 2), "lokr_w2": (2, 2)}, "w1 both whole and factored"),
        ({"lokr_w1": (2, 2), "lokr_w2_a": (2, 2)}, r"lokr_w2_b' is missing"),
        ({"lokr_w1": (2, 2), "diff": (2, 2)}, "mixes the keys of several"),
        ({"on_input": ()}, r"weight' is missing"),
        ({"on_input": (), "weight": (2, 3)}, "is not a vector"),
        ({"oft_blocks.0": (2, 4, 5), "oft_blocks.1": (3, 4, 5)}, "are not square blocks"),
        ({"oft_blocks.0": (2, 4, 0), "oft_blocks.1": (3, 4, 0)}, "are not square blocks"),
        ({"oft_blocks.0": (4, 4), "oft_blocks.1": (3, 4)}, "are not square blocks"),
        ({"oft_blocks": (2, 4, 5)}, "are not square blocks"),
        ({"oft_R.weight": (2, 5)}, "are not a triangle"),
        ({"oft_R.weight": (0, 6)}, "is not a matrix"),
    ],
)
def test_what_lycoris_keys_contradict(shapes, said):
    with pytest.raises(InputError, match=said):
        parsed("lycoris", {f"m.{key}": shape for key, shape in shapes.items()})


@pytest.mark.parametrize("by_sd_scripts", [False, True])
def test_blocks_are_made_smaller_where_q_is_longer_than_it_may_be(by_sd_scripts):
    """Q = B − Bᵀ; sd-scripts adds 1e-8 to both lengths, LyCORIS to its norm alone."""
    blocks = np.random.default_rng(0).standard_normal((2, 3, 3))
    norm = np.linalg.norm(blocks - blocks.swapaxes(1, 2))
    for limit in (norm / 2, 2 * norm):
        found = rotations._bounded(blocks, limit, by_sd_scripts)
        factor = (min(norm, limit) + 1e-8) / (norm + 1e-8) if by_sd_scripts else min(1.0, limit / (norm + 1e-8))
        np.testing.assert_allclose(found, blocks * factor, rtol=1e-15)
    assert not rotations._bounded(np.zeros((1, 2, 2)), 0.0, by_sd_scripts).any()


def test_a_factor_of_channels_is_that_of_each_position(tmp_path):
    """As long as there is room for it; of a matrix there is one position."""
    update = Update("m", "scaling", {"in_scale": array(3)})
    found = rotations.of_kernel(update, base_of(tmp_path, **{"m.weight": (2, 3, 2, 2)}), {})
    np.testing.assert_array_equal(found.read()["in_scale"], np.repeat(array(3).read(), 4))
    assert found.kernel == (2, 2)
    of_one = rotations.of_kernel(update, base_of(tmp_path / "one", **{"m.weight": (2, 3, 5)}), {})
    assert (of_one.roles["in_scale"].shape, of_one.kernel) == ((15,), (5,))
    assert rotations.of_kernel(update, base_of(tmp_path / "matrix", **{"m.weight": (2, 3)}), {}) is update
    named = rotations.of_kernel(update, base_of(tmp_path / "named", **{"x.weight": (2, 3, 5)}), {"m": "x"})
    assert named.kernel == (5,)
    assert rotations.of_kernel(update, None, {}) is update


@pytest.mark.parametrize(("channels", "repeated"), [(MAX_EXPANDED // 4, True), (MAX_EXPANDED // 4 + 1, False)])
def test_as_many_factors_as_may_be_written_out(channels, repeated, tmp_path):
    class Announced:
        dtype, shape = "F32", (channels,)

    update = Update("m", "scaling", {"in_scale": Announced()})
    found = rotations.of_kernel(update, base_of(tmp_path, **{"m.weight": (2, 3, 2, 2)}), {})
    assert (found is not update) is repeated


@pytest.mark.parametrize(("shape", "turned"), [((2, 3, 3, 3), True), ((2, 3, 3), False), ((2, 3), False)])
def test_oft_v2_rotates_a_convolution_s_inputs_the_other_way(shape, turned, tmp_path):
    update = Update("m", "oft_v2", {"entries": array(2, 3)})
    found = rotations.of_kernel(update, base_of(tmp_path, **{"m.weight": shape}), {})
    np.testing.assert_array_equal(found.read()["entries"], array(2, 3).read() * (-1 if turned else 1))
    assert found.kernel == (shape[2:] if turned else ())


# --- diffusers, Nunchaku ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "projection", "module"),
    [
        ("unet.a.attn1.processor", "to_q", "unet.a.attn1.to_q"),
        ("unet.a.attn1", "to_out", "unet.a.attn1.to_out.0"),
        ("text_encoder.l.attn", "to_out", "text_encoder.l.attn.out_proj"),
        ("text_encoder_2.l.attn", "to_k", "text_encoder_2.l.attn.k_proj"),
        ("text_encoder.l.attn", "x", "text_encoder.l.attn.x"),
        ("unet.a.processor.to_q", None, "unet.a.to_q"),
        ("unet.a.processor", None, "unet.a"),
        ("double_blocks.3.processor.qkv_lora1", None, "double_blocks.3.processor.qkv_lora1"),
        ("x.single_blocks.3.processor.qkv_lora", None, "x.single_blocks.3.processor.qkv_lora"),
    ],
)
def test_a_module_s_path_in_a_pipeline(path, projection, module):
    assert diffusers._module(path, projection) == module


def test_components_of_diffusers_metadata():
    raw = {"unet.r": 2, "unet.lora_alpha": 6, "text_encoder.r": 2, "text_encoder.use_rslora": True}
    settings = diffusers.Settings.of({diffusers.METADATA: json.dumps(raw)})
    assert set(settings.configs) == {"unet", "text_encoder"}
    assert settings.scale("unet.m", 2) == 3.0
    assert settings.scale("text_encoder.m", 2) == 8 / 2**0.5
    assert settings.scale("text_encoder_2.m", 5) == 1.0
    assert settings.find("unetx.m") is None
    with pytest.raises(InputError, match=r"contradicts the tensors of unet\.m; found r 2; expected r 3"):
        settings.scale("unet.m", 3)
    own = diffusers.Settings.of({diffusers.METADATA: json.dumps({"r": 4, "lora_alpha": 2})})
    assert (own.scale("m", 4), own.find("a.b")[1]) == (0.5, "a.b")
    assert diffusers.Settings.of({}).configs == {}
    for text, said in (("{", "not valid JSON"), ("[1]", "not a JSON object")):
        with pytest.raises(InputError, match=said):
            diffusers.Settings.of({diffusers.METADATA: text})


@pytest.mark.parametrize(
    ("rank", "a_alike", "b_alike", "left"),
    [(2, True, True, 3), (2, False, True, 5), (2, True, False, 5), (5, True, True, 5), (6, True, True, 5),
     (0, True, True, 5), (None, True, True, 5)],
)  # fmt: skip
def test_the_base_s_own_branch_is_taken_off_where_it_is_the_same(rank, a_alike, b_alike, left, tmp_path):
    """Of a norm, whose factors are not packed: A (r, d_in), and B with its rows in another order."""
    down, up, key = array(8, 4).read(), array(12, 8).read(), "m.norm.linear"
    tensors = {"x": down}
    if rank is not None:
        tensors |= {f"{key}.lora_down": down[:rank] + (not a_alike), f"{key}.lora_up": up[:, :rank] + (not b_alike)}
    save_file({k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()}, tmp_path / "m.safetensors")
    base = open_checkpoint(tmp_path / "m.safetensors")
    pair = [InMemory(np.ascontiguousarray(values)) for values in (down[:5], up[:, :5])]
    update = Update(key, "low_rank", nunchaku._roles(key, *pair))
    found, seen = nunchaku._without_branch(update, key, base)
    assert (found.rank, found.shape, seen) == (left, (12, 4), rank is not None)
    assert found.notes == (() if left == 5 else (nunchaku.BRANCH.format(rank=2, all=5),))
    np.testing.assert_array_equal(found.read()["A"], down[5 - left : 5])
    assert nunchaku._without_branch(update, key, None) == (update, False)


@pytest.mark.parametrize("lost", ["lora_down", "lora_up"])
def test_a_missing_half_of_nunchaku_s_is_named(lost):
    there = "lora_up" if lost == "lora_down" else "lora_down"
    with pytest.raises(InputError, match=f"m.{lost}' is missing"):
        parsed("nunchaku", {f"m.{there}": (16, 16)})


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(("d_out", "d_in"), [(6, 6), (8, 6), (6, 8)])
def test_glora_of_the_first_files_has_each_pair_the_other_way_round(d_out, d_in, first):
    """Of a square W the rank, which is smaller, tells."""
    shapes = {"a1": (d_in, 2), "a2": (2, d_in), "b1": (d_out, 2), "b2": (2, d_in)}
    if first:
        shapes = {"a1": shapes["a2"], "a2": shapes["a1"], "b1": shapes["b2"], "b2": shapes["b1"]}
    found, _ = parsed("lycoris", {f"m.{key}.weight": shape for key, shape in shapes.items()} | {"m.alpha": 6.0})
    roles = {role: stored.shape for role, stored in found.updates["m"].roles.items()}
    assert roles == {"a1": (d_in, 2), "a2": (2, d_in), "b1": (d_out, 2), "b2": (2, d_in)}
    assert found.updates["m"].scale == 3.0


LENGTHS = [((6,), True), ((6, 1), True), ((1, 6), False), ((), False), ((6, 2), False)]


@pytest.mark.parametrize(("shape", "valid"), LENGTHS)
def test_lengths_of_rows(shape, valid):
    for others, role in (({"oft_R.weight": (3, 6)}, "dora_scale"), ({"oft_blocks": (3, 4, 4)}, "rescale")):
        shapes = {f"m.{key}": other for key, other in {**others, role: shape}.items()}
        if valid:
            assert parsed("lycoris", shapes)[0].updates["m"].roles["m" if role == "dora_scale" else "g"].shape == (6,)
        else:
            with pytest.raises(InputError, match="does not fit"):
                parsed("lycoris", shapes)


@pytest.mark.parametrize(("norm", "parts"), [("norm.linear", 3), ("norm1.linear", 6), ("norm1_context.linear", 6)])
def test_rows_of_a_norm_stand_by_channel(norm, parts):
    """Of each channel its shift, scale and gate: row c·parts + p is the channel c's part p."""
    up = array(12, 2)
    found = nunchaku._roles(f"b.{norm}", array(2, 5), up)["B"].read()
    expected = [up.read()[channel * parts + part] for part in range(parts) for channel in range(12 // parts)]
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(InputError, match="do not fit"):
        nunchaku._roles(f"b.{norm}", array(2, 5), array(13, 2))


def test_a_core_without_a_kernel_of_its_own():
    """ΔW = up·mid·down, of a linear map."""
    shapes = {"down": (2, 5), "mid": (3, 2), "up": (6, 3)}
    tensors = {f"m.lora_{key}.weight": array(*shape) for key, shape in shapes.items()}
    update = kohya.read_pair(key_groups.by_module(tensors, kohya.SUFFIXES)["m"], Ledger(tensors))
    down, mid, up = (array(*shape).read() for shape in shapes.values())
    np.testing.assert_allclose(dense(update.delta()), up @ mid @ down, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("module", "where"),
    [
        ("a.b.c", "a_b_c"),
        ("double_blocks.3.img_attn.qkv", None),  # three there
        ("joint_blocks.3.x_block.attn.qkv", None),
        ("final_layer.adaLN_modulation.1", None),  # other rows there
    ],
)
def test_a_module_s_one_place_in_diffusers_scheme(module, where):
    assert key_groups._placed(module) == where
    assert (len(place(module).parts) > 1 or place(module).swapped) is (where is None)
