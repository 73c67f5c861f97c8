"""Claims with their verdicts, and links between pages."""

from typing import get_args

import pytest

from lorascope.blocks import Check, Claim, Claims, Column, Link, Page, Table, VerdictWord
from lorascope.report import html, terminal
from tests.report.conftest import HOSTILE

VERDICTS = get_args(VerdictWord)
CHECKS = (
    Check("gain of r = 4", 0.931, 0.91, 0.96, "≥ 90.0 %", "reproduced", "percent", details=("0.29 nats",)),
    Check("the head alone", 0.0, 0.0, 0.0, "≥ 90.0 %", "failed", "percent", control=True),
    Check("no run", None, None, None, "≤ 1", "inconclusive", reason="no run of rank 4"),
)
CLAIMS = Claims(
    (
        Claim("A small rank suffices", "reproduced", "Hu et al. 2021", CHECKS, "It lies above the bound.", "GPT-3",
              decided_by=0, tests=("power 82 %",), note="Of five replicates.", amendments=("Amended.",)),
        Claim("It does not", "absent or opposite", "Nobody 2026", CHECKS[:1], decided_by=0),
        Claim("Who knows", "withdrawn", "Nobody 2027", CHECKS[2:], "It does not stand."),
    )
)  # fmt: skip


def test_claims_in_the_terminal():
    text = terminal.render(Page("p", (CLAIMS,)), width=100, color=False)
    assert "reproduced here: A small rank suffices (Hu et al. 2021)" in text
    assert "gain of r = 4: 93.1 % [91.0 %, 96.0 %], ≥ 90.0 %: reproduced here" in text
    assert "negative control: the head alone: 0.0 % [0.0 %, 0.0 %], ≥ 90.0 %: did not pass, as expected ✓" in text
    assert "no run: –, ≤ 1: inconclusive here; no run of rank 4" in text
    for said in ("It lies above the bound.", "published setting: GPT-3", "0.29 nats", "power 82 %", "Of five", "Amend"):
        assert said in text
    assert "\nwithdrawn: Who knows" in text
    assert "no claims" in terminal.render(Page("p", (Claims(()),)), width=100, color=False)


def test_a_control_that_passes_is_a_finding():
    check = Check("the head alone", 0.95, 0.94, 0.96, "≥ 90.0 %", "passed", "percent", control=True)
    for draw in (html.render, terminal.render):
        drawn = draw(Page("p", (Claims((Claim("c", "not specific", "s", (check,)),)),)))
        assert "passed: the statistic does not discriminate" in " ".join(drawn.split())


def test_claims_on_a_page(page_in_browser, tmp_path):
    html.write(Page("p", (CLAIMS,)), tmp_path / "p.html")
    page = page_in_browser(tmp_path / "p.html").page
    badges = page.locator(".verdict")
    assert badges.all_text_contents() == ["Reproduced here", "Absent or opposite here", "Withdrawn"]
    first, last = page.locator(".claim").first, page.locator(".claim").last
    shown = first.locator("tr").first.locator("td").all_inner_texts()
    assert "93.1\u00a0% [91.0\u00a0%,\u00a096.0\u00a0%]" in shown[0]
    assert "bound ≥ 90.0\u00a0%" in shown[0]
    assert "It lies above the bound." in shown[2]
    assert "power 82\u00a0%" in shown[2]
    assert page.get_by_text("Amended.").is_visible()  # and is not folded
    assert not page.get_by_text("did not pass, as expected").is_visible()
    first.locator("summary").click()
    assert page.get_by_text("did not pass, as expected ✓").is_visible()
    assert last.locator("td").first.inner_text() == "–"  # a number that does not stand is not quoted
    colours = badges.evaluate_all("all => all.map(e => getComputedStyle(e).backgroundColor)")
    assert len(set(colours)) == 3


def contrast(page, selector):
    """The least ratio of luminances of text and background (WCAG 2) among the elements."""
    script = """all => all.map(e => {
        let ground = e;
        while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
        return [getComputedStyle(e).color, getComputedStyle(ground).backgroundColor];
    })"""

    def luminance(colour):
        parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pairs = [sorted(map(luminance, pair)) for pair in page.locator(selector).evaluate_all(script)]
    return min((high + 0.05) / (low + 0.05) for low, high in pairs)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_claims_are_readable_at_any_width_and_in_the_dark(page_in_browser, tmp_path, scheme, width):
    long = Check("a measured thing with a long name " * 4, -0.000123, -0.00456, 0.000789, "≥ −0.5", "weaker")
    words = [Claim("word" * 40, verdict, "s" * 80, (long,), "why " * 40, decided_by=0) for verdict in VERDICTS]
    claims = Claims((*CLAIMS.items, *words))
    html.write(Page("p", (claims,)), tmp_path / "p.html")
    page = page_in_browser(tmp_path / "p.html", color_scheme=scheme, viewport={"width": width, "height": 900}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert contrast(page, ".verdict") >= 4.5  # WCAG 2, AA
    assert page.locator(".claim td").evaluate_all("all => all.every(e => e.scrollWidth <= e.clientWidth)")


def test_a_hostile_claim_is_text(page_in_browser, tmp_path):
    check = Check(HOSTILE, 1.0, None, None, HOSTILE, "weaker", reason=HOSTILE, details=(HOSTILE,))
    texts = {"why": HOSTILE, "setting": HOSTILE, "tests": (HOSTILE,), "note": HOSTILE, "amendments": (HOSTILE,)}
    claim = Claim(HOSTILE, "weaker", HOSTILE, (check,), decided_by=0, **texts)
    html.write(Page("p", (Claims((claim,)),)), tmp_path / "p.html")
    opened = page_in_browser(tmp_path / "p.html")
    assert opened.page.evaluate("window.hacked") is None
    assert opened.troubles == []
    assert opened.page.locator("img").count() == 0
    text = terminal.render(Page("p", (Claims((claim,)),)), width=100)
    assert "\x1b" not in text
    assert "\u202e" not in text


def linked(file: str) -> str:
    table = Table((Column("a", "a"), Column("v", "v", "verdict")), ((Link("name", file), "weaker"),))
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
    assert '<span class="verdict weaker">Weaker here</span>' in linked("x")
    table = Table((Column("v", "v", "verdict"),), (("<b>weaker",), ("not specific",)))
    drawn = html.render(Page("p", (table,)))
    assert drawn.count('<span class="verdict ') == 1
    assert "&lt;b&gt;weaker" in drawn
