"""The map that most pages have: every measure by depth and module type."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lorascope.blocks import Heatmap, Measure, Number

Place = tuple[int | None, str]


def depth_by_type(
    things: Iterable[Any],
    place: Callable[[Any], Place],
    measures: Iterable[tuple[str, str, str, str]],
    value: Callable[[Any, str], Number],
    caption: str,
    *,
    types: Sequence[str] | None = None,
    title: str = "Depth × module type",
) -> Heatmap | None:
    """The mean of each measure in each cell; None where the things lie at fewer than two depths.

    Args:
        things: modules, or their records.
        place: the depth and the type of one; those without a depth are left out.
        measures: key, title, unit and what it means; one that no thing has is left out.
        value: a thing's number by a measure's key.
        types: columns in order; those of the things, in order of appearance, by default.
    """
    cells: dict[Place, list[Any]] = {}
    for thing in things:
        if place(thing)[0] is not None:
            cells.setdefault(place(thing), []).append(thing)
    depths = sorted({depth for depth, _ in cells if depth is not None})
    if len(depths) < 2:
        return None
    there = list(dict.fromkeys(type for _, type in cells))
    columns = there if types is None else [type for type in types if type in there]
    layers = []
    for key, name, unit, about in measures:
        grid = tuple(tuple(_mean([value(t, key) for t in cells.get((d, c), ())]) for c in columns) for d in depths)
        if any(number is not None for row in grid for number in row):
            shown = "percent" if unit == "percent" else "int" if unit == "int" else "float"
            layers.append(Measure(key, name, grid, shown, help=about))
    rows = tuple(map(str, depths))
    return Heatmap(title, rows, tuple(columns), tuple(layers), "layer", "module type", caption, where="page")


def _mean(values: Sequence[Number]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
