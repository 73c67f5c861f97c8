"""Heatmap as geometry: where each cell stands, how dark it is, what it says. The template draws it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorascope.blocks import Heatmap, Measure, Number
from lorascope.report import text as t
from lorascope.report.palette import MAKO

WIDTH, THIRD = 1040, 336
LEVELS = len(MAKO)
MAX_CELLS_A_SIDE = 160
BAR_ROOM, COLUMN_BAR = 150, 40  # pixels for the bars of the rows with their labels, and for those of the columns
_LINE = 12  # pixels between two labels of rows, at least
_LETTER = 7  # pixels that a letter of a label takes, at most, on average
_ROW_LETTERS, _COLUMN_LETTERS = 35, 6  # of a row's label at most; of a column's at least, where it is cut
UNEVEN = 30  # times the median from which on the greatest value leaves the others pale, and the scale is one of ratios
_RATIO = 1e6  # of the greatest value to the least on a scale that was not asked for


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
class Bar:
    """A bar on the rim, and what it says."""

    x: float
    y: float
    width: float
    height: float
    says: str


@dataclass(frozen=True)
class Grid:
    """A heatmap, drawn: everything in pixels of a drawing `width` wide and `height` high."""

    width: int
    height: int
    cell_width: int
    cell_height: int
    layers: tuple[Layer, ...]
    rows: tuple[Label, ...]
    columns: tuple[Label, ...]
    row_label: Label
    column_label: Label
    notes: tuple[str, ...]
    sections: tuple[Label, ...] = ()
    bars: tuple[Bar, ...] = ()
    shares: tuple[Label, ...] = ()  # what the bars of the rows come to
    shares_label: Label = Label(0, 0, "")


@dataclass(frozen=True)
class _Frame:
    """Where things stand: the cells' left edge and size, and the y of each row."""

    left: int
    width: int
    height: int
    ys: tuple[int, ...]


def layout(block: Heatmap) -> Grid:
    """`block` as geometry. The first MAX_CELLS_A_SIDE rows and columns are drawn; a note says so where that cuts."""
    rows = [t.visible(row) for row in block.rows[:MAX_CELLS_A_SIDE]]
    columns = [t.visible(column) for column in block.columns[:MAX_CELLS_A_SIDE]]
    row_label, column_label = t.visible(block.row_label), t.visible(block.column_label)
    shares_label = t.visible(block.shares_label) if block.column_shares else ""
    named, left_out = _row_names(rows, block)
    words = [*named, row_label and row_label + " ↓", column_label and column_label + " →", shares_label]
    left = min(260, max(map(len, words)) * _LETTER + 14)
    rim = BAR_ROOM if block.row_shares else 2
    whole = THIRD if block.third else WIDTH
    longest = 0 if block.third else max(map(len, columns), default=0) * _LETTER + 8
    width = max(4, min(max(120, longest), (whole - left - rim) // max(len(columns), 1)))
    height = min(26, width) if block.third else 26 if len(rows) <= 40 else 16
    parts = _parts(block, columns, len(rows), (left, width, height))
    frame = _Frame(left, width, height, parts.ys)
    row_bars, shares = _row_bars(block, rows, frame, left + width * len(columns) + 14)
    return Grid(
        width=whole,
        height=max(parts.bottom - 8, 30),
        cell_width=width,
        cell_height=height,
        layers=tuple(_layer(m, block, rows, columns, frame) for m in block.measures),
        rows=tuple(
            Label(left - 8, at + height / 2, t.shorten(row, _ROW_LETTERS))
            for i, (row, at) in enumerate(zip(named, parts.ys, strict=True))
            if i % math.ceil(_LINE / height) == 0
        ),
        columns=parts.columns,
        row_label=Label(left - 8, 12, "" if block.column_shares else row_label),
        column_label=Label(left - 8, parts.bottom - 19, column_label),
        notes=(*_notes(block), *left_out),
        sections=parts.titles,
        bars=(*parts.bars, *row_bars),
        shares=shares,
        shares_label=Label(left - 8, parts.ys[0] - 12 if parts.ys else 12, shares_label),
    )


def _row_names(rows: list[str], block: Heatmap) -> tuple[list[str], tuple[str, ...]]:
    """The rows' labels: long ones without what all of a section have in common, which a note names."""
    named: list[str] = []
    common = []
    for _, count in block.sections or (("", len(rows)),):
        names = rows[len(named) : len(named) + count]
        short, shared = t.without_common(names) if any(len(n) > _ROW_LETTERS for n in names) else (names, "")
        named += short
        common += [shared] if shared else []
    quoted = ", ".join(f"“{shared}”" for shared in common)
    return named, (f"Left out of the rows' names: {quoted}.",) if common else ()


def _column_names(columns: list[str], width: int) -> list[str]:
    """The columns' labels: names that are too long for their columns without what all have in common, or cut; "" where
    one label in several finds room."""
    letters = (width - 4) // _LETTER
    names = columns
    if letters >= _COLUMN_LETTERS and not all(column.isdecimal() for column in columns):
        if any(len(name) > letters for name in names):
            names, _ = t.without_common(names)
        names = [t.shorten(name, letters) for name in names]
    every = _every(names, width)
    return [name if j % every == 0 else "" for j, name in enumerate(names)]


@dataclass(frozen=True)
class _Parts:
    """The sections under one another: the y of each row, titles, column labels, bars, and where they end."""

    ys: tuple[int, ...]
    titles: tuple[Label, ...]
    columns: tuple[Label, ...]
    bars: tuple[Bar, ...]
    bottom: int


def _parts(block: Heatmap, columns: list[str], rows: int, sizes: tuple[int, int, int]) -> _Parts:
    left, width, height = sizes
    labels = _column_names(columns, width)
    y = 22 if block.row_label and not block.column_shares else 4
    ys: list[int] = []
    titles: list[Label] = []
    names: list[Label] = []
    bars: list[Bar] = []
    for s, (title, count) in enumerate(block.sections or (("", rows),)):
        count = min(count, rows - len(ys))
        if count <= 0 and block.sections:
            break
        if title:
            titles.append(Label(left, y + 15, t.visible(title)))
            y += 24
        if block.column_shares:
            place = (left, y, width)
            bars += _column_bars(block.column_shares[s][: len(columns)], columns, place, t.visible(block.column_label))
            y += COLUMN_BAR + 5
        ys += [y + i * height for i in range(count)]
        y += count * height
        names += [Label(left + (j + 0.5) * width, y + 15, label) for j, label in enumerate(labels) if label]
        y += 34
    return _Parts(tuple(ys), tuple(titles), tuple(names), tuple(bars), y)


def _every(columns: list[str], width: int) -> int:
    """One label in how many finds room; of numbers, one in 1, 2, 4, 5, 10, 20 ..."""
    every = max(1, math.ceil((max((len(c) for c in columns), default=1) * _LETTER + 4) / width))
    if all(column.isdecimal() for column in columns):
        every = next((n for n in (1, 2, 4, 5, 10, 20, 40, 80) if n >= every), every)
    return every


def _column_bars(
    shares: Sequence[Number], columns: list[str], place: tuple[int, int, int], label: str
) -> Iterator[Bar]:
    left, top, width = place
    most = max((v for v in shares if v), default=0)
    for j, (share, column) in enumerate(zip(shares, columns, strict=True)):
        if share and most:
            tall = max(1.0, round(COLUMN_BAR * share / most, 1))
            says = f"{label} {column}: {t.cell(share, 'percent')}".strip()
            yield Bar(left + j * width + 2, round(top + COLUMN_BAR - tall, 1), max(width - 4, 2), tall, says)


def _row_bars(block: Heatmap, rows: list[str], frame: _Frame, x: int) -> tuple[list[Bar], tuple[Label, ...]]:
    shares = block.row_shares[: len(rows)]
    most = max((v for v in shares if v), default=0)
    bars, labels = [], []
    for share, row, y in zip(shares, rows, frame.ys, strict=False):
        if share is not None and most:
            wide = max(1.0, round((BAR_ROOM - 66) * share / most, 1))
            text = t.cell(share, "percent")
            bars.append(Bar(x, y + 5, wide, frame.height - 10, f"{row}: {text}"))
            labels.append(Label(x + wide + 5, y + frame.height / 2, text))
    return bars, tuple(labels)


def _notes(block: Heatmap) -> tuple[str, ...]:
    sides = (("rows", len(block.rows)), ("columns", len(block.columns)))
    return tuple(f"The first {MAX_CELLS_A_SIDE} of {n} {what} are drawn." for what, n in sides if n > MAX_CELLS_A_SIDE)


def _layer(measure: Measure, block: Heatmap, rows: list[str], columns: list[str], frame: _Frame) -> Layer:
    scale = _scale(measure)
    column_label = t.visible(block.column_label)
    cells = []
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            value = measure.values[i][j]
            shown = t.cell(value, measure.unit) if value is not None else "none"
            level = None if value is None or scale is None else scale.level(value)
            place = f"{row}, {column_label} {column}".replace("  ", " ")
            fits = len(shown) * 6.5 + 6 <= frame.width and value is not None
            x, y = frame.left + j * frame.width, frame.ys[i]
            cells.append(Cell(x, y, level, f"{place}: {shown}", shown if fits else ""))
    ticks, is_log = None, measure.log
    if scale is not None:
        low, middle, high = (t.cell(v, measure.unit) for v in scale.ticks())
        ticks, is_log = (low, middle, high), scale.log
    marks = tuple(
        Mark(scale.share(at) * LEVELS, f"{t.visible(name)} {t.cell(at, measure.unit)}")
        for at, name in measure.marks
        if scale is not None and scale.least <= at <= scale.greatest
    )
    return Layer(t.visible(measure.title), t.visible(measure.help), tuple(cells), ticks, is_log, marks)


def _scale(measure: Measure) -> "_Scale | None":
    """None where there is nothing to draw. By ratios where it is asked for, or where few values are much larger than
    the others, which would all be pale: one component's next to another's."""
    finite = [v for row in measure.values for v in row if v is not None and math.isfinite(v)]
    positive = [v for v in finite if v > 0]
    uneven = not measure.limits and bool(positive) and min(finite) >= 0
    uneven = uneven and max(positive) > UNEVEN * sorted(positive)[len(positive) // 2]
    values = positive if measure.log or uneven else finite
    if not values:
        return None
    least, greatest = measure.limits or (min(values), max(values))
    if uneven and not measure.log:
        least = max(least, greatest / _RATIO)
    return _Scale(least, greatest, measure.log or uneven)


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
