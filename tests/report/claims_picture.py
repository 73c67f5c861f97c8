"""The README's forest plot: the claims that were decided against a published number, as one SVG, light and dark.

    python -m tests.report.claims_picture reports/

It is drawn from the records alone, by what the pages are drawn by: `report.forest` and `study.words`.
"""

import sys
import textwrap
from collections.abc import Sequence
from html import escape
from pathlib import Path

from lorascope.blocks import ForestRow
from lorascope.report import forest
from lorascope.report import text as t
from lorascope.study import record, words

WIDTH, LABEL, AXIS, ROW, TOP = 760, 366, 226, 32, 30
LETTERS = 56  # of a label's line
STYLE = (
    "text{fill:#16191d}.m{fill:#5b646e}.z{stroke:#5b646e}.b{stroke:#5b646e;stroke-dasharray:2.5 2.5}"
    ".r{fill:#9db8c6;fill-opacity:.38}.p{fill:#fff;stroke:#16191d;stroke-width:1.4}{tones}"
    "@media (prefers-color-scheme:dark){text{fill:#e6e8ea}.m{fill:#9aa4ae}.z,.b{stroke:#9aa4ae}.r{fill:#4c6470}"
    ".p{fill:#14171a;stroke:#e6e8ea}{dark}}"
)
TONES = {"reproduced": ("1b7a4b", "6fd39f"), "weaker": ("0b5fa5", "7db9f2"), "absent or opposite": ("b3261e", "ff8a80")}


def chosen(reports: Path) -> list[ForestRow]:
    """Claims with a verdict, a published value and a value for no effect."""
    records, errors = record.read_folder(reports)
    if errors:
        raise SystemExit("\n".join(errors))
    rows = [words.forest_row(claim) for found in records if found["scale"]["conclusive"] for claim in found["claims"]]
    return [
        row
        for row in rows
        if row
        and row.verdict in TONES
        and row.published is not None
        and row.no_effect is not None
        and row.low is not None
    ]


def draw(rows: Sequence[ForestRow]) -> str:
    """The SVG."""
    tones = [
        "".join(f".{css(verdict)}{{fill:#{pair[i]};stroke:#{pair[i]}}}" for verdict, pair in TONES.items())
        for i in (0, 1)
    ]
    style = STYLE.replace("{tones}", tones[0]).replace("{dark}", tones[1])
    height = TOP + ROW * len(rows) + 8
    heads = "".join(
        f'<text class="m" x="{x(at):.1f}" y="18" text-anchor="middle">{name}</text>' for name, at in forest.AXIS
    )
    body = "\n".join(line(row, TOP + ROW * i) for i, row in enumerate(rows))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" '
        f'font-size="12">\n<style>{style}</style>\n{heads}\n{body}\n</svg>\n'
    )


def line(row: ForestRow, top: float) -> str:
    """One claim: its words in at most two lines, its marks, its verdict."""
    marks, middle, tone = forest.marks(row), top + ROW / 2, css(row.verdict)
    label = textwrap.wrap(t.visible(row.label), LETTERS, max_lines=2, placeholder=" …")
    heights = [middle + 4 + 14 * (i - (len(label) - 1) / 2) for i in range(len(label))]
    ends = f'x="{LABEL - 10}" text-anchor="end"'
    parts = [f'<text {ends} y="{y}">{escape(said)}</text>' for y, said in zip(heights, label, strict=True)]
    if marks.region:
        left, right = map(x, marks.region)
        parts.append(f'<rect class="r" x="{left:.1f}" y="{top + 2}" width="{right - left:.1f}" height="{ROW - 4}"/>')
    for at, kind in [(bound, "b") for bound in marks.bounds] + [(marks.no_effect, "z")]:
        parts.append(f'<path class="{kind}" d="M{x(at):.1f} {top + 2}v{ROW - 4}"/>')
    parts.append(f'<path class="p" d="M{x(marks.published) - 5:.1f} {middle}l5 5 5-5-5-5z"/>')
    parts.append(f'<path class="{tone}" stroke-width="2" d="M{x(marks.low):.1f} {middle}H{x(marks.high):.1f}"/>')
    for is_there, at, step in ((marks.before, 0, 7), (marks.beyond, 1, -7)):
        if is_there:
            parts.append(f'<path class="{tone}" d="M{x(at):.1f} {middle}l{step} -4v8z"/>')
    if 0 < marks.value < 1:
        parts.append(f'<circle class="{tone}" cx="{x(marks.value):.1f}" cy="{middle}" r="4"/>')
    parts.append(f'<text class="m" x="{LABEL + AXIS + 12}" y="{middle + 4}">{t.here(row.verdict)}</text>')
    return "".join(parts)


def x(share: float) -> float:
    """Pixels from the left of a place on the axis."""
    return LABEL + AXIS * share


def css(verdict: str) -> str:
    return verdict.split(" ")[0]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found = chosen(folder)
    (folder / "claims.svg").write_text(draw(found), encoding="utf-8")
    print(f"{len(found)} claims")
