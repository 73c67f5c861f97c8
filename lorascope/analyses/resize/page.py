"""The result as blocks: the same data for the terminal, the page and the JSON."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lorascope.analyses.maps import depth_by_type
from lorascope.blocks import (
    Block,
    Cell,
    Column,
    Definition,
    Definitions,
    Facts,
    Findings,
    Heading,
    Lines,
    Marker,
    Series,
    Table,
    Text,
)

if TYPE_CHECKING:
    from lorascope.analyses.resize.result import Plan, ResizedModule, ResizeResult

# What a module is listed by: key, title, unit, help.
MEASURES = (
    ("rank_before", "rank before", "int", "singular values of ΔW: its rank by construction"),
    ("rank", "rank", "int", "what the plan gives it; 0: dropped"),
    ("parameters", "parameters", "int", "rank · (d_out + d_in)"),
    ("norm", "‖ΔW‖_F", "float", "√Σσ²"),
    ("error", "error", "percent", "‖ΔW − ΔW_r‖_F/‖ΔW‖_F, exact"),
    ("error_null", "null", "percent", "the same of a product B·A of this shape without structure"),
    ("rounding", "rounding", "float", "‖stored − ΔW_r‖_F/‖ΔW‖_F"),
)
MAX_LISTED = 8  # modules on the terminal

DEFINITIONS = (
    Definition(
        "Error", "‖ΔW − ΔW_r‖_F/‖ΔW‖_F = √(Σ_{i>r} σ²/Σσ²): no matrix of rank r is nearer", "Eckart and Young 1936"
    ),
    Definition("Error over all modules", "√(Σ‖ΔW − ΔW_r‖²/Σ‖ΔW‖²)", "the norm of all ΔW together"),
    Definition(
        "Null", "the mean error of B·A with independent Gaussian entries, same d_out, d_in and rank before",
        "Bartlett 1933 for the draws; iid entries, Marchenko and Pastur 1967, where ΔW is dense",
    ),
    Definition("rank R", "R directions in every module", "uniform truncation"),
    Definition("energy p", "the smallest r of each module with Σ_{i≤r} σ² ≥ p Σσ²", "Eckart and Young 1936"),
    Definition(
        "budget-rank R", "R times the modules, as directions: the largest singular values of all modules first",
        "no other choice of as many directions loses less of Σ‖ΔW‖²",
    ),
    Definition(
        "parameters N", "at most N numbers in the factors, d_out + d_in for a direction; the largest σ first, or"
        " (by energy) the largest σ²/(d_out + d_in)", "the greedy of the fractional knapsack, Dantzig 1957",
    ),
)  # fmt: skip


def blocks(result: "ResizeResult") -> tuple[Block, ...]:
    """The page in reading order."""
    made: list[Block] = [_facts(result), Findings(result.findings), _plans(result)]
    if len(result.plans) == 1:
        made += [*_terminal(result.plans[0])]
    made += _curves(result)
    chosen = result.plans[0] if len(result.plans) == 1 else _middle(result)
    made += [Heading(f"By module: {chosen.label}", where="page"), *_heatmap(chosen), _all(chosen)]
    return (*made, *_left_out(result), Definitions(DEFINITIONS, where="page"))


def _facts(result: "ResizeResult") -> Facts:
    items = [
        ("adapter", f"{result.source.path}, sha256 {result.source.sha256}"),
        ("format", f"{result.source.format}, {result.source.method}"),
        ("modules", str(len(result.plans[0].modules))),
        ("parameters as B·A", f"{result.parameters_before:,}"),
        ("stored as", result.dtype or "each module's own dtype"),
    ]
    if result.scored_on:
        items.append(("scored on", result.scored_on))
    return Facts(tuple(items), title="What was resized", where="page")


def _plans(result: "ResizeResult") -> Table:
    """One row per plan; the scores' columns only where there are scores."""
    scored = bool(result.scores)
    accurate = any((score.get("accuracy") is not None) for score in result.scores.values())
    columns = [
        Column("plan", "plan", "code"), Column("rank", "ranks", help="least, median, most"),
        Column("parameters", "parameters", "int"), Column("share", "of B·A", "percent"),
        Column("error", "error", "percent", help="‖ΔW − ΔW_r‖/‖ΔW‖ over all modules"),
        Column("null", "null", "percent", help="the same of structureless products"),
    ]  # fmt: skip
    if scored:
        columns += [Column("loss", "held-out loss", "float", 4), Column("gain", "of the gain", "percent")]
        columns += [Column("accuracy", "accuracy", "percent")] * accurate
    columns += [
        Column("worst", "worst module", "percent", help="the largest error of one module"),
        Column("dropped", "dropped", "int", help="modules that get no direction"),
    ]
    rows = [_plan_row(result, plan, scored, accurate) for plan in result.plans]
    if scored:
        for name, title in (("before", "all of ΔW"), ("base", "without ΔW")):
            score = result.scores[name]
            blank: tuple[Cell, ...] = ("", None, None, None, None)
            whole = {"before": 1.0, "base": 0.0}[name] if result.gained else None
            accuracy = [score.get("accuracy")] * accurate
            rows.append((title, *blank, score["loss"], whole, *accuracy, None, None))
    caption = "Error: the share of ‖ΔW‖ that truncation takes away; null: what it would take of an update without"
    caption += " structure, at the same ranks."
    return Table(tuple(columns), tuple(rows), title="Plans", caption=caption)


def _plan_row(result: "ResizeResult", plan: "Plan", scored: bool, accurate: bool) -> tuple[Cell, ...]:
    whole = plan.summary()
    low, middle, high = (whole["rank"][key] for key in ("min", "median", "max"))
    ranks = str(low) if low == high else f"{low} – {middle:g} – {high}"
    row: tuple[Cell, ...] = (
        plan.label, ranks, plan.parameters, plan.parameters / result.parameters_before, plan.error, plan.error_null,
    )  # fmt: skip
    if scored:
        score = plan.score or {}
        row = (*row, score.get("loss"), result.gain(plan), *([score.get("accuracy")] * accurate))
    return (*row, whole["worst_error"], len(plan.dropped))


def _value(module: "ResizedModule", key: str) -> Any:
    return getattr(module, key)


def _columns(modules: tuple["ResizedModule", ...]) -> list[tuple[str, str, Any, str]]:
    return [m for m in MEASURES if any(_value(module, m[0]) is not None for module in modules)]


def _table(modules: list["ResizedModule"], shown: list[tuple[str, str, Any, str]], **how: Any) -> Table:
    columns = (Column("name", "module", "code"), Column("shape", "shape"))
    columns += tuple(Column(key, title, unit, help=about) for key, title, unit, about in shown)
    rows = tuple((m.name, "×".join(map(str, m.shape)), *(_value(m, key) for key, *_ in shown)) for m in modules)
    return Table(columns, rows, **how)


def _terminal(plan: "Plan") -> list[Block]:
    """The modules that lose most of themselves."""
    known = [module for module in plan.modules if module.error is not None]
    worst = sorted(known, key=lambda module: -(module.error or 0.0))[:MAX_LISTED]
    if not worst:
        return []
    left = len(plan.modules) - len(worst)
    caption = f"{left} others are not shown (--csv)" if left else ""
    title = "Modules that lose most of themselves"
    return [_table(worst, _columns(plan.modules), title=title, caption=caption, where="terminal")]


def _all(plan: "Plan") -> Table:
    return _table(list(plan.modules), _columns(plan.modules), title="All modules", interactive=True, where="page")


def _middle(result: "ResizeResult") -> "Plan":
    """Of several plans the cheapest that keeps 90 % of ‖ΔW‖²; the dearest where none does."""
    good = [plan for plan in result.plans if plan.error is not None and plan.error <= 0.1**0.5]
    return min(good, key=lambda p: p.parameters) if good else max(result.plans, key=lambda p: p.parameters)


def _curves(result: "ResizeResult") -> list[Block]:
    """Error against parameters, with its null; and the share of the gain that is left, where it was scored."""
    known = [plan for plan in result.plans if plan.error is not None and plan.parameters]
    if len(known) < 2:
        return [Text("One plan makes no curve; give several rules to compare them.", where="page")]
    families: dict[str, list[Plan]] = {}
    for plan in sorted(known, key=lambda plan: plan.parameters):
        families.setdefault(plan.label.split(" ")[0], []).append(plan)
    series = [_series(name, plans, [plan.error for plan in plans]) for name, plans in families.items()]
    if "rank" in families:
        null = _series("structureless B·A at these ranks", families["rank"], [p.error_null for p in families["rank"]])
        series.append(replace(null, weight="reference"))
    made: list[Block] = [
        Lines("What each plan loses", tuple(series), "parameters", "‖ΔW − ΔW_r‖/‖ΔW‖", log_x=True, where="page",
              caption="Exact by Eckart and Young; the dashed line is the null. Lower left is better.")
    ]  # fmt: skip
    gains = [_series(name, plans, [result.gain(plan) for plan in plans]) for name, plans in families.items()]
    if any(value is not None for line in gains for value in line.y):
        made.append(
            Lines("What each plan keeps of the gain", tuple(gains), "parameters", "share of the gain in held-out loss",
                  log_x=True, where="page", markers=(Marker("y", 1.0, "all of ΔW"),),
                  caption="Gain: the held-out loss without ΔW less that with all of it. Upper left is better.")
        )  # fmt: skip
    return made


def _series(name: str, plans: "list[Plan]", y: list[float | None]) -> Series:
    """A line; a point where a family has one plan."""
    points = (plans[0].label,) if len(plans) == 1 else ()
    return Series(name, tuple(float(plan.parameters) for plan in plans), tuple(y), points=points)


def _heatmap(plan: "Plan") -> list[Block]:
    """Rank and error by depth and type."""
    left_out = ("rank_before", "parameters", "rounding")
    measures = [each for each in _columns(plan.modules) if each[0] not in left_out]
    caption = "Where several modules share a cell, the mean."
    found = depth_by_type(plan.modules, lambda m: (m.depth, m.type), measures, _value, caption)
    return [found] if found else []


def _left_out(result: "ResizeResult") -> list[Block]:
    rows = [(item.name, item.reason) for item in result.left_out]
    if len(result.plans) == 1:
        rows += [
            (m.name, f"dropped: rank 0 under {result.plans[0].label}; ‖ΔW‖_F was {m.norm:.3g}")
            for m in result.plans[0].dropped
        ]
    if not rows:
        return []
    columns = (Column("name", "module", "code"), Column("reason", "why"))
    return [Table(columns, tuple(rows), title="Left out, or dropped", interactive=True, where="page")]
