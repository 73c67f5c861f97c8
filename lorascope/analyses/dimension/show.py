"""The result drawn: the same data for the terminal, the page and the JSON."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lorascope.analyses import sigma_lines
from lorascope.analyses.base import definitions
from lorascope.analyses.dimension.findings import of_gain
from lorascope.analyses.dimension.functional import Curve
from lorascope.analyses.dimension.result import METRICS, OF_AXIS, OF_SEEDS, SPECTRAL, DimensionResult
from lorascope.analyses.dimension.sizes import Family, Reach
from lorascope.analyses.dimension.spectra import SHARES, MatrixSpectrum
from lorascope.analyses.sigma_lines import line, middle
from lorascope.analyses.spectral_metrics import ENERGY_RANKS, FROBENIUS_NORM
from lorascope.analyses.toolkit import COUNT, TYPE, group, inputs, percent, pick, skipped_table, table, value
from lorascope.blocks import (
    Block,
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
    Tile,
    Tiles,
)

R90 = ENERGY_RANKS[0.9]
MAX_TYPES = 12
MAX_ADAPTERS = 4  # whose spectra are drawn
KINDS = {
    "top": "largest k",
    "threshold": "one bound on σ",
    "bottom": "smallest k (control)",
    "random": "k random directions of its row space (control)",
    "haar": "k random directions (control)",
}
ENDS = ("low", "high")
OF_MATRICES = tuple(metric for metric in SPECTRAL if metric.key != "null.stable_rank")

MEANINGS = (
    Definition(
        "k90, k95, k99",
        "the smallest k from which on all measured rank-k truncations of every ΔW, jointly, keep the share of the gain",
        "Eckart and Young 1936 for the truncation",
        "How many directions of every ΔW are needed to keep that share of what fine-tuning gained.",
        ("k90", "k99"),
    ),
    Definition(
        "Random directions",
        "ΔW Q Qᵀ, Q (n, k) orthonormal: Haar within ΔW's row space, or in all of R^n",
        "a control",
        "What as many directions keep when they are not the largest: nearly as much means that these are not special.",
    ),
    Definition(
        "Smallest trained rank",
        "first rank whose mean gain over seeds reaches the share",
        "arXiv 2106.09685",
        "The lowest rank at which training a LoRA was enough, next to which a truncation can be judged.",
        ("trained_rank",),
    ),
    Definition(
        "d90",
        "first d of the grid whose training in a random subspace reaches 90 % of the gain; DID: one projection, SAID: a"
        " trained factor for each layer besides",
        "arXiv 1804.08838, arXiv 2012.13255",
        "How few trained parameters reach 90 % of the gain: the intrinsic dimension of the task.",
    ),
)


def blocks(result: DimensionResult) -> tuple[Block, ...]:
    """The page in reading order."""
    drawn: list[Block] = [Tiles(tiles(result)), Findings(result.findings), _meanings(result)]
    drawn += _at_90(result)
    drawn += [Heading("What a truncation keeps", where="page"), gain_curves(result)]
    drawn += [Heading("Parameters", where="page"), parameters(result), _points(result)]
    drawn += [Heading("Singular values", where="page"), spectra(result), _by_type(result), _matrices(result)]
    drawn += [Heading("Runs", where="page"), _runs(result), *_diverged(result), *_search(result)]
    drawn += [skipped_table(result.skipped, what="matrix")] if result.skipped else []
    return (*drawn, Definitions((*definitions(METRICS), *MEANINGS), where="page"), _facts(result))


def tiles(result: DimensionResult) -> tuple[Tile, ...]:
    """The first screen's numbers: k90 and k99 of full fine-tuning, and the rank and parameters that a LoRA needs."""
    full = max((min(shape) for shape in result.full[0].matrices.values()), default=0)
    made = []
    for share, key in ((0.9, "k90"), (0.99, "k99")):
        if ks := list(dict.fromkeys(k for k in result.k(share) if k is not None)):
            label = f"Rank that keeps {percent(share)} of the gain"
            made.append(Tile(label, " / ".join(map(str, ks)), f"of every ΔW, of {full}", key))
    spectral = result.by_type()["all"]
    if (rank := spectral.get("energy_rank_0.9")) is not None:
        note = f"median; noise needs {spectral['null']['energy_rank_0.9']:.0f}"
        made.append(Tile("Rank for 90 % of the energy", f"{rank:.0f}", note, "energy_rank_0.9"))
    ranked = [each for each in result.families if each.axis == "rank" and each.reach["0.9"].size is not None]
    if ranked:
        first = min(ranked, key=lambda each: each.reach["0.9"].size or 0)
        sizes = [level.size for level in first.levels if level.size]
        tried = f"{min(sizes)} to {max(sizes)}" if len(sizes) > 1 else "no other"
        note = f"for 90 % of the gain; tried {tried}"
        made.append(Tile(f"Smallest trained rank, {first.label}", f"{first.reach['0.9'].size}", note, "trained_rank"))
        at = next((point for point in result.first_on_axis(0.9) if point.family == first.label), None)
        if at is not None:
            note = f"full fine-tuning: {result.full[0].parameters:,}"
            made.append(Tile("Parameters at that rank", f"{at.parameters:,}", note, "parameters"))
    return tuple(made)


def _facts(result: DimensionResult) -> Facts:
    first, texts = result.full[0], result.texts
    skipped = sum(item.adapter == first.facts.label for item in result.skipped)
    items = [
        *((f"full run {run.facts.label}", f"{run.facts.path}, seed {run.facts.seed}") for run in result.full),
        ("model", str(first.facts.task["model"].get("name"))),
        ("data", str(first.facts.task["data"].get("path"))),
        ("scored on", f"{texts.get('count', '?')} texts, {texts.get('split', 'held out')}"),
        ("matrices", f"{len(first.matrices)} truncated, {skipped} skipped (as trained)"),
        ("vectors", f"{first.vector_parameters:,} parameters, as trained in every truncation"),
        ("head", f"{first.head_parameters:,} parameters, as trained everywhere; not counted"),
        ("runs", f"{len(result.runs)} others, {len(result.diverged)} diverged"),
    ]
    return inputs(items)


def _meanings(result: DimensionResult) -> Table:
    """The three meanings, and what trained runs need, side by side."""
    columns = (
        Column("what", "meaning"), Column("unit", "in"), Column("90", "90 %"), Column("95", "95 %"),
        Column("99", "99 %"), Column("reference", "reference"),
    )  # fmt: skip
    overall = result.by_type()["all"]
    rows: list[tuple] = []
    ranks, nulls = ([value(overall, f"{of}energy_rank_{share}") for share in SHARES] for of in ("", "null."))
    if ranks[0] is not None:
        reference = f"noise {' / '.join(f'{rank:.0f}' for rank in nulls)}"
        rows.append(("spectral", "rank", *(f"{rank:.0f}" for rank in ranks), reference))
    if overall["gavish_donoho"] is not None:
        shared = "" if overall["shared_rank"] is None else f", seeds share {overall['shared_rank']:.0f}"
        reference = f"above MP edge {overall['marchenko_pastur']:.0f}{shared}"
        rows.append(("denoised", "rank", f"{overall['gavish_donoho']:.0f}", "", "", reference))
    for kind, name in (("top", "functional"), ("threshold", "one bound")):
        of_shares = [result.k(share, kind) for share in SHARES]
        if of_shares[0]:
            cells = [" / ".join("" if k is None else str(k) for k in dict.fromkeys(ks)) for ks in of_shares]
            reference = _smallest(result, of_shares[0][0]) if kind == "top" else "mean over matrices"
            rows.append((name, "k", *cells, reference))
    for each in result.families:
        if each.axis:
            cells = [reach_cell(each.reach[str(share)]) for share in SHARES]
            rows.append((f"trained {each.label}", each.axis, *cells, _grid(each)))
    caption = (
        "Of the energy of ΔW, and of the gain. Spectral and denoised: medians over matrices. Two numbers: two full"
        " runs. (a, b] is the grid's bracket, [a, b] a bootstrap over seeds."
    )
    return Table(columns, tuple(rows), title="Intrinsic dimension, by its meanings", caption=caption)


def _smallest(result: DimensionResult, k: int | None) -> str:
    curve = result.full[0].curve("bottom")
    kept = [p.recovered for p in curve.at(k) if p.recovered is not None] if curve else []
    return f"k smallest keep {of_gain(kept[0])}" if kept else ""


def _at_90(result: DimensionResult) -> list[Block]:
    """The common unit: how many parameters each family needs for 90 % of the gain."""
    points = result.first_on_axis(0.9)
    if not points:
        return []
    columns = (Column("family", "family"), *OF_AXIS[:-2])
    caption = f"Without the head's {result.full[0].head_parameters:,}. A truncation's: degrees of freedom and vectors."
    return [table(points, columns, "Parameters to 90 % of the gain", caption=caption)]


def reach_cell(reach: Reach) -> str:
    """`4 (2, 4]`, with the interval where there is one."""
    if reach.size is None:
        return "not reached"
    text = f"{reach.size:,}" + (f" ({reach.below:,}, {reach.size:,}]" if reach.below is not None else " (smallest)")
    if reach.interval is not None:
        text += " [" + ", ".join("∞" if end is None else f"{end:,}" for end in reach.interval) + "]"
    return text


def _grid(family: Family) -> str:
    sizes = [level.size for level in family.levels]
    return f"{len(sizes)} sizes, {sizes[0]:,} to {sizes[-1]:,}" if len(sizes) > 1 else "one size"


def gain_curves(result: DimensionResult) -> Lines:
    """Gain against k: truncations of the full runs, the controls, adapters trained and truncated."""
    series = []
    for run in result.full:
        series += [_curve_series(curve, run is result.full[0]) for curve in run.curves]
    if result.truncated:
        series.append(_line_of(f"{result.truncated.run}, truncated to k", _gains(result.truncated), "normal"))
    for each in result.families:
        if each.axis == "rank":
            levels = [level for level in each.levels if level.size]
            low, high = ([getattr(level, end) for level in levels] for end in ENDS)
            spread: dict[str, Any] = {} if None in low else {"low": tuple(low), "high": tuple(high)}
            x = tuple(float(level.size or 0) for level in levels)
            series.append(Series(f"{each.label} trained at rank k", x, tuple(e.gain for e in levels), **spread))
    markers = [Marker("y", 0.9, "90 %")]
    k90 = (result.k(0.9) or [None])[0]
    markers += [Marker("x", k90, f"k90 = {k90}")] if k90 else []
    lowest = min((y for line in series for y in line.y if y is not None), default=0.0)
    negative = " A share below 0 is worse than no ΔW at all." if lowest < 0 else ""
    return Lines(
        "Gain kept at rank k of every ΔW", tuple(series), "rank k", "share of the gain", log_x=True,
        markers=tuple(markers), where="page",
        caption=f"Held-out loss; vectors and head as trained. Control bands: range over draws.{negative}",
    )  # fmt: skip


def _curve_series(curve: Curve, first: bool) -> Series:
    label = KINDS[curve.kind] if first else f"{KINDS[curve.kind]}, {curve.run}"
    return _line_of(label, _gains(curve), "reference" if curve.kind == "bottom" else "normal")


def _gains(curve: Curve) -> dict[int, list[float]]:
    """The gains that are left, by k ascending."""
    points = [point for point in curve.points if point.recovered is not None and point.k > 0]
    return {k: [float(p.recovered or 0.0) for p in here] for k, here in sorted(group(points, "k").items())}


def _line_of(label: str, values: Mapping[int, list[float]], weight: Any) -> Series:
    several = any(len(each) > 1 for each in values.values())
    spread: dict[str, Any] = {}
    if several:
        spread = {"low": tuple(map(min, values.values())), "high": tuple(map(max, values.values()))}
    means = tuple(float(np.mean(each)) for each in values.values())
    return Series(label, tuple(map(float, values)), means, "", weight, **spread)


def parameters(result: DimensionResult) -> Lines:
    """The gain of every family against its number of parameters."""
    series = []
    for name, points in group(result.axis, "family").items():
        x, y = tuple(float(p.parameters) for p in points), tuple(p.gain for p in points)
        more: dict[str, Any] = {}
        if any(p.low is not None for p in points):
            more |= {end: tuple(p.gain if value(p, end) is None else value(p, end) for p in points) for end in ENDS}
        if len(points) == 1:
            more["points"] = (f"{name}, {points[0].parameters:,} parameters",)
        series.append(Series(name, x, y, **more))
    return Lines(
        "One axis: gain against the number of parameters", tuple(series), "parameters", "share of the gain", log_x=True,
        markers=(Marker("y", 0.9, "90 %"),), where="page",
        caption="Trained parameters; of a truncation the degrees of freedom of its matrices and its vectors. The head"
        " is not counted. Bands: bootstrap over seeds; of truncations the range of the full runs.",
    )  # fmt: skip


def _points(result: DimensionResult) -> Table:
    """Every level of every family, and the truncations."""
    columns = (Column("family", "family"), *OF_AXIS)
    return table(result.axis, columns, "Every point of the axis", interactive=True, where="page")


def spectra(result: DimensionResult) -> Lines:
    """σ against its index by type: ΔW of the first full run, noise, what the seeds do not share, and the adapters'."""
    first = result.full[0].facts.label
    drawn, adapters = group([each for each in result.spectra if each.run == first]), _adapters_drawn(result)
    series: list[Series] = []
    for name, matrices in list(drawn.items())[:MAX_TYPES]:
        if len(matrices) > 1:
            series += [line(each.name, each.singular_values, name, "thin") for each in matrices]
        series.append(line("full ΔW, median", middle([each.singular_values for each in matrices]), name, "normal"))
        nulls = [sigma_lines.noise(each.shape, each.frobenius_norm) for each in matrices]
        series.append(line("noise of the same energy", middle(nulls), name, "reference"))
        splits = [each for each in result.splits if each.type == name]
        if splits:
            contrast = middle([each.contrast for each in splits])
            series.append(line("difference of the seeds", contrast, name, "reference"))
        names = {each.name for each in matrices}
        for label, members in adapters.items():
            sigmas = [each.singular_values for each in members if each.name in names and each.frobenius_norm > 0]
            if sigmas:
                series.append(line(f"B·A, {label}", middle(sigmas), name, "normal"))
    lines_are = f"One thin line for each matrix of {first}; other lines are medians at each index."
    return sigma_lines.by_type(series, lines_are)


def _adapters_drawn(result: DimensionResult) -> dict[str, list[MatrixSpectrum]]:
    """Of each rank one run, the first: from the lowest rank to the highest."""
    by_run = group(result.adapters, "run")
    by_size: dict[tuple, tuple[str, list[MatrixSpectrum]]] = {}
    for run in sorted(result.runs, key=lambda run: (run.family, run.facts.rank or 0, run.facts.seed)):
        if members := by_run.get(run.facts.label):
            by_size.setdefault((run.family, run.facts.rank), (f"{run.family} r = {run.facts.rank}", members))
    sizes, last = list(by_size.values()), MAX_ADAPTERS - 1
    if len(sizes) > MAX_ADAPTERS:
        sizes = [sizes[i] for i in sorted({round(i * (len(sizes) - 1) / last) for i in range(MAX_ADAPTERS)})]
    return dict(sizes)


def _by_type(result: DimensionResult) -> Table:
    shown = [metric for metric in SPECTRAL if "effective_rank" not in metric.key]  # which the matrices have
    columns = (TYPE, replace(COUNT, key="matrices"), *shown, *OF_SEEDS)
    rows = [{"type": name, **record} for name, record in result.by_type().items()]
    caption = "Medians over matrices and runs."
    return table(rows, columns, "Full fine-tuning's ΔW by module type", caption=caption, where="page")


def _matrices(result: DimensionResult) -> Table:
    columns = (
        Column("run", "run"), Column("name", "matrix", "code"), Column("shape", "shape"),
        FROBENIUS_NORM, *OF_MATRICES,
        Column(f"of_{R90.null}", "of random", "percent", help=f"{R90.title} over its random baseline", metric=R90.key),
    )  # fmt: skip
    rows = [each.record() for each in (*result.spectra, *result.adapters)]
    caption = "Random: of a full ΔW an iid matrix of its shape, of an adapter's a product of Gaussian factors."
    return table(rows, columns, "All matrices", caption=caption, interactive=True, where="page")


def _runs(result: DimensionResult) -> Table:
    columns = (
        Column("run", "run", "code"), Column("family", "family"), Column("size", "size", "int"),
        Column("seed", "seed", "int"), Column("learning_rate", "learning rate", "float"),
        Column("loss", "loss", "float", 4), Column("accuracy", "accuracy", "percent"),
        *pick(OF_AXIS, ("gain", "parameters", "freedom")),
    )  # fmt: skip
    rows = [
        *(run.record() | {"family": "full", "gain": result.base.recovered(run.base.end)} for run in result.full),
        *(run.record() for run in result.runs),
    ]
    return table(rows, columns, "Every run", interactive=True, where="page")


def _diverged(result: DimensionResult) -> list[Block]:
    columns = (
        Column("label", "run", "code"), Column("method", "method"), Column("size", "size", "int"),
        Column("learning_rate", "learning rate", "float"), Column("diverged", "what happened"),
    )  # fmt: skip
    return [table(result.diverged, columns, "Diverged runs (excluded from figures)")] if result.diverged else []


def _search(result: DimensionResult) -> list[Block]:
    record = result.search
    if not record:
        return []
    columns = (Column("d", "d", "int"), Column("gain", "mean gain", "percent"), Column("gains", "by seed"))
    rows = tuple(
        (each["d"], each["mean"], ", ".join("diverged" if g is None else percent(g, 3) for g in each["gains"]))
        for each in record["tried"]
    )
    text = f"{record['trained']} runs trained now, {record['found']} already finished."
    return [Table(columns, rows, title="The search for d90"), Text(text, where="page")]


PLOTS = {"gain": gain_curves, "parameters": parameters, "spectra": spectra}
