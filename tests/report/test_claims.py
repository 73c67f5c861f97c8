"""Claims with their verdicts, links between pages, and the index of all studies."""

import pytest
from playwright.sync_api import expect

from lorascope.blocks import Check, Claim, Claims, Column, Link, Page, Table
from lorascope.report import html, terminal
from lorascope.study import page as pages
from tests.report.conftest import HOSTILE

CHECKS = (
    Check("gain of r = 4", 0.931, 0.91, 0.96, "≥ 90.0 %", "held", "percent"),
    Check("the head alone", 0.0, 0.0, 0.0, "≥ 90.0 %", "not held", "percent", control=True),
    Check("no run", None, None, None, "≤ 1", "undecided", reason="no run of rank 4"),
)
CLAIMS = Claims(
    (
        Claim("A small rank suffices", "held", "Hu et al. 2021", CHECKS, "Of five replicates."),
        Claim("It does not", "not held", "Nobody 2026", CHECKS[:1]),
        Claim("Who knows", "undecided", "Nobody 2027", CHECKS[2:]),
    )
)


def test_claims_in_the_terminal():
    text = terminal.render(Page("p", (CLAIMS,)), width=100, color=False)
    assert "held: A small rank suffices (Hu et al. 2021)" in text
    assert "gain of r = 4: 93.1 % [91.0 %, 96.0 %], ≥ 90.0 %: held" in text
    assert "negative control: the head alone: 0.0 % [0.0 %, 0.0 %], ≥ 90.0 %: not held" in text
    assert "no run: –, ≤ 1: undecided; no run of rank 4" in text
    assert "Of five replicates." in text
    assert "no claims" in terminal.render(Page("p", (Claims(()),)), width=100, color=False)


def test_claims_on_a_page(page_in_browser, tmp_path):
    html.write(Page("p", (CLAIMS,)), tmp_path / "p.html")
    page = page_in_browser(tmp_path / "p.html").page
    assert page.locator(".verdict").all_text_contents() == ["Held", "Not held", "Undecided"]
    rows = page.locator(".claim").first.locator("tbody tr")
    assert rows.nth(0).locator("td").all_text_contents() == ["93.1 % [91.0 %, 96.0 %]", "≥ 90.0 %", "held"]
    assert rows.nth(1).locator("th").text_content() == "Negative control: the head alone"
    assert rows.nth(2).locator("th").text_content() == "no run (no run of rank 4)"
    colours = page.locator(".verdict").evaluate_all("all => all.map(e => getComputedStyle(e).backgroundColor)")
    assert len(set(colours)) == 3


def contrast(page, selector):
    """The least ratio of luminances of text and background (WCAG 2) among the elements."""
    script = """all => all.map(e => { const s = getComputedStyle(e); return [s.color, s.backgroundColor] })"""

    def luminance(colour):
        parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pairs = [sorted(map(luminance, pair)) for pair in page.locator(selector).evaluate_all(script)]
    return min((high + 0.05) / (low + 0.05) for low, high in pairs)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_claims_are_readable_at_any_width_and_in_the_dark(page_in_browser, tmp_path, scheme, width):
    long = Check("a measured thing with a long name " * 4, -0.000123, -0.00456, 0.000789, "≥ −0.5 and ≤ 0.5", "held")
    claims = Claims((*CLAIMS.items, Claim("word" * 40, "held", "s" * 80, (long,))))
    html.write(Page("p", (claims,)), tmp_path / "p.html")
    page = page_in_browser(tmp_path / "p.html", color_scheme=scheme, viewport={"width": width, "height": 900}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert contrast(page, ".verdict") >= 4.5  # WCAG 2, AA
    if width == 390:  # nothing of a claim is out of sight
        assert page.locator(".claim .scroll").evaluate_all("all => all.every(e => e.scrollWidth <= e.clientWidth)")


def test_a_hostile_claim_is_text(page_in_browser, tmp_path):
    check = Check(HOSTILE, 1.0, None, None, HOSTILE, "held", reason=HOSTILE)
    html.write(Page("p", (Claims((Claim(HOSTILE, "held", HOSTILE, (check,), HOSTILE),)),)), tmp_path / "p.html")
    opened = page_in_browser(tmp_path / "p.html")
    assert opened.page.evaluate("window.hacked") is None
    assert opened.troubles == []
    assert opened.page.locator("img").count() == 0
    text = terminal.render(Page("p", (Claims((Claim(HOSTILE, "held", HOSTILE, (check,), HOSTILE),)),)), width=100)
    assert "\x1b" not in text
    assert "\u202e" not in text


def linked(file: str) -> str:
    table = Table((Column("a", "a"), Column("v", "v", "verdict")), ((Link("name", file), "held"),))
    return html.render(Page("p", (table,))).partition("<main")[2].partition("</main")[0]


def test_a_link_leads_to_a_file_of_the_same_folder():
    assert '<a href="rank_sweep.html">name</a>' in linked("rank_sweep.html")
    assert "name" in terminal.render(Page("p", (Table((Column("a", "a"),), ((Link("name", "x.html"),),)),)))


@pytest.mark.parametrize(
    "file",
    [
        "../x.html",
        "/x.html",
        "a/b.html",
        "javascript:alert(1)",
        "https://e.example",
        "//e",
        "..",
        ".",
        "",
        "x\n",
        'x"y',
    ],
)
def test_a_link_that_leads_elsewhere_is_its_text_alone(file):
    assert "<a " not in linked(file)
    assert "name" in linked(file)


def test_a_verdict_in_a_table_is_a_badge_and_any_other_text_is_not():
    assert '<span class="verdict held">Held</span>' in linked("x")
    table = Table((Column("v", "v", "verdict"),), (("<b>held",), ("not held",)))
    drawn = html.render(Page("p", (table,)))
    assert drawn.count('<span class="verdict ') == 1
    assert "&lt;b&gt;held" in drawn


# --- the index --------------------------------------------------------------------------------------------------------


def study(name: str, verdicts: list[str], scale: str = "small") -> dict:
    """A record with invented claims."""
    numbers = {"at_least": -0.75, "at_most": -0.25, "estimate": -0.5, "low": -0.61, "high": -0.4, "unit": "float"}
    criterion = {
        "text": "slope of log rate against log n",
        **numbers,
        "verdict": "held",
        "reason": "",
        "control": False,
    }
    claims = [
        {"name": str(i), "text": f"{name} makes the claim number {i}, at length, so that its cell has lines to break",
         "source": "Hayou, Ghosh and Yu 2024, arXiv 2406.08447, §3, Theorem 1 and the figure beside it", "note": "",
         "verdict": verdict, "criteria": [criterion | {"text": criterion["text"] * 2}]}
        for i, verdict in enumerate(verdicts)
    ]  # fmt: skip
    return {
        "name": name,
        "title": f"Title of {name}?",
        "question": "What, and why?",
        "scale": {"name": scale, "replicates": 5, "conclusive": scale != "smoke", "test_split": "test",
                  "test_samples": 1000, "config": {"model": {"name": "minilm", "num_hidden_layers": 3}}},
        "arms": [],
        "tuning": [],
        "claims": claims,
        "cost": {"runs": 290, "seconds_of_work": 7200.0},
        "made": {"devices": []},
    }  # fmt: skip


@pytest.fixture
def index(tmp_path):
    records = [study("rank_sweep", ["held", "not held", "undecided"]), study("learns_less_forgets_less", ["held"] * 6)]
    html.write(pages.index(records), tmp_path / "index.html")
    html.write(Page("Rank sweep", ()), tmp_path / "rank_sweep.html")
    return tmp_path / "index.html"


def test_the_index_lists_every_claim_sorts_and_leads_to_the_pages(page_in_browser, index):
    opened = page_in_browser(index, viewport={"width": 1280, "height": 900})
    page = opened.page
    assert "9 claims in 2 studies: 7 held, 1 not held, 1 undecided." in page.locator(".summary").last.text_content()
    table = page.locator("figure[data-interactive]")
    assert table.locator("tbody tr").count() == 9
    assert table.locator(".verdict").count() == 9
    verdicts = table.locator("tbody td:nth-child(3)")
    header = table.locator("thead th").nth(2)
    header.locator("[role=button]").click()
    assert verdicts.all_text_contents() == sorted(verdicts.all_text_contents())
    assert header.get_attribute("aria-sort") == "ascending"
    page.get_by_label("Filter").fill("undecided")
    assert table.locator("tbody tr:not([hidden])").count() == 1
    assert opened.troubles == []
    assert opened.others_asked_for() == []
    table.locator("tbody tr:not([hidden]) a").click()
    expect(page.locator("h1")).to_have_text("Rank sweep")


def test_studies_that_can_decide_come_first_in_the_index():
    records = [study("adalora", ["undecided"], "smoke"), study("rank_sweep", ["held"])]
    claims, studies, *_ = pages.index(records).blocks
    scale = [column.key for column in claims.columns].index("scale")
    assert [(row[0].text, row[scale]) for row in claims.rows] == [("rank_sweep", "small"), ("adalora", "smoke")]
    assert [row[0].text for row in studies.rows] == ["Title of rank_sweep?", "Title of adalora?"]


@pytest.mark.parametrize("width", [1280, 390])
def test_the_index_never_scrolls_sideways(page_in_browser, index, width):
    page = page_in_browser(index, viewport={"width": width, "height": 900}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width == 1280:  # all of its columns are in sight
        assert page.locator("figure.table .scroll").evaluate_all(
            "all => all.every(e => e.scrollWidth <= e.clientWidth)"
        )
