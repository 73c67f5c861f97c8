"""The result as blocks: the same data for the terminal, the page and the JSON."""

from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.analyses.maps import depth_by_type
from lorascope.analyses.spectrum.findings import group
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
from lorascope.linalg.spectrum import energy_curve
from lorascope.outputs import json_text

if TYPE_CHECKING:
    from lorascope.analyses.spectrum.module import ModuleSpectrum
    from lorascope.analyses.spectrum.result import SpectrumResult

# What a module can be sorted and listed by: key, title, unit, help.
MEASURES = (
    ("frobenius_norm", "‖ΔW‖_F", "float", "Frobenius norm √Σσ²"),
    ("spectral_norm", "‖ΔW‖₂", "float", "largest singular value σ₁"),
    ("nuclear_norm", "‖ΔW‖_*", "float", "nuclear norm Σσ"),
    ("energy_share", "energy", "percent", "‖ΔW‖_F² as a share of all modules'"),
    ("stable_rank", "stable rank", "float", "Σσ²/σ₁²"),
    ("effective_rank", "eff. rank", "float", "exp H(σ/Σσ), Roy and Vetterli 2007"),
    ("energy_effective_rank", "eff. rank σ²", "float", "exp H(σ²/Σσ²)"),
    ("participation_ratio", "part. ratio", "float", "(Σσ²)²/Σσ⁴"),
    ("energy_rank_0.9", "r90", "int", "rank that keeps 90 % of the energy"),
    ("energy_rank_0.95", "r95", "int", "rank that keeps 95 % of the energy"),
    ("energy_rank_0.99", "r99", "int", "rank that keeps 99 % of the energy"),
    ("rank_utilisation", "of r", "percent", "stable rank / r"),
    ("rank_utilisation_of_null", "of null", "percent", "stable rank / that of a structureless B·A of this shape"),
    (
        "negligible_share",
        "nothing",
        "percent",
        "share of directions with σ ≤ u·σ₁, u the unit roundoff of the stored dtype",
    ),
    ("relative_norm", "‖ΔW‖/‖W‖", "percent", "Frobenius norms; needs --base"),
    (
        "rounding_loss",
        "lost on merge",
        "percent",
        "share of ΔW that the base's dtype rounds away on merging; needs --base",
    ),
)
SORT_KEYS = tuple(key for key, *_ in MEASURES)
ROWS_AT_EACH_END = 4

DEFINITIONS = (
    Definition(
        "Update",
        "ΔW = s·B·A, with A (r, d_in), B (d_out, r) and s = α/r (rsLoRA: α/√r)",
        "Hu et al. 2021, arXiv 2106.09685, §4.1; Kalajdzievski 2023, arXiv 2312.03732",
    ),
    Definition("Energy", "‖ΔW‖_F² = Σσ²; a module's share is of the sum over modules", "Eckart and Young 1936"),
    Definition("Stable rank", "Σσ² / σ₁²", "Rudelson and Vershynin 2007"),
    Definition("Effective rank", "exp H(p), p = σ/Σσ", "Roy and Vetterli 2007, eq. 4"),
    Definition(
        "Effective rank of the energy (eff. rank σ²)",
        "exp H(p), p = σ²/Σσ²",
        "the same entropy, of squared singular values",
    ),
    Definition("Participation ratio", "(Σσ²)² / Σσ⁴", "Bell and Dean 1970"),
    Definition(
        "Energy rank r90, r95, r99",
        "the smallest k with Σ_{i≤k} σ² ≥ 90, 95, 99 % of Σσ²",
        "Eckart and Young 1936: no rank-k matrix keeps more",
    ),
    Definition(
        "Uniform rank",
        "the maximum of the energy ranks over modules: no module loses more than 5 (or 1) %",
        "the worst module, not the mean",
    ),
    Definition(
        "Structureless B·A (null)",
        "mean over 32 draws of Gaussian B and A of the same shape",
        "Bartlett decomposition; computed here",
    ),
    Definition(
        "Numerically nothing",
        "σ ≤ u·σ₁, u the unit roundoff of the stored dtype (BF16 2⁻⁸, F16 2⁻¹¹, F32 2⁻²⁴)",
        "rounding of the stored factors alone makes such values",
    ),
    Definition(
        "Lost on merge", "‖(fl(W + ΔW) − W) − ΔW‖_F / ‖ΔW‖_F", "fl rounds to the dtype that the base is stored in"
    ),
)


def value(result: "SpectrumResult", module: "ModuleSpectrum", key: str) -> Any:
    """One of MEASURES for one module; None where it could not be computed."""
    if key == "energy_share":
        return result.energy_share(module)
    if key.startswith("energy_rank_"):
        return module.energy_rank[key.removeprefix("energy_rank_")] if module.energy_rank else None
    if key in ("relative_norm", "rounding_loss"):
        return getattr(module.against_base, key) if module.against_base else None
    return getattr(module, key)


@np.errstate(over="ignore", invalid="ignore")  # medians of numbers at the end of float64's range
def blocks(result: "SpectrumResult", *, sort: str = "energy_share", top: int = ROWS_AT_EACH_END) -> tuple[Block, ...]:
    """The page in reading order. `sort` and `top` choose the modules listed at both ends on the terminal."""
    if not result.modules:
        return (
            _facts(result),
            Findings(result.findings),
            *_not_compared(result),
            *_not_analysed(result),
            Definitions(DEFINITIONS, where="page"),
        )
    shown = [m for m in MEASURES if any(value(result, module, m[0]) is not None for module in result.modules)]
    made = [_facts(result), Findings(result.findings), _by_type(result), _ends(result, sort, top)]
    made += [Heading("Spectra", where="page"), _spectra(result), _energy(result)]
    made += [Heading("Where the update is", where="page"), *_heatmap(result, shown)]
    made += [
        Heading("All modules", where="page"),
        _all_modules(result, shown),
        *_not_compared(result),
        *_not_analysed(result),
    ]
    return (*made, Definitions(DEFINITIONS, where="page"))


def _facts(result: "SpectrumResult") -> Facts:
    ranks = sorted({m.rank for m in result.modules if m.rank is not None})
    scales = sorted({m.scale for m in result.modules})
    items = [
        ("file", result.source.path),
        ("sha256", result.source.sha256 or "not hashed"),
        ("format", result.source.format),
        ("method", result.source.method),
        ("modules", str(len(result.modules))),
        ("rank r", _span(ranks)),
        ("scale s", _span(scales)),
        ("stored as", ", ".join(sorted({m.dtype for m in result.modules}))),
        ("base model", result.base or "not given"),
    ]
    settings = [
        (key, v if isinstance(v, str) else json_text(v, separators=(", ", ": ")))
        for key, v in sorted(result.settings.items())
    ]
    return Facts((*items, *settings), title="What this file is", where="page")


def _span(values: list) -> str:
    if not values:
        return "unknown"
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"


def _by_type(result: "SpectrumResult") -> Table:
    columns = (
        Column("type", "module type"), Column("modules", "n", "int"), Column("rank", "r", "int"),
        Column("energy", "energy", "percent", help="share of Σ‖ΔW‖_F²"),
        Column("frobenius_norm", "‖ΔW‖_F", "float", help="median over modules"),
        Column("spectral_norm", "max ‖ΔW‖₂", "float", help="largest over modules"),
        Column("stable_rank", "stable", "float", help="median stable rank Σσ²/σ₁²"),
        Column("null", "null", "float", help="median stable rank of a structureless B·A of these shapes"),
        Column("effective_rank", "effective", "float", help="median of exp H(σ/Σσ)"),
        Column("r95", "r95", "int", help="rank that keeps 95 % of the energy in every module of the type"),
        Column("r99", "r99", "int", help="rank that keeps 99 % of the energy in every module of the type"),
    )  # fmt: skip
    rows = []
    for name, modules in group(result, "type").items():
        share = result.energy(modules) / result.total_energy if result.total_energy else None
        worst = [max((m.energy_rank[s] or 0 for m in modules if m.energy_rank), default=None) for s in ("0.95", "0.99")]
        null = _median([m.null["stable_rank"] for m in modules if m.null])
        rows.append((
            name, len(modules), max((m.rank for m in modules if m.rank is not None), default=None), share,
            _median([m.frobenius_norm for m in modules]), max(m.spectral_norm or 0.0 for m in modules),
            _median([m.stable_rank for m in modules]), null, _median([m.effective_rank for m in modules]), *worst,
        ))  # fmt: skip
    caption = "Medians over the modules of a type; r95 and r99 are the worst module's."
    return Table(columns, tuple(rows), title="By module type", caption=caption)


def _median(values: list) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.median(known)) if known else None


def _ends(result: "SpectrumResult", sort: str, top: int) -> Table:
    """The modules at both ends of `sort`, for the terminal."""
    title = next(title for key, title, *_ in MEASURES if key == sort)
    keys = list(
        dict.fromkeys([sort, "frobenius_norm", "stable_rank", "effective_rank", "energy_rank_0.95", "energy_rank_0.99"])
    )
    known = [m for m in result.modules if value(result, m, sort) is not None]
    ordered = sorted(known, key=lambda m: -value(result, m, sort))
    chosen = ordered if len(ordered) <= 2 * top else [*ordered[:top], *ordered[len(ordered) - top :]]
    chosen_measures = [m for key in keys for m in MEASURES if m[0] == key]
    rows = tuple((*(row := _row(result, m, chosen_measures))[:1], m.rank, *row[3:]) for m in chosen)
    left_out = len(ordered) - len(chosen)
    caption = f"{left_out} modules between them are not shown (--top, --csv)" if left_out else ""
    columns = (Column("name", "module", "code"), Column("rank", "r", "int"), *_columns(chosen_measures)[3:])
    return Table(columns, rows, title=f"Modules at both ends, by {title}", caption=caption, where="terminal")


def _columns(measures: list) -> tuple[Column, ...]:
    fixed = (Column("name", "module", "code"), Column("shape", "shape"), Column("rank", "r", "int"))
    return fixed + tuple(Column(key, title, unit, help=about) for key, title, unit, about in measures)


def _row(result: "SpectrumResult", module: "ModuleSpectrum", measures: list) -> tuple[Cell, ...]:
    fixed: tuple[Cell, ...] = (module.name, "×".join(map(str, module.shape)), module.rank)
    return fixed + tuple(value(result, module, key) for key, *_ in measures)


def _all_modules(result: "SpectrumResult", measures: list) -> Table:
    columns = (*_columns(measures), Column("kind", "kind"), Column("scale", "s", "float"), Column("notes", "notes"))
    rows = tuple((*_row(result, m, measures), m.kind, m.scale, "; ".join(m.notes)) for m in result.modules)
    return Table(columns, rows, title="All modules", interactive=True, where="page")


def _spectra(result: "SpectrumResult") -> Lines:
    """σ against its index on a log axis, a panel for each type: every module thin, the median bold."""
    series = []
    for name, modules in group(result, "type").items():
        spectra = [m.singular_values for m in modules if m.singular_values]
        for m in modules:
            if m.singular_values and len(spectra) > 1:
                series.append(_line(m.name, m.singular_values, name, "thin"))
        if spectra:
            width = min(map(len, spectra))
            series.append(
                _line("median", tuple(np.median([s[:width] for s in spectra], axis=0).tolist()), name, "normal")
            )
    return Lines(
        "Singular values of ΔW by module type", tuple(series), "index i", "σ_i", log_y=True, where="page",
        shade="depth, first to last",
        caption="One thin line for each module; the bold line is their median at each index.",
    )  # fmt: skip


def _line(label: str, sigma: tuple[float, ...], panel: str, weight: Any) -> Series:
    return Series(label, tuple(range(1, len(sigma) + 1)), tuple(s if s > 0 else None for s in sigma), panel, weight)


def _energy(result: "SpectrumResult") -> Lines:
    """Share of the energy that the k largest singular values keep: each type's median module and its worst."""
    series = []
    for name, modules in group(result, "type").items():
        curves = [energy_curve(m.singular_values) for m in modules if m.singular_values and m.frobenius_norm]
        if curves:
            width = min(map(len, curves))
            stacked = np.array([curve[:width] for curve in curves])
            for panel, line in (("median module", np.median(stacked, axis=0)), ("worst module", stacked.min(axis=0))):
                series.append(Series(name, tuple(range(1, width + 1)), tuple(line.tolist()), panel))
    uniform = result.uniform_rank(0.95)
    markers = [Marker("y", 0.95, "95 %")]
    if uniform:
        markers.append(Marker("x", uniform, f"uniform rank {uniform}", "worst module"))
    return Lines(
        "Energy kept against rank",
        tuple(series),
        "rank k",
        "share of ‖ΔW‖_F²",
        markers=tuple(markers),
        where="page",
        caption="One line for each module type. At the uniform rank every module keeps 95 % of its energy.",
    )


def _heatmap(result: "SpectrumResult", measures: list) -> list[Block]:
    """A depth × type grid of each measure; the mean where several modules (experts) share a cell."""
    caption = "Empty cells have no adapted module. Where several modules share a cell (experts), the mean."
    found = depth_by_type(
        result.modules, lambda m: (m.depth, m.type), measures, lambda m, key: value(result, m, key), caption
    )
    return [found or Text("The modules name fewer than two layers, so there is no map by depth.", where="page")]


def _not_compared(result: "SpectrumResult") -> list[Block]:
    if not result.not_compared:
        return []
    columns = (Column("name", "module", "code"), Column("reason", "why it was not compared with the base"))
    rows = tuple((item.name, item.reason) for item in result.not_compared)
    return [Table(columns, rows, title="Not compared with the base", where="page")]


def _not_analysed(result: "SpectrumResult") -> list[Block]:
    if not result.skipped:
        return [Text("Every key of the file was analysed.", where="page")]
    columns = (Column("name", "key", "code"), Column("reason", "why it was not analysed"))
    rows = tuple((item.name, item.reason) for item in result.skipped)
    return [Table(columns, rows, title="Not analysed", where="page")]
