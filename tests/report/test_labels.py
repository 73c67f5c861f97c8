"""Names in figures: at the lines' ends where they can be read there, and in nobody's way."""

import re

import pytest

from lorascope.blocks import Lines, Marker, Series
from lorascope.report import figures, labels

X = (1.0, 2.0, 3.0, 4.0)


def draw(*series, **options) -> figures.Drawing:
    return figures.draw(Lines("t", series, "x", "y", **options), "g1", figures.Styles(), "caption")


def level(label: str, y: float, panel: str = "", **options) -> Series:
    return Series(label, X, (y,) * 4, panel, **options)


def places(drawing: figures.Drawing) -> dict[str, tuple[float, float]]:
    """Where each text begins, is centred, or ends."""
    texts = re.findall(r"<text([^>]*)>([^<]+)</text>", drawing.svg)
    at = {}
    for attributes, text in texts:
        moved = re.search(r"translate\(([\d.-]+) ([\d.-]+)\)", attributes) or re.search(
            r'x="([\d.-]+)" y="([\d.-]+)"', attributes
        )
        at[text] = (float(moved[1]), float(moved[2]))
    return at


def test_lines_of_one_panel_are_named_at_their_ends():
    drawing = draw(level("low", 0.0), level("high", 1.0), level("random", 0.5, weight="reference"))
    assert drawing.legend == ()
    at = places(drawing)
    left, _, width, *_ = drawing.axes[0]
    assert all(at[name][0] >= left + width for name in ("low", "high", "random"))
    assert at["high"][1] < at["random"][1] < at["low"][1]


def test_lines_of_several_panels_are_named_in_the_last_of_a_row():
    pair = [level(name, y, panel) for panel in ("left", "right") for name, y in (("a", 0.0), ("b", 1.0))]
    drawing = draw(*pair)
    assert drawing.legend == ()
    assert drawing.svg.count(">a</text>") == 1
    elsewhere = draw(*pair[:3])  # the last panel has no line "b"
    assert [key.label for key in elsewhere.legend] == ["a", "b"]


def test_lines_that_end_in_one_place_are_named_in_the_legend():
    drawing = draw(*(level(f"line {i}", 1.0 + i / 1e3) for i in range(7)), level("far", 9.0))
    assert len(drawing.legend) == 8
    assert ">line 3</text>" not in drawing.svg


def test_levels_are_named_right_of_the_panel():
    drawing = draw(level("one", 0.0), markers=(Marker("y", 0.02, "full fine-tuning"), Marker("y", 1.0, "head alone")))
    left, _, width, *_ = drawing.axes[0]
    assert all(places(drawing)[name][0] >= left + width for name in ("full fine-tuning", "head alone"))


@pytest.mark.parametrize(("y", "is_below"), [(0.7, True), (0.3, False), (3.0, False)])
def test_the_name_of_a_level_stands_where_no_line_is(y, is_below):
    """Of two panels the first has no room at its edge. The line ends just above the level, just below, or far away."""
    run = Series("run", (0.0, 2.0, 4.0), (5.0, y, y), "p")
    drawing = draw(run, Series("run", (0.0, 4.0), (0.0, 0.0), "q"), markers=(Marker("y", 0.5, "chance", "p"),))
    _, top, _, height, _, _, lo, hi, *_ = drawing.axes[0]
    at_level = top + height * (hi - 0.5) / (hi - lo)
    assert (places(drawing)["chance"][1] > at_level) == is_below


def test_names_of_neighbouring_markers_stand_above_one_another():
    pair = (Marker("x", 1.1, "one of them"), Marker("x", 1.15, "the other"))
    at = places(draw(level("line", 0.0), markers=pair))
    assert abs(at["one of them"][1] - at["the other"][1]) > 10


@pytest.mark.parametrize(
    ("at", "moved"),
    [
        ([0.1, 0.9], [0.1, 0.9]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.5, 0.5, 0.5], [0.4, 0.5, 0.6]),
        ([0.0, 0.0], [0.0, 0.1]),
        ([0.2, 0.25, 0.9], [0.175, 0.275, 0.9]),
    ],
)
def test_names_move_as_little_as_it_takes(at, moved):
    assert labels.spread(at, 0.1) == pytest.approx(moved)


def test_seven_lines_differ_in_colour_or_dashes():
    seven = [Series(f"line number {i}", X, (float(i),) * 4, "p") for i in range(7)]
    references = [Series(name, X, (0.0,) * 4, "p", "reference") for name in ("noise", "difference")]
    drawing = draw(*seven, *references)
    looks = {(key.colour, key.mark) for key in drawing.legend}
    assert len(looks) == len(drawing.legend) == 9
    solid = {key.colour for key in drawing.legend if key.mark == "line"}
    assert solid == {"c0", "c1", "c2", "c4"}  # blue, orange, green, purple
