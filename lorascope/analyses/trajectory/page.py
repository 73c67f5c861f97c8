"""The result drawn: the same data for the terminal, the page and the JSON."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lorascope.analyses.base import definitions
from lorascope.analyses.toolkit import (
    BLANK_CELLS,
    capital,
    column,
    depth_map,
    digits,
    group,
    inputs,
    median,
    module_table,
    pick,
    plural,
    skipped_table,
)
from lorascope.analyses.trajectory.measure import SETTLED, ModuleTrajectory, Point
from lorascope.analyses.trajectory.metrics import METRICS
from lorascope.analyses.trajectory.result import TrajectoryResult
from lorascope.blocks import (
    Block,
    Column,
    Definition,
    Definitions,
    Facts,
    Findings,
    Heading,
    Heatmap,
    Lines,
    Marker,
    Series,
    Table,
    Tile,
    Tiles,
)

MAX_SIGMA = 16  # singular values drawn
_LOGGED = ("training", "evaluation")
OF_LAST = ("frobenius_norm", "relative_norm", "stable_rank", "energy_rank_0.95")
DEFINITIONS = (
    *definitions(METRICS),
    Definition(
        "Random baseline", "of ranks: Gaussian B·A of the same shape and rank; of φ: random subspaces, k/n",
        "Bartlett decomposition; Collins and Śniady 2006",
        "What the same measures are for factors and directions without any structure.",
    ),
)  # fmt: skip


def heading(result: TrajectoryResult) -> tuple[str, str]:
    count = f"{len(result.checkpoints)} checkpoints"
    about = f"{result.unit}s {result.steps[0]} to {result.steps[-1]}, {plural(len(result.rows), 'module')}"
    return (count, capital(about)) if result.path in ("", count) else (result.path, f"{count}, {about}")


def blocks(result: TrajectoryResult) -> tuple[Block, ...]:
    """The page in reading order."""
    drawn: list[Block] = [Tiles(tiles(result)), Findings(result.findings), _checkpoints(result)]
    drawn += [figure for figure in (losses(result), norms(result)) if figure is not None]
    drawn += [Heading("Rank", where="page"), stable_rank(result), singular_values(result)]
    drawn += [Heading("Direction", where="page"), to_last(result), to_previous(result)]
    if (made := heatmap(result)) is not None:
        drawn.append(made)
    drawn += [Heading("All modules", where="page"), _modules(result)]
    drawn += [skipped_table(result.skipped)] if result.skipped else []
    return (*drawn, Definitions(DEFINITIONS, where="page"), _facts(result))


def tiles(result: TrajectoryResult) -> tuple[Tile, ...]:
    """The first screen's numbers: size and rank from the first checkpoint to the last, and when ΔW has settled."""
    whole, (first, *_, last) = result.summary(), result.checkpoints
    made = [Tile("Checkpoints", str(whole["checkpoints"]), f"{result.unit}s {first.step} to {last.step}")]
    note = f"at {result.unit} {first.step}: {digits(first.frobenius_norm, 3)}"
    made.append(Tile("‖ΔW‖ at the last", digits(last.frobenius_norm, 3), note, "frobenius_norm"))
    ends = [each.medians["stable_rank"] for each in (first, last)]
    if ends[1] is not None:
        null = whole["median_null_stable_rank"]
        note = "median" if null is None else f"median; random factors {digits(null, 3)}"
        text = " → ".join(digits(each, 3) for each in ends)
        made.append(Tile("Stable rank, first → last", text, note, "stable_rank"))
    if (rank := whole["median_energy_rank_0.95"]) is not None:
        made.append(
            Tile("Rank for 95 % of the energy", f"{rank:.0f}", "median module, at the last", "energy_rank_0.95")
        )
    if (step := whole["median_settled_step"]) is not None:
        note = f"of {last.step}; in {whole['modules_settled']} of {whole['modules']} modules"
        made.append(Tile(f"Settled from {result.unit}", digits(step, 6), note, "settled_step"))
    return tuple(made)


def _facts(result: TrajectoryResult) -> Facts:
    items = [
        ("checkpoints", f"{len(result.checkpoints)}, from {result.checkpoints[0].path}"),
        ("last", result.checkpoints[-1].path),
        ("sha256 of the last", result.checkpoints[-1].sha256 or "not hashed"),
        ("modules", str(len(result.rows))),
        ("base model", result.base or "not given"),
        ("scored on", result.scored_on or "no data given"),
        ("losses", f"{len(result.losses)} logged by the run"),
    ]
    return inputs(items)


def _checkpoints(result: TrajectoryResult) -> Table:
    """One line a checkpoint: what should be read first."""
    there = [kind for kind in _LOGGED if any(getattr(c, f"{kind}_loss") is not None for c in result.checkpoints)]
    keys = (*OF_LAST, "left_to_last", "right_to_last", "left_to_previous", "right_to_previous")
    shown = [key for key in keys if any(c.medians[key] is not None for c in result.checkpoints)]
    columns = [Column("step", result.unit, "int")]
    columns += [Column(f"{kind}_loss", f"{kind} loss", "float", 4, "logged by the run") for kind in there]
    scored = result.best is not None
    columns += [Column("score", "loss here", "float", 4, f"on {result.scored_on}")] if scored else []
    columns += map(column, pick(METRICS, shown))
    rows = []
    for c in result.checkpoints:
        losses_of = [getattr(c, f"{kind}_loss") for kind in there]
        here = [c.score["loss"] if c.score else None] if scored else []
        rows.append((c.step, *losses_of, *here, *(c.medians[key] for key in shown)))
    caption = "Medians over modules."
    null = result.summary()["median_null_stable_rank"]
    caption += f" Random factors of these shapes have a stable rank of {null:.3g}." if null is not None else ""
    chance = [median(row.chance[side] for row in result.rows) or 0.0 for side in ("left", "right")]
    caption += f" Random subspaces have φ = {chance[0]:.2g} (left) and {chance[1]:.2g} (right)."
    return Table(tuple(columns), tuple(rows), title="By checkpoint", caption=caption)


def losses(result: TrajectoryResult) -> Lines | None:
    """The losses that the run logged, and those on the data that were given, over the same steps."""
    series = []
    for kind in _LOGGED:
        points = [loss for loss in result.losses if loss.kind == kind]
        if points:
            series.append(Series(f"{kind}, logged", tuple(p.step for p in points), tuple(p.loss for p in points)))
    scored = [(c.step, c.score["loss"]) for c in result.checkpoints if c.score]
    if scored:
        series.append(Series("checkpoints, here", tuple(s for s, _ in scored), tuple(loss for _, loss in scored)))
    if not series:
        return None
    markers = (Marker("x", result.best.step, f"best: {result.best.step}"),) if result.best is not None else ()
    return Lines("Loss", tuple(series), result.unit, "loss", markers=markers, where="page")


def norms(result: TrajectoryResult) -> Lines:
    """‖ΔW‖_F, or with a base its ratio to ‖W‖_F."""
    relative = any(row.last.relative_norm is not None for row in result.rows)
    key = "relative_norm" if relative else "frobenius_norm"
    return _by_type(result, "Size of ΔW", key, "‖ΔW‖/‖W‖" if relative else "‖ΔW‖")


def stable_rank(result: TrajectoryResult) -> Lines:
    """With the random baseline of each type's shapes."""
    return _by_type(result, "Stable rank", "stable_rank", "Σσ²/σ₁²", null="stable_rank")


def _by_type(result: TrajectoryResult, title: str, key: str, label: str, null: str | None = None) -> Lines:
    """A panel for each module type, thin lines for modules and a bold one for their median."""
    series: list[Series] = []
    markers = []
    for name, rows in group(result.rows).items():
        values = [[getattr(point, key) for point in row.points] for row in rows]
        if len(rows) > 1:
            series += [
                Series(row.name, result.steps, tuple(line), name, "thin")
                for row, line in zip(rows, values, strict=True)
            ]
        series.append(Series("median", result.steps, tuple(median(at) for at in zip(*values, strict=True)), name))
        if null and (level := median(row.null[null] for row in rows if row.null)) is not None:
            markers.append(Marker("y", level, "random", name))
    caption = "Thin lines: one per module. Bold line: median across modules." + (
        " Dotted: random factors of the same shape." if markers else ""
    )
    return Lines(
        f"{title} by module type", tuple(series), result.unit, label, markers=tuple(markers), caption=caption,
        shade="depth, first to last", where="page",
    )  # fmt: skip


def singular_values(result: TrajectoryResult) -> Lines:
    """σ_k(t), the median over the modules of each type."""
    series = []
    for name, rows in group(result.rows).items():
        width = max(len(point.singular_values) for row in rows for point in row.points)
        for k in range(min(width, MAX_SIGMA)):
            line = [median(_sigma(row.points[i], k) for row in rows) for i in range(len(result.steps))]
            if any(each is not None for each in line):
                series.append(Series(f"σ{k + 1}", result.steps, tuple(line), name, "thin"))
    return Lines(
        "Singular values over the run", tuple(series), result.unit, "σₖ", log_y=True, where="page",
        caption=f"Medians over the modules of a type, of the first {MAX_SIGMA} singular values.",
        shade="k, first to last",
    )  # fmt: skip


def _sigma(point: Point, k: int) -> float | None:
    return point.singular_values[k] if k < len(point.singular_values) and point.singular_values[k] > 0 else None


def to_last(result: TrajectoryResult) -> Lines:
    """φ(t, T) of both sides, one line a module type."""
    markers = (*_chance(result), *(Marker("y", SETTLED, "settled", side) for side in ("left", "right")))
    return _phi(result, "Rotation towards the last checkpoint", "to_last", "φ(t, T)", markers)


def to_previous(result: TrajectoryResult) -> Lines:
    """φ(t − 1, t) of both sides, one line a module type."""
    return _phi(result, "Rotation since the checkpoint before", "to_previous", "φ(t − 1, t)", _chance(result))


def _chance(result: TrajectoryResult) -> tuple[Marker, ...]:
    levels = {side: median(row.chance[side] for row in result.rows) for side in ("left", "right")}
    return tuple(Marker("y", level, "random", side) for side, level in levels.items() if level is not None)


def _phi(result: TrajectoryResult, title: str, which: str, label: str, markers: tuple[Marker, ...]) -> Lines:
    series = []
    for side in ("left", "right"):
        for name, rows in group(result.rows).items():
            line = _medians(rows, f"{side}_{which}")
            if any(each is not None for each in line):
                series.append(Series(name, result.steps, line, side))
    caption = "Medians over the modules of a type; left: output directions, right: input directions."
    return Lines(title, tuple(series), result.unit, label, markers=markers, caption=caption, where="page")


def _medians(rows: Sequence[ModuleTrajectory], key: str) -> tuple[Any, ...]:
    values = np.array([[getattr(point, key) for point in row.points] for row in rows], dtype=object)
    return tuple(median(values[:, i]) for i in range(values.shape[1]))


def _module_records(result: TrajectoryResult) -> list[dict[str, Any]]:
    """One line a module: its last checkpoint, and how it got there."""
    made = []
    for row in result.rows:
        numbers = row.points[-1].record() | {
            key: value for key, value in row.points[-2].record().items() if key.endswith("_to_last")
        }
        facts = {"name": row.name, "type": row.type, "depth": row.depth, "settled_step": row.settled_step}
        made.append({**numbers, **facts, "null": row.null, "chance": row.chance})
    return made


def _modules(result: TrajectoryResult) -> Table:
    shown = [*OF_LAST, "settled_step", "left_to_last", "right_to_last", "cosine_to_last"]
    records = _module_records(result)
    shown = [key for key in shown if any(record[key] is not None for record in records)]
    caption = "φ and cosine: of the checkpoint before the last with the last."
    return module_table("All modules", records, pick(METRICS, shown), caption)


def heatmap(result: TrajectoryResult) -> Heatmap | None:
    """Depth × type: the step of settling, and the last checkpoint's measures."""
    metrics = pick(METRICS, ("settled_step", *OF_LAST, "left_to_last", "right_to_last"))
    return depth_map(_module_records(result), metrics, caption=BLANK_CELLS)


PLOTS: dict[str, Callable[[TrajectoryResult], Lines | Heatmap | None]] = {
    "losses": losses,
    "norms": norms,
    "stable_rank": stable_rank,
    "singular_values": singular_values,
    "to_last": to_last,
    "to_previous": to_previous,
    "heatmap": heatmap,
}
