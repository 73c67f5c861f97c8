"""What PEFT's families decide by a number, a name or a flag, at the values where that changes."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft.tuners.adamss import utils as peft_adamss
from safetensors.numpy import save_file

from lorascope.errors import InputError
from lorascope.updates.base import dense
from lorascope.weights import io
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.formats.peft import (
    adamss,
    cayley,
    draws,
    frod,
    glora,
    hra,
    oft,
    psoft,
    randlora,
    road,
    unilora,
    vera,
)
from lorascope.weights.formats.peft.family import Context, Group
from lorascope.weights.formats.peft.keys import Key
from lorascope.weights.formats.peft.places import Place
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


# --- series, blocks and draws -----------------------------------------------------------------------------------------


def skews():
    blocks = np.random.default_rng(1).standard_normal((2, 4, 4)) * 0.3
    return blocks - blocks.swapaxes(1, 2)


@pytest.mark.parametrize("last", [1.0, 2.0])
@pytest.mark.parametrize("terms", [0, 1, 2, 3, 4, 5, 7])
def test_the_series_is_written_out(terms, last):
    """1 + 2·S + 2·S² + …; the last term from the fourth on has the factor `last`, and of three terms PEFT since 0.18
    adds the cube once."""
    s, factors = skews(), [1.0, *[2.0] * (terms - 1)]
    if terms > 3:
        factors[-1] = last
    if terms == 3 and last == 1.0:
        factors += [1.0]
    expected = sum(f * np.linalg.matrix_power(s, n) for n, f in enumerate(factors or [1.0]))
    found = cayley.neumann(s, terms, last)
    np.testing.assert_allclose(found, np.broadcast_to(expected, s.shape), rtol=0, atol=1e-13)


def test_a_block_within_the_norm_stays_as_it_is():
    """eps/√k for k blocks; one of zeros, too."""
    blocks = np.stack([np.full((2, 2), 0.5), np.zeros((2, 2)), np.full((2, 2), 5.0), np.eye(2)])
    with np.errstate(all="raise"):
        found = cayley.constrained(blocks, 4.0)  # at most 2
    np.testing.assert_array_equal(found[[0, 1, 3]], blocks[[0, 1, 3]])
    assert np.linalg.norm(found[2]) == pytest.approx(2.0, rel=1e-12)


def test_the_side_of_a_triangle():
    sides = {side * (side - 1) // 2: side for side in range(2, 10)}
    for count in range(40):
        if count in sides:
            assert cayley.side_of(count) == sides[count]
        else:
            with pytest.raises(InputError, match="not the triangle"):
                cayley.side_of(count)


@pytest.mark.parametrize(
    ("version", "parts"),
    [
        ("0.18.1.dev0@abc", (0, 18)), ("0.17.1", (0, 17)), ("1.2", (1, 2)), (None, (0, 0)), ("", (0, 0)),
        ("1", (1,)), ("0.x.3", (0, 0)), ("a.5", (0, 5)),
    ],
)  # fmt: skip
def test_a_version_s_first_two_numbers(version, parts):
    assert oft._version(version) == parts


@pytest.mark.parametrize(
    ("raw", "note"),
    [
        ({}, oft.OLD_SERIES),
        ({"peft_version": "0.17.9"}, oft.OLD_SERIES),
        ({"peft_version": "0.18.0"}, ""),
        ({"peft_version": "0.17", "use_cayley_neumann": False}, ""),
        (None, oft.NO_CONFIG),
    ],
)
def test_what_is_said_of_a_series(raw, note):
    given = read_config(None) if raw is None else config("OFT", **raw)
    transform, found = oft._transform(given)
    assert found == note
    assert transform(np.ones((2, 6))).shape == (2, 4, 4)


@pytest.mark.parametrize(("terms", "valid"), [(0, False), (1, True), (100, True), (101, False), (True, False)])
def test_how_many_terms_there_may_be(terms, valid):
    weight = group("q", **{"psoft_R.weight": (6,)})
    for read in (
        lambda: oft._transform(config("OFT", num_cayley_neumann_terms=terms)),
        lambda: psoft._core(weight, config("PSOFT", r=4, num_cayley_neumann_terms=terms), True),
    ):
        if valid:
            read()
        else:
            with pytest.raises(InputError, match="not a number of terms"):
                read()


@pytest.mark.parametrize(
    ("raw", "draw"),
    [
        ({}, (10, 0)),
        ({"psoft_svd_lowrank_niter": 0, "random_seed": (1 << 53) - 1}, (0, (1 << 53) - 1)),
        ({"psoft_svd_lowrank_niter": 1000}, (1000, 0)),
        ({"psoft_svd_lowrank_niter": 1001}, None),
        ({"random_seed": 1 << 53}, None),
        ({"random_seed": -1}, None),
        ({"psoft_svd_lowrank_niter": -1}, None),
        ({"random_seed": True}, None),
    ],
)
def test_the_draw_of_a_randomised_svd(raw, draw):
    if draw is not None:
        assert psoft._draw(config("PSOFT", **raw)) == draw
    else:
        with pytest.raises(InputError, match="is not a number"):
            psoft._draw(config("PSOFT", **raw))


@pytest.mark.parametrize(("shape", "valid"), [((4, 4), True), ((4, 5), False), ((5, 4), True), ((4,), False)])
def test_there_are_not_more_reflections_than_inputs(shape, valid):
    given = config("HRA", r=shape[-1])
    if valid:
        assert hra.HRA().read(group("q", hra_u=shape), context(given)).roles["u"].shape == shape
    else:
        with pytest.raises(InputError, match=r"is not \(d_in, r\)"):
            hra.HRA().read(group("q", hra_u=shape), context(given))


@pytest.mark.parametrize(
    ("raw", "settings"),
    [
        ({}, ("road_1", 64)),
        ({"variant": "road_4", "group_size": 2}, ("road_4", 2)),
        ({"group_size": 3}, None), ({"group_size": 1}, None), ({"group_size": 0}, None), ({"group_size": -2}, None),
        ({"group_size": 4.0}, None), ({"variant": "road_3"}, None),
    ],
)  # fmt: skip
def test_a_variant_of_road_and_its_groups(raw, settings):
    if settings is not None:
        assert road._settings(config("ROAD", **raw)) == settings
    else:
        with pytest.raises(InputError, match="not a variant"):
            road._settings(config("ROAD", **raw))


def test_more_numbers_than_may_be_drawn(monkeypatch):
    """Of RandLoRA's projections the larger is (longest side, ⌈shortest/r⌉, r); UniLoRA draws r·(d_in + d_out)."""
    sides = [SimpleNamespace(d_out=7, d_in=5)]
    given = context(config("RANDLORA", r=2))
    monkeypatch.setattr(randlora, "MAX_DRAWN", 7 * 3 * 2)
    a, b = randlora._drawn(sides, given)
    assert (a.shape, b.shape) == ((2, 1, 5), (7, 3, 2))
    monkeypatch.setattr(randlora, "MAX_DRAWN", 7 * 3 * 2 - 1)
    with pytest.raises(InputError, match="too large to draw"):
        randlora._drawn(sides, given)
    monkeypatch.setattr(vera, "MAX_DRAWN", 2 * 7)
    assert vera.draw_projections(0, 2, 5, 7)[1].shape == (7, 2)
    assert vera.draw_projections(0, 2, 7, 5)[0].shape == (2, 7)
    for sizes in ((2, 5, 8), (2, 8, 5), (2, 4, 5, 2)):
        with pytest.raises(InputError, match="too large to draw"):
            vera.draw_projections(0, *sizes)


def test_unilora_draws_as_many_indices_as_may_be(monkeypatch, tmp_path):
    given = context(config("UNILORA", r=2, target_modules=["q"]), base_of_torch(tmp_path))
    monkeypatch.setattr(unilora, "MAX_DRAWN", 2 * (7 + 5))
    with np.errstate(all="raise"):
        (update,) = unilora._drawn(array(100), given)  # of which most are never used
    assert (update.name, update.shape) == ("l.q", (7, 5))
    monkeypatch.setattr(unilora, "MAX_DRAWN", 2 * (7 + 5) - 1)
    with pytest.raises(InputError, match="too many to draw"):
        unilora._drawn(array(9), given)
    with pytest.raises(InputError, match="none of the modules"):
        unilora._drawn(array(9), context(config("UNILORA", r=2, target_modules=["p"]), given.base))


def test_an_index_that_unilora_s_vector_has_not_is_named_by_its_key():
    module = group("q", **SHARED["UNILORA"][1])
    for wrong in "AB":
        indices = {f"unilora_indices_{side}": 9 if side == wrong else 8 for side in "AB"}
        full = {key: InMemory(np.full(module.shape(key), at), "I64") for key, at in indices.items()}
        given = Group("q", 0, module.keys, {**module.stored, **full})
        update = unilora._update(given, array(9), context(config("UNILORA", r=1)))
        with pytest.raises(InputError, match=rf"q\.unilora_indices_{wrong} holds 9, which is not an index"):
            update.read()
    for shapes in ((5,), (6,)), ((1, 5), (6,)), ((5,), (6, 1)), ((1, 5), (6, 2)):
        sides = zip("AB", shapes, strict=True)
        own = {f"unilora_{what}_{side}": shape for side, shape in sides for what in ("indices", "scales")}
        with pytest.raises(InputError, match="do not fit together"):
            unilora._update(group("q", **own), array(9), context(read_config(None)))


def base_of_torch(folder):
    import torch

    torch.save({"l.q.weight": torch.ones(7, 5)}, folder / "pytorch_model.bin")
    return open_checkpoint(folder)


@pytest.mark.parametrize(("dtype", "digits"), [("F32", 24), ("BF16", 8), ("F16", 11), ("F8_E4M3", 24)])
def test_unilora_s_scales_are_rounded_to_the_base_s_type(dtype, digits):
    """1/√3 in float32, then in as many binary digits as a half type of the base has."""
    weight = SimpleNamespace(dtype=dtype, shape=(1, 2))
    indices, scales = np.array([0, 1, 0]), np.array([3**-0.5, 0.5], np.float32)
    update = unilora._of_indices("q", Place(1, 2, False, weight), InMemory(np.ones(2, "f4")), indices, scales, 1)
    rounded = np.round(float(np.float32(3**-0.5)) * 2.0**digits) / 2.0**digits
    np.testing.assert_array_equal(update.read()["A"], [[rounded, 0.5]])
    np.testing.assert_array_equal(update.read()["B"], [[rounded]])


@pytest.mark.parametrize("seed", [0, (1 << 63) - 1])
def test_a_note_of_a_draw_names_its_seed(seed):
    assert f"drawn again from key {seed} with torch" in draws.drawn_again("It: the numbers", "key", seed)


# --- tensors that modules share ---------------------------------------------------------------------------------------


SHARED = {
    "VERA": (
        {"r": 2}, {"vera_lambda_b": (6,), "vera_lambda_d": (2,)}, {"vera_A": (2, 5), "vera_B": (6, 2)},
        "VeRA's projection, of which one copy is enough",
    ),
    "PVERA": (
        {"r": 2}, {"pvera_lambda_b": (6,), "pvera_lambda_d": (4,)}, {"pvera_A": (4, 5), "pvera_B": (6, 2)},
        "VeRA's projection, of which one copy is enough",
    ),
    "RANDLORA": (
        {"r": 2}, {"randlora_gamma": (3, 5), "randlora_lambda": (2, 3)},
        {"randlora_A": (2, 1, 5), "randlora_B": (6, 3, 2)}, "RandLoRA's projection, of which one copy is enough",
    ),
    "VBLORA": (
        {"r": 1, "topk": 1}, {"vblora_logits_A": (1, 5, 4), "vblora_logits_B": (6, 1, 4)},
        {"vblora_vector_bank": (4, 1)}, "VB-LoRA's vector bank, of which one copy is enough",
    ),
    "UNILORA": (
        {"r": 1},
        {"unilora_indices_A": (1, 5), "unilora_indices_B": (6, 1), "unilora_scales_A": (1, 5),
         "unilora_scales_B": (6, 1)},
        {"unilora_theta_d": (9,)}, "UniLoRA's vector, of which one copy is enough",
    ),
}  # fmt: skip


@pytest.mark.parametrize("tuner", SHARED)
@pytest.mark.parametrize("copies", [1, 2, 3])
def test_of_several_copies_the_first_counts_and_the_others_are_skipped(tuner, copies, tmp_path):
    """A raw state dict has what modules share below each; of which the others are not looked at, whatever shape."""
    raw, own, shared, reason = SHARED[tuner]
    tensors = {f"base_model.model.l.q.{role}": shape for role, shape in own.items()}
    tensors |= {f"base_model.model.a.{role}": shape for role, shape in shared.items()}
    tensors |= {f"base_model.model.z{n}.{role}": (*s, 1) for n in range(copies - 1) for role, s in shared.items()}
    arrays = {
        key: np.ones(shape, "f4") if "indices" in key else np.random.default_rng(0).standard_normal(shape).astype("f4")
        for key, shape in tensors.items()
    }
    save_file(arrays, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": tuner, **raw}))
    adapter = io.read(tmp_path, base_of(tmp_path / "base", **{"l.q.weight": (6, 5)}))
    assert list(adapter.updates) == ["l.q"]
    delta = dense(adapter.updates["l.q"].delta())
    assert delta.shape == (6, 5)
    assert np.isfinite(delta).all()
    assert {item.reason for item in adapter.skipped} == ({reason} if copies > 1 else set())
    assert len(adapter.skipped) == (copies - 1) * len(shared)


def test_randlora_of_square_maps_needs_no_base():
    """Where the first copy of the projections leaves no choice, whatever the others' shape."""
    modules = group("l.q", randlora_lambda=(2, 3), randlora_gamma=(3, 5))
    first = group("", randlora_A=(2, 1, 5), randlora_B=(5, 3, 2))
    other = group("x", randlora_A=(2, 1, 9), randlora_B=(9, 3, 2))
    sides = randlora._sides(modules, [first, other], context(config("RANDLORA", r=2)))
    assert (sides.d_out, sides.d_in, sides.transposed) == (5, 5, False)
    for holders in ([other, first], []):
        with pytest.raises(InputError, match="pass --base"):
            randlora._sides(modules, holders, context(config("RANDLORA", r=2)))


def test_s_of_frod_has_no_entry_outside():
    shapes = {"frod_V": array(3, 3)}

    def update(*places):
        indices = InMemory(np.array(places, np.int64).reshape(2, -1), "I64")
        values = array(indices.shape[1])
        return frod._update("q", array(3), values, {**shapes, "frod_s_indices": indices}, context(config("FROD")))

    assert update(0, 2, 2, 0).read()["T"].shape == (3, 3)
    assert update().read()["T"].shape == (3, 3)
    for places in ((3, 0), (0, 3), (-1, 0), (0, -1)):
        with pytest.raises(InputError, match=r"S has an entry outside of \(3, 3\)"):
            update(*places).read()


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        ("q", "q"), ("l.0", "l_0"), ("0.q", "q"), ("q.0.0", "0"),
        ("l.0.q", "q"), ("l.0.attn.q", "attn_q"), ("l.0.output.dense", "output_dense"),
        ("l.0.attention.output.dense", "attention_output"), ("l.attention.x.output.dense", "output_dense"),
        ("attention.output.dense", "attention_output"), ("l.0.attention.output.q", "output_q"),
    ],
)  # fmt: skip
def test_frod_s_type_of_a_module(module, kind):
    assert frod.type_of(module) == kind


@pytest.mark.parametrize(("rank", "clusters"), [(4, 3), (20, 20), (2, 1)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_clusters_are_asked_for_as_peft_asks(rank, clusters, with_bias, monkeypatch):
    """With the same directions, number, start, steps and seed, whatever scikit-learn makes of them."""
    asked = []

    class KMeans:
        def __init__(self, n_clusters, **options):
            asked.append((n_clusters, options))

        def fit_predict(self, values):
            asked.append(np.array(values))
            return np.zeros(len(values), int)

    fake = SimpleNamespace(KMeans=KMeans)
    monkeypatch.setitem(sys.modules, "sklearn", SimpleNamespace(cluster=fake))
    monkeypatch.setitem(sys.modules, "sklearn.cluster", fake)
    weight, bias = array(9, 6), array(9) if with_bias else None
    given = config("ADAMSS", num_subspaces=clusters, random_seed=3)
    assert adamss.Clusters(weight, bias, rank, given).rows.tolist() == list(range(9))
    whole = np.column_stack([weight.read(), bias.read()]) if with_bias else weight.read()
    tensor = torch.from_numpy(whole).float()[None, None]
    _, left = peft_adamss.slice_pca(tensor, rank, "cpu", torch.float32, random_seed=3)
    peft_adamss.clustering_Z(left[0, 0], clusters, 10)
    assert asked[0] == asked[2]
    np.testing.assert_array_equal(asked[1], asked[3])


@pytest.mark.parametrize(
    ("changed", "valid"),
    [
        ({}, True), ({"newB": (2, 5)}, None), ({"newB": (2, 6)}, False), ({"newB": (2, 3)}, False),
        ({"newB": (3, 4)}, False), ({"newB": (2,)}, False), ({"newB": ()}, False), ({"newB": (2, 4, 1)}, False),
        ({"W": (5,)}, False), ({"W": (6, 4)}, False), ({"W": (5, 4, 1)}, False), ({"A1": (2, 2)}, False),
        ({"A1": (1, 3)}, False), ({"A1": (1,)}, False), ({"B1": (3,)}, False), ({"B1": ()}, False),
    ],
)  # fmt: skip
def test_which_tensors_of_adamss_fit(changed, valid, tmp_path):
    shapes = {"newB": (2, 4), "A0": (1, 2), "A1": (1, 2), "B0": (2, 1), "B1": (3, 1), "W": (5, 4)} | changed
    given = context(config("ADAMSS", r=2), base_of(tmp_path, **{"q.weight": shapes.pop("W")}))
    basis, *rest = (array(*shape) for shape in shapes.values())
    for downs in (rest[:2], rest[:1]):
        if valid and len(downs) == 2:
            assert adamss._update("q", basis, downs, rest[2:], given).shape == (5, 4)
            continue
        with pytest.raises(InputError, match="with a bias" if valid is None and len(downs) == 2 else "do not fit"):
            adamss._update("q", basis, downs, rest[2:], given)


@pytest.mark.parametrize(("labels", "valid"), [([0, 1, 0, 1, 1], True), ([0, 1, 1, 0, 0], False)])
def test_the_clusters_that_w_gives_are_those_of_the_file(labels, valid, tmp_path, monkeypatch):
    """Two rows in the first and three in the second: with the clusters the other way round the bounds are others."""
    monkeypatch.setattr(adamss.Clusters, "_labels", lambda self: np.array(labels))
    tensors = {"newB": array(2, 4), "A0": array(1, 2), "A1": array(1, 2), "B0": array(2, 1), "B1": array(3, 1)}
    given = context(config("ADAMSS", r=2), base_of(tmp_path, **{"q.weight": (5, 4)}))
    update = adamss._update("q", tensors["newB"], [tensors["A0"], tensors["A1"]], [tensors["B0"], tensors["B1"]], given)
    if not valid:
        with pytest.raises(InputError, match="are not those of the file"):
            update.read()
        return
    expected = np.zeros((5, 4))
    for cluster in (0, 1):
        rows = np.flatnonzero(np.array(labels) == cluster)
        expected[rows] = tensors[f"B{cluster}"].read() @ tensors[f"A{cluster}"].read() @ tensors["newB"].read()
    np.testing.assert_allclose(dense(update.delta()), expected, rtol=0, atol=1e-14)
    assert update.bias is None


@pytest.mark.parametrize(
    ("shape", "valid"), [((5, 1), True), ((1, 5), True), ((0, 5), False), ((5, 0), False), ((5,), False)]
)
def test_zeros_in_the_shape_of_w(shape, valid):
    """Of GLoRA's bias alone; a column of them serves."""
    if valid:
        assert glora._first_column(array(*shape)).shape == (shape[0], 1)
        np.testing.assert_array_equal(glora._first_column(array(*shape)).read(), array(*shape).read()[:, :1])
    else:
        with pytest.raises(InputError, match="have not the shape of W"):
            glora._first_column(array(*shape))
