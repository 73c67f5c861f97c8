"""Curves and heatmaps as SVG: where points stand, what the caps leave out, which colours."""

import re

import pytest

from lorascope.blocks import (
    Heatmap,
    Lines,
    Marker,
    Measure,
    Series,
)
from lorascope.report import figures, heatmap, palette
from tests.report.test_html import draw


def lines_of(*series, **options) -> figures.Drawing:
    return figures.draw(Lines("t", series, "x", "y", **options), "g1", figures.Styles(), "caption")


def test_a_figure_has_real_text_and_no_colour_of_its_own():
    styles = figures.Styles()
    block = Lines("t", (Series("s", (1.0, 2.0, 3.0), (1.0, 10.0, 100.0)),), "rank k", "kept", log_y=True)
    svg = figures.draw(block, "g1", styles, "caption").svg
    assert ">rank k</text>" in svg
    assert ">kept</text>" in svg
    assert ">10</text>" in svg
    assert "style=" not in svg
    assert not re.search(r"#[0-9a-f]{6}\b", styles.css())
    assert "var(--c0)" in styles.css()


def path_of(drawing: figures.Drawing, name: str) -> str:
    return re.search(rf"<title>{name}</title><path d=\"([^\"]*)\"", drawing.svg)[1]


def test_points_stand_where_their_values_say():
    """Three points equally spaced on a log axis are equally spaced on the page; a gap stays a gap."""
    drawing = lines_of(
        Series("even", (1.0, 2.0, 3.0), (1.0, 0.1, 0.01), weight="thin"),
        Series("gap", (1.0, 2.0, 3.0), (1.0, None, 0.01), weight="thin"),
        Series("zero", (1.0, 2.0, 3.0), (1.0, 0.5, 0.0), weight="thin"),
        log_y=True,
    )
    points = [tuple(map(float, p)) for p in re.findall(r"([\d.]+) ([\d.]+)", path_of(drawing, "even"))]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)  # coordinates are rounded to 0.1 pixel
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert y0 < y1
    assert "L" not in path_of(drawing, "gap")
    assert "1 value lies below the axis and is not drawn." in drawing.notes


def test_a_log_axis_spans_eight_decades_and_says_what_is_below():
    drawing = lines_of(Series("s", (1.0, 2.0, 3.0), (1.0, 1e-3, 1e-17)), log_y=True)
    assert "1 value lies below the axis and is not drawn." in drawing.notes


def test_caps_on_what_is_drawn_are_said():
    x = tuple(float(i) for i in range(64))
    thin = tuple(Series(f"m{i}", x, tuple(1.0 / (1 + v) for v in x), f"p{i % 4}", "thin") for i in range(560))
    drawing = lines_of(*thin, log_y=True)
    assert drawing.svg.count("<title>") == 188  # 560 lines of 64 points, 12,000 at most: every third of each 140
    assert drawing.notes == ("188 of the 560 thin lines are drawn, one in 3 of each panel.",)
    long = lines_of(Series("s", tuple(map(float, range(5000))), (1.0,) * 5000))
    assert long.notes == ("Lines of more than 200 points are drawn through 200 of them.",)
    panels = lines_of(*(Series("s", (1.0, 2.0), (1.0, 2.0), f"p{i}") for i in range(30)))
    assert panels.notes == ("The first 24 of 30 panels are drawn.",)


def test_bands_markers_references_and_many_labels_draw():
    x = (1.0, 2.0, 3.0)
    series = [Series(f"s{i}", x, (1.0, 2.0, 3.0), low=(0.5, 1.0, None), high=(2.0, 3.0, 4.0)) for i in range(10)]
    reference = Series("chance", x, (1.0, 1.0, 1.0), weight="reference")
    drawing = lines_of(*series, reference, markers=(Marker("y", 2.0, "two"), Marker("x", 2.0, "half")))
    assert ">two</text>" in drawing.svg
    assert [key.label for key in drawing.legend] == [*(f"s{i}" for i in range(10)), "chance"]


def test_the_palettes_are_seaborns():
    seaborn = pytest.importorskip("seaborn")
    mako = [c.lstrip("#") for c in seaborn.color_palette("mako", 76).as_hex()]
    assert list(palette.MAKO) == mako[10:74]
    assert list(palette.CREST) == [c.lstrip("#") for c in seaborn.color_palette("crest", 8).as_hex()]
    assert set(palette.COLORBLIND) < {c.lstrip("#") for c in seaborn.color_palette("colorblind").as_hex()}


def layer_of(values, **options) -> heatmap.Layer:
    rows, columns = len(values), len(values[0])
    measure = Measure("m", "M", values, **options)
    block = Heatmap("H", tuple(f"r{i}" for i in range(rows)), tuple(f"c{j}" for j in range(columns)), (measure,))
    return heatmap.layout(block).layers[0]


def test_levels_follow_values_and_absences_have_none():
    layer = layer_of(((0.0, 1.0), (0.5, None)))
    assert [c.level for c in layer.cells] == [0, heatmap.LEVELS - 1, 32, None]
    assert layer.cells[3].says == "r1, c1: none"
    assert layer.cells[2].text == "0.500"
    assert layer.ticks == ("0", "0.500", "1.00")
    text = draw(Heatmap("H", ("r",), ("a", "b"), (Measure("m", "M", ((1.0, None),)),)))
    assert text.count("<rect class=none ") == 1


def test_log_levels_are_even_in_ratios_and_take_what_is_not_positive_as_least():
    layer = layer_of(((1.0, 10.0, 100.0, 0.0),), log=True)
    assert [c.level for c in layer.cells] == [0, 32, 63, 0]
    assert layer.ticks == ("1.00", "10.0", "100")
    assert [c.level for c in layer_of(((2.0, 2.0),)).cells] == [32, 32]
    assert [c.level for c in layer_of(((float("nan"), 1.0, 2.0),)).cells] == [0, 0, 63]


def test_a_large_heatmap_is_cut_and_says_so():
    values = tuple((1.0,) * 200 for _ in range(3))
    block = Heatmap("H", ("a", "b", "c"), tuple(map(str, range(200))), (Measure("m", "M", values),))
    grid = heatmap.layout(block)
    assert grid.notes == ("The first 160 of 200 columns are drawn.",)
    assert len(grid.layers[0].cells) == 480


def pairwise(names: tuple[str, ...]) -> heatmap.Grid:
    values = tuple((0.5,) * len(names) for _ in names)
    return heatmap.layout(Heatmap("H", names, names, (Measure("m", "M", values),), "adapter", "adapter"))


def test_every_column_that_finds_room_is_named():
    four = tuple(f"runs/seed-{i}/adapter-of-run-{i}" for i in range(4))
    assert [label.text for label in pairwise(four).columns] == list(four)
    many = tuple(f"runs_of_seed_{i}_at_step_200" for i in range(9))
    assert [label.text for label in pairwise(many).columns] == list(map(str, range(9)))
    assert [cell.says for cell in pairwise(many).layers[0].cells][1].startswith(
        "runs_of_seed_0_at_step_200, adapter runs_"
    )


def test_long_names_of_rows_leave_out_what_all_have():
    kinds = ("attn1_to_q", "attn1_to_out_0", "ff_net_2")
    rows = tuple(f"lora_unet_down_blocks_1_transformer_blocks_0_{kind}" for kind in kinds)
    block = Heatmap(
        "H", (*rows, "q"), ("0", "1"), (Measure("m", "M", ((1.0, 2.0),) * 4),), sections=(("unet", 3), ("", 1))
    )
    grid = heatmap.layout(block)
    assert [label.text for label in grid.rows] == [*kinds, "q"]
    assert grid.notes == ("Left out of the rows' names: “lora_unet_down_blocks_1_transformer_blocks_0_…”.",)
    assert grid.layers[0].cells[0].says.startswith("lora_unet_")


def test_a_scale_is_one_of_ratios_where_few_values_are_much_larger():
    layer = layer_of(((1.0, 2.0, 3.0), (2.0, 900.0, 0.0)))
    assert layer.log
    assert layer.ticks == ("1.00", "30.0", "900")
    assert [c.level for c in layer.cells][4:] == [heatmap.LEVELS - 1, 0]
    assert not layer_of(((1.0, 2.0, 3.0), (2.0, 50.0, 0.0))).log
    assert not layer_of(((-1.0, 2.0, 3.0), (2.0, 900.0, 0.0))).log
    assert not layer_of(((0.1, 0.1, 0.1, 9.0),), limits=(0.0, 10.0)).log
