"""The result as blocks: the same data for the terminal, the page and the JSON."""

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

if TYPE_CHECKING:
    from lorascope.analyses.intruders.module import ModuleIntruders
    from lorascope.analyses.intruders.result import IntrudersResult

# What a weight is listed and mapped by: key, title, unit, help.
MEASURES = (
    ("left", "intruders", "int", "of the k leading left singular vectors (the outputs' side)"),
    ("right", "on the right", "int", "of the k leading right singular vectors (the inputs' side)"),
    ("lowest", "lowest |cos|", "float", "the smallest of the k left vectors' largest |cos| with W's"),
    ("chance", "by chance", "float", "median of a random direction's largest |cos| with W's left singular vectors"),
    ("share", "energy", "percent", "share of the k leading vectors' energy that the intruders hold"),
    ("spike_margin", "σ₁(ΔW)/σ_k(W)", "float", "how strong ΔW's first direction is against W's k-th"),
    ("strength", "s*", "float", "by what ΔW would have to be multiplied to enter the k leading values; below 1 it has"),
    ("in_top", "expected", "int", "directions of ΔW expected among the k leading values, from W's spectrum"),
    ("value", "expected σ", "float", "what σ₁(ΔW) is expected to become in W + ΔW"),
    ("measured", "found σ", "float", "what it became, where a leading vector holds over half of it"),
    ("relative_norm", "‖ΔW‖/‖W‖", "percent", "Frobenius norms"),
)
SHOWN_K = (1, 2, 5, 10, 20, 50)
ROWS = 8
MAX_TYPES = 12

DEFINITIONS = (
    Definition(
        "Intruder",
        "a singular vector y_j, j ≤ k, of W + ΔW with max_i |cos(y_j, x_i)| < ε over all singular vectors x_i of W",
        "Shuttleworth et al. 2024, arXiv 2410.21228, definition 3.1 and algorithm 1",
    ),
    Definition(
        "Left and right",
        "the outputs' and the inputs' side of the map, however the file stores it; the paper and PEFT take the left",
        "of a Conv1D or an embedding as stored, the other way round",
    ),
    Definition(
        "Equal singular values",
        "those of W whose squares differ by less than 1e-11·σ₁² are one subspace, and the cosine is with it",
        "rounding picks the vectors within",
    ),
    Definition(
        "By chance",
        "median of the largest |cos| of a uniformly random unit vector, cos² ~ Beta(½, (n − 1)/2) each",
        "about √(2 log n / n)",
    ),
    Definition(
        "Expected",
        "ρ with φ(ρ)φ̃(ρ) = 1/θ², θ = σ₁(ΔW), over W's spectrum; s* = θ̄/θ with θ̄ where ρ = σ_k(W)",
        "Benaych-Georges and Nadakuditi 2012, theorems 2.8 and 2.9: a direction that knows nothing of W's",
    ),
)


def value(result: "IntrudersResult", module: "ModuleIntruders", key: str) -> Any:
    """One of MEASURES for one weight; None where it could not be computed."""
    if not module.vectors:
        return None
    if key in ("left", "right"):
        return len(module.intruders(result.epsilon, result.k, key))
    if key == "lowest":
        return min(vector.cosine["left"] for vector in module.vectors)
    if key == "chance":
        return module.chance["left"] if module.chance else None
    if key == "share":
        energy = sum(v.sigma**2 for v in module.intruders(result.epsilon, result.k))
        whole = sum(v.sigma**2 for v in module.vectors)
        return energy / whole if whole else None
    return getattr(module.prediction if key in _PREDICTED else module, key, None)


_PREDICTED = ("strength", "in_top", "value", "measured")


def blocks(result: "IntrudersResult") -> tuple[Block, ...]:
    """The page in reading order."""
    made: list[Block] = [_facts(result), Findings(result.findings)]
    if result.changed:
        made += [_by_type(result), _counts(result), _most(result)]
        if result.intervention is not None:
            made += result.intervention.blocks()
        made += [Heading("Cosines", where="page"), _against_epsilon(result), _by_position(result)]
        made += [Heading("Strength", where="page"), _strength(result)]
        made += [Heading("Where the intruders are", where="page"), *_heatmap(result)]
        made += [Heading("All weights", where="page"), _all(result), *_vectors(result)]
    return (*made, *_set_aside(result), Definitions(DEFINITIONS, where="page"))


def _facts(result: "IntrudersResult") -> Facts:
    methods = sorted({m.method for m in result.modules if m.method})
    error = max((m.error / m.vectors[0].sigma for m in result.modules if m.vectors and m.error is not None), default=0)
    items = [(side, ", ".join(f"{v}" for v in said.values() if v)) for side, said in result.sides.items()]
    items += [
        ("weights", f"{len(result.modules)}, of which {len(result.changed)} changed"),
        ("looked at", f"the {result.k} leading singular vectors of each; ε = {result.epsilon:g}"),
        ("W + ΔW by", f"{', '.join(methods)}; singular values to {error:.1g} of σ₁"),
    ]
    if result.cache is not None:
        size = (result.cache.read_bytes + result.cache.written_bytes) / 1e6
        where = f" in {result.cache.folder}" if result.cache.folder else ", none kept"
        items.append(("W decomposed", f"{result.cache.computed} now, {result.cache.read} before; {size:.1f} MB{where}"))
    return Facts(tuple(items), title="What was compared", where="page")


def groups(result: "IntrudersResult") -> "dict[str, list[ModuleIntruders]]":
    """The changed weights by type, in order of first appearance."""
    found: dict[str, list] = {}
    for module in result.changed:
        found.setdefault(module.type, []).append(module)
    return found


def _median(values: list) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.median(known)) if known else None


def _by_type(result: "IntrudersResult") -> Table:
    medians = ("relative_norm", "spike_margin", "strength", "lowest", "chance")
    columns = (
        Column("type", "module type"), Column("n", "n", "int"), Column("slots", "vectors", "int"),
        Column("left", "intruders", "int", help=f"left, ε = {result.epsilon:g}"),
        Column("right", "on the right", "int"), Column("in_top", "expected", "int", help=_about("in_top")[3]),
        *(Column(key, title, unit, help=about) for key, title, unit, about in map(_about, medians)),
    )  # fmt: skip
    rows = []
    for name, modules in groups(result).items():
        sums = [sum(value(result, m, key) or 0 for m in modules) for key in ("left", "right", "in_top")]
        middles = [_median([value(result, m, key) for m in modules]) for key in medians]
        rows.append((name, len(modules), sum(len(m.vectors) for m in modules), *sums, *middles))
    caption = "Sums, and from ‖ΔW‖/‖W‖ on medians over the weights of a type."
    return Table(columns, tuple(rows), title="By module type", caption=caption)


def _about(key: str) -> tuple[str, str, Any, str]:
    return next(measure for measure in MEASURES if measure[0] == key)


def _counts(result: "IntrudersResult") -> Table:
    """Left intruders for each ε and k."""
    ks = sorted({k for k in (*SHOWN_K, result.k) if k <= result.k})
    columns = (Column("epsilon", "ε", "float"), *(Column(str(k), f"k = {k}", "int") for k in ks))
    rows = tuple((e, *(result.count(e, k) for k in ks)) for e in result.epsilons)
    chance = result.summary()["median_chance"]["left"]
    vectors = ", ".join(str(sum(min(k, len(m.vectors)) for m in result.modules)) for k in ks)
    caption = (
        f"Left singular vectors, over all weights; of {vectors} vectors. Below ε = {chance:.2f} a random direction is"
        " no intruder in most weights."
    )
    return Table(columns, rows, title="Intruders for each ε and k", caption=caption)


def _most(result: "IntrudersResult") -> Table:
    keys = ("left", "right", "lowest", "share", "spike_margin", "strength", "in_top", "relative_norm")
    order = sorted(result.changed, key=lambda m: (-value(result, m, "left"), -(m.spike_margin or 0)))
    left_out = max(len(order) - ROWS, 0)
    caption = f"{left_out} weights with fewer are not shown (--csv)" if left_out else ""
    columns = (Column("name", "weight", "code"), *(Column(k, t, u, help=h) for k, t, u, h in map(_about, keys)))
    rows = tuple((m.name, *(value(result, m, key) for key in keys)) for m in order[:ROWS])
    return Table(columns, rows, title="Weights with the most intruders", caption=caption, where="terminal")


def _against_epsilon(result: "IntrudersResult") -> Lines:
    """The share of vectors whose largest |cos| lies below ε, by type and side."""
    grid = np.linspace(0.02, 1, 50)
    series = []
    for side, panel in (("left", "left (outputs)"), ("right", "right (inputs)")):
        for name, modules in list(groups(result).items())[:MAX_TYPES]:
            cosines = np.array([v.cosine[side] for m in modules for v in m.vectors])
            line = tuple(float(np.mean(cosines < e)) for e in grid)
            series.append(Series(name, tuple(grid.tolist()), line, panel))
    chance = result.summary()["median_chance"]
    marks = [Marker("x", result.epsilon, f"ε = {result.epsilon:g}")]
    marks += [
        Marker("x", chance["left"], "chance", "left (outputs)"),
        Marker("x", chance["right"], "chance", "right (inputs)"),
    ]
    return Lines(
        "Share of the leading vectors that are intruders, against ε", tuple(series), "ε", "share", markers=tuple(marks),
        where="page", caption=f"Of the {result.k} leading singular vectors of each weight. Chance is the median of a"
        " random direction's largest |cos|: to its left nothing can be counted.",
    )  # fmt: skip


def _by_position(result: "IntrudersResult") -> Lines:
    series: list[Series] = []
    for name, modules in list(groups(result).items())[:MAX_TYPES]:
        lines = [(m.name, [v.cosine["left"] for v in m.vectors]) for m in modules]
        if len(lines) > 1:
            series += [
                Series(label, tuple(range(1, len(line) + 1)), tuple(line), name, "thin") for label, line in lines
            ]
        width = min(len(line) for _, line in lines)
        middle = np.median([line[:width] for _, line in lines], axis=0)
        series.append(Series("median", tuple(range(1, width + 1)), tuple(middle.tolist()), name))
        series.append(
            Series(
                "by chance",
                (1, width),
                (_median([value(result, m, "chance") for m in modules]),) * 2,
                name,
                "reference",
            )
        )
    return Lines(
        "Largest |cos| with W's left singular vectors, by position in W + ΔW", tuple(series), "position", "max |cos|",
        where="page", shade="depth, first to last", markers=(Marker("y", result.epsilon, f"ε = {result.epsilon:g}"),),
        caption="One thin line for each weight. A dip is a direction that W did not have.",
    )  # fmt: skip


def _strength(result: "IntrudersResult") -> Lines:
    """σ₁(ΔW) against the strength that enters the k leading values; points above the line have entered."""
    known = [m for m in result.changed if m.prediction is not None and m.prediction.threshold > 0]
    series = []
    for label, chosen in (
        ("with intruders", [m for m in known if m.intruders(result.epsilon, result.k)]),
        ("without", [m for m in known if not m.intruders(result.epsilon, result.k)]),
    ):
        if chosen:
            x = tuple(m.prediction.threshold for m in chosen if m.prediction)
            series.append(Series(label, x, tuple(m.delta_sigma for m in chosen), points=tuple(m.name for m in chosen)))
    if known:
        ends = tuple(f(m.prediction.threshold for m in known if m.prediction) for f in (min, max))
        series.append(Series("the threshold itself", ends, ends, weight="reference"))
    return Lines(
        f"σ₁(ΔW) against the strength that enters the {result.k} leading values of W + ΔW", tuple(series),
        "expected threshold θ̄", "σ₁(ΔW)", log_x=True, log_y=True, where="page",
        caption="From W's spectrum alone, for a direction that knows nothing of W's. ΔW that lies along W's own"
        " directions rises without being an intruder.",
    )  # fmt: skip


def _heatmap(result: "IntrudersResult") -> list[Block]:
    """A depth × type grid of each measure."""
    measures = [(key, title, "float" if unit == "int" else unit, about) for key, title, unit, about in MEASURES]
    caption = "Empty cells are unchanged or absent. Where several weights share a cell (experts), the mean."
    found = depth_by_type(
        result.changed,
        lambda m: (m.depth, m.type),
        measures,
        lambda m, key: value(result, m, key),
        caption,
        types=list(groups(result)),
    )
    return [found or Text("The weights name fewer than two layers, so there is no map by depth.", where="page")]


def _all(result: "IntrudersResult") -> Table:
    shown = [m for m in MEASURES if any(value(result, module, m[0]) is not None for module in result.modules)]
    columns = (
        Column("name", "weight", "code"), Column("shape", "shape"),
        *(Column(key, title, unit, help=about) for key, title, unit, about in shown), Column("notes", "notes"),
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = [
        (m.name, "×".join(map(str, m.shape)), *(value(result, m, key) for key, *_ in shown), "; ".join(m.notes))
        for m in result.modules
    ]
    return Table(columns, tuple(rows), title="All weights", interactive=True, where="page")


def _vectors(result: "IntrudersResult") -> list[Block]:
    rows = [
        (m.name, v.position, v.sigma, v.energy_share, v.cosine["left"], v.nearest["left"], v.cosine["right"],
         v.of_base["left"], v.of_change["left"] if v.of_change else None)
        for m in result.changed
        for v in m.intruders(result.epsilon, result.k)
    ]  # fmt: skip
    if not rows:
        return [Text(f"No vector is an intruder at ε = {result.epsilon:g}.", where="page")]
    columns = (
        Column("name", "weight", "code"), Column("position", "position", "int"), Column("sigma", "σ", "float"),
        Column("energy", "of ‖W + ΔW‖²", "percent"), Column("left", "max |cos| left", "float"),
        Column("nearest", "nearest in W", "int", help="the position in W's spectrum of the vector that is nearest"),
        Column("right", "max |cos| right", "float"),
        Column("of_base", "in W's top", "percent",
               help="share of the left vector in the span of W's 2k leading ones: a mixture of W's own directions"),
        Column("of_change", "in ΔW's space", "percent", help="share of the left vector in ΔW's column space"),
    )  # fmt: skip
    return [Table(columns, tuple(rows), title="The intruders", interactive=True, where="page")]


def _set_aside(result: "IntrudersResult") -> list[Block]:
    if not result.skipped:
        return [Text("Every weight was looked at.", where="page")]
    columns = (Column("name", "parameter", "code"), Column("reason", "why"))
    rows = tuple((item.name, item.reason) for item in result.skipped)
    return [Table(columns, rows, title="Not looked at", where="page")]
