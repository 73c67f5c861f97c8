"""Comparisons of adapters in memory: planted overlaps, gauges, ties, initialisations, names, many adapters."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorascope.analyses import compare
from lorascope.analyses.compare.inputs import MATCHING
from lorascope.analyses.compare.matrices import SINGLE_FROM
from lorascope.blocks import Heatmap
from lorascope.errors import InputError
from lorascope.updates.base import Update
from lorascope.weights import io
from lorascope.weights.adapter import Adapter, Source
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.tensors import InMemory
from tests.weights import examples

M, N, LAYERS = 96, 128, 4


def orthonormal(rng: np.random.Generator, m: int, k: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((m, k)))[0]


def update(name: str, b: np.ndarray, a: np.ndarray, **more) -> Update:
    return Update(name, "low_rank", {"A": InMemory(a), "B": InMemory(b)}, **more)


def adapter(path: str, updates: list[Update]) -> Adapter:
    return Adapter({one.name: one for one in updates}, source=Source(path, None, "memory", "LoRA"))


def name(layer: int) -> str:
    return f"model.layers.{layer}.q_proj"


def lora(path: str, seed: int, rank: int = 4, init: int | None = None, task: int | None = None) -> Adapter:
    """A from the stream `init` (leading rows the same for every rank), B of random columns or of a task's two."""
    rng, first = np.random.default_rng([7, seed]), np.random.default_rng([8, seed if init is None else init])
    updates = []
    for layer in range(LAYERS):
        a = first.uniform(-1, 1, (32, N))[:rank] / N**0.5
        a += 0.1 * rng.standard_normal(a.shape) / N**0.5
        b = rng.standard_normal((M, rank))
        if task is not None:
            common = np.linalg.qr(np.random.default_rng([9, task, layer]).standard_normal((M, 2)))[0]
            b = common @ rng.standard_normal((2, rank)) * 10 + 0.1 * b
        updates.append(update(name(layer), b, a))
    return adapter(path, updates)


def only(result) -> dict:
    (pair,) = result.to_json()["pairs"]
    return pair


def test_the_schema():
    found = compare.run([lora("x/one", 0), lora("x/two", 1, rank=6)]).to_json()
    text = json.dumps(found, allow_nan=False)
    assert found["schema"] == 2
    assert {"pairs", "skipped"} <= found.keys()
    pair = found["pairs"][0]
    assert (pair["a"], pair["b"]) == ("one", "two")
    assert pair.keys() == {"a", "b", "modules", "summary"}
    assert len(pair["modules"]) == LAYERS
    for row in pair["modules"]:
        assert {"name", "cosine", "left", "right", "a_alone"} <= row.keys()
        for side, n in (("left", M), ("right", N), ("a_alone", N)):
            about = row[side]
            assert {"principal_angles", "phi", "phi_chance", "z", "p", "q", "effect"} <= about.keys()
            assert about["principal_angles"] == sorted(about["principal_angles"])
            assert np.shape(about["phi"]) == (4, 6)
            assert about["phi_chance"] == pytest.approx(6 / n)
            assert about["phi"][-1][-1] == pytest.approx(about["phi_whole"], abs=1e-9)
    assert "NaN" not in text


def test_independent_adapters_are_at_the_chance_level():
    found = only(compare.run([lora("a", 0), lora("b", 1)]))["summary"]
    for side in ("left", "right", "a_alone"):
        assert abs(found[side]["pooled_z"]) < 4
        assert found[side]["significant"] == 0
    assert found["shared_initialisation"]["modules"] == 0
    assert abs(found["cosine"]) < 5 / np.sqrt(M * N)


def test_planted_angles_come_back_on_the_side_where_they_are(rng):
    angles = np.array([1e-6, 0.4, 1.0])
    frame, right = orthonormal(rng, M, 6), [orthonormal(rng, N, 3), orthonormal(rng, N, 3)]
    u, v = frame[:, :3], frame[:, :3] * np.cos(angles) + frame[:, 3:] * np.sin(angles)
    sigma = np.array([3.0, 2.0, 1.0])
    sides = [adapter(str(k), [update(name(0), side * sigma, right[k].T)]) for k, side in enumerate((u, v))]
    row = only(compare.run(sides))["modules"][0]
    np.testing.assert_allclose(row["left"]["principal_angles"], angles, rtol=0, atol=1e-12)
    expected = np.cumsum(np.cos(angles) ** 2) / np.arange(1, 4)
    np.testing.assert_allclose(np.diag(row["left"]["phi"]), expected, rtol=0, atol=1e-9)
    assert row["left"]["projection_distance"] == pytest.approx(np.linalg.norm(np.sin(angles)))
    assert row["left"]["p"] < 1e-9
    assert row["right"]["p"] > 1e-3


def test_one_update_in_two_gauges_stored_in_float32(rng):
    one = lora("a", 0, rank=4)
    turned = []
    for old in one.updates.values():
        roles, gauge = old.read(), rng.standard_normal((4, 4))
        b, a = roles["B"] @ gauge, np.linalg.solve(gauge, roles["A"])
        turned.append(update(old.name, b.astype(np.float32), a.astype(np.float32)))
    result = compare.run([one, adapter("b", turned)])
    for row in only(result)["modules"]:
        assert row["cosine"] == pytest.approx(1, abs=1e-6)
        for side in ("left", "right"):
            # float32 times the condition of a random 4 × 4 gauge
            assert max(row[side]["principal_angles"]) < 1e-4
            assert row[side]["phi"][0][0] == pytest.approx(1, abs=1e-6)
    assert result.findings[0].text == "Identical: cosine 1.000000 over all modules"
    assert not any("initialisation" in finding.text for finding in result.findings)


def test_a_base_without_any_of_the_weights_is_refused(rng, tmp_path):
    save_file({"other.weight": np.zeros((3, 4), np.float32)}, tmp_path / "model.safetensors")
    base, adapters = open_checkpoint(tmp_path), [lora("a", 0), lora("b", 1)]
    with pytest.raises(InputError, match=r"is not the base of these adapters.*'other\.weight'"):
        compare.run(adapters, base=base)
    everything = {f"{module}.weight": np.zeros(one.shape, np.float32) for module, one in adapters[0].updates.items()}
    save_file(dict(list(everything.items())[:1]), tmp_path / "model.safetensors")  # of one part of a pipeline, say
    assert compare.run(adapters, base=open_checkpoint(tmp_path))


def test_more_rank_in_the_file_than_in_the_update(rng):
    """Two columns of B depend on the others, up to float32: they are no directions of the update."""
    one = lora("a", 0, rank=4)
    padded = []
    for old in one.updates.values():
        b, a = old.read()["B"], old.read()["A"]
        mix = rng.standard_normal((6, 6))
        b, a = np.concatenate([b, np.zeros((M, 2))], 1) @ mix, np.linalg.solve(mix, np.concatenate([a, a[:2]]))
        padded.append(update(old.name, b.astype(np.float32), a.astype(np.float32)))
    row = only(compare.run([one, adapter("b", padded)]))["modules"][0]
    assert row["left"]["dims"] == [4, 4]
    assert row["cosine"] == pytest.approx(1, abs=1e-5)


def test_equal_singular_values_have_no_order(rng):
    """σ = 2, 1, 1: φ(2, ·) is left out, and what remains does not depend on the basis that the factors bring."""
    left, right = orthonormal(rng, M, 3), orthonormal(rng, N, 3)
    other = [update(name(0), rng.standard_normal((M, 2)), rng.standard_normal((2, N)))]
    grids = []
    for turn in (0.0, 0.9):
        mix = np.eye(3)
        mix[1:, 1:] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
        tied = [update(name(0), left @ mix * [2.0, 1.0, 1.0], (right @ mix).T)]
        row = only(compare.run([adapter("a", tied), adapter("b", other)]))["modules"][0]
        assert row["left"]["tied_after"] == [[2], []]
        assert row["left"]["phi"][1] == [None, None]
        assert row["left"]["phi_z"][1] == [None, None]
        grids.append([line for line in row["left"]["phi"] if line[0] is not None])
    np.testing.assert_allclose(*grids, rtol=0, atol=1e-9)


def test_a_shared_seed_is_said_loudly_whatever_the_ranks():
    """Rank 4 is the leading rows of rank 16 in one stream: all of A agrees, and B does not."""
    result = compare.run([lora("small", 0, rank=4, init=5), lora("large", 1, rank=16, init=5)])
    summary = only(result)["summary"]
    assert summary["shared_initialisation"]["modules"] == LAYERS
    assert summary["right"]["median_effect"] > 0.8
    assert abs(summary["left"]["pooled_z"]) < 4
    rows = only(result)["modules"]
    assert {row["cosine_null"] for row in rows} == {"left side rotated"}
    assert max(abs(row["cosine_z"]) for row in rows) < 4  # the B are independent
    assert min(row["cosine_sd"] for row in rows) > 2 / np.sqrt(M * N)  # more than of two random sides
    loud = result.findings[0]
    assert loud.severity == "warning"
    assert "Same random initialisation of A in all 4 modules" in loud.text


def test_a_seed_shared_by_the_first_module_only():
    """One global stream and two ranks: the streams part after the first module."""
    first, second = lora("a", 0, rank=4, init=5), lora("b", 1, rank=8)
    shared = lora("c", 1, rank=8, init=5)
    mixed = adapter("b", [shared.updates[name(0)], *list(second.updates.values())[1:]])
    result = compare.run([first, mixed])
    assert only(result)["summary"]["shared_initialisation"]["modules"] == 1
    assert result.findings[0].module == name(0)
    assert "1 of 4 modules" in result.findings[0].text


def test_subspaces_trained_alike_are_not_taken_for_a_shared_seed(rng):
    """The right spaces agree in half of their directions, the rows do not: no word of an initialisation."""
    common = orthonormal(rng, N, 2)
    sides = []
    for k in range(2):
        a = rng.standard_normal((4, 2)) @ common.T * 3 + rng.standard_normal((4, N)) / N**0.5
        sides.append(adapter(str(k), [update(name(0), rng.standard_normal((M, 4)), a)]))
    row = only(compare.run(sides))["modules"][0]
    assert row["right"]["p"] < 1e-6
    assert not row["initialisation"]["shared"]


@pytest.mark.parametrize("cosine", [0.6, -0.9])
def test_a_single_row_trained_to_one_direction_is_not_taken_for_a_shared_seed(rng, cosine):
    """Rank 1: two rows that training turned to one direction, or to its opposite, agree as no four rows would."""
    direction, other = orthonormal(rng, N, 2).T
    rows = [direction, cosine * direction + (1 - cosine**2) ** 0.5 * other]
    pair = [adapter(str(k), [update(name(0), rng.standard_normal((M, 1)), row[None])]) for k, row in enumerate(rows)]
    row = only(compare.run(pair))["modules"][0]
    assert row["initialisation"]["row_cosine"] == pytest.approx(cosine)
    assert not row["initialisation"]["shared"]


def test_names_of_other_dialects_and_modules_on_one_side():
    one, two = lora("a", 0), lora("b", 1)
    flat = [update(u.name.replace(".", "_"), *(u.read()[r] for r in "BA")) for u in two.updates.values()]
    prefixed = [update(f"base.{u.name}", *(u.read()[r] for r in "BA")) for u in two.updates.values()]
    extra = update("model.layers.0.k_proj", np.ones((M, 1)), np.ones((1, N)))
    expected = [row["cosine"] for row in only(compare.run([one, two]))["modules"]]
    for renamed in (flat, prefixed):
        found = compare.run([one, adapter("b", [*renamed[:3], extra])])
        assert [row["cosine"] for row in only(found)["modules"]] == expected[:3]
        assert {item.name for item in found.skipped_in(MATCHING)} == {name(3), extra.name}
    with pytest.raises(InputError, match="no module in common"):
        compare.run([one, adapter("c", [extra])])


def test_other_shapes_are_listed_and_not_compared():
    one, two = lora("a", 0), lora("b", 1)
    odd = update(name(0), np.ones((M, 1)), np.ones((1, N + 1)))
    found = compare.run([one, adapter("b", [odd, *list(two.updates.values())[1:]])])
    assert [row["name"] for row in only(found)["modules"]] == [name(k) for k in (1, 2, 3)]
    (item,) = found.skipped
    assert (item.name, item.adapter, item.stage) == (name(0), "b", "matching")
    assert "96×129" in item.reason


def test_against_a_dense_update_and_what_needs_the_base(rng):
    """The dense ΔW is one adapter's and a little noise: its leading directions hold the adapter's."""
    one = lora("a", 0)
    dense = [
        Update(u.name, "dense", {"delta": InMemory(u.delta().dense() + 1e-3 * rng.standard_normal((M, N)))})
        for u in list(one.updates.values())[:3]
    ]
    scaling = Update(name(3), "scaling", {"out_scale": InMemory(np.ones(M))})
    result = compare.run([one, adapter("full", [*dense, scaling])], directions=8)
    rows = only(result)["modules"]
    assert [row["left"]["dims"] for row in rows] == [[4, 8]] * 3
    for row in rows:
        assert row["cosine"] > 0.99
        assert row["left"]["energy_of_b_in_a"]["value"] > 0.99
        assert row["right"]["effect"] > 0.95
    assert [item.name for item in result.skipped if item.adapter] == [name(3)]


def test_large_dense_updates_by_their_leading_directions(rng, monkeypatch):
    """A dense ΔW of three strong directions and noise, decomposed whole and by its leading directions alone."""
    from lorascope.analyses import subspaces

    one = adapter("a", [lora("a", 0).updates[name(0)]])
    noise = [1e-3 * rng.standard_normal((M, N)) for _ in range(2)]
    strong = orthonormal(rng, M, 3) * [3.0, 2.0, 1.0] @ orthonormal(rng, N, 3).T
    part = one.updates[name(0)].delta().dense()
    full = [
        adapter(f"full{k}", [Update(name(0), "dense", {"delta": InMemory(strong + 0.1 * part + x)})])
        for k, x in enumerate(noise)
    ]
    exact = compare.run([one, *full], directions=3)
    monkeypatch.setattr(subspaces, "MAX_SVD", 10)
    leading = compare.run([one, *full], directions=3)
    np.testing.assert_allclose(leading.matrices.cosine, exact.matrices.cosine, rtol=0, atol=1e-12)
    for found, expected in zip(leading.pairs, exact.pairs, strict=True):
        x, y = found.modules[0], expected.modules[0]
        assert x["cosine"] == pytest.approx(y["cosine"], abs=1e-12)
        # the fillers stand for the true tail
        assert x["cosine_p"] == pytest.approx(y["cosine_p"], rel=0.1, abs=1e-12)
        for which in ("left", "right"):
            np.testing.assert_allclose(x[which]["phi"], y[which]["phi"], rtol=0, atol=1e-6)
            for key in ("energy_of_b_in_a", "energy_of_a_in_b"):
                assert x[which][key]["value"] == pytest.approx(y[which][key]["value"], rel=1e-6)
                assert x[which][key]["chance"] == pytest.approx(y[which][key]["chance"], rel=1e-6)
            assert x[which]["energy_overlap"]["value"] is None
        assert subspaces.RANDOMISED in x["notes"]


def test_zero_and_broken_updates(rng):
    one, two = lora("a", 0), lora("b", 1)
    zero = update(name(0), np.zeros((M, 4)), rng.standard_normal((4, N)))
    broken = update(name(1), np.full((M, 4), np.nan), rng.standard_normal((4, N)))
    result = compare.run([one, adapter("b", [zero, broken, *list(two.updates.values())[2:]])])
    rows = {row["name"]: row for row in only(result)["modules"]}
    assert rows[name(0)]["cosine"] is None
    assert rows[name(0)]["left"] is None
    assert name(1) not in rows
    assert "NaN" in result.skipped[0].reason
    assert any("zero in 1" in finding.text for finding in result.findings)


def test_matrices_are_the_pairs_and_groups_and_clusters_are_found():
    """Two tasks crossed with two initialisations, and one adapter on its own."""
    made = [lora(f"t{t}i{i}", 10 * t + i, rank=3 + t, init=i, task=t) for t in range(2) for i in range(2)]
    made.append(lora("alone", 99, rank=5))
    result = compare.run(made)
    labels = [one["label"] for one in result.adapters]
    for pair in result.pairs:
        rows = pair.modules
        assert result.matrices.left[pair.a, pair.b] == pytest.approx(np.mean([r["left"]["phi_whole"] for r in rows]))
        assert result.matrices.right_z[pair.a, pair.b] == pytest.approx(pair.summary["right"]["pooled_z"])
        norms = np.array([r["frobenius_norm"] for r in rows])
        cosine = np.sum([r["cosine"] for r in rows] * norms.prod(1)) / np.sqrt(np.prod((norms**2).sum(0)))
        assert pair.summary["cosine"] == pytest.approx(cosine)
    groups = [[labels[k] for k in group] for group in result.groups]
    assert groups == [["t0i0", "t1i0"], ["t0i1", "t1i1"], ["alone"]]
    clusters = [sorted(labels[k] for k in part) for part in result.clusters["clusters"]]
    assert clusters == [["t0i0", "t0i1"], ["t1i0", "t1i1"], ["alone"]]
    both = result.to_json()["groups_by_initialisation"]
    assert both["within"]["right_effect"] > 0.8
    assert abs(both["between"]["right_effect"]) < 0.05
    assert "Same random initialisation of A in 2 of 10 pairs" in result.findings[0].text


def test_many_adapters_in_float32_without_records(monkeypatch):
    """The strips of the Gram matrix give what the pairs give; records stop where there would be too many."""
    from lorascope.analyses.compare import matrices

    monkeypatch.setattr(matrices, "STRIP", 10)
    monkeypatch.setattr(matrices, "SINGLE_FROM", 6)
    monkeypatch.setitem(compare.run.__globals__, "MAX_RECORDS", 10)
    assert SINGLE_FROM > 6
    made = [lora(str(k), k, rank=2 + k, init=k % 2) for k in range(7)]
    found = compare.run(made)
    assert all(pair.modules is None for pair in found.pairs)
    pair = only(compare.run([made[2], made[6]]))
    summary = next(p.summary for p in found.pairs if (p.a, p.b) == (2, 6))
    assert summary["cosine"] == pytest.approx(pair["summary"]["cosine"], abs=1e-6)
    assert summary["left"]["pooled_z"] == pytest.approx(pair["summary"]["left"]["pooled_z"], abs=1e-3)
    assert [len(group) for group in found.groups] == [4, 3]
    json.dumps(found.to_json(), allow_nan=False)
    assert len(found.flat_rows()) == 21


def test_bad_usage():
    with pytest.raises(InputError, match="two adapters or more"):
        compare.run([lora("a", 0)])
    with pytest.raises(InputError, match="regular expression"):
        compare.run([lora("a", 0), lora("b", 1)], modules="(")


@pytest.mark.parametrize(("format", "build"), examples.cases(), ids=examples.case_id)
def test_every_format_and_kind_is_the_dense_update_it_stands_for(format, build, tmp_path):
    """Each example file against the truth about it, stored whole: the same update in its two forms."""
    example = build(tmp_path)
    base = open_checkpoint(example.base) if example.base else None
    if not example.deltas:  # parts that are no update of a weight
        with pytest.raises(InputError, match="no module in common"):
            compare.run([io.read(example.path, base), lora("b", 1)], base=base)
        return
    truth = [Update(module, "dense", {"delta": InMemory(delta)}) for module, delta in example.deltas.items()]
    result = compare.run([io.read(example.path, base), adapter("truth", truth)], base=base)
    rows = {row["name"]: row for row in only(result)["modules"]}
    broken = {item.name for item in result.skipped if not item.stage}
    for module, delta in example.deltas.items():
        if module in broken:
            assert not np.all(np.isfinite(delta)) or base is None
        elif np.any(delta):
            # of entries about 1 in size, float32 at the coarsest
            assert rows[module]["cosine"] == pytest.approx(1, abs=max(1e-6, 10 * example.tolerance)), module


def test_the_chance_marked_on_a_mean_over_widths_is_the_mean(rng):
    """Modules in R^96 and R^24: by chance their mean φ(4, 4) is the mean of 4/96 and 4/24."""
    sides = []
    for path in "ab":
        b, a = rng.standard_normal((24, 4)), rng.standard_normal((4, N))
        sides.append(adapter(path, [lora(path, ord(path)).updates[name(0)], update("model.layers.0.k_proj", b, a)]))
    grid = next(b for b in compare.run(sides).blocks() if isinstance(b, Heatmap) and "left" in b.title)
    overlap = next(each for each in grid.measures if not each.title.startswith("z"))
    assert [mark[0] for mark in overlap.marks] == pytest.approx([(1 / 96 + 1 / 24) / 2, (4 / 96 + 4 / 24) / 2])


def test_replicas_are_their_own_modules_and_no_base_layer_s(rng, tmp_path):
    """Two adapters of one replicated model agree module by module, with the base as without it."""
    from safetensors.numpy import save_file

    from lorascope.weights.checkpoint import open_checkpoint

    weights = {f"model.layers.{i}.q_proj.weight": rng.standard_normal((M, N)).astype("f4") for i in range(2)}
    save_file(weights, tmp_path / "model.safetensors")
    base = open_checkpoint(tmp_path)
    source = {0: 0, 1: 0, 2: 1}

    def replicated(label):
        made = []
        for layer, origin in source.items():
            one = update(f"model.layers.{layer}.q_proj", rng.standard_normal((M, 2)), rng.standard_normal((2, N)))
            note = f"a replica of the base's layer {origin}"
            made.append(replace(one, base_weight=f"model.layers.{origin}.q_proj", notes=(note,)))
        return adapter(label, made)

    one, two = replicated("a"), replicated("b")
    alone = [row["cosine"] for row in only(compare.run([one, two]))["modules"]]
    assert [row["cosine"] for row in only(compare.run([one, two], base=base))["modules"]] == alone
    assert len(alone) == 3


def test_the_chance_of_captured_energy_is_the_holders_share_of_directions():
    """A fixed vector has k/n of its energy in a random subspace of k of n dimensions, whatever its spectrum."""
    found = only(compare.run([lora("a", 0, rank=2), lora("b", 1, rank=6)]))["modules"]
    for row in found:
        for side, n in (("left", M), ("right", N)):
            assert row[side]["energy_of_b_in_a"]["chance"] == pytest.approx(2 / n)
            assert row[side]["energy_of_a_in_b"]["chance"] == pytest.approx(6 / n)
