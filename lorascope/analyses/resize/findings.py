"""The result in words: what is lost or left out first, then what each plan keeps, with its number and its null."""

from typing import TYPE_CHECKING, Any

from lorascope.analyses.delta.findings import percent
from lorascope.blocks import Finding
from lorascope.errors import preview

if TYPE_CHECKING:
    from lorascope.analyses.resize.result import Plan, ResizeResult

LIKE_NOISE = 0.85  # of the null's lost energy: above it the spectrum is flat, and no rank stands out
ROUNDING_WORTH_SAYING = 0.3  # of the truncation's own error
GAIN_WORTH_HAVING = 0.95
MAX_PLANS = 3  # described one by one


def findings(result: "ResizeResult") -> tuple[Finding, ...]:
    """Errors, then warnings, then notes."""
    order = {"error": 0, "warning": 1, "note": 2}
    found = [*_left_out(result)]
    for plan in result.plans[:MAX_PLANS] if len(result.plans) <= MAX_PLANS else ():
        found += [*_dropped(result, plan), *_error(result, plan), *_rounding(plan)]
    found += [*_kinds(result), *_curve(result), *_scores(result)]
    found += [Finding("note", note) for note in result.notes]
    return tuple(sorted(found, key=lambda finding: order[finding.severity]))


def _left_out(result: "ResizeResult") -> list[Finding]:
    if not result.left_out:
        return []
    names = preview([item.name for item in result.left_out], 2)
    text = f"{len(result.left_out)} updates have no rank to reduce, and a resized adapter does not hold them: {names}"
    return [Finding("warning", text)]


def _dropped(result: "ResizeResult", plan: "Plan") -> list[Finding]:
    if not plan.dropped:
        return []
    energy = sum(m.norm**2 for m in plan.modules)
    share = sum(m.norm**2 for m in plan.dropped) / energy if energy else 0.0
    text = (
        f"{plan.label}: {len(plan.dropped)} of {len(plan.modules)} modules get no direction and are dropped, as PEFT"
        f" holds no rank 0 ({preview([m.name for m in plan.dropped], 2)}); they hold {percent(share)} of ‖ΔW‖²"
    )
    return [Finding("warning" if share else "note", text)]


def _error(result: "ResizeResult", plan: "Plan") -> list[Finding]:
    if plan.error is None:
        return [Finding("error", "ΔW is zero in every module: there is nothing to truncate")]
    whole = plan.summary()
    ranks = whole["rank"]
    span = f"{ranks['min']}" if ranks["min"] == ranks["max"] else f"{ranks['min']} to {ranks['max']}"
    text = (
        f"{plan.label}: ranks {span}, {plan.parameters:,} parameters"
        f" ({percent(plan.parameters / result.parameters_before)} of B·A before), ‖ΔW − ΔW_r‖/‖ΔW‖ = {plan.error:.3g}"
    )
    if plan.error_null:
        text += f", where a structureless B·A would lose {plan.error_null:.3g}"
    found = [Finding("note", text)]
    if plan.error_null and plan.error > LIKE_NOISE**0.5 * plan.error_null:
        text = f"{plan.label} loses about what it would of an update without structure: this rank is used up"
        found.append(Finding("warning", text))
    if plan.uniform_error is not None and plan.uniform_rank and ranks["min"] != ranks["max"]:
        text = f"rank {plan.uniform_rank} everywhere, with no more parameters, would lose {plan.uniform_error:.3g}"
        found.append(Finding("note", text))
    if ranks["min"] != ranks["max"] and whole["worst_error"] is not None:
        worst, name = whole["worst_error"], whole["worst_module"]
        text = f"{plan.label}: the module that loses most of itself is {name}, {percent(worst)} of its norm"
        found.append(Finding("note", text))
    return found


def _rounding(plan: "Plan") -> list[Finding]:
    if plan.rounding is None or plan.error is None:
        return []
    text = f"{plan.label}: rounding to the storage dtype adds {plan.rounding:.2g} of ‖ΔW‖"
    return [Finding("warning" if plan.rounding > ROUNDING_WORTH_SAYING * max(plan.error, 1e-3) else "note", text)]


def _kinds(result: "ResizeResult") -> list[Finding]:
    if result.kind == "low_rank":
        return []
    text = f"the updates are of the kind {result.kind}; resized, each is a plain LoRA, with d_out + d_in numbers a rank"
    return [Finding("note", text)]


def _curve(result: "ResizeResult") -> list[Finding]:
    """Of several plans, which is the smallest that loses little."""
    if len(result.plans) <= 1:
        return []
    known = [plan for plan in result.plans if plan.error is not None]
    small = [plan for plan in known if plan.error is not None and plan.error <= 0.1**0.5]
    if not small:
        return [Finding("note", "no plan keeps 90 % of ‖ΔW‖²")] if known else _error(result, result.plans[0])
    best = min(small, key=lambda plan: plan.parameters)
    text = f"the smallest plan that keeps 90 % of ‖ΔW‖² is {best.label}: {best.parameters:,} parameters,"
    text += f" {percent(best.parameters / result.parameters_before)} of B·A before"
    return [Finding("note", text)]


def _scores(result: "ResizeResult") -> list[Finding]:
    if not result.scores:
        return []
    base, before = result.scores["base"], result.scores["before"]
    found = []
    text = f"on {result.scored_on}: loss {base['loss']:.4g} without ΔW, {before['loss']:.4g} with all of it"
    found.append(Finding("note", text))
    if result.gained is None:
        return [*found, Finding("warning", "with all of ΔW the held-out loss is no lower than without it")]
    kept = [(plan, share) for plan in result.plans if (share := result.gain(plan)) is not None]
    said = ""
    if len(kept) > MAX_PLANS:
        good = [one for one in kept if one[1] >= GAIN_WORTH_HAVING]
        kept = [min(good or kept, key=lambda one: one[0].parameters if good else -one[1])]
        said = f"the smallest plan that keeps {percent(GAIN_WORTH_HAVING)} of the gain is " if good else "the best is "
    for plan, share in kept:
        assert plan.score is not None
        text = f"{said}{plan.label}: held-out loss {plan.score['loss']:.4g}, {percent(share)} of the gain"
        found.append(Finding("note", text + accuracy(plan.score)))
    return found


def accuracy(score: Any) -> str:
    """ ", accuracy 0.91" where there is one."""
    return "" if score.get("accuracy") is None else f", accuracy {score['accuracy']:.3f}"
