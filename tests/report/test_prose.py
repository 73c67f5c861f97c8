"""Sentences in pieces, anchors of one's own, and the navigation of a site: drawn, and where they may lead."""

import re

import pytest

from lorascope.blocks import (
    Column,
    Definition,
    Definitions,
    Heading,
    Items,
    Link,
    Page,
    Prose,
    Rich,
    Shelf,
    Span,
    Table,
)
from lorascope.report import html, prose, terminal
from tests.report.conftest import HOSTILE

SITE = (Shelf("Pages", (Link("One", "one.html"), Link("Two", "two.html"), Link("Out", "../out.html"))),)


def page(*made, site=SITE) -> str:
    return html.render(Page("title", made, site=site, file="one.html"))


@pytest.mark.parametrize(
    ("to", "anywhere", "on_a_site"),
    [
        ("#rank", True, True),
        ("two.html", True, True),
        ("two.html#rank-r95", True, True),
        ("../index.html", False, True),
        ("https://example.org/a?b=1#c", False, True),
        ("", False, False),
        ("javascript:alert(1)", False, False),
        ("//example.org", False, False),
        ("http://example.org", False, False),
        ("https://example.org/\" onclick=\"x", False, False),
        ("../../etc/passwd", False, False),
        ("data:text/html,x", False, False),
    ],
)  # fmt: skip
def test_where_a_link_may_lead(to, anywhere, on_a_site):
    assert (bool(prose.target(to, False)), bool(prose.target(to, True))) == (anywhere, on_a_site)
    drawn = prose.markup(Rich((Span("word", "", to),)), is_site=True)
    assert ("href" in drawn) == on_a_site


def test_pieces_are_set_as_they_say():
    words = Rich((Span("see "), Span("q_proj", "code", "two.html"), Span(" of ‖ΔW‖_F", "strong"), Span("!", "em")))
    text = page(Prose(words), Items((words,), numbered=True))
    said = 'see <a href="two.html"><code>q_proj</code></a><strong> of ‖ΔW‖<sub>F</sub></strong><em>!</em>'
    assert f"<p>{said}</p>" in text
    assert re.search(rf'<ol class="items">\s*<li>{re.escape(said)}</li>\s*</ol>', text)


def test_hostile_pieces_are_text():
    span = Span(HOSTILE, "code", HOSTILE)
    rich = Rich((span, Span(HOSTILE)))
    table = Table((Column("a", HOSTILE, to=HOSTILE),), ((rich,),), anchors=(HOSTILE,))
    text = page(Prose(rich), Items((rich,)), Heading("h", anchor=HOSTILE), table)
    body = text[text.index("<body>") : text.rindex("<script>")]
    assert "<img" not in body
    assert "<script" not in body
    assert not re.search(r'(href|id)="[^"]*(hacked|7\*7)', body)


def test_anchors_are_the_blocks_own_and_unique():
    text = page(
        Heading("One", anchor="rank"),
        Heading("Two", anchor="rank"),
        Heading("Three", anchor="s1"),  # a page's own
        Table((Column("a", "a"),), (("x",), ("y",)), anchors=("row-x", "")),
        Definitions((Definition("ΔW", "W' − W", "here", keys=("a",), anchor="delta-w"),)),
    )
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert {"rank", "row-x", "delta-w"} <= set(ids)
    assert 'href="#delta-w" aria-label="Definition of a"' in text


def test_a_header_leads_to_its_definition():
    assert 'href="glossary.html#rank"' in page(Table((Column("r", "rank", to="glossary.html#rank"),), (("1",),)))


def test_the_navigation_marks_this_page_and_stays_in_its_folder():
    text = page()
    assert '<a href="one.html" aria-current="page">One</a>' in text
    assert '<a href="two.html">Two</a>' in text
    assert "../out.html" not in text
    assert '<nav class="site"' not in page(site=())


def test_tables_of_a_site_stand_in_the_text_without_a_number():
    table = Table((Column("a", "A"), Column("b", "B"), Column("c", "C")), (("x", "y", "z"),))
    assert 'class="table bare"' in page(table)
    assert 'data-title="B"' in page(table)
    assert "bare" not in page(table, site=()).rpartition("</style>")[2]


def test_prose_in_the_terminal():
    words = Rich((Span("see "), Span("q_proj", "code", "two.html")))
    printed = terminal.render(Page("title", (Prose(words), Items((words, words), numbered=True))), width=80)
    assert printed.splitlines()[2:] == ["see q_proj", "", "1. see q_proj", "2. see q_proj"]


def test_names_break_after_their_dots_and_not_in_a_number():
    text = html.render(Page("minilm-0.1.0 → model.layers.merged", ()))
    assert "<h1>minilm-0.1.0 → model.<wbr>layers.<wbr>merged</h1>" in text


def test_long_parts_of_a_name_break_after_their_underscores():
    assert str(prose.breaking("model.self_attn")) == "model.<wbr>self_attn"
    assert str(prose.breaking("lora_unet_down_blocks_0")) == "lora_<wbr>unet_<wbr>down_<wbr>blocks_<wbr>0"
