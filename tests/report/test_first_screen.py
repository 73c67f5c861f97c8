"""Every page type in a real Chromium: what matters stands on the first screen, at every width and in both themes, on
paper and without script."""

import re

import pytest

from lorascope.analyses.base import analyses
from lorascope.weights import io
from tests.contracts.test_analyses import TRIED, inputs_of
from tests.contracts.test_studies import ROOT

PARTS = ("spectrum", "against_base", "method_specific")  # of the page of `analyze`
PAGES = (*(name for name in TRIED if name not in PARTS), "study")
ABOVE = 600  # px: the first finding, at 1440 × 900
PAPER = 3  # pages, for an adapter of a few modules


@pytest.fixture(scope="module", params=PAGES)
def file(request, lora_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / f"{request.param}.html"
    if request.param == "study":
        path.write_text((ROOT / "reports" / "rslora.html").read_text(encoding="utf-8"), encoding="utf-8")
        return path
    analysis = analyses.get(request.param)
    return analysis.run(*inputs_of(analysis, io.read(lora_folder))).to_html(path)


def test_a_page_at_every_width_in_the_dark_printed_and_without_script(file, page_in_browser):
    opened = page_in_browser(file, viewport={"width": 1440, "height": 900})
    page = opened.page
    first = page.locator(".finding, .answer").first  # a study's page opens with the answer in words, then a figure
    assert file.stem != "study" or page.locator(".forest tbody tr").first.bounding_box()["y"] < 900
    assert first.bounding_box()["y"] < ABOVE
    assert page.evaluate("document.documentElement.scrollWidth") <= 1440
    contents = page.locator(".contents")
    assert contents.count() == 0 or contents.bounding_box()["x"] >= 0

    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light

    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert first.bounding_box()["y"] < 844

    if file.stem in ("analyze", "compare"):
        assert len(re.findall(rb"/Type /Page\b", page.pdf(prefer_css_page_size=True))) <= PAPER
    assert opened.troubles == []
    assert opened.others_asked_for() == []

    plain = page_in_browser(file, java_script_enabled=False).page
    assert plain.locator(".finding, .answer").first.is_visible()
    assert plain.locator("table").count() == 0 or plain.locator("tbody tr").first.is_visible()
