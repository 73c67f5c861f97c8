"""Blocks on matplotlib axes, and a page's first screen for notebooks."""

import matplotlib
import numpy as np
import pytest

from lorascope.blocks import (
    Finding,
    Findings,
    Heatmap,
    Lines,
    Marker,
    Measure,
    Page,
    Series,
    Summary,
    Tile,
    Tiles,
)
from lorascope.errors import InputError
from lorascope.report import notebook, plots
from tests.report.demo import page

matplotlib.use("Agg")


@pytest.fixture
def ax():
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def lines(**settings) -> Lines:
    series = (
        Series("a", (1.0, 2.0, 4.0), (1.0, None, 3.0), "q"),
        Series("b", (1.0, 2.0), (0.5, 0.7), "q", "thin"),
        Series("c", (1.0, 2.0), (2.0, 2.5), "k", low=(1.5, 2.0), high=(2.5, 3.0)),
    )
    return Lines("Spectra", series, "index", "σ", markers=(Marker("x", 2.0, "r = 2"),), **settings)


def test_lines_are_the_series(ax):
    assert plots.draw(lines(log_y=True), ax) is ax
    drawn = [line for line in ax.lines if len(line.get_xdata()) > 1 and line.get_linestyle() != ":"]
    assert [len(line.get_xdata()) for line in drawn] == [3, 2, 2]
    assert np.isnan(drawn[0].get_ydata()[1])
    assert ax.get_yscale() == "log"
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("index", "σ", "Spectra")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["q", "k", "r = 2"]
    assert len(ax.collections) == 1  # one interval


def test_a_heatmap_shows_one_metric_and_its_gaps(ax):
    values = ((1.0, None), (2.0, 3.0))
    measures = (Measure("norm", "‖ΔW‖", values), Measure("rank", "stable rank", ((5.0, 6.0), (7.0, None))))
    block = Heatmap("by layer", ("0", "1"), ("q", "k"), measures, "layer", "type")
    plots.draw(block, ax, "rank")
    shown = ax.collections[0].get_array()
    assert np.ma.filled(shown, -1).ravel().tolist() == [5.0, 6.0, 7.0, -1.0]
    assert "stable rank" in ax.get_title()
    with pytest.raises(InputError, match=r"no measure 'energy'.*norm, rank"):
        plots.draw(block, ax, "energy")


def test_without_axes_an_empty_figure_is_used_and_a_drawn_one_left_alone(recwarn):
    import matplotlib.pyplot as plt

    plt.close("all")
    heatmap = Heatmap("by layer", ("0", "1"), ("q",), (Measure("norm", "‖ΔW‖", ((1.0,), (2.0,))),), "layer", "type")
    _, (left, right) = plt.subplots(1, 2)
    plt.sca(left)
    assert plots.draw(heatmap) is left
    plt.sca(right)
    assert plots.draw(lines(log_x=True, log_y=True)) is right
    alone = plots.draw(heatmap)
    assert alone.figure is not right.figure
    assert (alone.get_xscale(), len(alone.lines)) == ("linear", 0)
    assert plots.draw(heatmap).figure is not alone.figure
    assert len(plt.get_fignums()) == 3
    assert not [warning for warning in recwarn if "log-scaled" in str(warning.message)]
    plt.close("all")


def test_the_first_screen_escapes_every_name():
    evil = "<script>alert(1)</script>"
    shown = Page(evil, (Findings((Finding("error", evil, evil),)),), summary=evil)
    text = notebook.first_screen(shown)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") == 4


def test_the_first_screen_has_the_pages_tiles_status_and_actions():
    tiles = (Tile("stable rank", "2.1", "random: 2.2"), Tile("modules", "48"))
    problem = Finding("warning", "too large", action="lower α")
    note = Finding("note", "measured")
    summary = Summary("a", ("LoRA", "r = 4"), "1 warning", "warning", tiles, (problem,))
    text = notebook.first_screen(Page("a", (summary, Findings((problem, note)))))
    assert [text.index(each) for each in ("r = 4", "1 warning", "random: 2.2", "too large", "measured")] == sorted(
        text.index(each) for each in ("r = 4", "1 warning", "random: 2.2", "too large", "measured")
    )
    assert text.count("too large") == 1
    assert "lower α" in text
    assert "<strong>2.1</strong>" in notebook.first_screen(Page("b", (Tiles(tiles),)))


def test_the_first_screen_is_short():
    text = notebook.first_screen(page())
    assert len(text) < 20_000
    assert "result.to_html" in text
    assert text.count("<table") == 1
