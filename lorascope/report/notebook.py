"""A page's first screen as an HTML fragment for notebooks: title, findings, the first table; no script, no style."""

from markupsafe import Markup, escape

from lorascope.blocks import Block, Finding, Findings, Page, Table
from lorascope.report import text as t

ROWS, FINDINGS = 12, 12
COLOURS = {"error": "#b3261e", "warning": "#9a6700", "note": "#57606a"}
_CELL = Markup('<td style="text-align:{align}">{text}</td>')


def first_screen(page: Page) -> str:
    """The fragment. Every string of the page is escaped."""
    parts = [Markup("<div><p><strong>{}</strong><br>{}</p>").format(t.visible(page.title), t.visible(page.summary))]
    shown = [block for block in page.blocks if block.where != "terminal"]
    parts += [_findings(block) for block in shown if isinstance(block, Findings)][:1]
    parts += [_table(block) for block in shown if isinstance(block, Table) and block.rows][:1]
    left = _left(shown)
    if left:
        parts.append(Markup("<p><small>{}</small></p>").format(left))
    return str(Markup("").join([*parts, Markup("</div>")]))


def _left(blocks: list[Block]) -> str:
    return "The whole page: result.to_html(path)." if len(blocks) > 2 else ""


def _findings(block: Findings) -> Markup:
    lines = [_finding(finding) for finding in block.items[:FINDINGS]]
    more = len(block.items) - len(lines)
    if more > 0:
        lines.append(Markup("<li>{} more</li>").format(more))
    return Markup("<ul>{}</ul>").format(Markup("").join(lines))


def _finding(finding: Finding) -> Markup:
    where = Markup("<code>{}</code>: ").format(t.visible(finding.module)) if finding.module else Markup("")
    line = Markup('<li><span style="color:{}">{}</span> {}{}</li>')
    return line.format(COLOURS[finding.severity], finding.severity, where, t.visible(finding.text))


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
