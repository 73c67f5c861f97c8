"""The index of all studies: what it lists, and that it leads to their pages."""

import pytest
from playwright.sync_api import expect

from lorascope.blocks import Forest, Page, Table, Text
from lorascope.report import html, terminal
from lorascope.study import index as indices
from lorascope.study import scope
from tests.study.invented import claim, control, criterion, record

LONG = "makes a claim, at length, so that its cell has lines to break"


def records():
    others = [
        claim("weak", criterion(outcome="weaker", estimate=0.01, low=0.005, high=0.015), verdict="weaker"),
        claim("gone", verdict="withdrawn", reason="The grid of learning rates was too coarse.", p=None, q=None),
        claim("far", verdict="out of reach", reason="It needs 100,000 steps.", p=None, q=None),
    ]
    return [
        record("rank_sweep", claim("better", text=LONG), *others),
        record("rank_sweep", claim("better", verdict="inconclusive", reason="the interval contains the bound"),
               testbed="decoder"),
        record("adalora", *[claim(str(i), text=f"{i} {LONG}") for i in range(3)]),
        record("matrix_choice", claim(verdict="inconclusive"), scale="smoke"),
    ]  # fmt: skip


def of_type(page, kind):
    return [block for block in page.blocks if isinstance(block, kind)]


def test_what_is_counted_and_what_is_not_listed():
    page = indices.index(records())
    assert page.summary.startswith(
        "7 claims from 2 studies, 1 of them on several test beds, which makes 8 verdicts: 4 reproduced, 1 weaker,"
        " 1 inconclusive, 1 out of reach, 1 withdrawn."
    )
    assert indices.counts(records()[2:3]) == "3 claims from 1 study: 3 reproduced."
    assert indices.counts([]) == "No claims yet."
    (said,) = of_type(page, Text)
    assert said.text.endswith("matrix_choice (1 claim).")
    assert "matrix_choice" not in terminal.render(Page("p", tuple(of_type(page, Table)[:1])), width=140)


def test_test_beds_of_one_claim_stand_side_by_side():
    page = indices.index(records())
    (forest,) = of_type(page, Forest)
    told = [(row.group.file, row.tag, row.verdict) for row in forest.rows]
    assert told == [
        *[("adalora.html", "encoder", "reproduced")] * 3,
        ("rank_sweep.html", "decoder", "inconclusive"),  # one heading for both
        ("rank_sweep.html", "encoder", "reproduced"),
        ("rank_sweep.html", "encoder", "weaker"),
        ("rank_sweep.html", "encoder", "out of reach"),  # the withdrawn one is not drawn
    ]
    assert "1 withdrawn claim" in forest.caption


def test_where_test_beds_disagree_is_said():
    table = of_type(indices.index(records()), Table)[0]
    assert table.title == "Where the test beds disagree"
    assert table.caption == "1 claim of 1 that are judged on several test beds."
    assert [(row[0].file, row[2], row[3]) for row in table.rows] == [
        ("rank_sweep-decoder.html", "decoder", "inconclusive"),
        ("rank_sweep.html", "encoder", "reproduced"),
    ]
    alike = [record("a", claim()), record("a", claim(), testbed="decoder")]
    assert of_type(indices.index(alike), Table)[0].caption == "0 claims of 1 that are judged on several test beds."
    beyond = [record("a", claim()), record("a", claim(verdict="out of reach"), testbed="decoder")]
    assert "disagree" not in " ".join(block.title for block in of_type(indices.index(beyond), Table))


def test_a_row_has_scope_setting_bound_origin_and_power():
    table = of_type(indices.index(records()[:1]), Table)[0]
    cells = [dict(zip([column.key for column in table.columns], row, strict=True)) for row in table.rows]
    first = cells[0]
    assert first["scope"] == scope.line(records()[0])
    assert first["setting"] == "RoBERTa-large, MNLI, 100,000 steps"
    assert first["measured"] == "gain of A less that of B ≥ 2.0 % (half of the published 4 % (Table 2))"
    assert first["found"] == "3.0 % [2.5 %, 3.5 %]"
    assert first["power"] == "82 %, 64 %"
    withdrawn = cells[2]
    assert (withdrawn["found"], withdrawn["why"]) == ("", "The grid of learning rates was too coarse.")


def test_the_criterion_that_decided_is_shown():
    two = claim("two", criterion("first"), criterion("second", outcome="weaker", reason=""), control(),
                verdict="weaker", decided_by=1)  # fmt: skip
    table = of_type(indices.index([record("paper", two)]), Table)[0]
    cells = dict(zip([column.key for column in table.columns], table.rows[0], strict=True))
    assert cells["measured"].startswith("second ≥ 2.0 %")
    assert cells["why"] == "The whole interval lies between no effect and the bound (criterion 2 of 2)."


@pytest.fixture
def index(tmp_path):
    html.write(indices.index(records()), tmp_path / "index.html")
    html.write(Page("Rank sweep", ()), tmp_path / "rank_sweep.html")
    return tmp_path / "index.html"


def test_the_index_lists_every_claim_sorts_and_leads_to_the_pages(page_in_browser, index):
    opened = page_in_browser(index, viewport={"width": 1280, "height": 900})
    page = opened.page
    table = page.locator("figure[data-interactive]")
    assert table.locator("tbody tr").count() == 8
    assert table.locator(".verdict").count() == 8
    header = table.locator("thead th").nth(2)
    header.locator("[role=button]").click()
    verdicts = table.locator("tbody td:nth-child(3)").all_text_contents()
    assert verdicts == sorted(verdicts)
    page.get_by_label("Filter").fill("withdrawn")
    assert table.locator("tbody tr:not([hidden])").count() == 1
    assert opened.troubles == []
    assert opened.others_asked_for() == []
    table.locator("tbody tr:not([hidden]) a").click()
    expect(page.locator("h1")).to_have_text("Rank sweep")


@pytest.mark.parametrize("width", [1280, 380])
def test_the_index_never_scrolls_sideways(page_in_browser, index, width):
    page = page_in_browser(index, viewport={"width": width, "height": 900}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width == 1280:  # all of its columns are in sight
        assert page.locator("figure.table .scroll").evaluate_all(
            "all => all.every(e => e.scrollWidth <= e.clientWidth)"
        )


def test_the_list_counts_verdicts():
    last = {"scale": "small", "hours": 2.0, "verdicts": {"reproduced": 3, "weaker": 0}}
    rows = [
        {"name": "paper", "claims": 3, "runs": {"small": 7}, "question": "What?", "error": None, "last": last},
        {"name": "new", "claims": 1, "runs": {"small": 9}, "question": "Why?", "error": None, "last": None},
    ]
    text = terminal.render(indices.listing(rows), width=120, color=False)
    assert "reproduced" in text
    assert "weaker" not in text  # no claim is
    assert "What?" in text
    assert "1 of 2 have given verdicts, on 3 claims." in text
