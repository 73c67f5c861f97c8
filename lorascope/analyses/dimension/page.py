"""The result as blocks: the same data for the terminal, the page and the JSON."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.analyses.dimension.findings import of_gain
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
)
from lorascope.linalg.noise import noise_spectrum

if TYPE_CHECKING:
    from lorascope.analyses.dimension.functional import Curve
    from lorascope.analyses.dimension.result import DimensionResult
    from lorascope.analyses.dimension.sizes import Family, Reach
    from lorascope.analyses.dimension.spectra import MatrixSpectrum

MAX_TYPES = 12
MAX_POINTS = 120
MIN_DRAWN = 1e-4  # of the largest singular value in the figure
KINDS = {
    "top": "largest k",
    "threshold": "one threshold on σ",
    "bottom": "smallest k (control)",
    "random": "k random directions of its row space (control)",
    "haar": "k random directions (control)",
}
SHARES = ("0.9", "0.95", "0.99")
ENDS = ("low", "high")

DEFINITIONS = (
    Definition("Gain", "(s₀ − loss)/(s₀ − s_FT), held-out losses; s₀: matrices at W, head and vectors as trained", ""),
    Definition(
        "k90, k95, k99",
        "the smallest k from which on all measured rank-k truncations of every ΔW, jointly, keep the share of the gain",
        "Eckart and Young 1936 for the truncation",
    ),
    Definition(
        "Random directions", "ΔW Q Qᵀ, Q (n, k) orthonormal: Haar within ΔW's row space, or in all of R^n", "a control"
    ),
    Definition("r90", "rank that keeps 90 % of Σσ²; noise: the same of an iid matrix", "Marchenko and Pastur 1967"),
    Definition("Gavish–Donoho rank", "values above ω(β)·median(σ), 2.858 for a square", "arXiv 1305.5870"),
    Definition("Marchenko–Pastur rank", "values above the edge of the bulk, with its Tracy–Widom 99 % correction", ""),
    Definition(
        "Shared rank",
        "values of the seeds' mean above the largest of their contrasts Σ c_i ΔW_i, Σ c_i = 0, Σ c_i² = 1/n",
        "noise in the mean and in a contrast has one law",
    ),
    Definition("Smallest trained rank", "first rank whose mean gain over seeds reaches the share", "arXiv 2106.09685"),
    Definition(
        "d90",
        "first d of the grid whose training in a random subspace reaches 90 % of the gain; DID: one projection, SAID: a"
        " trained factor for each layer besides",
        "arXiv 1804.08838, arXiv 2012.13255",
    ),
    Definition("Degrees of freedom", "r(m + n − r), the dimension of the set of m × n matrices of rank r", ""),
)


def blocks(result: "DimensionResult") -> tuple[Block, ...]:
    """The page in reading order."""
    made: list[Block] = [_facts(result), Findings(result.findings), _meanings(result), *_at_90(result)]
    made += [Heading("What a truncation keeps", where="page"), _curves(result)]
    made += [Heading("Parameters", where="page"), _axis(result), *_sizes(result)]
    made += [Heading("Spectra", where="page"), _spectra(result), _by_type(result), _matrices(result)]
    made += [Heading("Runs", where="page"), _runs(result), *_diverged(result), *_search(result)]
    return (*made, Definitions(DEFINITIONS, where="page"))


def _facts(result: "DimensionResult") -> Facts:
    first = result.full[0]
    texts = result.texts
    items = [
        *((f"full run {run.facts.label}", f"{run.facts.path}, seed {run.facts.seed}") for run in result.full),
        ("model", str(first.facts.task["model"].get("name"))),
        ("data", str(first.facts.task["data"].get("path"))),
        ("scored on", f"{texts.get('count', '?')} texts, {texts.get('split', 'held out')}"),
        ("matrices", f"{len(first.matrices)} truncated, {len(first.aside)} left as trained"),
        ("vectors", f"{first.vector_parameters:,} numbers, as trained in every truncation"),
        ("head", f"{first.head_parameters:,} numbers, as trained everywhere; not counted as parameters"),
        ("runs", f"{len(result.runs)} others, {len(result.diverged)} diverged"),
    ]
    return Facts(tuple(items), title="What was compared", where="page")


def _meanings(result: "DimensionResult") -> Table:
    """The three meanings, and what trained runs need, side by side."""
    columns = (
        Column("what", "meaning"), Column("unit", "in"), Column("90", "90 %"), Column("95", "95 %"),
        Column("99", "99 %"), Column("beside", "beside it"),
    )  # fmt: skip
    whole = result.by_type()["all"]
    rows: list[tuple] = []
    ranks, nulls = ([whole.get(f"energy_rank_{s}{end}") for s in SHARES] for end in ("", ".null"))
    if ranks[0] is not None:
        beside = f"noise {' / '.join(f'{v:.0f}' for v in nulls)}"
        rows.append(("spectral", "rank", *(f"{v:.0f}" for v in ranks), beside))
    if whole["gavish_donoho"] is not None:
        shared = "" if whole["shared_rank"] is None else f", seeds share {whole['shared_rank']:.0f}"
        beside = f"above MP edge {whole['marchenko_pastur']:.0f}{shared}"
        rows.append(("denoised", "rank", f"{whole['gavish_donoho']:.0f}", "", "", beside))
    for kind, name in (("top", "functional"), ("threshold", "one threshold")):
        found = [result.k(float(share), kind) for share in SHARES]
        if found[0]:
            each = [" / ".join("" if k is None else str(k) for k in dict.fromkeys(ks)) for ks in found]
            rows.append((name, "k", *each, _bottom(result, found[0][0]) if kind == "top" else "mean over matrices"))
    for group in result.families:
        if group.axis:
            cells = [reach_cell(group.reach[share]) for share in SHARES]
            rows.append((f"trained {group.label}", group.axis, *cells, _grid(group)))
    caption = (
        "Of the energy of ΔW, and of the gain. Spectral and denoised: medians over matrices. Two numbers: two full"
        " runs. (a, b] is the grid's bracket, [a, b] a bootstrap over seeds."
    )
    return Table(columns, tuple(rows), title="Intrinsic dimension, by its meanings", caption=caption)


def _bottom(result: "DimensionResult", k: int | None) -> str:
    curve = result.full[0].curve("bottom")
    low = [p.recovered for p in curve.at(k) if p.recovered is not None] if curve else []
    return f"k smallest keep {of_gain(low[0])}" if low else ""


def _at_90(result: "DimensionResult") -> list[Block]:
    """The common unit: how many parameters each family needs for 90 % of the gain."""
    points = result.first_on_axis(0.9)
    if not points:
        return []
    columns = (
        Column("family", "family"), Column("size", "k, rank or d", "int"), Column("parameters", "parameters", "int"),
        Column("freedom", "freedom", "int", help="degrees of freedom of the matrices, Σ r(m + n − r)"),
        Column("plain", "as factors", "int", help="Σ k(m + n) and the vectors"), Column("gain", "gain", "percent"),
    )  # fmt: skip
    rows = tuple((p.family, p.size, p.parameters, p.freedom, p.plain, p.gain) for p in points)
    caption = f"Without the head's {result.full[0].head_parameters:,}. A truncation's: degrees of freedom and vectors."
    return [Table(columns, rows, title="Parameters to 90 % of the gain", caption=caption)]


def reach_cell(reach: "Reach") -> str:
    """`4 (2, 4]`, with the interval where there is one."""
    if reach.size is None:
        return "not reached"
    text = f"{reach.size:,}" + (f" ({reach.below:,}, {reach.size:,}]" if reach.below is not None else " (smallest)")
    if reach.interval is not None:
        text += " [" + ", ".join("∞" if end is None else f"{end:,}" for end in reach.interval) + "]"
    return text


def _grid(group: "Family") -> str:
    sizes = [level.size for level in group.levels]
    return f"{len(sizes)} sizes, {sizes[0]:,} to {sizes[-1]:,}" if len(sizes) > 1 else "one size"


def _curves(result: "DimensionResult") -> Lines:
    """Gain against k: truncations of the full runs, the controls, adapters trained and truncated."""
    series = []
    for run in result.full:
        series += [_curve_series(curve, run is result.full[0]) for curve in run.curves]
    if result.truncated:
        series.append(_line_of(f"{result.truncated.run}, truncated to k", _means(result.truncated), "normal"))
    for group in result.families:
        if group.axis == "rank":
            known = [level for level in group.levels if level.size]
            low, high = ([getattr(level, end) for level in known] for end in ENDS)
            spread = {} if None in low else {"low": tuple(low), "high": tuple(high)}
            x = tuple(float(level.size) for level in known)
            series.append(Series(f"{group.label} trained at rank k", x, tuple(e.gain for e in known), **spread))
    markers = [Marker("y", 0.9, "90 %")]
    k90 = (result.k(0.9) or [None])[0]
    markers += [Marker("x", k90, f"k90 = {k90}")] if k90 else []
    return Lines(
        "Gain kept at rank k of every ΔW", tuple(series), "rank k", "share of the gain", log_x=True,
        markers=tuple(markers), where="page",
        caption=f"Held-out loss; vectors and head as trained. Control bands: range over draws. {_clipped(series)}",
    )  # fmt: skip


def _clipped(series: Sequence[Series]) -> str:
    worst = min((y for s in series for y in s.y if y is not None), default=0.0)
    return "A share below 0 is worse than no ΔW at all." if worst < 0 else ""


def _curve_series(curve: "Curve", first: bool) -> Series:
    label = KINDS[curve.kind] if first else f"{KINDS[curve.kind]}, {curve.run}"
    return _line_of(label, _means(curve), "reference" if curve.kind == "bottom" else "normal")


def _means(curve: "Curve") -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for point in curve.points:
        if point.recovered is not None and point.k > 0:
            found.setdefault(point.k, []).append(point.recovered)
    return {k: found[k] for k in sorted(found)}


def _line_of(label: str, values: dict[int, list[float]], weight: Any) -> Series:
    several = any(len(each) > 1 for each in values.values())
    spread = {"low": tuple(map(min, values.values())), "high": tuple(map(max, values.values()))} if several else {}
    return Series(label, tuple(map(float, values)), tuple(float(np.mean(v)) for v in values.values()), "", weight,
                  **spread)  # fmt: skip


def _axis(result: "DimensionResult") -> Lines:
    """The gain of every family against its number of parameters."""
    series = []
    for name in dict.fromkeys(point.family for point in result.axis):
        mine = [point for point in result.axis if point.family == name]
        x, y = tuple(float(p.parameters) for p in mine), tuple(p.gain for p in mine)
        low, high = (tuple(p.gain if getattr(p, end) is None else getattr(p, end) for p in mine) for end in ENDS)
        spread = {"low": low, "high": high} if any(p.low is not None for p in mine) else {}
        one = {} if len(mine) > 1 else {"points": (f"{name}, {mine[0].parameters:,} parameters",)}
        series.append(Series(name, x, y, **spread, **one))
    return Lines(
        "One axis: gain against the number of parameters", tuple(series), "parameters", "share of the gain", log_x=True,
        markers=(Marker("y", 0.9, "90 %"),), where="page",
        caption="Trained numbers; of a truncation the degrees of freedom of its matrices and its vectors. The head is"
        " not counted. Bands: bootstrap over seeds; of truncations the range of the full runs.",
    )  # fmt: skip


def _sizes(result: "DimensionResult") -> list[Block]:
    """Every level of every family, and the truncations beside them."""
    columns = (
        Column("family", "family"), Column("size", "rank, d or k", "int"), Column("parameters", "parameters", "int"),
        Column("plain", "as factors", "int", help="Σ k(m + n) and the vectors"),
        Column("freedom", "degrees of freedom", "int", help="Σ r(m + n − r) over the matrices alone"),
        Column("gain", "gain", "percent"), Column("low", "low", "percent"), Column("high", "high", "percent"),
    )  # fmt: skip
    rows = tuple(
        (p.family, p.size, p.parameters, p.plain, p.freedom, p.gain, p.low, p.high) for p in result.axis
    )  # fmt: skip
    return [Table(columns, rows, title="Every point of the axis", interactive=True, where="page")]


def _groups(spectra: "Sequence[MatrixSpectrum]") -> "dict[str, list[MatrixSpectrum]]":
    found: dict[str, list] = {}
    for each in spectra:
        found.setdefault(each.type, []).append(each)
    return found


def _spectra(result: "DimensionResult") -> Lines:
    """σ against its index by type: ΔW of the first full run, noise, what the seeds do not share, and the adapters'."""
    first = result.full[0].facts.label
    series: list[Series] = []
    for name, matrices in list(_groups([e for e in result.spectra if e.run == first]).items())[:MAX_TYPES]:
        if len(matrices) > 1:
            series += [_line(each.name, each.singular_values, name, "thin") for each in matrices]
        series.append(_line("full ΔW, median", _middle([e.singular_values for e in matrices]), name, "normal"))
        nulls = [noise_spectrum(*e.shape) * (e.frobenius_norm / (e.shape[0] * e.shape[1]) ** 0.5) for e in matrices]
        series.append(_line("noise of the same energy", _middle(nulls), name, "reference"))
        splits = [each for each in result.splits if each.type == name]
        if splits:
            series.append(_line("difference of the seeds", _middle([e.contrast for e in splits]), name, "reference"))
        names = {each.name for each in matrices}
        for label, spectra in _adapters_drawn(result).items():
            own = [e.singular_values for e in spectra if e.name in names and e.frobenius_norm > 0]
            if own:
                series.append(_line(f"B·A, {label}", _middle(own), name, "normal"))
    least = MIN_DRAWN * max((v for s in series for v in s.y if v is not None), default=1.0)
    series = [replace(s, y=tuple(v if v is not None and v >= least else None for v in s.y)) for s in series]
    return Lines(
        "Singular values of ΔW, of noise, and of B·A, by module type", tuple(series), "index i", "σ_i",
        log_x=True, log_y=True, where="page", shade="depth, first to last",
        caption=f"One thin line for each matrix of {first}; other lines are medians at each index. Values below"
        f" {MIN_DRAWN:g} of the largest are not drawn.",
    )  # fmt: skip


def _adapters_drawn(result: "DimensionResult") -> "dict[str, list[MatrixSpectrum]]":
    """Of each rank one run, the first: at most four, from the lowest rank to the highest."""
    by_size: dict[tuple, tuple[str, list]] = {}
    for run in sorted(result.runs, key=lambda run: (run.family, run.facts.rank or 0, run.facts.seed)):
        spectra = [each for each in result.adapters if each.run == run.facts.label]
        if spectra:
            by_size.setdefault((run.family, run.facts.rank), (f"{run.family} r = {run.facts.rank}", spectra))
    chosen = list(by_size.values())
    at = sorted({round(i * (len(chosen) - 1) / 3) for i in range(4)}) if len(chosen) > 4 else range(len(chosen))
    return dict(chosen[i] for i in at)


def _middle(spectra: Sequence[Any]) -> tuple[float, ...]:
    width = min(map(len, spectra))
    return tuple(np.median([np.asarray(each)[:width] for each in spectra], axis=0).tolist())


def _line(label: str, sigma: Any, panel: str, weight: Any) -> Series:
    at = np.unique(np.round(np.geomspace(1, len(sigma), MAX_POINTS)).astype(int))
    return Series(label, tuple(at.tolist()), tuple(float(sigma[i - 1]) or None for i in at), panel, weight)


def _by_type(result: "DimensionResult") -> Table:
    columns = (
        Column("type", "module type"), Column("matrices", "n", "int"), Column("stable_rank", "stable rank", "float"),
        Column("stable_rank.null", "noise", "float"), Column("effective_rank", "eff. rank", "float"),
        Column("effective_rank.null", "noise", "float"), Column("energy_rank_0.9", "r90", "int"),
        Column("energy_rank_0.9.null", "noise", "int"), Column("energy_rank_0.95", "r95", "int"),
        Column("energy_rank_0.99", "r99", "int"), Column("gavish_donoho", "GD", "int", help="Gavish–Donoho rank"),
        Column("marchenko_pastur", "> MP", "int", help="above the Marchenko–Pastur edge"),
        Column("shared_rank", "shared", "int", help="of the seeds' mean above their difference"),
        Column("signal_share", "signal", "percent", help="share of the energy that the seeds share"),
        Column("cosine", "cosine", "float", help="of two seeds' ΔW"),
        Column("cosine_chance", "chance", "float", help="1/√(mn)"),
    )  # fmt: skip
    rows = tuple(
        tuple(name if column.key == "type" else record.get(column.key) for column in columns)
        for name, record in result.by_type().items()
    )
    return Table(columns, rows, title="Full fine-tuning's ΔW by module type", caption="Medians over matrices and runs.",
                 where="page")  # fmt: skip


def _matrices(result: "DimensionResult") -> Table:
    columns = (
        Column("run", "run"), Column("name", "matrix", "code"), Column("shape", "shape"),
        Column("norm", "‖ΔW‖_F", "float"), Column("stable_rank", "stable rank", "float"),
        Column("effective_rank", "eff. rank", "float"), Column("r90", "r90", "int"), Column("null", "by chance", "int"),
        Column("ratio", "of chance", "percent"), Column("r95", "r95", "int"), Column("r99", "r99", "int"),
        Column("gd", "GD", "int"), Column("mp", "> MP", "int"),
    )  # fmt: skip
    rows = tuple(
        (e.run, e.name, f"{e.shape[0]}×{e.shape[1]}", e.frobenius_norm, e.measures["stable_rank"],
         e.measures["effective_rank"], e.measures["energy_rank_0.9"], e.null["energy_rank_0.9"],
         e.of_null["energy_rank_0.9"], e.measures["energy_rank_0.95"], e.measures["energy_rank_0.99"],
         e.gavish_donoho, e.marchenko_pastur)
        for e in (*result.spectra, *result.adapters)
    )  # fmt: skip
    caption = "By chance: of a full ΔW an iid matrix of its shape, of an adapter's a product of Gaussian factors."
    return Table(columns, rows, title="All matrices", caption=caption, interactive=True, where="page")


def _runs(result: "DimensionResult") -> Table:
    columns = (
        Column("run", "run", "code"), Column("family", "family"), Column("size", "size", "int"),
        Column("seed", "seed", "int"), Column("rate", "learning rate", "float"), Column("loss", "loss", "float", 4),
        Column("accuracy", "right", "percent"), Column("gain", "gain", "percent"),
        Column("parameters", "parameters", "int"), Column("freedom", "degrees of freedom", "int"),
    )  # fmt: skip
    rows = [
        (run.facts.label, "full", None, run.facts.seed, run.facts.learning_rate, run.base.end, run.accuracy,
         result.base.recovered(run.base.end), run.parameters, None)
        for run in result.full
    ]  # fmt: skip
    rows += [
        (run.facts.label, run.family, run.facts.size, run.facts.seed, run.facts.learning_rate, run.loss, run.accuracy,
         run.gain, run.parameters, run.freedom)
        for run in result.runs
    ]  # fmt: skip
    return Table(columns, tuple(rows), title="Every run", interactive=True, where="page")


def _diverged(result: "DimensionResult") -> list[Block]:
    if not result.diverged:
        return []
    columns = (Column("run", "run", "code"), Column("method", "method"), Column("size", "size", "int"),
               Column("rate", "learning rate", "float"), Column("why", "what happened"))  # fmt: skip
    rows = tuple((r.label, r.method, r.size, r.learning_rate, r.diverged) for r in result.diverged)
    return [Table(columns, rows, title="Diverged, and in no figure")]


def _search(result: "DimensionResult") -> list[Block]:
    found = result.search
    if not found:
        return []
    columns = (Column("d", "d", "int"), Column("gain", "mean gain", "percent"), Column("gains", "by seed"))
    rows = tuple(
        (each["d"], each["mean"], ", ".join("diverged" if g is None else f"{100 * g:.1f} %" for g in each["gains"]))
        for each in found["tried"]
    )
    text = f"{found['trained']} runs trained now, {found['found']} found finished."
    return [Table(columns, rows, title="The search for d90"), Text(text, where="page")]
