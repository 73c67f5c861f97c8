"""Each check of an adapter on updates that were planted: it fires where it should, and is silent just short of it."""

from dataclasses import replace

import numpy as np
import pytest

from lorascope.analyses import rules
from lorascope.analyses.spectrum import SpectrumResult, checks, run, screen
from lorascope.analyses.spectrum.module import AgainstBase
from lorascope.analyses.toolkit import places, ranges
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter, Skipped, Source
from lorascope.weights.tensors import InMemory

SHAPE = (32, 48)


def low_rank(name: str, sigma, scale: float = 2.0, seed: int = 0) -> Update:
    """An update with these singular values, in no particular gauge."""
    rng = np.random.default_rng([seed, len(name), sum(map(ord, name))])
    b = np.linalg.qr(rng.standard_normal((SHAPE[0], len(sigma))))[0] * np.array(sigma) / scale
    a = np.linalg.qr(rng.standard_normal((SHAPE[1], len(sigma))))[0].T
    return Update(name, "low_rank", {"A": InMemory(a, "F32"), "B": InMemory(b, "F32")}, scale)


def result(sigma=(0.3, 0.2, 0.1, 0.05), layers=6, types=("q_proj", "v_proj"), scale=2.0, settings=None, **more):
    updates = {
        name: low_rank(name, sigma, scale) for i in range(layers) for kind in types for name in [f"layers.{i}.{kind}"]
    }
    updates |= more.pop("changed", {})
    source = Source("runs/it's/adapter", "0" * 64, more.pop("format", "peft"), "LoRA")
    return run(Adapter(updates, {"r": len(sigma), **(settings or {})}, source, **more))


def beside_w(made: SpectrumResult, relative: float | dict[str, float], loss: float = 0.0) -> SpectrumResult:
    """The result as if a base had been given, of which every ΔW is this share; of those not named 5 %."""
    share = relative.get if isinstance(relative, dict) else lambda name, _: relative
    rows = tuple(replace(m, against_base=AgainstBase(1.0, share(m.name, 0.05), "BF16", loss, 0.0)) for m in made.rows)
    return replace(made, rows=rows, base="base model")


def found(made: SpectrumResult) -> dict[str, object]:
    return {rules.RULES[f.rule].name: f for f in made.findings if f.rule != rules.MEASURED.code}


def test_a_healthy_adapter_has_no_problem():
    made = result()
    assert not {f.severity for f in made.findings} & {"error", "warning"}
    assert checks.number_of_checks(made) >= 8
    assert checks.number_of_checks(beside_w(made, 0.05)) > checks.number_of_checks(made)


def test_zero_layers_are_named_by_type_and_layer():
    zero = {
        name: Update(name, "low_rank", {"A": InMemory(np.ones((4, 48))), "B": InMemory(np.zeros((32, 4)))}, 2.0)
        for i in (3, 4, 5)
        for name in [f"layers.{i}.q_proj"]
    }
    finding = found(result(changed=zero))["unchanged-modules"]
    assert finding.severity == "warning"
    assert "3 of 12 modules: q_proj in layers 3 to 5" in finding.text
    assert set(finding.modules) == set(zero)


def test_all_zero_and_non_finite_are_errors_in_one_line():
    nan = {}
    for i in range(3):
        a = np.ones((4, 48))
        a[0, 0] = np.nan
        name = f"layers.{i}.v_proj"
        nan[name] = Update(name, "low_rank", {"A": InMemory(a), "B": InMemory(np.ones((32, 4)))}, 2.0)
    errors = [f for f in result(changed=nan).findings if f.severity == "error"]
    assert len(errors) == 1
    assert "3 of 12 modules contain NaN or Inf in A (3 values): v_proj in layers 0 to 2" in errors[0].text
    assert errors[0].rule == "LS101"


@pytest.mark.parametrize(
    ("relative", "severity"), [(2.02, "error"), (1.01, "error"), (0.5, "warning"), (0.29, None), (0.002, None)]
)
def test_the_size_relative_to_the_base(relative, severity):
    finding = found(beside_w(result(), relative)).get("update-too-large")
    assert (finding.severity if finding else None) == severity
    if relative == 2.02:
        assert "202 %" in finding.text


def test_a_tiny_update_with_and_without_the_base():
    assert "update-very-small" in found(beside_w(result(), 0.0009))
    assert "update-very-small" not in found(beside_w(result(), 0.0011))
    entry = 1e-5 * (SHAPE[0] * SHAPE[1]) ** 0.5  # the Frobenius norm at which entries have 1e-5
    assert "update-very-small" in found(result(sigma=(0.9 * entry,) * 1))
    assert "update-very-small" not in found(result(sigma=(1.1 * entry,) * 1))


@pytest.mark.parametrize(("rms", "severity"), [(2.0, "error"), (0.1, "warning"), (0.04, None)])
def test_the_size_without_the_base(rms, severity):
    finding = found(result(sigma=(rms * (SHAPE[0] * SHAPE[1]) ** 0.5,))).get("update-too-large")
    assert (finding.severity if finding else None) == severity


@pytest.mark.parametrize(
    ("scale", "settings", "form", "fires"),
    [(128.0, {}, "peft", True), (64.0, {}, "peft", True), (8.0, {}, "peft", False), (0.125, {}, "kohya", False),
     (0.05, {}, "peft", True), (32.0, {"use_rslora": True}, "peft", False), (40.0, {"use_rslora": True}, "peft", True),
     (20.0, {}, "mlx", False)],
)  # fmt: skip
def test_the_scale(scale, settings, form, fires):
    finding = found(result(scale=scale, settings=settings, format=form)).get("scale-out-of-range")
    assert (finding is not None) is fires
    if fires and not settings:
        assert f"α/r = {scale:.4g} (α = {4 * scale:.4g}, r = 4)" in finding.text


def test_one_module_is_compared_with_its_own_type():
    """All v at three times q are healthy; one v at ten times the others is not."""
    strong = {f"layers.{i}.v_proj": low_rank(f"layers.{i}.v_proj", (3.0, 2.0)) for i in range(6)}
    assert "one-module-dominates" not in found(result(changed=strong))
    one = {"layers.2.v_proj": low_rank("layers.2.v_proj", (3.0, 2.0))}
    finding = found(result(changed=one))["one-module-dominates"]
    assert finding.module == "layers.2.v_proj"
    two = one | {"layers.4.q_proj": low_rank("layers.4.q_proj", (4.0, 2.0))}
    finding = found(result(changed=two))["one-module-dominates"]
    assert finding.module is None
    assert set(finding.modules) == set(two)
    assert "2 modules alone carry" in finding.text


def test_one_module_larger_than_its_weight_is_an_error_and_nothing_is_recommended():
    made = found(beside_w(result(), {"layers.3.v_proj": 1.2}))
    assert made["update-too-large"].severity == "error"
    assert made["update-too-large"].module == "layers.3.v_proj"
    assert "larger than the weight: its ‖ΔW‖/‖W‖ = 120 %" in made["update-too-large"].text
    assert "can-be-smaller" not in made
    assert "update-too-large" not in found(beside_w(result(), {"layers.3.v_proj": 0.9}))
    head = {"score": low_rank("score", (1.0, 0.5))}
    assert "update-too-large" not in found(beside_w(result(changed=head), {"score": 1.5}))


def test_the_scale_of_rslora_is_named_by_its_root():
    rms = (2.0 * (SHAPE[0] * SHAPE[1]) ** 0.5,)
    action = found(result(sigma=rms, settings={"use_rslora": True}))["update-too-large"].action
    assert "check α/√r = " in action


def test_collapse_and_its_opposite():
    collapsed = (1.0, *[0.01] * 15)
    made = found(result(sigma=collapsed))
    assert "1 of 16 directions" in made["rank-collapse"].text
    assert "rank-collapse" not in found(result(sigma=(1.0, *[0.3] * 15)))
    flat = found(result(sigma=[0.5] * 8))
    assert "all-directions-used" in flat
    assert flat["all-directions-used"].severity == "note"


def test_the_smaller_plan_is_the_one_that_resize_makes(tmp_path):
    """The promise of the finding against the plan that its command makes, and the energy that it keeps."""
    from lorascope.analyses import resize
    from lorascope.analyses.truncate import Energy

    sigma = (1.0, 0.5, 0.02, 0.01)
    updates = {f"layers.{i}.q_proj": low_rank(f"layers.{i}.q_proj", sigma) for i in range(3)}
    adapter = Adapter(updates, {"r": 4}, Source("runs/it's/adapter", "0" * 64, "peft", "LoRA"))
    finding = found(run(adapter))["can-be-smaller"]
    assert finding.command == "lorascope resize 'runs/it'\"'\"'s/adapter' --energy 0.99 --output smaller"
    (plan,) = resize.run(adapter, [Energy(0.99)]).plans
    assert f"{plan.parameters:,} of {3 * 4 * sum(SHAPE):,} parameters" in finding.action
    assert all(1 - m.error**2 >= 0.99 for m in plan.modules)
    assert "can-be-smaller" not in found(result(sigma=(1.0, 0.9, 0.8, 0.7)))


def test_the_list_of_several_adapters_has_all_problems_of_each_and_names_modules():
    one = {"layers.2.v_proj": low_rank("layers.2.v_proj", (3.0, 2.0))}
    wrong = result(changed=one, settings={"target_modules": ["q_proj", "v_proj", "wq"]})
    made = [wrong, result()]
    line, (problems, rows, *_) = screen.of_several(made, [(screen.summary(each, each.findings),) for each in made])
    assert line == "1 with problems, 1 without"
    (finding,) = problems.items
    assert "2 warnings" in finding.text
    assert "layers.2.v_proj: This module alone" in finding.text
    assert "'wq'" in finding.text
    assert [row[0].spans[0].to for row in rows.rows] == ["#adapter-1", "#adapter-2"]
    assert [row[1:3] for row in rows.rows] == [(0, 2), (0, 0)]
    assert all(f.action in finding.action for f in wrong.findings if f.severity == "warning")
    assert [column.title for column in rows.columns[-2:]] == ["Modules", "Parameters"]


def test_what_nan_hides_is_said_and_not_counted():
    a = np.ones((4, 48))
    a[0, 0] = np.nan
    roles = {"A": InMemory(a), "B": InMemory(np.ones((32, 4)))}
    made = result(changed={"layers.0.v_proj": Update("layers.0.v_proj", "low_rank", roles, 2.0)})
    assert made.energy_share(next(m for m in made.rows if m.name == "layers.0.v_proj")) is None
    assert "1 module with NaN or Inf counted nowhere" in screen.by_type(made).caption


def test_a_base_that_is_at_hand_is_named_in_the_command(tmp_path):
    made = result(settings={"base_model_name_or_path": str(tmp_path)})
    assert found(made)["no-base"].command.endswith(f"--base {tmp_path}")
    for name in ("meta-llama/away", "x" * 5000, "\0"):  # a name longer than any path, and one that none can be
        away = result(settings={"base_model_name_or_path": name})
        assert found(away)["no-base"].command.endswith("--base MODEL")


def test_rounding_targets_skipped_and_the_missing_base():
    made = result(skipped=(Skipped("score.bias", "a bias"),), settings={"target_modules": ["q_proj", "v_proj", "wq"]})
    names = found(made)
    assert names["tensors-skipped"].severity == "note"
    assert "'wq'" in names["missing-targets"].text
    assert names["no-base"].command.endswith("--base MODEL")
    lossy = found(beside_w(made, 0.05, loss=0.02))
    assert "no-base" not in lossy
    assert lossy["merge-rounding"].command.endswith("--base 'base model' --dtype float32 --output merged")
    assert lossy["merge-rounding"].severity == "note"


def test_a_merge_into_float32_is_not_mended_by_one_into_float32():
    made = beside_w(result(), 1e-6, loss=0.02)
    rows = tuple(replace(m, against_base=replace(m.against_base, dtype="F32")) for m in made.rows)
    finding = found(replace(made, rows=rows))["merge-rounding"]
    assert "into float32 loses 2 %" in finding.text
    assert not finding.command
    assert "without merging" in finding.action


def test_what_a_reader_says_is_a_problem_only_where_it_puts_numbers_in_doubt():
    made = result(notes=("module names keep the file's underscores", "scale unknown: no alpha", "unknown fields: x"))
    by_severity = {f.severity: f for f in made.findings if f.rule == rules.FILE.code}
    assert by_severity.keys() == {"note"}
    doubts = [found(made)[name] for name in ("scale-unknown", "unknown-fields")]
    assert all(finding.severity == "warning" and finding.action for finding in doubts)
    assert found(beside_w(made, 0.05, loss=0.21))["merge-rounding"].severity == "warning"
    assert "merge-rounding" not in found(beside_w(made, 0.05, loss=0.009))
    assert "missing-targets" not in found(result(settings={"target_modules": ["q_proj", "v_proj"]}))


def test_every_check_says_why_its_bound():
    for check in checks.CHECKS:
        assert len(check.__doc__) > 60, check.__name__
    assert len(rules.RULES) == len({rule.name for rule in rules.RULES.values()})


def test_places_and_ranges():
    assert ranges([5, 3, 4, 8]) == "3 to 5, 8"
    assert ranges([1, 2]) == "1, 2"
    rows = [{"name": f"l.{i}.{k}", "type": k, "depth": i} for i in (0, 1, 2) for k in ("q", "v")]
    assert places(rows) == "q, v in layers 0 to 2"
    assert places([{"name": "lm_head", "type": "lm_head", "depth": None}]) == "'lm_head'"
