"""Heatmap as geometry: where each cell stands, how dark it is, what it says. The template draws it."""

import math
from dataclasses import dataclass

from lorascope.blocks import Heatmap, Measure
from lorascope.report import text as t
from lorascope.report.palette import MAKO

WIDTH = 1040
LEVELS = len(MAKO)
MAX_CELLS_A_SIDE = 160
_LETTER = 7  # pixels that a letter of a label takes, at most, on average


@dataclass(frozen=True)
class Cell:
    """`level` from 0 (least) to LEVELS - 1; None where there is no such module. `text` stands in roomy cells."""

    x: int
    y: int
    level: int | None
    says: str
    text: str


@dataclass(frozen=True)
class Label:
    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Mark:
    """A named value on the colour scale; `at` from 0 to LEVELS."""

    at: float
    says: str


@dataclass(frozen=True)
class Layer:
    """One measure, drawn. `ticks` are the colour scale's least, middle and greatest values."""

    title: str
    help: str
    cells: tuple[Cell, ...]
    ticks: tuple[str, str, str] | None
    log: bool
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class Grid:
    """A heatmap, drawn: everything in pixels of a drawing WIDTH wide and `height` high."""

    height: int
    cell_width: int
    cell_height: int
    layers: tuple[Layer, ...]
    rows: tuple[Label, ...]
    columns: tuple[Label, ...]
    row_label: Label
    column_label: Label
    notes: tuple[str, ...]


def layout(block: Heatmap) -> Grid:
    """`block` as geometry. The first MAX_CELLS_A_SIDE rows and columns are drawn; a note says so where that cuts."""
    rows = [t.visible(row) for row in block.rows[:MAX_CELLS_A_SIDE]]
    columns = [t.visible(column) for column in block.columns[:MAX_CELLS_A_SIDE]]
    row_label, column_label = t.visible(block.row_label), t.visible(block.column_label)
    left = min(260, max(len(label) for label in [*rows, row_label and row_label + " ↓"]) * _LETTER + 14)
    width = max(5, min(120, (WIDTH - left - 2) // max(len(columns), 1)))
    height = 26 if len(rows) <= 40 else 16
    every = max(1, math.ceil((max((len(c) for c in columns), default=1) * _LETTER + 4) / width))
    top = 22 if row_label or column_label else 4
    bottom = top + len(rows) * height
    return Grid(
        height=bottom + 26,
        cell_width=width,
        cell_height=height,
        layers=tuple(_layer(m, block, rows, columns, (left, top, width, height)) for m in block.measures),
        rows=tuple(
            Label(left - 8, top + (i + 0.5) * height, t.shorten(row, 250 // _LETTER)) for i, row in enumerate(rows)
        ),
        columns=tuple(
            Label(left + (j + 0.5) * width, bottom + 15, column) for j, column in enumerate(columns) if j % every == 0
        ),
        row_label=Label(left - 8, 12, row_label),
        column_label=Label(left, 12, column_label),
        notes=_notes(block),
    )


def _notes(block: Heatmap) -> tuple[str, ...]:
    sides = (("rows", len(block.rows)), ("columns", len(block.columns)))
    return tuple(f"The first {MAX_CELLS_A_SIDE} of {n} {what} are drawn." for what, n in sides if n > MAX_CELLS_A_SIDE)


def _layer(
    measure: Measure, block: Heatmap, rows: list[str], columns: list[str], box: tuple[int, int, int, int]
) -> Layer:
    left, top, width, height = box
    values = [v for row in measure.values for v in row if v is not None and _drawable(v, measure.log)]
    least, greatest = measure.limits or (min(values, default=0.0), max(values, default=0.0))
    scale = _Scale(least, greatest, measure.log) if values else None
    column_label = t.visible(block.column_label)
    cells = []
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            value = measure.values[i][j]
            shown = t.cell(value, measure.unit) if value is not None else "none"
            level = None if value is None or scale is None else scale.level(value)
            place = f"{row}, {column_label} {column}".replace("  ", " ")
            fits = len(shown) * 6.5 + 6 <= width and value is not None
            cells.append(Cell(left + j * width, top + i * height, level, f"{place}: {shown}", shown if fits else ""))
    ticks = None
    if scale is not None:
        low, middle, high = (t.cell(v, measure.unit) for v in scale.ticks())
        ticks = (low, middle, high)
    marks = tuple(
        Mark(scale.share(at) * LEVELS, f"{t.visible(name)} {t.cell(at, measure.unit)}")
        for at, name in measure.marks
        if scale is not None and scale.least <= at <= scale.greatest
    )
    return Layer(t.visible(measure.title), t.visible(measure.help), tuple(cells), ticks, measure.log, marks)


def _drawable(value: float, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)


@dataclass(frozen=True)
class _Scale:
    """From values to levels; by ratios where `log`."""

    least: float
    greatest: float
    log: bool

    def level(self, value: float) -> int:
        """NaN counts as least, and so does what is not positive on a scale of ratios."""
        if math.isnan(value) or (self.log and value <= 0):
            return 0
        return LEVELS // 2 if self.greatest == self.least else round(self.share(value) * (LEVELS - 1))

    def share(self, value: float) -> float:
        """Where on the scale a value stands, from 0 to 1."""
        if self.greatest == self.least:
            return 0.5
        if self.log:
            share = math.log(value / self.least) / math.log(self.greatest / self.least)
        else:
            share = (value - self.least) / (self.greatest - self.least)
        return max(0.0, min(1.0, share))

    def ticks(self) -> tuple[float, float, float]:
        middle = math.sqrt(self.least * self.greatest) if self.log else (self.least + self.greatest) / 2
        return self.least, middle, self.greatest
