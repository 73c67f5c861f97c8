"""Lines as SVG, drawn by matplotlib: small multiples on shared axes, with real text and the page's own colours.

Everything is laid out in CSS pixels: 72 dots per inch make one point one pixel. `svg` turns what matplotlib writes into
what a page can hold.
"""

import io
import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from lorascope.blocks import Lines, Number, Series
from lorascope.report import labels, ticks
from lorascope.report.palette import CREST
from lorascope.report.svg import PLACEHOLDER, Styles, tidy
from lorascope.report.text import shorten, visible

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # "building the font cache", once
WIDTH, HALF = 1040, 510
POINTS_SHOWN = 40  # a line of at most so many whole positions shows a point at each
LABELS_AT_LINES, LABELS_IN_ROWS = 8, 5  # at most so many are named at the lines' ends: of one panel, of a row of panels
LONGEST_LABEL, IN_ROWS, IN_HALF = 36, 22, 18  # characters of such a name, at most
MAX_PANELS, MAX_POINTS, MAX_THIN_POINTS = 24, 200, 12_000
MAX_DECADES = 8
_DPI = 72

_RC: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lorascope",
    "path.simplify": False,  # each value keeps its point, which the page's script reads
    "text.parse_math": False,  # a module may be called "$x$"
    "font.size": 12,
    "text.color": PLACEHOLDER["fg"],
    "axes.edgecolor": PLACEHOLDER["muted"],
    "axes.labelcolor": PLACEHOLDER["muted"],
    "xtick.color": PLACEHOLDER["muted"],
    "ytick.color": PLACEHOLDER["muted"],
    "grid.color": PLACEHOLDER["grid"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.linewidth": 0.8,
    "ytick.major.size": 0,
    "xtick.major.size": 3.5,
    "xtick.major.width": 0.8,
    "axes.grid.axis": "y",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.8,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "font.family": "DejaVu Sans",
}


@dataclass(frozen=True)
class Key:
    """A legend entry: `mark` is line, point, dash, dots or shade; `colour` the CSS variable's name."""

    mark: str
    label: str
    colour: str = "muted"


@dataclass(frozen=True)
class Drawing:
    """A drawn figure: safe SVG markup ("" where nothing could be drawn), its legend, and what was left out.

    `axes`: of each panel left, top, width and height in pixels, the ends of x and of y, and whether these are on a log
    scale, so that the page's script can say what a point's values are.
    """

    svg: str
    legend: tuple[Key, ...]
    notes: tuple[str, ...]
    axes: tuple[tuple[float | int, ...], ...] = ()


def draw(block: Lines, uid: str, styles: Styles, labelled_by: str) -> Drawing:
    """`block` as SVG. `uid` keeps its ids apart from those of other figures on the page."""
    series, notes = _capped(block)
    limits = _limits(block, series)
    if limits is None:
        return Drawing("", (), ("No finite values to draw.",))
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        settings: Any = matplotlib.rcParams  # whose type knows the names of settings, which are ours
        settings.update(_RC)
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's browser has its own fonts
        grid = _grid(block, series, limits)
        figure, names = _figure(block, series, limits, grid)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = tidy(buffer.getvalue(), uid, styles, names, labelled_by, _describe(block))
    below = sum(_below(s, block, limits) for s in series)
    if below:
        one = below == 1
        notes.append(
            f"{below} value{' lies' if one else 's lie'} below the axis and {'is' if one else 'are'} not drawn."
        )
    return Drawing(svg, _legend(block, series, grid), tuple(notes), grid.axes(block, limits))


# --- what is drawn ----------------------------------------------------------------------------------------------------


def _capped(block: Lines) -> tuple[list[Series], list[str]]:
    """The series to draw, and a sentence for each thing that is left out."""
    notes = []
    panels = list(dict.fromkeys(s.panel for s in block.series))
    kept = [s for s in block.series if s.panel in set(panels[:MAX_PANELS])]
    if len(panels) > MAX_PANELS:
        notes.append(f"The first {MAX_PANELS} of {len(panels)} panels are drawn.")
    if any(len(s.x) > MAX_POINTS for s in kept):
        notes.append(f"Lines of more than {MAX_POINTS} points are drawn through {MAX_POINTS} of them.")
        kept = [_thinned(s) for s in kept]
    thin = [s for s in kept if s.weight == "thin"]
    points = sum(len(s.x) for s in thin)
    if points > MAX_THIN_POINTS:
        step = math.ceil(points / MAX_THIN_POINTS)
        chosen = {id(s) for panel in panels for s in [s for s in thin if s.panel == panel][::step]}
        notes.append(f"{len(chosen)} of the {len(thin)} thin lines are drawn, one in {step} of each panel.")
        kept = [s for s in kept if s.weight != "thin" or id(s) in chosen]
    return kept, notes


def _thinned(s: Series) -> Series:
    if len(s.x) <= MAX_POINTS:
        return s
    last = len(s.x) - 1
    at = sorted({round(i * last / (MAX_POINTS - 1)) for i in range(MAX_POINTS)})

    def pick(values: Sequence[Number]) -> tuple:
        return tuple(values[i] for i in at)

    low, high = (pick(s.low) if s.low else None), (pick(s.high) if s.high else None)
    names = tuple(s.points[i] for i in at) if s.points else ()
    return Series(s.label, pick(s.x), pick(s.y), s.panel, s.weight, low, high, names)


def _clean(values: Sequence[Number], log: bool) -> list[float]:
    """`values` with NaN where there is nothing to draw: None, not finite, or not positive on a log axis."""
    return [float(v) if v is not None and math.isfinite(v) and (v > 0 or not log) else math.nan for v in values]


@dataclass(frozen=True)
class _Limits:
    x: tuple[float, float]
    y: tuple[float, float]
    counts: tuple[float, ...]  # the values of x, where x counts something: no ticks between whole numbers

    def height(self, value: float, log: bool) -> float:
        """Where on the y axis a value stands, from 0 to 1."""
        lo, hi = self.y
        share = math.log(max(value, lo) / lo) / math.log(hi / lo) if log else (value - lo) / (hi - lo)
        return max(0.0, min(1.0, share))


def _limits(block: Lines, series: list[Series]) -> _Limits | None:
    """One pair of limits for all panels, so that they can be compared; at most MAX_DECADES on a log axis."""
    xs = [v for s in series for v in _clean(s.x, block.log_x)]
    ys = [v for s in series for values in (s.y, s.low or (), s.high or ()) for v in _clean(values, block.log_y)]
    xs += [m.value for m in block.markers if m.axis == "x"]
    ys += [m.value for m in block.markers if m.axis == "y"]
    xs, ys = _clean(xs, block.log_x), _clean(ys, block.log_y)
    xs, ys = [v for v in xs if not math.isnan(v)], [v for v in ys if not math.isnan(v)]
    if not xs or not ys:
        return None
    margin = 0.03 if any(s.points for s in series) else 0.0  # a line may begin at the edge, a point may not
    counts = tuple(sorted(set(xs))) if all(v == round(v) for v in xs) else ()
    return _Limits(_span(xs, block.log_x, margin), _span(ys, block.log_y, 0.05), counts)


def _span(values: list[float], log: bool, margin: float) -> tuple[float, float]:
    lo, hi = min(values), max(values)
    if log:
        lo = max(lo, hi * 10.0**-MAX_DECADES)
        grow = (hi / lo) ** margin if hi > lo else 2.0
        return lo / grow, hi * grow
    grow = (hi - lo) * margin if hi > lo else max(abs(hi), 1.0) * 0.5
    return lo - grow, hi + grow


def _below(s: Series, block: Lines, limits: _Limits) -> int:
    return sum(v is not None and (v < limits.y[0] or (block.log_y and v <= 0)) for v in s.y)


# --- drawing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Grid:
    """Where the panels stand, in pixels."""

    panels: tuple[str, ...]
    width: int = WIDTH
    right: int = 14
    left: int = 58
    gap: int = 22
    row_gap: int = 46
    bottom: int = 46
    named: bool = False  # lines are named at their ends, in the last panel of each row, and not in the legend
    levels_named: bool = False  # and so are markers of levels

    @property
    def top(self) -> int:
        """Room for the y axis' label, and under it for the first row's titles."""
        return 52 if any(self.panels) else 32

    @property
    def named_markers(self) -> bool:
        """Whether a marker's label finds room at its line; otherwise the legend has it."""
        return self.columns <= 3

    @property
    def columns(self) -> int:
        n = len(self.panels)
        return {1: 1, 2: 2, 3: 3, 5: 3, 6: 3, 9: 3}.get(n, 4)

    @property
    def rows(self) -> int:
        return math.ceil(len(self.panels) / self.columns)

    @property
    def panel_width(self) -> float:
        return (self.width - self.left - self.right - self.gap * (self.columns - 1)) / self.columns

    @property
    def panel_height(self) -> float:
        return 240 if self.width < WIDTH else {1: 320, 2: 270, 3: 230}.get(self.columns, 170)

    @property
    def height(self) -> float:
        return self.top + self.rows * self.panel_height + (self.rows - 1) * self.row_gap + self.bottom

    def box(self, i: int) -> tuple[float, float, float, float]:
        """Left, bottom, width, height of panel i as shares of the figure."""
        row, column = divmod(i, self.columns)
        x = self.left + column * (self.panel_width + self.gap)
        y = self.height - self.top - row * (self.panel_height + self.row_gap) - self.panel_height
        return x / self.width, y / self.height, self.panel_width / self.width, self.panel_height / self.height

    def axes(self, block: Lines, limits: "_Limits") -> tuple[tuple[float | int, ...], ...]:
        """See `Drawing.axes`."""
        found = []
        for i in range(len(self.panels)):
            x, y, width, height = self.box(i)
            left, top = round(x * self.width, 1), round((1 - y - height) * self.height, 1)
            ends = (*limits.x, *limits.y, int(block.log_x), int(block.log_y))
            found.append((left, top, round(width * self.width, 1), round(height * self.height, 1), *ends))
        return tuple(found)

    def has_below(self, i: int) -> bool:
        return i + self.columns < len(self.panels)

    @property
    def last_of_rows(self) -> tuple[str, ...]:
        """The panels right of which names find room."""
        last = len(self.panels) - 1
        return tuple(p for i, p in enumerate(self.panels) if i == last or i % self.columns == self.columns - 1)


def _grid(block: Lines, series: list[Series], limits: _Limits) -> _Grid:
    """Panels, and room on the right where lines and levels are named at their ends."""
    panels = tuple(dict.fromkeys(s.panel for s in series))
    width = HALF if block.half and len(panels) == 1 else WIDTH
    grid = _Grid(panels, width)
    most, longest = (LABELS_AT_LINES, LONGEST_LABEL) if grid.columns == 1 else (LABELS_IN_ROWS, IN_ROWS)
    longest = IN_HALF if width == HALF else longest
    levels = {visible(m.label) for m in block.markers if m.axis == "y"} if len(panels) == 1 else set()
    lines = {visible(s.label) for s in series if s.weight != "thin"}
    named = 2 <= len(lines) <= most and grid.columns <= 3 and max(map(len, lines)) <= longest
    named = named and all(_are_nameable(panel, lines, block, series, limits, grid) for panel in grid.last_of_rows)
    levels_named = bool(levels) and max(map(len, levels)) <= longest
    words = (lines if named else set()) | (levels if levels_named else set())
    if not words:
        return grid
    right = 24 + round(max(map(len, words)) * labels.LETTER)
    return replace(grid, right=right, named=named, levels_named=levels_named)


def _are_nameable(  # what decides whether names at the lines' ends can be read
    panel: str, lines: set[str], block: Lines, series: list[Series], limits: _Limits, grid: _Grid
) -> bool:
    """Whether every line of the figure ends in this panel, and apart from the others."""
    here = labels.ends(s for s in series if s.panel == panel)
    places = [at for s in here.values() if (at := _end(s, block, limits)) is not None]
    places += [limits.height(m.value, block.log_y) for m in block.markers if m.axis == "y" and len(grid.panels) == 1]
    return set(here) == lines and labels.are_near(places, grid.panel_height)


def _end(s: Series, block: Lines, limits: _Limits) -> float | None:
    """The height of a line's last point; None where it has none."""
    drawn = [y for x, y in zip(_clean(s.x, block.log_x), _clean(s.y, block.log_y), strict=True) if x == x and y == y]
    return limits.height(drawn[-1], block.log_y) if drawn else None


def _figure(block: Lines, series: list[Series], limits: _Limits, grid: _Grid) -> tuple[Figure, dict[str, str]]:
    """The figure, and the names that its lines show under the pointer, by the id of their group."""
    figure = Figure(figsize=(grid.width / _DPI, grid.height / _DPI), dpi=_DPI)
    figure.patch.set_visible(False)
    looks = _looks(series)
    names: dict[str, str] = {}
    for i, panel in enumerate(grid.panels):
        ax = figure.add_axes(grid.box(i))
        _axes(ax, block, limits, grid.panel_width, with_x=not grid.has_below(i), with_y=i % grid.columns == 0)
        if panel:
            room = int(grid.panel_width / 8)
            ax.set_title(shorten(visible(panel), room), loc="left", fontsize=12.5, fontweight="bold", pad=8)
        of_panel = [s for s in series if s.panel == panel]
        _series(ax, of_panel, block, looks, names)
        markers = [m for m in block.markers if m.panel in (None, panel)]
        labels.markers(ax, markers, lambda m: grid.named_markers and not (grid.levels_named and m.axis == "y"))
        at_edge = [(limits.height(m.value, block.log_y), visible(m.label), "fg") for m in markers if m.axis == "y"]
        at_edge = at_edge if grid.levels_named else []
        for label, s in labels.ends(of_panel).items() if grid.named and panel in grid.last_of_rows else ():
            if (at := _end(s, block, limits)) is not None:
                at_edge.append((at, label, looks[s.label].colour))
        labels.at_the_edge(ax, at_edge, grid.panel_height)
    figure.text(6 / grid.width, 1 - 6 / grid.height, visible(block.y_label), va="top", color=PLACEHOLDER["muted"])
    x = (grid.left + (grid.width - grid.left - grid.right) / 2) / grid.width
    figure.text(x, 8 / grid.height, visible(block.x_label), ha="center", va="bottom", color=PLACEHOLDER["muted"])
    return figure, names


def _axes(ax: Axes, block: Lines, limits: _Limits, width: float, with_x: bool, with_y: bool) -> None:
    ax.patch.set_visible(False)
    for axis, log, (lo, hi) in ((ax.xaxis, block.log_x, limits.x), (ax.yaxis, block.log_y, limits.y)):
        is_x = axis is ax.xaxis
        if log:
            ax.set_xscale("log") if is_x else ax.set_yscale("log")
        axis.set_minor_locator(NullLocator())
        where = ticks.of_counts((lo, hi), limits.counts, log, width) if is_x and limits.counts else None
        where = where or ticks.at(lo, hi, log, 6 if is_x else 5)
        axis.set_major_locator(FixedLocator(where))
        axis.set_major_formatter(FixedFormatter(ticks.labels(where)))
    ax.set_xlim(limits.x)
    ax.set_ylim(limits.y)
    ax.tick_params(labelsize=11, labelbottom=with_x, labelleft=with_y)


class _Look(NamedTuple):
    """How a line is drawn, and its mark in the legend; `dashes` is None for an unbroken one."""

    colour: str
    dashes: tuple[float, ...] | None
    mark: str


_APART = (0, 1, 2, 4, 3, 7, 5, 6)  # of COLORBLIND: four hues, then those that are near one of these, which are dashed
_DASHES: tuple[tuple[float, ...] | None, ...] = (None, (5, 2), (1.5, 1.5), (6, 1.5, 1.5, 1.5))
_MARKS = ("line", "dash", "dots", "dash")
_REFERENCES = (_Look("fg", (4, 3), "dash"), _Look("muted", (1.5, 2), "dots"), _Look("muted", (7, 3), "dash"))


def _looks(series: list[Series]) -> dict[str, _Look]:
    """A look for each label; next to shaded thin lines, which are blue, orange comes first."""
    named = dict.fromkeys(s.label for s in series if s.weight == "normal")
    order = list(_APART)
    if any(s.weight == "thin" for s in series):
        order[:2] = [1, 0]
    looks = {label: _REFERENCES[i % len(_REFERENCES)] for i, label in enumerate(_references(series))}
    for i, label in enumerate(named):
        turn = i // 4 % len(_DASHES)
        looks[label] = _Look(f"c{order[i % len(order)]}", _DASHES[turn], _MARKS[turn])
    return looks


def _references(series: list[Series]) -> list[str]:
    return list(dict.fromkeys(s.label for s in series if s.weight == "reference"))


def _series(ax: Axes, series: list[Series], block: Lines, looks: dict[str, _Look], names: dict[str, str]) -> None:
    thin = [s for s in series if s.weight == "thin"]
    for i, s in enumerate(thin):
        shade = f"q{i * len(CREST) // len(thin)}" if block.shade else "muted"
        name = f"thin-{len(names)}"
        names[name] = visible(s.label)
        x, y = _clean(s.x, block.log_x), _clean(s.y, block.log_y)
        # not `plot`, which looks at the data's limits: these are known, and the lines of an 8B adapter are 224
        ax.add_artist(Line2D(x, y, color=PLACEHOLDER[shade], alpha=0.75, linewidth=1, gid=name))
    for s in (s for s in series if s.weight != "thin"):
        x, y = _clean(s.x, block.log_x), _clean(s.y, block.log_y)
        look = looks[s.label]
        colour = PLACEHOLDER[look.colour]
        if s.points:
            _points(ax, s, (x, y), colour, names)
            continue
        if s.low is not None and s.high is not None and s.weight == "normal":
            low, high = _clean(s.low, block.log_y), _clean(s.high, block.log_y)
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        name = f"thin-{len(names)}"
        names[name] = visible(s.label)
        (line,) = ax.plot(x, y, color=colour, linewidth=2.2 if s.weight == "normal" else 1.2, gid=name)
        if look.dashes:
            line.set_dashes(look.dashes)
        if s.weight == "normal" and len(x) <= POINTS_SHOWN and all(float(v).is_integer() for v in s.x):
            ax.plot(x, y, "o", color=colour, markersize=4.5, markeredgewidth=0, clip_on=False)


def _points(ax: Axes, s: Series, xy: tuple[list[float], list[float]], colour: str, names: dict[str, str]) -> None:
    """Each point on its own, so that it can show its name."""
    for x, y, point in zip(*xy, s.points, strict=True):
        if math.isnan(x) or math.isnan(y):
            continue
        gid = f"thin-{len(names)}"
        names[gid] = visible(point)
        ax.plot([x], [y], "o", color=colour, markersize=7, alpha=0.8, markeredgewidth=0, gid=gid, clip_on=False)


def _legend(block: Lines, series: list[Series], grid: _Grid) -> tuple[Key, ...]:
    """What is not named in the figure itself."""
    looks, keys = _looks(series), []
    if not grid.named:
        dotted = {s.label for s in series if s.points}
        normal = {s.label: looks[s.label] for s in series if s.weight == "normal"}
        keys += [Key("point" if name in dotted else look.mark, name, look.colour) for name, look in normal.items()]
    if block.shade and any(s.weight == "thin" for s in series):
        keys.append(Key("shade", block.shade))
    if not grid.named:
        keys += [Key(looks[label].mark, label, looks[label].colour) for label in _references(series)]
    if not grid.named_markers:
        keys += [Key("dots", label, "fg") for label in dict.fromkeys(m.label for m in block.markers)]
    return tuple(keys) if len(keys) > 1 or any(k.mark not in ("line", "point") for k in keys) else ()


def _describe(block: Lines) -> str:
    panels = [p for p in dict.fromkeys(s.panel for s in block.series) if p]
    within = f" Panels: {', '.join(panels[:MAX_PANELS])}." if panels else ""
    sort = "Scatter plot" if any(s.points for s in block.series) else "Line chart"
    return visible(f"{sort} of {block.y_label} against {block.x_label}.{within}")
