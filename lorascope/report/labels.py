"""Names inside a figure: of lines and level markers at the right edge, of other markers where nothing else is drawn."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from lorascope.blocks import Marker, Series
from lorascope.report.svg import PLACEHOLDER
from lorascope.report.text import visible

LINE = 15  # pixels from one name to the next
LETTER = 6.6  # pixels of a letter, on average
SMALL = 11
FARTHEST = 26  # pixels that a name may stand from its line's end


def ends(series: Iterable[Series]) -> dict[str, Series]:
    """The lines to name at their ends, by label: none where points have names, or a label stands for two lines."""
    lines = [s for s in series if s.weight != "thin"]
    if any(s.points for s in lines) or len({s.label for s in lines}) < len(lines):
        return {}
    return {visible(s.label): s for s in lines}


def spread(places: Sequence[float], room: float) -> list[float]:
    """Ascending places moved as little as it takes for neighbours to be `room` apart, and none below 0."""
    pools: list[list[float]] = []  # those that have met: sum and count of where each would put the first of all
    for i, place in enumerate(places):
        pools.append([place - i * room, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1][0] += total
            pools[-1][1] += count
    firsts = [total / count for total, count in pools for _ in range(int(count))]
    return [max(first, 0.0) + i * room for i, first in enumerate(firsts)]


def are_near(places: Sequence[float], height: float) -> bool:
    """Whether names spread in a panel `height` pixels high still stand at what they name."""
    ordered = sorted(places)
    moved = spread(ordered, LINE / height)
    return all(abs(to - at) * height <= FARTHEST for at, to in zip(ordered, moved, strict=True))


def at_the_edge(ax: Axes, names: Sequence[tuple[float, str, str]], height: float) -> None:
    """Each name right of the panel: its place as a share of the panel's height, its words, its colour."""
    ordered = sorted(names)
    for at, (_, label, colour) in zip(spread([name[0] for name in ordered], LINE / height), ordered, strict=True):
        ax.annotate(label, (1, at), xycoords="axes fraction", textcoords="offset points", xytext=(8, 0), va="center",
                    fontsize=11.5, color=PLACEHOLDER[colour])  # fmt: skip


def markers(ax: Axes, drawn: Sequence[Marker], is_named: Callable[[Marker], bool]) -> None:
    """The markers' lines, and their names where `is_named`, each in the first place where it covers nothing."""
    for marker in drawn:
        line: dict[str, Any] = {"color": PLACEHOLDER["fg"], "linewidth": 1, "dashes": (1.5, 2.5)}
        (ax.axvline if marker.axis == "x" else ax.axhline)(marker.value, **line)
    taken: list[Bbox] = []
    paths = [line.get_transform().transform_path(line.get_path()).cleaned(remove_nans=True) for line in ax.lines]
    for marker in drawn:
        label = visible(marker.label)
        if not label or not is_named(marker):
            continue
        places = [(place, _box(ax, place, label)) for place in _places(ax, marker, label)]
        (x, y, side), box = min(places, key=lambda each: _covers(each[1], paths, taken))  # the first of the best
        taken.append(box)
        ax.annotate(label, (x, y), xycoords="axes pixels", ha=side, fontsize=SMALL, color=PLACEHOLDER["fg"])


_Place = tuple[float, float, str]  # where a name is held in pixels of the panel, and at which of its ends


def _places(ax: Axes, marker: Marker, label: str) -> list[_Place]:
    """Where the name of a marker may stand, best first: at the side with more room for it, and from the bottom up; of a
    level above it or below, from the right end to the left."""
    width, height, long = ax.bbox.width, ax.bbox.height, len(label) * LETTER
    across, up = (float(v) for v in ax.transData.transform((marker.value, marker.value)) - (ax.bbox.x0, ax.bbox.y0))
    if marker.axis == "x":
        sides = [(across + 5, "left", across + long <= width), (across - 5, "right", across >= long)]
        if across > width / 2:
            sides.reverse()
        fitting = [side for side in sides if side[2]] or sides[:1]
        return [(x, at, side) for at in np.arange(8.0, max(height - LINE, 9), 17.0) for x, side, _ in fitting]
    ends = [(width - 2, "right"), (4.0, "left"), *((width * part, "center") for part in (1 / 2, 1 / 4, 3 / 4))]
    lines = [at for at in (up + 4, up - 13) if 0 <= at <= height - 8] or [up + 4]
    return [(x, at, side) for x, side in ends for at in lines]


def _box(ax: Axes, place: _Place, label: str) -> Bbox:
    x, y, side = place
    long = len(label) * LETTER
    left = ax.bbox.x0 + x - long * {"left": 0.0, "center": 0.5, "right": 1.0}[side]
    bottom = ax.bbox.y0 + y
    return Bbox([(left, bottom - 3), (left + long, bottom + SMALL)])


def _covers(box: Bbox, paths: Sequence[Any], taken: Sequence[Bbox]) -> int:
    """How much a name would be in the way of: other names weigh most."""
    crossed = sum(path.intersects_bbox(box, filled=False) or box.count_contains(path.vertices) > 0 for path in paths)
    return crossed + 100 * box.count_overlaps(list(taken))
