"""Intruders on weights whose spikes were planted, against algorithm 1 by dense SVDs, and against PEFT's own counts."""

import dataclasses
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.intruders import reduce_intruder_dimension
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorascope.analyses import intruders
from lorascope.analyses.intruders.intervention import ARMS, intervene
from lorascope.blocks import Page
from lorascope.errors import InputError
from lorascope.linalg.factored import Factored
from lorascope.report import html, terminal
from lorascope.updates.base import Update, dense
from lorascope.weights import io
from lorascope.weights.adapter import Adapter, Rows, Skipped, Source
from lorascope.weights.base_svd import SvdCache
from lorascope.weights.checkpoint import Checkpoint, open_checkpoint
from lorascope.weights.files import Tensors
from lorascope.weights.formats.peft.tokens import TOKENS
from lorascope.weights.tensors import InMemory

NAME = "layers.{}.q"


def checkpoint(weights) -> Checkpoint:
    stored = {f"{name}.weight": InMemory(np.asarray(w), "F64") for name, w in weights.items()}
    return Checkpoint(Path("base"), Tensors(stored, {}, ()), {})


def lora(name, b, a, scale=1.0, **more) -> Update:
    return Update(name, "low_rank", {"A": InMemory(a, "F64"), "B": InMemory(b, "F64")}, scale, **more)


def adapter(*updates) -> Adapter:
    return Adapter({update.name: update for update in updates}, {}, Source("x/adapter", "0" * 64, "peft", "LoRA"))


def flat(rng: np.random.Generator, m, n, low=1.0, high=2.0):
    """Random directions with singular values between the two."""
    p = min(m, n)
    u, v = (np.linalg.qr(rng.standard_normal((size, p)))[0] for size in (m, n))
    return (u * np.linspace(high, low, p)) @ v.T


def spikes(rng: np.random.Generator, m, n, sizes):
    u, v = (np.linalg.qr(rng.standard_normal((size, len(sizes))))[0] for size in (m, n))
    return u * np.asarray(sizes), v.T


def dense_count(weight, tuned, epsilon, k, side="left"):
    """Algorithm 1 as it is written."""
    (u0, _, v0), (u, _, v) = (np.linalg.svd(w, full_matrices=False) for w in (weight, tuned))
    cosines = np.abs(u0.T @ u) if side == "left" else np.abs(v0 @ v.T)
    return int(np.sum(cosines.max(axis=0)[:k] < epsilon))


def test_planted_spikes_are_all_found_and_nothing_else(rng):
    weights = {NAME.format(i): flat(rng, 120, 90) for i in range(4)}
    planted = {name: spikes(rng, 120, 90, [12.0, 9.0, 6.0][: i % 4]) for i, name in enumerate(weights)}
    updates = [lora(name, b, a) for name, (b, a) in planted.items() if a.size]
    result = intruders.run(adapter(*updates), checkpoint(weights), k=5)
    for module in result.rows:
        number = len(planted[module.name][1])
        for side in ("left", "right"):
            found = module.intruders(0.5, 5, side)
            assert [vector.position for vector in found] == list(range(1, number + 1))
        assert [v.of_change["left"] > 0.9 for v in module.vectors] == [True] * number + [False] * (5 - number)
        assert module.prediction.in_top >= number
        # to first order σ₁ moves by uᵀWv of the spike's directions, of deviation ‖W‖_F/√(mn) = 0.14: 1.2 % of 12
        assert module.prediction.value == pytest.approx(module.vectors[0].sigma, rel=0.05)
        assert module.prediction.measured_position == module.prediction.position == 1
        assert module.prediction.alignment == pytest.approx(module.prediction.expected_alignment, abs=0.02)
        assert module.spike_margin > 5
    assert result.agreement() == {"both": 3, "expected_only": 0, "found_only": 0, "neither": 0}


def test_a_mixture_of_ws_own_directions_is_told_from_a_new_one(rng):
    """ΔW that turns W's leading vectors among each other makes intruders by definition, and they are told apart."""
    u, v = np.linalg.qr(rng.standard_normal((90, 90)))[0], np.linalg.qr(rng.standard_normal((90, 90)))[0]
    sigma = np.concatenate([np.linspace(10, 9, 20), np.linspace(1, 0.5, 70)])
    turn = np.eye(90)
    turn[:20, :20] = np.linalg.qr(rng.standard_normal((20, 20)))[0]
    weight, tuned = (u * sigma) @ v.T, (u @ turn * sigma) @ v.T
    result = intruders.run(checkpoint({"q": tuned}), checkpoint({"q": weight}), k=10)
    (module,) = result.rows
    assert len(module.intruders(0.6, 10)) > 3
    assert all(vector.of_base["left"] == pytest.approx(1) for vector in module.vectors)
    assert any("mixtures of existing directions" in finding.text for finding in result.findings)
    b, a = spikes(rng, 90, 90, [40.0])
    new = intruders.run(adapter(lora("q", b, a)), checkpoint({"q": weight}), k=10).rows[0]
    assert new.vectors[0].of_base["left"] == pytest.approx(20 / 90, abs=0.2)  # one draw of Beta(10, 35): sd .06
    assert new.vectors[1].of_base["left"] > 0.9


def test_no_change_has_no_intruder(rng):
    weight = flat(rng, 30, 40)
    zero = lora(NAME.format(0), np.zeros((30, 2)), rng.standard_normal((2, 40)))
    result = intruders.run(adapter(zero), checkpoint({zero.name: weight}), k=6)
    (module,) = result.rows
    assert [vector.cosine["left"] for vector in module.vectors] == pytest.approx([1] * 6)
    assert [vector.nearest["right"] for vector in module.vectors] == [1, 2, 3, 4, 5, 6]
    assert result.count(0.999) == 0
    assert module.prediction is None
    assert any("ΔW is zero in every weight" in finding.text for finding in result.findings)
    assert "Weights with the most intruders" not in terminal.render(result.page(), width=100, color=False)
    assert result.page().summary.startswith("1 error. 0 intruders among the 6 leading singular vectors of 1 weight at")


@pytest.mark.parametrize(("m", "n"), [(60, 60), (40, 70), (70, 40)])
def test_counts_are_those_of_algorithm_1_on_both_sides(rng, m, n):
    weight = rng.standard_normal((m, n))
    b, a = rng.standard_normal((m, 4)), rng.standard_normal((4, n))
    result = intruders.run(adapter(lora("q", b, a, 0.15)), checkpoint({"q": weight}), k=12)
    for epsilon in (0.2, 0.35, 0.5, 0.7, 0.95):
        for k in (1, 4, 12):
            for side in ("left", "right"):
                assert result.count(epsilon, k, side) == dense_count(weight, weight + 0.15 * b @ a, epsilon, k, side)
    grid = np.array(result.counts()["left"])
    assert np.all(np.diff(grid, axis=0) >= 0)  # more at a larger ε
    assert np.all(np.diff(grid, axis=1) >= 0)  # and at a larger k
    assert grid.max() > 0


def records(result):
    """What a result says, rounded: signs and orders of singular vectors are not in it."""
    return [
        [(v.sigma, *v.cosine.values(), *(v.of_change or {}).values()) for v in module.vectors] for module in result.rows
    ]


def test_the_gauge_of_the_factors_changes_nothing(rng):
    weight, b, a = flat(rng, 50, 64), *spikes(rng, 50, 64, [4.0, 3.0, 1.0])
    mix = rng.standard_normal((3, 3)) + 3 * np.eye(3)
    one, other = (
        intruders.run(adapter(lora("q", *factors)), checkpoint({"q": weight}))
        for factors in ((b, a), (-2 * b @ mix, np.linalg.solve(mix, a) / -2))
    )
    np.testing.assert_allclose(records(one), records(other), rtol=0, atol=1e-9)


def test_the_layout_of_the_file_changes_nothing(rng):
    """A Conv1D and an embedding store the map the other way round; the outputs' side stays left."""
    weight, b, a = flat(rng, 24, 60), *spikes(rng, 24, 60, [5.0, 3.0])
    plain = intruders.run(adapter(lora("q", b, a)), checkpoint({"q": weight}))
    for more in ({"transposed": True}, {"transposed": True, "embedding": True}):
        turned = intruders.run(adapter(lora("q", b, a, **more)), checkpoint({"q": weight.T}))
        np.testing.assert_allclose(records(turned), records(plain), rtol=0, atol=1e-12)
        assert turned.rows[0].transposed
    kernel = lora("q", b, a, kernel=(3, 5))
    convolution = intruders.run(adapter(kernel), checkpoint({"q": weight.reshape(24, 4, 3, 5)}))
    np.testing.assert_allclose(records(convolution), records(plain), rtol=0, atol=1e-12)
    fused = {"experts": np.stack([flat(rng, 24, 60), weight, flat(rng, 24, 60)])}
    expert = lora("experts[1]", b, a, base_weight="experts.weight", expert=1)
    np.testing.assert_allclose(
        records(intruders.run(adapter(expert), checkpoint(fused))), records(plain), rtol=0, atol=1e-12
    )


def test_a_tuned_checkpoint_says_what_the_adapter_that_made_it_says(rng):
    weight, b, a = flat(rng, 40, 30), *spikes(rng, 40, 30, [6.0, 4.0])
    factored = intruders.run(adapter(lora("q", b, a)), checkpoint({"q": weight}))
    whole = intruders.run(checkpoint({"q": weight + b @ a}), checkpoint({"q": weight}))
    assert whole.rows[0].method == "dense"
    left_out = [[row[:3] for row in rows] for rows in records(factored)]
    np.testing.assert_allclose(records(whole), left_out, rtol=0, atol=1e-9)
    one, other = factored.rows[0].prediction, whole.rows[0].prediction
    assert other.value == pytest.approx(one.value)
    assert other.alignment == pytest.approx(one.alignment)
    assert other.in_top == one.in_top == 2


def test_dora_is_the_whole_change_and_not_its_direction_alone(rng):
    weight, b, a = flat(rng, 32, 48), *spikes(rng, 32, 48, [3.0, 2.0])
    m = np.linalg.norm(weight, axis=1) * (1 + 0.3 * rng.random(32))
    roles = {"A": InMemory(a, "F64"), "B": InMemory(b, "F64"), "m": InMemory(m, "F64")}
    dora = Update("q", "magnitude", roles, 1.0)
    result = intruders.run(adapter(dora), checkpoint({"q": weight}), k=8)
    tuned = weight + dora.delta(weight).dense()
    s = np.linalg.svd(tuned, compute_uv=False)
    np.testing.assert_allclose([v.sigma for v in result.rows[0].vectors], s[:8], rtol=1e-10)
    for epsilon in (0.4, 0.6, 0.8):
        assert result.count(epsilon) == dense_count(weight, tuned, epsilon, 8)


def test_trained_rows_of_an_embedding_are_measured(rng):
    weight, rows = flat(rng, 40, 30), 9 * rng.standard_normal((2, 30))
    trained = Adapter({}, rows={"wte.weight": Rows((3, 7), InMemory(rows, "F64"))}, skipped=(Skipped("T", TOKENS),))
    result = intruders.run(trained, checkpoint({"wte": weight}), k=6)
    tuned = weight.copy()
    tuned[[3, 7]] = rows
    assert [(row.name, row.kind) for row in result.rows] == [("wte", "replaced_rows")]
    assert not result.skipped_in()
    for epsilon in (0.4, 0.6, 0.8):
        assert result.count(epsilon) == dense_count(weight.T, tuned.T, epsilon, 6)
    assert result.count(0.8) > 0


def test_trained_rows_that_fit_no_embedding_say_so(rng):
    more = {"gone.weight": Rows((0,), InMemory(rng.standard_normal((1, 4)), "F64"))}
    one = dataclasses.replace(adapter(lora("q", np.ones((4, 1)), np.ones((1, 4)))), rows=more)
    (item,) = intruders.run(one, checkpoint({"q": np.eye(4)})).skipped_in()
    assert (item.name, item.reason) == ("gone.weight", "the base has no such embedding")


def test_equal_singular_values_and_lost_rank_are_said_and_decide_nothing(rng):
    u, v = (np.linalg.qr(rng.standard_normal((30, 30)))[0] for _ in range(2))
    sigma = np.concatenate([[5.0, 5.0, 5.0], np.linspace(2, 1, 20), np.zeros(7)])
    b, a = spikes(rng, 30, 30, [8.0])
    seen = []
    for _ in range(2):  # the same W, from two bases of its tie
        turn = np.eye(30)
        turn[:3, :3] = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        weight = (u @ turn * sigma) @ (v @ turn).T
        result = intruders.run(adapter(lora("q", b, a)), checkpoint({"q": weight}))
        seen.append(records(result))
    np.testing.assert_allclose(*seen, rtol=0, atol=1e-8)
    assert (result.rows[0].base_rank, result.rows[0].equal_singular_values) == (23, 2)
    texts = " ".join(finding.text for finding in result.findings)
    assert "equal singular values" in texts
    assert "not of full rank" in texts
    # Along a direction that W maps to nothing: new, whatever basis LAPACK gives the null space.
    inside = lora("q", 9 * u[:, 23:24], v[:, 23:24].T)
    assert intruders.run(adapter(inside), checkpoint({"q": (u * sigma) @ v.T})).count(0.5, 1) == 1


def test_an_epsilon_below_chance_is_pointed_out(rng):
    weight, b, a = flat(rng, 16, 16), *spikes(rng, 16, 16, [9.0])
    result = intruders.run(adapter(lora("q", b, a)), checkpoint({"q": weight}), epsilon=0.3)
    chance = result.rows[0].chance["left"]
    draws = rng.standard_normal((4000, 16))
    largest = np.abs(draws).max(axis=1) / np.linalg.norm(draws, axis=1)
    assert chance == pytest.approx(np.median(largest), abs=0.03)  # the cosines are not quite independent at n = 16
    assert any(f.severity == "warning" and "by chance" in f.text for f in result.findings)


def test_the_cache_is_used_and_changes_nothing(rng, tmp_path):
    weight, b, a = flat(rng, 30, 50), *spikes(rng, 30, 50, [4.0])
    runs = [
        intruders.run(adapter(lora("q", b, a)), checkpoint({"q": weight}), cache=SvdCache(tmp_path)) for _ in range(2)
    ]
    assert [(run.cache.read, run.cache.computed) for run in runs] == [(0, 1), (1, 0)]
    assert records(runs[0]) == records(runs[1])


def test_refusals_and_what_is_set_aside(rng):
    weight, b, a = flat(rng, 12, 12), *spikes(rng, 12, 12, [4.0])
    base = checkpoint({"q": weight})
    with pytest.raises(InputError, match="leading 0"):
        intruders.run(adapter(lora("q", b, a)), base, k=0)
    with pytest.raises(InputError, match="is a cosine"):
        intruders.run(adapter(lora("q", b, a)), base, epsilon=1.5)
    with pytest.raises(InputError, match="no parameter in common"):
        intruders.run(adapter(lora("k", b, a)), base)
    broken = intruders.run(adapter(lora("q", b * np.nan, a)), base)
    assert broken.rows[0].non_finite
    assert broken.findings[0].severity == "error"
    other = intruders.run(adapter(lora("q", b, a), lora("other", b, a)), base)
    assert [item.name for item in other.skipped] == ["other"]


def test_json_table_and_page(rng):
    weights = {f"layers.{i}.{n}": flat(rng, 90, 70) for i in range(2) for n in "qv"}
    updates = [lora(name, *spikes(rng, 90, 70, [9.0])) for name in weights]
    result = intruders.run(adapter(*updates), checkpoint(weights), k=4)
    record = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert record["schema"] == 2
    assert record["counts"]["epsilon"] == list(result.epsilons)
    assert record["counts"]["left"][4][0] == result.count(0.5, 1) == 4
    assert record["modules"][0]["vectors"][0]["cosine"]["left"] < 0.5
    assert len(result.table()) == 4
    assert dataclasses.is_dataclass(result)
    page = Page("x", result.blocks())
    assert "Intruders for each ε and k" in terminal.render(page, width=120, color=False)
    assert "<svg" in html.render(page)


# --- the intervention ---------------------------------------------------------------------------------------------


def test_the_arms_are_what_they_say():
    rng = np.random.default_rng(0)  # one of the draws where no spike lies near a direction of so small a W by chance
    weights = {"a": flat(rng, 40, 30), "b": flat(rng, 30, 40), "c": flat(rng, 20, 20)}
    factors = {"a": spikes(rng, 40, 30, [9.0, 6.0]), "b": spikes(rng, 30, 40, [8.0]), "c": spikes(rng, 20, 20, [0.01])}
    result = intruders.run(adapter(*(lora(n, *f) for n, f in factors.items())), checkpoint(weights), k=3)
    seen = []

    def evaluate(deltas):
        seen.append({name: dense(change) for name, change in deltas.items()})
        return {"loss": float(len(seen)), "accuracy": 0.5}

    deltas = {name: Factored(*f) for name, f in factors.items()}
    made = intervene(result, "run", weights.get, deltas.get, evaluate, lambdas=[0.0, 0.5, 1.0], all_intruders=True)
    assert seen[0] == {}  # the base
    np.testing.assert_allclose(seen[1]["a"], dense(deltas["a"]))
    assert [m["name"] for m in made.modules] == ["a", "b"]
    assert [m["intruders"] for m in made.modules] == [[1, 2], [1]]
    assert [(p["arm"], p["lambda"]) for p in made.points] == [(arm, f) for f in (0.0, 0.5) for arm in ARMS]
    for point, changes in zip(made.points, seen[2:], strict=True):
        np.testing.assert_allclose(changes["c"], dense(deltas["c"]))  # no intruder: as trained
        for name in ("a", "b"):
            trained = dense(deltas[name])
            u, s, vh = np.linalg.svd(weights[name] + trained, full_matrices=False)
            number = 2 if name == "a" else 1
            cut = (point["lambda"] - 1) * (u[:, :number] * s[:number]) @ vh[:number]
            moved = changes[name] - trained
            if point["arm"] == "intruder":
                np.testing.assert_allclose(moved, cut, rtol=0, atol=1e-8)
            elif point["arm"] == "shrink":
                norm = np.linalg.norm(trained + cut)
                np.testing.assert_allclose(changes[name], trained * norm / np.linalg.norm(trained), rtol=0, atol=1e-8)
            elif point["arm"] == "step":
                far = min(np.linalg.norm(cut), np.linalg.norm(trained))
                assert np.linalg.norm(moved) == pytest.approx(far)
                assert np.vdot(moved, trained) == pytest.approx(-far * np.linalg.norm(trained))  # straight to W
            elif point["arm"] == "random":
                assert np.linalg.norm(moved, 2) == pytest.approx(np.linalg.norm(cut, 2), rel=0.05)  # nearly orthogonal
                assert np.linalg.matrix_rank(moved, tol=1e-8) == number
            else:
                at = slice(number, 2 * number)  # the next ones, which are no intruders
                np.testing.assert_allclose(
                    moved, (point["lambda"] - 1) * (u[:, at] * s[at]) @ vh[at], rtol=0, atol=1e-8
                )
    whole = dataclasses.replace(result, intervention=made)
    json.dumps(whole.to_json(), allow_nan=False)
    assert "Scaling the intruders" in terminal.render(Page("x", whole.blocks()), width=120, color=False)
    assert any("λ = 0.5" in finding.text for finding in whole.findings)


def test_an_intervention_without_intruders_says_so(rng):
    weight, b, a = flat(rng, 20, 20), *spikes(rng, 20, 20, [0.01])
    result = intruders.run(adapter(lora("q", b, a)), checkpoint({"q": weight}), k=3)
    made = intervene(
        result, "run", lambda _: weight, lambda _: Factored(b, a), lambda _: {"loss": 1.0, "accuracy": 0.0}
    )
    assert made.points == ()
    findings = dataclasses.replace(result, intervention=made).findings
    assert any("No weight has an intruder" in finding.text for finding in findings)
    grown = tuple({"arm": arm, "lambda": 0.5, "norm": 1.1, "loss": 1.0} for arm in ARMS)
    made = dataclasses.replace(made, points=grown, without=("q",))
    findings = dataclasses.replace(result, intervention=made).findings
    assert [f.rule for f in findings if f.severity == "warning"] == ["LS703", "LS704"]
    assert (
        findings[1].text == "No neighbour that is not an intruder in 1 weight ('q'), which that arm leaves as trained"
    )


# --- PEFT ---------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(64, 80), nn.Linear(80, 64)
        self.c_attn, self.embed = Conv1D(96, 64), nn.Embedding(120, 64)

    def forward(self, ids):
        return self.c_attn(self.down(self.up(self.embed(ids))))


def peft_pair(folder, targets, **more):
    """A small model with a strong adapter, saved; PEFT's model, the base and our adapter."""
    torch.manual_seed(3)
    model = Small()
    base = {name: value.detach().clone() for name, value in model.state_dict().items()}
    torch.save(base, folder / "pytorch_model.bin")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=targets, **more))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.45
    wrapped.save_pretrained(folder / "adapter")
    opened = open_checkpoint(folder)
    return wrapped, opened, io.read(folder / "adapter", opened)


def peft_counts(wrapped, **more):
    lines = []
    reduce_intruder_dimension(wrapped, top_k=5, threshold_epsilon=0.5, logging_sink=lines.append, **more)
    said = [re.fullmatch(r"base_model\.model\.(\w+): (?:No intruders|Intruders: (\d+))", line) for line in lines]
    return {match[1]: int(match[2] or 0) for match in said if match}


def test_counts_are_pefts_where_peft_is_right(tmp_path):
    wrapped, base, ours = peft_pair(tmp_path, ["up", "down"])
    result = intruders.run(ours, base, k=5)
    found = {m.name: len(m.intruders(0.5, 5)) for m in result.rows}
    assert found == peft_counts(wrapped)
    assert sum(found.values()) > 0


@pytest.mark.parametrize("target", ["c_attn", "embed"])
def test_where_the_file_stores_the_map_turned_peft_takes_the_other_side(tmp_path, target):
    """PEFT decomposes the weight as it is stored: its left is our right. What it then writes does not fit the layer."""
    wrapped, base, ours = peft_pair(tmp_path, [target])
    result = intruders.run(ours, base, k=5)
    (module,) = result.rows
    tuned = base.of(ours.updates[target]).read() + dense(ours.updates[target].delta())
    left = dense_count(base.of(ours.updates[target]).read(), tuned, 0.5, 5)
    assert len(module.intruders(0.5, 5, "left")) == left
    counts = peft_counts(wrapped, mitigation_lambda=1.0)
    assert counts == {target: len(module.intruders(0.5, 5, "right"))}
    assert counts[target] > 0
    with pytest.raises(RuntimeError):
        wrapped(torch.arange(6)[None])


def test_dora_is_counted_with_its_magnitudes_and_pefts_is_not(tmp_path):
    wrapped, base, ours = peft_pair(tmp_path, ["up", "down"], use_dora=True)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "magnitude" in name:
                parameter *= torch.linspace(0.02, 3, len(parameter))
    wrapped.save_pretrained(tmp_path / "adapter")
    ours = io.read(tmp_path / "adapter", base)
    result = intruders.run(ours, base, k=5)
    counts = peft_counts(wrapped)
    for module in result.rows:
        weight = base.of(ours.updates[module.name]).read()
        tuned = weight + ours.updates[module.name].delta(weight).dense()
        assert len(module.intruders(0.5, 5)) == dense_count(weight, tuned, 0.5, 5)
    assert counts != {m.name: len(m.intruders(0.5, 5)) for m in result.rows}
