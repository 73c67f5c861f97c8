"""No page shows "σ_i" or "R^n" as such: indices are set, also in figures, and hints and labels have none to set."""

import re
from dataclasses import replace
from html import unescape

import pytest

from lorascope.blocks import Column, Heading, Heatmap, Lines, Link, Marker, Measure, Page, Series, Table, Text
from lorascope.report import html, prose
from lorascope.study import index, record
from lorascope.study import page as study_page
from lorascope.weights import io
from tests.contracts.test_studies import ROOT
from tests.report.test_first_screen import DOCS, PAGES, REPORTS, drawn

RAW = re.compile(r"[\w‖)][_^][\w{*]")
NAME = re.compile(r"\W*(?!max_.\b|min_.\b)([A-Za-z0-9]{2,}|[a-z](?=_[a-z]{3}))[\w.]*_\w*\W*")  # "q_proj", "low_rank;"
NOT_PROSE = r"<(script|style|code|pre)\b.*?</\1>|<t[dh][^>]*class=\"t c\b[^>]*>.*?(?=<t[dh]\b|</tr>)"


def raw_in(page: str) -> list[str]:
    """Words with an index or an exponent that is not set as one: in what is seen, and in what is read aloud."""
    page = re.sub(NOT_PROSE, "", page, flags=re.S)
    read = re.findall(r'(?:aria-label|title|data-title)="([^"]*)"', page)
    words = unescape(" ".join([re.sub(r"<[^>]*>", " ", page), *read])).split()
    return [
        word for word in words if RAW.search(word) and not re.search(r"/|\.[a-z]", word) and not NAME.fullmatch(word)
    ]


@pytest.mark.parametrize("name", [name for name in PAGES if name not in (*REPORTS, *DOCS)])
def test_pages_have_no_raw_tex(name, lora_folder):
    assert raw_in(html.render(drawn(name, io.read(lora_folder)))) == []


@pytest.mark.parametrize("name", ["rslora", "index"])
def test_pages_of_studies_have_no_raw_tex(name):
    if name == "index":
        page = index.index(record.read_folder(ROOT / "reports")[0])
    else:
        page = study_page.page(record.read(ROOT / "reports" / f"{name}.json"))
    assert raw_in(html.render(replace(page, made_by=()))) == []


def test_raw_tex_is_seen():
    assert raw_in("<p>‖ΔW‖_F of σ_i, R^n, ‖U_iᵀV_j‖ and d_in of q_proj</p>") == [
        "‖ΔW‖_F",
        "σ_i,",
        "R^n,",
        "‖U_iᵀV_j‖",
        "d_in",
    ]
    assert raw_in('<svg aria-label="‖ΔW‖_*"><title>max_i</title></svg>') == ["max_i", "‖ΔW‖_*"]


def test_indices_are_set_in_every_kind_of_text():
    label = "‖U_Δᵀ V_j‖_F and r^β"
    series = (Series("σ_i", (1.0, 2.0), (1.0, 2.0), "x_k"), Series("σ_j", (1.0, 2.0), (2.0, 3.0), "x_k"))
    grid = Measure("m", label, ((1.0, 2.0),), help=label, marks=((1.5, "σ_k"),))
    made = (
        Heading(label),
        Text(label),
        Table(
            (Column("a", "Σ_{i≤k} σ_i", help=label), Column("b", "b")), ((label, Link("d_in", "a.html")),), title=label
        ),
        Lines(label, series, label, label, markers=(Marker("x", 1.5, "σ_T"),), caption=label),
        Heatmap(label, ("σ_1",), ("v_1", "v_2"), (grid,), "W_q", "R^n"),
    )
    assert raw_in(html.render(Page("p", made, answer=label, summary=label))) == []


@pytest.mark.parametrize(
    ("text", "shown", "plain"),
    [
        ("‖ΔW‖_F² of q_proj", "‖ΔW‖<sub>F</sub>² of q_proj", "‖ΔW‖² of q_proj"),
        ("r = 2–8 of 64 × 24", "r\u00a0=\u00a02\u2060–\u20608 of 64\u00a0×\u00a024", "r = 2–8 of 64 × 24"),
        ("2\u2060–\u20608", "2\\u2060–\\u20608", "2\\u2060–\\u20608"),
        ("‖U_iᵀV_j‖", "‖U<sub>i</sub>ᵀV<sub>j</sub>‖", "‖UᵢᵀVⱼ‖"),
        ("ΔW_aΔW_bᵀ", "ΔW<sub>a</sub>ΔW<sub>b</sub>ᵀ", "ΔWₐΔWbᵀ"),
        ("B_ji of Pθ", "B<sub>ji</sub> of Pθ", "Bⱼᵢ of Pθ"),
        ("c_i², x_a.weight", "c<sub>i</sub>², x_a.weight", "cᵢ², x_a.weight"),
        ("max_i a < b, c_fc", "max<sub>i</sub> a &lt; b, c_fc", "maxᵢ a < b, c_fc"),
        ("Σ_{i≤r} of R^n", "Σ<sub>i≤r</sub> of R<sup>n</sup>", "Σ(i≤r) of Rⁿ"),
        ("5 % at ε = 0.5, r = 8", "5\u00a0% at ε\u00a0=\u00a00.5, r\u00a0=\u00a08", "5 % at ε = 0.5, r = 8"),
    ],
)  # fmt: skip
def test_words_with_indices(text, shown, plain):
    assert (str(prose.pretty(text)), prose.plain(text)) == (shown, plain)


def test_the_line_comes_back_after_an_index():
    shifts = [
        float(at.get("dy", "0em")[:-2]) * (0.75 if "font-size" in at else 1) for _, at in prose.raised("a_i b^n c")
    ]
    assert sum(shifts) == pytest.approx(0, abs=0.02)
    assert min(shifts) < 0 < max(shifts)
