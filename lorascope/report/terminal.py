"""A page in the terminal: the blocks meant for it, compact, aligned, safe to print whatever a file's keys hold.

Standard library only: this is on the path of every `lorascope analyze`.
"""

import os
import shutil
import sys
import textwrap
from dataclasses import dataclass
from typing import Any

from lorascope import blocks
from lorascope.blocks import SEVERITIES, Block, Column, Page, Table
from lorascope.report import forest
from lorascope.report import text as t

MARKS = {"error": "✗", "warning": "!", "note": "·"}
MAX_FINDINGS = 12
_STYLES = {"bold": "1", "dim": "2", "error": "1;31", "warning": "1;33", "note": "2"}
_STYLES |= {"ok": "1;32", "reproduced": "1;32", "weaker": "1;34", "absent or opposite": "1;31", "not specific": "1;33"}
_STYLES |= dict.fromkeys(("inconclusive", "out of reach", "withdrawn"), "1")
_WIDEST, _NARROWEST = 140, 40


@dataclass(frozen=True)
class Screen:
    """How wide to write, and whether to colour."""

    width: int
    color: bool

    def style(self, text: str, name: str) -> str:
        return f"\x1b[{_STYLES[name]}m{text}\x1b[0m" if self.color and text else text

    def wrap(self, text: str, first: str = "", rest: str = "") -> list[str]:
        """`text` in lines of at most the screen's width, or 100 columns where the screen is wider: prose reads badly
        in longer lines."""
        room = min(self.width, 100)
        return textwrap.wrap(
            t.visible(text), room, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
        ) or [first.rstrip()]


def render(page: Page, *, width: int | None = None, color: bool | None = None) -> str:
    """The blocks of `page` that are for the terminal, as text that ends in a newline.

    Args:
        width: columns to use; the terminal's (100 where there is none) by default.
        color: whether to use ANSI styles; by default only on a terminal, and never where NO_COLOR is set.
    """
    screen = screen_of(width, color)
    shown = [block for block in page.blocks if block.where != "page"]
    opened = bool(shown) and isinstance(shown[0], blocks.Summary)  # which says what the opening would
    parts = [] if opened else [_opening(page, screen)]
    figures: list[str] = []
    heading: list[str] = []  # held back until something stands under it: its figures may be on the page alone
    for block in shown:
        if isinstance(block, blocks.Lines | blocks.Heatmap):
            figures.append(t.visible(block.title))
        elif isinstance(block, blocks.Heading):
            heading = _title(block.text, screen)
        else:
            parts.append(heading + _draw(block, screen))
            heading = []
    if figures:
        parts.append(
            [screen.style(line, "dim") for line in screen.wrap("Figures on the HTML page: " + "; ".join(figures))]
        )
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def screen_of(width: int | None = None, color: bool | None = None) -> Screen:
    """The screen that is there, or as asked; see `render`."""
    return Screen(_width(width), wants_color() if color is None else color)


def _width(asked: int | None) -> int:
    columns = asked if asked is not None else shutil.get_terminal_size((100, 24)).columns
    return max(_NARROWEST, min(columns, _WIDEST))


def wants_color(stream: Any = None) -> bool:
    """Whether to style: NO_COLOR and FORCE_COLOR (no-color.org, force-color.org) count when present and not empty, the
    first before the second; else a terminal decides (`stream`, stdout by default)."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return (stream or sys.stdout).isatty() and os.environ.get("TERM") != "dumb"


def _opening(page: Page, screen: Screen) -> list[str]:
    lines = [screen.style(line, "bold") for line in screen.wrap(page.title)]
    lines += screen.wrap(page.answer) if page.answer else []
    return lines + [line for part in page.summary.split("\n\n") if part.strip() for line in screen.wrap(part)]


def _draw(block: Block, screen: Screen) -> list[str]:
    match block:
        case blocks.Text():
            return screen.wrap(block.text)
        case blocks.Prose():
            return screen.wrap(block.words.text)
        case blocks.Items():
            marks = [f"{i}. " if block.numbered else "· " for i in range(1, len(block.items) + 1)]
            pairs = zip(marks, block.items, strict=True)
            return [line for mark, item in pairs for line in screen.wrap(item.text, mark, " " * len(mark))]
        case blocks.Facts():
            return _facts(block, screen)
        case blocks.Summary():
            return _summary(block, screen)
        case blocks.Tiles():
            return []
        case blocks.Findings():
            return _findings(block, screen)
        case blocks.Claims():
            return _claims(block, screen)
        case blocks.Forest():
            return _forest(block, screen)
        case Table():
            return _table(block, screen)
        case blocks.Definitions():
            return _definitions(block, screen)
        case blocks.Code():
            return _title(block.title, screen) + ["  " + t.visible(line) for line in block.text.splitlines()]
    raise TypeError(f"no way to draw a {type(block).__name__} in the terminal")


def _title(title: str, screen: Screen) -> list[str]:
    return [screen.style(line, "bold") for line in screen.wrap(title)] if title else []


def _facts(block: blocks.Facts, screen: Screen) -> list[str]:
    labels = [t.shorten(t.visible(label), screen.width // 3) for label, _ in block.items]
    room = max((t.width_of(label) for label in labels), default=0) + 2
    lines = _title(block.title, screen)
    for label, (_, value) in zip(labels, block.items, strict=True):
        lead = label + " " * (room - t.width_of(label))
        first, *more = screen.wrap(value, lead, " " * room)
        lines += [screen.style(lead, "dim") + first[len(lead) :], *more]
    return lines


def _summary(block: blocks.Summary, screen: Screen) -> list[str]:
    """The name with what it is, the facts in a line, the status, and what to do."""
    name, what = t.visible(block.name), t.visible(block.facts[0]) if block.facts else ""
    rest = "   ".join(t.visible(fact) for fact in block.facts[1:])
    if t.width_of(name) + 3 + t.width_of(what) <= screen.width:
        lines = [screen.style(name, "bold") + (f"   {what}" if what else "")]
    else:
        lines = [*(screen.style(line, "bold") for line in screen.wrap(name)), *screen.wrap(what)]
    lines += _joined(block.facts[1:], screen) if rest else []
    mark = MARKS[block.severity] if block.severity else "✓"
    lines += ["", screen.style(f"{mark} {block.status}", block.severity or "ok")]
    for group in (True, False):  # what is wrong, then what could be better
        chosen = [f for f in block.problems if (f.severity != "note") is group]
        drawn = [line for finding in chosen[:MAX_FINDINGS] for line in _finding(finding, screen, "" if group else "→")]
        lines += ["", *drawn, *_left_out(chosen[MAX_FINDINGS:], screen)] if drawn else []
    return lines


def _joined(facts: tuple[str, ...], screen: Screen) -> list[str]:
    """Facts with three spaces between them, a new line where the next does not fit."""
    lines: list[str] = []
    for fact in facts:
        text = t.shorten(t.visible(fact), screen.width)
        if lines and t.width_of(lines[-1]) + 3 + t.width_of(text) <= screen.width:
            lines[-1] += f"   {text}"
        else:
            lines.append(text)
    return lines


def _finding(finding: blocks.Finding, screen: Screen, with_command: str = "") -> list[str]:
    """A sentence behind its mark, below it what to do, and the command. `with_command`: the mark of one that has it."""
    mark = with_command if with_command and finding.command else MARKS[finding.severity]
    name = t.shorten(t.visible(finding.module), screen.width - 4) + ": " if finding.module else ""
    first, *more = screen.wrap(name + finding.text, mark + " ", "  ")
    lines = [screen.style(mark, finding.severity) + first[len(mark) :], *more]
    if finding.action:
        lines += screen.wrap(finding.action, "  → ", "    ")
    if finding.command:
        lines.append(screen.style(f"  {t.visible(finding.command)}", "bold"))
    return lines


def _findings(block: blocks.Findings, screen: Screen) -> list[str]:
    lines = _title(block.title, screen)
    ordered = sorted(block.items, key=lambda f: SEVERITIES.index(f.severity))
    for finding in ordered[:MAX_FINDINGS]:
        lines += _finding(finding, screen)
    lines += _left_out(ordered[MAX_FINDINGS:], screen)
    return lines if block.items else [*lines, screen.style("  no findings", "dim")]


def _left_out(rest: list[blocks.Finding], screen: Screen) -> list[str]:
    if not rest:
        return []
    counts = [(sum(f.severity == s for f in rest), s) for s in SEVERITIES]
    named = ", ".join(f"{n} {s}{'s' if n > 1 else ''}" for n, s in counts if n)
    return [screen.style(f"  … and {len(rest)} more ({named})", "dim")]


def _claims(block: blocks.Claims, screen: Screen) -> list[str]:
    lines = _title(block.title, screen)
    for claim in block.items:
        sentence = t.here(claim.verdict)
        first, *more = screen.wrap(f"{sentence}: {claim.text} ({claim.source})", "", "  ")
        lines += [screen.style(sentence, claim.verdict) + first[len(sentence) :], *more]
        setting = (f"published setting: {claim.setting}",) if claim.setting else ()
        for part in (claim.why, *claim.tests, *setting):
            lines += screen.wrap(part, "    ", "    ") if part else []
        for check in claim.checks:
            kind = "negative control: " if check.control else ""
            why = f"; {check.reason}" if check.reason else ""
            sentence = f"{kind}{check.text}: {t.interval(check)}, {check.bound}: {t.outcome(check)}{why}"
            lines += screen.wrap(sentence, "    ", "      ")
            lines += [line for detail in check.details for line in screen.wrap(detail, "      ", "      ")]
        for part in (*claim.amendments, claim.note):
            lines += screen.wrap(part, "    ", "    ") if part else []
    return lines if block.items else [*lines, screen.style("  no claims", "dim")]


def _forest(block: blocks.Forest, screen: Screen) -> list[str]:
    """A line for each row: its label, its marks, its numbers, its verdict; a narrow screen has the label above."""
    lines = _title(block.title, screen)
    if not block.rows:
        return [*lines, screen.style("  no rows", "dim")]
    found = [forest.found(row) for row in block.rows]
    words = [t.here(row.verdict) for row in block.rows]
    rest = forest.COLUMNS + max(map(t.width_of, found)) + max(map(t.width_of, words)) + 3 * _GAP
    room = screen.width - rest
    is_narrow = room < _MIN_TEXT
    lead = " " * (2 if is_narrow else room + _GAP)
    lines.append(screen.style(f"{lead}{forest.axis()}", "dim"))
    group: Any = ""
    for row, numbers, word in zip(block.rows, found, words, strict=True):
        if row.group != group:
            group = row.group
            lines += _title(t.cell(group), screen)
        label = f"{row.label} ({row.tag})" if row.tag else row.label
        if is_narrow:
            lines += screen.wrap(label)
            start = lead
        else:
            start = _pad(t.shorten(t.visible(label), room), room, right=False) + " " * _GAP
        numbers = _pad(numbers, max(map(t.width_of, found)), right=False)
        lines.append(f"{start}{forest.line(row)}  {numbers}  {screen.style(word, row.verdict)}")
    for part in (forest.LEGEND, block.caption):
        lines += [screen.style(line, "dim") for line in screen.wrap(part)] if part else []
    return lines


def _definitions(block: blocks.Definitions, screen: Screen) -> list[str]:
    lines = _title(block.title, screen)
    for item in block.items:
        lines += screen.wrap(f"{item.term} = {item.formula} ({item.source})", "  ", "    ")
    return lines


# --- tables ---------------------------------------------------------------------------------------------------------

_GAP = 2
_MIN_TEXT = 14  # a text column is shortened down to this before columns are left out


def _table(block: Table, screen: Screen) -> list[str]:
    lines = _title(block.title, screen)
    if not block.rows:
        return [*lines, screen.style("  no rows", "dim")]
    columns = list(block.columns)
    grid = [[t.cell(v, c.unit, c.digits) for v, c in zip(row, columns, strict=True)] for row in block.rows]
    widths, shown = _fit(columns, grid, screen.width)
    pattern = _tell_apart(columns, grid, widths)
    if pattern:
        widths, shown = _fit(columns, grid, screen.width)
    for line in _header(columns[:shown], widths):
        lines.append(screen.style(line.rstrip(), "dim"))
    for row in grid:
        if len(columns) > 1 and not any(row[1:]):  # the name of a part, over its rows
            lines.append(t.shorten(row[0], screen.width))
            continue
        cells = [_pad(t.shorten(v, w), w, t.is_numeric(c)) for v, w, c in zip(row, widths, columns, strict=False)]
        lines.append((" " * _GAP).join(cells).rstrip())
    if shown < len(columns):
        rest = ", ".join(t.visible(c.title) for c in columns[shown:])
        lines += [screen.style(line, "dim") for line in screen.wrap(f"columns hidden (terminal too narrow): {rest}")]
    caption = " ".join(part for part in (pattern, block.caption) if part)
    if caption:
        lines += [screen.style(line, "dim") for line in screen.wrap(caption)]
    return lines


def _tell_apart(columns: list[Column], grid: list[list[str]], widths: list[int]) -> str:
    """Where a column is so narrow that names in it would look alike, put the parts in which they differ in their place.
    What was taken away, in words; "" where nothing was."""
    notes = []
    for j, (width, column) in enumerate(zip(widths, columns, strict=False)):
        names = [row[j] for row in grid]
        if t.is_numeric(column) or len({t.shorten(name, width) for name in names}) == len(set(names)):
            continue
        short, pattern = t.told_apart(names)
        for row, name in zip(grid, short, strict=True):
            row[j] = name
        notes += [f"{t.visible(column.title)}: the * of {pattern}."] if pattern else []
    return " ".join(notes)


def _fit(columns: list[Column], grid: list[list[str]], room: int) -> tuple[list[int], int]:
    """Widths of the columns, and how many of them fit: text gives way first, then the rightmost columns."""
    rows = [row for row in grid if len(columns) == 1 or any(row[1:])] or grid
    widths = [max(_title_width(c), *(t.width_of(row[j]) for row in rows)) for j, c in enumerate(columns)]
    text = [j for j, column in enumerate(columns) if not t.is_numeric(column)]
    while sum(widths) + _GAP * (len(widths) - 1) > room:
        widest = max((j for j in text if j < len(widths)), key=widths.__getitem__, default=None)
        if widest is not None and widths[widest] > _MIN_TEXT:
            excess = sum(widths) + _GAP * (len(widths) - 1) - room
            widths[widest] = max(_MIN_TEXT, widths[widest] - excess)
        elif len(widths) > 1:
            widths.pop()
        else:
            widths[0] = room
    return widths, len(widths)


def _title_width(column: Column) -> int:
    """The least width in which a column's title takes at most two lines."""
    title = t.visible(column.title)
    words = title.split(" ")
    splits = (max(t.width_of(" ".join(words[:i])), t.width_of(" ".join(words[i:]))) for i in range(len(words)))
    return min(splits)


def _header(columns: list[Column], widths: list[int]) -> list[str]:
    """Titles over their columns, each wrapped to its column's width and standing on the last line."""
    wrapped = [
        textwrap.wrap(t.visible(c.title), max(w, 1), break_on_hyphens=False) or [""]
        for c, w in zip(columns, widths, strict=True)
    ]
    height = max(len(lines) for lines in wrapped)
    wrapped = [[""] * (height - len(lines)) + lines for lines in wrapped]
    return [
        (" " * _GAP).join(
            _pad(lines[i], w, t.is_numeric(c)) for lines, w, c in zip(wrapped, widths, columns, strict=True)
        )
        for i in range(height)
    ]


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - t.width_of(text))
    return space + text if right else text + space
