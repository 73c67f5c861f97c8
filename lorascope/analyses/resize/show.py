"""The result in words and drawn: what is lost or skipped first, then what each plan keeps, next to its baseline."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lorascope.analyses import rules
from lorascope.analyses.base import definitions
from lorascope.analyses.resize.measure import KEPT, METRICS, Plan, ResizeResult
from lorascope.analyses.toolkit import (
    counted,
    depth_map,
    inputs,
    module_table,
    percent,
    plural,
    short_path,
    skipped_table,
)
from lorascope.blocks import (
    Block,
    Cell,
    Column,
    Definition,
    Definitions,
    Facts,
    Finding,
    Findings,
    Heading,
    Heatmap,
    Lines,
    Marker,
    Series,
    Table,
    Text,
    Tile,
    Tiles,
)
from lorascope.errors import preview
from lorascope.weights.adapter import Skipped

LIKE_NOISE = 0.85  # of the energy that the random baseline loses: above it the spectrum is flat
ROUNDING_REPORT_BOUND = 0.3  # of the truncation's own error
GAIN_WORTH_HAVING = 0.95
ROUNDING_WORTH_A_WORD = 0.001  # of ‖ΔW‖
MAX_PLANS = 3  # described one by one
MAX_LISTED = 8  # modules on the terminal
NOT_MAPPED = ("rank_before", "parameters", "rounding")

RULES = (
    Definition("rank R", "R directions in every module", "uniform truncation", "The same rank in every module."),
    Definition(
        "energy p", "the smallest r of each module with Σ_{i≤r} σ² ≥ p Σσ²", "Eckart and Young 1936",
        "The same share of its energy in every module, at the lowest rank that keeps it.",
    ),
    Definition(
        "budget-rank R", "R times the modules, as directions: the largest singular values of all modules first",
        "no other choice of as many directions loses less of Σ‖ΔW‖²",
        "As many directions in all as with rank R, given to the modules where they are strongest.",
    ),
    Definition(
        "parameters N", "at most N parameters in the factors, d_out + d_in for a direction; the largest σ first, or"
        " (by energy) the largest σ²/(d_out + d_in)", "the greedy of the fractional knapsack, Dantzig 1957",
        "A limit on the size of the file, used for the strongest directions first.",
    ),
)  # fmt: skip


def heading(result: ResizeResult) -> tuple[str, str]:
    title = short_path(result.source.path) or "an adapter in memory"
    if len(result.plans) > 1:
        modules = len(result.plans[0].modules)
        summary = (
            f"{len(result.plans)} plans for {plural(modules, 'module')}, {result.parameters_before:,} parameters as B·A"
        )
        return title, summary
    plan = result.plans[0]
    summary = f"{plan.label}: {plan.parameters:,} of {result.parameters_before:,} parameters"
    if plan.error is not None:
        summary += f", {_loss(plan.error)}"
    return title, summary


# --- in words --------------------------------------------------------------------------------------------------------


def findings(result: ResizeResult) -> list[Finding]:
    items = [*_scores(result), *_skipped(result)]
    for plan in result.plans if len(result.plans) <= MAX_PLANS else ():
        items += [*_dropped(plan), *_error(result, plan), *_rounding(plan)]
    items += [*_kinds(result), *_curve(result)]
    return items + [Finding("note", note) for note in result.notes]


def _skipped(result: ResizeResult) -> list[Finding]:
    if not result.skipped:
        return []
    names = preview([item.name for item in result.skipped], 2)
    number = len(result.skipped)
    are = "update is not low-rank and is" if number == 1 else "updates are not low-rank and are"
    text = f"{number} {are} dropped from the resized adapter: {names}"
    action = "Keep the original adapter where these matter"
    return [rules.LOST.finding(text, modules=tuple(item.name for item in result.skipped), action=action)]


def _dropped(plan: Plan) -> list[Finding]:
    if not plan.dropped:
        return []
    energy = sum(m.norm**2 for m in plan.modules)
    share = sum(m.norm**2 for m in plan.dropped) / energy if energy else 0.0
    text = (
        f"{plan.label}: {counted(len(plan.dropped), len(plan.modules))} get rank 0 and are dropped because PEFT"
        f" cannot store it ({preview([m.name for m in plan.dropped], 2)}); they hold {percent(share)} of ‖ΔW‖²"
    )
    names = tuple(m.name for m in plan.dropped)
    action = "Raise the rank, energy or budget, or use --rank, which gives every module the same" if share else ""
    return [rules.LOST.finding(text, "warning" if share else "note", modules=names, action=action)]


def _error(result: ResizeResult, plan: Plan) -> list[Finding]:
    if plan.error is None:
        text = "ΔW is zero in every module: there is nothing to truncate"
        return [rules.NO_CHANGE.finding(text, action="Run lorascope analyze on it, which says why")]
    ranks = [module.rank for module in plan.modules]
    low, high = min(ranks), max(ranks)
    span = f"ranks {low} to {high}, " if low < high else "" if plan.label == f"rank {low}" else f"rank {low}, "
    text = f"{plan.label}: {span}{plan.parameters:,} parameters ({_of_original(result, plan)}), {_loss(plan.error)}"
    if plan.error_null:
        text += f" (random baseline: error {percent(plan.error_null, 3)})"
    items = [Finding("note", text)]
    if plan.error_null and plan.error > LIKE_NOISE**0.5 * plan.error_null:
        text = f"{plan.label} loses about as much as truncating random factors would: the adapter uses its full rank"
        items.append(rules.FULL_RANK.finding(text, action="Do not truncate it"))
    if low == high:
        return items
    if plan.uniform_error is not None and plan.uniform_rank:
        text = f"Rank {plan.uniform_rank} in every module, at no more parameters, would have an error of"
        text += f" {percent(plan.uniform_error, 3)}"
        items.append(Finding("note", text))
    if plan.worst is not None and plan.worst.error is not None:
        text = f"{plan.label}: largest relative error: {plan.worst.name}, {_loss(plan.worst.error)}"
        items.append(Finding("note", text))
    return items


def _of_original(result: ResizeResult, plan: Plan) -> str:
    what = "the original adapter" if result.kind == "low_rank" else "ΔW as B·A"
    return f"{percent(plan.parameters / result.parameters_before)} of {what}"


def _rounding(plan: Plan) -> list[Finding]:
    if plan.rounding is None or plan.error is None or plan.rounding < ROUNDING_WORTH_A_WORD:
        return []
    text = f"{plan.label}: rounding to the storage dtype adds an error of {percent(plan.rounding)} of ‖ΔW‖"
    large = plan.rounding > ROUNDING_REPORT_BOUND * max(plan.error, 1e-3)
    action = "Write it in a finer dtype: --dtype float32"
    return [rules.RESIZE_ROUNDING.finding(text, action=action) if large else Finding("note", text)]


def _kinds(result: ResizeResult) -> list[Finding]:
    if result.kind == "low_rank":
        return []
    text = f"The updates are of the kind {result.kind}; resized, each is a plain LoRA, with d_out + d_in parameters"
    return [Finding("note", f"{text} per rank")]


def _curve(result: ResizeResult) -> list[Finding]:
    """Of several plans, which is the smallest that loses little."""
    if len(result.plans) <= 1:
        return []
    if all(plan.error is None for plan in result.plans):
        return _error(result, result.plans[0])
    best = result.smallest
    if best is None:
        return [rules.RECOMMENDED.finding(f"No plan keeps {percent(KEPT)} of the energy of every module")]
    text = (
        f"Smallest plan that keeps {percent(KEPT)} of every module's energy: {best.label} ({best.parameters:,}"
        f" parameters, {_of_original(result, best)}; {_loss(best.error or 0.0)})"
    )
    command = f"lorascope resize {shlex.quote(result.source.path or 'ADAPTER')} {_options(best.label)} --output smaller"
    saves = best.parameters < result.parameters_before
    return [rules.RECOMMENDED.finding(text, command=command if saves else "")]


def _options(label: str) -> str:
    """The rule of a plan as it is typed: "rank 4" is --rank 4."""
    name, _, number = label.partition(" ")
    return f"--{name} {number.partition(' ')[0]}" + (" --by-energy" if "by energy" in label else "")


def _loss(error: float) -> str:
    """One loss, in both units: an error of 22 % of ‖ΔW‖ is 4.8 % of its energy."""
    return f"error {percent(error, 3)} of ‖ΔW‖, {percent(error**2, 2)} of its energy lost"


def _scores(result: ResizeResult) -> list[Finding]:
    if not result.scores:
        return []
    base, before = result.scores["base"], result.scores["before"]
    without, full = (f"{each['loss']:.4g}{_accuracy(each)}" for each in (base, before))
    items = [Finding("note", f"On {result.scored_on}: loss {without} without ΔW; {full} with the full adapter")]
    if result.gained is None:
        text = "The full adapter does not reduce the held-out loss, so plans cannot be scored by retained gain"
        action = "Score on data like those it was trained on, or train it longer before you resize it"
        return [*items, rules.NOTHING_GAINED.finding(text, action=action)]
    scored = [(plan, share) for plan in result.plans if (share := result.gain(plan)) is not None]
    lead = ""
    if len(scored) > MAX_PLANS:
        good = [each for each in scored if each[1] >= GAIN_WORTH_HAVING]
        scored = [min(good or scored, key=lambda each: each[0].parameters if good else -each[1])]
        lead = f"The smallest plan that keeps {percent(GAIN_WORTH_HAVING)} of the gain is " if good else "The best is "
    for plan, share in scored:
        score = plan.score or {}
        text = f"{lead}{plan.label}: held-out loss {score['loss']:.4g}, {percent(share)} of the gain"
        items.append(Finding("note", text + _accuracy(score)))
    return items


def _accuracy(score: Mapping[str, float]) -> str:
    accuracy = score.get("accuracy")
    return "" if accuracy is None else f", accuracy {accuracy:.3f}"


# --- drawn -----------------------------------------------------------------------------------------------------------


def blocks(result: ResizeResult) -> tuple[Block, ...]:
    """The page in reading order."""
    drawn: list[Block] = [Tiles(tiles(result)), Findings(result.findings), _plans(result)]
    if len(result.plans) == 1:
        drawn += _worst(result.plans[0])
    curves = [each for each in (error_curve(result), gain_curve(result)) if each]
    text = "Pass several --rank/--energy values to draw the trade-off curve."
    drawn += curves or [Text(text, where="page")]
    chosen = _chosen(result)
    drawn += [Heading(f"By module: {chosen.label}", where="page")]
    drawn += [each] if (each := heatmap(result)) else []
    drawn += [module_table("All modules", chosen.modules, _shown(chosen))]
    return (*drawn, *_not_kept(result), Definitions((*definitions(METRICS), *RULES), where="page"), _facts(result))


def tiles(result: ResizeResult) -> tuple[Tile, ...]:
    """The first screen's numbers, of the plan whose modules are shown: what it takes, and what it loses."""
    plan = _chosen(result)
    if len(result.plans) > 1:
        kept = f"keeps {percent(KEPT)} of every module"
        note = f"the smallest that {kept}" if result.smallest else f"the largest; none {kept}"
        made = [Tile("Plan", plan.label, note if plan.error is not None else "")]
    else:
        low, high = (f"{plan.summary()['rank'][key]}" for key in ("min", "max"))
        before = max(module.rank_before for module in plan.modules)
        made = [Tile("Rank", low if low == high else f"{low} to {high}", f"before {before}")]
    share = plan.parameters / result.parameters_before
    made.append(Tile("Parameters", percent(share, 3), f"{plan.parameters:,} of {result.parameters_before:,}"))
    if plan.error is not None:
        null = plan.error_null
        note = "of ‖ΔW‖" + ("" if null is None else f"; random factors {percent(null, 3)}")
        made.append(Tile("Error of the update", percent(plan.error, 3), note, "error"))
    if (worst := plan.worst) is not None and worst.error is not None:
        where = worst.type if worst.depth is None else f"{worst.type}, layer {worst.depth}"
        made.append(Tile("Error of the worst module", percent(worst.error, 3), where, "error"))
    if (gain := result.gain(plan)) is not None:
        note = f"held-out loss {plan.score['loss']:.4g}" if plan.score else ""
        made.append(Tile("Gain kept", percent(gain, 3), note))
    return tuple(made)


def _facts(result: ResizeResult) -> Facts:
    items = [
        ("adapter", f"{result.source.path}, sha256 {result.source.sha256}"),
        ("format", f"{result.source.format}, {result.source.method}"),
        ("modules", str(len(result.plans[0].modules))),
        ("parameters as B·A", f"{result.parameters_before:,}"),
        ("dtype", result.dtype or "each module's own dtype"),
    ]
    if result.scored_on:
        items.append(("scored on", result.scored_on))
    return inputs(items)


def _plans(result: ResizeResult) -> Table:
    """One row per plan; the scores' columns only where there are scores."""
    scored = bool(result.scores)
    accurate = any((score.get("accuracy") is not None) for score in result.scores.values())
    columns = [
        Column("plan", "plan", "code"), Column("rank", "ranks", help="min – median – max over modules"),
        Column("parameters", "parameters", "int"), Column("share", "of B·A", "percent"),
        Column("error", "error", "percent", help="‖ΔW − ΔW_r‖/‖ΔW‖ over all modules"),
    ]  # fmt: skip
    if scored:
        columns += [Column("loss", "held-out loss", "float", 4), Column("gain", "of the gain", "percent")]
        columns += [Column("accuracy", "accuracy", "percent")] * accurate
    columns += [
        Column(
            "kept", "energy kept", "percent", help="1 − error²: the share of ‖ΔW‖² that the plan keeps", metric="error"
        ),
        Column("null", "random", "percent", help="random baseline: the error of Gaussian factors", metric="error_null"),
        Column("worst", "worst module", "percent", help="the largest error of one module", metric="error"),
        Column("dropped", "dropped", "int", help="modules of rank 0"),
    ]
    rows = [_plan_row(result, plan, scored, accurate) for plan in result.plans]
    for name, title, share in (("before", "all of ΔW", 1.0), ("base", "without ΔW", 0.0)) if scored else ():
        score = result.scores[name]
        accuracy = [score.get("accuracy")] * accurate
        kept = share if result.gained else None
        rows.append((title, "", None, None, None, score["loss"], kept, *accuracy, None, None, None, None))
    caption = "Error: ‖ΔW − ΔW_r‖/‖ΔW‖ (30 % error = 91 % of the energy kept); random: error for Gaussian factors"
    return Table(tuple(columns), tuple(rows), title="Plans", caption=f"{caption} truncated to the same ranks.")


def _plan_row(result: ResizeResult, plan: Plan, scored: bool, accurate: bool) -> tuple[Cell, ...]:
    summary = plan.summary()
    low, middle, high = (summary["rank"][key] for key in ("min", "median", "max"))
    ranks = str(low) if low == high else f"{low} – {middle:g} – {high}"
    share = plan.parameters / result.parameters_before
    kept = None if plan.error is None else 1 - plan.error**2
    row: tuple[Cell, ...] = (plan.label, ranks, plan.parameters, share, plan.error)
    if scored:
        score = plan.score or {}
        row = (*row, score.get("loss"), result.gain(plan), *([score.get("accuracy")] * accurate))
    return (*row, kept, plan.error_null, summary["worst_error"], len(plan.dropped))


def _shown(plan: Plan) -> list[Any]:
    """The shape, and the metrics that any module has."""
    measured = [m for m in METRICS if any(getattr(module, m.key) is not None for module in plan.modules)]
    return [Column("shape", "shape"), *measured]


def _worst(plan: Plan) -> list[Block]:
    """The modules with the largest relative error, for the terminal."""
    with_error = [module for module in plan.modules if module.error is not None]
    worst = sorted(with_error, key=lambda module: -(module.error or 0.0))[:MAX_LISTED]
    if not worst:
        return []
    hidden = len(plan.modules) - len(worst)
    caption = f"{hidden} others are not shown (--csv)" if hidden else ""
    table = module_table("Modules with the largest relative error", worst, _shown(plan), caption)
    return [replace(table, interactive=False, where="terminal")]


def _chosen(result: ResizeResult) -> Plan:
    """The plan whose modules are shown: the smallest with 99 % of every module, or the largest where none has it."""
    if len(result.plans) == 1:
        return result.plans[0]
    return result.smallest or max(result.plans, key=lambda plan: plan.parameters)


def _families(result: ResizeResult) -> dict[str, list[Plan]]:
    """Plans by rule, ascending in parameters; none where there is only one."""
    with_error = [plan for plan in result.plans if plan.error is not None and plan.parameters]
    if len(with_error) < 2:
        return {}
    families: dict[str, list[Plan]] = {}
    for plan in sorted(with_error, key=lambda plan: plan.parameters):
        families.setdefault(plan.label.split(" ")[0], []).append(plan)
    return families


def error_curve(result: ResizeResult) -> Lines | None:
    """Error against parameters, with its random baseline."""
    families = _families(result)
    if not families:
        return None
    series = [_series(name, plans, [plan.error for plan in plans]) for name, plans in families.items()]
    if uniform := families.get("rank"):
        baseline = _series("random baseline at these ranks", uniform, [plan.error_null for plan in uniform])
        series.append(replace(baseline, weight="reference"))
    return Lines(
        "Truncation error against size", tuple(series), "parameters", "‖ΔW − ΔWᵣ‖/‖ΔW‖", log_x=True, where="page",
        caption="Exact by Eckart and Young; the dashed line is the random baseline. Lower left is better.",
    )  # fmt: skip


def gain_curve(result: ResizeResult) -> Lines | None:
    """The share of the gain in held-out loss that is left, where it was scored."""
    families = _families(result)
    series = [_series(name, plans, [result.gain(plan) for plan in plans]) for name, plans in families.items()]
    if all(each is None for line in series for each in line.y):
        return None
    return Lines(
        "Retained gain against size", tuple(series), "parameters", "share of the gain in held-out loss", log_x=True,
        where="page", markers=(Marker("y", 1.0, "all of ΔW"),),
        caption="Gain: the held-out loss without ΔW minus the loss with all of it. Upper left is better.",
    )  # fmt: skip


def _series(name: str, plans: Sequence[Plan], y: Sequence[float | None]) -> Series:
    """A line; a point where a family has one plan."""
    points = (plans[0].label,) if len(plans) == 1 else ()
    return Series(name, tuple(float(plan.parameters) for plan in plans), tuple(y), points=points)


def heatmap(result: ResizeResult) -> Heatmap | None:
    """Rank and error of one plan by depth and type."""
    plan = _chosen(result)
    metrics = [metric for metric in _shown(plan)[1:] if metric.key not in NOT_MAPPED]
    return depth_map(plan.modules, metrics, caption="Where several modules share a cell, the mean.")


def _not_kept(result: ResizeResult) -> list[Block]:
    items = list(result.skipped)
    if len(result.plans) == 1:
        reason = f"dropped: rank 0 under {result.plans[0].label}; ‖ΔW‖_F was"
        items += [Skipped(m.name, f"{reason} {m.norm:.3g}") for m in result.plans[0].dropped]
    return [skipped_table(items, "Skipped or dropped", "module")] if items else []


PLOTS = {"error": error_curve, "gain": gain_curve, "heatmap": heatmap}
