"""ΔW against W where it was planted along W's own directions, across them and at random, against dense numpy."""

import json
from pathlib import Path

import numpy as np
import pytest

from lorascope.analyses import against_base
from lorascope.blocks import Page
from lorascope.report import html, terminal
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter, Source
from lorascope.weights.base_svd import SvdCache
from lorascope.weights.checkpoint import Checkpoint
from lorascope.weights.files import Tensors
from lorascope.weights.tensors import InMemory


def checkpoint(**weights) -> Checkpoint:
    stored = {f"{name}.weight": InMemory(np.asarray(w), "F64") for name, w in weights.items()}
    return Checkpoint(Path("base"), Tensors(stored, {}, ()), {})


def adapter(**factors) -> Adapter:
    updates = {
        name: Update(name, "low_rank", {"A": InMemory(a, "F64"), "B": InMemory(b, "F64")}, 1.0)
        for name, (b, a) in factors.items()
    }
    return Adapter(updates, {}, Source("x", "0" * 64, "peft", "LoRA"))


def one(weight, b, a, **options):
    (found,) = against_base.run(adapter(q=(b, a)), checkpoint(q=weight), **options).rows
    return found


@pytest.mark.parametrize(("m", "n"), [(30, 30), (40, 25), (25, 40)])
def test_every_measure_against_dense_numpy(rng, m, n):
    weight, b, a = rng.standard_normal((m, n)), rng.standard_normal((m, 3)), rng.standard_normal((3, n))
    found = one(weight, b, a)
    u, _, vh = (part[:, :3] if i == 0 else part[:3] for i, part in enumerate(np.linalg.svd(b @ a)))
    w_u, w_s, w_vh = np.linalg.svd(weight, full_matrices=False)
    inside = np.linalg.norm(u.T @ weight @ vh.T)
    assert found.directions == 3
    assert found.inside == pytest.approx(inside)
    assert found.top == pytest.approx(np.linalg.norm(w_s[:3]))
    assert found.random == pytest.approx(3 * np.linalg.norm(weight) / np.sqrt(m * n))
    assert found.amplification == pytest.approx(np.linalg.norm(b @ a) / inside)
    assert found.amplification_random == pytest.approx(np.linalg.norm(b @ a) / found.random)
    assert found.left["r"].phi == pytest.approx(np.sum((u.T @ w_u[:, :3]) ** 2) / 3)
    tenth = int(np.ceil(min(m, n) / 10))
    assert found.right["tenth"].j == tenth
    assert found.right["tenth"].phi == pytest.approx(np.sum((vh @ w_vh[:tenth].T) ** 2) / min(3, tenth))
    assert found.left["r"].chance == pytest.approx(3 / m)
    assert abs(found.z) < 5


def test_along_w_and_across_it(rng):
    u, v = (np.linalg.qr(rng.standard_normal((40, 40)))[0] for _ in range(2))
    weight = (u * np.linspace(10, 0.1, 40)) @ v.T
    along = one(weight, u[:, :2], v[:, :2].T)
    assert along.inside == pytest.approx(along.top)
    assert (along.left["r"].phi, along.right["r"].phi) == (pytest.approx(1), pytest.approx(1))
    assert along.left["r"].z > 10
    least = one(weight, u[:, 38:], v[:, 38:].T)
    assert least.inside == pytest.approx(np.hypot(0.1, 0.1 + 9.9 / 39))
    assert least.left["tenth"].phi == pytest.approx(0, abs=1e-20)
    assert least.ratio < 1 < along.ratio
    assert least.amplification > least.amplification_random


def test_the_factors_gauge_the_layout_and_the_rank_that_is_there_decide(rng):
    weight, b, a = rng.standard_normal((20, 30)), rng.standard_normal((20, 2)), rng.standard_normal((2, 30))
    plain = one(weight, b, a)
    doubled = one(weight, np.hstack([b, b]), np.vstack([a, a]) / 2)  # rank 2 in factors of 4
    assert doubled.directions == 2
    assert doubled.inside == pytest.approx(plain.inside)
    assert doubled.left["tenth"].phi == pytest.approx(plain.left["tenth"].phi)
    roles = {"A": InMemory(a, "F64"), "B": InMemory(b, "F64")}
    for more in ({"transposed": True}, {"transposed": True, "embedding": True}):
        turned = Adapter({"q": Update("q", "low_rank", roles, 1.0, **more)}, {}, Source("x"))
        (found,) = against_base.run(turned, checkpoint(q=weight.T)).rows
        assert found.inside == pytest.approx(plain.inside)
        assert found.left["r"].phi == pytest.approx(plain.left["r"].phi)
    kernel = Adapter({"q": Update("q", "low_rank", roles, 1.0, kernel=(2, 3))}, {}, Source("x"))
    (found,) = against_base.run(kernel, checkpoint(q=weight.reshape(20, 5, 2, 3))).rows
    assert found.inside == pytest.approx(plain.inside)
    fused = Adapter({"e": Update("e", "low_rank", roles, 1.0, base_weight="q.weight", expert=1)}, {}, Source("x"))
    (found,) = against_base.run(fused, checkpoint(q=np.stack([weight + 1, weight]))).rows
    assert found.inside == pytest.approx(plain.inside)


def test_dora_takes_the_whole_change(rng):
    weight, b, a = rng.standard_normal((20, 24)), rng.standard_normal((20, 2)), rng.standard_normal((2, 24))
    m = np.linalg.norm(weight, axis=1) * np.linspace(0.5, 2, 20)
    roles = {"A": InMemory(a, "F64"), "B": InMemory(b, "F64"), "m": InMemory(m, "F64")}
    dora = Update("q", "magnitude", roles, 0.1)
    (found,) = against_base.run(Adapter({"q": dora}, {}, Source("x")), checkpoint(q=weight)).rows
    u, _, vh = np.linalg.svd(dora.delta(weight))
    r = found.directions
    assert found.delta_norm == pytest.approx(np.linalg.norm(dora.delta(weight)))
    assert found.inside == pytest.approx(np.linalg.norm(u[:, :r].T @ weight @ vh[:r].T))


def test_equal_singular_values_of_w_are_not_divided(rng):
    u, v = (np.linalg.qr(rng.standard_normal((30, 30)))[0] for _ in range(2))
    sigma = np.concatenate([[3.0, 3.0, 3.0], np.linspace(2, 1, 27)])
    b, a = rng.standard_normal((30, 2)), rng.standard_normal((2, 30))
    found = []
    for _ in range(2):
        turn = np.eye(30)
        turn[:3, :3] = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        found.append(one((u @ turn * sigma) @ (v @ turn).T, b, a))
    assert [f.left["r"].j for f in found] == [3, 3]  # not 2: that would be no subspace of W
    assert found[0].left["r"].phi == pytest.approx(found[1].left["r"].phi, abs=1e-9)


def test_a_large_weight_is_not_decomposed_unless_it_was(rng, monkeypatch, tmp_path):
    monkeypatch.setattr(against_base, "EXACT", 50)
    weight, b, a = rng.standard_normal((120, 100)), rng.standard_normal((120, 2)), rng.standard_normal((2, 100))
    weight += 60 * np.outer(rng.standard_normal(120), rng.standard_normal(100)) / 110
    cache = SvdCache(tmp_path)
    quick = one(weight, b, a, cache=cache)
    assert (quick.method, cache.computed) == ("randomised", 0)
    assert list(quick.left) == ["r"]
    assert any("top 10 %" in note for note in quick.notes)
    cache.of(weight)
    exact = one(weight, b, a, cache=cache)
    assert exact.method == "exact"
    assert quick.top <= exact.top <= quick.top + 2**0.5 * quick.error + 1e-9
    assert quick.inside == pytest.approx(exact.inside)
    assert quick.random == pytest.approx(exact.random)
    assert quick.random_spread == pytest.approx(exact.random_spread, rel=0.3)  # 16 probes
    assert list(exact.left) == ["r", "tenth"]


def test_what_cannot_be_measured_is_listed_and_the_rest_drawn(rng):
    weight, b, a = rng.standard_normal((20, 24)), rng.standard_normal((20, 2)), rng.standard_normal((2, 24))
    names = ("layers.0.q", "layers.1.q", "zero", "gone", "empty")
    factors = ((b, a), (b, 2 * a), (0 * b, a), (b, a), (b, a))
    whole = adapter(**dict(zip(names, factors, strict=True)))
    base = checkpoint(**dict.fromkeys(("layers.0.q", "layers.1.q", "zero"), weight), empty=0 * weight)
    result = against_base.run(whole, base)
    assert [m.name for m in result.rows] == ["layers.0.q", "layers.1.q"]
    assert {item.name: item.reason.split(":")[0] for item in result.skipped} == {
        "zero": "ΔW is zero", "gone": "the base has no such weight", "empty": "the base weight is zero",
    }  # fmt: skip
    json.dumps(result.to_json(), allow_nan=False)
    assert len(result.table()) == 2
    page = Page("x", result.blocks())
    assert "Amplification" in terminal.render(page, width=120, color=False)
    assert "<svg" in html.render(page)
