"""A page's figures on matplotlib axes, for notebooks and papers: seaborn draws, in the style that is set."""

from typing import TYPE_CHECKING, Any

from lorascope.blocks import Heatmap, Lines, Series
from lorascope.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

THIN, NORMAL = {"alpha": 0.35, "linewidth": 0.8}, {"linewidth": 2.0}
REFERENCE = {"linestyle": "--", "color": "0.45", "linewidth": 1.5}
LAYERS_NAMED = 12  # rows of a heatmap that each get a label; of more, some do


def draw(block: Lines | Heatmap, ax: "Axes | None" = None, layer: str | None = None) -> "Axes":
    """Draw one figure; the axes drawn on.

    Args:
        block: as an analysis makes it.
        ax: where to draw; the current axes by default.
        layer: of a heatmap, the key of the measure to show; its first by default.

    Raises:
        InputError: the heatmap has no such measure.
    """
    import matplotlib.pyplot as plt

    ax = plt.gca() if ax is None else ax
    if isinstance(block, Heatmap):
        return _heatmap(block, ax, layer)
    return _lines(block, ax)


def _lines(block: Lines, ax: "Axes") -> "Axes":
    """Every panel in a colour of its own; thin lines are single modules, and only the others are in the legend."""
    import seaborn

    panels = list(dict.fromkeys(series.panel for series in block.series))
    several = len(panels) > 1
    keys = panels if several else [series.label for series in block.series if series.weight == "normal"]
    colours = dict(zip(keys, seaborn.color_palette(n_colors=max(1, len(keys))), strict=False))
    named: set[str] = set()
    for series in block.series:
        label = (series.panel if several else series.label) if series.weight == "normal" else None
        colour = colours.get(series.panel if several else series.label, "0.5")
        _series(ax, series, None if label in named else label, colour)
        named.add(label or "")
    for marker in block.markers:
        line = ax.axvline if marker.axis == "x" else ax.axhline
        line(marker.value, label=marker.label, linewidth=1, linestyle=":", color="0.3")
    if block.log_x:
        ax.set_xscale("log")
    if block.log_y:
        ax.set_yscale("log")
    ax.set(xlabel=block.x_label, ylabel=block.y_label, title=block.title)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize="small")
    return ax


def _series(ax: "Axes", series: Series, label: str | None, colour: Any) -> None:
    """One line, its gaps left open; points where they have names; its interval as a band."""
    import seaborn

    y = [float("nan") if value is None else float(value) for value in series.y]
    style = REFERENCE if series.weight == "reference" else {"color": colour}
    if series.weight == "reference":
        label = series.label
    if series.points:
        seaborn.scatterplot(x=list(series.x), y=y, color=colour, label=label, ax=ax, legend=False)
        return
    ax.plot(series.x, y, label=label, **{**(THIN if series.weight == "thin" else NORMAL), **style})
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
