"""Where files become values: bounded, of JSON's types, finite where it matters; one sentence for everything else."""

import contextlib
import os
import re
import time

import pytest

from lorascope import inputs, patterns
from lorascope.errors import LONGEST, InputError, LorascopeError, preview

DEEP = "[" * 200_000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "valid JSON"),
        ("[1]", "not a JSON object"),
        ("{", "valid JSON"),
        (DEEP, "nested too deep"),
        ('{"a": ' + "1" * 400 + "}", "400 digits"),
        ('{"a": ' + "1" * 5000 + "}", "5000 digits"),
        ('{"a": 18446744073709551616}', "beyond 64 bits"),
        ('{"a": "\\ud800"}', "half"),
    ],
)
def test_json_that_is_none(text, said, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=said):
        inputs.read_json(tmp_path / "a.json")


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b"\x80", b"\xed\xa0\x80"])
def test_text_that_is_not_utf_8(content, tmp_path):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputError, match="UTF-8"):
        inputs.read_text(tmp_path / "a")


def test_a_size_has_a_limit(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 11)
    assert inputs.read_text(tmp_path / "a", 11) == "x" * 11
    with pytest.raises(InputError, match="too large"):
        inputs.read_text(tmp_path / "a", 10)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, what in ((tmp_path / "pipe", "a pipe"), (tmp_path, "a folder"), (os.devnull, "a device")):
        with pytest.raises(InputError, match=what):
            inputs.open_regular(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is not YAML"),
        ("- 1", "holds no config"),
        ("a: 2020-01-01", "a date"),
        ("a: !!set {b}", "a set"),
        ("a: !!binary aGk=", "a bytes"),
        ("a: !!python/object/apply:os.system [x]", "is not YAML"),
        ("a: " + "1" * 400, "beyond 64 bits"),
        ("a: &x [*x]", "holds itself"),
        (DEEP, "nested"),
        ("a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8)
        ), "values"),
    ],
)  # fmt: skip
def test_yaml_that_is_no_config(text, said, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=said):
        inputs.read_yaml(tmp_path / "a.yaml")


def test_yaml_with_anchors_is_fine(tmp_path):
    (tmp_path / "a.yaml").write_text("base: &b {lr: 0.001, keep: true}\nrun: {<<: *b, steps: 3}\n")
    assert inputs.read_yaml(tmp_path / "a.yaml")["run"] == {"lr": 0.001, "keep": True, "steps": 3}


SHAPE = {
    "name": (str,),
    "count?": (int,),
    "loss": (float, type(None)),
    "kind": frozenset(("a", "b")),
    "rows": [[(int,)]],
}
FINE = {"name": "x", "loss": 1, "kind": "a", "rows": [[1], []], "more": object}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"count": 3, "loss": None}, None),
        ({"count": True}, "True as count"),
        ({"loss": float("nan")}, "nan as loss"),
        ({"loss": "1"}, "'1' as loss"),
        ({"kind": "c"}, "'c' as kind"),
        ({"rows": [[1], ["2"]]}, r"'2' as rows\[1\]\[0\]"),
        ({"name": ...}, "Ellipsis as name"),
    ],
)
def test_shapes(change, said):
    wrong = inputs.misfit(FINE | change, SHAPE)
    assert wrong is None if said is None else re.search(said, wrong)
    assert inputs.misfit({key: value for key, value in FINE.items() if key != "name"}, SHAPE) == "no name"


BOMBS = [r"(a+)+$", r"(a|aa)+$", r"([a-z.]+)*$", r"(a{1,1000}){1,1000}$"]
SLOW_IN_RE_ALONE = ["(.*)" * 25 + "x", "(?:a|a)*" * 20 + "x", "(.*.*)*x"]


@pytest.mark.parametrize("text", BOMBS)
def test_a_pattern_has_a_time_limit(text):
    began, pattern = time.perf_counter(), patterns.Pattern(text, "--modules", budget=patterns.Budget(0.2))
    with pytest.raises(InputError, match="--modules takes too long"):
        assert [pattern.search("a" * 5000 + "!") for _ in range(1000)]
    assert time.perf_counter() - began < 5  # of a limit of 0.2: `re` alone would not come back


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("text", ["[[a]q", "[a||b]", "[a--b]"])
def test_a_set_that_python_warns_of_is_no_warning(text):
    with contextlib.suppress(InputError):
        patterns.Pattern(text, "--modules").search("aq")


@pytest.mark.parametrize("text", SLOW_IN_RE_ALONE)
def test_a_pattern_that_another_engine_sees_through(text):
    assert patterns.Pattern(text, "--modules").search("a" * 200 + "!") is None


@pytest.mark.parametrize(
    "text", ["(", "a{99999999}", "(?:" * 40 + "a" + "{9})" * 40, "a" * 30_000, "*", "(?P<x>a)(?P<x>b)"]
)
def test_a_pattern_that_is_refused(text):
    with pytest.raises(InputError, match="--modules"):
        patterns.Pattern(text, "--modules").search("a")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (r"layers\.\d+\.q_proj", "layers.3.q_proj"),
        (r"^(?!.*vision).*\.(q|v)_proj$", "model.layers.0.v_proj"),
        (r"(?<=^enc\.)layers\.1", "enc.layers.1"),
        (r".*\.(?:self_attn|mlp)\.[a-z_]{3,8}", "m.self_attn.q_proj"),
        ("q_proj", "model.q_proj.x"),
        ("a.b", "axb"),
        ("[a-z]+[0-9]?$", "q_proj"),
    ],
)
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("how", ["search", "match", "fullmatch"])
def test_patterns_are_pythons(text, name, how):
    found, expected = getattr(patterns.Pattern(text, "x"), how)(name), getattr(re, how)(text, name)
    assert (found and found.span()) == (expected and expected.span())


@pytest.mark.parametrize("text", ["x" * 10_000, "\u202e" * 5_000, "\x1b" * 5_000])
def test_a_message_has_a_length(text):
    error = LorascopeError(text, found=[text] * 9, expected=preview([text] * 9), hint=text)
    assert len(str(error)) <= LONGEST + 1
    assert str(error).isprintable()
