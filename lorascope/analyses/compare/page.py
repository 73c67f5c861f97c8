"""The result as blocks: the same data for the terminal, the page and the figures."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lorascope.analyses.base import Metric, definitions
from lorascope.analyses.compare.inputs import MATCHING
from lorascope.analyses.compare.metrics import COLUMNS, METRICS
from lorascope.analyses.compare.result import CompareResult, Pair, joined
from lorascope.analyses.compare.similarity import similarity
from lorascope.analyses.compare.summary import RATE, SIDES
from lorascope.analyses.toolkit import (
    Row,
    both_ends,
    column,
    depth_map,
    digits,
    group,
    inputs,
    measured,
    median,
    module_table,
    percent,
    pick,
    plural,
    skipped_table,
    type_table,
    value,
)
from lorascope.blocks import (
    Block,
    Column,
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
    Tile,
    Tiles,
    Where,
)

TITLES = {"left": "left (output) side of ΔW", "right": "right (input) side of ΔW", "a_alone": "A alone, as in Hu 2021"}
ROWS_AT_EACH_END = 4
MAX_TYPES = 12
MAX_PAIR_PAGES = 3
NOISE = 3.0  # of z, which has a standard deviation of about 1 in a module, and less in a mean over modules
MAX_PAIRS_LISTED = 40
_SHORT = ("cosine", "cosine_sd", "left.phi_whole", "left.phi_chance", "left.z", "right.phi_whole", "right.phi_chance",
          "right.z")  # fmt: skip
_MAPPED = ("cosine", "left.phi_whole", "left.energy_overlap.value", "right.phi_whole", "right.energy_overlap.value",
           "a_alone.phi_whole", "initialisation.row_cosine", "left.z", "right.z")  # fmt: skip
# Of a pair, over all modules.
_PAIRWISE = (
    Metric("left_effect", "left, above chance", help="Σ(φ − chance)/Σ(1 − chance) over modules"),
    Metric("right_effect", "right, above chance", help="Σ(φ − chance)/Σ(1 − chance) over modules"),
    Metric("left", "left φ", help="mean over modules", null="left_chance"),
    Metric("right", "right φ", help="mean over modules", null="right_chance"),
    Metric("cosine", "cosine", help="⟨ΔW_a, ΔW_b⟩/(‖·‖‖·‖) over all modules together"),
    Metric("row_cosine", "A rows (initialisation)", help="mean cosine of A's rows one by one"),
)


def heading(result: CompareResult) -> tuple[str, str]:
    count = len(result.adapters)
    most = max(pair.summary["modules"] for pair in result.pairs)
    without = f"; {len(partly)} not in all adapters" if (partly := result.skipped_in(MATCHING)) else ""
    if count == 2:
        labels = " and ".join(one["label"] for one in result.adapters)
        return labels, f"{_verdict(result)} {plural(most, 'module')} compared{without}"
    text = f"{_verdict(result)} {len(result.pairs)} pairs, up to {plural(most, 'module')} in common{without}"
    return f"{count} adapters", text


def _verdict(result: CompareResult) -> str:
    """The verdict that the findings end with."""
    return f"{result.findings[-1].text}."


def blocks(result: CompareResult) -> tuple[Block, ...]:
    """The page in reading order."""
    verdict = result.findings[-1]
    made: list[Block] = [Tiles(tiles(result)), Findings(result.findings[:-1])]  # the verdict is in the heading
    made += [Text(f"{verdict.action}.", where="page")] if verdict.action else []
    if len(result.adapters) > 2:
        made += [_pairs(result), *_by_label(result), pairwise(result), _membership(result)]
    detailed = [pair for pair in _ordered(result) if pair.modules]
    if len(detailed) > MAX_PAIR_PAGES:
        text = f"The {MAX_PAIR_PAGES} most similar of {len(detailed)} pairs follow, module by module; --json has all."
        made.append(Text(text, where="page"))
    for pair in detailed[:MAX_PAIR_PAGES]:
        made += _pair(result, pair)
    if partly := result.skipped_in(MATCHING):
        title = "Modules present in only one adapter" if len(result.adapters) == 2 else "Modules not in all adapters"
        made.append(skipped_table(partly, title, "module"))
    if others := result.skipped_in():
        made.append(skipped_table(others))
    action = f" {verdict.action}." if verdict.action else ""
    made.append(Text(f"Verdict: {_verdict(result)}{action}", where="terminal"))
    return (*made, Definitions(definitions(METRICS), where="page"), _facts(result))


def tiles(result: CompareResult) -> tuple[Tile, ...]:
    """The first screen's numbers: how alike two adapters are, or how many pairs are."""
    return _tiles_of_many(result) if len(result.adapters) > 2 else _tiles_of_two(result.pairs[0])


def _tiles_of_two(pair: Pair) -> tuple[Tile, ...]:
    summary, made = pair.summary, []
    if summary["cosine"] is not None:
        note = "over all modules"
        if (sd := median(row["cosine_sd"] for row in pair.modules or ())) is not None:
            note = f"median module {digits(summary['median_cosine'])}; chance 0 ± {digits(sd)}"
        made.append(Tile("Cosine of the updates", digits(summary["cosine"], 3), note, "cosine"))
    for side, name in (("left", "Left φ (outputs)"), ("right", "Right φ (inputs)")):
        of = "median" if pair.modules is not None else "mean"
        if (phi := summary[side][f"{of}_phi"]) is not None:
            note = f"{of}; chance {digits(summary[side][f'{of}_phi_chance'])}"
            made.append(Tile(name, digits(phi, 3), note, f"{side}.phi_whole"))
    if pair.modules is not None:
        if (left := summary["left"])["of"]:
            note = f"left φ, at {percent(RATE)} false discoveries"
            made.append(Tile("Modules above chance", f"{left['significant']} of {left['of']}", note, "left.q"))
        shared = summary["shared_initialisation"]  # of one update stored twice it says nothing
        if (of := shared["of"]) and shared["median_row_cosine"] is not None and summary["relation"] is None:
            note = f"median row cosine {digits(shared['median_row_cosine'])}"
            made.append(
                Tile("Modules with one initial A", f"{shared['modules']} of {of}", note, "initialisation.row_cosine")
            )
    return tuple(made)


def _tiles_of_many(result: CompareResult) -> tuple[Tile, ...]:
    pairs, matrices = result.pairs, result.matrices
    beyond = sum(similarity(pair, len(pairs)) != "chance" for pair in pairs)
    made = [
        Tile("Pairs", f"{len(pairs):,}", f"of {len(result.adapters)} adapters"),
        Tile("Pairs beyond chance", f"{beyond:,} of {len(pairs):,}", "false alarms: 1 % of all", "left.q"),
    ]
    top = _ordered(result)[0]
    of_left = (matrices.left, matrices.left_chance, matrices.left_z)
    phi, chance, z = (_finite(matrix[top.a, top.b]) for matrix in of_left)
    if phi is not None:
        note = f"chance {digits(chance)}, z {digits(z)}"
        made.append(Tile("Left φ of the nearest pair", digits(phi, 3), note, "left.phi_whole"))
    of = f"of {len(result.adapters)} adapters"
    made.append(Tile("Initialisations", str(len(result.groups)), of, "initialisation.row_cosine"))
    if result.clusters:
        made.append(Tile("Clusters", str(len(result.clusters["clusters"])), "by left φ above chance", "left.effect"))
    return tuple(made)


def _facts(result: CompareResult) -> Facts:
    items = [
        (one["label"], f"{one['method']} ({one['format']}), sha256 {(one['sha256'] or 'not hashed')[:12]}")
        for one in result.adapters[:MAX_PAIRS_LISTED]
    ]
    if len(result.adapters) > MAX_PAIRS_LISTED:
        items.append(("and", f"{len(result.adapters) - MAX_PAIRS_LISTED} more"))
    items.append(("base model", result.base or "not given"))
    return inputs(items)


# --- one pair ---------------------------------------------------------------------------------------------------------


def _pair(result: CompareResult, pair: Pair) -> list[Block]:
    rows = list(pair.modules or ())
    shown = measured(COLUMNS, rows)
    short = pick(shown, _SHORT)
    labels = result.label(pair.a), result.label(pair.b)
    several = len(result.pairs) > 1
    where: Where = "page" if several else "both"
    caption = 'Median over the modules of each type. "chance": expected value for random subspaces.'
    made: list[Block] = [Heading(" and ".join(labels), where="page")] if several else []
    made.append(type_table(rows, short, caption, where=where))
    made += [] if several else [_ends(rows, short)]
    level = 3 if several else 2
    made += _directions(rows, *labels, level)
    by_depth = [figure for figure in (_overlap_by_depth(rows), _depth_map(rows)) if figure]
    made += [Heading("Agreement by layer", level, where="page"), *by_depth] if by_depth else []
    ranks = Column("rank", "ranks")
    return [
        *made,
        Heading("All modules", level, where="page"),
        module_table("All modules", [joined(row) for row in rows], (ranks, *shown)),
    ]


def _ends(rows: Sequence[Row], metrics: Sequence[Metric]) -> Table:
    """The modules most and least similar on the left, for the terminal."""
    chosen, hidden = both_ends(rows, "left.z", ROWS_AT_EACH_END)
    metrics = [metric for metric in metrics if metric.key != "cosine_sd"]
    body = tuple((row["depth"], row["type"], *(value(row, metric.key) for metric in metrics)) for row in chosen)
    columns = (Column("depth", "layer", "int"), Column("type", "module type"), *map(column, metrics))
    title = "Modules by z of the left overlap" if not hidden else "Top and bottom modules by z of the left overlap"
    caption = f"{hidden} modules between them are not shown (--csv)" if hidden else ""
    return Table(columns, body, title=title, caption=caption, where="terminal")


def _directions(rows: Sequence[Row], a: str, b: str, level: int) -> list[Block]:
    """φ(i, j) of all sides next to each other, and the principal angles."""
    maps = [each for side in SIDES if (each := _phi(rows, side))]
    if not maps:
        return []
    about = (
        f"φ(i, j): overlap of the i leading directions of {a} with the j leading ones of {b}. Random subspaces give"
        " max(i, j)/n on average (range marked on the colour scale); z is the distance from that. Blank where equal"
        " singular values leave the order open."
    )
    angles = _angles(rows)
    return [
        Heading("Leading directions", level, where="page"),
        Text(about, where="page"),
        *maps,
        *([angles] if angles else []),
    ]


def _phi(rows: Sequence[Row], side: str) -> Heatmap | None:
    """φ(i, j) of one side, mean over the modules of a type, the chance levels marked on the scale; z of all first."""
    sides = [row[side] for row in rows if row[side]]
    if not sides:
        return None
    size = min(len(each["phi"]) for each in sides), min(len(each["phi"][0]) for each in sides)  # that all modules have
    by_type = group([row for row in rows if row[side]])
    groups = {"all modules": rows, **by_type} if len(by_type) > 1 else by_type
    measures: list[Measure] = []
    for name, members in list(groups.items())[: MAX_TYPES + 1]:
        those = [row[side] for row in members if row[side]]
        chance = float(np.mean([1 / each["dimension"] for each in those]))  # of a mean over modules of several widths
        marks = ((chance, "chance φ(1,1)"), (max(size) * chance, f"chance φ({size[0]},{size[1]})"))
        about = f"φ(i, j) of the {TITLES[side]}, mean over {len(those)} modules"
        grid = _mean_grid([each["phi"] for each in those], size)
        measures.append(Measure(name, name, grid, help=about, marks=marks, limits=(0.0, 1.0)))
        if name == "all modules" or len(groups) == 1:
            z = _mean_grid([each["phi_z"] for each in those], size)
            measures.insert(0, _z_map(name, z))
    i, j = (tuple(str(k + 1) for k in range(count)) for count in size)
    return Heatmap(f"φ(i, j), {TITLES[side]}", i, j, tuple(measures), "i", "j", third=True, where="page")


def _z_map(name: str, z: tuple[tuple[float | None, ...], ...]) -> Measure:
    """z on a scale of ±NOISE at least, so that what chance gives is one shade."""
    known = [number for line in z for number in line if number is not None]
    limits = (min(-NOISE, *known), max(NOISE, *known)) if known else None
    about = "(φ − chance)/sd, mean over modules: by chance 0, and hardly beyond ±3"
    return Measure(f"{name} z", f"z, {name}", z, help=about, marks=((0.0, "chance"),), limits=limits)


def _mean_grid(grids: Sequence[list], size: tuple[int, int]) -> tuple[tuple[float | None, ...], ...]:
    cut = np.array([[line[: size[1]] for line in grid[: size[0]]] for grid in grids], dtype=float)
    count = np.isfinite(cut).sum(axis=0)
    mean = np.nansum(cut, axis=0) / np.maximum(count, 1)
    return tuple(
        tuple(float(v) if k else None for v, k in zip(*line, strict=True)) for line in zip(mean, count, strict=True)
    )


def _angles(rows: Sequence[Row]) -> Lines | None:
    """Every module's principal angles in degrees, a panel a side, the smallest that chance gives as a line."""
    if not rows:
        return None
    series: list[Series] = []
    markers: list[Marker] = []
    for side in SIDES:
        those = [(row["name"], row[side]) for row in rows if row[side]]
        for name, each in those:
            angles = np.degrees(each["principal_angles"])
            x, y = tuple(range(1, len(angles) + 1)), tuple(angles.tolist())
            series.append(Series(name, x, y, TITLES[side], "thin" if len(those) > 1 else "normal"))
        if those:
            least = float(np.degrees(min(each["smallest_angle_chance"] for _, each in those)))
            markers.append(Marker("y", least, "smallest expected by chance", TITLES[side]))
    caption = (
        "One line for each module. Dotted line: smallest angle expected between random subspaces, for the module with"
        " the widest subspaces for its size."
    )
    return Lines("Principal angles", tuple(series), "index k", "θₖ, degrees", markers=tuple(markers), caption=caption,
                 shade="depth, first to last", where="page")  # fmt: skip


def _overlap_by_depth(rows: Sequence[Row]) -> Lines | None:
    """φ of the whole subspaces against depth, a line a type, with the chance level."""
    if len({row["depth"] for row in rows if row["depth"] is not None}) < 2:
        return None
    series: list[Series] = []
    for side in SIDES:
        there = [row for row in rows if row[side] and row["depth"] is not None]
        for name, members in list(group(there).items())[:MAX_TYPES]:
            series.append(Series(name, *_mean_by_depth(members, f"{side}.phi_whole"), TITLES[side]))
        if there:
            series.append(Series("chance", *_mean_by_depth(there, f"{side}.phi_chance"), TITLES[side], "reference"))
    title = "φ of the whole subspaces by depth"
    return Lines(title, tuple(series), "layer", "φ", where="page", caption="Chance is the mean over the types.")


def _mean_by_depth(rows: Sequence[Row], key: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    cells = {depth: float(np.mean([value(row, key) for row in there])) for depth, there in group(rows, "depth").items()}
    return tuple(sorted(cells)), tuple(cells[depth] for depth in sorted(cells))


def _depth_map(rows: Sequence[Row]) -> Heatmap | None:
    metrics = pick(COLUMNS, _MAPPED)
    return depth_map(
        rows,
        metrics,
        title="Agreement, depth × module type",
        caption="Empty cells have no module in common.",
        types=list(group(rows)),
    )


# --- many adapters ----------------------------------------------------------------------------------------------------


def _pairs(result: CompareResult) -> Table:
    """The pairs most similar on the left."""
    columns = (
        Column("a", "a"), Column("b", "b"), Column("modules", "n", "int"), Column("cosine", "cosine", "float"),
        Column("left", "left φ", "float", metric="left.phi_whole"),
        Column("left_chance", "chance", "float", metric="left.phi_chance"),
        Column("left_z", "z", "float", metric="left.pooled_z"),
        Column("right", "right φ", "float", metric="right.phi_whole"),
        Column("right_chance", "chance", "float", metric="right.phi_chance"),
        Column("right_z", "z", "float", metric="left.pooled_z"),
        Column("row_cosine", "A rows", "float", help="mean cosine of A's rows one by one: the initialisation",
               metric="initialisation.row_cosine"),
    )  # fmt: skip
    matrices, ordered = result.matrices, _ordered(result)
    rows = tuple(
        (result.label(p.a), result.label(p.b), *(_finite(getattr(matrices, c.key)[p.a, p.b]) for c in columns[2:]))
        for p in ordered[:MAX_PAIRS_LISTED]
    )
    caption = "φ is the mean over modules, z pooled over them."
    if len(ordered) > MAX_PAIRS_LISTED:
        caption += f" The first {MAX_PAIRS_LISTED} of {len(ordered)} pairs."
    return Table(columns, rows, title="Pairs, most similar on the left first", caption=caption)


def _ordered(result: CompareResult) -> list[Pair]:
    """The pairs, most similar on the left first."""
    effects = result.matrices.left_effect
    return sorted(result.pairs, key=lambda pair: -_finite(effects[pair.a, pair.b], -2.0))


def _finite(number: float, otherwise: Any = None) -> Any:
    return float(number) if np.isfinite(number) else otherwise


def pairwise(result: CompareResult) -> Heatmap:
    """Every adapter against every other, in the order of the clusters."""
    order = result.clusters["order"] if result.clusters else list(range(len(result.adapters)))
    names = tuple(result.label(k) for k in order)
    measures = []
    for metric in _PAIRWISE:
        matrix = getattr(result.matrices, metric.key)[np.ix_(order, order)].copy()
        np.fill_diagonal(matrix, np.nan)  # everything agrees with itself, and would stretch the scale
        values = tuple(tuple(_finite(v) for v in row) for row in matrix)
        chance = getattr(result.matrices, metric.null) if metric.null else None
        marks = ((float(np.nanmedian(chance)), "chance"),) if chance is not None else ()
        measures.append(Measure(metric.key, metric.title, values, help=metric.help, marks=marks))
    caption = "In the order of the tree: average linkage on the left overlap above chance."
    return Heatmap("Pairwise similarity", names, names, tuple(measures), "adapter", "adapter", caption, where="page")


def _by_label(result: CompareResult) -> list[Block]:
    """Agreement within and between named groups."""
    if result.by_label is None:
        return []
    columns = (Column("measure", "metric"), Column("pairs", "pairs"), Column("mean", "mean", "float"),
               Column("low", "95 % from", "float"), Column("high", "to", "float"),
               Column("p", "p", "float", help="labels permuted over adapters, two-sided"))  # fmt: skip
    rows = tuple(
        (key.replace("_", " "), where, *(about[where][part] for part in ("mean", "low", "high")),
         about["p"] if where == "difference" else None)
        for key, about in result.by_label["measures"].items()
        for where in ("within", "between", "difference")
    )  # fmt: skip
    sizes = "; ".join(f"{name or '(empty)'}: {len(who)}" for name, who in result.by_label["groups"].items())
    caption = f"Adapters resampled within each group, {result.by_label['draws']:,} times. Groups: {sizes}."
    return [Table(columns, rows, title="Within and between named groups", caption=caption)]


def _membership(result: CompareResult) -> Table:
    clusters = result.clusters["clusters"] if result.clusters else [list(range(len(result.adapters)))]
    of_group, of_cluster = (
        {k: number for number, members in enumerate(each, 1) for k in members} for each in (result.groups, clusters)
    )
    columns = (
        Column("label", "adapter"), Column("group", "initialisation", "int", help="adapters with one initial A"),
        Column("cluster", "cluster", "int", help="by left overlap above chance"),
    )  # fmt: skip
    rows = tuple((result.label(k), of_group[k], of_cluster[k]) for k in range(len(result.adapters)))
    return Table(columns, rows, title="Groups", where="page")


# --- figures by name --------------------------------------------------------------------------------------------------


def _first(result: CompareResult) -> list[Row]:
    """The modules of the first pair that has records."""
    return next((result.rows_of(pair) for pair in result.pairs if pair.modules), [])


PLOTS: dict[str, Callable[[CompareResult], Lines | Heatmap | None]] = {
    "heatmap": lambda result: pairwise(result) if len(result.adapters) > 2 else _depth_map(_first(result)),
    "overlap": lambda result: _overlap_by_depth(_first(result)),
    "angles": lambda result: _angles(_first(result)),
    "phi": lambda result: _phi(rows, "left") if (rows := _first(result)) else None,
}
