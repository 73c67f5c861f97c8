"""The result as blocks: the same data for the terminal, the page and the figures."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from lorascope.analyses.base import definitions
from lorascope.analyses.intruders.metrics import METRICS
from lorascope.analyses.intruders.module import ModuleIntruders
from lorascope.analyses.intruders.result import ARMS, Intervention, IntrudersResult
from lorascope.analyses.toolkit import (
    Row,
    depth_map,
    digits,
    group,
    inputs,
    measured,
    median,
    model_name,
    pick,
    plural,
    skipped_table,
    table,
    total,
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
    Series,
    Table,
    Text,
    Tile,
    Tiles,
)

SHOWN_K = (1, 2, 5, 10, 20, 50)
ROWS = 8
MAX_TYPES = 12
_BY_TYPE = ("relative_norm", "spike_margin", "prediction.strength", "lowest_cosine", "chance.left")
_OF_MOST = ("intruders.left", "intruders.right", "lowest_cosine", "intruder_energy_share", "spike_margin",
         "prediction.strength", "prediction.in_top", "relative_norm")  # fmt: skip
_PANELS = {"left": "left (outputs)", "right": "right (inputs)"}
_SCORES = {
    "loss": Column("loss", "held-out loss", "float", 4),
    "accuracy": Column("accuracy", "accuracy", "percent", 4),
    "retained_loss": Column("retained_loss", "loss on other texts", "float", 4),
}


def heading(result: IntrudersResult) -> tuple[str, str]:
    base, tuned = (model_name(result.inputs[side]["path"]) for side in ("base", "tuned"))
    whole = result.summary()
    summary = (
        f"{whole['intruders']['left']} intruders among the {result.k} leading singular vectors of"
        f" {plural(whole['modules'], 'weight')} at ε = {result.epsilon:g}"
    )
    return f"{tuned} over {base}", summary


def blocks(result: IntrudersResult) -> tuple[Block, ...]:
    """The page in reading order."""
    made: list[Block] = [Tiles(tiles(result)), Findings(result.findings)]
    if result.changed:
        records = [result.record_of(module) for module in result.changed]
        no_map = "No layer heatmap: parameter names contain fewer than two layer indices."
        made += [_by_type(result, records), _counts(result), *_most(records)]
        if result.intervention is not None:
            made += _scores(result.intervention)
        made += [Heading("Cosines", where="page"), _against_epsilon(result), _by_position(result)]
        made += [Heading("Strength", where="page"), _strength(result)]
        made += [Heading("Where the intruders are", where="page"), _heatmap(result) or Text(no_map, where="page")]
        made += [Heading("All weights", where="page"), _all(result), _vectors(result)]
    skipped = skipped_table(result.skipped, what="parameter") if result.skipped else None
    made.append(skipped or Text("All weights were analysed.", where="page"))
    return (*made, Definitions(definitions(METRICS), where="page"), _facts(result))


def tiles(result: IntrudersResult) -> tuple[Tile, ...]:
    """The first screen's numbers: how many intruders, in how many weights, and how strong ΔW is against W."""
    whole, made = result.summary(), []
    if whole["slots"]:
        note = f"of the {result.k} leading vectors of each; ε = {result.epsilon:g}"
        made.append(Tile("Intruders", f"{whole['intruders']['left']:,} of {whole['slots']:,}", note, "intruders.left"))
    if whole["changed"]:
        there = f"{whole['modules_with_intruders']['left']} of {whole['changed']}"
        expected = whole["agreement"]["both"] + whole["agreement"]["expected_only"]
        note = f"{expected} expected from the spectra alone"
        made.append(Tile("Weights with an intruder", there, note, "prediction.in_top"))
    if (margin := whole["median_spike_margin"]) is not None:
        note = "median; above about 1 an intruder can enter"
        made.append(Tile("Strength σ₁(ΔW)/σ_k(W)", digits(margin, 3), note, "spike_margin"))
    cosines = [(vector.cosine["left"], module) for module in result.changed for vector in module.vectors]
    if cosines:
        lowest, module = min(cosines, key=lambda each: each[0])
        chance = value(module, "chance.left")
        note = "of all leading vectors" if chance is None else f"a random direction: {digits(chance)}"
        made.append(Tile("Lowest |cos| with W", digits(lowest, 3), note, "lowest_cosine"))
    return tuple(made)


def _facts(result: IntrudersResult) -> Facts:
    methods = sorted({m.method for m in result.rows if m.method})
    error = max((m.error / m.vectors[0].sigma for m in result.rows if m.vectors and m.error is not None), default=0)
    items = [(side, ", ".join(f"{v}" for v in about.values() if v)) for side, about in result.inputs.items()]
    items += [
        ("weights", f"{len(result.rows)}, of which {len(result.changed)} changed"),
        ("compared", f"the {result.k} leading singular vectors of each; ε = {result.epsilon:g}"),
        ("W + ΔW by", f"{', '.join(methods)}; singular values to {error:.1g} of σ₁"),
    ]
    if (cache := result.cache) is not None:
        size = (cache.read_bytes + cache.written_bytes) / 1e6
        where = f" in {cache.folder}" if cache.folder else ", not cached"
        items.append(("SVDs of W", f"{cache.computed} computed, {cache.read} from the cache; {size:.1f} MB{where}"))
    return inputs(items)


def _by_type(result: IntrudersResult, records: Sequence[Row]) -> Table:
    left, right, expected = pick(METRICS, ("intruders.left", "intruders.right", "prediction.in_top"))
    left = replace(left, help=f"left, ε = {result.epsilon:g}")
    vectors = Column("slots", "vectors", "int"), lambda rows: sum(len(row["vectors"]) for row in rows)
    summed = [(metric, total(metric.key)) for metric in (left, right, expected)]
    caption = "Sums, and from ‖ΔW‖/‖W‖ on medians over the weights of each type."
    return type_table(records, (vectors, *summed, *pick(METRICS, _BY_TYPE)), caption)


def _counts(result: IntrudersResult) -> Table:
    """Left intruders for each ε and k."""
    ks = sorted({k for k in (*SHOWN_K, result.k) if k <= result.k})
    columns = (Column("epsilon", "ε", "float"), *(Column(str(k), f"k = {k}", "int") for k in ks))
    rows = tuple((e, *(result.count(e, k) for k in ks)) for e in result.epsilons)
    chance = result.summary()["median_chance"]["left"]
    vectors = ", ".join(str(sum(min(k, len(m.vectors)) for m in result.rows)) for k in ks)
    caption = (
        f"Left singular vectors, over all weights; of {vectors} vectors. Below ε = {chance:.2f} even a random direction"
        " is not counted in most weights."
    )
    return Table(columns, rows, title="Intruders for each ε and k", caption=caption)


def _most(records: Sequence[Row]) -> list[Block]:
    """For the terminal, where there are any."""
    if not any(row["intruders"]["left"] for row in records):
        return []
    order = sorted(records, key=lambda row: (-row["intruders"]["left"], -(row["spike_margin"] or 0)))
    hidden = max(len(order) - ROWS, 0)
    caption = f"{hidden} weights with fewer are not shown (--csv)" if hidden else ""
    columns = (Column("name", "weight", "code"), *pick(METRICS, _OF_MOST))
    return [table(order[:ROWS], columns, "Weights with the most intruders", caption=caption, where="terminal")]


def _all(result: IntrudersResult) -> Table:
    records = [row if row["vectors"] else row | {"intruders": None} for row in result.records()]
    shown = measured(METRICS, records)
    columns = (Column("name", "weight", "code"), Column("shape", "shape"), *shown, Column("notes", "notes"))
    rows = [row | {"notes": "; ".join(row["notes"])} for row in records]
    return table(rows, columns, "All weights", interactive=True, where="page")


def _vectors(result: IntrudersResult) -> Block:
    columns = (
        Column("name", "weight", "code"), Column("position", "position", "int"), Column("sigma", "σ", "float"),
        Column("energy_share", "of ‖W + ΔW‖²", "percent"),
        Column("cosine.left", "max |cos| left", "float", metric="lowest_cosine"),
        Column("nearest.left", "nearest in W", "int", help="the position in W's spectrum of the nearest vector"),
        Column("cosine.right", "max |cos| right", "float", metric="lowest_cosine"),
        Column("of_base.left", "in W's top", "percent",
               help="share of the left vector in the span of W's 2k leading ones: a mixture of W's own directions"),
        Column("of_change.left", "in ΔW's space", "percent", help="share of the left vector in ΔW's column space"),
    )  # fmt: skip
    rows = [{"name": m.name, **vars(vector)} for m in result.changed for vector in result.of(m)]
    if not rows:
        return Text(f"No vector is an intruder at ε = {result.epsilon:g}.", where="page")
    return table(rows, columns, "The intruders", interactive=True, where="page")


# --- figures ----------------------------------------------------------------------------------------------------------


def _groups(result: IntrudersResult) -> list[tuple[str, list[ModuleIntruders]]]:
    return list(group(result.changed).items())[:MAX_TYPES]


def _against_epsilon(result: IntrudersResult) -> Lines:
    """The share of vectors whose largest |cos| lies below ε, by type and side."""
    grid = np.linspace(0.02, 1, 50)
    series = []
    for side, panel in _PANELS.items():
        for name, modules in _groups(result):
            cosines = np.array([v.cosine[side] for m in modules for v in m.vectors])
            share = tuple(float(np.mean(cosines < e)) for e in grid)
            series.append(Series(name, tuple(grid.tolist()), share, panel))
    chance = result.summary()["median_chance"]
    marks = (
        Marker("x", result.epsilon, f"ε = {result.epsilon:g}"),
        *(Marker("x", chance[side], "chance", panel) for side, panel in _PANELS.items()),
    )
    caption = (
        f"Of the {result.k} leading singular vectors of each weight. Chance is the median of a random direction's"
        " largest |cos|: below it, even random directions are not counted as intruders."
    )
    title = "Share of the leading vectors that are intruders, against ε"
    return Lines(title, tuple(series), "ε", "share", markers=marks, where="page", caption=caption)


def _by_position(result: IntrudersResult) -> Lines:
    series: list[Series] = []
    for name, modules in _groups(result):
        cosines = [[v.cosine["left"] for v in m.vectors] for m in modules]
        if len(modules) > 1:
            series += [
                Series(m.name, tuple(range(1, len(line) + 1)), tuple(line), name, "thin")
                for m, line in zip(modules, cosines, strict=True)
            ]
        width = min(map(len, cosines))
        middle = np.median([line[:width] for line in cosines], axis=0)
        chance = median(value(m, "chance.left") for m in modules)
        series.append(Series("median", tuple(range(1, width + 1)), tuple(middle.tolist()), name))
        series.append(Series("by chance", (1, width), (chance, chance), name, "reference"))
    return Lines(
        "Largest |cos| with W's left singular vectors, by position in W + ΔW", tuple(series), "position", "max |cos|",
        where="page", shade="depth, first to last", markers=(Marker("y", result.epsilon, f"ε = {result.epsilon:g}"),),
        caption="One thin line for each weight. Dips mark directions absent from W.",
    )  # fmt: skip


def _strength(result: IntrudersResult) -> Lines:
    """σ₁(ΔW) against the strength that enters the k leading values; points above the line have entered."""
    points = [(m, m.prediction.threshold) for m in result.changed if m.prediction and m.prediction.threshold > 0]
    series = []
    for label, has_intruders in (("with intruders", True), ("without", False)):
        chosen = [(m, enters) for m, enters in points if bool(result.of(m)) == has_intruders]
        if chosen:
            x, y = tuple(enters for _, enters in chosen), tuple(m.delta_sigma for m, _ in chosen)
            series.append(Series(label, x, y, points=tuple(m.name for m, _ in chosen)))
    if points:
        ends = tuple(end(enters for _, enters in points) for end in (min, max))
        series.append(Series("where it enters", ends, ends, weight="reference"))
    return Lines(
        f"σ₁(ΔW) against the strength that enters the {result.k} leading values of W + ΔW", tuple(series),
        "strength that is expected to enter, θ̄", "σ₁(ΔW)", log_x=True, log_y=True, where="page",
        caption="From W's spectrum alone, assuming directions independent of W. A ΔW aligned with W's own directions"
        " rises without being an intruder.",
    )  # fmt: skip


def _heatmap(result: IntrudersResult) -> Heatmap | None:
    """A depth × type grid of each metric."""
    metrics = [replace(metric, unit="float") if metric.unit == "int" else metric for metric in METRICS]  # means
    caption = "Blank cells are unchanged or absent. Where several weights share a cell (experts), the mean."
    records = [result.record_of(module) for module in result.changed]
    return depth_map(records, metrics, caption=caption, types=list(group(records)))


def _scores(made: Intervention) -> list[Block]:
    """The scores of the intervention: a table of all arms, and a line for each."""
    if not made.points:
        return []
    shown = [column for key, column in _SCORES.items() if key in made.trained]
    columns = (Column("arm", "scaled"), Column("lambda", "λ", "float"), Column("norm", "‖ΔW‖ of trained", "percent"))
    factors = sorted((f for f in made.lambdas() if f != 1), reverse=True)
    rows = [
        {"arm": "trained model (no scaling)", "lambda": 1.0, "norm": 1.0, **made.trained},
        *(made.at(arm, factor) for factor in factors for arm in ARMS),
        {"arm": "base model (ΔW removed)", "lambda": 0.0, "norm": 0.0, **made.base},
    ]
    what = "The top intruder" if made.scaled == "top" else "Every intruder among the leading vectors"
    texts = ", ".join(f"{count} {name}" for name, count in made.texts.items())
    caption = (
        f"{what} of {len(made.modules)} weights, and the controls: neighbour, the nearest leading direction that is not"
        " an intruder; shrink, ΔW as a whole scaled to the norm that the first arm leaves; step, ΔW as a whole shrunk"
        " by the distance that the first arm moves it; random, a random direction of the same size. ‖ΔW‖ over these"
        f" weights.{f' Scores of {texts}.' if texts else ''}"
    )
    scores = table(rows, (*columns, *shown), "Scores with the intruders scaled by λ", caption=caption)
    figures = (_of_scores(made, ("loss", "retained_loss"), "Loss"), _of_scores(made, ("accuracy",), "Accuracy"))
    return [Heading("Scaling the intruders"), scores, *(figure for figure in figures if figure)]


def _of_scores(made: Intervention | None, keys: Sequence[str], what: str) -> Lines | None:
    """A line for each arm, a panel for each set of texts; None where there are no such scores."""
    keys = [key for key in keys if made is not None and made.points and key in made.trained]
    if made is None or not keys:
        return None
    panels = {key: _SCORES[key].title if len(keys) > 1 else "" for key in keys}
    at = tuple(made.lambdas())
    series = [Series(arm, at, tuple(made.at(arm, f)[key] for f in at), panels[key]) for key in keys for arm in ARMS]
    marks = tuple(Marker("y", made.base[key], "base", panels[key] or None) for key in keys)
    caption = "λ = 1 is the trained model; the line of the base is the score without any ΔW."
    return Lines(f"{what} against λ", tuple(series), "λ", what.lower(), markers=marks, where="page", caption=caption)


def _if_changed(draw: Callable[[IntrudersResult], Lines]) -> Callable[[IntrudersResult], Lines | None]:
    return lambda result: draw(result) if result.changed else None


PLOTS: dict[str, Callable[[IntrudersResult], Lines | Heatmap | None]] = {
    "epsilon": _if_changed(_against_epsilon),
    "position": _if_changed(_by_position),
    "strength": _if_changed(_strength),
    "heatmap": _heatmap,
    "loss": lambda result: _of_scores(result.intervention, ("loss", "retained_loss"), "Loss"),
    "accuracy": lambda result: _of_scores(result.intervention, ("accuracy",), "Accuracy"),
}
