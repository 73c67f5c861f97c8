"""A page's first screen as an HTML fragment for notebooks: title, status, tiles, findings, the first table; no script,
and no style but that of its own elements."""

from collections.abc import Iterable

from markupsafe import Markup, escape

from lorascope.blocks import Block, Finding, Findings, Page, Summary, Table, Tile, Tiles
from lorascope.report import text as t

ROWS, FINDINGS = 12, 12
COLOURS = {"error": "#b3261e", "warning": "#9a6700", "note": "#57606a"}
_CELL = Markup('<td style="text-align:{align}">{text}</td>')
_TILES = Markup('<div style="display:flex;flex-wrap:wrap;gap:.5em 2em">{}</div>')
_TILE = Markup("<div><small>{label}</small><br><strong>{value}</strong><br><small>{note}</small></div>")


def first_screen(page: Page) -> str:
    """The fragment. Every string of the page is escaped."""
    shown = [block for block in page.blocks if block.where != "terminal"]
    summary = next((block for block in shown if isinstance(block, Summary)), None)
    sentence = page.summary if summary is None else f"{' · '.join(summary.facts)}. {summary.status}."
    parts = [Markup("<div><p><strong>{}</strong><br>{}</p>").format(t.visible(page.title), t.visible(sentence))]
    tiles = summary.tiles if summary is not None else next((b.items for b in shown if isinstance(b, Tiles)), ())
    parts += [_tiles(tiles)] if tiles else []
    findings = next((block.items for block in shown if isinstance(block, Findings)), ())
    parts.append(_findings(dict.fromkeys((*(summary.problems if summary is not None else ()), *findings))))
    parts += [_table(block) for block in shown if isinstance(block, Table) and block.rows][:1]
    left = _left(shown)
    if left:
        parts.append(Markup("<p><small>{}</small></p>").format(left))
    return str(Markup("").join([*parts, Markup("</div>")]))


def _left(blocks: list[Block]) -> str:
    return "The whole page: result.to_html(path)." if len(blocks) > 2 else ""


def _tiles(tiles: Iterable[Tile]) -> Markup:
    drawn = [
        _TILE.format(label=t.visible(each.label), value=t.visible(each.value), note=t.visible(each.note))
        for each in tiles
    ]
    return _TILES.format(Markup("").join(drawn))


def _findings(findings: Iterable[Finding]) -> Markup:
    items = list(findings)
    lines = [_finding(finding) for finding in items[:FINDINGS]]
    more = len(items) - len(lines)
    if more > 0:
        lines.append(Markup("<li>{} more</li>").format(more))
    return Markup("<ul>{}</ul>").format(Markup("").join(lines)) if lines else Markup("")


def _finding(finding: Finding) -> Markup:
    where = Markup("<code>{}</code>: ").format(t.visible(finding.module)) if finding.module else Markup("")
    action = Markup("<br><em>{}</em>").format(t.visible(finding.action)) if finding.action else Markup("")
    line = Markup('<li><span style="color:{}">{}</span> {}{}{}</li>')
    return line.format(COLOURS[finding.severity], finding.severity, where, t.visible(finding.text), action)


def _table(block: Table) -> Markup:
    head = Markup("").join(Markup('<th title="{}">{}</th>').format(c.help, t.visible(c.title)) for c in block.columns)
    rows = []
    for row in block.rows[:ROWS]:
        cells = [
            _CELL.format(
                align="right" if t.is_numeric(column) else "left",
                text=t.shorten(t.cell(value, column.unit, column.digits), 80),
            )
            for value, column in zip(row, block.columns, strict=True)
        ]
        rows.append(Markup("<tr>{}</tr>").format(Markup("").join(cells)))
    caption = f"{block.title}: the first {ROWS} of {len(block.rows)} rows" if len(block.rows) > ROWS else block.title
    return Markup("<table><caption>{}</caption><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(
        escape(caption), head, Markup("").join(rows)
    )
