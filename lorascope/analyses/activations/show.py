"""The result in words and drawn: what cannot be trusted first, then what ΔW does and how far hidden states moved."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lorascope.analyses import rules
from lorascope.analyses.activations.measure import (
    CKA_METRICS,
    LAYER_METRICS,
    METRICS,
    ActivationsResult,
    ModuleResponse,
)
from lorascope.analyses.base import definitions
from lorascope.analyses.toolkit import (
    TYPE,
    column,
    depth_map,
    digits,
    group,
    inputs,
    mean,
    percent,
    pick,
    plural,
    skipped_table,
    table,
    type_table,
    value,
)
from lorascope.blocks import (
    Block,
    Column,
    Definitions,
    Facts,
    Finding,
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
)
from lorascope.errors import preview

BIASED_REPORT_BOUND = 0.05  # what unrelated hidden states would get from the biased estimator
FEW = 2  # runs of which more is told than the table shows
UNLIKELY = 4.0  # standard deviations
NOT_MAPPED = ("uses", "chance_cosine")  # the same in every layer of a type
MAX_PAIRS = 6  # columns on the terminal
BY_TYPE = ("share.mean", "chance_share", "weight_ratio", "update_gain", "base_gain", "cosine.mean", "chance_cosine")


def heading(result: ActivationsResult) -> tuple[str, str]:
    title = " and ".join(result.runs) if len(result.runs) <= 2 else f"{len(result.runs)} runs"
    return (
        title,
        f"{plural(len(result.modules), 'updated layer')}, {result.layers} hidden states, {result.texts:,} texts",
    )


# --- in words --------------------------------------------------------------------------------------------------------


def findings(result: ActivationsResult) -> list[Finding]:
    few, items = len(result.runs) <= FEW, []
    for label in result.runs:
        items += [*_share(result, label, few), *(_where(result, label) if few else ())]
    limits = (*_samples(result), *_skipped(result), *(Finding("note", note) for note in result.notes))
    return [*items, *_cka(result), *limits]


def _skipped(result: ActivationsResult) -> list[Finding]:
    items = []
    for label, skipped in group(result.skipped, "adapter").items():
        for reason, updates in group(skipped, "reason").items():
            names = preview([item.name for item in updates], 1)
            items.append(Finding("note", f"{label}: {plural(len(updates), 'update')} skipped ({names}): {reason}"))
    return items


def _samples(result: ActivationsResult) -> list[Finding]:
    chances = [one.cka.biased_chance for one in result.similarities if one.cka.biased_chance is not None]
    items = []
    if chances and max(chances) > BIASED_REPORT_BOUND:
        text = (
            f"{result.samples:,} samples for {result.width} features are few: the usual, biased CKA of unrelated states"
            f" would be up to {max(chances):.2f} here; debiased it is 0 on average"
        )
        fewer = result.samples < result.width
        action = "Give more texts, and read the debiased CKA" if fewer else ""
        items.append(rules.FEW_SAMPLES.finding(text, "warning" if fewer else "note", action=action))
    if result.samples > result.texts:
        text = f"{result.samples:,} tokens from {result.texts:,} texts: tokens of the same text are not independent;"
        text += f" confidence intervals and chance levels use {result.texts:,} texts as samples"
        items.append(Finding("note", text))
    return items


def _share(result: ActivationsResult, label: str, few: bool) -> list[Finding]:
    modules = [m for m in result.of(label) if m.share]
    if not modules:
        action = "Check that the adapter is of this model, and that --modules does not leave its layers out"
        return [rules.NO_INPUTS.finding(f"{label}: no adapted layer received inputs", action=action)]
    share, chance, weights = (
        np.median([number for m in modules if (number := value(m, key)) is not None])
        for key in ("share.mean", "chance_share", "weight_ratio")
    )
    text = (
        f"{label}: in the median layer ‖ΔW x‖ is {percent(share)} of ‖W x‖ on real inputs; a random ΔW of the same norm"
        f" would give {percent(chance)}, and ‖ΔW‖/‖W‖ is {percent(weights)}"
    )
    items = [Finding("note", text)]
    return [*items, *_gains(label, modules), *_cosines(label, modules)] if few else items


def _gains(label: str, modules: Sequence[ModuleResponse]) -> list[Finding]:
    gains = [(m.update_gain, m.base_gain) for m in modules if m.update_gain and m.base_gain]
    if not gains:
        return []
    update, base = np.median(gains, axis=0)
    text = f"{label}: on real inputs ΔW has {update:.2g}× the effect of a random ΔW of equal norm"
    return [Finding("note", f"{text} (W: {base:.2g}×; medians over layers)")]


def _cosines(label: str, modules: Sequence[ModuleResponse]) -> list[Finding]:
    cosines = [(m.cosine["mean"], m.chance_cosine, m.name) for m in modules if m.cosine]
    strong = [each for each in cosines if abs(each[0]) > UNLIKELY * each[1]]
    if not strong:
        return []
    cosine, chance, name = max(strong, key=lambda each: abs(each[0]))
    text = (
        f"{label}: in {len(strong)} of {len(cosines)} layers the mean cosine of ΔW x with W x is beyond"
        f" {UNLIKELY:g}/√d_out; largest {cosine:.2f} in {name} (one token by chance ±{chance:.2f}): there ΔW"
        f" {'amplifies' if cosine > 0 else 'takes away from'} the output of W"
    )
    return [Finding("note", text)]


def _where(result: ActivationsResult, label: str) -> list[Finding]:
    """The module type with the largest share, and the one with the smallest."""
    types = group([m for m in result.of(label) if m.share])
    if len(types) < 2:
        return []
    means = {name: float(np.mean([value(m, "share.mean") for m in modules])) for name, modules in types.items()}
    most, least = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    text = f"{label}: mean ‖ΔW x‖/‖W x‖ is largest in {most} ({percent(means[most])})"
    return [Finding("note", f"{text} and smallest in {least} ({percent(means[least])})")]


def _cka(result: ActivationsResult) -> list[Finding]:
    """For every pair the layer where they are least alike."""
    items = []
    for a, b in result.pairs:
        if a != "base" and len(result.runs) > FEW + 1:
            continue  # the table and the page have them
        with_cka = [(one.cka.value, one) for one in result.similarity(a, b) if one.cka.value is not None]
        if not with_cka:
            continue
        lowest, low = min(with_cka, key=lambda each: each[0])
        interval = "" if low.cka.low is None else f" ({low.cka.low:.3f} to {low.cka.high:.3f})"
        text = f"{a} and {b}: lowest CKA after layer {low.layer} of {result.layers - 1}, {lowest:.3f}{interval}"
        if low is not with_cka[-1][1]:
            text += f"; after the last {with_cka[-1][0]:.3f}"
        if lowest < UNLIKELY * low.cka.chance_sd:
            text += " (chance level)"
        items.append(Finding("note", text))
    return items


# --- drawn -----------------------------------------------------------------------------------------------------------


def blocks(result: ActivationsResult) -> tuple[Block, ...]:
    """The page in reading order."""
    drawn: list[Block] = [Tiles(tiles(result)), Findings(result.findings)]
    if result.modules:
        drawn += [_by_type(result), Heading("Effect of ΔW on real inputs", where="page"), shares(result)]
        for run in result.runs:
            text = f"{run} updates fewer than two numbered layers: no map by depth."
            drawn.append(_map(result, run) or Text(text, where="page"))
    drawn += [Heading("Hidden states", where="page"), _short(result), similarities(result), cka_heatmap(result)]
    drawn += [_cka_table(result), *([_all(result)] if result.modules else [])]
    if result.skipped:
        drawn.append(skipped_table(result.skipped, what="update"))
    return (*drawn, Definitions(definitions(METRICS), where="page"), _facts(result))


def tiles(result: ActivationsResult) -> tuple[Tile, ...]:
    """The first screen's numbers: of the run whose ΔW does most on real inputs, and the lowest CKA with the base."""
    runs = {label: each for label, each in result.summary()["runs"].items() if each["median_share"] is not None}
    made = []
    if runs:
        label = max(runs, key=lambda label: runs[label]["median_share"])
        most, of = runs[label], f"{label}, " if len(result.runs) > 1 else ""
        note = f"{of}median layer; random ΔW {percent(most['median_chance_share'], 3)}"
        made.append(Tile("Effect ‖ΔW x‖/‖W x‖", percent(most["median_share"], 3), note, "share.mean"))
        if (weights := most["median_weight_ratio"]) is not None:
            made.append(
                Tile("Update size ‖ΔW‖/‖W‖", percent(weights, 3), f"{of}median layer, no inputs", "weight_ratio")
            )
        if (gain := most["median_update_gain"]) is not None:
            base = most["median_base_gain"]
            note = f"{of}median layer" + ("" if base is None else f"; W itself {digits(base)}×")
            made.append(Tile("Effect over a random ΔW", f"{digits(gain, 3)}×", note, "update_gain"))
    known = [one for one in result.similarities if one.a == "base" and one.cka.value is not None]
    if known:
        low = min(known, key=lambda one: one.cka.value or 0.0)
        of = f"{low.b}, " if len(result.runs) > 1 else ""
        note = f"{of}after layer {low.layer} of {result.layers - 1}; chance 0 ± {digits(low.cka.chance_sd)}"
        made.append(Tile("Lowest CKA with the base", f"{low.cka.value:.3f}".replace("-", "−"), note, "value"))
    return tuple(made)


def _facts(result: ActivationsResult) -> Facts:
    sample = "the mean over a text's tokens" if result.pooled else "one token"
    items = [
        *((label, result.methods[label]) for label in result.runs),
        ("texts", result.source),
        ("shares over", f"{result.tokens:,} tokens"),
        ("CKA over", f"{result.samples:,} samples from {result.texts:,} texts; a sample is {sample}"),
        ("hidden states", f"{result.layers} of width {result.width}"),
    ]
    return inputs(items)


def _by_type(result: ActivationsResult) -> Table:
    caption = "Means over the modules of a type, each a mean over tokens. Chance: a random ΔW of the same norm."
    return type_table(
        result.modules, pick(LAYER_METRICS, BY_TYPE), caption,
        title="Effect of ΔW, by module type", by=(Column("run", "run", "code"), TYPE), average=mean,
    )  # fmt: skip


def shares(result: ActivationsResult) -> Lines:
    """Share by depth, a panel for each type: every run on real inputs, and the mean of what random ΔW would give. Of
    one run also the spread over tokens, and ‖ΔW‖/‖W‖."""
    alone = len(result.runs) == 1
    series = []
    for name, of_type in group([m for m in result.modules if m.depth is not None and m.share]).items():
        for run, modules in group(of_type, "run").items():
            line = _by_depth("on real inputs" if alone else run, modules, "share.mean", name)
            if alone:
                low, high = (_by_depth("", modules, f"share.{q}", name).y for q in ("q05", "q95"))
                line = replace(line, low=low, high=high)
                series.append(_by_depth("‖ΔW‖/‖W‖", modules, "weight_ratio", name))
            series.append(line)
        label = "random ΔW of this norm" if alone else "random ΔW of these norms, mean"
        series.append(replace(_by_depth(label, of_type, "chance_share", name), weight="reference"))
    return Lines(
        "Relative contribution of ΔW to each layer's output", tuple(series), "layer", "‖ΔWx‖/‖Wx‖", where="page",
        log_y=True, caption="Above the dashed line, ΔW is aligned with high-variance input directions."
        + (" The band holds 5 to 95 % of the tokens." if alone else ""),
    )  # fmt: skip


def _by_depth(label: str, modules: Sequence[ModuleResponse], key: str, panel: str) -> Series:
    """The mean at every depth."""
    depths = sorted({m.depth for m in modules if m.depth is not None})
    y = tuple(mean(value(m, key) for m in modules if m.depth == d) for d in depths)
    return Series(label, tuple(float(d) for d in depths), y, panel)


def _map(result: ActivationsResult, run: str) -> Heatmap | None:
    metrics = [metric for metric in LAYER_METRICS if metric.key not in NOT_MAPPED]
    caption = "Empty cells are not updated, or skipped."
    return depth_map(result.of(run), metrics, title=f"Module type × layer: {run}", caption=caption)


def heatmap(result: ActivationsResult) -> Heatmap | None:
    """A depth × type grid of the first run that has one."""
    return next((drawn for run in result.runs if (drawn := _map(result, run))), None)


def similarities(result: ActivationsResult) -> Lines:
    """Debiased CKA by layer, a line for each pair."""
    series = []
    for a, b in result.pairs:
        of_pair = result.similarity(a, b)
        x, y = tuple(float(one.layer) for one in of_pair), tuple(one.cka.value for one in of_pair)
        low, high = tuple(one.cka.low for one in of_pair), tuple(one.cka.high for one in of_pair)
        banded = all(end is not None for end in (*low, *high))
        series.append(Series(of_pair[0].pair, x, y, low=low if banded else None, high=high if banded else None))
    return Lines(
        "CKA of hidden states", tuple(series), "layer (0: embeddings)", "debiased linear CKA", where="page",
        markers=(Marker("y", 0.0, "chance"),),
        caption="Bands: 95 % CI over texts. CKA = 1: identical up to rotation and scale. Layers are counted by their"
        " outputs here, so that layer k is number k − 1 in the figures of ΔW.",
    )  # fmt: skip


def _grid(result: ActivationsResult, pairs: Sequence[tuple[str, str]], key: str) -> list[tuple]:
    """A row for each layer with hidden states, a column for each pair."""
    columns = [[getattr(one.cka, key) for one in result.similarity(a, b)] for a, b in pairs]
    return list(zip(*columns, strict=True))


def _layer_names(result: ActivationsResult) -> tuple[str, ...]:
    return tuple("embeddings" if layer == 0 else str(layer) for layer in range(result.layers))


def cka_heatmap(result: ActivationsResult) -> Heatmap:
    """Layer × pair, debiased and biased."""
    chances = [one.cka.biased_chance for one in result.similarities if one.cka.biased_chance is not None]
    marks: dict[str, tuple[tuple[float, str], ...]] = {
        "value": ((0.0, "chance"),),
        "biased": ((max(chances), "unrelated, biased"),) if chances else (),
        "biased_chance": (),
    }
    measures = tuple(
        Measure(m.key, m.title, tuple(_grid(result, result.pairs, m.key)), marks=marks[m.key], help=m.help)
        for m in CKA_METRICS
        if m.key in marks
    )
    columns = tuple(f"{a} · {b}" for a, b in result.pairs)
    return Heatmap(
        "CKA: layer × pair", _layer_names(result), columns, measures, "after layer", "models", where="page"
    )  # fmt: skip


def _short(result: ActivationsResult) -> Table:
    """For the terminal: a row for each layer, a column for each pair."""
    pairs = result.pairs[:MAX_PAIRS]
    of_pairs = (Column(f"pair{i}", f"{a} · {b}", "float", 4) for i, (a, b) in enumerate(pairs))
    columns = (Column("layer", "after layer"), *of_pairs)
    grid = _grid(result, pairs, "value")
    rows = tuple((name, *numbers) for name, numbers in zip(_layer_names(result), grid, strict=True))
    spread = max((one.cka.chance_sd for one in result.similarities), default=0.0)
    caption = f"By chance 0 ± {spread:.3f}. Intervals and the biased estimator are in --csv and on the page."
    if len(result.pairs) > len(pairs):
        caption += f" {len(result.pairs) - len(pairs)} more pairs are there, too."
    return Table(columns, rows, title="CKA of hidden states (debiased)", caption=caption, where="terminal")


def _cka_table(result: ActivationsResult) -> Table:
    metrics = (column(m, 3 if m.key.endswith(("sd", "chance")) else 4) for m in CKA_METRICS)
    columns = (Column("pair", "models", "code"), Column("layer", "layer", "int"), *metrics)
    rows = [{"pair": one.pair, **one.record()} for one in result.similarities]
    return table(rows, columns, "Hidden states, by layer (0: the embeddings)", interactive=True, where="page")


def _all(result: ActivationsResult) -> Table:
    columns = (Column("run", "run", "code"), Column("name", "layer", "code"), Column("shape", "shape"), *LAYER_METRICS)
    return table(result.modules, columns, "All updated layers", interactive=True, where="page")


PLOTS = {"share": shares, "cka": similarities, "heatmap": heatmap, "cka_heatmap": cka_heatmap}
