"""Tables as views: what each column looks like, what each cell says, and which columns say the same in every row."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from lorascope import blocks
from lorascope.blocks import Cell, Column, Table
from lorascope.report import prose
from lorascope.report import text as t
from lorascope.report.prose import PLAIN_FILE
from lorascope.report.views import CellView, ColumnView, TableView

MAX_CELLS, MAX_ROWS = 30_000, 2_000  # of one table
LONGEST_NAME = 300
LONGEST_PROSE, LONGEST_WORD = 2000, 60  # of a cell in sentences, which breaks between words
LONG_CELL = 64  # characters from which on a column of text breaks its lines
BREAKING_FROM = 24  # characters of a name: a shorter one finds room on a phone
BAR = 20  # steps of the longest bar in a cell
FOLDED_FROM = 8  # columns of an interactive table from which on constant ones are folded away


def rows_of(table: Table) -> tuple[tuple[Cell, ...], ...]:
    """The rows that are drawn."""
    return table.rows[: min(MAX_ROWS, MAX_CELLS // max(len(table.columns), 1))]


def view(
    block: Table,
    number: int,
    names: Mapping[str, str],
    definitions: Mapping[str, str],
    is_site: bool = False,
    title: str = "",
) -> TableView:
    """`block` as a view.

    Args:
        number: its number on the page.
        names: anchors of rows by the text of their first cell.
        definitions: where definitions are, by the key of a column.
        is_site: whether the page is part of a site; see `prose.target`.
    """
    rows = rows_of(block)
    bare = is_site and not (block.title or block.caption or block.interactive)
    constant = _constant(block, rows)
    kept = [j for j in range(len(block.columns)) if j not in constant]
    shown = [block.columns[j] for j in kept]
    defined = {c.key: definitions.get(c.metric or c.key, "") or prose.target(c.to, is_site) for c in block.columns}
    columns = tuple(_column(block.columns[j], [row[j] for row in rows], len(kept), defined) for j in kept)
    drawn = [_cells(block, rows, j, column, is_site) for j, column in zip(kept, columns, strict=True)]
    wordy = sum(column.css.endswith("w") for column in columns)
    notes = (f"The first {len(rows):,} of {len(block.rows):,} rows.",) if len(block.rows) > len(rows) else ()
    texts = [(t.visible(block.columns[j].title), _cell(rows[0][j], block.columns[j], 0).text) for j in constant]
    same = tuple((title_, text) for title_, text in texts if text not in ("", t.ABSENT))
    return TableView(
        "table",
        block,
        number=number,
        title=title,
        columns=columns,
        rows=tuple(zip(*drawn, strict=True)) if rows else (),
        anchors=_anchors(block, rows, names),
        wide=not bare and (len(kept) > 9 or wordy > 2),
        dense=wordy > 4,
        bare=bare,
        long=not bare and len(rows) > 24,
        notes=notes,
        constant=same,
        pick=next((j for j, c in enumerate(shown) if t.is_numeric(c) and c.unit != "int"), 1),
    )


def _anchors(block: Table, rows: Sequence[tuple[Cell, ...]], names: Mapping[str, str]) -> tuple[str, ...]:
    """Of each row its own anchor, else the one that a finding leads to, else none."""
    stated = (*block.anchors, *[""] * len(rows))
    named = (names.get(row[0], "") if block.interactive and row and isinstance(row[0], str) else "" for row in rows)
    return tuple(anchor or name for anchor, name in zip(stated, named, strict=False))


def _constant(block: Table, rows: Sequence[tuple[Cell, ...]]) -> list[int]:
    """Columns of a wide interactive table in which all rows say the same."""
    if not block.interactive or len(block.columns) < FOLDED_FROM or len(rows) < 3:
        return []
    return [j for j in range(1, len(block.columns)) if len({row[j] for row in rows}) == 1]


def _longest(block: Table, rows: Sequence[tuple[Cell, ...]], j: int) -> float:
    """The value of the longest bar in a column of shares; 0 where it has none."""
    if not block.interactive or block.columns[j].unit != "percent":
        return 0.0
    values = [v for row in rows if isinstance(v := row[j], int | float) and math.isfinite(v)]
    return max(values, default=0.0) if min(values, default=-1.0) >= 0 else 0.0


def _column(column: Column, cells: Sequence[Cell], many: int, definitions: Mapping[str, str]) -> ColumnView:
    """A text column counts as code when at least half of its cells look like dotted names; cells in pieces say it
    themselves. Next to many others, prose breaks its lines early."""
    css = ""
    if not t.is_numeric(column):
        texts = [cell.text if isinstance(cell, blocks.Link) else cell for cell in cells]
        plain = [text for text in texts if isinstance(text, str)]
        words = plain + [cell.text for cell in cells if isinstance(cell, blocks.Rich)]
        names = [w for w in plain if ("." in w or "_" in w) and " " not in w and any(map(str.isalpha, w))]
        is_code = column.unit == "code" or (words and 2 * len(names) >= len(words))
        room = LONG_CELL if is_code or many < 6 else LONG_CELL // 2
        css = "t" + (" c" if is_code else "") + (" w" if any(len(w) > room for w in words) else "")
    return ColumnView(
        title=t.visible(column.title),
        help=prose.plain(column.help),
        css=css,
        badges=column.unit == "verdict",
        definition=definitions.get(column.key, ""),
    )


def _cells(block: Table, rows: Sequence[tuple[Cell, ...]], j: int, drawn: ColumnView, is_site: bool) -> list[CellView]:
    """The cells of one column, whose numbers have one format and whose bars one scale."""
    column, longest = block.columns[j], _longest(block, rows, j)
    scientific = t.one_format([row[j] for row in rows], column.digits)
    words = " c" not in drawn.css
    return [_cell(row[j], column, longest, scientific, is_site=is_site, words=words) for row in rows]


def linked(value: blocks.Link | str) -> CellView:
    """A text, with where it leads: nowhere, if that is not a plain file name."""
    file = value.file if isinstance(value, blocks.Link) and PLAIN_FILE.fullmatch(value.file) else ""
    return CellView(text=t.cell(value), key="", file=file)


def _cell(
    value: Cell,
    column: Column,
    longest: float,
    scientific: bool | None = None,
    *,
    is_site: bool = False,
    words: bool = False,
) -> CellView:
    """`words`: its text is prose, whose indices are set as such, and not a name."""
    if isinstance(value, blocks.Rich):
        return CellView(text=prose.markup(value, is_site), key="")
    text = t.cell(value, column.unit, column.digits, scientific)
    is_prose = column.unit == "text" and max(map(len, text.split()), default=0) < LONGEST_WORD
    text = t.shorten(text, LONGEST_PROSE if is_prose else LONGEST_NAME)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    key = f"{value:.7g}" if is_number and column.unit != "text" else ""
    file = linked(value).file if isinstance(value, blocks.Link) else ""
    bar = round(BAR * value / longest) if longest and is_number and math.isfinite(value) else None  # type: ignore[arg-type,operator]
    shown: str | Markup = text
    if isinstance(value, str | blocks.Link) and column.unit != "verdict":
        shown = prose.pretty(text) if words else prose.breaking(text) if len(text) > BREAKING_FROM else text
    return CellView(text=shown, key="" if key == text.replace(",", "") else key, file=file, bar=bar or None)
