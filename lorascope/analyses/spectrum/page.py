"""The metrics of a spectrum, and the page."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from lorascope.analyses.base import Metric, definitions, metric_to_sort_by
from lorascope.analyses.spectral_metrics import (
    EFFECTIVE_RANK,
    ENERGY_RANKS,
    ENERGY_SHARE,
    FROBENIUS_NORM,
    NUCLEAR_NORM,
    RELATIVE_NORM,
    SPECTRAL_NORM,
    STABLE_RANK,
    baseline,
)
from lorascope.analyses.spectrum import screen
from lorascope.analyses.spectrum.module import ModuleSpectrum
from lorascope.analyses.spectrum.result import COMPARISON, SpectrumResult
from lorascope.analyses.toolkit import (
    BLANK_CELLS,
    Row,
    both_ends,
    column,
    depth_map,
    group,
    inputs,
    measured,
    median,
    medians,
    pick,
    short_path,
    skipped_table,
    type_table,
    value,
)
from lorascope.architectures import natural_order
from lorascope.blocks import (
    Block,
    Cell,
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
)
from lorascope.linalg.nulls import random_product_energy
from lorascope.linalg.spectrum import energy_curve
from lorascope.outputs import json_text

ROWS_AT_EACH_END = 4
SORT = ENERGY_SHARE.key

METRICS = (
    FROBENIUS_NORM,
    SPECTRAL_NORM,
    NUCLEAR_NORM,
    ENERGY_SHARE,
    STABLE_RANK,
    EFFECTIVE_RANK,
    Metric(
        "energy_effective_rank", "eff. rank σ²", "float", "exp H(σ²/Σσ²)", "exp H(p), p = σ²/Σσ²",
        "the same entropy, of squared singular values", term="Effective rank of the energy (eff. rank σ²)",
        meaning="The same spread, with each direction counted by its energy.",
    ),
    Metric(
        "participation_ratio", "part. ratio", "float", "(Σσ²)²/Σσ⁴", "(Σσ²)² / Σσ⁴", "Bell and Dean 1970",
        "null.participation_ratio", "Participation ratio",
        meaning="How many equally strong directions would be as concentrated as these.",
    ),
    *ENERGY_RANKS.values(),
    Metric("rank_utilisation", "stable rank / r", "percent", "stable rank as a share of r", term="Stable rank"),
    Metric(
        "rank_utilisation_of_null", "stable rank / random", "percent",
        "stable rank as a share of the random baseline: that of Gaussian B·A of this shape",
    ),
    Metric(
        "negligible_share", "below rounding", "percent",
        "share of directions with σ ≤ u·σ₁, u the unit roundoff of the stored dtype",
        "σ ≤ u·σ₁, u the unit roundoff of the stored dtype (BF16 2⁻⁸, F16 2⁻¹¹, F32 2⁻²⁴)",
        "singular values this small can come from rounding the stored factors alone", term="Below rounding",
        meaning="How many directions are too weak to tell from rounding.",
    ),
    replace(RELATIVE_NORM, key="against_base.relative_norm", help="Frobenius norms; needs --base"),
    Metric(
        "against_base.rounding_loss", "merge rounding error", "percent",
        "share of ΔW that the base's dtype rounds away on merging; needs --base", "‖(fl(W + ΔW) − W) − ΔW‖_F / ‖ΔW‖_F",
        "fl rounds to the dtype that the base is stored in", term="Merge rounding error",
        meaning="How much of the update is lost when it is merged into weights of this precision.",
    ),
)  # fmt: skip

_AT_ENDS = (FROBENIUS_NORM, STABLE_RANK, EFFECTIVE_RANK, ENERGY_RANKS[0.95], ENERGY_RANKS[0.99])
_MAPPED_FIRST = (FROBENIUS_NORM.key, STABLE_RANK.key, ENERGY_RANKS[0.95].key, "against_base.relative_norm")
DEFINITIONS = (
    Definition(
        "Update",
        "ΔW = s·B·A, with A (r, d_in), B (d_out, r) and s = α/r (rsLoRA: α/√r)",
        "Hu et al. 2021, arXiv 2106.09685, §4.1; Kalajdzievski 2023, arXiv 2312.03732",
        "What the adapter adds to the weights of a module.",
        ("scale",),
    ),
    *definitions(METRICS),
    Definition(
        "Uniform rank",
        "the maximum of the energy ranks over modules: no module loses more than 5 (or 1) %",
        "maximum over modules, not the mean",
        "One rank for all modules that is enough for each of them.",
    ),
    Definition(
        "Random baseline",
        "mean over 32 draws of Gaussian B and A of the same shape",
        "Bartlett decomposition; computed here",
        "What the same measure is for factors without any structure.",
        ("null.stable_rank", "rank_utilisation_of_null", *(each.null or "" for each in ENERGY_RANKS.values())),
    ),
)


def heading(result: SpectrumResult) -> tuple[str, str]:
    source, norm = result.source, result.frobenius_norm
    size = f"‖ΔW‖_F = {'not known' if norm is None else f'{norm:.4g}'}" if result.rows else "no spectrum"
    return short_path(source.path), f"{source.method} ({source.format}), {len(result.rows)} modules, {size}"


@np.errstate(over="ignore", invalid="ignore")  # medians of numbers at the end of float64's range
def blocks(result: SpectrumResult, *, sort: str = SORT, top: int | None = None) -> tuple[Block, ...]:
    """The page in reading order.

    Args:
        sort: the metric by which the largest and smallest modules are listed on the terminal.
        top: how many at each end; without it, and without another metric than the energy, one line has the largest.

    Raises:
        InputError: `sort` is not a metric.
    """
    first = screen.summary(result, result.findings)
    return (first, *sections(result, sort=sort, top=top), Definitions(DEFINITIONS, where="page"), facts(result))


@np.errstate(over="ignore", invalid="ignore")
def sections(result: SpectrumResult, *, sort: str, top: int | None, page: bool = True) -> tuple[Block, ...]:
    """The page without its summary, its facts and its definitions; without `page`, the terminal's blocks alone."""
    by = metric_to_sort_by(METRICS, sort)
    made: list[Block] = []
    observations = Findings(result.findings, where="page")
    if result.rows:
        rows = result.records() if page or not (top is None and sort == SORT) else []
        ends = None if top is None and sort == SORT else _ends(rows, by, top or ROWS_AT_EACH_END)
        made += screen.terminal_blocks(result, ends)
    if result.rows and page:
        shown = _shown(rows)
        no_map = Text("No layer heatmap: module names contain fewer than two layer indices.", where="page")
        made += [Heading("Update by layer and module type", where="page"), heatmap(result) or no_map]
        made += [Heading("Singular values", where="page"), *overview(result)]
        made.append(observations)
        made += [Heading("By module type", where="page"), _by_type(result), spectra(result), energy(result)]
        made += [Heading("All modules", where="page"), _all_modules(rows, shown)]
    elif page:
        made.append(observations)
    if without_base := result.skipped_in(COMPARISON):
        made.append(skipped_table(without_base, "Not compared with the base", "module"))
    if tensors := result.skipped_in():
        made.append(skipped_table(tensors, "Skipped tensors"))
    else:
        made.append(Text("No tensor of the file was skipped.", where="page"))
    return tuple(made)


def _shown(rows: Sequence[Row]) -> list[Metric]:
    return measured(METRICS, rows)


def facts(result: SpectrumResult) -> Facts:
    ranks = sorted({m.rank for m in result.rows if m.rank is not None})
    scales = sorted({m.scale for m in result.rows})
    items = [
        ("file", result.source.path),
        ("sha256", result.source.sha256 or "not hashed"),
        ("format", result.source.format),
        ("method", result.source.method),
        ("modules", str(len(result.rows))),
        ("rank r", _span(ranks)),
        ("scale s", _span(scales)),
        ("dtype", ", ".join(sorted({m.dtype for m in result.rows}))),
        ("base model", result.base or "not given"),
    ]
    training = [
        (f"training: {key.replace('_', ' ')}", v if isinstance(v, str) else ", ".join(v))
        for key, v in result.training.items()
    ]
    settings = [
        (key, v if isinstance(v, str) else json_text(v, separators=(", ", ": ")))
        for key, v in sorted(result.settings.items())
    ]
    return inputs((*items, *training, *settings))


def _span(values: Sequence[float]) -> str:
    if not values:
        return "unknown"
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"


def _by_type(result: SpectrumResult) -> Table:
    def share(modules: list[ModuleSpectrum]) -> float | None:
        return result.energy(modules) / result.total_energy if result.total_energy else None

    def live(modules: list[ModuleSpectrum]) -> float | None:
        return median(m.frobenius_norm for m in modules if m.frobenius_norm)

    columns: tuple[Any, ...] = (
        (Column("rank", "r", "int"), lambda those: max((m.rank for m in those if m.rank is not None), default=None)),
        (ENERGY_SHARE, share),
        (FROBENIUS_NORM, live),
        (replace(SPECTRAL_NORM, title="max ‖ΔW‖₂"), lambda those: max(m.spectral_norm or 0.0 for m in those)),
        STABLE_RANK,
        baseline(STABLE_RANK, "stable rank of Gaussian B·A of these shapes"),
        EFFECTIVE_RANK,
        *((ENERGY_RANKS[share], partial(_max_energy_rank, key=ENERGY_RANKS[share].key)) for share in (0.95, 0.99)),
    )
    by_type = group(result.rows)
    rows = [module for name in natural_order(by_type) for module in by_type[name]]
    zero = sum(m.frobenius_norm == 0 for m in result.rows)
    caption = "Median over the modules of each type; r95 and r99 are the maximum."
    caption += f" Medians leave out {zero} module{'s' * (zero != 1)} with ΔW = 0." if zero else ""
    return type_table(rows, columns, caption, where="page")


def _max_energy_rank(modules: Iterable[ModuleSpectrum], key: str) -> int | None:
    """The maximum over modules whose spectrum could be computed; a zero ΔW needs rank 0."""
    return max((m.energy_ranks[key] or 0 for m in modules if m.singular_values is not None), default=None)


def _ends(rows: Sequence[Row], by: Metric, top: int) -> Table:
    """The modules with the largest and the smallest values of one metric, for the terminal."""
    metrics = pick((by, *_AT_ENDS), (by.key, *(metric.key for metric in _AT_ENDS)))
    chosen, omitted = both_ends(rows, by.key, top)
    body = tuple((row["name"], row["rank"], *(value(row, m.key) for m in metrics)) for row in chosen)
    caption = f"{omitted} more modules not shown: --top N lists more, --csv FILE writes all" if omitted else ""
    columns = (Column("name", "module", "code"), Column("rank", "r", "int"), *map(column, metrics))
    title = f"Largest and smallest modules by {by.title}"
    return Table(columns, body, title=title, caption=caption, where="terminal")


def _all_modules(rows: Sequence[Row], metrics: Sequence[Metric]) -> Table:
    columns = (
        Column("name", "module", "code"), Column("shape", "shape"), Column("rank", "r", "int"), *map(column, metrics),
        Column("kind", "kind"), Column("scale", "s", "float"), Column("notes", "notes"),
    )  # fmt: skip
    order = {name: i for i, name in enumerate(natural_order(row["type"] for row in rows))}
    rows = sorted(rows, key=lambda row: (row["depth"] is None, row["depth"] or 0, order[row["type"]]))
    body: tuple[tuple[Cell, ...], ...] = tuple(
        (row["name"], "×".join(map(str, row["shape"])), row["rank"], *(value(row, m.key) for m in metrics),
         row["kind"], row["scale"], "; ".join(row["notes"]))
        for row in rows
    )  # fmt: skip
    return Table(columns, body, title="All modules", interactive=True, where="page")


def spectra(result: SpectrumResult) -> Lines:
    """σ against its index on a log axis, a panel for each type: every module thin, the median bold."""
    series = []
    by_type = group(result.rows)
    for name in natural_order(by_type):
        modules = by_type[name]
        known = [(m.name, m.singular_values) for m in modules if m.singular_values]
        if len(known) > 1:
            series += [_line(label, sigma, name, "thin") for label, sigma in known]
        if known:
            width = min(len(sigma) for _, sigma in known)
            typical = medians([sigma[:width] for _, sigma in known])
            series.append(_line("median", tuple(typical.tolist()), name, "normal"))
        baseline = _baseline(modules)
        if baseline is not None and known:
            series.append(_line("random B·A with the median's σ₁", baseline(typical[0]), name, "reference"))
    return Lines(
        "Singular values of ΔW by module type", tuple(series), "index i", "σᵢ", log_y=True, where="page",
        shade="depth, first to last", caption="Thin lines: one per module. Bold line: median across modules.",
    )  # fmt: skip


def _baseline(modules: Sequence[ModuleSpectrum]) -> Callable[[float], tuple[float, ...]] | None:
    """The spectrum of random factors of these modules' most common shape, scaled to a largest singular value."""
    shapes = [(*m.shape, m.rank) for m in modules if m.null is not None and m.rank]
    if not shapes:
        return None
    squares = np.diff(random_product_energy(*max(set(shapes), key=shapes.count)), prepend=0.0)
    return lambda top: tuple((top * np.sqrt(squares / squares[0])).tolist())


def _line(label: str, sigma: tuple[float, ...], panel: str, weight: Any) -> Series:
    return Series(label, tuple(range(1, len(sigma) + 1)), tuple(s if s > 0 else None for s in sigma), panel, weight)


def energy(result: SpectrumResult) -> Lines:
    """Share of the energy that the k largest singular values keep: each type's median module and its worst."""
    series = []
    by_type = group(result.rows)
    for name in natural_order(by_type):
        modules = by_type[name]
        curves = [energy_curve(m.singular_values) for m in modules if m.singular_values and m.frobenius_norm]
        if curves:
            width = min(map(len, curves))
            stacked = np.array([curve[:width] for curve in curves])
            for panel, line in (("median module", medians(stacked)), ("worst module", stacked.min(axis=0))):
                series.append(Series(name, tuple(range(1, width + 1)), tuple(line.tolist()), panel))
    uniform = result.uniform_rank(0.95)
    markers = [Marker("y", 0.95, "95 %")]
    if uniform:
        markers.append(Marker("x", uniform, f"r = {uniform}", "worst module"))
    return Lines(
        "Energy kept against rank",
        tuple(series),
        "rank k",
        "share of ‖ΔW‖²",
        markers=tuple(markers),
        where="page",
        caption="One line per module type. Dotted vertical line: the smallest rank at which every module retains 95 %"
        " of its energy.",
    )


def heatmap(result: SpectrumResult) -> Heatmap | None:
    """Each metric by module type and layer; the mean where several modules (experts) share a cell."""
    rows = result.records()
    shown = _shown(rows)
    first = pick(shown, _MAPPED_FIRST)
    metrics = [*first, *(metric for metric in shown if metric not in first)]
    caption = f"Bars: share of the update's energy. {BLANK_CELLS}"
    return depth_map(rows, metrics, caption=caption, share="energy_share")


def overview(result: SpectrumResult) -> list[Block]:
    """All modules in two figures: σ_i/σ₁ with the random baseline, and the energy that truncation keeps."""
    known = [m for m in result.rows if m.singular_values and m.frobenius_norm]
    if not known:
        return []
    width = int(medians([len(m.singular_values or ()) for m in known]))
    alike = [m for m in known if len(m.singular_values or ()) >= width]
    x = tuple(range(1, width + 1))
    relative = np.array([np.array((m.singular_values or ())[:width]) / (m.singular_values or (1,))[0] for m in alike])
    kept = np.array([energy_curve(m.singular_values or ())[:width] for m in alike])
    random = [
        random_product_energy(*m.shape, m.rank)[:width]
        for m in alike if m.null is not None and m.rank and m.rank >= width
    ]  # fmt: skip
    figures = [_middle("this adapter", x, relative, True), _middle("this adapter", x, kept, False)]
    baselines: list[list[Series]] = [[], []]
    if random:
        energies = medians(random)
        sigma = np.sqrt(np.diff(energies, prepend=0.0))
        for at, line in zip(baselines, (sigma / sigma[0], energies), strict=True):
            at.append(Series("random B·A of these shapes", x, tuple(line.tolist()), weight="reference"))
    caption = "Median over modules; band: from the 10th to the 90th percentile."
    uniform = [(share, result.uniform_rank(share)) for share in (0.95, 0.99)]
    markers = tuple(Marker("x", k, f"every module keeps {share:.0%}: r = {k}".replace("%", " %"))
                    for share, k in {k: (share, k) for share, k in uniform if k}.values())  # fmt: skip
    return [
        Lines("Singular values, relative to the largest", (figures[0], *baselines[0]), "index i", "σᵢ/σ₁", log_y=True,
              caption=caption, half=True, where="page"),
        Lines("Energy kept after truncation", (figures[1], *baselines[1]), "rank after truncation", "share of ‖ΔW‖²",
              markers=markers, caption=caption, half=True, where="page"),
    ]  # fmt: skip


def _middle(label: str, x: tuple[int, ...], lines: np.ndarray, positive: bool) -> Series:
    low, middle, high = (
        tuple(v if v > 0 or not positive else None for v in np.percentile(lines, at, axis=0).tolist())
        for at in (10, 50, 90)
    )
    return Series(label, x, middle, low=low, high=high)


PLOTS: dict[str, Callable[[SpectrumResult], Lines | Heatmap | None]] = {
    "spectra": spectra,
    "energy": energy,
    "heatmap": heatmap,
}
