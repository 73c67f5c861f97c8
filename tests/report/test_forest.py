"""Forest plots: where marks stand, and what the page and the terminal show of them."""

from xml.etree import ElementTree

import pytest

from lorascope.blocks import Forest, ForestRow, Link, Page
from lorascope.report import forest, html, terminal
from tests.report import claims_picture
from tests.report.conftest import HOSTILE
from tests.report.test_claims import contrast


def row(**changes):
    """0 is no effect, 1 the published 4 %, the bound is half way between."""
    made = {"label": "A gains more than B", "value": 0.03, "low": 0.01, "high": 0.05, "verdict": "inconclusive",
            "at_least": 0.02, "no_effect": 0.0, "published": 0.04, "unit": "percent"}  # fmt: skip
    return ForestRow(**made | changes)


def on_the_scale(share):
    """From a share of the axis, which goes from −1 to 2, to the scale on which 0 is no effect."""
    return None if share is None else 3 * share - 1


@pytest.mark.parametrize(
    ("changes", "value", "region"),
    [
        ({}, 0.75, (0.5, 2)),
        ({"published": None}, 1.5, (1, 2)),  # 1 is the bound
        ({"no_effect": 1.0, "at_least": None, "at_most": 0.9, "published": 0.8, "value": 0.85}, 0.75, (0.5, 2)),
        ({"no_effect": None, "published": None, "at_least": None, "at_most": 0.06}, 0.5, (-1, 1)),
        ({"no_effect": None, "published": None, "at_least": -0.05, "at_most": 0.05}, 0.6, (-1, 1)),
        ({"no_effect": None, "published": None, "at_least": 0.0, "high": 0.06}, 0.5, (0, 2)),  # a bound at 0: the
        # scale is that of the row's own numbers
    ],
)
def test_the_scale_of_a_row(changes, value, region):
    marks = forest.marks(row(**changes))
    assert on_the_scale(marks.value) == pytest.approx(value)
    assert tuple(map(on_the_scale, marks.region)) == pytest.approx(region)


def test_what_lies_beyond_the_axis_is_an_arrow():
    marks = forest.marks(row(value=0.3, low=-0.2, high=0.4))
    assert (marks.low, marks.high, marks.before, marks.beyond) == (0, 1, True, True)
    assert forest.marks(row(at_least=0.2, published=0.04)).region is None  # the bound is outside


def test_a_row_without_numbers():
    marks = forest.marks(row(value=None, low=None, high=None))
    assert (marks.value, marks.low, marks.before, marks.beyond) == (None, None, False, False)
    assert "●" not in forest.line(row(value=None, low=None, high=None))


def test_the_line_of_the_terminal():
    # a tenth of the scale each: −1 is at 0, no effect at 10, the bound at 15, the published value at 20
    assert forest.line(row(low=0.008, high=0.048)) == " " * 10 + "│ ───┊──○─◇──" + " " * 8
    assert forest.line(row(verdict="reproduced", value=0.03, low=0.024, high=0.036))[18] == "●"


def test_a_forest_in_the_terminal():
    block = Forest("Published and here", (row(), row(verdict="weaker", group=Link("B?", "b.html"))), "Of five.")
    text = terminal.render(Page("p", (block,)), width=120, color=False)
    assert "3.0 % [1.0 %, 5.0 %]  inconclusive here" in text
    assert "\nB?\n" in text
    assert "weaker here" in text
    assert max(map(len, text.splitlines())) <= 120
    narrow = terminal.render(Page("p", (block,)), width=70, color=False)
    assert max(map(len, narrow.splitlines())) <= 82  # marks and numbers are never cut
    assert "no rows" in terminal.render(Page("p", (Forest("f", ()),)), width=80, color=False)


@pytest.fixture
def drawn(tmp_path):
    rows = (
        row(group=Link("First?", "first.html"), tag="encoder"),
        row(group=Link("First?", "first.html"), tag="decoder", verdict="reproduced"),
        row(group=Link("Second?", "second.html"), tag="encoder", verdict="absent or opposite", value=-0.2, low=-0.3),
    )
    html.write(Page("p", (Forest("All claims", rows, interactive=True),)), tmp_path / "p.html")
    return tmp_path / "p.html"


def test_rows_are_filtered_by_verdict_and_test_bed(page_in_browser, drawn):
    opened = page_in_browser(drawn)
    page = opened.page
    rows = page.locator("tr[data-verdict]:not([hidden])")
    assert rows.count() == 3
    page.get_by_label("Test bed").select_option("encoder")
    assert rows.count() == 2
    page.get_by_label("Verdict").select_option("absent or opposite")
    assert rows.locator(".word").all_text_contents() == ["Absent or opposite here"]
    assert page.locator("tr.group:not([hidden])").all_text_contents() == ["Second?"]
    assert page.locator(".forest output").text_content() == "1 of 3 verdicts"
    assert opened.troubles == []
    assert opened.others_asked_for() == []


def test_marks_stand_where_the_numbers_are(page_in_browser, drawn):
    page = page_in_browser(drawn, viewport={"width": 1280, "height": 900}).page
    strip = page.locator("svg.marks").first
    box = strip.bounding_box()
    circle = strip.locator(".estimate").bounding_box()
    assert (circle["x"] + circle["width"] / 2 - box["x"]) / box["width"] == pytest.approx((0.75 + 1) / 3, abs=0.01)
    assert strip.get_attribute("aria-label") == (
        "here 3.0 % [1.0 %, 5.0 %]; published 4.0 %; no effect 0.0 %; at least 2.0 %"
    )
    assert page.locator("svg.marks").nth(2).locator(".arrow").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 380])
def test_a_forest_fits_and_is_readable(page_in_browser, drawn, scheme, width):
    page = page_in_browser(drawn, color_scheme=scheme, viewport={"width": width, "height": 900}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".forest tr[data-verdict]").evaluate_all(
        "all => all.every(e => e.scrollWidth <= e.clientWidth)"
    )
    assert contrast(page, ".forest .word") >= 4.5  # WCAG 2, AA


def test_without_a_script_all_rows_are_there(page_in_browser, drawn):
    page = page_in_browser(drawn, java_script_enabled=False).page
    assert page.locator("tr[data-verdict]").count() == 3
    assert not page.get_by_label("Verdict").first.is_visible()


def test_a_hostile_row_is_text(page_in_browser, tmp_path):
    block = Forest(HOSTILE, (row(label=HOSTILE, group=Link(HOSTILE, HOSTILE), tag=HOSTILE),), HOSTILE, interactive=True)
    html.write(Page("p", (block,), answer=HOSTILE), tmp_path / "p.html")
    opened = page_in_browser(tmp_path / "p.html")
    assert opened.page.evaluate("window.hacked") is None
    assert opened.troubles == []
    assert opened.page.locator("img, main a").count() == 0
    text = terminal.render(Page("p", (block,), answer=HOSTILE), width=100)
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_the_picture_of_the_readme_is_well_formed_and_has_what_was_decided():
    rows = [
        row(verdict="weaker", label="A < B & C"),
        row(verdict="absent or opposite", value=-0.3, low=-0.4, high=-0.2),
    ]
    svg = ElementTree.fromstring(claims_picture.draw(rows))
    texts = ["".join(each.itertext()) for each in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["no effect", "published", "A < B & C", "weaker here", rows[1].label, "absent or opposite here"]
