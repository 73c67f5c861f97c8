"""The first screen of `analyze`: what this adapter is, whether it is all right, and where its update lies."""

from collections.abc import Sequence
from typing import Any

from lorascope.analyses import rules
from lorascope.analyses.spectrum.checks import PRODUCTS, number_of_checks
from lorascope.analyses.spectrum.module import ModuleSpectrum
from lorascope.analyses.spectrum.result import SpectrumResult
from lorascope.analyses.toolkit import group, median, medians, percent, short_path, status, value
from lorascope.architectures import natural_order
from lorascope.blocks import Block, Column, Facts, Finding, Summary, Table, Tile
from lorascope.errors import cut
from lorascope.report import text as t

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
FORMATS = {"peft": "PEFT", "mlx": "MLX", "gguf": "GGUF", "lycoris": "LyCORIS", "nemo": "NeMo", "nunchaku": "Nunchaku"}
BASES = ("base_model_name_or_path", "base_model", "ss_sd_model_name", "ss_base_model_version", "model", "base")
SHOWN = (rules.SKIPPED.code,)  # notes without an action that the first screen shows all the same
BAR = 7  # columns of the longest bar
LARGEST = 3  # modules in the line of the largest


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
        tiles.append(Tile("Update size ‖ΔW‖/‖W‖", percent(relative, 3), "median module; up to 20 % is usual"))
    else:
        norm = result.frobenius_norm
        known = norm is not None
        tiles.append(Tile("Update size ‖ΔW‖", t.number(norm) if known else "–", "relative to W: needs --base"))  # type: ignore[arg-type]
    ranked = [m.energy_ranks["energy_rank_0.95"] for m in live if m.energy_ranks["energy_rank_0.95"]]
    if ranked:
        largest = max((m.rank or 0 for m in live), default=0)
        of = f" of {largest}" if largest else ""
        tiles.append(Tile("Rank for 95 % of the energy", f"{medians(ranked):.0f}{of}", f"median; max {max(ranked)}"))
    stable = median(m.stable_rank for m in live)
    if stable is not None:
        null = median(value(m, "null.stable_rank") for m in live)
        note = "" if null is None else f"random factors: {null:.3g}"
        tiles.append(Tile("Stable rank", f"{stable:.3g}", note))
    return tuple(tiles)


def comparison(summaries: Sequence[Summary]) -> Table:
    """Several first screens in one table, a row for each adapter."""
    labels = list(dict.fromkeys(tile.label for each in summaries for tile in each.tiles))
    columns = (
        Column("name", "adapter", "code"),
        Column("status", "status"),
        *(Column(label, label) for label in labels),
    )
    rows = []
    for each in summaries:
        values = {tile.label: tile.value for tile in each.tiles}
        rows.append((each.name, each.status, *(values.get(label, t.ABSENT) for label in labels)))
    return Table(columns, tuple(rows), title="Comparison", where="page")


# --- the terminal ----------------------------------------------------------------------------------------------------


def terminal_blocks(result: SpectrumResult, ends: Table | None) -> list[Block]:
    """What stands below the summary: by type with sparklines, then the largest modules, or the table asked for."""
    if not result.total_energy:
        return []
    made: list[Block] = [by_type(result)]
    made += [] if ends is None else [ends]
    return [*made, _more(result, ends is None)]


def by_type(result: SpectrumResult) -> Table:
    """A row for each type: share and bar of the energy, medians, and the energy by layer."""
    rows = [m for m in result.rows if m.singular_values is not None]
    by = group(rows)
    depths = sorted({m.depth for m in rows if m.depth is not None})
    most = max(result.energy(members) for members in by.values())
    body = []
    for name in natural_order(by):
        members = by[name]
        live = [m for m in members if m.frobenius_norm]
        energy = result.energy(members)
        bar = "█" * round(BAR * energy / most) or ("▏" if energy else "")
        body.append((
            name, f"{percent(energy / result.total_energy, 2) if energy else '0 %':>6} {bar}",
            median(m.frobenius_norm for m in live), _stable(live), _energy_rank(live),
            _sparkline(result, members, depths),
        ))  # fmt: skip
    ends = f" {depths[0]} … {depths[-1]}" if len(depths) > 1 else ""
    columns = (
        Column("type", "type"), Column("energy", "energy"), Column("frobenius_norm", "‖ΔW‖ median", "float"),
        Column("stable_rank", "stable rank (random)"), Column("energy_rank_0.95", "rank for 95 %"),
        *((Column("layers", f"energy by layer{ends}"),) if ends else ()),
    )  # fmt: skip
    zero = sum(m.frobenius_norm == 0 for m in rows)
    modules = f"{zero} module{'s' * (zero != 1)}"
    caption = f"Medians leave out {modules} with ΔW = 0 (· in the last column)." if zero else ""
    return Table(columns, tuple(row[: len(columns)] for row in body), caption=caption, where="terminal")


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
        top = sorted(result.rows, key=lambda m: -(m.frobenius_norm or 0.0))[:LARGEST]
        parts = [f"{_place(m)} {percent(result.energy_share(m) or 0.0)}" for m in top if m.frobenius_norm]
        items.append(("largest", "   ".join(parts)))
    items.append(("more", "--html report.html   --csv modules.csv   --top 20"))
    return Facts(tuple(items), where="terminal")


def _place(module: ModuleSpectrum) -> str:
    return t.shorten(module.name, 32) if module.depth is None else f"layer {module.depth} {t.shorten(module.type, 24)}"
