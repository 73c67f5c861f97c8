"""The result as blocks: the same data for the terminal, the page and the figures."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from lorascope.analyses import rules, sigma_lines
from lorascope.analyses.base import Metric, definitions, metric_to_sort_by
from lorascope.analyses.delta.findings import what_changed
from lorascope.analyses.delta.matrix import MatrixDelta
from lorascope.analyses.delta.metrics import CAPTURED, METRICS
from lorascope.analyses.delta.result import DeltaResult
from lorascope.analyses.sigma_lines import line, middle
from lorascope.analyses.spectral_metrics import ENERGY_SHARE
from lorascope.analyses.toolkit import (
    Row,
    both_ends,
    depth_map,
    digits,
    group,
    inputs,
    measured,
    median,
    model_name,
    percent,
    pick,
    skipped_table,
    table,
    total,
    type_table,
    value,
)
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
    Text,
    Tile,
    Tiles,
)
from lorascope.linalg.noise import noise_spectrum

DEFINITIONS = (
    Definition("ΔW", "tuned − base, in float64", "of the weights as stored", "What fine-tuning changed."),
    *definitions((*METRICS, *CAPTURED)),
)
ROWS_AT_EACH_END = 4
MAX_TYPES = 12  # panels of the figure of spectra
_BY_TYPE = ("relative_norm", "stable_rank", "energy_rank_0.9", "null.energy_rank_0.9", "energy_rank_of_null_0.9",
            "best.8", "noise_floor.rank", "gavish_donoho.rank")  # fmt: skip
_ENDS = ("relative_norm", "stable_rank", "energy_rank_0.9", "energy_rank_of_null_0.9", "best.8", "noise_floor.rank")


def heading(result: DeltaResult) -> tuple[str, str]:
    whole = result.summary()
    lead = f"{what_changed(result)}. " if result.changed else ""
    moved = sum(bool(vector.relative_change) for vector in result.vectors)
    summary = f"{whole['changed']} of {whole['matrices']} matrices differ"
    summary += f", and {moved} of {whole['vectors']} biases and norm weights" if result.vectors else ""
    if (relative := whole["relative_norm"]) is not None:
        summary += f"; ‖ΔW‖ = {whole['frobenius_norm']:.4g}, {percent(relative, 3)} of ‖W‖"
    return f"{model_name(result.base.path)} → {model_name(result.tuned.path)}", lead + summary


def blocks(result: DeltaResult, *, sort: str = "energy_share", rows: int = ROWS_AT_EACH_END) -> tuple[Block, ...]:
    """The page in reading order. `sort` and `rows` choose the matrices listed on the terminal."""
    by = metric_to_sort_by(METRICS, sort)
    found = (each for each in result.findings if each.rule != rules.DELTA_CHANGED.code)  # that is the heading
    made: list[Block] = [Tiles(tiles(result)), Findings(tuple(found))]
    if result.changed:
        changed = [result.record_of(matrix) for matrix in result.changed]
        no_map = "No layer heatmap: parameter names contain fewer than two layer indices."
        made += [_by_type(changed), *_adapters(result), _ends(changed, by, rows)]
        figures = (_spectra(result), _kept(result))
        made += [Heading("Singular values", where="page"), *(figure for figure in figures if figure)]
        made += [Heading("Where ΔW is", where="page"), _heatmap(result) or Text(no_map, where="page")]
        made += [Heading("All matrices", where="page"), _all_matrices(result)]
    made += _vectors(result)
    made.append(
        skipped_table(result.skipped, what="parameter")
        if result.skipped
        else Text("Every parameter of both models was compared.", where="page")
    )
    return (*made, Definitions(DEFINITIONS, where="page"), _facts(result))


def tiles(result: DeltaResult) -> tuple[Tile, ...]:
    """The first screen's numbers: how large ΔW is, in how many matrices, and of how low a rank."""
    whole, made = result.summary(), []
    if whole["relative_norm"] is not None:
        middle = whole["median_relative_norm"]
        note = "all matrices" + ("" if middle is None else f"; median matrix {percent(middle, 3)}")
        made.append(Tile("Update size ‖ΔW‖/‖W‖", percent(whole["relative_norm"], 3), note, "relative_norm"))
    floored = [m.noise_floor["rank"] for m in result.changed if m.noise_floor]
    note = f"{sum(map(bool, floored))} by more than rounding" if floored else ""
    changed = f"{whole['changed']} of {whole['matrices']}"
    made.append(Tile("Matrices changed", changed, note, "noise_floor.rank"))
    if (rank := whole["median_energy_rank_0.9"]) is not None:
        noise = median(value(m, "null.energy_rank_0.9") for m in result.changed)
        note = "median" if noise is None else f"median; noise needs {noise:.0f}"
        made.append(Tile("Rank for 90 % of the energy", f"{rank:.0f}", note, "energy_rank_0.9"))
    if (stable := whole["median_stable_rank"]) is not None:
        note = "median; 1 is a single direction"
        made.append(Tile("Stable rank", digits(stable, 3), note, "stable_rank"))
    if (best := whole["best"].get("8")) is not None:
        note = "of ‖ΔW‖², over all matrices"
        made.append(Tile("Rank 8 keeps at most", percent(best, 3), note, "best.8"))
    return tuple(made)


def _facts(result: DeltaResult) -> Facts:
    dtypes = sorted({f"{m.base_dtype} → {m.tuned_dtype}" for m in result.matrices})
    accuracies = [m.accuracy for m in result.changed if m.accuracy]
    methods = sorted({each["method"] for each in accuracies})
    error = max((m.accuracy["error"][0] / m.spectral_norm for m in result.changed if m.accuracy), default=0.0)
    items = [
        ("base", f"{result.base.path}, sha256 {result.base.sha256}"),
        ("tuned", f"{result.tuned.path}, sha256 {result.tuned.sha256}"),
        *((f"adapter {each.label}", f"{each.path}, sha256 {each.sha256}") for each in result.adapters),
        ("matrices", f"{len(result.matrices)}, of which {len(result.changed)} changed"),
        ("biases and norm weights", str(len(result.vectors))),
        ("dtype", ", ".join(dtypes)),
        ("singular values", "all" if result.top is None else f"the leading {result.top}"),
        ("computed by", f"{', '.join(methods) or 'nothing'}; relative error of σ₁ ≤ {error:.1g}"),
    ]
    return inputs(items)


def _by_type(changed: Sequence[Row]) -> Table:
    caption = "Median over the matrices of each type; the last two count singular values above noise."
    return type_table(changed, ((ENERGY_SHARE, total(ENERGY_SHARE.key)), *pick(METRICS, _BY_TYPE)), caption)


def _adapters(result: DeltaResult) -> list[Block]:
    """Each adapter against all of ΔW, with chance and the best of its rank."""
    if not result.adapters:
        return []
    shown = [metric for metric in CAPTURED if metric.key != "chance.both"]
    columns = (
        Column("label", "adapter", "code"), Column("matrices", "n", "int"),
        replace(ENERGY_SHARE, title="of ‖ΔW‖²", help="share of all of ‖ΔW‖² in the matrices it adapts"),
    )  # fmt: skip
    rows = [{"label": each.label, **result.captured(each.label)} for each in result.adapters]
    caption = "Energy-weighted over the matrices that the adapter adapts."
    return [table(rows, (*columns, *shown), "What the adapters capture", caption=caption)]


def _ends(changed: Sequence[Row], by: Metric, count: int) -> Table:
    """The matrices with the largest and smallest values, for the terminal."""
    chosen, hidden = both_ends(changed, by.key, count)
    columns = (Column("name", "matrix", "code"), Column("shape", "shape"), *pick(METRICS, (by.key, *_ENDS)))
    caption = f"{hidden} matrices between them are not shown (--rows, --csv)" if hidden else ""
    title = f"Top and bottom matrices by {by.title}" if hidden else f"Matrices by {by.title}"
    return table(chosen, columns, title, caption=caption, where="terminal")


def _all_matrices(result: DeltaResult) -> Table:
    records = [result.record_of(matrix) for matrix in result.matrices]
    shown = measured(METRICS, records)
    of_adapters = [
        Column(
            f"captured.{each.label}.{metric.key}",
            f"{metric.title} {each.label}",
            metric.unit,
            help=metric.help,
            metric=metric.key,
        )
        for each in result.adapters
        for metric in CAPTURED
        if metric.key in ("both", "cosine")
    ]
    rows = [record | {"notes": "; ".join(record["notes"])} | _of_adapters(record) for record in records]
    columns = (
        Column("name", "matrix", "code"),
        Column("shape", "shape"),
        *shown,
        *of_adapters,
        Column("notes", "notes"),
    )
    return table(rows, columns, "All matrices", interactive=True, where="page")


def _of_adapters(record: Row) -> Row:
    """What is captured, by keys without levels: the labels of adapters may hold dots."""
    return {
        f"captured.{label}.{key}": captured.get(key)
        for label, captured in record["captured"].items()
        for key in ("both", "cosine")
    }


def _vectors(result: DeltaResult) -> list[Block]:
    if not result.vectors:
        return []
    if not any(vector.change_norm for vector in result.vectors):
        return [Text(f"None of the {len(result.vectors)} biases and norm weights changed.", where="page")]
    columns = (
        Column("name", "parameter", "code"), Column("size", "size", "int"), Column("dtype", "dtype"),
        Column("relative_change", "‖Δ‖/‖w‖", "percent"),
        Column("change_norm", "‖Δ‖", "float"), Column("base_norm", "‖w‖", "float"),
        Column("largest", "max |Δ|", "float"), Column("notes", "notes"),
    )  # fmt: skip
    rows = [{**vars(vector), "notes": "; ".join(vector.notes)} for vector in result.vectors]
    return [table(rows, columns, "Biases and norm weights", interactive=True, where="page")]


# --- figures ----------------------------------------------------------------------------------------------------------


def _groups(result: DeltaResult) -> list[tuple[str, list[MatrixDelta]]]:
    return list(group(result.changed).items())[:MAX_TYPES]


def _spectra(result: DeltaResult) -> Lines | None:
    """σ against its index, a panel for each type: ΔW, noise of its energy, and the adapters' own updates."""
    series: list[Series] = []
    for name, matrices in _groups(result):
        if len(matrices) > 1:
            series += [line(m.name, m.singular_values, name, "thin") for m in matrices]
        series.append(line("ΔW, median", middle([m.singular_values for m in matrices]), name, "normal"))
        noise = [sigma_lines.noise(m.shape, m.frobenius_norm or 0.0) for m in matrices]
        series.append(line("noise of the same energy", middle(noise), name, "reference"))
        for each in result.adapters:
            captured = [c for m in matrices if (c := m.captured.get(each.label)) and c["rank"]]
            if captured:
                typical = middle([c["singular_values"] for c in captured])
                series.append(line(f"B·A, {each.label}", typical, name, "normal"))
    if not series:
        return None
    return sigma_lines.by_type(
        series, "One thin line for each matrix; bold and dashed lines are medians at each index."
    )


def _kept(result: DeltaResult) -> Lines | None:
    """The Eckart–Young curve of each type, that of noise, and what the adapters capture at their own rank."""
    series: list[Series] = []
    for name, matrices in _groups(result):
        curves = [np.cumsum(np.square(m.singular_values or ())) / m.energy for m in matrices]
        series.append(line("best of rank k, median", middle(curves), name, "normal"))
        noise = [np.cumsum(noise_spectrum(*m.shape) ** 2) / (m.shape[0] * m.shape[1]) for m in matrices]
        width = min(len(curve) for curve in curves)
        series.append(line("noise of the same shape", middle([n[:width] for n in noise]), name, "reference"))
        for each in result.adapters:
            points = [(m.name, c) for m in matrices if (c := m.captured.get(each.label)) and c.get("both") is not None]
            if points:
                x, y = tuple(c["rank"] for _, c in points), tuple(c["both"] for _, c in points)
                series.append(Series(f"captured by {each.label}", x, y, name, points=tuple(n for n, _ in points)))
    if not series:
        return None
    return Lines(
        "Energy of ΔW kept at rank k", tuple(series), "rank k", "share of ‖ΔW‖²", log_x=True, where="page",
        markers=(Marker("y", 0.9, "90 %"),),
        caption="Eckart–Young: no rank-k matrix keeps more than the solid line. Points: share of ‖ΔW‖² in an adapter's"
        " column and row spaces.",
    )  # fmt: skip


def _heatmap(result: DeltaResult) -> Heatmap | None:
    """A depth × type grid of each metric."""
    changed = [result.record_of(matrix) for matrix in result.changed]
    caption = "Blank cells are unchanged or absent. Where several matrices share a cell (experts), the mean."
    return depth_map(changed, METRICS, caption=caption, types=list(group(changed)))


PLOTS: dict[str, Callable[[DeltaResult], Lines | Heatmap | None]] = {
    "spectra": _spectra,
    "heatmap": _heatmap,
    "energy": _kept,
}
