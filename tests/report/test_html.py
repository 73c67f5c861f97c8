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
    Marker,
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
from lorascope.report import figures, heatmap, html, palette, terminal
from tests.analyses.test_against_base import adapter, checkpoint
from tests.report import demo
from tests.report.conftest import HOSTILE

VOID = {"meta", "link", "input", "wbr", "br", "img", "hr"}


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
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

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
    assert '<td data-v="1.234568">1.23</td>' in text
    assert '<td data-v="0.5">50.0 %</td>' in text
    assert text.count("<td>–</td>") == 2
    assert '<th scope=row class="t c">a.b</th>' in text


def test_a_column_of_numbers_has_one_format():
    text = draw(Table((Column("m", "M"), Column("x", "X", "float")), (("a", 9.33e-4), ("b", 0.003), ("c", 4096.0))))
    assert "<td>0.000933</td>" in text
    assert '<td data-v="0.003">0.00300</td>' in text
    assert "<td>4,096</td>" in text  # the script reads it without its comma


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


# --- figures ----------------------------------------------------------------------------------------------------------


def lines_of(*series, **options) -> figures.Drawing:
    return figures.draw(Lines("t", series, "x", "y", **options), "g1", figures.Styles(), "caption")


def test_a_figure_has_real_text_and_no_colour_of_its_own():
    styles = figures.Styles()
    block = Lines("t", (Series("s", (1.0, 2.0, 3.0), (1.0, 10.0, 100.0)),), "rank k", "kept", log_y=True)
    svg = figures.draw(block, "g1", styles, "caption").svg
    assert ">rank k</text>" in svg
    assert ">kept</text>" in svg
    assert ">10</text>" in svg
    assert "style=" not in svg
    assert not re.search(r"#[0-9a-f]{6}\b", styles.css())
    assert "var(--c0)" in styles.css()


def path_of(drawing: figures.Drawing, name: str) -> str:
    return re.search(rf"<title>{name}</title><path d=\"([^\"]*)\"", drawing.svg)[1]


def test_points_stand_where_their_values_say():
    """Three points equally spaced on a log axis are equally spaced on the page; a gap stays a gap."""
    drawing = lines_of(
        Series("even", (1.0, 2.0, 3.0), (1.0, 0.1, 0.01), weight="thin"),
        Series("gap", (1.0, 2.0, 3.0), (1.0, None, 0.01), weight="thin"),
        Series("zero", (1.0, 2.0, 3.0), (1.0, 0.5, 0.0), weight="thin"),
        log_y=True,
    )
    points = [tuple(map(float, p)) for p in re.findall(r"([\d.]+) ([\d.]+)", path_of(drawing, "even"))]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)  # coordinates are rounded to 0.1 pixel
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert y0 < y1
    assert "L" not in path_of(drawing, "gap")
    assert "1 value lies below the axis and is not drawn." in drawing.notes


def test_a_log_axis_spans_eight_decades_and_says_what_is_below():
    drawing = lines_of(Series("s", (1.0, 2.0, 3.0), (1.0, 1e-3, 1e-17)), log_y=True)
    assert "1 value lies below the axis and is not drawn." in drawing.notes


def test_caps_on_what_is_drawn_are_said():
    x = tuple(float(i) for i in range(64))
    thin = tuple(Series(f"m{i}", x, tuple(1.0 / (1 + v) for v in x), f"p{i % 4}", "thin") for i in range(560))
    drawing = lines_of(*thin, log_y=True)
    assert drawing.svg.count("<title>") == 188  # 560 lines of 64 points, 12,000 at most: every third of each 140
    assert drawing.notes == ("188 of the 560 thin lines are drawn, one in 3 of each panel.",)
    long = lines_of(Series("s", tuple(map(float, range(5000))), (1.0,) * 5000))
    assert long.notes == ("Lines of more than 200 points are drawn through 200 of them.",)
    panels = lines_of(*(Series("s", (1.0, 2.0), (1.0, 2.0), f"p{i}") for i in range(30)))
    assert panels.notes == ("The first 24 of 30 panels are drawn.",)


def test_bands_markers_references_and_many_labels_draw():
    x = (1.0, 2.0, 3.0)
    series = [Series(f"s{i}", x, (1.0, 2.0, 3.0), low=(0.5, 1.0, None), high=(2.0, 3.0, 4.0)) for i in range(10)]
    reference = Series("chance", x, (1.0, 1.0, 1.0), weight="reference")
    drawing = lines_of(*series, reference, markers=(Marker("y", 2.0, "two"), Marker("x", 2.0, "half")))
    assert ">two</text>" in drawing.svg
    assert [key.label for key in drawing.legend] == [*(f"s{i}" for i in range(10)), "chance"]


def test_the_palettes_are_seaborns():
    seaborn = pytest.importorskip("seaborn")
    mako = [c.lstrip("#") for c in seaborn.color_palette("mako", 76).as_hex()]
    assert list(palette.MAKO) == mako[10:74]
    assert list(palette.CREST) == [c.lstrip("#") for c in seaborn.color_palette("crest", 8).as_hex()]
    assert set(palette.COLORBLIND) < {c.lstrip("#") for c in seaborn.color_palette("colorblind").as_hex()}


# --- heatmaps ---------------------------------------------------------------------------------------------------------


def layer_of(values, **options) -> heatmap.Layer:
    rows, columns = len(values), len(values[0])
    measure = Measure("m", "M", values, **options)
    block = Heatmap("H", tuple(f"r{i}" for i in range(rows)), tuple(f"c{j}" for j in range(columns)), (measure,))
    return heatmap.layout(block).layers[0]


def test_levels_follow_values_and_absences_have_none():
    layer = layer_of(((0.0, 1.0), (0.5, None)))
    assert [c.level for c in layer.cells] == [0, heatmap.LEVELS - 1, 32, None]
    assert layer.cells[3].says == "r1, c1: none"
    assert layer.cells[2].text == "0.500"
    assert layer.ticks == ("0", "0.500", "1.00")
    text = draw(Heatmap("H", ("r",), ("a", "b"), (Measure("m", "M", ((1.0, None),)),)))
    assert text.count("<rect class=none ") == 1


def test_log_levels_are_even_in_ratios_and_take_what_is_not_positive_as_least():
    layer = layer_of(((1.0, 10.0, 100.0, 0.0),), log=True)
    assert [c.level for c in layer.cells] == [0, 32, 63, 0]
    assert layer.ticks == ("1.00", "10.0", "100")
    assert [c.level for c in layer_of(((2.0, 2.0),)).cells] == [32, 32]
    assert [c.level for c in layer_of(((float("nan"), 1.0, 2.0),)).cells] == [0, 0, 63]


def test_a_large_heatmap_is_cut_and_says_so():
    values = tuple((1.0,) * 200 for _ in range(3))
    block = Heatmap("H", ("a", "b", "c"), tuple(map(str, range(200))), (Measure("m", "M", values),))
    grid = heatmap.layout(block)
    assert grid.notes == ("The first 160 of 200 columns are drawn.",)
    assert len(grid.layers[0].cells) == 480


def pairwise(names: tuple[str, ...]) -> heatmap.Grid:
    values = tuple((0.5,) * len(names) for _ in names)
    return heatmap.layout(Heatmap("H", names, names, (Measure("m", "M", values),), "adapter", "adapter"))


def test_every_column_that_finds_room_is_named():
    four = tuple(f"runs/seed-{i}/adapter-of-run-{i}" for i in range(4))
    assert [label.text for label in pairwise(four).columns] == list(four)
    many = tuple(f"runs_of_seed_{i}_at_step_200" for i in range(9))
    assert [label.text for label in pairwise(many).columns] == list(map(str, range(9)))
    assert [cell.says for cell in pairwise(many).layers[0].cells][1].startswith(
        "runs_of_seed_0_at_step_200, adapter runs_"
    )


def test_long_names_of_rows_leave_out_what_all_have():
    kinds = ("attn1_to_q", "attn1_to_out_0", "ff_net_2")
    rows = tuple(f"lora_unet_down_blocks_1_transformer_blocks_0_{kind}" for kind in kinds)
    block = Heatmap(
        "H", (*rows, "q"), ("0", "1"), (Measure("m", "M", ((1.0, 2.0),) * 4),), sections=(("unet", 3), ("", 1))
    )
    grid = heatmap.layout(block)
    assert [label.text for label in grid.rows] == [*kinds, "q"]
    assert grid.notes == ("Left out of the rows' names: “lora_unet_down_blocks_1_transformer_blocks_0_…”.",)
    assert grid.layers[0].cells[0].says.startswith("lora_unet_")


def test_a_scale_is_one_of_ratios_where_few_values_are_much_larger():
    layer = layer_of(((1.0, 2.0, 3.0), (2.0, 900.0, 0.0)))
    assert layer.log
    assert layer.ticks == ("1.00", "30.0", "900")
    assert [c.level for c in layer.cells][4:] == [heatmap.LEVELS - 1, 0]
    assert not layer_of(((1.0, 2.0, 3.0), (2.0, 50.0, 0.0))).log
    assert not layer_of(((-1.0, 2.0, 3.0), (2.0, 900.0, 0.0))).log
    assert not layer_of(((0.1, 0.1, 0.1, 9.0),), limits=(0.0, 10.0)).log


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
