"""How far is this adapter from others like it, measure by measure?

For each measure and module type, a robust z against a population of adapters: (x − median)/(1.4826·MAD), where x is the
type's median over its modules and the population has one such value for each adapter. 1.4826·MAD estimates the standard
deviation of a normal population and does not move with a few odd members (Rousseeuw and Croux 1993).

Next to them are the statistics that a published weight-only screen for poisoned adapters uses (`FEATURES`), as
numbers: such screens were tried on their authors' own adapters, and without a false-alarm rate on yours they are not a
verdict. PEFTGuard (Sun et al. 2025, arXiv 2411.17453) has no such numbers: it is a convolutional network over the
stacked ΔW, trained anew for each base model and set of target modules.

When it misleads: a population of another base, rank or task differs for good reasons; below 8 adapters a MAD is hardly
known (the result says so), and where most of the population has one value, z is not known and is null.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.analyses.rules import LIKE
from lorascope.analyses.spectrum.result import SpectrumResult
from lorascope.analyses.toolkit import Row, group, median, value
from lorascope.blocks import Block, Column, Finding, Table
from lorascope.linalg.matrix import Matrix
from lorascope.weights.adapter import Adapter

MEASURES = (
    "frobenius_norm", "spectral_norm", "stable_rank", "effective_rank", "rank_utilisation_of_null", "energy_rank_0.95",
    "energy_share", "scale",
)  # fmt: skip
FEATURES = {
    "leading_energy": "σ₁²/Σσ², the concentration of the energy",
    "spectral_entropy": "−Σ p ln p, p = σ/Σσ",
    "kurtosis": "m₄/m₂² − 3 of ΔW's entries about their mean (0: Gaussian)",
}
SOURCE = (
    "with σ₁ and ‖ΔW‖ the five statistics of arXiv 2602.15195 (97 % accuracy, under 2 % false"
    " alarms on its authors' 500 adapters)"
)
MAX_ENTRIES = 2**21  # of a ΔW; of a larger one the kurtosis is that of evenly spaced rows
_SPECTRAL = ("leading_energy", "spectral_entropy")
CONSISTENT = 1.4826  # MAD to standard deviation, of a normal population
FEW = 8
LISTED = 12  # in the terminal
FAR = 5.0  # |z|: of 100 normal numbers none, where the median and MAD are known; those of 9 adapters are not, so a note
TITLE = "Compared with the population"
NAMED = 3  # measures in the sentence
WORDS = {
    "frobenius_norm": "‖ΔW‖", "spectral_norm": "σ₁", "stable_rank": "stable rank", "effective_rank": "effective rank",
    "rank_utilisation_of_null": "stable rank over the random baseline's", "energy_rank_0.95": "rank for 95 %",
    "energy_share": "share of the energy", "scale": "scale", "leading_energy": "σ₁²/Σσ²",
    "spectral_entropy": "entropy of σ", "kurtosis": "kurtosis of ΔW's entries",
}  # fmt: skip


def kurtoses(adapter: Adapter) -> dict[str, float | None]:
    """The excess kurtosis of every ΔW's entries, by module; None where it needs the base, or is not finite."""
    return {update.name: None if update.needs_base else kurtosis(update.delta()) for update in adapter.updates.values()}


def kurtosis(delta: Matrix) -> float | None:
    """m₄/m₂² − 3 of the entries about their mean. Of a ΔW (m, n) with more than MAX_ENTRIES, over every k-th row."""
    step = max(1, -(-math.prod(delta.shape) // MAX_ENTRIES))
    factors = delta.factors()
    rows = delta.dense()[::step] if factors is None else factors.left[::step] @ factors.right
    values = np.asarray(rows, dtype=np.float64)
    largest = float(np.max(np.abs(values), initial=0.0))
    if not 0 < largest < math.inf:
        return None
    values = values / largest
    squares = (values - values.mean()) ** 2
    variance = float(squares.mean())
    return float(np.mean(squares**2)) / variance**2 - 3 if variance > 0 else None


def measures_of(result: SpectrumResult, kurtosis_by_module: Mapping[str, float | None] | None = None) -> dict[str, Row]:
    """Medians over the modules of each type, by type and measure; modules with ΔW = 0 or not finite have none."""
    tails = kurtosis_by_module or {}
    live = [row for row in result.records() if row["frobenius_norm"]]
    made: dict[str, Row] = {}
    for name, rows in group(live).items():
        made[name] = {key: median(value(row, key) for row in rows) for key in MEASURES}
        made[name] |= {key: median(_feature(key, row["singular_values"]) for row in rows) for key in _SPECTRAL}
        made[name]["kurtosis"] = median(tails.get(row["name"]) for row in rows)
    return made


def _feature(key: str, sigma: Sequence[float]) -> float | None:
    total = sum(sigma)
    if not total or not math.isfinite(total):
        return None
    if key == "leading_energy":
        return 1 / sum((s / sigma[0]) ** 2 for s in sigma)
    return -sum(s / total * math.log(s / total) for s in sigma if s > 0)


def robust_z(number: float | None, population: Sequence[float | None]) -> float | None:
    """(x − median)/(1.4826·MAD); None where a number is missing, or more than half of the population is equal."""
    known = [each for each in population if each is not None]
    middle = median(known)
    if number is None or middle is None:
        return None
    spread = CONSISTENT * (median(abs(each - middle) for each in known) or 0.0)
    return (number - middle) / spread if spread > 0 else None


def compared(
    result: SpectrumResult,
    population: Sequence[SpectrumResult],
    own_kurtoses: Mapping[str, float | None] | None = None,
    their_kurtoses: Sequence[Mapping[str, float | None]] = (),
) -> Row:
    """The key `like` of analyze's JSON: by type and measure the value, the population's median, and robust z."""
    measured = measures_of(result, own_kurtoses)
    tails = their_kurtoses or [{}] * len(population)
    others = [measures_of(each, one) for each, one in zip(population, tails, strict=True)]
    types: dict[str, Row] = {}
    for name, known in measured.items():
        members = [other[name] for other in others if name in other]
        types[name] = {
            key: {"value": number, "median": median(m[key] for m in members), "n": len(members),
                  "z": robust_z(number, [m[key] for m in members])}
            for key, number in known.items()
        }  # fmt: skip
    return {
        "adapters": [each.source.path for each in population],
        "types": types,
        "features": FEATURES,
        "source": SOURCE,
    }


def finding(record: Row) -> Finding:
    """Whether the adapter is unusual among them, in a sentence: the largest |z| of each measure."""
    far: dict[str, tuple[float, str]] = {}
    for kind, key, _, _, z, _ in _rows(record):
        if z is not None and key not in far:  # the largest comes first
            far[key] = z, kind
    named = [f"{WORDS[key]} {_signed(z)} in {kind}" for key, (z, kind) in far.items() if abs(z) > FAR]
    of = f"{len(record['adapters'])} adapters"
    if not far:
        return LIKE.finding(f"Not comparable with these {of}: no module type in common, or all of one value")
    if not named:
        key, (z, kind) = next(iter(far.items()))
        return LIKE.finding(
            f"Like these {of}: no robust z beyond ±{FAR:g}; the largest is {WORDS[key]} {_signed(z)} in {kind}"
        )
    more = f", and {len(named) - NAMED} more measures" if len(named) > NAMED else ""
    action = "Another task, rank or learning rate is often the reason; the table has every measure"
    return LIKE.finding(f"Unlike these {of}, by robust z: {', '.join(named[:NAMED])}{more}", action=action)


def _signed(z: float) -> str:
    return f"{z:+.3g}".replace("-", "−")


def tables(record: Row) -> list[Block]:
    """Every measure on the page, those of the largest |z| in the terminal."""
    rows = [(kind, WORDS[key], *rest) for kind, key, *rest in _rows(record)]
    count = len(record["adapters"])
    caption = f"Robust z = (value − median)/(1.4826·MAD) over {count} adapters, by module type."
    caption += f" Fewer than {FEW} adapters hardly give a MAD." if count < FEW else ""
    caption += f" {', '.join(map(WORDS.__getitem__, FEATURES))}: {SOURCE}; numbers, not a verdict."
    columns = (
        Column("type", "type"), Column("measure", "measure"), Column("value", "value", "float"),
        Column("median", "median", "float"), Column("z", "robust z", "float"), Column("n", "n", "int"),
    )  # fmt: skip
    whole = Table(columns, tuple(rows), TITLE, caption, interactive=True, where="page")
    short = replace(whole, rows=whole.rows[:LISTED], interactive=False, where="terminal")
    return [whole, replace(short, caption=f"{caption} The largest |z|; --json and --html have all.")]


def _rows(record: Row) -> list[tuple[Any, ...]]:
    """Type, measure, value, median, z and n; the largest |z| first."""
    rows = [(kind, key, each["value"], each["median"], each["z"], each["n"])
            for kind, keys in record["types"].items() for key, each in keys.items()]  # fmt: skip
    return sorted(rows, key=lambda row: -abs(row[4] or 0.0))


def adapters_in(folder: Path, besides: Path) -> list[Path]:
    """Adapters in a folder: its own subfolders and files that could be one, in order, without the adapter itself."""
    found = [path.parent for path in sorted(folder.rglob("adapter_config.json"))]
    found += [path for path in sorted(folder.glob("*.safetensors")) if path.parent not in found]
    return [path for path in found if path.resolve() != besides.resolve()]
