"""The fastest of several routines: by their CPU time, once for a machine, and without a folder to keep it in."""

import json

import pytest

from lorascope.linalg import fastest_routine


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """CPU time that the candidates spend by adding to it, and an empty cache."""
    spent = [0.0]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(fastest_routine, "_known", {})
    monkeypatch.setattr(fastest_routine.time, "process_time", lambda: spent[0])
    return spent


def candidates(clock, **seconds):
    def spends(name):
        def call():
            clock[0] += seconds[name].pop(0)

        return call

    return {name: spends(name) for name in seconds}


@pytest.mark.parametrize(
    ("first", "other", "wins"),
    [
        ([1.0, 1.0], [0.8, 0.8], "other"),
        ([1.0, 1.0], [0.95, 0.95], "first"),  # saves less than a tenth
        ([1.0, 1.0], [5.0, 0.5], "other"),  # the better round counts
        ([5.0, 0.5], [1.0, 1.0], "first"),
    ],
)
def test_the_better_round_counts_and_a_small_gain_changes_nothing(clock, first, other, wins):
    assert fastest_routine.fastest("which", candidates(clock, first=first, other=other)) == wins


def test_an_answer_is_kept_for_this_process_and_the_next(clock, tmp_path, monkeypatch):
    made = candidates(clock, first=[1.0, 1.0], other=[0.5, 0.5])
    assert [fastest_routine.fastest("which", made) for _ in range(2)] == ["other"] * 2  # a third call would raise
    monkeypatch.setattr(fastest_routine, "_known", {})  # as in another process
    assert fastest_routine.fastest("which", made) == "other"
    kept = json.loads((tmp_path / "lorascope" / "calibration.json").read_text())
    assert list(kept.values()) == ["other"]
    assert fastest_routine.processor() in next(iter(kept))


@pytest.mark.parametrize("changed", [{"question": "another"}, {"versions": ["2"]}])
def test_another_question_or_library_is_measured_anew(clock, tmp_path, changed):
    given = {"question": "which", "versions": ["1"]}
    for call, wins in ((given, "other"), (given | changed, "first")):
        seconds = {"first": [1.0] * 2, "other": [0.5 if wins == "other" else 2.0] * 2}
        assert fastest_routine.fastest(candidates=candidates(clock, **seconds), **call) == wins
    assert len(json.loads((tmp_path / "lorascope" / "calibration.json").read_text())) == 2


@pytest.mark.parametrize("content", ["no JSON", "[]", None])
def test_a_damaged_file_and_a_folder_that_cannot_be_made(clock, tmp_path, content):
    if content is None:
        (tmp_path / "lorascope").write_text("a file where the folder would be")
    else:
        (tmp_path / "lorascope").mkdir()
        (tmp_path / "lorascope" / "calibration.json").write_text(content)
    assert fastest_routine.fastest("which", candidates(clock, first=[1.0] * 2, other=[0.5] * 2)) == "other"


def test_a_kept_answer_that_is_no_candidate_is_measured_anew(clock, tmp_path, monkeypatch):
    fastest_routine.fastest("which", candidates(clock, first=[1.0] * 2, other=[0.5] * 2))
    file = tmp_path / "lorascope" / "calibration.json"
    file.write_text(file.read_text().replace(': "other"', ': "gone"'))
    monkeypatch.setattr(fastest_routine, "_known", {})
    assert fastest_routine.fastest("which", candidates(clock, first=[1.0] * 2, other=[0.5] * 2)) == "other"


def test_one_candidate_needs_no_timing(clock):
    assert fastest_routine.fastest("which", {"only": lambda: pytest.fail("it was timed")}) == "only"
