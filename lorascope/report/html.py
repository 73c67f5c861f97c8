"""A page as one HTML file: no network, readable without JavaScript, printable, light and dark.

Blocks become views (frozen data with every number already a string), and Jinja templates with autoescape draw the
views. The content policy in the head allows the page's own style and script by their hash and nothing else, so that
no string from a file can run even if an escape were missed.
"""

import base64
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from lorascope import blocks
from lorascope.blocks import Block, Cell, Column, Page, Table
from lorascope.outputs import write_text
from lorascope.report import figures, heatmap, palette
from lorascope.report import text as t

MAX_CELLS, MAX_ROWS = 30_000, 2_000  # of one table
LONGEST_NAME = 300
LONGEST_PROSE, LONGEST_WORD = 2000, 60  # of a cell in sentences, which breaks between words
LONG_CELL = 64  # characters from which on a column of text breaks its lines
FINDINGS_OPEN = 10  # further ones fold away
SEVERITIES = ("error", "warning", "note")
_PLAIN_FILE = re.compile(r"[\w-]+(\.[\w-]+)*")  # no path and no scheme: a link stays in the page's folder


def write(page: Page, path: str | os.PathLike) -> None:
    """Writes the page to `path`, whole or not at all. LorascopeError where the file cannot be written."""
    write_text(Path(path), render(page))


def render(page: Page) -> str:
    """The page as the text of one HTML file; the same page gives the same text."""
    drawing = _Drawing(names=_named_rows(page))
    previous: Block | None = None
    for block in page.blocks:
        if block.where != "terminal":
            drawing.add(block, previous)
            previous = block
    environment = _environment()
    switches = max((len(v.grid.layers) for v in drawing.views if isinstance(v, HeatmapView)), default=0)
    style = environment.get_template("style.css").render(
        palette=palette, switches=switches, figures=drawing.styles.css()
    )
    script = environment.get_template("page.js").render()
    return environment.get_template("page.html").render(
        page=page,
        views=drawing.views,
        contents=drawing.contents,
        levels=range(heatmap.LEVELS),
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _environment() -> jinja2.Environment:
    """Autoescape for the page alone: style and script hold nothing from a file, and are not HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: name is None or name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = t.visible
    environment.filters["breaking"] = _breaking
    environment.filters["interval"] = t.interval
    environment.filters["paragraphs"] = lambda text: [t.visible(part) for part in text.split("\n\n") if part.strip()]
    environment.filters["source_text"] = lambda text: "\n".join(t.visible(line) for line in text.splitlines())
    return environment


def _breaking(name: str) -> Markup:
    """A dotted name that may break after its dots."""
    name = t.shorten(t.visible(name), LONGEST_NAME)
    return Markup(".<wbr>").join(escape(part) for part in name.split("."))


# --- views: what the templates draw -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """One drawn block. `kind` names the template's macro, `number` counts the figures or the tables."""

    kind: str
    block: Block
    anchor: str = ""
    title: str = ""
    level: int = 2
    number: int = 0


@dataclass(frozen=True, kw_only=True)
class FindingView:
    finding: blocks.Finding
    row: str  # the anchor of the module's row in a table, "" where there is none


@dataclass(frozen=True, kw_only=True)
class FindingsView(View):
    items: tuple[FindingView, ...]
    shown: int


@dataclass(frozen=True, kw_only=True)
class CellView:
    """`key` is what a column of numbers sorts by; "" where the text itself is as good. `file` is where it leads."""

    text: str
    key: str
    file: str = ""


@dataclass(frozen=True, kw_only=True)
class ColumnView:
    """`css` is the classes of its cells: none for numbers, t for text, c for code, w where lines may break. `badges` is
    true where cells that are a verdict are drawn as one."""

    title: str
    help: str
    css: str
    badges: bool


@dataclass(frozen=True, kw_only=True)
class TableView(View):
    columns: tuple[ColumnView, ...]
    rows: tuple[tuple[CellView, ...], ...]
    anchors: tuple[str, ...]
    wide: bool
    long: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FigureView(View):
    drawing: figures.Drawing
    svg: Markup


@dataclass(frozen=True, kw_only=True)
class HeatmapView(View):
    grid: heatmap.Grid


@dataclass(frozen=True)
class Entry:
    """A line of the table of contents."""

    anchor: str
    title: str
    level: int


@dataclass
class _Drawing:
    """A page being drawn: what was drawn so far, and the counts that number it."""

    names: dict[str, str]
    views: list[View] = field(default_factory=list)
    contents: list[Entry] = field(default_factory=list)
    styles: figures.Styles = field(default_factory=figures.Styles)
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, what: str) -> int:
        self.counts[what] = self.counts.get(what, 0) + 1
        return self.counts[what]

    def add(self, block: Block, previous: Block | None) -> None:
        draw = _VIEWS.get(type(block))
        if draw is None:
            raise TypeError(f"no way to draw a {type(block).__name__} on a page")
        self.views.append(draw(self, block, previous))

    def section(self, title: str, level: int) -> str:
        """A new anchor, and its line in the contents."""
        anchor = f"s{self.count('section')}"
        if level <= 3:
            self.contents.append(Entry(anchor, t.visible(title), level))
        return anchor


def _heading(d: _Drawing, block: blocks.Heading, previous: Block | None) -> View:
    level = max(2, min(block.level, 4))
    return View("heading", block, d.section(block.text, level), block.text, level)


def _text(d: _Drawing, block: blocks.Text, previous: Block | None) -> View:
    return View("text", block)


def _summary(d: _Drawing, block: blocks.Summary, previous: Block | None) -> View:
    return View("summary", block)


def _own_title(d: _Drawing, title: str, previous: Block | None) -> dict:
    """A titled block opens a section of its own, unless a heading stands right above it."""
    if not title or (isinstance(previous, blocks.Heading) and previous.text == title):
        return {}
    if isinstance(previous, blocks.Heading):
        return {"title": title, "level": min(previous.level, 4) + 1}
    return {"anchor": d.section(title, 2), "title": title, "level": 2}


def _facts(d: _Drawing, block: blocks.Facts, previous: Block | None) -> View:
    return View("facts", block, **_own_title(d, block.title, previous))


def _definitions(d: _Drawing, block: blocks.Definitions, previous: Block | None) -> View:
    return View("definitions", block, **_own_title(d, block.title, previous))


def _code(d: _Drawing, block: blocks.Code, previous: Block | None) -> View:
    return View("code", block, title=block.title, level=3) if block.title else View("code", block)


def _findings(d: _Drawing, block: blocks.Findings, previous: Block | None) -> View:
    ordered = sorted(block.items, key=lambda f: SEVERITIES.index(f.severity))
    items = tuple(FindingView(finding=f, row=d.names.get(f.module or "", "")) for f in ordered)
    shown = len(items) if len(items) <= FINDINGS_OPEN + 2 else FINDINGS_OPEN
    return FindingsView("findings", block, **_own_title(d, block.title, previous), items=items, shown=shown)


def _claims(d: _Drawing, block: blocks.Claims, previous: Block | None) -> View:
    return View("claims", block, **_own_title(d, block.title, previous))


def _lines(d: _Drawing, block: blocks.Lines, previous: Block | None) -> View:
    number = d.count("figure")
    drawing = figures.draw(block, f"g{number}", d.styles, f"figure-{number}-caption")
    # safe: made by matplotlib and serialised by ElementTree, which escapes every text and attribute
    return FigureView("lines", block, number=number, title=block.title, drawing=drawing, svg=Markup(drawing.svg))


def _heatmap(d: _Drawing, block: blocks.Heatmap, previous: Block | None) -> View:
    return HeatmapView("heatmap", block, number=d.count("figure"), title=block.title, grid=heatmap.layout(block))


def _table(d: _Drawing, block: Table, previous: Block | None) -> View:
    most = min(MAX_ROWS, MAX_CELLS // max(len(block.columns), 1))
    rows = block.rows[:most]
    columns = tuple(_column(c, j, rows, len(block.columns)) for j, c in enumerate(block.columns))
    notes = (f"The first {most:,} of {len(block.rows):,} rows.",) if len(block.rows) > most else ()
    return TableView(
        "table",
        block,
        number=d.count("table"),
        title=block.title,
        columns=columns,
        rows=tuple(tuple(_cell(v, c) for v, c in zip(row, block.columns, strict=True)) for row in rows),
        anchors=tuple(
            d.names.get(row[0], "") if block.interactive and row and isinstance(row[0], str) else "" for row in rows
        ),
        wide=len(block.columns) > 9 or sum(column.css.endswith("w") for column in columns) > 2,
        long=len(rows) > 24,
        notes=notes,
    )


def _column(column: Column, j: int, rows: tuple[tuple[Cell, ...], ...], many: int) -> ColumnView:
    """A text column counts as code when at least half of its cells look like dotted names. Beside many others, prose
    breaks its lines early."""
    css = ""
    if not t.is_numeric(column):
        cells = [cell.text if isinstance(cell := row[j], blocks.Link) else cell for row in rows]
        words = [word for word in cells if isinstance(word, str)]
        names = [w for w in words if ("." in w or "_" in w) and " " not in w]
        is_code = column.unit == "code" or (words and 2 * len(names) >= len(words))
        room = LONG_CELL if is_code or many < 6 else LONG_CELL // 2
        css = "t" + (" c" if is_code else "") + (" w" if any(len(w) > room for w in words) else "")
    title, badges = t.visible(column.title), column.unit == "verdict"
    return ColumnView(title=title, help=t.visible(column.help), css=css, badges=badges)


def _cell(value: Cell, column: Column) -> CellView:
    text = t.cell(value, column.unit, column.digits)
    prose = column.unit == "text" and max(map(len, text.split()), default=0) < LONGEST_WORD
    text = t.shorten(text, LONGEST_PROSE if prose else LONGEST_NAME)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    key = f"{value:.7g}" if is_number and column.unit != "text" else ""
    file = value.file if isinstance(value, blocks.Link) and _PLAIN_FILE.fullmatch(value.file) else ""
    return CellView(text=text, key="" if key == text else key, file=file)


def _named_rows(page: Page) -> dict[str, str]:
    """Anchors for the rows that a finding speaks of: the first row, in an interactive table, that bears its name."""
    wanted = {f.module for b in page.blocks if isinstance(b, blocks.Findings) for f in b.items if f.module}
    found: dict[str, str] = {}
    for table in (b for b in page.blocks if isinstance(b, Table) and b.interactive and b.where != "terminal"):
        for row in table.rows[: min(MAX_ROWS, MAX_CELLS // max(len(table.columns), 1))]:
            if row and row[0] in wanted and row[0] not in found:
                found[str(row[0])] = f"row-{len(found) + 1}"
    return found


_VIEWS: dict[type[Block], Callable[..., View]] = {
    blocks.Heading: _heading,
    blocks.Text: _text,
    blocks.Summary: _summary,
    blocks.Facts: _facts,
    blocks.Findings: _findings,
    blocks.Claims: _claims,
    Table: _table,
    blocks.Lines: _lines,
    blocks.Heatmap: _heatmap,
    blocks.Definitions: _definitions,
    blocks.Code: _code,
}
