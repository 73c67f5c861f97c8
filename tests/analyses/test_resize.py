"""What each plan loses: closed forms, the null it stands beside, and the words."""

import json

import numpy as np
import pytest

from lorascope.analyses.resize import run
from lorascope.analyses.resize.show import PLOTS
from lorascope.analyses.truncate import Energy, ParameterBudget, RankBudget, Uniform, rules
from lorascope.blocks import Heatmap, Lines
from lorascope.errors import InputError
from lorascope.report import html, terminal
from lorascope.updates.base import Update, dense
from lorascope.weights.adapter import Adapter
from lorascope.weights.tensors import InMemory


def planted(values: dict[str, list[float]], m: int = 40, n: int = 60) -> Adapter:
    """Modules with these singular values, in float64."""
    rng = np.random.default_rng(1)
    updates = {}
    for name, sigma in values.items():
        u, v = (np.linalg.qr(rng.standard_normal((size, len(sigma))))[0] for size in (m, n))
        roles = {"A": InMemory(v.T, "F64"), "B": InMemory(u * np.array(sigma), "F64")}
        updates[name] = Update(name, "low_rank", roles)
    return Adapter(updates)


ADAPTER = planted({"layers.0.q": [4, 3, 0.0, 0.0], "layers.1.q": [2, 1, 1, 1], "layers.1.v": [0.0] * 4})


def test_errors_are_the_tails_and_totals_weigh_by_norm():
    plan = run(ADAPTER, [Uniform(1)]).plans[0]
    first, second, zero = plan.modules
    assert first.error == pytest.approx(3 / 5, rel=1e-12)
    assert second.error == pytest.approx((3 / 7) ** 0.5, rel=1e-12)
    assert zero.error is None  # ΔW is zero: there is no share to lose
    assert plan.error == pytest.approx(((9 + 3) / (25 + 7)) ** 0.5, rel=1e-12)
    assert plan.parameters == 300
    assert run(ADAPTER, [Uniform(4)]).plans[0].error == pytest.approx(0, abs=1e-12)


def test_a_structureless_update_loses_what_its_null_says():
    rng = np.random.default_rng(4)
    roles = {"A": InMemory(rng.standard_normal((8, 3000))), "B": InMemory(rng.standard_normal((2000, 8)))}
    result = run(Adapter({"m": Update("m", "low_rank", roles)}), [Uniform(4)])
    module = result.plans[0].modules[0]
    assert module.error == pytest.approx(module.error_null, rel=0.05)  # one draw against a mean of draws
    assert any("uses its full rank" in finding.text for finding in result.findings)
    full = Adapter({"m": Update("m", "dense", {"delta": InMemory(rng.standard_normal((200, 300)))})})
    module = run(full, [Uniform(40)]).plans[0].modules[0]
    assert module.error == pytest.approx(module.error_null, rel=0.01)  # against Marchenko and Pastur


def test_dropped_modules_are_listed_with_what_they_held():
    result = run(ADAPTER, [RankBudget(2 / 3)], build=True)
    assert [module.name for module in result.plans[0].dropped] == ["layers.1.q", "layers.1.v"]
    assert list(result.resized.updates) == ["layers.0.q"]
    assert any("2 of 3 modules get rank 0 and are dropped" in f.text and "22 %" in f.text for f in result.findings)
    assert result.plans[0].uniform_rank == 0  # even rank 1 in every module takes more


def test_a_uniform_rank_of_no_more_parameters_stands_beside_a_budget():
    plan = run(ADAPTER, [RankBudget(5 / 3)]).plans[0]
    assert [module.rank for module in plan.modules] == [2, 3, 0]
    assert plan.uniform_rank == 1
    assert plan.uniform_error == pytest.approx((12 / 32) ** 0.5, rel=1e-12)
    assert plan.error == pytest.approx((1 / 32) ** 0.5, rel=1e-12)


def test_scores_are_asked_for_what_will_be_written():
    seen = []

    def evaluate(deltas):
        seen.append({name: dense(delta) for name, delta in deltas.items()})
        return {"loss": 3.0 - len(seen), "accuracy": None}

    result = run(ADAPTER, [Uniform(1), Uniform(2)], evaluate=evaluate, scored_on="texts", dtype="BF16")
    assert [len(deltas) for deltas in seen] == [3, 3, 0, 3]  # both plans, none, all
    small = run(ADAPTER, [Uniform(1)], build=True, dtype="BF16").resized
    for name, update in small.updates.items():
        np.testing.assert_array_equal(seen[0][name], dense(update.delta()))
    assert [plan.score["loss"] for plan in result.plans] == [2.0, 1.0]
    assert result.scores["base"]["loss"] == 0.0
    flat = run(ADAPTER, [Uniform(1)], evaluate=lambda _: {"loss": 1.0, "accuracy": None}, scored_on="texts")
    assert [f.rule for f in flat.findings if "does not reduce the held-out loss" in f.text] == ["LS505"]


@pytest.mark.parametrize("rules", [[], [Energy(0.9)], [Uniform(1), RankBudget(1)]], ids=["none", "one", "two"])
def test_it_can_be_drawn_and_written(rules):
    result = run(ADAPTER, rules)
    found = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert found["schema"] == 2
    assert len(found["plans"]) == len(result.plans) == (len(rules) or 3 + 4)
    page = result.page()
    assert "Plans" in terminal.render(page, width=100, color=False)
    assert "<h1" in html.render(page)
    assert len(result.table()) == 3 * len(result.plans)


def test_modules_that_do_not_match_keep_their_rank():
    result = run(ADAPTER, [Uniform(1)], modules="q$", build=True)
    plan = result.plans[0]
    assert {module.name: module.rank for module in plan.modules} == {"layers.0.q": 1, "layers.1.q": 1, "layers.1.v": 4}
    assert plan.error == pytest.approx(((9 + 3) / (25 + 7)) ** 0.5, rel=1e-12)
    assert plan.uniform_rank == 1
    update = ADAPTER.updates["layers.1.v"]
    np.testing.assert_allclose(
        dense(result.resized.updates["layers.1.v"].delta()), dense(update.delta()), rtol=0, atol=1e-12
    )
    with pytest.raises(InputError, match="--modules"):
        run(ADAPTER, [Uniform(1)], modules="nothing")


def test_rules_by_the_names_of_the_command_line():
    assert rules(rank=4) == [Uniform(4)]
    assert rules(energy=(0.5, 0.9), budget_rank=2) == [Energy(0.5), Energy(0.9), RankBudget(2)]
    assert rules(parameters=100, by_energy=True) == [ParameterBudget(100, True)]
    for wrong in ({"rank": 0}, {"energy": 0.0}, {"energy": 1.5}, {"budget_rank": float("inf")}, {"by_energy": True}):
        with pytest.raises(InputError):
            rules(**wrong)


@pytest.mark.parametrize("name", ["error", "gain", "heatmap"])
def test_its_figures_are_blocks_or_none(name):
    scores = iter((2.0, 1.0, 3.0, 0.5))
    result = run(ADAPTER, [Uniform(1), Uniform(2)], evaluate=lambda deltas: {"loss": next(scores), "accuracy": None})
    assert isinstance(PLOTS[name](result), Lines | Heatmap)
    alone = PLOTS[name](run(ADAPTER, [Uniform(1)]))
    assert isinstance(alone, Heatmap) if name == "heatmap" else alone is None


def test_one_adapter_is_made_by_one_rule():
    with pytest.raises(InputError, match="one adapter is made by one rule"):
        run(ADAPTER, [Uniform(1), Uniform(2)], build=True)
    with pytest.raises(InputError, match="leaves no module with a direction"):
        run(ADAPTER, [RankBudget(0.1)], build=True)


def test_a_plan_says_its_rank_once_and_rounding_only_where_it_counts():
    adapter = planted({"layers.0.q": [4, 3, 1, 0.0], "layers.1.q": [2, 1, 1, 1]})
    (first, *_) = (f.text for f in run(adapter, [Uniform(2)], dtype="F32", build=True).findings)
    assert first.startswith("rank 2: 400 parameters (")
    assert run(adapter, [Energy(0.9)]).findings[0].text.startswith("energy 0.9: ranks 2 to 4, ")
    for dtype, said in (("F32", False), ("BF16", True)):
        texts = [f.text for f in run(adapter, [Uniform(2)], dtype=dtype, build=True).findings]
        assert any("rounding to the storage dtype" in text for text in texts) == said
    whole = run(adapter, [Uniform(4)], dtype="BF16", build=True).findings
    assert [(f.severity, f.action) for f in whole if f.rule == "LS504"] == [
        ("warning", "Write it in a finer dtype: --dtype float32")
    ]
