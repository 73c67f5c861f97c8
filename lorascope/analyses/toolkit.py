"""What analyses share: rows by key, groups, small statistics, the `--modules` filter, findings in order, and the tables
and maps that most pages have. Each stands here once.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any, Protocol, TypeVar

import numpy as np

from lorascope.architectures import components, natural_order
from lorascope.blocks import (
    Block,
    Cell,
    Column,
    Facts,
    Finding,
    Heatmap,
    Lines,
    Marker,
    Measure,
    Number,
    Series,
    Severity,
    Table,
)
from lorascope.errors import InputError, cut, preview, printable
from lorascope.patterns import Pattern
from lorascope.report.text import significant_percent
from lorascope.weights.adapter import Skipped

Row = dict[str, Any]
T = TypeVar("T")
SEVERITIES = ("error", "warning", "note")  # in the order in which findings are read
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}  # in torch's words
LEVELS = np.linspace(0.0, 1.0, 21)  # of the quantiles in `distribution`
GAUSSIAN_SPREAD = 1 / 3  # participation of many independent Gaussian entries: (E x²)² / E x⁴
BLANK_CELLS = "Blank cells: no adapted module, or no number. Cells with several modules (MoE experts) show the mean."
_DRAWS = 2000


class Shown(Protocol):
    """What a table or a map shows in a column or a layer; `base.Metric` is one."""

    @property
    def key(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def unit(self) -> Any: ...

    @property
    def help(self) -> str: ...


# --- rows ------------------------------------------------------------------------------------------------------------


def value(row: Any, key: str) -> Any:
    """What a row (a dictionary or a record) has at a key, dotted into nested ones; None where it is absent."""
    if isinstance(row, Mapping):
        if key in row:
            return row[key]
    elif hasattr(row, key):
        return getattr(row, key)
    head, dot, rest = key.partition(".")
    if not dot:
        return None
    inner = row.get(head) if isinstance(row, Mapping) else getattr(row, head, None)
    return None if inner is None else value(inner, rest)


def inputs(items: Sequence[tuple[str, str]]) -> Facts:
    """What was read, as the last section of a page, folded."""
    return Facts(tuple(items), title=f"Inputs and settings ({len(items)} lines)", folded=True, where="page")


def group(rows: Iterable[T], key: str = "type") -> dict[Any, list[T]]:
    """Rows by their value at `key`, in order of first appearance."""
    groups: dict[Any, list[T]] = {}
    for row in rows:
        groups.setdefault(value(row, key), []).append(row)
    return groups


def extreme(rows: Sequence[T], key: str, pick: Callable = max) -> T | None:
    """The row with the largest (or, with `min`, smallest) value at `key`; None where no row has one."""
    known = [row for row in rows if value(row, key) is not None]
    return pick(known, key=lambda row: value(row, key)) if known else None


def both_ends(rows: Sequence[T], key: str, top: int) -> tuple[list[T], int]:
    """The `top` rows with the largest values at `key` and those with the smallest, descending, and how many rows lie
    between. Rows without a value are left out."""
    known = sorted((row for row in rows if value(row, key) is not None), key=lambda row: -value(row, key))
    chosen = known if len(known) <= 2 * top else [*known[:top], *known[len(known) - top :]]
    return chosen, len(known) - len(chosen)


def flat(record: Mapping[str, Any], prefix: str = "") -> Row:
    """A record for a table: nested ones with dotted keys, a shape as d_out and d_in, texts joined, no other lists."""
    row: Row = {}
    for key, entry in record.items():
        if isinstance(entry, Mapping):
            row.update(flat(entry, f"{prefix}{key}."))
        elif key == "shape" and len(entry) == 2:
            row.update({f"{prefix}d_out": entry[0], f"{prefix}d_in": entry[1]})
        elif isinstance(entry, list | tuple):
            if all(isinstance(each, str) for each in entry):
                row[prefix + key] = "; ".join(entry)
        else:
            row[prefix + key] = entry
    return row


def choose(items: Iterable[T], pattern: str | None, name: Callable[[T], str] = str) -> list[T]:
    """Those of the items whose name `--modules` matches; all where there is no pattern.

    Raises:
        InputError: the pattern is not a regular expression, or matches none.
    """
    items = list(items)
    if pattern is None:
        return items
    wanted = Pattern(pattern, "--modules")
    chosen = [item for item in items if wanted.search(name(item))]
    if not chosen:
        what = f"--modules {pattern!r} matches none of the {len(items)} modules"
        raise InputError(what, found=preview([name(item) for item in items]))
    return chosen


# --- numbers and words -----------------------------------------------------------------------------------------------


def median(values: Iterable[Any]) -> float | None:
    """The median of the values that there are; None where there is none."""
    known = [each for each in values if each is not None]
    return float(medians(known)) if known else None


def medians(values: Any) -> np.ndarray:
    """np.median(values, axis=0) of what is not empty, in float64, which would import numpy.ma and takes longer."""
    ordered = np.sort(np.asarray(values, dtype=float), axis=0)  # NaN comes last
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return np.where(np.isnan(ordered[-1]), np.nan, (low + high) / 2)


def mean(values: Iterable[Any]) -> float | None:
    """The mean of the values that there are; None where there is none."""
    known = [each for each in values if each is not None]
    return sum(known) / len(known) if known else None


def finite(number: float | None) -> float | None:
    """None in place of NaN and infinity, which JSON does not have."""
    return None if number is None or not np.isfinite(number) else float(number)


def percent(share: float, digits: int = 2) -> str:
    """`digits` significant digits, and above 100 % three: 0.2912 is "29 %"; the same function as in tables."""
    return significant_percent(share, digits)


def digits(value: float | None, number: int = 2) -> str:
    """`number` significant digits, and a large value to the unit: 0.04231 is "0.042", 271.8 "272"; None is "–"."""
    if value is None:
        return "–"
    shown = f"{value:,.0f}" if abs(value) >= 10**number - 0.5 else f"{value:.{number}g}"
    return shown.replace("-", "−")


def counted(some: int, total: int, noun: str = "module") -> str:
    """ "all 12 modules" or "3 of 12 modules"."""
    those = plural(total, noun)
    return f"all {those}" if some == total and total > 1 else f"{some} of {those}"


def plural(number: int, noun: str) -> str:
    """ "1 module" or "12 modules"."""
    return f"{number:,} {noun if number == 1 else {'matrix': 'matrices'}.get(noun, f'{noun}s')}"


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers as ranges: "3 to 5, 8"."""
    runs: list[list[int]] = []
    for n in sorted(set(numbers)):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}, {b}" if b == a + 1 else f"{a} to {b}" for a, b in runs)


def places(rows: Sequence[Any], most: int = 4) -> str:
    """Where modules lie: their types and layers, "query, value in layers 3 to 5"; names where there are no layers."""
    if any(value(row, "depth") is None for row in rows):
        return preview([value(row, "name") for row in rows], most)
    layers = {name: tuple(sorted({value(row, "depth") for row in members})) for name, members in group(rows).items()}
    by_layers: dict[tuple[int, ...], list[str]] = {}
    for name, at in layers.items():
        by_layers.setdefault(at, []).append(name)
    parts = []
    for at, names in list(by_layers.items())[:most]:
        listed = ", ".join(printable(cut(name, 60)) for name in names[:8]) + (", …" if len(names) > 8 else "")
        parts.append(f"{listed} in layer{'s' * (len(at) > 1)} {cut(ranges(at), 60)}")
    more = len(by_layers) - len(parts)
    return "; ".join(parts) + (f"; and {more} more types" if more > 0 else "")


def short_path(path: str, parts: int = 2) -> str:
    """The last components of a path, to name what was read in titles: "lora-0/adapter"."""
    whole = PurePath(path)
    return "/".join(part for part in whole.parts[-parts:] if part != whole.anchor) or path


def model_name(path: str) -> str:
    """The last component of a path, with its folder where that alone names nothing: "minilm", "lora-0/adapter"."""
    whole = PurePath(path)
    file = whole.suffix in (".safetensors", ".bin", ".json", ".gguf", ".pt", ".pth")
    return short_path(path, 2 if file or whole.name == "adapter" else 1)


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors, then warnings, then notes, each in the order given."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def status(findings: Sequence[Finding], checks: int) -> tuple[str, Severity | None]:
    """Whether there are problems, in one sentence with the number of checks, and the worst severity of them."""
    named, ran = problems(findings), f"({checks} check{'s' * (checks != 1)})"
    if not named:
        return f"No problems found {ran}", None
    return f"{named} {ran}", min((f.severity for f in findings), key=SEVERITIES.index)


def problems(findings: Iterable[Finding]) -> str:
    """How many errors and warnings there are: "1 error, 2 warnings"; "" where there are none."""
    counts = Counter(finding.severity for finding in findings)
    known: tuple[Severity, ...] = ("error", "warning")
    return ", ".join(f"{n} {severity}{'s' * (n != 1)}" for severity in known if (n := counts[severity]))


def capital(text: str) -> str:
    """The text with a capital letter first."""
    return text[:1].upper() + text[1:]


def spread(values: np.ndarray) -> float | None:
    """(Σx²)² / (n·Σx⁴): 1 where all entries are equally large, 1/n where one entry is everything; None for zeros."""
    top = float(np.max(np.abs(values), initial=0.0))
    if top == 0 or not np.isfinite(top):
        return None
    squares = (values / top) ** 2
    return float(squares.sum() ** 2 / (squares.size * np.sum(squares**2)))


def distribution(values: np.ndarray) -> Row | None:
    """Moments and 21 quantiles (0, 5, ..., 100 %) of a vector; None where it is empty or not finite."""
    if values.size == 0 or not np.all(np.isfinite(values)):
        return None
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "median": float(np.median(values)),
        "max": float(values.max()),
        "negative": float(np.mean(values < 0)),
        "quantiles": np.quantile(values, LEVELS).tolist(),
    }


def gini(values: np.ndarray) -> float | None:
    """Σ_ij |x_i − x_j| / (2 n² mean): 0 where all are equal, near 1 where one has everything; None for zeros."""
    total = float(values.sum())
    if total == 0:
        return None
    ordered, n = np.sort(values), len(values)
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * total))


def correlation(x: np.ndarray, y: np.ndarray) -> tuple[float, float] | None:
    """Pearson's r, and the share of random re-pairings whose |r| is as large; None below four points or for constants.

    The pairings are drawn from a fixed seed: the same data give the same share.
    """
    if len(x) < 4:
        return None
    a, b = x - x.mean(), y - y.mean()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    if norm == 0 or not np.isfinite(norm):
        return None
    r = float(a @ b) / norm
    rng = np.random.default_rng(len(x))
    drawn = np.abs(rng.permuted(np.tile(b, (_DRAWS, 1)), axis=1) @ a) / norm
    # The observed pairing counts as one of the draws, so that no share is 0 by lack of draws.
    return r, float((np.sum(drawn >= abs(r) - 1e-12) + 1) / (_DRAWS + 1))


# --- tables and maps -------------------------------------------------------------------------------------------------


def column(shown: Shown, digits: int = 3) -> Column:
    return Column(shown.key, shown.title, shown.unit, digits, shown.help)


def type_table(
    rows: Sequence[Any], metrics: Sequence[Shown], caption: str = "Medians over the modules of a type."
) -> Table:
    """Medians over the modules of each type."""
    columns = (Column("type", "module type"), Column("modules", "n", "int"), *map(column, metrics))
    body = tuple(
        (name, len(members), *(median(value(row, m.key) for row in members) for m in metrics))
        for name, members in group(rows).items()
    )
    return Table(columns, body, title="By module type", caption=caption)


def table(rows: Iterable[Any], columns: Sequence[Any], title: str, **how: Any) -> Table:
    """Rows (records or dictionaries) under the keys of the columns, each `Shown` or a `Column`; `how` is `Table`'s."""
    shown = tuple(each if isinstance(each, Column) else column(each) for each in columns)
    return Table(shown, tuple(tuple(_cell(value(row, each.key)) for each in shown) for row in rows), title, **how)


def module_table(title: str, rows: Sequence[Any], metrics: Sequence[Shown], caption: str = "") -> Table:
    """Every module, for the page."""
    columns = (Column("name", "module", "code"), *metrics)
    return table(rows, columns, title, caption=caption, interactive=True, where="page")


def skipped_table(skipped: Sequence[Skipped], title: str = "Skipped", what: str = "tensor") -> Table:
    """What was skipped and why; where several adapters or stages were at work, in which."""
    extra = [key for key in ("adapter", "stage") if any(getattr(item, key) for item in skipped)]
    columns = (Column("name", what, "code"), *(Column(key, key) for key in extra), Column("reason", "reason"))
    rows = tuple((item.name, *(getattr(item, key) for key in extra), item.reason) for item in skipped)
    return Table(columns, rows, title=title, interactive=True, where="page")


def _cell(entry: Any) -> Cell:
    return "×".join(map(str, entry)) if isinstance(entry, list | tuple) else entry


def depth_map(
    rows: Sequence[Any],
    metrics: Sequence[Shown],
    *,
    title: str = "Module type × layer",
    caption: str = "",
    types: Sequence[str] | None = None,
    place: Callable[[Any], tuple[int | None, str]] = lambda row: (value(row, "depth"), value(row, "type")),
    number: Callable[[Any, str], Number] = value,
    share: str = "",
) -> Heatmap | None:
    """Every metric by module type and layer, a part for each component of the model; the mean where several modules
    share a cell.

    None where the rows lie at fewer than two depths or have no numbers.

    Args:
        types: rows of the map in order; by default those of the modules, in the order in which a block computes.
        place: a row's depth and type; rows without a depth are left out.
        number: a row's value by a metric's key.
        share: the key of a share of everything, whose sums by type and by layer are drawn as bars; "" for none.
    """
    cells = _cells(rows, place)
    depths = sorted({at[2] for at in cells})
    if len(depths) < 2:
        return None
    lines: list[tuple[str, str]] = []  # component and type
    sections = []
    for component in dict.fromkeys(at[0] for at in cells):
        there = list(dict.fromkeys(at[1] for at in cells if at[0] == component))
        chosen = natural_order(there) if types is None else [each for each in types if each in there]
        lines += [(component, kind) for kind in chosen]
        sections.append((component, len(chosen)))
    layers = []
    for m in metrics:
        grid = tuple(
            tuple(mean(number(row, m.key) for row in cells.get((*line, d), ())) for d in depths) for line in lines
        )
        if any(each is not None for line in grid for each in line):
            unit: Any = m.unit if m.unit in ("percent", "int") else "float"
            layers.append(Measure(m.key, m.title, grid, unit, help=m.help))
    if not layers:
        return None
    names, numbers = tuple(kind for _, kind in lines), tuple(map(str, depths))
    drawn = Heatmap(title, names, numbers, tuple(layers), "module type", "layer", caption, where="page")
    drawn = replace(drawn, sections=tuple(sections) if len(sections) > 1 else ())
    return _with_shares(drawn, cells, lines, share) if share else drawn


def _cells(
    rows: Sequence[Any], place: Callable[[Any], tuple[int | None, str]]
) -> dict[tuple[str, str, int], list[Any]]:
    """Rows by component of the model, type and depth."""
    placed = [(row, *place(row)) for row in rows]
    of = components(str(value(row, "name")) for row, depth, _ in placed if depth is not None)
    cells: dict[tuple[str, str, int], list[Any]] = {}
    for row, depth, kind in placed:
        if depth is not None:
            cells.setdefault((of.get(str(value(row, "name")), ""), kind, depth), []).append(row)
    return cells


def _with_shares(
    drawn: Heatmap, cells: Mapping[tuple[str, str, int], list[Any]], lines: Sequence[tuple[str, str]], key: str
) -> Heatmap:
    """The map with the sums of a share by type, and by layer within each component."""
    by_line: dict[tuple[str, str], float] = {}
    by_depth: dict[tuple[str, str], float] = {}
    for (component, kind, depth), members in cells.items():
        total = sum(value(row, key) or 0.0 for row in members)
        by_line[component, kind] = by_line.get((component, kind), 0.0) + total
        by_depth[component, str(depth)] = by_depth.get((component, str(depth)), 0.0) + total
    parts = dict.fromkeys(component for component, _ in lines)
    columns = tuple(tuple(by_depth.get((part, depth)) for depth in drawn.columns) for part in parts)
    rows = tuple(by_line.get(line) for line in lines)
    return replace(drawn, row_shares=rows, column_shares=columns, shares_label="share")


def cumulative(
    title: str, rows: Sequence[Any], key: str, x_label: str, markers: tuple[Marker, ...] = (), caption: str = ""
) -> list[Block]:
    """The share of a vector's entries at or below each value, a thin line for each module and a panel for each type.

    `key` leads to a `distribution`. Nothing where no row has one.
    """
    y = tuple(LEVELS.tolist())
    series = []
    for name, members in group(rows).items():
        known = [row for row in members if value(row, key)]
        for row in known:
            weight: Any = "thin" if len(known) > 1 else "normal"
            label = value(row, "name") if len(known) > 1 else "the one module"
            series.append(Series(label, tuple(value(row, key)["quantiles"]), y, name, weight))
        if len(known) > 1:
            middle = np.median([value(row, key)["quantiles"] for row in known], axis=0)
            series.append(Series("median", tuple(middle.tolist()), y, name))
    if not series:
        return []
    text = f"One thin line for each module, through its 21 quantiles; the bold line is their median. {caption}".strip()
    return [
        Lines(title, tuple(series), x_label, "share of entries at or below", markers=markers, where="page",
              caption=text, shade="depth, first to last")
    ]  # fmt: skip
