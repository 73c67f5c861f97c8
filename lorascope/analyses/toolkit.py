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
    SEVERITIES,
    Cell,
    Column,
    Facts,
    Finding,
    Heatmap,
    Measure,
    Number,
    Severity,
    Table,
    Where,
)
from lorascope.errors import InputError, cut, preview, printable
from lorascope.patterns import Pattern
from lorascope.report.text import significant_percent
from lorascope.weights.adapter import Skipped

Row = dict[str, Any]
T = TypeVar("T")
S = TypeVar("S", bound="Shown")
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}  # in torch's words
BLANK_CELLS = "Blank cells: no adapted module, or no number. Cells with several modules (MoE experts) show the mean."


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


@np.errstate(over="ignore")  # of numbers at the end of float64's range
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


# --- tables and maps -------------------------------------------------------------------------------------------------


TYPE, COUNT = Column("type", "module type"), Column("modules", "n", "int")


def column(shown: Shown | Column, digits: int = 3) -> Column:
    """The column of a metric; a column as it is."""
    return shown if isinstance(shown, Column) else Column(shown.key, shown.title, shown.unit, digits, shown.help)


def pick(metrics: Iterable[S], keys: Iterable[str]) -> list[S]:
    """The metrics of these keys, in the order of the keys, each once."""
    by_key = {metric.key: metric for metric in metrics}
    return [by_key[key] for key in dict.fromkeys(keys) if key in by_key]


def measured(metrics: Iterable[S], rows: Sequence[Any]) -> list[S]:
    """The metrics that some row has."""
    return [metric for metric in metrics if any(value(row, metric.key) is not None for row in rows)]


def type_table(  # the rows, what is shown of them, and the table's own words
    rows: Sequence[Any],
    columns: Sequence[Shown | tuple[Shown | Column, Callable[[list[Any]], Cell]]],
    caption: str = "Medians over the modules of a type.",
    *,
    title: str = "By module type",
    by: Sequence[Column] = (TYPE,),
    average: Callable[[Iterable[Any]], float | None] = median,
    where: Where = "both",
) -> Table:
    """A line for each module type, with the number of its modules.

    Args:
        columns: a metric, of which the average over the modules is shown; or one with what is shown in its place.
        by: what makes the lines: the values at the keys of these columns, in order of first appearance.
        average: of a metric's values, those that are None among them.
    """

    def shown(entry: Any, members: list[Any]) -> Cell:
        if isinstance(entry, tuple):
            return entry[1](members)
        return average(value(row, entry.key) for row in members)

    lines: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        lines.setdefault(tuple(value(row, each.key) for each in by), []).append(row)
    heads = [entry[0] if isinstance(entry, tuple) else entry for entry in columns]
    body = tuple((*names, len(those), *(shown(entry, those) for entry in columns)) for names, those in lines.items())
    return Table((*by, COUNT, *map(column, heads)), body, title=title, caption=caption, where=where)


def total(key: str) -> Callable[[list[Any]], Cell]:
    """For `type_table`: the sum of the rows' values at `key`, those that are None left out."""
    return lambda rows: sum(value(row, key) or 0 for row in rows)


def table(rows: Iterable[Any], columns: Sequence[Any], title: str, **how: Any) -> Table:
    """Rows (records or dictionaries) under the keys of the columns, each `Shown` or a `Column`; `how` is `Table`'s."""
    shown = tuple(map(column, columns))
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
