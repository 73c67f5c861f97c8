"""The result as blocks: the same data for the terminal, the page and the JSON."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

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
)

if TYPE_CHECKING:
    from lorascope.analyses.activations.result import ActivationsResult, ModuleResponse

# What a layer is listed by: key (dots go into nested records), title, unit, help.
MEASURES = (
    ("share.mean", "‖ΔWx‖/‖Wx‖", "percent", "mean over tokens"),
    ("chance_share", "random ΔW", "percent", "the same by a random ΔW of this norm: ‖ΔW‖_F‖x‖/(√d_in‖Wx‖)"),
    ("weight_ratio", "‖ΔW‖/‖W‖", "percent", "Frobenius norms, no inputs"),
    ("update_gain", "gain of ΔW", "float", "root mean square of ‖ΔWx‖ over that of a random ΔW of its norm"),
    ("base_gain", "gain of W", "float", "the same of W"),
    ("share.q05", "5 %", "percent", "5 % of tokens have a smaller share"),
    ("share.q95", "95 %", "percent", "95 % of tokens have a smaller share"),
    ("share_of_output.mean", "of output", "percent", "‖ΔWx‖/‖(W + ΔW)x‖, mean over tokens"),
    ("cosine.mean", "cosine", "float", "of ΔWx and Wx, mean over tokens"),
    ("chance_cosine", "±chance", "float", "1/√d_out: standard deviation of one token's cosine for a random ΔW"),
    ("uses", "uses", "int", "how often one pass calls the layer"),
)
NOT_MAPPED = ("uses", "chance_cosine")  # the same in every layer of a type
MAX_PAIRS = 6  # columns on the terminal
TERMINAL = ("share.mean", "chance_share", "weight_ratio", "update_gain", "base_gain", "cosine.mean", "chance_cosine")

DEFINITIONS = (
    Definition(
        "Share", "‖ΔW x‖/‖W x‖ and ‖ΔW x‖/‖(W + ΔW) x‖, x the inputs of the layer in the trained model, no bias",
        "mean and quantiles over tokens that are no padding",
    ),
    Definition("Random ΔW", "E‖ΔW x‖² = ‖ΔW‖_F²‖x‖²/d_in for a ΔW whose rows point anywhere", "exact, any rank"),
    Definition("Gain", "√(Σ‖M x‖²/(‖M‖_F² Σ‖x‖²/d_in)): 1 for a random M, √d_in at most", "M = ΔW or W"),
    Definition(
        "CKA, debiased", "HSIC(K, L)/√(HSIC(K, K) HSIC(L, L)), K = XXᵀ, with the unbiased HSIC",
        "Kornblith et al. 2019, arXiv 1905.00414; Song et al. 2012, eq. 5",
    ),
    Definition(
        "CKA by chance", "samples of one side permuted: mean 0, standard deviation √(2/(n(n − 3)))",
        "Mantel's moments of U-centred matrices, Székely and Rizzo 2014",
    ),
    Definition("CKA, biased", "the same with tr(KHLH); by chance tr(KH)tr(LH)/(n − 1) in its place", "for comparison"),
    Definition(
        "Interval", "95 %, texts left out in 20 groups (jackknife): resampling would repeat samples, and each repeated"
        " pair brings the bias back", "Efron and Stein 1981",
    ),
)  # fmt: skip


def blocks(result: "ActivationsResult") -> tuple[Block, ...]:
    """The page in reading order."""
    made: list[Block] = [_facts(result), Findings(result.findings)]
    if result.modules:
        made += [_by_type(result), Heading("What ΔW adds on real inputs", where="page"), _shares(result)]
        made += [*_heatmaps(result)]
    made += [
        Heading("Hidden states", where="page"),
        _short(result),
        _similarities(result),
        _grid(result),
        _cka_table(result),
    ]
    if result.modules:
        made += [_all(result)]
    return (*made, *_left_out(result), Definitions(DEFINITIONS, where="page"))


def value(module: "ModuleResponse", key: str) -> Any:
    """One of MEASURES; None where it could not be computed."""
    name, _, inner = key.partition(".")
    found = getattr(module, name)
    return found.get(inner) if inner and found is not None else found


def _facts(result: "ActivationsResult") -> Facts:
    sample = "the mean over a text's tokens" if result.pooled else "one token"
    items = [
        *((label, result.methods[label]) for label in result.runs),
        ("texts", result.source),
        ("shares over", f"{result.tokens:,} tokens"),
        ("CKA over", f"{result.samples:,} samples from {result.texts:,} texts; a sample is {sample}"),
        ("hidden states", f"{result.layers} of width {result.width}"),
    ]
    return Facts(tuple(items), title="What was looked at", where="page")


def _groups(result: "ActivationsResult", run: str) -> "dict[str, list[ModuleResponse]]":
    found: dict[str, list[ModuleResponse]] = {}
    for module in result.of(run):
        found.setdefault(module.type, []).append(module)
    return found


def _by_type(result: "ActivationsResult") -> Table:
    chosen = [measure for measure in MEASURES if measure[0] in TERMINAL]
    columns = (Column("run", "run", "code"), Column("type", "layer type"), Column("n", "n", "int"))
    columns += tuple(Column(key, title, unit, help=about) for key, title, unit, about in chosen)
    rows = tuple(
        (run, name, len(modules), *(_mean([value(m, key) for m in modules]) for key, *_ in chosen))
        for run in result.runs
        for name, modules in _groups(result, run).items()
    )
    caption = "Means over the layers of a type, each a mean over tokens. Chance: a random ΔW of the same norm."
    return Table(columns, rows, title="What ΔW adds, by layer type", caption=caption)


def _mean(values: list[Any]) -> float | None:
    known = [number for number in values if number is not None]
    return float(np.mean(known)) if known else None


def _shares(result: "ActivationsResult") -> Lines:
    """Share by depth, a panel for each type: every run on real inputs, and the mean of what random ΔW would give. Of
    one run also the spread over tokens, and ‖ΔW‖/‖W‖."""
    alone = len(result.runs) == 1
    known = [m for m in result.modules if m.depth is not None and m.share]
    series = []
    for name in dict.fromkeys(m.type for m in known):
        of_type = [m for m in known if m.type == name]
        for run in result.runs:
            own = [m for m in of_type if m.run == run]
            line = _by_depth("on real inputs" if alone else run, own, "share.mean", name)
            if alone:
                low, high = (_by_depth("", own, f"share.{q}", name).y for q in ("q05", "q95"))
                line = replace(line, low=low, high=high)
                series.append(_by_depth("‖ΔW‖/‖W‖", own, "weight_ratio", name))
            series.append(line)
        label = "random ΔW of this norm" if alone else "random ΔW of these norms, mean"
        series.append(replace(_by_depth(label, of_type, "chance_share", name), weight="reference"))
    return Lines(
        "Share of ΔW in what a layer puts out", tuple(series), "layer", "‖ΔWx‖/‖Wx‖", where="page", log_y=True,
        caption="Above the dashed line training turned ΔW to directions in which inputs are large."
        + (" The band holds 5 to 95 % of the tokens." if alone else ""),
    )  # fmt: skip


def _by_depth(label: str, modules: "list[ModuleResponse]", key: str, panel: str) -> Series:
    """The mean at every depth."""
    depths = sorted({m.depth for m in modules if m.depth is not None})
    y = tuple(_mean([value(m, key) for m in modules if m.depth == d]) for d in depths)
    return Series(label, tuple(float(d) for d in depths), y, panel)


def _heatmaps(result: "ActivationsResult") -> list[Block]:
    """A depth × type grid for each run."""
    made: list[Block] = []
    measures = [each for each in MEASURES if each[0] not in NOT_MAPPED]
    caption = "Empty cells are not updated, or left out."
    for run in result.runs:
        title = f"Depth × layer type: {run}"
        found = depth_by_type(result.of(run), lambda m: (m.depth, m.type), measures, value, caption, title=title)
        none = f"{run} updates fewer than two numbered layers: no map by depth."
        made.append(found or Text(none, where="page"))
    return made


def _similarities(result: "ActivationsResult") -> Lines:
    """Debiased CKA by layer, a line for each pair."""
    series = []
    for a, b in result.pairs:
        found = result.similarity(a, b)
        x, y = tuple(float(one.layer) for one in found), tuple(one.cka.value for one in found)
        low, high = tuple(one.cka.low for one in found), tuple(one.cka.high for one in found)
        banded = all(v is not None for v in (*low, *high))
        series.append(Series(f"{a} · {b}", x, y, low=low if banded else None, high=high if banded else None))
    return Lines(
        "CKA of hidden states", tuple(series), "layer (0: embeddings)", "debiased linear CKA", where="page",
        markers=(Marker("y", 0.0, "chance"),), caption="Bands: 95 % over texts. 1: equal up to a rotation and a scale.",
    )  # fmt: skip


def _grid(result: "ActivationsResult") -> Heatmap:
    """Layer × pair, debiased and biased."""

    def grid(key: str) -> tuple[tuple[Any, ...], ...]:
        columns = [[getattr(one.cka, key) for one in result.similarity(a, b)] for a, b in result.pairs]
        return tuple(zip(*columns, strict=True))

    chances = [one.cka.biased_chance for one in result.similarities if one.cka.biased_chance is not None]
    biased = ((max(chances), "unrelated, biased"),) if chances else ()
    measures = (
        Measure("value", "CKA", grid("value"), marks=((0.0, "chance"),), help="debiased; by chance 0 on average"),
        Measure("biased", "biased CKA", grid("biased"), marks=biased, help="the usual estimator"),
        Measure("biased_chance", "biased, by chance", grid("biased_chance"), help="what it gives unrelated states"),
    )
    rows = tuple("embeddings" if layer == 0 else str(layer) for layer in range(result.layers))
    columns = tuple(f"{a} · {b}" for a, b in result.pairs)
    return Heatmap("CKA: layer × pair", rows, columns, measures, "after layer", "models", where="page")


def _short(result: "ActivationsResult") -> Table:
    """For the terminal: a row for each layer, a column for each pair."""
    pairs = result.pairs[:MAX_PAIRS]
    columns = (Column("layer", "after layer"),)
    columns += tuple(Column(f"pair{i}", f"{a} · {b}", "float", 4) for i, (a, b) in enumerate(pairs))
    found = [result.similarity(a, b) for a, b in pairs]
    rows = tuple(
        ("embeddings" if layer == 0 else str(layer), *(one[layer].cka.value for one in found))
        for layer in range(result.layers)
    )
    spread = max((one.cka.chance_sd for one in result.similarities), default=0.0)
    caption = f"By chance 0 ± {spread:.3f}. Intervals and the biased estimator are in --csv and on the page."
    if len(result.pairs) > len(pairs):
        caption += f" {len(result.pairs) - len(pairs)} more pairs are there, too."
    return Table(columns, rows, title="CKA of hidden states (debiased)", caption=caption, where="terminal")


def _cka_table(result: "ActivationsResult") -> Table:
    columns = (
        Column("pair", "models", "code"), Column("layer", "layer", "int"),
        Column("value", "CKA", "float", 4, help="debiased"), Column("low", "95 % from", "float", 4),
        Column("high", "to", "float", 4), Column("chance", "chance ±", "float", help="one s.d.; the mean is 0"),
        Column("biased", "biased", "float", 4), Column("biased_chance", "its chance", "float"),
    )  # fmt: skip
    rows = tuple(
        (f"{one.a} · {one.b}", one.layer, one.cka.value, one.cka.low, one.cka.high, one.cka.chance_sd, one.cka.biased,
         one.cka.biased_chance)
        for one in result.similarities
    )  # fmt: skip
    return Table(columns, rows, title="Hidden states, by layer (0: the embeddings)", interactive=True, where="page")


def _all(result: "ActivationsResult") -> Table:
    columns = (Column("run", "run", "code"), Column("name", "layer", "code"), Column("shape", "shape"))
    columns += tuple(Column(key, title, unit, help=about) for key, title, unit, about in MEASURES)
    rows = tuple(
        (m.run, m.name, "×".join(map(str, m.shape)), *(value(m, key) for key, *_ in MEASURES)) for m in result.modules
    )
    return Table(columns, rows, title="All updated layers", interactive=True, where="page")


def _left_out(result: "ActivationsResult") -> list[Block]:
    rows = tuple((label, item.name, item.reason) for label, items in result.left_out.items() for item in items)
    if not rows:
        return []
    columns = (Column("run", "run", "code"), Column("name", "update", "code"), Column("reason", "why"))
    return [Table(columns, rows, title="Left out", interactive=True, where="page")]
