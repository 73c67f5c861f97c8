import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lorascope.blocks import (
    Code,
    Column,
    Facts,
    Finding,
    Findings,
    Heading,
    Heatmap,
    Lines,
    Measure,
    Page,
    Series,
    Table,
    Text,
)
from lorascope.report import terminal
from lorascope.report import text as t
from tests.report import demo
from tests.report.conftest import HOSTILE

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def draw(*blocks, width=80, color=False, **page):
    return terminal.render(Page(page.pop("title", "T"), blocks, **page), width=width, color=color)


def test_a_whole_summary_as_it_is_printed():
    page = Page(
        "adapter",
        (
            Facts((("Format", "PEFT LoRA"), ("Base model", "llama"))),
            Findings((Finding("note", "fine"), Finding("error", "NaN in A", "layers.0.q_proj"))),
            Heading("By type"),
            Table(
                (Column("k", "Module type"), Column("n", "Modules", "int"), Column("e", "Energy share", "percent")),
                (("q_proj", 32, 0.75), ("v_proj", 32, None)),
                caption="Shares of ‖ΔW‖².",
            ),
            Heading("Figures"),
            Lines("Spectra", (Series("a", (1.0,), (1.0,)),), "i", "σ"),
            Text("only on the page", where="page"),
        ),
        summary="Rank 8.",
    )
    assert terminal.render(page, width=60, color=False) == (
        "adapter\n"
        "Rank 8.\n"
        "\n"
        "Format      PEFT LoRA\n"
        "Base model  llama\n"
        "\n"
        "Findings\n"
        "✗ layers.0.q_proj: NaN in A\n"
        "· fine\n"
        "\n"
        "By type\n"
        "Module           Energy\n"
        "type    Modules   share\n"
        "q_proj       32  75.0 %\n"
        "v_proj       32       –\n"
        "Shares of ‖ΔW‖².\n"
        "\n"
        "Figures on the HTML page: Spectra\n"
    )


def test_nothing_of_the_file_reaches_the_terminal_as_a_control():
    out = terminal.render(demo.page(HOSTILE + "\n\r\x9b31m"), width=100, color=False)
    assert all(c.isprintable() or c in t._SPACES for c in out.replace("\n", ""))
    out.encode("utf-8")  # no lone surrogates left
    assert "\\x1b[31m" in out


def test_no_line_is_wider_than_asked():
    for width in (40, 60, 100):
        out = terminal.render(demo.page(), width=width, color=True)
        assert max(t.width_of(line) for line in ANSI.sub("", out).splitlines()) <= width


def test_the_summary_of_an_8b_adapter_fits_a_screen():
    assert len(terminal.render(demo.page(), width=100, color=False).splitlines()) <= 40


def test_colour_is_style_only():
    plain, styled = (terminal.render(demo.page(), width=90, color=color) for color in (False, True))
    assert ANSI.sub("", styled) == plain
    assert "\x1b[1;31m✗\x1b[0m" in styled


@pytest.mark.parametrize(
    ("variables", "tty", "wanted"),
    [({}, True, True), ({}, False, False), ({"NO_COLOR": "1"}, True, False), ({"NO_COLOR": ""}, True, True),
     ({"TERM": "dumb"}, True, False)],
)  # fmt: skip
def test_when_to_colour(monkeypatch, variables, tty, wanted):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(terminal.sys, "stdout", SimpleNamespace(isatty=lambda: tty))
    assert ("\x1b[" in terminal.render(demo.page())) is wanted


def test_long_names_are_cut_in_the_middle_before_columns_go():
    table = Table(
        (Column("name", "Module", "code"), *(Column(f"c{i}", f"c{i}", "float") for i in range(6))),
        (("model.layers.0.self_attn.q_proj", *[1.0] * 6),),
    )
    out = draw(table, width=60)
    assert "…" in out
    assert "self_attn.q_proj" in out
    assert "columns hidden" not in out
    narrow = draw(table, width=40)
    assert "columns hidden (terminal too narrow): c4, c5" in " ".join(narrow.split())


def test_many_findings_are_counted_and_the_worst_come_first():
    items = (*(Finding("note", f"n{i}") for i in range(20)), Finding("error", "bad"), Finding("warning", "odd"))
    lines = draw(Findings(items)).splitlines()
    assert lines[3:5] == ["✗ bad", "! odd"]
    assert lines[-1] == "  … and 10 more (10 notes)"


def test_empty_blocks_say_so():
    empty = Table((Column("a", "A"),), ())
    heatmap = Heatmap("H", (), (), (Measure("m", "M", ()),))
    out = draw(Findings(()), empty, Facts(()), Code(""), heatmap, Heading("nothing below"))
    assert "no findings" in out
    assert "no rows" in out
    assert "nothing below" not in out


def test_the_terminal_needs_nothing_heavy():
    """It is on the path of every `lorascope analyze`."""
    code = "import sys, lorascope.report.terminal; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "matplotlib", "jinja2", "rich", "seaborn", "pandas", "scipy", "torch"} & set(loaded)


def test_a_narrow_table_keeps_the_layer_in_the_names_of_modules():
    names = [f"model.layers.{i}.self_attn.{kind}_proj" for i in range(3) for kind in "qv"]
    columns = (Column("name", "module", "code"), *(Column(str(k), f"measure {k}", "float") for k in range(6)))
    table = Table(columns, tuple((name, *[0.5] * 6) for name in names), caption="The caption.")
    text = draw(table, width=60)
    assert [line.split()[0] for line in text.splitlines() if "0.5" in line] == [
        f"{i}.{kind}_proj" for i in range(3) for kind in "qv"
    ]
    assert "module: the * of model.layers.*.self_attn.*. The caption." in " ".join(text.split())
    wide = draw(table, width=160)
    assert names[0] in wide
    assert "the * of" not in wide
