"""A figure of points: one mark each, with its name under the pointer."""

import re

from lorascope.blocks import Lines, Page, Series
from lorascope.report import figures, html


def scatter(**options) -> Lines:
    """Two labels, three named points, one of them not drawable."""
    first = Series("query", (0.1, 0.2, 0.3), (1.0, None, 3.0), points=("layers.0.q", "layers.1.q", "<b>q</b>"))
    return Lines("Change", (first, Series("value", (0.2,), (2.0,), points=("layers.0.v",))), "ΔD", "ΔM", **options)


def test_every_point_is_drawn_once_and_says_its_name():
    drawing = figures.draw(scatter(), "f1", figures.Styles(), "f1-caption")
    titles = re.findall(r"<title>(.*?)</title>", drawing.svg)
    assert titles == ["layers.0.q", "&lt;b&gt;q&lt;/b&gt;", "layers.0.v"]
    assert "Scatter plot of ΔM against ΔD" in drawing.svg
    assert [(key.mark, key.label) for key in drawing.legend] == [("point", "query"), ("point", "value")]


def test_the_extreme_points_stand_inside_the_axes():
    series = list(scatter().series)
    limits = figures._limits(scatter(), series)
    assert limits.x[0] < 0.1
    assert limits.x[1] > 0.3


def test_a_page_of_points_in_the_browser(tmp_path, page_in_browser):
    file = tmp_path / "points.html"
    html.write(Page("points", (scatter(),)), file)
    opened = page_in_browser(file)
    box = opened.page.locator(".chart .plot use").last.bounding_box()
    assert 3 < box["width"] < 20
    assert opened.page.locator(".legend .key.point").count() == 2
    assert opened.troubles == []
