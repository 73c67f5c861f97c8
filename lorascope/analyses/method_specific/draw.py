"""Figures and tables that several kinds share, drawn from the rows alone."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lorascope.analyses.method_specific.base import Row
from lorascope.analyses.method_specific.numbers import LEVELS, median
from lorascope.blocks import Block, Cell, Column, Heatmap, Lines, Marker, Measure, Series, Table

# Of a heatmap or a table: key (dotted into nested records), title, unit, help.
Quantity = tuple[str, str, Any, str]


def value(row: Row, key: str) -> Any:
    """The entry of a row at a dotted key; None where it, or a record on the way, is absent."""
    found: Any = row
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def by_type(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["type"], []).append(row)
    return groups


def type_table(rows: Sequence[Row], quantities: Sequence[Quantity], caption: str = "") -> Table:
    """Medians over the modules of each type."""
    columns = (Column("type", "module type"), Column("modules", "n", "int"))
    columns += tuple(Column(key, title, unit, help=about) for key, title, unit, about in quantities)
    body = tuple(
        (name, len(group), *(median([value(row, key) for row in group]) for key, *_ in quantities))
        for name, group in by_type(rows).items()
    )
    return Table(columns, body, title="By module type", caption=caption or "Medians over the modules of a type.")


def module_table(title: str, rows: Sequence[Row], quantities: Sequence[Quantity]) -> Table:
    """Every module, for the page."""
    columns = (Column("name", "module", "code"),)
    columns += tuple(Column(key, name, unit, help=about) for key, name, unit, about in quantities)
    body = tuple((row["name"], *(_cell(value(row, key)) for key, *_ in quantities)) for row in rows)
    return Table(columns, body, title=title, interactive=True, where="page")


def _cell(found: Any) -> Cell:
    return "×".join(map(str, found)) if isinstance(found, list) else found


def depth_map(title: str, rows: Sequence[Row], quantities: Sequence[Quantity], caption: str = "") -> list[Block]:
    """A depth × type grid; the mean where several modules share a cell. Nothing where there are fewer than two layers
    or no numbers."""
    shown = [q for q in quantities if any(value(row, q[0]) is not None for row in rows)]
    depths = sorted({row["depth"] for row in rows if row["depth"] is not None})
    if len(depths) < 2 or not shown:
        return []
    types = list(by_type(rows))
    cells: dict[tuple, list[Row]] = {}
    for row in rows:
        cells.setdefault((row["depth"], row["type"]), []).append(row)

    def cell(d: int, t: str, key: str) -> float | None:
        known = [v for row in cells.get((d, t), []) if (v := value(row, key)) is not None]
        return float(np.mean(known)) if known else None

    layers = tuple(
        Measure(key, name, tuple(tuple(cell(d, t, key) for t in types) for d in depths), unit, help=about)
        for key, name, unit, about in shown
    )
    return [
        Heatmap(
            title, tuple(map(str, depths)), tuple(types), layers, "layer", "module type", where="page",
            caption=f"{caption} Empty cells have no adapted module.".strip(),
        )
    ]  # fmt: skip


def cumulative(
    title: str, rows: Sequence[Row], key: str, x_label: str, markers: tuple[Marker, ...] = (), caption: str = ""
) -> list[Block]:
    """The share of a vector's entries at or below each value, a thin line for each module and a panel for each type.

    `key` leads to a `numbers.distribution`. Nothing where no row has one.
    """
    y = tuple(LEVELS.tolist())
    series = []
    for name, group in by_type(rows).items():
        known = [row for row in group if value(row, key)]
        for row in known:
            weight = "thin" if len(known) > 1 else "normal"
            label = row["name"] if len(known) > 1 else "the one module"
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


def extreme(rows: Sequence[Row], key: str, pick: Callable = max) -> Row | None:
    """The row with the largest (or, with `min`, smallest) value at `key`; None where no row has one."""
    known = [row for row in rows if value(row, key) is not None]
    return pick(known, key=lambda row: value(row, key)) if known else None


def percent(share: float, digits: int = 2) -> str:
    """`digits` significant digits, never in exponents: 0.2912 is "29 %"."""
    return f"{np.format_float_positional(100 * share, digits, fractional=False, trim='-')} %"
