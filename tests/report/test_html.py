import base64
import hashlib
import os
import re
import stat
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from lorascope.analyses import analyze
from lorascope.blocks import (
    Block,
    Code,
    Column,
    Definition,
    Definitions,
    Facts,
    Finding,
    Findings,
    Folded,
    Heading,
    Heatmap,
    Lines,
    Measure,
    Page,
    Picture,
    Pictures,
    Rich,
    Series,
    Span,
    Table,
    Text,
    Tile,
    Tiles,
)
from lorascope.errors import LorascopeError
from lorascope.report import html, terminal
from tests.analyses.test_against_base import adapter, checkpoint
from tests.report import demo
from tests.report.conftest import HOSTILE

VOID = {"meta", "link", "input", "wbr", "br", "img", "hr"}
CELLS = {"td", "th"}  # whose end tags HTML lets one leave out before the next cell, or the row's end


class Structure(HTMLParser):
    """Tags with their attributes' names, in order; texts; and whether every tag was closed in turn."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.attributes += attrs
        if tag in CELLS:
            self._end_cell()
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag == "tr":
            self._end_cell()
        assert self.open.pop() == tag

    def _end_cell(self):
        if self.open and self.open[-1] in CELLS:
            self.open.pop()

    def handle_data(self, data):
        self.texts.append(data)


def draw(*blocks: Block) -> str:
    return html.render(Page("title", blocks))


# --- safety -----------------------------------------------------------------------------------------------------------


def test_a_hostile_file_changes_texts_but_not_the_structure(hostile_html):
    """The same page with a harmless string of as many dots has the very same tags and attributes."""
    harmless = html.render(demo.page("z" * 80 + "." * HOSTILE.count(".")))
    one, other = Structure(hostile_html), Structure(harmless)
    assert one.tags == other.tags
    assert not one.open
    assert [tag[0] for tag in one.tags].count("script") == 1
    assert not [name for name, _ in one.attributes if name.startswith("on") or name == "style"]
    assert any("<script>window.hacked=1</script>" in text for text in one.texts)
    assert not set(re.findall(r"[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", hostile_html))
    hostile_html.encode("utf-8")


def test_the_content_policy_allows_this_script_and_this_style_alone(demo_html):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', demo_html)[1].replace("&#39;", "'")
    for tag in ("script", "style"):
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", demo_html, re.S)
        digest = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
        assert len(inside) == 1
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_nothing_points_outside(demo_html):
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", demo_html)
    links = {v for name, v in Structure(demo_html).attributes if name in ("href", "src")}
    assert all(v.startswith(("#", "data:,")) for v in links)


def test_every_link_and_reference_has_its_target(demo_html):
    attributes = Structure(demo_html).attributes
    ids = [v for name, v in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    wanted = {v[1:] for name, v in attributes if name == "href" and v.startswith("#")}
    wanted |= {v for name, v in attributes if name in ("aria-labelledby", "for")}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", demo_html))
    assert wanted <= set(ids)
    assert any(v.startswith("row-") for v in wanted)  # a finding leads to its module's row


# --- size, sameness, writing ------------------------------------------------------------------------------------------


def test_an_8b_page_is_small(demo_html):
    """As invented, and as `analyze` draws it: what a page weighs depends on the number of modules and the rank."""
    names = [demo.name_of(kind, depth) for kind in demo.SHAPES for depth in range(demo.DEPTHS)]
    rng = np.random.default_rng(0)
    factors = {name: (rng.standard_normal((48, demo.RANK)), rng.standard_normal((demo.RANK, 40))) for name in names}
    base = checkpoint(**{name: rng.standard_normal((48, 40)) for name in names})
    for text in (demo_html, html.render(analyze.run(adapter(**factors), base=base).page())):
        assert text.count('<tr id="row-') + text.count("<tr>") > 224
        assert len(text.encode()) < 1_000_000


def test_the_same_page_gives_the_same_bytes(tmp_path, demo_html):
    """In another process too, with another hash seed and a matplotlibrc of the user's own."""
    (tmp_path / "matplotlibrc").write_text("font.size: 30\nsvg.fonttype: path\naxes.grid: False\n")
    environment = os.environ | {"PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path)}
    subprocess.run(
        [sys.executable, "-m", "tests.report.demo", str(tmp_path / "page.html")], env=environment, check=True
    )
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == demo_html


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    page = Page("t", (Text("hello"),))
    path = tmp_path / "page.html"
    html.write(page, path)
    assert "hello" in path.read_text(encoding="utf-8")
    assert stat.S_IMODE(path.stat().st_mode) & 0o400
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(html.os, "replace", full)
    with pytest.raises(LorascopeError, match="No space left"):
        html.write(Page("other", ()), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(LorascopeError, match="cannot write"):
        html.write(page, tmp_path / "absent" / "page.html")


# --- what blocks become -----------------------------------------------------------------------------------------------


def test_numbers_and_absences_in_tables():
    columns = (Column("m", "M", "code"), Column("x", "X", "float"), Column("p", "P", "percent"))
    text = draw(Table(columns, (("a.b", 1.23456789, 0.5), ("c.d", None, None))))
    assert '<td data-v="1.234568">1.23<' in text
    assert '<td data-v="0.5">50.0 %<' in text
    assert text.count("<td>–") == 2
    assert '<th scope=row class="t c">a.b<' in text


def test_a_column_of_numbers_has_one_format():
    text = draw(Table((Column("m", "M"), Column("x", "X", "float")), (("a", 9.33e-4), ("b", 0.003), ("c", 4096.0))))
    assert "<td>0.000933<" in text
    assert '<td data-v="0.003">0.00300<' in text
    assert "<td>4,096<" in text  # the script reads it without its comma


def test_no_caption_is_empty():
    table = Table((Column("a", "A"),), (("x",),))
    assert '<figcaption id="table-1-caption" class="sr">' in draw(table)
    named = draw(Heading("Every matrix"), replace(table, title="Every matrix"))
    assert '<span class="title">Every matrix.</span>' in named
    said = draw(Heading("Every matrix"), replace(table, title="Every matrix", caption="In order."))
    assert '<span class="title">' not in said
    assert "In order." in said


def test_empty_blocks():
    empty = Table((Column("a", "A"),), (), interactive=True)
    lines = Lines("L", (Series("a", (1.0, 2.0), (None, float("nan"))),), "x", "y")
    blank = Heatmap("H", ("r",), ("c",), (Measure("m", "M", ((None,),), log=True),))
    text = draw(empty, lines, blank, Findings(()), Facts(()), Definitions(()), Code(""), Heatmap("H", (), (), ()))
    assert "No rows." in text
    assert "No finite values to draw." in text
    assert "No findings." in text
    assert "no values" in text
    assert not Structure(text).open


def test_a_block_for_the_terminal_stays_there():
    assert "secret" not in draw(Text("secret", where="terminal"))


def test_a_row_of_numbers_stands_above_the_contents_and_leads_to_definitions():
    row = Tiles((Tile("Rank", "4 <b>", "random: 5", "rank"), Tile("Cost", "1", metric="cost"), Tile("Plain", "2")))
    defined = Definitions((Definition("Rank", "r", "here", "A number.", ("rank",)),))
    page = Page("T", (row, Heading("One"), Text("words"), Heading("Two"), defined), summary="what it is about")
    text = html.render(page)
    assert not Structure(text).open
    assert text.index("what it is about") < text.index('class="tiles"') < text.index("<nav")
    assert re.findall(r'<a class="def" href="(#[^"]+)"', text) == ["#definition-0"]
    assert "4 &lt;b&gt;" in text
    assert 'class="tiles"' not in draw(Tiles(()))
    assert "random: 5" not in terminal.render(page)
    assert terminal.render(Page("T", (Tiles(row.items, where="both"),))) == "T\n"


def test_headings_make_the_contents_and_own_titles_do_not_repeat_them():
    text = draw(Heading("One"), Facts((("a", "b"),), "One"), Findings((), "Two"), Heading("Sub", 3), Heading("Deep", 4))
    contents = re.search(r"<nav.*?</nav>", text, re.S)[0]
    assert re.findall(r">([^<]+)</a>", contents) == ["One", "Two", "Sub"]
    assert len(re.findall(r"<h[2-4][^>]*>One<", text)) == 1


def test_figures_and_tables_are_numbered_apart():
    table = Table((Column("a", "A"),), (("x",),), "First")
    lines = Lines("Curve", (Series("s", (1.0, 2.0), (1.0, 2.0)),), "x", "y")
    text = draw(table, lines, Heatmap("Map", ("r",), ("c",), (Measure("m", "M", ((1.0,),)),)), table)
    for label in ("Table 1.", "Figure 1.", "Figure 2.", "Table 2."):
        assert f"<b>{label}</b>" in text


def test_what_is_left_out_is_said():
    columns = tuple(Column(f"c{i}", f"c{i}", "int") for i in range(16))
    rows = tuple((i,) * 16 for i in range(3000))
    text = draw(Table(columns, rows, "Big", interactive=True))
    assert "The first 1,875 of 3,000 rows." in text
    assert text.count("<tr>") == 1875 + 1
    many = Findings(tuple(Finding("note", f"finding {i}.") for i in range(40)))
    assert "<summary>30 more</summary>" in draw(many)
    assert all(f"finding {i}." in draw(many) for i in range(40))


def test_what_is_folded_is_drawn_and_not_in_the_contents_or_on_the_terminal():
    table = Table((Column("name", "name"), Column("n", "n", "int")), (("layers.0.q", 1),), interactive=True)
    within = (Heading("Inside"), table, Text("not here", where="terminal"))
    page = Page(
        "T",
        (
            Heading("One"),
            Text("words"),
            Findings((Finding("note", "large", "layers.0.q"),)),
            Folded("All of <it>", within),
        ),
    )
    text = html.render(page)
    assert not Structure(text).open
    assert "All of &lt;it&gt;" in text
    assert "not here" not in text
    contents = re.search(r"<nav.*?</nav>", text, re.S)[0]
    assert re.findall(r">([^<]+)</a>", contents) == ["One", "Findings"]
    assert re.search(r'<a class="module" href="#row-1".*<details class="chapter">.*<tr id="row-1"', text, re.S)
    assert "Inside" not in terminal.render(page)


def test_a_picture_leads_to_its_page_and_is_data():
    image = "data:image/png;base64,iVBORw0KGgo="
    picture = Picture(Span("A <page>", "", "b.html"), image, "a & b", Rich((Span("by x", "code"),)))
    text = draw(Pictures((picture,)))
    assert f'<a href="b.html"><img src="{image}" alt="a &amp; b" width="360" height="225">A &lt;page&gt;</a>' in text
    assert "<code>by x</code>" in text
    assert ".pictures" in text
    assert ".pictures" not in draw(Text("words"))
    assert "page" not in terminal.render(Page("T", (Pictures((picture,)),)))
    for wrong in ("x.png", "https://example.org/x.png", 'data:image/png;base64,AA" onerror="x', "data:image/svg+xml,x"):
        with pytest.raises(ValueError, match="not a data URI"):
            draw(Pictures((replace(picture, image=wrong),)))


def test_the_first_time_a_finding_names_a_term_it_leads_to_its_definition():
    assert "ſtable rank" in draw(
        Findings((Finding("note", "ſtable rank"),)), Definitions((Definition("Stable rank", "s", ""),))
    )
    finding = Finding("note", "stable rank 2, of r95 3 & the stable rank, at ‖ΔW‖/‖W‖ 2 %; ‖ΔW‖/‖W‖_F; unstable rank")
    items = (
        Definition("Stable rank", "s", "there"),
        Definition("Energy rank r90, r95", "r", "there", anchor="energy-rank"),
        Definition("Relative norm ‖ΔW‖/‖W‖", "n", "there"),
        Definition("q", "q", "there"),
    )
    text = re.search(r'<p class="what">(.*?)</p>', draw(Findings((finding,)), Definitions(items)))[1]
    link = '<a class="term" href="#{}">{}</a>'
    first = link.format("definition-0", "stable rank"), link.format("energy-rank", "r95")
    norm = link.format("definition-2", "‖ΔW‖/‖W‖")
    rest = "2\u00a0%; ‖ΔW‖/‖W‖<sub>F</sub>; unstable rank"
    assert text == f"{first[0]} 2, of {first[1]} 3 &amp; the stable rank, at {norm} {rest}"
