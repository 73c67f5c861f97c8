"""Every page type in a real Chromium: what matters stands on the first screen, at every width and in both themes, on
paper and without script."""

import re
from dataclasses import replace

import numpy as np
import pytest

from lorascope.analyses.base import analyses
from lorascope.cli.analyze import page_of
from lorascope.report import html
from lorascope.weights import io
from tests.analyses.test_against_base import checkpoint as against
from tests.analyses.test_delta import checkpoint, low_rank
from tests.contracts.test_analyses import NAMES, PARTS, inputs_of
from tests.contracts.test_studies import ROOT
from tests.docs import site

DOCS = ("command-analyze", "docs-index", "glossary")
REPORTS = {"study": "rslora", "index": "index"}
PAGES = tuple(dict.fromkeys((*(name for name in NAMES if name not in PARTS), "with-base", "several", *REPORTS, *DOCS)))
FIRST = ".finding, .answer, .forest"  # the index has no words of its own above its figure
FIRST_OF_DOCS = "main pre, main .definitions > div"  # a command, or in the glossary a word
ABOVE = 600  # px: the first finding, at 1440 × 900
PAPER = {"analyze": 3, "with-base": 4, "compare": 3, "study": 14}  # pages; the first two are of twelve modules
TOO_WIDE = """() => [...document.querySelectorAll("figure.table:not([data-interactive]) .scroll")]
    .filter((e) => e.scrollWidth > e.clientWidth).map((e) => e.parentNode.id)"""
UNNAMED = """() => [...document.querySelectorAll("input, select, button")].filter((e) => e.checkVisibility()
    && !e.getAttribute("aria-label")
    && ![...(e.labels ?? [])].some((label) => label.checkVisibility() && label.textContent.trim())
    && !(e.tagName === "BUTTON" && e.textContent.trim())).map((e) => e.outerHTML)"""


@pytest.fixture(scope="module", params=PAGES)
def file(request, lora_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / f"{request.param}.html"
    if request.param in REPORTS:
        published = ROOT / "reports" / f"{REPORTS[request.param]}.html"
        path.write_text(published.read_text(encoding="utf-8"), encoding="utf-8")
        return path
    if request.param in DOCS:
        wanted = request.param.removeprefix("docs-") + ".html"
        (made,) = (page for page in site.pages() if page.file == wanted)
        html.write(made, path)
        return path
    html.write(drawn(request.param, io.read(lora_folder)), path)
    return path


def drawn(name, adapter):
    """The page of an analysis, or of several adapters."""
    if name == "several":
        return page_of([analyses.get("analyze").run(adapter) for _ in range(2)])
    return result_of(name, adapter).page()


def result_of(name, adapter):
    analysis = analyses.get("analyze" if name == "with-base" else name)
    if name in ("analyze", "with-base"):
        of_layer = [update for key, update in adapter.updates.items() if "layers.0" in key]
        names = {u.name.replace("layers.0", f"layers.{i}"): u for u in of_layer for i in range(6)}
        twelve = {name: replace(update, name=name) for name, update in names.items()}
        rng = np.random.default_rng(0)
        base = against(**{name: rng.standard_normal(update.shape) for name, update in twelve.items()})
        return analysis.run(replace(adapter, updates=twelve), base=base if name == "with-base" else None)
    if name in ("trajectory", "compare"):
        return analysis.run([adapter, adapter])
    if name == "delta":
        rng = np.random.default_rng(0)
        base = {f"layers__{i}__{kind}__weight": rng.standard_normal((16, 24)) for i in (0, 1) for kind in "qv"}
        tuned = {key: weight + low_rank(rng, 16, 24, [0.3, 0.1]) for key, weight in base.items()}
        return analysis.run(checkpoint(**base), checkpoint(**tuned))
    return analysis.run(*inputs_of(analysis, adapter))


def test_a_page_at_every_width_in_the_dark_printed_and_without_script(file, page_in_browser):
    opened = page_in_browser(file, viewport={"width": 1440, "height": 900})
    page = opened.page
    wanted = FIRST_OF_DOCS if file.stem in DOCS else FIRST
    first = page.locator(wanted).first  # a study's page opens with the answer in words, then a figure
    assert file.stem != "study" or page.locator(".forest tbody tr").first.bounding_box()["y"] < 900
    assert first.bounding_box()["y"] < ABOVE
    assert page.evaluate("document.documentElement.scrollWidth") <= 1440
    contents = page.locator(".contents")
    assert contents.count() == 0 or contents.bounding_box()["x"] >= 0
    assert page.locator("h1").bounding_box()["y"] < ABOVE
    assert page.evaluate(UNNAMED) == []

    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light

    page.set_viewport_size({"width": 1200, "height": 900})
    assert page.evaluate(TOO_WIDE) == []
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert first.bounding_box()["y"] < 844
    assert page.evaluate(UNNAMED) == []

    printed = page.pdf(prefer_css_page_size=True)
    assert 1 <= len(re.findall(rb"/Type /Page\b", printed)) <= PAPER.get(file.stem, 60)
    page.emulate_media(media="print")
    assert first.is_visible()
    assert not page.locator(".theme, .tools, .site").filter(visible=True).count()
    assert opened.troubles == []
    assert opened.others_asked_for() == []

    plain = page_in_browser(file, java_script_enabled=False).page
    assert plain.locator(wanted).first.is_visible()
    assert plain.locator("table").count() == 0 or plain.locator("tbody tr").first.is_visible()
