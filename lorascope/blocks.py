"""What a page is made of: frozen data, numbers and strings only.

An analysis or a study makes blocks; `report/` draws the same blocks in the terminal and as an HTML page. They know
nothing of adapters, and hold no HTML: every string is text, to be escaped where drawn. A missing number is None.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

Number = float | int | None


@dataclass(frozen=True)
class Link:
    """A cell that leads to a page in the same folder: `file` is a plain file name."""

    text: str
    file: str


@dataclass(frozen=True)
class Span:
    """A piece of a sentence. `to` is where it leads: "#anchor", or a page in the same folder, with its anchor or not;
    on a page that is part of a site (`Page.site`) also a page one folder up, or an https address."""

    text: str
    style: Literal["", "code", "strong", "em"] = ""
    to: str = ""


@dataclass(frozen=True)
class Rich:
    """A sentence in pieces: words, code and links."""

    spans: tuple[Span, ...]

    @property
    def text(self) -> str:
        """The words alone."""
        return "".join(span.text for span in self.spans)


Cell = Number | str | bool | Link | Rich
Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)  # in the order in which findings are read
Where = Literal["both", "page", "terminal"]


@dataclass(frozen=True, kw_only=True)
class Block:
    """The base of all blocks. `where` says which reader it is for."""

    where: Where = "both"


@dataclass(frozen=True)
class Heading(Block):
    """`anchor` is where links lead to; a heading without one is numbered."""

    text: str
    level: int = 2
    anchor: str = ""


@dataclass(frozen=True)
class Text(Block):
    text: str


@dataclass(frozen=True)
class Prose(Block):
    """A paragraph in pieces."""

    words: Rich


@dataclass(frozen=True)
class Items(Block):
    """A list of sentences."""

    items: tuple[Rich, ...]
    numbered: bool = False


@dataclass(frozen=True)
class Facts(Block):
    """Label and value, one line each: what this file is, what made this page. `folded`: a page shows it on demand."""

    items: tuple[tuple[str, str], ...]
    title: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Finding:
    """One thing worth saying in words, one for all modules that it is true of.

    Attributes:
        severity: error: do not use it as it is; warning: look before you use it; note: a fact.
        module: the one module that the sentence is about, which is printed in front; None where it is about several.
        modules: every module that it is true of; empty where it is about the whole.
        rule: the stable code of the check, such as "LS106"; see `analyses.rules`.
        action: what to do next, one instruction.
        command: the command line that does it, to be copied.
    """

    severity: Severity
    text: str
    module: str | None = None
    modules: tuple[str, ...] = ()
    rule: str = ""
    action: str = ""
    command: str = ""


@dataclass(frozen=True)
class Findings(Block):
    items: tuple[Finding, ...]
    title: str = "Findings"


@dataclass(frozen=True)
class Tile:
    """One number of the first screen: what it is, the number, and what it is compared with. `metric`: its key, by which
    the page finds the definition."""

    label: str
    value: str
    note: str = ""
    metric: str = ""


@dataclass(frozen=True)
class Tiles(Block):
    """The few numbers that answer the question, in a row at the top of a page; the terminal has them in its text."""

    items: tuple[Tile, ...]
    where: Where = field(default="page", kw_only=True)


@dataclass(frozen=True)
class Summary(Block):
    """The first screen: what this is, whether it is all right, five numbers, and what to do next.

    Attributes:
        name: short, as a title.
        facts: method and format, base, r, α with the scale, targets, parameters, dtype: one line when joined.
        status: one sentence with the number of checks, such as "No problems found (14 checks)".
        severity: the worst of the problems; None where there is none.
        tiles: at most five.
        problems: errors and warnings, and the notes with something to do, in the order in which to read them.
    """

    name: str
    facts: tuple[str, ...]
    status: str
    severity: Severity | None = None
    tiles: tuple[Tile, ...] = ()
    problems: tuple[Finding, ...] = ()


VerdictWord = Literal[
    "reproduced", "weaker", "absent or opposite", "inconclusive", "not specific", "out of reach", "withdrawn"
]
Outcome = Literal["reproduced", "weaker", "absent or opposite", "inconclusive", "failed", "passed", "not judged"]
Unit = Literal["float", "percent", "int"]


@dataclass(frozen=True)
class Check:
    """One number with its interval from `low` to `high`, its bound in words, and what came out.

    Attributes:
        outcome: of a negative control failed, passed or inconclusive; "not judged" where no verdict is drawn.
        control: whether it is a negative control, which must not pass.
        reason: why it came out so.
        details: what a reader may want to know of it, a sentence each: the bound's origin, other units, the power.
    """

    text: str
    value: Number
    low: Number
    high: Number
    bound: str
    outcome: Outcome
    unit: Unit = "float"
    control: bool = False
    reason: str = ""
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A published statement with its verdict and the checks that it comes from.

    Attributes:
        source: paper, section or table.
        why: what decided the verdict, in one sentence; of a verdict that was withdrawn, the reason.
        setting: of the published statement: model, data, steps.
        decided_by: which of the checks decided; None where none did.
        tests: what else says how far to trust the verdict, a phrase each: the power, p and q.
        amendments: what was changed after results had been seen, a sentence each.
    """

    text: str
    verdict: VerdictWord
    source: str
    checks: tuple[Check, ...]
    why: str = ""
    setting: str = ""
    decided_by: int | None = None
    tests: tuple[str, ...] = ()
    note: str = ""
    amendments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claims(Block):
    items: tuple[Claim, ...]
    title: str = "Claims"


@dataclass(frozen=True)
class ForestRow:
    """One estimate with its interval and landmarks, all in its own unit.

    A row is drawn on a scale of its own: 0 is no effect, and 1 the published value, or the bound where none is
    published. A row without a value for no effect has the number 0 at 0.

    Attributes:
        at_least, at_most: the bounds inside which the claim is reproduced.
        group: the heading it stands under.
        tag: what it was measured on, such as a test bed: rows can be filtered by it.
    """

    label: str
    value: Number
    low: Number
    high: Number
    verdict: VerdictWord
    at_least: Number = None
    at_most: Number = None
    no_effect: Number = None
    published: Number = None
    unit: Unit = "float"
    group: Link | str = ""
    tag: str = ""


@dataclass(frozen=True)
class Forest(Block):
    """A forest plot: the published value, the bound, and our estimate with its interval, a row for each claim.

    `interactive`: on the page rows can be filtered by verdict and tag."""

    title: str
    rows: tuple[ForestRow, ...]
    caption: str = ""
    interactive: bool = False


@dataclass(frozen=True)
class Column:
    """`unit` is how a cell is shown: text as it is, code (a name from a file, in a fixed-width face), verdict (a
    `VerdictWord`, as a badge), int, float (`digits` significant), percent (1.0 is 100 %). `to` is where it is defined,
    as of a `Span`, where that is not on the page itself; `metric` the key of the metric that it shows, if not `key`."""

    key: str
    title: str
    unit: Literal["text", "code", "verdict", "int", "float", "percent"] = "text"
    digits: int = 3
    help: str = ""
    to: str = ""
    metric: str = ""


@dataclass(frozen=True)
class Table(Block):
    """Rows are tuples in the order of `columns`. `interactive` tables sort and filter on the page. `anchors` are where
    links to its rows lead: one for each row, "" for none."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    caption: str = ""
    interactive: bool = False
    anchors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """One line of a figure. `panel` names the small multiple it belongs to; `weight` is "thin" for one of many.

    Where `points` names each point, the points are drawn and not joined; a name shows under the pointer.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[Number, ...]
    panel: str = ""
    weight: Literal["normal", "thin", "reference"] = "normal"
    low: tuple[Number, ...] | None = None
    high: tuple[Number, ...] | None = None
    points: tuple[str, ...] = ()


@dataclass(frozen=True)
class Marker:
    """A straight reference line: at `value` on the axis `axis`, named `label`."""

    axis: Literal["x", "y"]
    value: float
    label: str
    panel: str | None = None


@dataclass(frozen=True)
class Lines(Block):
    """A figure of lines, in small multiples by `Series.panel`. `shade` names what the order of the thin series in a
    panel means, such as "depth, first to last": they are then coloured by it, and the legend says so. Two that are
    `half` as wide stand next to each other on a page."""

    title: str
    series: tuple[Series, ...]
    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False
    markers: tuple[Marker, ...] = ()
    caption: str = ""
    shade: str = ""
    half: bool = False


@dataclass(frozen=True)
class Measure:
    """One layer of a heatmap: `values[i][j]` belongs to row i and column j; None where there is no such module.

    `marks` are values named on the colour scale, such as what chance gives; `limits` are its ends, where the values'
    own least and greatest should not be.
    """

    key: str
    title: str
    values: tuple[tuple[Number, ...], ...]
    unit: Literal["float", "percent", "int"] = "float"
    log: bool = False
    help: str = ""
    marks: tuple[tuple[float, str], ...] = ()
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Heatmap(Block):
    """The same grid for several measures, with a switch between them on the page.

    Attributes:
        sections: title and number of rows of each part, such as encoder and decoder; without them one part without one.
        row_shares: what share of everything each row has, drawn as bars on its right; empty for no bars.
        column_shares: the same of each column, for each section, drawn as bars above it.
        shares_label: what the bars show.
        third: small, three next to each other on a page.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    measures: tuple[Measure, ...]
    row_label: str = ""
    column_label: str = ""
    caption: str = ""
    sections: tuple[tuple[str, int], ...] = ()
    row_shares: tuple[Number, ...] = ()
    column_shares: tuple[tuple[Number, ...], ...] = ()
    shares_label: str = ""
    third: bool = False


@dataclass(frozen=True)
class Definition:
    """`meaning` is one plain sentence; `keys` are the columns that it defines; `anchor` is where links lead to."""

    term: str
    formula: str
    source: str
    meaning: str = ""
    keys: tuple[str, ...] = ()
    anchor: str = ""


@dataclass(frozen=True)
class Definitions(Block):
    items: tuple[Definition, ...]
    title: str = "Definitions and sources"


@dataclass(frozen=True)
class Code(Block):
    text: str
    title: str = ""


@dataclass(frozen=True)
class Picture:
    """A small picture of the page that `link` leads to. `image` is a data URI, since pages fetch nothing."""

    link: Span
    image: str
    alt: str
    note: Rich


@dataclass(frozen=True)
class Pictures(Block):
    items: tuple[Picture, ...]
    where: Where = field(default="page", kw_only=True)


@dataclass(frozen=True)
class Folded(Block):
    """Blocks that a page shows on demand, such as all of one adapter of several; the terminal does not have them."""

    title: str
    blocks: tuple[Block, ...]
    where: Where = field(default="page", kw_only=True)


@dataclass(frozen=True)
class Shelf:
    """Pages of a site that belong together, in its navigation."""

    title: str
    links: tuple[Link, ...]


@dataclass(frozen=True)
class Page:
    """One page: blocks in reading order. `kicker` is the small line above the title; `answer`, right under it, is what
    the page has found, and `summary` what it is about; `up` leads to the page that lists it. A page of a site shows its
    shelves, where `file` is this one."""

    title: str
    blocks: tuple[Block, ...]
    kicker: str = ""
    summary: str = ""
    made_by: tuple[tuple[str, str], ...] = field(default=())
    answer: str = ""
    up: Link | None = None
    site: tuple[Shelf, ...] = ()
    file: str = ""
