"""tuned − base on checkpoints whose ΔW was planted, against dense numpy on the same arrays."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorascope.analyses import delta
from lorascope.blocks import Block, Finding, Page
from lorascope.errors import InputError
from lorascope.linalg.factored import Factored
from lorascope.linalg.rounding import round_to
from lorascope.report import html, terminal
from lorascope.updates.base import Update, dense
from lorascope.weights.adapter import Adapter, Source
from lorascope.weights.checkpoint import Checkpoint, open_checkpoint
from lorascope.weights.files import Tensors
from lorascope.weights.tensors import InMemory


def checkpoint(name="x", dtype="F32", config=None, **arrays) -> Checkpoint:
    """A checkpoint in memory; `__` in a keyword is a dot."""
    stored = {}
    for key, values in arrays.items():
        own = dtype if np.asarray(values).dtype.kind == "f" else "I64"
        stored[key.replace("__", ".")] = InMemory(np.asarray(values), own)
    return Checkpoint(Path(name), Tensors(stored, {}, ()), config or {})


def low_rank(rng: np.random.Generator, m, n, sigma):
    p = len(sigma)
    u, v = (np.linalg.qr(rng.standard_normal((size, p)))[0] for size in (m, n))
    return (u * np.asarray(sigma)) @ v.T


def one(base, change, dtype="F32", **options):
    """The record of one matrix with W = base and the tuned weight rounded to `dtype`."""
    base = round_to(base, dtype)
    tuned = round_to(base + change, dtype)
    before, after = (checkpoint(dtype=dtype, layers__0__q__weight=w) for w in (base, tuned))
    return delta.run(before, after, **options).matrices[0]


def test_every_measure_is_that_of_the_dense_difference(rng):
    base, change = rng.standard_normal((30, 50)), 0.1 * rng.standard_normal((30, 50))
    found = one(base, change, "F64")
    sigma = np.linalg.svd((base + change) - base, compute_uv=False)
    np.testing.assert_allclose(found.singular_values, sigma, rtol=1e-10)
    energy = np.cumsum(sigma**2) / np.sum(sigma**2)
    assert found.frobenius_norm == pytest.approx(np.linalg.norm(sigma))
    assert found.relative_norm == pytest.approx(np.linalg.norm(change) / np.linalg.norm(base))
    assert found.energy_ranks == {f"energy_rank_{p}": int(np.argmax(energy >= p)) + 1 for p in (0.9, 0.95, 0.99)}
    assert found.best == pytest.approx({str(k): energy[k - 1] for k in (1, 2, 4, 8, 16)})
    assert (found.type, found.depth, found.shape) == ("q", 0, (30, 50))
    # Structureless: nothing stands out, and the energy ranks are those of noise.
    assert found.energy_ranks_of_null["energy_rank_of_null_0.9"] == pytest.approx(
        1, abs=0.08
    )  # one rank of 22 is 4.5 %
    assert found.gavish_donoho["rank"] == found.marchenko_pastur["rank"] == 0
    assert found.permutation["rank"] <= 1  # one draw: either of two equal matrices has the larger σ₁
    assert found.permutation["energy_rank_0.9"] == pytest.approx(found.energy_ranks["energy_rank_0.9"], abs=1)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_a_rank_4_update_merged_reads_as_rank_4(rng, dtype):
    planted = [1.5, 1.2, 1.0, 0.8]
    found = one(rng.standard_normal((128, 160)), low_rank(rng, 128, 160, planted), dtype)
    assert found.noise_floor["rank"] == 4
    above = np.asarray(planted)
    effective = float(np.exp(-np.sum(above / above.sum() * np.log(above / above.sum()))))
    assert found.noise_floor["effective_rank"] == pytest.approx(effective, rel=0.01)
    assert found.gavish_donoho["rank"] == found.marchenko_pastur["rank"] == 4  # the bulk is rounding here
    if dtype == "BF16":
        assert found.effective_rank > 10  # what is read without a floor


def test_what_rounding_buried_is_said_to_be_buried(rng):
    base, change = 0.5 * rng.standard_normal((96, 96)), low_rank(rng, 96, 96, [0.15, 0.1, 0.002, 0.001])
    rounded = round_to(base, "BF16")
    for start, merged_from in (("the stored base", rounded), ("a finer copy", base)):
        before = checkpoint(dtype="BF16", layers__0__q__weight=rounded)
        after = checkpoint(dtype="BF16", layers__0__q__weight=round_to(merged_from + change, "BF16"))
        result = delta.run(before, after)
        floor = result.matrices[0].noise_floor
        assert floor["rank"] == 2, start
        assert any("rounding error of BF16" in finding.text for finding in result.findings)


def test_a_bfloat16_run_in_a_float32_file_has_bfloat16s_floor(rng):
    base = round_to(rng.standard_normal((40, 50)), "BF16")
    tuned = round_to(base + 0.1 * rng.standard_normal((40, 50)), "BF16")
    result = delta.run(checkpoint(layers__0__q__weight=base), checkpoint(layers__0__q__weight=tuned))
    assert result.matrices[0].effective_dtype == "BF16"
    assert any("values of 1 of 1 matrix are BF16" in finding.text for finding in result.findings)


def test_a_coarser_base_is_pointed_out(rng):
    exact = rng.standard_normal((40, 50))
    base = checkpoint(dtype="BF16", layers__0__q__weight=round_to(exact, "BF16"))
    result = delta.run(base, checkpoint(layers__0__q__weight=round_to(exact, "F32")))
    found = result.matrices[0]
    assert found.singular_values[0] < found.noise_floor["base_floor"]  # all of ΔW is the base's rounding
    assert any("would reach above σ₁ in 1 of 1" in f.text and f.rule == "LS408" for f in result.findings)


def test_the_leading_values_are_those_of_the_full_spectrum_with_the_rest_exact(rng):
    base, change = rng.standard_normal((90, 80)), low_rank(rng, 90, 80, [5, 4, 3, 2, 1, 0.5]) + 1e-3
    full, top = one(base, change, "F64"), one(base, change, "F64", top=3)
    np.testing.assert_allclose(top.singular_values, full.singular_values[:3], rtol=1e-9)
    rest = np.sum(np.square(full.singular_values[3:]))
    assert top.remaining_energy == pytest.approx(rest, rel=1e-6)
    assert top.stable_rank == pytest.approx(full.stable_rank)
    assert top.energy_ranks["energy_rank_0.9"] == full.energy_ranks["energy_rank_0.9"]
    assert top.energy_ranks["energy_rank_0.99"] is None  # beyond what was computed: not guessed
    assert top.effective_rank is None
    assert top.accuracy["method"] == "randomised"


def with_adapter(base, change, a, b, **options):
    update = Update("layers.0.q", "low_rank", {"A": InMemory(a), "B": InMemory(b)}, 0.5)
    adapter = Adapter({update.name: update}, {}, Source("runs/one/adapter", "0" * 64, "peft", "LoRA"))
    before, after = (checkpoint(dtype="F64", layers__0__q__weight=w) for w in (base, base + change))
    return delta.run(before, after, adapters=[adapter], **options)


def test_what_an_adapter_captures_against_dense_projections(rng):
    m, n, r = 24, 36, 3
    base, change = rng.standard_normal((m, n)), rng.standard_normal((m, n))
    a, b = rng.standard_normal((r, n)), rng.standard_normal((m, r))
    result = with_adapter(base, change, a, b)
    found = result.matrices[0].captured["one/adapter"]
    product, size = 0.5 * b @ a, np.linalg.norm(change) ** 2
    left, right = b @ np.linalg.pinv(b), np.linalg.pinv(a) @ a
    assert found["left"] == pytest.approx(np.linalg.norm(left @ change) ** 2 / size)
    assert found["right"] == pytest.approx(np.linalg.norm(change @ right) ** 2 / size)
    assert found["both"] == pytest.approx(np.linalg.norm(left @ change @ right) ** 2 / size)
    cosine = np.vdot(change, product) / np.linalg.norm(change) / np.linalg.norm(product)
    assert found["cosine"] == pytest.approx(cosine)
    assert found["residual"] == pytest.approx(np.linalg.norm(change - product) ** 2 / size)
    assert found["chance"] == pytest.approx({"left": r / m, "right": r / n, "both": r * r / m / n})
    sigma = np.linalg.svd(change, compute_uv=False)
    assert found["best"] == pytest.approx(np.sum(sigma[:r] ** 2) / size)
    assert result.captured("one/adapter")["cosine"] == pytest.approx(cosine)  # one matrix: the same over all
    assert result.captured("one/adapter")["cosine_chance"] == pytest.approx((m * n) ** -0.5)


def test_chance_levels_are_those_of_random_adapters(rng):
    m, n, r = 16, 24, 4
    change = low_rank(rng, m, n, 0.6 ** np.arange(16))
    seen = []
    for _ in range(60):
        a, b = rng.standard_normal((r, n)), rng.standard_normal((m, r))
        c = delta.matrix.captured(change, Factored(b, a), np.ones(16), np.linalg.norm(change))
        seen.append([c["left"], c["right"], c["both"], c["cosine"] ** 2])
    expected = [r / m, r / n, r * r / m / n, 1 / m / n]
    spread = np.std(seen, axis=0) / np.sqrt(len(seen))
    assert np.all(np.abs(np.mean(seen, axis=0) - expected) < 4 * spread)


def test_an_adapter_that_depends_on_the_base_is_measured_with_it(rng):
    w = rng.standard_normal((6, 8))
    roles = {"A": rng.standard_normal((2, 8)), "B": rng.standard_normal((6, 2)), "m": rng.random(6) + 1}
    update = Update("q", "magnitude", {role: InMemory(values, "F64") for role, values in roles.items()})
    adapter = Adapter({"q": update}, {}, Source("dora", "0", "peft", "DoRA"))
    change = np.asarray(dense(update.delta(w)))
    base, tuned = checkpoint(dtype="F64", q__weight=w), checkpoint(dtype="F64", q__weight=w + change)
    found = delta.run(base, tuned, adapters=[adapter]).matrices[0].captured["dora"]
    assert found["cosine"] == pytest.approx(1)
    assert found["residual"] == pytest.approx(0, abs=1e-12)


def test_no_change_and_broken_numbers_are_said(rng):
    w = rng.standard_normal((8, 9))
    same = delta.run(checkpoint(layers__0__q__weight=w), checkpoint(layers__0__q__weight=w))
    assert same.matrices[0].frobenius_norm == 0
    assert any("the two checkpoints are identical" in f.text and f.severity == "error" for f in same.findings)
    bad = w.copy()
    bad[0, :2] = np.nan, np.inf
    broken = delta.run(
        checkpoint(layers__0__q__weight=w, layers__1__q__weight=w),
        checkpoint(layers__0__q__weight=bad, layers__1__q__weight=w * 1.1),
    )
    assert [m.non_finite for m in broken.matrices] == [2, 0]
    assert broken.matrices[0].singular_values is None
    assert broken.matrices[1].stable_rank is not None
    assert any("2 entries are NaN" in f.text for f in broken.findings)


@pytest.fixture(scope="module")
def result():
    drawn = np.random.default_rng(5)
    names = [f"layers__{i}__{n}__weight" for i in "012" for n in ("q", "v")]
    base = {name: drawn.standard_normal((24, 32)) for name in names} | {"norm__weight": np.ones(5)}
    tuned = {name: w + 0.1 * drawn.standard_normal(w.shape) for name, w in base.items()} | {
        "head__weight": np.ones((2, 3))
    }
    update = Update("layers.1.q", "low_rank", {"A": InMemory(np.ones((2, 32))), "B": InMemory(np.ones((24, 2)))})
    gone = dataclasses.replace(update, name="gone")
    adapter = Adapter({update.name: update, "gone": gone}, {}, Source("a", "0", "peft", "LoRA"))
    return delta.run(checkpoint(**base), checkpoint(**tuned), adapters=[adapter], extract=2)


def test_the_result_keeps_what_every_analysis_promises(result):
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.matrices = ()
    assert all(isinstance(finding, Finding) for finding in result.findings)
    text = json.dumps(result.to_json(), allow_nan=False)
    assert json.loads(text)["schema"] == 2
    assert len(result.table()) == 7  # six matrices and a vector
    blocks = result.blocks()
    assert all(isinstance(block, Block) for block in blocks)
    page = Page("delta", blocks)
    assert "What the adapters capture" in terminal.render(page, width=120, color=False)
    assert "Energy of ΔW kept at rank k" in html.render(page)
    assert [item.name for item in result.skipped_in()] == ["head.weight", "gone"]


def test_two_updates_of_one_weight_are_not_one_of_them(rng):
    """What layer_replication makes: no one ΔW stands for both replicas."""
    names = [f"layers__{i}__q__weight" for i in "01"]
    base = {name: rng.standard_normal((6, 8)) for name in names}
    tuned = {name: weight + 0.1 * rng.standard_normal(weight.shape) for name, weight in base.items()}
    roles = {"A": InMemory(np.ones((2, 8))), "B": InMemory(np.ones((6, 2)))}
    one = Update("layers.0.q", "low_rank", roles)
    replicas = [Update(f"layers.{i}.q", "low_rank", roles, base_weight="layers.1.q.weight") for i in (1, 2)]
    adapter = Adapter({u.name: u for u in (one, *replicas)}, {}, Source("a", "0", "peft", "LoRA"))
    found = delta.run(checkpoint(**base), checkpoint(**tuned), adapters=[adapter])
    assert [m.name for m in found.matrices if m.captured] == ["layers.0.q"]
    assert [item.name for item in found.skipped_in()] == ["layers.1.q", "layers.2.q"]


def test_dequantised_weights_are_said(rng, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "tuned").mkdir()
    weight = rng.standard_normal((16, 24)).astype("f4")
    scale = np.abs(weight).max(axis=1, keepdims=True) / 127
    save_file({"layers.0.q.weight": weight}, tmp_path / "base/model.safetensors")
    codes = {"layers.0.q.weight": np.round(weight / scale).astype("i1"), "layers.0.q.weight_scale": scale}
    save_file(codes, tmp_path / "tuned/model.safetensors")
    found = delta.run(*(open_checkpoint(tmp_path / side) for side in ("base", "tuned")))
    assert any("dequantised from int8" in finding.text and finding.rule == "LS406" for finding in found.findings)
    error = codes["layers.0.q.weight"] * scale.astype("f8") - weight
    assert found.matrices[0].frobenius_norm == pytest.approx(np.linalg.norm(error), rel=1e-9)


def test_a_run_goes_on_where_it_was_interrupted(tmp_path):
    names = [f"layers__{i}__q__weight" for i in range(4)]
    for side, factor in (("base", 0), ("tuned", 0.1)):
        (tmp_path / side).mkdir()
        rng = np.random.default_rng(0)
        arrays = {n.replace("__", "."): (rng.standard_normal((12, 9)) * (1 + factor)).astype("f4") for n in names}
        save_file(arrays, tmp_path / side / "model.safetensors")
    base, tuned = (open_checkpoint(tmp_path / side) for side in ("base", "tuned"))
    whole = delta.run(base, tuned, extract=2)
    state = tmp_path / "state"

    def stop_after_two(pairs):
        yield from pairs[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        delta.run(base, tuned, extract=2, state=state, progress=stop_after_two)
    with (state / "modules.jsonl").open("a") as file:
        file.write('{"name": "layers.2.q", "reco')  # cut off in the middle of a line
    seen = []
    original = delta.run.__globals__["difference"]
    delta.run.__globals__["difference"] = lambda pair: seen.append(pair.name) or original(pair)
    try:
        again = delta.run(base, tuned, extract=2, state=state)
    finally:
        delta.run.__globals__["difference"] = original
    assert seen == ["layers.2.q", "layers.3.q"]
    assert again.to_json() == whole.to_json()
    for name, update in whole.extracted.updates.items():
        np.testing.assert_array_equal(again.extracted.updates[name].read()["A"], update.read()["A"])
    assert not state.exists()


def test_a_folder_with_anothers_files_is_no_state(tmp_path):
    base, tuned = checkpoint(q__weight=np.eye(3)), checkpoint(q__weight=2 * np.eye(3))
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "modules.jsonl").write_text("mine\n")
    with pytest.raises(InputError, match="is not a state"):
        delta.run(base, tuned, state=tmp_path / "state")
    assert (tmp_path / "state" / "modules.jsonl").read_text() == "mine\n"


def test_a_state_of_another_run_is_not_believed(rng, tmp_path):
    w = rng.standard_normal((6, 7))
    base, tuned = checkpoint(q__weight=w), checkpoint(q__weight=w + 1)
    state = tmp_path / "state"

    def stop(pairs):
        yield from pairs
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        delta.run(base, tuned, state=state, progress=stop)
    found = delta.run(base, tuned, state=state, top=1).matrices[0]
    assert len(found.singular_values) == 1


def test_refusals():
    w = np.ones((3, 4))
    with pytest.raises(InputError, match="no parameter in common"):
        delta.run(checkpoint(a__weight=w), checkpoint(b__weight=w))
    with pytest.raises(InputError, match="not a regular expression"):
        delta.run(checkpoint(a__weight=w), checkpoint(a__weight=w), modules="(")
    with pytest.raises(InputError, match="matches none"):
        delta.run(checkpoint(a__weight=w), checkpoint(a__weight=w), modules="zzz")
    with pytest.raises(InputError, match="no ΔW to extract"):
        delta.run(checkpoint(a__weight=w), checkpoint(a__weight=w), extract=1)


@pytest.mark.slow
@pytest.mark.parametrize(("pair", "relative", "rank"), [("rxnfp-ft", 0.224, 76), ("rxnfp-ft-10k", 0.080, 49)])
def test_a_real_pair_gives_the_figures_measured_before(pair, relative, rank):
    """assets.md, §3: means over 72 attention and MLP matrices of rxnfp, measured with another program."""
    from lorascope.models import assets

    base, tuned = (open_checkpoint(assets.folder(name)) for name in ("rxnfp-pretrained", pair))
    found = delta.run(base, tuned, modules=r"encoder\.layer").matrices
    assert len(found) == 72
    assert np.mean([m.relative_norm for m in found]) == pytest.approx(relative, abs=6e-4)
    assert np.mean([m.energy_ranks["energy_rank_0.9"] for m in found]) == pytest.approx(rank, abs=0.6)


@pytest.mark.slow
def test_a_real_model_merged_in_bfloat16_reads_as_the_adapters_rank_and_the_rest_as_nothing(rng, tmp_path):
    """MiniLM, float32 on disk, loaded as bfloat16, merged and saved: elsewhere ΔW is the rounding, of rank 384."""
    from lorascope.models import assets

    base = open_checkpoint(assets.folder("minilm"))
    tuned, adapted = {}, []
    for name, stored in base.stored.items():
        if stored.dtype != "F32":
            continue
        w = round_to(stored.read(), "BF16")
        if name.endswith("query.weight"):
            adapted.append(name.removesuffix(".weight"))
            w = round_to(w + low_rank(rng, *w.shape, np.geomspace(3, 0.3, 8)), "BF16")
        tuned[name.replace(".", "__")] = w
    found = delta.run(base, checkpoint(dtype="BF16", **tuned)).matrices
    assert len(adapted) == 6
    assert {m.name: m.noise_floor["rank"] for m in found} == {m.name: 8 * (m.name in adapted) for m in found}
    others = [m for m in found if m.name not in adapted]
    assert max(m.gavish_donoho["rank"] for m in others if m.gavish_donoho) > 10  # why the bulk alone is no floor


def test_what_was_not_compared_is_not_called_the_same(rng):
    """Two of five parameters have a partner, and are equal: nothing is known of the other three."""
    w = rng.standard_normal((6, 5))
    both = {"layers__0__q__weight": w, "norm__weight": np.ones(5)}
    base = checkpoint(**both, **{f"layers__{n}__k__weight": w for n in range(3)})
    result = delta.run(base, checkpoint(**both))
    texts = [finding.text for finding in result.findings if finding.severity in ("error", "warning")]
    assert any("only 2 of 5 parameters" in text for text in texts)
    assert any("3 of 5 tensors skipped" in text for text in texts)
    assert not any("identical" in text for text in texts)
    whole = delta.run(checkpoint(**both), checkpoint(**both))
    assert any("are identical" in finding.text for finding in whole.findings)
