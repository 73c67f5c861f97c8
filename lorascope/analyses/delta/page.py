"""The result as blocks: the same data for the terminal, the page and the JSON."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

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
from lorascope.linalg.noise import noise_spectrum

if TYPE_CHECKING:
    from lorascope.analyses.delta.matrix import MatrixDelta
    from lorascope.analyses.delta.result import DeltaResult

# What a matrix is listed and sorted by: key (dots go into nested records), title, unit, help.
MEASURES = (
    ("energy_share", "energy", "percent", "‖ΔW‖_F² as a share of all matrices'"),
    ("relative_norm", "‖ΔW‖/‖W‖", "percent", "Frobenius norms"),
    ("frobenius_norm", "‖ΔW‖_F", "float", "√Σσ²"),
    ("spectral_norm", "‖ΔW‖₂", "float", "σ₁"),
    ("stable_rank", "stable rank", "float", "Σσ²/σ₁²"),
    ("effective_rank", "eff. rank", "float", "exp H(σ/Σσ), Roy and Vetterli 2007"),
    ("energy_rank.0.9", "r90", "int", "rank that keeps 90 % of the energy"),
    ("null.energy_rank_0.9", "noise r90", "int", "the same of an iid matrix of this shape"),
    ("energy_rank_of_null.0.9", "of noise", "percent", "r90 over that of an iid matrix of this shape"),
    ("energy_rank.0.99", "r99", "int", "rank that keeps 99 % of the energy"),
    ("best.8", "r8 keeps", "percent", "share of the energy that the best rank-8 matrix keeps"),
    ("noise_floor.rank", "> floor", "int", "singular values above what rounding to the storage dtype makes"),
    ("noise_floor.energy_share", "energy > floor", "percent", "share of ‖ΔW‖² above the rounding floor"),
    ("marchenko_pastur.rank", "> MP edge", "int", "singular values above the Marchenko–Pastur edge of the bulk"),
    ("gavish_donoho.rank", "GD rank", "int", "singular values above the Gavish–Donoho threshold"),
    ("permutation.rank", "> permuted", "int", "singular values above the largest of the same entries permuted"),
    ("moved_share", "moved", "percent", "share of the entries that differ at all"),
)
SORT_KEYS = tuple(key for key, *_ in MEASURES)
ROWS_AT_EACH_END = 4
MAX_TYPES = 12  # panels of the figure of spectra
MAX_POINTS = 120  # of a line: enough for a log axis
MIN_DRAWN = 1e-4  # of the largest singular value in the figure

DEFINITIONS = (
    Definition("ΔW", "tuned − base, in float64; energy ‖ΔW‖_F² = Σσ²", "Eckart and Young 1936"),
    Definition(
        "Rounding floor",
        "max_i √Σ_j v_ij + max_j √Σ_i v_ij, v = spacing²·min(1/6, share moved): ‖E‖₂ of two roundings, independent",
        "Bandeira and van Handel 2016, theorem 1.1",
    ),
    Definition(
        "Noise of the same shape (null)",
        "the quantiles of the Marchenko–Pastur law, σ = √(q·t); in figures scaled to ΔW's energy",
        "Marchenko and Pastur 1967",
    ),
    Definition(
        "Marchenko–Pastur edge",
        "(√m + √n)·level with the Tracy–Widom 99 % correction; level = median(σ)/√(q·median of the law)",
        "Johnstone 2001, theorem 1.1",
    ),
    Definition("Gavish–Donoho rank", "values above ω(β)·median(σ), 2.858 for a square", "arXiv 1305.5870"),
    Definition(
        "Permuted", "ΔW's own entries in random places, one draw from a fixed seed", "parallel analysis, Horn 1965"
    ),
    Definition("Best of rank r", "Σ_{i≤r} σ² / Σσ²: no product B·A of rank r keeps more", "Eckart and Young 1936"),
    Definition(
        "Captured by an adapter",
        "left ‖UᵀΔW‖²/‖ΔW‖², right ‖ΔW V‖²/‖ΔW‖², both ‖UᵀΔW V‖²/‖ΔW‖², U and V the column and row space of B·A",
        "by chance r/m, r/n and r²/(mn); the cosine's root mean square by chance is 1/√(mn)",
    ),
    Definition(
        "Stable rank, effective rank", "Σσ²/σ₁²; exp H(σ/Σσ)", "Rudelson and Vershynin 2007; Roy and Vetterli 2007"
    ),
)


def value(result: "DeltaResult", matrix: "MatrixDelta", key: str) -> Any:
    """One of MEASURES for one matrix; None where it could not be computed."""
    if key == "energy_share":
        return result.energy_share(matrix)
    name, _, inner = key.partition(".")
    found = getattr(matrix, name)
    return found.get(inner) if inner and found is not None else found


def blocks(result: "DeltaResult", *, sort: str = "energy_share", rows: int = ROWS_AT_EACH_END) -> tuple[Block, ...]:
    """The page in reading order. `sort` and `rows` choose the matrices listed at both ends on the terminal."""
    made: list[Block] = [_facts(result), Findings(result.findings)]
    if result.changed:
        made += [_by_type(result), *_adapters(result), _ends(result, sort, rows)]
        made += [Heading("Spectra", where="page"), _spectra(result), _kept(result)]
        made += [Heading("Where ΔW is", where="page"), *_heatmap(result)]
        made += [Heading("All matrices", where="page"), _all_matrices(result)]
    return (*made, *_vectors(result), *_unmatched(result), Definitions(DEFINITIONS, where="page"))


def _facts(result: "DeltaResult") -> Facts:
    dtypes = sorted({f"{m.base_dtype} → {m.tuned_dtype}" for m in result.matrices})
    methods = sorted({m.accuracy["method"] for m in result.changed})
    error = max((m.accuracy["error"][0] / m.spectral_norm for m in result.changed), default=0.0)
    items = [
        ("base", f"{result.base.path}, sha256 {result.base.sha256}"),
        ("tuned", f"{result.tuned.path}, sha256 {result.tuned.sha256}"),
        *((f"adapter {side.label}", f"{side.path}, sha256 {side.sha256}") for side in result.adapters),
        ("matrices", f"{len(result.matrices)}, of which {len(result.changed)} changed"),
        ("vectors", str(len(result.vectors))),
        ("stored as", ", ".join(dtypes)),
        ("singular values", "all" if result.top is None else f"the leading {result.top}"),
        ("computed by", f"{', '.join(methods) or 'nothing'}; σ₁ to {error:.1g} of itself"),
    ]
    return Facts(tuple(items), title="What was compared", where="page")


def groups(result: "DeltaResult") -> "dict[str, list[MatrixDelta]]":
    """The changed matrices by type, in order of first appearance."""
    found: dict[str, list] = {}
    for matrix in result.changed:
        found.setdefault(matrix.type, []).append(matrix)
    return found


def _median(values: list) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.median(known)) if known else None


def _by_type(result: "DeltaResult") -> Table:
    keys = ("relative_norm", "stable_rank", "energy_rank.0.9", "null.energy_rank_0.9", "energy_rank_of_null.0.9",
            "best.8", "noise_floor.rank", "gavish_donoho.rank")  # fmt: skip
    chosen = [m for key in keys for m in MEASURES if m[0] == key]
    columns = (Column("type", "module type"), Column("n", "n", "int"), Column("energy", "energy", "percent"))
    columns += tuple(Column(key, title, unit, help=about) for key, title, unit, about in chosen)
    rows = [
        (
            name, len(matrices), sum(m.energy for m in matrices) / result.total_energy,
            *(_median([value(result, m, key) for m in matrices]) for key in keys),
        )
        for name, matrices in groups(result).items()
    ]  # fmt: skip
    caption = "Medians over the matrices of a type; the last two count singular values that stand above noise."
    return Table(columns, tuple(rows), title="By module type", caption=caption)


def _adapters(result: "DeltaResult") -> list[Block]:
    """Each adapter against all of ΔW, beside chance and the best of its rank."""
    if not result.adapters:
        return []
    columns = (
        Column("label", "adapter", "code"), Column("matrices", "n", "int"),
        Column("energy_share", "of ‖ΔW‖²", "percent", help="share of all of ‖ΔW‖² in the matrices it adapts"),
        Column("left", "left", "percent", help="of ΔW in its column space"),
        Column("chance_left", "chance", "percent"), Column("right", "right", "percent", help="of ΔW in its row space"),
        Column("chance_right", "chance", "percent"), Column("both", "both", "percent", help="of ΔW in both"),
        Column("best", "best of rank", "percent", help="what the best matrix of its rank keeps"),
        Column("cosine", "cosine", "float"), Column("cosine_chance", "chance", "float"),
        Column("residual", "residual", "float", help="‖ΔW − BA‖²/‖ΔW‖²"),
    )  # fmt: skip
    rows = []
    for side in result.adapters:
        whole = result.captured(side.label)
        chance = whole.get("chance", {})
        flat = {**whole, "label": side.label, "chance_left": chance.get("left"), "chance_right": chance.get("right")}
        rows.append(tuple(flat.get(column.key) for column in columns))
    caption = "Energy-weighted over the matrices that the adapter adapts."
    return [Table(columns, tuple(rows), title="What the adapters capture", caption=caption)]


def _ends(result: "DeltaResult", sort: str, rows: int) -> Table:
    """The matrices at both ends of `sort`, for the terminal."""
    title = next(title for key, title, *_ in MEASURES if key == sort)
    keys = dict.fromkeys([sort, "relative_norm", "stable_rank", "energy_rank.0.9", "energy_rank_of_null.0.9", "best.8",
                          "noise_floor.rank"])  # fmt: skip
    known = [m for m in result.changed if value(result, m, sort) is not None]
    ordered = sorted(known, key=lambda m: -value(result, m, sort))
    chosen = ordered if len(ordered) <= 2 * rows else [*ordered[:rows], *ordered[len(ordered) - rows :]]
    measures = [m for key in keys for m in MEASURES if m[0] == key]
    left_out = len(ordered) - len(chosen)
    caption = f"{left_out} matrices between them are not shown (--rows, --csv)" if left_out else ""
    body = tuple(_row(result, m, measures) for m in chosen)
    return Table(
        _columns(measures), body, title=f"Matrices at both ends, by {title}", caption=caption, where="terminal"
    )


def _columns(measures: list) -> tuple[Column, ...]:
    fixed = (Column("name", "matrix", "code"), Column("shape", "shape"))
    return fixed + tuple(Column(key, title, unit, help=about) for key, title, unit, about in measures)


def _row(result: "DeltaResult", matrix: "MatrixDelta", measures: list) -> tuple[Cell, ...]:
    fixed: tuple[Cell, ...] = (matrix.name, "×".join(map(str, matrix.shape)))
    return fixed + tuple(value(result, matrix, key) for key, *_ in measures)


def _all_matrices(result: "DeltaResult") -> Table:
    shown = [m for m in MEASURES if any(value(result, matrix, m[0]) is not None for matrix in result.matrices)]
    extra = tuple(
        Column(f"{side.label}.{key}", f"{title} {side.label}", unit, help=about)
        for side in result.adapters
        for key, title, unit, about in (
            ("both", "both", "percent", "share of ‖ΔW‖² in the adapter's column and row spaces"),
            ("cosine", "cosine", "float", "⟨ΔW, BA⟩/(‖ΔW‖‖BA‖)"),
        )
    )
    rows = []
    for matrix in result.matrices:
        own = [matrix.captured.get(side.label, {}).get(key) for side in result.adapters for key in ("both", "cosine")]
        rows.append((*_row(result, matrix, shown), *own, "; ".join(matrix.notes)))
    columns = (*_columns(shown), *extra, Column("notes", "notes"))
    return Table(columns, tuple(rows), title="All matrices", interactive=True, where="page")


def _spectra(result: "DeltaResult") -> Lines:
    """σ against its index, a panel for each type: ΔW, noise of its energy, and the adapters' own updates."""
    series: list[Series] = []
    for name, matrices in list(groups(result).items())[:MAX_TYPES]:
        if len(matrices) > 1:
            series += [_line(m.name, m.singular_values, name, "thin") for m in matrices]
        series.append(_line("ΔW, median", _middle([m.singular_values for m in matrices]), name, "normal"))
        nulls = [
            noise_spectrum(*m.shape) * (m.frobenius_norm / m.shape[0] ** 0.5 / m.shape[1] ** 0.5) for m in matrices
        ]
        series.append(_line("noise of the same energy", _middle(nulls), name, "reference"))
        for side in result.adapters:
            own = [c["singular_values"] for m in matrices if (c := m.captured.get(side.label)) and c["rank"]]
            if own:
                series.append(_line(f"B·A, {side.label}", _middle(own), name, "normal"))
    least = MIN_DRAWN * max(v for s in series for v in s.y if v is not None)
    series = [replace(s, y=tuple(v if v is not None and v >= least else None for v in s.y)) for s in series]
    return Lines(
        "Singular values of ΔW, of noise, and of B·A, by module type", tuple(series), "index i", "σ_i",
        log_x=True, log_y=True, where="page", shade="depth, first to last",
        caption="One thin line for each matrix; bold and dashed lines are medians at each index. Values below"
        f" {MIN_DRAWN:g} of the largest are not drawn.",
    )  # fmt: skip


def _middle(spectra: list) -> tuple[float, ...]:
    width = min(map(len, spectra))
    return tuple(np.median([np.asarray(s)[:width] for s in spectra], axis=0).tolist())


def _line(label: str, sigma: Any, panel: str, weight: Any) -> Series:
    """The values against their index; of a long list those at about equal distances on a log axis."""
    at = np.unique(np.round(np.geomspace(1, len(sigma), MAX_POINTS)).astype(int))
    return Series(label, tuple(at.tolist()), tuple(float(sigma[i - 1]) or None for i in at), panel, weight)


def _kept(result: "DeltaResult") -> Lines:
    """The Eckart–Young curve of each type, that of noise, and where the adapters stand at their own rank."""
    series: list[Series] = []
    for name, matrices in list(groups(result).items())[:MAX_TYPES]:
        curves = [np.cumsum(np.square(m.singular_values)) / m.energy for m in matrices]
        series.append(_line("best of rank k, median", _middle(curves), name, "normal"))
        noise = [np.cumsum(noise_spectrum(*m.shape) ** 2) / (m.shape[0] * m.shape[1]) for m in matrices]
        width = min(len(curve) for curve in curves)
        series.append(_line("noise of the same shape", _middle([n[:width] for n in noise]), name, "reference"))
        for side in result.adapters:
            points = [(m.name, c) for m in matrices if (c := m.captured.get(side.label)) and c.get("both") is not None]
            if points:
                x, y = tuple(c["rank"] for _, c in points), tuple(c["both"] for _, c in points)
                series.append(Series(f"captured by {side.label}", x, y, name, points=tuple(n for n, _ in points)))
    return Lines(
        "Energy of ΔW kept at rank k", tuple(series), "rank k", "share of ‖ΔW‖²", log_x=True, where="page",
        markers=(Marker("y", 0.9, "90 %"),),
        caption="Eckart–Young: no rank-k matrix keeps more than the solid line. Points are what lies in an adapter's"
        " column and row spaces.",
    )  # fmt: skip


def _heatmap(result: "DeltaResult") -> list[Block]:
    """A depth × type grid of each measure."""
    caption = "Empty cells are unchanged or absent. Where several matrices share a cell (experts), the mean."
    found = depth_by_type(
        result.changed,
        lambda m: (m.depth, m.type),
        MEASURES,
        lambda m, key: value(result, m, key),
        caption,
        types=list(groups(result)),
    )
    return [found or Text("The matrices name fewer than two layers, so there is no map by depth.", where="page")]


def _vectors(result: "DeltaResult") -> list[Block]:
    if not result.vectors:
        return []
    columns = (
        Column("name", "parameter", "code"), Column("size", "size", "int"), Column("dtype", "dtype"),
        Column("relative_change", "‖Δ‖/‖w‖", "percent"), Column("change_norm", "‖Δ‖", "float"),
        Column("base_norm", "‖w‖", "float"), Column("largest", "max |Δ|", "float"), Column("notes", "notes"),
    )  # fmt: skip
    rows = [
        (v.name, v.size, v.dtype, v.relative_change, v.change_norm, v.base_norm, v.largest, "; ".join(v.notes))
        for v in result.vectors
    ]
    title = "Vectors: biases, norms and the like"
    return [Table(columns, tuple(rows), title=title, interactive=True, where="page")]


def _unmatched(result: "DeltaResult") -> list[Block]:
    items = [*result.unmatched, *result.left_out]
    if not items:
        return [Text("Every parameter of both sides was compared.", where="page")]
    columns = (Column("name", "parameter", "code"), Column("reason", "why"))
    rows = [(item.name, item.reason) for item in result.unmatched]
    rows += [(item.name, f"changed, and not in the extracted adapter: {item.reason}") for item in result.left_out]
    return [Table(columns, tuple(rows), title="Not compared, or left out", where="page")]
