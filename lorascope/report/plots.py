"""A page's figures on matplotlib axes, for notebooks and papers: seaborn draws, in the style that is set."""

from typing import TYPE_CHECKING, Any

from lorascope.blocks import Heatmap, Lines, Series
from lorascope.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DASHES = ("-", "--", "-.", ":")
THIN, NORMAL = {"alpha": 0.35, "linewidth": 0.8}, {"linewidth": 2.0}
REFERENCE: dict[str, Any] = {"linestyle": "--", "color": "0.45", "linewidth": 1.5}
LAYERS_NAMED = 12  # rows of a heatmap that each get a label; of more, some do


def draw(block: Lines | Heatmap, ax: "Axes | None" = None, layer: str | None = None) -> "Axes":
    """Draw one figure; the axes drawn on.

    Args:
        block: as an analysis makes it.
        ax: where to draw; by default the current axes, as seaborn does, but where these have a figure already, a new
            one: no figure is drawn over another.
        layer: of a heatmap, the key of the measure to show; its first by default.

    Raises:
        InputError: the heatmap has no such measure.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        ax = plt.gca()
        ax = plt.figure().add_subplot() if ax.has_data() else ax
    if isinstance(block, Heatmap):
        return _heatmap(block, ax, layer)
    return _lines(block, ax)


def _lines(block: Lines, ax: "Axes") -> "Axes":
    """Thin lines are single modules, and not in the legend. Where there are several panels, each has a colour of its
    own; where these have several lines each, the colour is the line's and the panel decides the dashes."""
    import seaborn

    looks = _looks(block)
    colours = seaborn.color_palette(n_colors=1 + max((look[0] for look in looks.values()), default=0))
    for series in block.series:
        colour, dashes, label = looks.get((series.panel, series.label), looks.get((series.panel, ""), (0, 0, "")))
        _series(ax, series, label if series.weight == "normal" else None, colours[colour], DASHES[dashes % len(DASHES)])
    for marker in block.markers:
        line = ax.axvline if marker.axis == "x" else ax.axhline
        line(marker.value, label=marker.label, linewidth=1, linestyle=":", color="0.3")
    if block.log_x:
        ax.set_xscale("log")
    if block.log_y:
        ax.set_yscale("log")
    ax.set(xlabel=block.x_label, ylabel=block.y_label, title=block.title)
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        once = dict(zip(labels, handles, strict=True))
        ax.legend(once.values(), once.keys(), frameon=False, fontsize="small")
    return ax


def _looks(block: Lines) -> dict[tuple[str, str], tuple[int, int, str]]:
    """Colour, dashes and name in the legend, by panel and label; by panel and "" those of its thin lines."""
    bold = [series for series in block.series if series.weight == "normal"]
    panels, labels = list(dict.fromkeys(s.panel for s in bold)), list(dict.fromkeys(s.label for s in bold))
    if len(panels) <= 1:
        looks = {(s.panel, s.label): (labels.index(s.label), 0, s.label) for s in bold}
    elif len(bold) == len(panels):
        looks = {(s.panel, s.label): (panels.index(s.panel), 0, s.panel) for s in bold}
    else:
        looks = {
            (s.panel, s.label): (labels.index(s.label), panels.index(s.panel), f"{s.label}, {s.panel}") for s in bold
        }
    return {(panel, ""): look for (panel, _), look in looks.items()} | looks


def _series(ax: "Axes", series: Series, label: str | None, colour: Any, dashes: Any) -> None:
    """One line, its gaps left open; points where they have names; its interval as a band."""
    import seaborn

    y = [float("nan") if value is None else float(value) for value in series.y]
    if series.points:
        seaborn.scatterplot(x=list(series.x), y=y, color=colour, label=label, ax=ax, legend=False)
        return
    if series.weight == "reference":
        ax.plot(series.x, y, label=series.label, **REFERENCE)
        return
    width: Any = THIN if series.weight == "thin" else NORMAL
    ax.plot(series.x, y, label=label, color=colour, linestyle=dashes, **width)
    if series.low is not None and series.high is not None:
        low, high = ([float("nan") if v is None else float(v) for v in end] for end in (series.low, series.high))
        ax.fill_between(series.x, low, high, color=colour, alpha=0.15, linewidth=0)


def _heatmap(block: Heatmap, ax: "Axes", layer: str | None) -> "Axes":
    import pandas as pd
    import seaborn
    from matplotlib.colors import LogNorm

    by_key = {measure.key: measure for measure in block.measures}
    if layer is not None and layer not in by_key:
        raise InputError(f"{block.title} has no measure {layer!r}", expected=f"one of {', '.join(by_key)}")
    measure = block.measures[0] if layer is None else by_key[layer]
    numbers = pd.DataFrame(measure.values, index=block.rows, columns=block.columns, dtype=float)
    low, high = measure.limits or (None, None)
    every = max(1, -(-len(block.rows) // LAYERS_NAMED))
    seaborn.heatmap(
        numbers,
        ax=ax,
        cmap="mako_r",
        norm=LogNorm() if measure.log else None,
        vmin=None if measure.log else low,
        vmax=None if measure.log else high,
        yticklabels=every,
        cbar_kws={"label": measure.title},
    )
    ax.set(xlabel=block.column_label, ylabel=block.row_label, title=f"{measure.title}: {block.title}")
    return ax
