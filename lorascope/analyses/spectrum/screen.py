"""The first screen of `analyze`: what this adapter is, whether it is all right, and where its update lies."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from lorascope.analyses import rules
from lorascope.analyses.spectral_metrics import (
    ENERGY_RANKS,
    ENERGY_SHARE,
    FROBENIUS_NORM,
    RELATIVE_NORM,
    STABLE_RANK,
)
from lorascope.analyses.spectrum.checks import PRODUCTS, number_of_checks
from lorascope.analyses.spectrum.module import ModuleSpectrum
from lorascope.analyses.spectrum.result import SpectrumResult
from lorascope.analyses.toolkit import (
    DTYPES,
    column,
    group,
    median,
    medians,
    percent,
    plural,
    short_path,
    status,
    value,
)
from lorascope.architectures import components, natural_order
from lorascope.blocks import (
    Block,
    Cell,
    Column,
    Definitions,
    Facts,
    Finding,
    Findings,
    Folded,
    Heading,
    Rich,
    Span,
    Summary,
    Table,
    Tile,
)
from lorascope.errors import cut
from lorascope.report import text as t

FORMATS = {"peft": "PEFT", "mlx": "MLX", "gguf": "GGUF", "lycoris": "LyCORIS", "nemo": "NeMo", "nunchaku": "Nunchaku"}
BASES = ("base_model_name_or_path", "base_model", "ss_sd_model_name", "ss_base_model_version", "model", "base")
SHOWN = (rules.SKIPPED.code, rules.LIKE.code)  # notes without an action that the first screen shows all the same
BAR = 7  # columns of the longest bar
R95 = ENERGY_RANKS[0.95]
LARGEST = 3  # modules in the line of the largest
_SIZES = (
    replace(FROBENIUS_NORM, title="‖ΔW‖ median"),
    replace(RELATIVE_NORM, key="against_base.relative_norm", title="‖ΔW‖/‖W‖ median"),
)


def summary(result: SpectrumResult, findings: Sequence[Finding], more_checks: int = 0) -> Summary:
    """The first screen. `findings`: of the whole analysis, in order; `more_checks`: those of other parts of it."""
    problems = [f for f in findings if f.severity != "note" or f.action or f.command or f.rule in SHOWN]
    text, worst = status(findings, number_of_checks(result) + more_checks)
    facts = (_what(result), *_scales(result), *_where(result), *_size(result), *_training(result))
    return Summary(short_path(result.source.path), facts, text, worst, _tiles(result), tuple(problems))


def _what(result: SpectrumResult) -> str:
    source = result.source
    base = next((name for key in BASES if isinstance(name := result.settings.get(key), str) and name), None)
    base = base or result.training.get("architecture")
    what = f"{source.method} ({FORMATS.get(source.format, source.format)})"
    return what if base is None else f"{what} for {short_path(base)}"


def _training(result: SpectrumResult) -> tuple[str, ...]:
    """The words that a prompt must have, and what made the file, where it says so."""
    about = result.training
    made = []
    if words := about.get("trigger_words"):
        made.append(f"trigger words: {cut(', '.join(words), 60)}")
    if tool := about.get("tool"):
        steps = f", {about['steps']} steps" if "steps" in about else ""
        made.append(f"by {cut(tool, 40)}{steps}")
    return tuple(made)


def _scales(result: SpectrumResult) -> tuple[str, ...]:
    """r, and α with the scale that it gives."""
    rows = [m for m in result.rows if m.rank is not None]
    made = [f"r = {_span([m.rank for m in rows])}"] if rows else []
    scaled = [m for m in rows if m.kind in PRODUCTS]
    if scaled:
        root = 0.5 if result.settings.get("use_rslora") else 1.0
        if any(note.startswith("scale unknown") for note in result.notes):
            return (*made, "α unknown (as if the scale were 1)")
        alphas = [float(f"{m.scale * (m.rank or 1) ** root:.6g}") for m in scaled]
        scale = _span([float(f"{m.scale:.6g}") for m in scaled])
        made.append(f"α = {_span(alphas)} (scale {scale}{', rsLoRA' if root == 0.5 else ''})")
    return tuple(made)


def _span(values: Sequence[Any]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _where(result: SpectrumResult) -> tuple[str, ...]:
    count = f"{len(result.rows)} module{'s' * (len(result.rows) != 1)}"
    types, layers = {m.type for m in result.rows}, {m.depth for m in result.rows if m.depth is not None}
    if len(layers) < 2 or len(types) > 3:
        return (count,)
    return (f"{count} ({', '.join(natural_order(types))} × {len(layers)} layers)",)


def _size(result: SpectrumResult) -> tuple[str, ...]:
    if not result.parameters:
        return ()
    dtypes = ", ".join(DTYPES.get(dtype, dtype) for dtype in dict.fromkeys(m.dtype for m in result.rows))
    return f"{_short(result.parameters).strip()} parameters", f"{dtypes}, {_short(result.bytes)}B"


def _short(count: int) -> str:
    """Three digits and a unit: "41.9 M"; below a thousand the number itself, with its space."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} "


def _tiles(result: SpectrumResult) -> tuple[Tile, ...]:
    """Five numbers: modules, parameters, size, rank for 95 %, stable rank; each with what it is compared with."""
    live = [m for m in result.rows if m.frobenius_norm]
    types = len({m.type for m in result.rows})
    layers = len({m.depth for m in result.rows if m.depth is not None})
    tiles = [
        Tile("Modules", str(len(result.rows)), f"{types} type{'s' * (types != 1)} × {layers} layers" if layers else ""),
        Tile("Parameters", _short(result.parameters).strip(), f"{_short(result.bytes)}B on disk"),
    ]
    relative = median(value(m, "against_base.relative_norm") for m in live)
    if relative is not None:
        tiles.append(Tile("Update size ‖ΔW‖/‖W‖", percent(relative, 3), "median module; up to 20 % is usual",
                          "against_base.relative_norm"))  # fmt: skip
    else:
        norm = "–" if result.frobenius_norm is None else t.number(result.frobenius_norm)
        tiles.append(Tile("Update size ‖ΔW‖", norm, "relative to W: needs --base", "frobenius_norm"))
    ranked = [m.energy_ranks["energy_rank_0.95"] for m in live if m.energy_ranks["energy_rank_0.95"]]
    if ranked:
        largest = max((m.rank or 0 for m in live), default=0)
        of = f" of {largest}" if largest else ""
        tiles.append(
            Tile(
                "Rank for 95 % of the energy",
                f"{medians(ranked):.0f}{of}",
                f"median; max {max(ranked)}",
                "energy_rank_0.95",
            )
        )
    stable = median(m.stable_rank for m in live)
    if stable is not None:
        null = median(value(m, "null.stable_rank") for m in live)
        note = "" if null is None else f"random factors: {null:.3g}"
        tiles.append(Tile("Stable rank", f"{stable:.3g}", note, "stable_rank"))
    return tuple(tiles)


# --- several adapters ------------------------------------------------------------------------------------------------


def of_several(results: Sequence[SpectrumResult], pages: Sequence[Sequence[Block]]) -> tuple[str, tuple[Block, ...]]:
    """How many have problems, in a line; then the problems of each, all first screens in one table, a row each, and
    on a page each first screen with the rest folded, and all definitions once."""
    summaries = [block for blocks in pages for block in blocks if isinstance(block, Summary)]
    findings = tuple(_in_a_line(each) for each in summaries if each.severity is not None)
    good = len(summaries) - len(findings)
    line = (
        f"{len(findings)} with problems, {good or 'none'} without" if findings else "No problems found in any of them"
    )
    made: list[Block] = [*([Findings(findings)] if findings else []), _comparison(results, summaries)]
    for number, (result, blocks) in enumerate(zip(results, pages, strict=True), 1):
        made += [Heading(result.source.path, 1, f"adapter-{number}", where="page"), *_chapter(blocks)]
    items = (item for blocks in pages for block in blocks if isinstance(block, Definitions) for item in block.items)
    return line, (*made, Definitions(tuple(dict.fromkeys(items)), where="page"))


def _chapter(blocks: Sequence[Block]) -> Iterator[Block]:
    """An adapter's part of a page of several: the first screen, what the terminal has, the rest folded."""
    shown = (block for block in blocks if block.where != "page")
    yield from (block if isinstance(block, Summary) else replace(block, where="terminal") for block in shown)
    rest = tuple(
        block for block in blocks if not isinstance(block, Summary | Definitions) and block.where != "terminal"
    )
    yield Folded("All observations, figures, tables and inputs of this adapter", rest)


def _in_a_line(summary: Summary) -> Finding:
    """An adapter's problems in a line under its name, with the actions for them."""
    problems = [finding for finding in summary.problems if finding.severity != "note"]
    first = next(finding for finding in problems if finding.severity == summary.severity)
    texts = [f"{f.module}: {f.text}" if f.module else f.text for f in problems]
    actions = ". ".join(dict.fromkeys(f.action for f in problems if f.action))
    return replace(
        first, action=actions, text=f"{summary.name}, {summary.status}: {'; '.join(texts)}", module=None, modules=()
    )


def _comparison(results: Sequence[SpectrumResult], summaries: Sequence[Summary]) -> Table:
    labels = list(dict.fromkeys(tile.label for each in summaries for tile in each.tiles))
    labels.sort(key=("Modules", "Parameters").__contains__)  # what was learned before how much was stored
    columns = (
        Column("name", "adapter"), Column("errors", "errors", "int"), Column("warnings", "warnings", "int"),
        Column("rank", "r"), Column("scale", "scale"),
        *(Column(label, label.replace(" of the energy", "")) for label in labels),
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for number, (result, each) in enumerate(zip(results, summaries, strict=True), 1):
        ranks = [m.rank for m in result.rows if m.rank is not None]
        scales = [float(f"{m.scale:.6g}") for m in result.rows if m.kind in PRODUCTS]
        values = {tile.label: tile.value for tile in each.tiles}
        shown = (_span(some) if some else t.ABSENT for some in (ranks, scales))
        counts = (sum(f.severity == severity for f in each.problems) for severity in ("error", "warning"))
        name = Rich((Span(each.name, "code", f"#adapter-{number}"),))
        rows.append((name, *counts, *shown, *(values.get(label, t.ABSENT) for label in labels)))
    return Table(columns, tuple(rows), title="Comparison")


# --- the terminal ----------------------------------------------------------------------------------------------------


def terminal_blocks(result: SpectrumResult, ends: Table | None) -> list[Block]:
    """What stands below the summary: by type with sparklines, then the largest modules, or the table asked for."""
    if not result.total_energy:
        return []
    made: list[Block] = [by_type(result)]
    made += [] if ends is None else [ends]
    return [*made, _more(result, ends is None)]


def by_type(result: SpectrumResult) -> Table:
    """A row for each type in each component of the model: share and bar of the energy, medians, the energy by layer."""
    rows = [m for m in result.rows if m.singular_values is not None]
    lines = _lines(rows)
    depths = sorted({m.depth for m in rows if m.depth is not None})
    ends = f" {depths[0]} … {depths[-1]}" if len(depths) > 1 else ""
    size = _SIZES[any(m.against_base for m in rows)]
    columns = (
        Column("type", "type"), Column(ENERGY_SHARE.key, ENERGY_SHARE.title), column(size),
        Column(STABLE_RANK.key, f"{STABLE_RANK.title} (random)"), Column(R95.key, "rank for 95\u00a0%"),
        Column("layers", f"energy by layer{ends}"),
    )[: 6 if ends else 5]  # fmt: skip
    most = max(result.energy(members) for _, _, members in lines)
    body: list[tuple[Any, ...]] = []
    above = ""
    for part, kind, members in lines:
        if part != above:
            body.append((part, *[""] * 5))
            above = part
        live = [m for m in members if m.frobenius_norm]
        energy = result.energy(members)
        bar = "█" * round(BAR * energy / most) or ("▏" if energy else "")
        body.append((
            "  " * bool(part) + kind, f"{percent(energy / result.total_energy, 2) if energy else '0 %':>6} {bar}",
            median(value(m, size.key) for m in live), _stable(live), _energy_rank(live),
            _sparkline(result, members, depths),
        ))  # fmt: skip
    zero = sum(m.frobenius_norm == 0 for m in rows)
    modules = f"{zero} module{'s' * (zero != 1)}"
    caption = f"Medians leave out {modules} with ΔW = 0 (· in the last column)." if zero else ""
    if bad := len(result.rows) - len(rows):
        caption = f"{caption} {plural(bad, 'module')} with NaN or Inf counted nowhere.".lstrip()
    return Table(columns, tuple(row[: len(columns)] for row in body), caption=caption, where="terminal")


def _lines(rows: Sequence[ModuleSpectrum]) -> list[tuple[str, str, list[ModuleSpectrum]]]:
    """Component of the model, type and its modules, in the order in which a block computes."""
    part_of = components(m.name for m in rows)
    parts: dict[str, list[ModuleSpectrum]] = {"": []}  # of no layer, and so of no component: first
    for module in rows:
        parts.setdefault(part_of.get(module.name, ""), []).append(module)
    by_part = {part: group(members) for part, members in parts.items()}
    return [(part, kind, by[kind]) for part, by in by_part.items() for kind in natural_order(by)]


def _stable(live: Sequence[ModuleSpectrum]) -> str:
    stable, null = median(m.stable_rank for m in live), median(value(m, "null.stable_rank") for m in live)
    if stable is None:
        return t.ABSENT
    return f"{stable:>4.3g}" if null is None else f"{stable:>4.3g} ({null:.3g})"


def _energy_rank(live: Sequence[ModuleSpectrum]) -> str:
    ranks = [rank for m in live if (rank := m.energy_ranks["energy_rank_0.95"]) is not None]
    return f"{medians(ranks):>3.0f} (max {max(ranks)})" if ranks else t.ABSENT


def _sparkline(result: SpectrumResult, members: Sequence[ModuleSpectrum], depths: Sequence[int]) -> str:
    at = group(members, "depth")
    return t.sparkline([result.energy(at[d]) / len(at[d]) if d in at else None for d in depths])


def _more(result: SpectrumResult, largest: bool) -> Facts:
    items = []
    if largest and len(result.rows) > 1:
        part_of = components(m.name for m in result.rows)
        several = len(set(part_of.values())) > 1
        top = sorted(result.rows, key=lambda m: -(m.frobenius_norm or 0.0))[: LARGEST - several]
        parts = [
            f"{_place(m, part_of.get(m.name, ''))} {percent(result.energy_share(m) or 0.0)}"
            for m in top
            if m.frobenius_norm
        ]
        items.append(("largest", "   ".join(parts)))
    items.append(("more", "--html report.html   --csv modules.csv   --top 20"))
    return Facts(tuple(items), where="terminal")


def _place(module: ModuleSpectrum, part: str) -> str:
    if module.depth is None:
        return t.shorten(module.name, 32)
    return f"{part} layer {module.depth} {t.shorten(module.type, 24)}".lstrip()
