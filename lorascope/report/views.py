"""Views: one drawn block each, frozen data with every number already a string, which the templates draw."""

from dataclasses import dataclass

from markupsafe import Markup

from lorascope import blocks
from lorascope.blocks import Block
from lorascope.report import figures, forest, heatmap


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
class ProseView(View):
    items: tuple[Markup, ...]


@dataclass(frozen=True, kw_only=True)
class FindingView:
    finding: blocks.Finding
    row: str  # the anchor of the module's row in a table, "" where there is none
    text: Markup  # its terms lead to their definitions


@dataclass(frozen=True, kw_only=True)
class FindingsView(View):
    items: tuple[FindingView, ...]
    shown: int


@dataclass(frozen=True, kw_only=True)
class CellView:
    """`key` is what a column of numbers sorts by; "" where the text itself is as good. `file` is where it leads.
    `bar` is the length of its bar, from 1 to tables.BAR. `text` is markup where it is in pieces."""

    text: str | Markup
    key: str
    file: str = ""
    bar: int | None = None


@dataclass(frozen=True, kw_only=True)
class ColumnView:
    """`css` is the classes of its cells: none for numbers, t for text, c for code, w where lines may break. `badges` is
    true where cells that are a verdict are drawn as one; `definition` is where the column is defined."""

    title: str
    help: str
    css: str
    badges: bool
    definition: str = ""


@dataclass(frozen=True, kw_only=True)
class TableView(View):
    columns: tuple[ColumnView, ...]
    rows: tuple[tuple[CellView, ...], ...]
    anchors: tuple[str, ...]
    wide: bool
    dense: bool  # more prose than fits at the usual width of a column
    long: bool
    notes: tuple[str, ...]
    constant: tuple[tuple[str, str], ...] = ()  # title and text of the columns that are the same in all rows
    bare: bool = False  # part of a text, without a caption
    pick: int = 0  # the column that a narrow screen shows next to the first


@dataclass(frozen=True, kw_only=True)
class DefinitionsView(View):
    anchors: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TileView:
    """`definition` is where its number is defined, or ""."""

    tile: blocks.Tile
    definition: str


@dataclass(frozen=True, kw_only=True)
class TilesView(View):
    items: tuple[TileView, ...]


@dataclass(frozen=True, kw_only=True)
class SummaryView(View):
    """`items` are the cards in order, `shown` of them open."""

    items: tuple[FindingView, ...]
    shown: int
    tiles: tuple[TileView, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PictureView:
    """`to` is where the picture leads, and `note` is markup."""

    picture: blocks.Picture
    to: str
    note: Markup


@dataclass(frozen=True, kw_only=True)
class PicturesView(View):
    items: tuple[PictureView, ...]


@dataclass(frozen=True, kw_only=True)
class FoldedView(View):
    views: tuple[View, ...]


@dataclass(frozen=True, kw_only=True)
class FigureView(View):
    drawing: figures.Drawing
    svg: Markup


@dataclass(frozen=True, kw_only=True)
class HeatmapView(View):
    grid: heatmap.Grid


@dataclass(frozen=True, kw_only=True)
class ForestRowView:
    """`marks` are in shares of the axis, `css` the classes of its colours, `says` what the strip shows in words."""

    row: blocks.ForestRow
    marks: forest.Marks
    css: str
    says: str


@dataclass(frozen=True, kw_only=True)
class ForestView(View):
    """`groups` are headings and the rows under each; `verdicts` and `tags` are what rows can be filtered by."""

    groups: tuple[tuple[CellView | None, tuple[ForestRowView, ...]], ...]
    verdicts: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
