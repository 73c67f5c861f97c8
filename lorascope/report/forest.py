"""Where the marks of a forest plot stand, for the page and the terminal. Standard library only.

A row is drawn on a scale of its own, on which 0 is no effect and 1 the published value, or the bound where none is
published: so rows in percent, counts and slopes stand under one another. The axis ends at LEFT and RIGHT; what lies
beyond is drawn as an arrow at the end.
"""

import math
from dataclasses import dataclass

from lorascope.blocks import ForestRow
from lorascope.report import text as t

LEFT, RIGHT = -1.0, 2.0
COLUMNS = 31  # of the terminal's plot: a tenth of the scale each
AXIS = tuple((name, (at - LEFT) / (RIGHT - LEFT)) for name, at in (("no effect", 0), ("published", 1)))
DECIDED = ("reproduced", "weaker", "absent or opposite")  # verdicts with a filled mark
LEGEND = (
    "0: no effect │  1: published ◇, or the bound ┊ where none is published  ● here (○: no verdict was reached) with "
    "its 95 % interval ─  ‹ ›: beyond the axis"
)


@dataclass(frozen=True)
class Marks:
    """A row's marks in shares of the axis, from 0 at its left end to 1 at its right; None where there is none.

    Attributes:
        value, low, high: the estimate and the ends of its interval, inside the axis.
        before, beyond: whether some of it lies left or right of the axis.
        region: of the values that reproduce the claim; None where all of them lie outside the axis.
        bounds: the ends of that region that are bounds, and not the axis' own ends.
        published, no_effect: the landmarks.
    """

    value: float | None
    low: float | None
    high: float | None
    before: bool
    beyond: bool
    region: tuple[float, float] | None
    bounds: tuple[float, ...]
    published: float | None
    no_effect: float | None


def marks(row: ForestRow) -> Marks:
    """The row's marks."""
    origin, unit = _scale(row)

    def place(value: float | int | None) -> float | None:
        return None if value is None else ((value - origin) / unit - LEFT) / (RIGHT - LEFT)

    ends = sorted(end for end in (place(row.low), place(row.high)) if end is not None)
    value = place(row.value)
    drawn = [*ends, *([] if value is None else [value])]
    low, high = (_inside(ends[0]), _inside(ends[-1])) if len(ends) == 2 else (None, None)
    region, bounds = _region(place(row.at_least), place(row.at_most), unit)
    published = place(row.published)
    return Marks(
        None if value is None else _inside(value),
        low,
        high,
        before=any(at < 0 for at in drawn),
        beyond=any(at > 1 for at in drawn),
        region=region,
        bounds=bounds,
        published=None if published is None else _inside(published),
        no_effect=place(row.no_effect),
    )


def _scale(row: ForestRow) -> tuple[float, float]:
    """What stands at 0, and the distance from there to 1 (negative where the published effect is a decrease)."""
    origin = float(row.no_effect or 0)
    bounds = [bound for bound in (row.at_most, row.at_least) if bound is not None]
    for landmark in (row.published, *sorted(bounds, key=lambda bound: abs(bound - origin))):
        if landmark is not None and landmark != origin and math.isfinite(landmark - origin):
            return origin, landmark - origin
    reached = [abs(end - origin) for end in (row.value, row.low, row.high) if end is not None]
    return origin, max(reached, default=1.0) or 1.0


def _region(least: float | None, most: float | None, unit: float) -> tuple[tuple[float, float] | None, tuple]:
    """The region of values that reproduce the claim, and its bounds inside the axis."""
    low, high = (least, most) if unit > 0 else (most, least)
    bounds = tuple(end for end in dict.fromkeys((low, high)) if end is not None and 0 <= end <= 1)
    left, right = 0.0 if low is None else max(low, 0.0), 1.0 if high is None else min(high, 1.0)
    return ((left, right) if left <= right else None), bounds


def _inside(share: float) -> float:
    return min(max(share, 0.0), 1.0)


def says(row: ForestRow) -> str:
    """What a row shows, in words, for those who do not see it."""
    landmarks = (
        ("published", row.published),
        ("no effect", row.no_effect),
        ("at least", row.at_least),
        ("at most", row.at_most),
    )
    stated = [f"{name} {t.cell(value, row.unit)}" for name, value in landmarks if value is not None]
    return "; ".join((f"here {found(row)}", *stated))


def found(row: ForestRow) -> str:
    """The estimate with its interval, in the row's own unit."""
    return t.interval(row)


def line(row: ForestRow) -> str:
    """The row's marks as COLUMNS characters: │ no effect, ┊ a bound, ◇ the published value, ● the estimate (○ where no
    verdict was reached), ─ its interval, ‹ › where it goes on beyond the end."""
    marked = marks(row)
    cells = [" "] * COLUMNS

    def put(at: float | None, mark: str) -> None:
        if at is not None:
            cells[round(at * (COLUMNS - 1))] = mark

    if marked.low is not None and marked.high is not None:
        for i in range(round(marked.low * (COLUMNS - 1)), round(marked.high * (COLUMNS - 1)) + 1):
            cells[i] = "─"
    put(marked.no_effect, "│")
    for bound in marked.bounds:
        put(bound, "┊")
    put(marked.published, "◇")
    if marked.before:
        cells[0] = "‹"
    if marked.beyond:
        cells[-1] = "›"
    if marked.value is not None:
        put(marked.value, "●" if row.verdict in DECIDED else "○")
    return "".join(cells)


def axis() -> str:
    """What stands over `line`: 0 and 1 at their places."""
    cells = [" "] * COLUMNS
    for at in (0, 1):
        cells[round((at - LEFT) / (RIGHT - LEFT) * (COLUMNS - 1))] = str(at)
    return "".join(cells).rstrip()
