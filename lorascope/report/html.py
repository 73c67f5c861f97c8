"""A page as one HTML file: no network, readable without JavaScript, printable, light and dark.

Blocks become views (frozen data with every number already a string), and Jinja templates with autoescape draw the
views. The content policy in the head allows the page's own style and script by their hash and nothing else, so that
no string from a file can run even if an escape were missed.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import get_args

import jinja2
from markupsafe import Markup

from lorascope import blocks
from lorascope.blocks import SEVERITIES, Block, Page, Table
from lorascope.outputs import write_text
from lorascope.report import figures, forest, heatmap, palette, prose, tables
from lorascope.report import text as t
from lorascope.report.tables import LONGEST_NAME
from lorascope.report.views import (
    CellView,
    DefinitionsView,
    FigureView,
    FindingsView,
    FindingView,
    FoldedView,
    ForestRowView,
    ForestView,
    HeatmapView,
    PicturesView,
    PictureView,
    ProseView,
    SummaryView,
    TilesView,
    TileView,
    View,
)

FINDINGS_OPEN = 10  # further ones fold away
CARDS_OPEN = 4  # on the first screen
FACTS_OPEN = 6  # longer lists of facts fold away where they are not what the page is about
PLAIN = ("heading", "text", "prose", "items", "facts", "table", "definitions", "code", "pictures")
_IMAGE = re.compile(r"data:image/(png|webp);base64,[A-Za-z0-9+/]+=*")


def write(page: Page, path: str | os.PathLike) -> None:
    """Writes the page to `path`, whole or not at all. LorascopeError where the file cannot be written."""
    write_text(Path(path), render(page))


def render(page: Page) -> str:
    """The page as the text of one HTML file; the same page gives the same text."""
    shown = _flat(page.blocks)
    definitions, terms = _defined(shown)
    drawing = _Drawing(_named_rows(shown), definitions, terms, is_site=bool(page.site))
    top = drawing.all(_arranged(_shown(page.blocks)))
    environment = _environment()
    switches = max((len(v.grid.layers) for v in drawing.views if isinstance(v, HeatmapView)), default=0)
    plain = all(_is_plain(view) for view in drawing.views)
    style = environment.get_template("style.css").render(
        palette=palette,
        switches=switches,
        figures=drawing.styles.css(),
        bars=tables.BAR,
        plain=plain,
        pictures=any(view.kind == "pictures" for view in drawing.views),
    )
    script = environment.get_template("page.js").render(plain=plain)
    return environment.get_template("page.html").render(
        page=page,
        up=tables.linked(page.up) if page.up else None,
        shelves=[(shelf.title, [(link.file, tables.linked(link)) for link in shelf.links]) for shelf in page.site],
        views=top,
        contents=drawing.contents,
        levels=range(heatmap.LEVELS),
        has_scale=switches > 0,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _is_plain(view: View) -> bool:
    """Whether it needs no more of style and script than text does."""
    return view.kind in PLAIN and not (isinstance(view.block, Table) and view.block.interactive)


def _shown(made: Sequence[Block]) -> list[Block]:
    return [block for block in made if block.where != "terminal"]


def _flat(made: Sequence[Block]) -> list[Block]:
    """The blocks of a page, those that are folded among them."""
    return [
        each
        for block in _shown(made)
        for each in (_flat(block.blocks) if isinstance(block, blocks.Folded) else [block])
    ]


def _arranged(made: Sequence[Block], said: frozenset[blocks.Finding] = frozenset()) -> list[Block]:
    """What is wrong comes first: long facts that stand above the findings move below everything, and findings that the
    first screen has are not repeated."""
    kept: list[Block] = []
    for block in made:
        if isinstance(block, blocks.Summary):
            said |= set(block.problems)
        elif isinstance(block, blocks.Folded):
            block = replace(block, blocks=tuple(_arranged(_shown(block.blocks), said)))
        elif isinstance(block, blocks.Findings) and said:
            rest = tuple(finding for finding in block.items if finding not in said)
            if not rest:
                continue
            block = replace(block, items=rest, title="Observations")
        kept.append(block)
    first = next((i for i, block in enumerate(kept) if isinstance(block, blocks.Findings | blocks.Summary)), 0)
    late = [block for block in kept[:first] if isinstance(block, blocks.Facts) and len(block.items) > 3]
    order = [block for block in kept if not any(block is each for each in late)]
    return order + [replace(block, folded=len(block.items) > FACTS_OPEN) for block in late]


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
    environment.filters["pretty"] = prose.pretty
    environment.filters["plain"] = prose.plain
    environment.filters["spans"] = prose.spans
    environment.filters["fact"] = _fact
    environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.filters["interval"] = _interval
    environment.filters["here"] = t.here
    environment.filters["outcome"] = t.outcome
    environment.globals |= {"axis": forest.AXIS, "decided": forest.DECIDED, "verdicts": get_args(blocks.VerdictWord)}
    environment.filters["tone"] = _tone
    environment.filters["folded"] = _folded
    environment.filters["percent"] = lambda share: f"{100 * share:.5g}%"
    environment.filters["paragraphs"] = lambda text: [prose.pretty(part) for part in text.split("\n\n") if part.strip()]
    environment.filters["source_text"] = lambda text: "\n".join(t.visible(line) for line in text.splitlines())
    return environment


def _breaking(name: str) -> Markup:
    """A name, not endlessly long, that breaks between its parts."""
    return prose.breaking(t.shorten(t.visible(name), LONGEST_NAME))


def _fact(value: str) -> str | Markup:
    """Words with their indices; a path is left as it is."""
    return t.visible(value) if re.search(r"[\w.]/[\w.]", value) else prose.pretty(value)


@dataclass(frozen=True)
class Entry:
    """A line of the table of contents."""

    anchor: str
    title: Markup
    level: int


@dataclass
class _Drawing:
    """A page being drawn: what was drawn so far, and the counts that number it."""

    names: dict[str, str]
    definitions: dict[str, str]
    terms: prose.Terms
    is_site: bool = False
    views: list[View] = field(default_factory=list)
    contents: list[Entry] = field(default_factory=list)
    styles: figures.Styles = field(default_factory=figures.Styles)
    counts: dict[str, int] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def count(self, what: str) -> int:
        self.counts[what] = self.counts.get(what, 0) + 1
        return self.counts[what]

    def all(self, made: Sequence[Block]) -> tuple[View, ...]:
        """The views of blocks that follow one another."""
        return tuple(self.view(block, previous) for previous, block in pairwise((None, *made)) if block)

    def view(self, block: Block, previous: Block | None) -> View:
        draw = _VIEWS.get(type(block))
        if draw is None:
            raise TypeError(f"no way to draw a {type(block).__name__} on a page")
        view = draw(self, block, previous)
        self.views.append(view)
        return view

    def anchor(self, wanted: str) -> str:
        """`wanted`, where it is an anchor that the page does not have yet; else ""."""
        if not prose.is_anchor(wanted) or wanted in self.taken:
            return ""
        self.taken.add(wanted)
        return wanted

    def section(self, title: str, level: int, wanted: str = "") -> str:
        """A new anchor, and its line in the contents."""
        anchor = self.anchor(wanted) or f"s{self.count('section')}"
        if level <= 3:
            self.contents.append(Entry(anchor, prose.pretty(title), level))
        return anchor


def _heading(d: _Drawing, block: blocks.Heading, previous: Block | None) -> View:
    level = max(2, min(block.level, 4))
    return View("heading", block, d.section(block.text, level, block.anchor), block.text, level)


def _text(d: _Drawing, block: blocks.Text, previous: Block | None) -> View:
    return View("text", block)


def _prose(d: _Drawing, block: blocks.Prose, previous: Block | None) -> View:
    return ProseView("prose", block, items=(prose.markup(block.words, d.is_site),))


def _items(d: _Drawing, block: blocks.Items, previous: Block | None) -> View:
    return ProseView("items", block, items=tuple(prose.markup(item, d.is_site) for item in block.items))


def _summary(d: _Drawing, block: blocks.Summary, previous: Block | None) -> View:
    items = _cards(d, block.problems)
    return SummaryView("summary", block, items=items, shown=_open(items, CARDS_OPEN), tiles=_row(d, block.tiles))


def _tiles(d: _Drawing, block: blocks.Tiles, previous: Block | None) -> View:
    return TilesView("tiles", block, items=_row(d, block.items))


def _row(d: _Drawing, tiles: Sequence[blocks.Tile]) -> tuple[TileView, ...]:
    return tuple(TileView(tile=tile, definition=d.definitions.get(tile.metric, "")) for tile in tiles)


def _cards(d: _Drawing, findings: Sequence[blocks.Finding]) -> tuple[FindingView, ...]:
    ordered = sorted(findings, key=lambda f: SEVERITIES.index(f.severity))
    return tuple(
        FindingView(finding=f, row=d.names.get(f.module or "", ""), text=d.terms.linked(f.text)) for f in ordered
    )


def _open(items: Sequence[FindingView], most: int) -> int:
    """How many stand open: all where folding would hide only one or two."""
    return len(items) if len(items) <= most + 2 else most


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
    taken = d.counts.get("definition", 0)
    anchors = tuple(d.anchor(item.anchor) or f"definition-{taken + i}" for i, item in enumerate(block.items))
    d.counts["definition"] = taken + len(anchors)
    return DefinitionsView("definitions", block, **_own_title(d, block.title, previous), anchors=anchors)


def _pictures(d: _Drawing, block: blocks.Pictures, previous: Block | None) -> View:
    for each in block.items:
        if not _IMAGE.fullmatch(each.image):
            raise ValueError(f"the picture of {each.link.text!r} is not a data URI")
    items = tuple(
        PictureView(picture=p, to=prose.target(p.link.to, d.is_site), note=prose.markup(p.note, d.is_site))
        for p in block.items
    )
    return PicturesView("pictures", block, items=items)


def _fold(d: _Drawing, block: blocks.Folded, previous: Block | None) -> View:
    listed = len(d.contents)
    views = d.all(block.blocks)
    del d.contents[listed:]  # the contents lead to what is shown
    return FoldedView("folded", block, title=block.title, views=views)


def _code(d: _Drawing, block: blocks.Code, previous: Block | None) -> View:
    return View("code", block, title=block.title, level=3) if block.title else View("code", block)


def _findings(d: _Drawing, block: blocks.Findings, previous: Block | None) -> View:
    items = _cards(d, block.items)
    shown = _open(items, FINDINGS_OPEN)
    return FindingsView("findings", block, **_own_title(d, block.title, previous), items=items, shown=shown)


def _claims(d: _Drawing, block: blocks.Claims, previous: Block | None) -> View:
    return View("claims", block, **_own_title(d, block.title, previous))


def _interval(number: blocks.Check | blocks.ForestRow) -> str:
    """A number with its interval, which may break between the two and nowhere else."""
    return prose.tied(t.interval(number)).replace(", ", ",\u00a0")


def _folded(claim: blocks.Claim) -> str:
    """What a reader finds who opens a claim."""
    controls = sum(check.control for check in claim.checks)
    counts = (
        (len(claim.checks) - controls, "criterion", "criteria"),
        (controls, "negative control", "negative controls"),
    )
    counted = [f"{n} {one if n == 1 else many}" for n, one, many in counts if n]
    return ", ".join((*counted, "note") if claim.note else counted)


def _lines(d: _Drawing, block: blocks.Lines, previous: Block | None) -> View:
    number = d.count("figure")
    drawing = figures.draw(block, f"g{number}", d.styles, f"figure-{number}-caption")
    # safe: made by matplotlib and serialised by ElementTree, which escapes every text and attribute
    return FigureView("lines", block, number=number, title=block.title, drawing=drawing, svg=Markup(drawing.svg))


def _forest(d: _Drawing, block: blocks.Forest, previous: Block | None) -> View:
    groups: list[tuple[CellView | None, list[ForestRowView]]] = []
    last: blocks.Link | str | None = None
    for row in block.rows:
        if row.group != last:
            groups.append((tables.linked(row.group) if row.group else None, []))
            last = row.group
        groups[-1][1].append(
            ForestRowView(row=row, marks=forest.marks(row), css=_tone(row.verdict), says=forest.says(row))
        )
    named = dict.fromkeys(row.verdict for row in block.rows)
    tags = dict.fromkeys(row.tag for row in block.rows if row.tag)
    return ForestView(
        "forest",
        block,
        number=d.count("figure"),
        title=block.title,
        groups=tuple((heading, tuple(rows)) for heading, rows in groups),
        verdicts=tuple(word for word in get_args(blocks.VerdictWord) if word in named),
        tags=tuple(tags),
    )


def _tone(verdict: str) -> str:
    """The class of a verdict's colours."""
    return verdict.replace(" ", "-")


def _heatmap(d: _Drawing, block: blocks.Heatmap, previous: Block | None) -> View:
    return HeatmapView("heatmap", block, number=d.count("figure"), title=block.title, grid=heatmap.layout(block))


def _table(d: _Drawing, block: Table, previous: Block | None) -> View:
    is_headed = isinstance(previous, blocks.Heading) and previous.text == block.title
    title = "" if is_headed and block.caption else block.title  # "Table 2." alone would be no caption
    anchors = tuple(d.anchor(anchor) for anchor in block.anchors)
    return tables.view(replace(block, anchors=anchors), d.count("table"), d.names, d.definitions, d.is_site, title)


def _named_rows(shown: Sequence[Block]) -> dict[str, str]:
    """Anchors for the rows that a finding speaks of: the first row, in an interactive table, that bears its name."""
    wanted = {f.module for b in shown if isinstance(b, blocks.Findings) for f in b.items if f.module}
    wanted |= {f.module for b in shown if isinstance(b, blocks.Summary) for f in b.problems if f.module}
    anchors: dict[str, str] = {}
    for table in (b for b in shown if isinstance(b, Table) and b.interactive):
        for row in tables.rows_of(table):
            if row and row[0] in wanted and row[0] not in anchors:
                anchors[str(row[0])] = f"row-{len(anchors) + 1}"
    return anchors


def _defined(shown: Sequence[Block]) -> tuple[dict[str, str], prose.Terms]:
    """Anchors of definitions by the columns that they define, and by their terms."""
    items = [item for block in shown if isinstance(block, blocks.Definitions) for item in block.items]
    anchors = [item.anchor if prose.is_anchor(item.anchor) else f"definition-{i}" for i, item in enumerate(items)]
    pairs = [(item, f"#{anchor}") for item, anchor in zip(items, anchors, strict=True)]
    by_key = {key: anchor for item, anchor in reversed(pairs) for key in item.keys}
    return by_key, prose.Terms({item.term: anchor for item, anchor in reversed(pairs)})


_VIEWS: dict[type[Block], Callable[..., View]] = {
    blocks.Heading: _heading,
    blocks.Text: _text,
    blocks.Prose: _prose,
    blocks.Items: _items,
    blocks.Summary: _summary,
    blocks.Tiles: _tiles,
    blocks.Facts: _facts,
    blocks.Findings: _findings,
    blocks.Claims: _claims,
    Table: _table,
    blocks.Forest: _forest,
    blocks.Lines: _lines,
    blocks.Heatmap: _heatmap,
    blocks.Definitions: _definitions,
    blocks.Code: _code,
    blocks.Folded: _fold,
    blocks.Pictures: _pictures,
}
