import math

import pytest

from lorascope.report import text as t


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (0.0, 3, "0"),
        (1.0, 3, "1.00"),
        (12.345, 3, "12.3"),
        (9.996, 3, "10.0"),
        (99999.0, 3, "1.00e5"),
        (12345.6, 3, "12,346"),
        (-0.5, 2, "−0.50"),
        (0.00123456, 3, "0.00123"),
        (0.000123456, 3, "1.23e−4"),
        (-1.5e300, 2, "−1.5e300"),
        (math.nan, 3, "NaN"),
        (-math.inf, 3, "−∞"),
    ],
)
def test_number(value, digits, shown):
    assert t.number(value, digits) == shown


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (None, "float", "–"),
        (True, "int", "yes"),
        (4096, "int", "4,096"),
        (999, "int", "999"),
        (14336, "int", "14,336"),
        (11.0, "int", "11"),
        (1.0, "percent", "100.0 %"),
        (0.1234, "percent", "12.3 %"),
        (0.0001, "percent", "<0.1 %"),
        (0.0, "percent", "0.0 %"),
        (10.37, "percent", "1,040 %"),
        (618.873, "percent", "61,900 %"),
        (-2.3, "percent", "−230.0 %"),
        (-23.4, "percent", "−2,340 %"),
        (3, "text", "3"),
        ("a\nb\x1b[31m", "float", "a\\nb\\x1b[31m"),
    ],
)
def test_cell(value, unit, shown):
    assert t.cell(value, unit) == shown


def test_visible_shows_what_hides_and_keeps_typographic_spaces():
    assert t.visible("95\u202f%\u00a0of ΔW") == "95\u202f%\u00a0of ΔW"
    assert t.visible("a\u202eb\ud800\0\u200b") == "a\\u202eb\\ud800\\x00\\u200b"


def test_shorten_keeps_both_ends_and_counts_columns():
    name = "model.layers.13.self_attn.q_proj"
    assert t.shorten(name, 32) == name
    short = t.shorten(name, 24)
    assert len(short) == 24
    assert short.startswith("model")
    assert short.endswith("13.self_attn.q_proj"[-17:])
    assert t.width_of(t.shorten("模型" * 20, 15)) <= 15  # each takes two columns
    assert [t.shorten("abc", n) for n in (0, 1, 2)] == ["", "…", "…c"]


def test_names_are_told_apart_by_the_parts_in_which_they_differ():
    from lorascope.report.text import told_apart

    names = [f"encoder.layer.{layer}.attention.self.{kind}" for layer in (0, 10) for kind in ("query", "value")]
    short = ["0.query", "0.value", "10.query", "10.value"]
    assert told_apart(names) == (short, "encoder.layer.*.attention.self.*")
    assert told_apart(["model.0.q", "model.1.mlp.up"]) == (["0.q", "1.mlp.up"], "model.*")
    assert told_apart(["a.b", "a.b.c"]) == (["b", "b.c"], "a.*")
    for alike in (["one.name"], ["a", "b"], [], ["a.b", "a.b"]):
        assert told_apart(alike) == (alike, "")


@pytest.mark.parametrize(
    ("share", "digits", "shown"),
    [
        (0.2912, 2, "29 %"),
        (0.99949, 3, "99.9 %"),
        (1.0, 2, "100 %"),
        (10.37, 2, "1,040 %"),
        (697.0, 3, "69,700 %"),
        (-0.05, 2, "−5 %"),
        (0.00012, 2, "0.012 %"),
        (5.9e-11, 2, "5.9e−9 %"),
        (1e6, 2, "1.0e8 %"),
        (0.0, 2, "0 %"),
        (math.inf, 2, "∞ %"),
    ],
)
def test_percentages_in_sentences(share, digits, shown):
    assert t.significant_percent(share, digits) == shown


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ((0.000933, 0.003, None), ["0.000933", "0.00300", "–"]),
        ((1e-9, 0.5, 0.0, math.nan), ["1.00e−9", "5.00e−1", "0", "NaN"]),
        ((1e-9, 2e-7), ["1.00e−9", "2.00e−7"]),
        ((123456.0, 2.5), ["123,456", "2.50"]),
        ((1.0, 250.0), ["1.00", "250"]),
        (("text", True, None), ["text", "yes", "–"]),
        ((), []),
    ],
)
def test_numbers_of_a_column_have_one_format(values, shown):
    assert [t.cell(v, "float", 3, t.one_format(values)) for v in values] == shown


@pytest.mark.parametrize(
    ("names", "short", "left_out"),
    [
        (["a_b_q", "a_b_v"], ["q", "v"], "a_b_…"),
        (["x.q.weight", "x.v.weight"], ["q", "v"], "x.…weight"),
        (["q_proj", "q_proj_two"], ["proj", "proj_two"], "q_…"),
        (["q", "v"], ["q", "v"], ""),
        (["a_b", "a_b"], ["a_b", "a_b"], ""),
        ([], [], ""),
    ],
)
def test_names_without_what_all_have(names, short, left_out):
    assert t.without_common(names) == (short, left_out)
