"""The mutations themselves: what they change, what they leave alone, and that an untested change survives."""

import ast
import subprocess
import sys

import pytest

from tests.mutation import run
from tests.mutation.__main__ import ROOT, files
from tests.mutation.equivalent import EQUIVALENT
from tests.mutation.operators import candidates, mutation

SOURCE = '''
"""A module's 1 docstring."""

LIMIT = 3


def clipped(x: "Annotation[1 + 1]", low=0):
    """x and 1."""
    if not isinstance(x, int) or x < low:
        raise ValueError(f"{x + 1} is {1 < 2}")
    return min(x, LIMIT)


def unused(x, seed=0):
    return x.reshape(-1) + 1
'''
TEST = """
import pytest

from lorascope.toy import clipped


def test_clipped():
    assert [clipped(x) for x in (0, 2, 3, 4)] == [0, 2, 3, 3]
    for wrong in (-1, 1.5):
        with pytest.raises(ValueError):
            clipped(wrong)
    assert clipped(1, low=1) == 1
"""


@pytest.fixture
def tree(tmp_path):
    """A package of one file with its test."""
    for folder, name, text in (("lorascope", "toy.py", SOURCE), ("tests", "test_toy.py", TEST)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
        (tmp_path / folder / name).write_text(text)
    return tmp_path


def test_each_changes_one_thing_that_is_computed(tree):
    file = "lorascope/toy.py"
    all_of_it = [mutation(tree, *candidate) for candidate in candidates(tree, file)]
    assert [(m.function, m.before, m.after) for m in all_of_it] == [
        ("", "LIMIT = 3", "LIMIT = 4"),
        ("", "LIMIT = 3", "LIMIT = 2"),
        ("clipped", "x: 'Annotation[1 + 1]', low=0", "x: 'Annotation[1 + 1]', low=1"),
        ("clipped", "x: 'Annotation[1 + 1]', low=0", "x: 'Annotation[1 + 1]', low=-1"),
        ("clipped", "not isinstance(x, int) or x < low", "not isinstance(x, int) and x < low"),
        ("clipped", "not isinstance(x, int)", "isinstance(x, int)"),
        ("clipped", "not isinstance(x, int) or x < low", "not isinstance(x, int) or x <= low"),
        ("clipped", "not isinstance(x, int) or x < low", "not isinstance(x, int) or x > low"),
        ("clipped", "return min(x, LIMIT)", "return None"),
        ("clipped", "return min(x, LIMIT)", "return max(x, LIMIT)"),
        ("unused", "return x.reshape(-1) + 1", "return None"),
        ("unused", "x.reshape(-1) + 1", "x.reshape(-1) - 1"),
        ("unused", "x.reshape(-1) + 1", "x.reshape(-1) + 2"),
        ("unused", "x.reshape(-1) + 1", "x.reshape(-1) + 0"),
    ]
    plain = ast.unparse(ast.parse(SOURCE))
    assert all(each.source != plain for each in all_of_it)
    assert [each.line for each in all_of_it] == [4, 4, 7, 7, 9, 9, 9, 9, 11, 11, 15, 15, 15, 15]


def test_what_is_tested_is_killed_and_what_is_not_survives(tree, monkeypatch):
    monkeypatch.setattr(run, "HEAVY", ())
    test = "tests/test_toy.py::test_clipped"
    calls = {"called": {test: ["lorascope/toy.py:clipped"]}, "seconds": {test: 0.1}}
    changes = [mutation(tree, *candidate) for candidate in candidates(tree, "lorascope/toy.py")]
    wanted = {"LIMIT = 4", "not isinstance(x, int) or x <= low", "x.reshape(-1) - 1"}
    found = run.outcomes(tree, [m for m in changes if m.after in wanted], run.Tests(**calls), 1)
    assert {change.after: outcome for change, outcome in found} == dict(
        zip(sorted(wanted), ["killed", "killed", "survived"], strict=True)
    )


@pytest.mark.slow
def test_what_is_said_to_change_nothing_is_there_to_be_changed():
    """A line that was rewritten is looked at again."""
    keys = {key for key in EQUIVALENT if key[0] in files()}
    for file in sorted({key[0] for key in EQUIVALENT}):
        keys -= {mutation(ROOT, *candidate).key for candidate in candidates(ROOT, file)}
    assert not keys


# What `--only` draws from, how many changes, and the tests that its map of calls is made of.
ROOMS = {
    "linalg": (40, "linalg analyses/test_spectrum.py"),
    "updates": (25, "updates contracts/test_kinds.py"),
    "weights/formats": (25, "weights contracts/test_formats.py contracts/test_kinds.py"),
    "study/verdict": (25, "study/test_verdict.py study/test_outcome.py study/test_power.py study/test_coverage.py"),
}


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_a_sample_of_changes_is_noticed(room, tmp_path):
    """At least 92 % of them, the same draw every time; `python -m tests.mutation` draws from all rooms at once."""
    number, tests = ROOMS[room]
    chosen = ["--number", str(number), "--seed", "1", "--only", room, "--least", "0.92", "--tests", tests]
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutation", *chosen, "--map", tmp_path / "calls.json"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
