"""The page in a real Chromium: what a reader does with it works, and it asks for nothing."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from lorascope.blocks import Column, Link, Page, Shelf, Table
from lorascope.report import html
from tests.report.conftest import HOSTILE


def column(opened, j: int) -> list[str]:
    cells = f"figure[data-interactive] tbody tr:not([hidden]) > :nth-child({j})"
    return opened.page.locator(cells).all_text_contents()


def numbers(texts: list[str]) -> list[float | None]:
    return [None if text == "–" else float(text) for text in texts]


@pytest.fixture
def demo(page_in_browser, demo_file):
    """The demo page, opened; afterwards nothing may have been complained of or asked for."""
    opened = page_in_browser(demo_file)
    yield opened
    assert opened.troubles == []
    assert opened.others_asked_for() == []


def test_sorting_by_click_and_by_key(demo):
    header = demo.page.locator("figure[data-interactive] thead th")
    before = column(demo, 6)
    header.nth(5).locator("[role=button]").click()
    after = numbers(column(demo, 6))
    known = [v for v in after if v is not None]
    assert column(demo, 6) != before
    assert known == sorted(known, reverse=True)
    assert after[-1] is None  # what is absent comes last, whichever way
    expect(header.nth(5)).to_have_attribute("aria-sort", "descending")

    header.nth(5).locator("[role=button]").press("Enter")
    after = numbers(column(demo, 6))
    assert [v for v in after if v is not None] == sorted(known)
    assert after[-1] is None
    expect(header.nth(5)).to_have_attribute("aria-sort", "ascending")

    header.nth(0).locator("[role=button]").click()
    names = column(demo, 1)
    assert names.index("model.layers.2.mlp.up_proj") < names.index("model.layers.10.mlp.up_proj")  # 2 before 10
    expect(header.nth(5)).to_have_attribute("aria-sort", "none")


def test_filtering(demo):
    box = demo.page.get_by_label("Filter")
    box.fill("LAYERS.1. q_proj")
    assert column(demo, 1) == ["model.layers.1.self_attn.q_proj"]
    assert demo.page.locator("output").text_content() == "1 of 224 rows"
    box.fill("no such module")
    assert column(demo, 1) == []
    box.fill("")
    assert len(column(demo, 1)) == 224


def test_a_finding_leads_to_its_module(demo):
    demo.page.locator("a.module").first.click()
    row = demo.page.locator("tr:target")
    expect(row).to_be_in_viewport()
    assert row.locator("th").text_content() == "model.layers.0.self_attn.k_proj"


def test_the_theme_toggles(demo):
    def paper():
        return demo.page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = paper()
    demo.page.locator("[data-theme-button]").click()
    assert paper() != light
    expect(demo.page.locator("[data-theme-button]")).to_have_attribute("aria-pressed", "true")
    demo.page.locator("[data-theme-button]").click()
    assert paper() == light


def test_the_systems_dark_theme_is_followed_by_figures_too(page_in_browser, demo_file):
    def colours(scheme):
        opened = page_in_browser(demo_file, color_scheme=scheme)
        script = "[document.body, document.querySelector('.chart text'), document.querySelector('.h10')]"
        return opened.page.evaluate(f"{script}.map(e => getComputedStyle(e).fill + getComputedStyle(e).color)")

    light, dark = colours("light"), colours("dark")
    assert all(a != b for a, b in zip(light, dark, strict=True))


def test_the_heatmap_switches(demo):
    shown = demo.page.locator(".heatmap .layer:visible .measure")
    assert shown.all_text_contents() == ["‖ΔW‖F (log scale)"]  # the F is set below the line
    demo.page.locator(".switch label", has_text="Stable rank").click()
    assert shown.all_text_contents() == ["Stable rank"]
    demo.page.keyboard.press("ArrowRight")  # they are radio buttons: the arrows move between them
    assert shown.all_text_contents() == ["Effective rank (σ)"]


def test_readable_without_script(page_in_browser, demo_file):
    opened = page_in_browser(demo_file, java_script_enabled=False)
    page = opened.page
    assert page.locator("figure[data-interactive] tbody tr").count() == 224
    expect(page.locator("figure[data-interactive] tbody tr").first).to_be_visible()
    expect(page.locator(".tools")).to_be_hidden()
    expect(page.locator("[data-theme-button]")).to_be_hidden()
    expect(page.locator("svg.plot").first).to_be_visible()
    page.locator(".switch label", has_text="Stable rank").click()
    assert page.locator(".heatmap .layer:visible .measure").all_text_contents() == ["Stable rank"]


def test_prints(demo):
    pdf = demo.page.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF")
    assert 4 <= pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") <= 15


def test_the_page_never_scrolls_sideways(demo):
    for width in (360, 800, 1280, 1600):
        demo.page.set_viewport_size({"width": width, "height": 800})
        assert demo.page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_hostile_file_runs_nothing(page_in_browser, hostile_file):
    opened = page_in_browser(hostile_file)
    assert opened.page.evaluate("window.hacked") is None
    assert opened.troubles == []  # the content policy had nothing to refuse
    assert opened.others_asked_for() == []
    assert HOSTILE[:44] in opened.page.locator("h1").text_content()
    assert opened.page.locator("img").count() == 0


def test_filtering_by_a_bound_and_a_finding_that_leads_to_a_hidden_row(demo):
    box = demo.page.get_by_label("Filter")
    cells = "figure[data-interactive] tbody tr:not([hidden])"
    titles = demo.page.locator("figure[data-interactive] thead th").all_text_contents()
    j = next(i for i, title in enumerate(titles) if title.strip().lower().startswith("stable"))
    box.fill("stable>1.5 layers.1.")
    shown = [float(v) for v in column(demo, j + 1)]
    assert shown
    assert min(shown) > 1.5
    assert all(".1." in name for name in column(demo, 1))
    box.fill("q_proj")
    demo.page.locator("a.module").first.click()  # of a k_proj
    expect(demo.page.locator("tr:target")).to_be_in_viewport()
    assert demo.page.locator(cells).count() == 224


def test_a_table_is_downloaded_as_csv_and_json(demo):
    demo.page.get_by_label("Filter").fill("layers.1.self_attn.q_proj")
    for kind in ("csv", "json"):
        with demo.page.expect_download() as waiting:
            demo.page.locator(f"[data-take={kind}]").click()
        text = Path(waiting.value.path()).read_text(encoding="utf-8")
        if kind == "json":
            (row,) = json.loads(text)
            assert row["Module"] == "model.layers.1.self_attn.q_proj"
            assert row["Scale"] == "2.00"  # a column that is folded away, as it is the same in all rows
        else:
            header, line = text.splitlines()
            assert header.startswith("Module,")
            assert line.startswith("model.layers.1.self_attn.q_proj,")


def test_the_nearest_point_says_what_it_is_to_the_pointer_and_to_the_keys(demo):
    tip = demo.page.locator(".tip")
    demo.page.locator(".heatmap .layer:visible svg.plot rect[class^=h]").first.hover()
    expect(tip).to_contain_text("q_proj, depth 0: ")
    chart = demo.page.locator(".chart .scroll").first
    chart.focus()
    chart.press("ArrowRight")
    expect(tip).to_have_text(re.compile(r".+: [\d.−]+ at 1$"))
    chart.press("ArrowRight")
    expect(tip).to_have_text(re.compile(r".+: [\d.−]+ at 2$"))
    chart.press("Escape")
    expect(tip).to_be_hidden()


def test_a_narrow_screen_shows_the_measure_that_is_chosen(page_in_browser, demo_file):
    page = page_in_browser(demo_file, viewport={"width": 390, "height": 844}).page
    shown = "figure[data-interactive] thead th:visible"
    assert page.locator(shown).count() == 2
    page.locator(".picker select").select_option("2")
    assert page.locator(shown).count() == 2
    assert page.locator("figure[data-interactive]").bounding_box()["width"] <= 390


@pytest.mark.parametrize(
    ("typed", "column", "least"),
    [
        ("stable rank > 1.5", "stable rank", 1.5),
        ("stable>1.5", "stable rank", 1.5),
        ("Stable ≥ 1.5", "stable rank", 1.5),
        ("layers.1. stable rank > 1.5", "stable rank", 1.5),
        ("utilisation of r > 40 %", "utilisation", 40),
        ("utilisation>40%", "utilisation", 40),
        ("utilisation > 4e1 stable rank > 1", "utilisation", 40),
    ],
)
def test_bounds_are_understood_however_they_are_spaced(demo, typed, column, least):
    titles = demo.page.locator("figure[data-interactive] thead th").all_text_contents()
    j = next(i for i, title in enumerate(titles) if title.strip().lower().startswith(column))
    demo.page.get_by_label("Filter").fill(typed)
    rows = demo.page.locator("figure[data-interactive] tbody tr:not([hidden])")
    shown = [float(text.removesuffix(" %")) for text in rows.locator(f":nth-child({j + 1})").all_text_contents()]
    assert 0 < len(shown) < 224
    assert min(shown) >= least - 0.05  # as rounded in the table
    assert demo.page.locator("output").first.text_content() == f"{len(shown)} of 224 rows"
    if typed.startswith("layers.1."):
        assert all("layers.1." in name for name in rows.locator("th").all_text_contents())


def test_a_bound_on_no_column_is_said(demo):
    box, output = demo.page.get_by_label("Filter"), demo.page.locator("output").first
    box.fill("q_proj foo > 3")
    assert output.text_content() == "32 of 224 rows; no column starts with “foo”"
    box.fill("stable >")  # still being typed
    assert output.text_content() == "224 of 224 rows"


SCROLL = "figure.wide .scroll"


@pytest.mark.parametrize("width", [1240, 1440])
def test_a_wide_table_goes_beyond_the_text_on_both_sides(page_in_browser, demo_file, width):
    page = page_in_browser(demo_file, viewport={"width": width, "height": 900}).page
    box = page.locator(SCROLL).first.bounding_box()
    assert box["width"] > 1050
    assert box["x"] == pytest.approx(width - box["x"] - box["width"], abs=1)


def test_a_table_of_many_columns_that_fits_stays_with_the_text(page_in_browser, tmp_path):
    columns = tuple(Column(f"c{j}", f"c{j}", "int") for j in range(12))
    html.write(Page("t", (Table(columns, ((1,) * 12,), "T"),)), tmp_path / "page.html")
    page = page_in_browser(tmp_path / "page.html", viewport={"width": 1440, "height": 900}).page
    box = page.locator(SCROLL).bounding_box()
    assert (box["x"], box["width"]) == (pytest.approx(200, abs=1), pytest.approx(1040, abs=1))


def test_a_wide_table_does_not_reach_the_contents(page_in_browser, demo_file):
    page = page_in_browser(demo_file, viewport={"width": 1600, "height": 900}).page
    box, contents = page.locator(SCROLL).first.bounding_box(), page.locator(".contents").bounding_box()
    assert contents["x"] + contents["width"] < box["x"]
    assert box["x"] + box["width"] <= 1600


def test_names_break_between_their_parts_on_a_phone_alone(page_in_browser, tmp_path):
    names = [f"base.model.encoder.layer.{i}.attention.self.query" for i in range(3)]
    rows = tuple((name, 1.5, 2.5, float(i)) for i, name in enumerate(names))
    columns = (Column("name", "module", "code"), *(Column(k, k, "float") for k in "ab"), Column("c", "‖ΔW‖_F", "float"))
    html.write(Page("t", (Table(columns, rows, "T", interactive=True),)), tmp_path / "page.html")
    # what stands at the beginning of each line of the first name
    lines = """() => {
        const walk = document.createTreeWalker(document.querySelector("tbody th"), 4), begins = [];
        for (let text, top = -1; text = walk.nextNode();) for (let i = 0; i < text.length; i++) {
            const range = new Range(); range.setStart(text, i); range.setEnd(text, i + 1);
            const at = range.getBoundingClientRect().top;
            if (Math.abs(at - top) > 4) begins.push(text.data.slice(i)); top = at; } return begins; }"""
    phone = page_in_browser(tmp_path / "page.html", viewport={"width": 390, "height": 844}).page
    begins = phone.evaluate(lines)
    assert len(begins) > 1
    assert all(begin.split(".")[0] in names[0].split(".") for begin in begins)
    assert phone.locator(".picker option").all_text_contents() == ["a", "b", "‖ΔW‖"]
    wide = page_in_browser(tmp_path / "page.html", viewport={"width": 1000, "height": 844}).page
    assert len(wide.evaluate(lines)) == 1


def test_a_table_that_is_cut_off_says_so_at_its_head_too(page_in_browser, tmp_path):
    columns = tuple(Column(f"c{j}", f"a rather long title {j}") for j in range(6))
    html.write(Page("t", (Table(columns, (("x",) * 6,), "T"),)), tmp_path / "page.html")
    page = page_in_browser(tmp_path / "page.html", viewport={"width": 390, "height": 844}).page
    assert page.evaluate("getComputedStyle(document.querySelector('thead th')).backgroundColor") == "rgba(0, 0, 0, 0)"
    assert page.locator("thead").bounding_box()["height"] < 50  # titles stay on one line


def test_the_navigation_begins_with_a_whole_word_on_a_phone(page_in_browser, tmp_path):
    links = tuple(Link(f"Page number {i}", f"p{i}.html") for i in range(12))
    html.write(Page("t", (), site=(Shelf("All", links),), file="p6.html"), tmp_path / "page.html")
    page = page_in_browser(tmp_path / "page.html", viewport={"width": 390, "height": 844}).page
    row = page.locator(".site div").bounding_box()
    begins = [link.bounding_box()["x"] for link in page.locator(".site a").all()]
    assert min(abs(x - row["x"]) for x in begins) <= 1
    here = page.locator(".site [aria-current]").bounding_box()
    assert row["x"] <= here["x"] <= row["x"] + row["width"] - here["width"]


def test_what_made_a_page_stays_together_on_paper(demo):
    demo.page.emulate_media(media="print")
    assert demo.page.evaluate("getComputedStyle(document.querySelector('footer')).breakInside") == "avoid"
    assert demo.page.locator("footer").bounding_box()["height"] < 90
