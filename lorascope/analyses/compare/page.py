"""The result as blocks: the same data for the terminal, the page and the JSON."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.analyses.compare.summary import SIDES, median
from lorascope.analyses.maps import depth_by_type
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
    Measure,
    Series,
    Table,
    Text,
    Where,
)

if TYPE_CHECKING:
    from lorascope.analyses.compare.pair import Row
    from lorascope.analyses.compare.result import CompareResult, Pair

TITLES = {"left": "left (output) side of ΔW", "right": "right (input) side of ΔW", "a_alone": "A alone, as in Hu 2021"}
ROWS_AT_EACH_END = 4
MAX_TYPES = 12
MAX_PAIR_PAGES = 3
MAX_PAIRS_LISTED = 40

# Of a module: dotted key, title, unit, help.
QUANTITIES = (
    ("cosine", "cosine", "float", "⟨ΔW_a, ΔW_b⟩/(‖ΔW_a‖‖ΔW_b‖)"),
    ("cosine_sd", "chance ±", "float", "standard deviation of the cosine by chance; its mean is 0"),
    ("cosine_q", "q", "float", "false discovery rate over the modules, of the cosine"),
    ("left.phi_whole", "left φ", "float", "‖UᵀU‖²/min(i, j) of the whole left subspaces"),
    ("left.phi_chance", "chance", "float", "max(i, j)/m"),
    ("left.z", "z", "float", "of the left φ, exact variance"),
    ("left.q", "q", "float", "false discovery rate over the modules, of the left φ"),
    ("left.energy_overlap.value", "left energy", "float", "⟨G_a, G_b⟩/(‖G_a‖‖G_b‖), G = ΔW ΔWᵀ"),
    ("left.energy_overlap.chance", "chance", "float", "of the energy-weighted overlap"),
    ("right.phi_whole", "right φ", "float", "‖VᵀV‖²/min(i, j) of the whole right subspaces"),
    ("right.phi_chance", "chance", "float", "max(i, j)/n"),
    ("right.z", "z", "float", "of the right φ, exact variance"),
    ("right.q", "q", "float", "false discovery rate over the modules, of the right φ"),
    ("right.energy_overlap.value", "right energy", "float", "⟨G_a, G_b⟩/(‖G_a‖‖G_b‖), G = ΔWᵀΔW"),
    ("right.energy_overlap.chance", "chance", "float", "of the energy-weighted overlap"),
    ("a_alone.phi_whole", "A φ", "float", "of the row spaces of A alone: first of all the initialisation"),
    ("initialisation.row_cosine", "A rows", "float", "mean cosine of A's rows one by one, as stored"),
)
_SHORT = ("cosine", "cosine_sd", "left.phi_whole", "left.phi_chance", "left.z", "right.phi_whole", "right.phi_chance",
          "right.z", "a_alone.phi_whole")  # fmt: skip

DEFINITIONS = (
    Definition("Cosine", "⟨ΔW_a, ΔW_b⟩ / (‖ΔW_a‖_F ‖ΔW_b‖_F)",
               "chance: 0 ± 1/√(mn) whatever the spectra, p by the saddlepoint tail of Σ w g h (Lugannani, Rice 1980);"
               " where A is shared, 0 ± ‖ΔW_aΔW_bᵀ‖/(√m ‖ΔW_a‖‖ΔW_b‖), the left sides alone turned"),
    Definition("φ(i, j)", "‖U_iᵀV_j‖_F² / min(i, j), of the i and j leading singular directions",
               "Hu et al. 2021, arXiv 2106.09685, §7.2 and App. G, where φ = 1 − d²/p"),
    Definition("Chance level of φ", "E φ = max(i, j)/n; Var ‖UᵀV‖² = 2ij(n−i)(n−j)/(n²(n−1)(n+2))",
               "Haar-random subspaces; p by the Beta law of that mean, variance and range, exact for i or j = 1"),
    Definition("Effect", "(φ − chance)/(1 − chance)", "0 by chance, 1 where one subspace holds the other"),
    Definition("q", "the false discovery rate at which this module would count", "Benjamini and Hochberg 1995"),
    Definition("Pooled z", "Σ(X − E X)/√ΣVar X, X = ‖UᵀV‖²",
               "takes the modules of a run to be independent, which they are not: seeds are the sampling unit"),
    Definition("Principal angles", "θ_k = arccos σ_k(UᵀV), small ones by σ((I − UUᵀ)V)",
               "Björck and Golub 1973; chance: the edge of the Jacobi law, Wachter 1980"),
    Definition("Energy overlap", "⟨G_a, G_b⟩/(‖G_a‖ ‖G_b‖), G = ΔWΔWᵀ on the left, ΔWᵀΔW on the right",
               "directions count by their energy; chance tr G_a tr G_b/(n ‖G_a‖ ‖G_b‖)"),
    Definition("A alone", "φ of the right-singular directions of A (r, d_in)",
               "Hu et al. 2021, §7.2; no property of ΔW = BA = (BC⁻¹)(CA), and alike first of all by initialisation"),
    Definition("Shared initialisation",
               "mean cosine of row k of either A ≥ 0.3 (≥ 0.8 of fewer than 4 rows), z ≥ 6; or φ of A far above chance",
               "in one stream of random numbers A (8, d) is the first rows of A (64, d)"),
    Definition("Projection distance", "√Σsin²θ", "Hu et al. 2021, App. G; the chordal distance"),
)  # fmt: skip


def blocks(result: "CompareResult") -> tuple[Block, ...]:
    """The page in reading order."""
    made: list[Block] = [_facts(result), Findings(result.findings)]
    if len(result.adapters) > 2:
        made += [_pairs(result), *_by_label(result), *_matrices(result)]
    detailed = [pair for pair in result.pairs if pair.modules]
    for pair in detailed[:MAX_PAIR_PAGES]:
        made += _pair(result, pair)
    if len(detailed) > MAX_PAIR_PAGES:
        text = f"The first {MAX_PAIR_PAGES} of {len(detailed)} pairs are drawn module by module; --json has all."
        made.append(Text(text, where="page"))
    return (*made, *_left_out(result), Definitions(DEFINITIONS, where="page"))


def _facts(result: "CompareResult") -> Facts:
    items = [
        (one["label"], f"{one['method']} ({one['format']}), sha256 {(one['sha256'] or 'not hashed')[:12]}")
        for one in result.adapters[:MAX_PAIRS_LISTED]
    ]
    if len(result.adapters) > MAX_PAIRS_LISTED:
        items.append(("and", f"{len(result.adapters) - MAX_PAIRS_LISTED} more"))
    items.append(("base model", result.base or "not given"))
    return Facts(tuple(items), title="What is compared", where="page")


def value(row: "Row", key: str) -> Any:
    """The entry at a dotted key; None where it, or a record on the way, is absent."""
    found: Any = row
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _columns(keys: Sequence[str]) -> tuple[Column, ...]:
    about = {key: Column(key, title, unit, help=help) for key, title, unit, help in QUANTITIES}  # type: ignore[arg-type]
    return tuple(about[key] for key in keys)


def by_type(records: Sequence["Row"]) -> dict[str, list["Row"]]:
    found: dict[str, list[Row]] = {}
    for row in records:
        found.setdefault(row["type"], []).append(row)
    return found


# --- one pair ---------------------------------------------------------------------------------------------------------


def _pair(result: "CompareResult", pair: "Pair") -> list[Block]:
    records = pair.modules or ()
    shown = [q[0] for q in QUANTITIES if any(value(row, q[0]) is not None for row in records)]
    short = [key for key in _SHORT if key in shown]
    names = f"{result.label(pair.a)} and {result.label(pair.b)}"
    several = len(result.pairs) > 1
    made: list[Block] = [Heading(names, where="page")] if several else []
    made += [_type_table(records, short, "page" if several else "both")]
    made += [] if several else [_ends(records, short)]
    for side in SIDES:
        made += _grids(records, side, result.label(pair.a), result.label(pair.b))
    made += [*_angles(records), *_by_depth(records), *_depth_map(records, shown)]
    columns = (Column("name", "module", "code"), Column("rank", "ranks"), *_columns(shown))
    rows = tuple((row["name"], " | ".join(map(str, row["rank"])), *(value(row, k) for k in shown)) for row in records)
    return [*made, Table(columns, rows, title="All modules", interactive=True, where="page")]


def _type_table(records: Sequence["Row"], keys: Sequence[str], where: Where) -> Table:
    columns = (Column("type", "module type"), Column("modules", "n", "int"), *_columns(keys))
    rows = tuple(
        (name, len(group), *(median([value(row, key) for row in group]) for key in keys))
        for name, group in by_type(records).items()
    )
    caption = "Medians over the modules of a type; beside each number what chance gives."
    return Table(columns, rows, title="By module type", caption=caption, where=where)


def _ends(records: Sequence["Row"], keys: Sequence[str]) -> Table:
    """The modules most and least alike on the left, for the terminal."""
    known = [row for row in records if value(row, "left.z") is not None]
    ordered = sorted(known, key=lambda row: -value(row, "left.z"))
    few = len(ordered) <= 2 * ROWS_AT_EACH_END
    chosen = ordered if few else [*ordered[:ROWS_AT_EACH_END], *ordered[-ROWS_AT_EACH_END:]]
    keys = [key for key in keys if key != "cosine_sd"]
    rows = tuple((row["depth"], row["type"], *(value(row, key) for key in keys)) for row in chosen)
    caption = "" if few else f"{len(ordered) - len(chosen)} modules between them are not shown (--csv)"
    columns = (Column("depth", "layer", "int"), Column("type", "module type"), *_columns(keys))
    title = "Modules by z of the left overlap" if few else "Modules at both ends, by z of the left overlap"
    return Table(columns, rows, title=title, caption=caption, where="terminal")


def _grids(records: Sequence["Row"], side: str, a: str, b: str) -> list[Block]:
    """φ(i, j) of one side, mean over the modules of a type, the chance levels marked on the scale."""
    measures: list[Measure] = []
    groups = [("all modules", records), *by_type(records).items()]
    groups = groups[1:] if len(groups) == 2 else groups
    size = _least_dims([row[side] for row in records if row[side]])
    if size is None:
        return []
    rows, columns = size
    for name, group in groups[: MAX_TYPES + 1]:
        known = [row[side] for row in group if row[side]]
        if not known:
            continue
        chance = float(np.mean([1 / row["dimension"] for row in known]))  # of a mean over modules of several widths
        marks = ((chance, "chance φ(1,1)"), (max(size) * chance, f"chance φ({rows},{columns})"))
        about = f"φ(i, j) of the {TITLES[side]}, mean over {len(known)} modules"
        grid = _mean_grid([row["phi"] for row in known], size)
        measures.append(Measure(name, name, grid, help=about, marks=marks, limits=(0.0, 1.0)))
        if name == "all modules" or len(groups) == 1:
            z = _mean_grid([row["phi_z"] for row in known], size)
            measures.append(Measure(f"{name} z", f"z, {name}", z, help="(φ − chance)/sd, mean over modules"))
    labels = [tuple(str(k + 1) for k in range(count)) for count in size]
    caption = (
        "By chance φ(i, j) is max(i, j)/n: it grows with i and j, and its range is marked on the scale. Empty where"
        " equal singular values leave the order open."
    )
    return [
        Heatmap(f"φ(i, j), {TITLES[side]}", *labels, tuple(measures), f"i, of {a}", f"j, of {b}", caption, where="page")
    ]


def _least_dims(sides: Sequence["Row"]) -> tuple[int, int] | None:
    """The grid that all modules have."""
    if not sides:
        return None
    return min(len(row["phi"]) for row in sides), min(len(row["phi"][0]) for row in sides)


def _mean_grid(grids: Sequence[list], size: tuple[int, int]) -> tuple[tuple[float | None, ...], ...]:
    rows, columns = size
    cut = np.array([[line[:columns] for line in grid[:rows]] for grid in grids], dtype=float)
    known = np.isfinite(cut).sum(axis=0)
    mean = np.nansum(cut, axis=0) / np.maximum(known, 1)
    return tuple(
        tuple(float(v) if k else None for v, k in zip(*line, strict=True)) for line in zip(mean, known, strict=True)
    )


def _angles(records: Sequence["Row"]) -> list[Block]:
    """Every module's principal angles in degrees, a panel a side, the smallest that chance gives as a line."""
    series: list[Series] = []
    markers: list[Marker] = []
    for side in SIDES:
        rows = [row for row in records if row[side]]
        for row in rows:
            angles = np.degrees(row[side]["principal_angles"])
            x, y = tuple(range(1, len(angles) + 1)), tuple(angles.tolist())
            series.append(Series(row["name"], x, y, TITLES[side], "thin" if len(rows) > 1 else "normal"))
        if rows:
            least = min(row[side]["smallest_angle_chance"] for row in rows)
            markers.append(Marker("y", float(np.degrees(least)), "least by chance", TITLES[side]))
    caption = (
        "One line for each module. Random subspaces have hardly an angle below the marked one, which is that of the"
        " module with the widest subspaces for its size."
    )
    return [
        Lines("Principal angles", tuple(series), "index k", "θ_k, degrees", markers=tuple(markers), caption=caption,
              shade="depth, first to last", where="page")
    ]  # fmt: skip


def _by_depth(records: Sequence["Row"]) -> list[Block]:
    """φ of the whole subspaces against depth, a line a type, with the chance level."""
    if len({row["depth"] for row in records if row["depth"] is not None}) < 2:
        return []
    series: list[Series] = []
    for side in SIDES:
        known = [row for row in records if row[side] and row["depth"] is not None]
        for name, group in list(by_type(known).items())[:MAX_TYPES]:
            x, y = _mean_by_depth(group, lambda row, side=side: row[side]["phi_whole"])
            series.append(Series(name, x, y, TITLES[side]))
        if known:
            x, y = _mean_by_depth(known, lambda row, side=side: row[side]["phi_chance"])
            series.append(Series("chance", x, y, TITLES[side], "reference"))
    title = "φ of the whole subspaces by depth"
    return [Lines(title, tuple(series), "layer", "φ", where="page", caption="Chance is the mean over the types.")]


def _mean_by_depth(rows: Sequence["Row"], of) -> tuple[tuple[float, ...], tuple[float, ...]]:
    cells: dict[int, list[float]] = {}
    for row in rows:
        cells.setdefault(row["depth"], []).append(of(row))
    return tuple(sorted(cells)), tuple(float(np.mean(cells[d])) for d in sorted(cells))


def _depth_map(records: Sequence["Row"], keys: Sequence[str]) -> list[Block]:
    shown = [q for q in QUANTITIES if q[0] in keys and q[1] not in ("chance", "chance ±", "q", "z")]
    measures = [(key, title, "float", about) for key, title, _, about in shown]
    measures += [(key, f"z {side}", "float", "z of φ") for side, key in (("left", "left.z"), ("right", "right.z"))]
    found = depth_by_type(
        records,
        lambda row: (row["depth"], row["type"]),
        measures,
        value,
        "Empty cells have no module in common.",
        types=list(by_type(records)),
        title="Agreement, depth × module type",
    )
    return [found] if found else []


# --- many adapters ----------------------------------------------------------------------------------------------------


def _pairs(result: "CompareResult") -> Table:
    """The pairs most alike on the left."""
    columns = (
        Column("a", "a"), Column("b", "b"), Column("modules", "n", "int"), Column("cosine", "cosine", "float"),
        Column("left", "left φ", "float"), Column("left_chance", "chance", "float"), Column("left_z", "z", "float"),
        Column("right", "right φ", "float"), Column("right_chance", "chance", "float"), Column("right_z", "z", "float"),
        Column("row_cosine", "A rows", "float", help="mean cosine of A's rows one by one: the initialisation"),
    )  # fmt: skip
    keys = ("modules", "cosine", "left", "left_chance", "left_z", "right", "right_chance", "right_z", "row_cosine")
    ordered = sorted(result.pairs, key=lambda pair: -_known(result.matrices.left_effect[pair.a, pair.b], -2.0))
    rows = tuple(
        (result.label(p.a), result.label(p.b), *(_known(getattr(result.matrices, k)[p.a, p.b]) for k in keys))
        for p in ordered[:MAX_PAIRS_LISTED]
    )
    caption = "φ is the mean over modules, z pooled over them."
    if len(ordered) > MAX_PAIRS_LISTED:
        caption += f" The first {MAX_PAIRS_LISTED} of {len(ordered)} pairs."
    return Table(columns, rows, title="Pairs, most alike on the left first", caption=caption)


def _known(number: float, otherwise: Any = None) -> Any:
    return float(number) if np.isfinite(number) else otherwise


_MATRIX = (
    ("left_effect", "left, above chance", "Σ(φ − chance)/Σ(1 − chance) over modules"),
    ("right_effect", "right, above chance", "Σ(φ − chance)/Σ(1 − chance) over modules"),
    ("left", "left φ", "mean over modules"),
    ("right", "right φ", "mean over modules"),
    ("cosine", "cosine", "⟨ΔW_a, ΔW_b⟩/(‖·‖‖·‖) over all modules together"),
    ("row_cosine", "A rows (initialisation)", "mean cosine of A's rows one by one"),
)


def _matrices(result: "CompareResult") -> list[Block]:
    order = result.clusters["order"] if result.clusters else list(range(len(result.adapters)))
    names = tuple(result.label(k) for k in order)
    measures = []
    for key, title, about in _MATRIX:
        matrix = getattr(result.matrices, key)[np.ix_(order, order)].copy()
        np.fill_diagonal(matrix, np.nan)  # everything agrees with itself, and would stretch the scale
        values = tuple(tuple(_known(v) for v in row) for row in matrix)
        marks = ()
        if key in ("left", "right"):
            chance = float(np.nanmedian(getattr(result.matrices, f"{key}_chance")))
            marks = ((chance, "chance"),)
        measures.append(Measure(key, title, values, help=about, marks=marks))
    caption = "In the order of the tree: average linkage on the left overlap above chance."
    made: list[Block] = [
        Heatmap("All pairs", names, names, tuple(measures), "adapter", "adapter", caption, where="page")
    ]
    return [*made, _membership(result)]


def _by_label(result: "CompareResult") -> list[Block]:
    """Agreement within and between named groups."""
    if result.by_label is None:
        return []
    columns = (Column("measure", "measure"), Column("pairs", "pairs"), Column("mean", "mean", "float"),
               Column("low", "95 % from", "float"), Column("high", "to", "float"),
               Column("p", "p", "float", help="labels permuted over adapters, two-sided"))  # fmt: skip
    rows = tuple(
        (key.replace("_", " "), where, *(about[where][part] for part in ("mean", "low", "high")),
         about["p"] if where == "difference" else None)
        for key, about in result.by_label["measures"].items()
        for where in ("within", "between", "difference")
    )  # fmt: skip
    sizes = "; ".join(f"{name or '(empty)'}: {len(who)}" for name, who in result.by_label["groups"].items())
    caption = f"Adapters drawn anew within each group, {result.by_label['draws']:,} times. Groups: {sizes}."
    return [Table(columns, rows, title="Within and between named groups", caption=caption)]


def _membership(result: "CompareResult") -> Table:
    group = {k: number for number, members in enumerate(result.groups, 1) for k in members}
    clusters = result.clusters["clusters"] if result.clusters else [list(range(len(result.adapters)))]
    cluster = {k: number for number, members in enumerate(clusters, 1) for k in members}
    columns = (
        Column("label", "adapter"), Column("group", "initialisation", "int", help="adapters that began from one A"),
        Column("cluster", "cluster", "int", help="by left overlap above chance"),
    )  # fmt: skip
    rows = tuple((result.label(k), group[k], cluster[k]) for k in range(len(result.adapters)))
    return Table(columns, rows, title="Groups", where="page")


def _left_out(result: "CompareResult") -> list[Block]:
    made: list[Block] = []
    if result.unmatched:
        rows = tuple(
            (item["name"], _listed(item["in"]), item.get("reason") or f"missing in {_listed(item['missing_in'])}")
            for item in result.unmatched
        )
        columns = (Column("name", "module", "code"), Column("in", "in"), Column("why", "why"))
        made.append(Table(columns, rows, title="On one side only", where="page"))
    if result.not_compared:
        rows = tuple((item["name"], item["adapter"], item["reason"]) for item in result.not_compared)
        columns = (Column("name", "key", "code"), Column("adapter", "adapter"), Column("reason", "why"))
        made.append(Table(columns, rows, title="Not compared", where="page"))
    return made


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
