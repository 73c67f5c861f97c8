"""Claims are frozen by a hash of what decides them: it sees a change that matters, and no other."""

import json

import pytest

from lorascope.errors import InputError
from lorascope.study import Claim, Criterion, work
from lorascope.study.claims import reworded
from lorascope.study.frozen import claim_hash, freeze

SCRIPT = '''
from functools import partial

from lorascope.study import Claim, Control, Criterion, Study, StudyScale
from lorascope.study import statistics
from lorascope.study.gains import lead
from lorascope.study.statistics import once

LIMIT = 3


def helper(results):
    """A number."""
    return len(results.runs) + LIMIT


@once
def shared(results, column):
    if column not in results.runs:
        raise ValueError("no such column")
    return results.runs[column].mean()


def over(name, factor=2.0):
    return lambda results: factor * shared(results, name) - helper(results)  # a comment


class Mean:
    def __init__(self, name):
        self.name = name

    def __call__(self, results):
        return shared(results, self.name)


def claim(name, statistic, **more):
    bound = (Criterion("a number", statistic, at_least=1.0, no_effect=0.0),)
    control = (Control("another", Mean("accuracy"), at_least=1.0),)
    return Claim(name, f"The claim {name}", "a paper", bound, control, **more)


study = Study(
    "paper", "A paper?", "Is it so?", "x", "y", "z", {"small": StudyScale()},
    claims=(
        claim("closure", over("loss")),
        claim("instance", Mean("loss")),
        claim("partial", partial(shared, column="loss")),
        claim("module", lambda results: statistics.slope([1, 2], results.runs["loss"])),
        claim("two", (lambda results: 1.0) if LIMIT else (lambda results: 2.0)),
        claim("units", lead("A", "B")),
    ),
)
'''


def hashes(folder, text=SCRIPT):
    """Of every claim of a script, in a folder of its own: Python keeps a module by its path."""
    place = folder / str(len(list(folder.iterdir())))
    place.mkdir()
    (place / "paper.py").write_text(text)
    return {claim.name: claim_hash(claim, "encoder") for claim in work.script(place / "paper.py").study.claims}


def changed(folder, old, new):
    """The claims whose hash is another one after this change of the script."""
    assert old in SCRIPT
    before, after = hashes(folder), hashes(folder, SCRIPT.replace(old, new))
    return {name for name in before if before[name] != after[name]}


EVERY = {"closure", "instance", "partial", "module", "two", "units"}


def test_every_claim_has_a_hash_of_its_own_and_the_same_each_time(tmp_path):
    first = hashes(tmp_path)
    assert first.keys() == EVERY
    assert len(set(first.values())) == len(EVERY)
    assert hashes(tmp_path) == first


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # a comment", ""),
        ("A number.", "Some other words."),
        ('raise ValueError("no such column")', 'raise ValueError("it has no column of this name")'),
        ("def helper(results):", "def helper(results: Study) -> float:"),
        ('"A paper?"', '"Another title?"'),
        ("LIMIT = 3\n", "LIMIT = 3\n\n\nunused = 7\n"),
        ("    return len(results.runs) + LIMIT", "    return (len(results.runs)\n            + LIMIT)"),
        ('"a paper", bound', '"a paper, Table 2", bound'),
    ],
)
def test_what_changes_no_number_changes_no_hash(tmp_path, old, new):
    assert changed(tmp_path, old, new) == set()


@pytest.mark.parametrize(
    ("old", "new", "those"),
    [
        ('f"The claim {name}"', 'f"What {name} claims"', EVERY),
        ("at_least=1.0, no_effect=0.0", "at_least=1.1, no_effect=0.0", EVERY),
        ("no_effect=0.0", "no_effect=0.5", EVERY),
        ('Mean("accuracy"), at_least', 'Mean("loss"), at_least', EVERY),  # of the control
        ("LIMIT = 3", "LIMIT = 4", {"closure"}),
        ("len(results.runs) + LIMIT", "len(results.runs) - LIMIT", {"closure"}),
        ('over("loss")', 'over("accuracy")', {"closure"}),
        ('over("loss")', 'over("loss", 3.0)', {"closure"}),
        ("factor=2.0", "factor=2.5", {"closure"}),
        ("results.runs[column].mean()", "results.runs[column].median()", EVERY),  # of the controls, too
        ('claim("instance", Mean("loss"))', 'claim("instance", Mean("accuracy"))', {"instance"}),
        ('partial(shared, column="loss")', 'partial(shared, column="accuracy")', {"partial"}),
        ("slope([1, 2]", "slope([1, 3]", {"module"}),
        ("statistics.slope", "statistics.spearman", {"module"}),
        ("(lambda results: 1.0) if LIMIT", "(lambda results: 3.0) if LIMIT", {"two"}),
        ("else (lambda results: 2.0)", "else (lambda results: 5.0)", set()),  # on the same line, and not taken
        ('lead("A", "B")', 'lead("B", "A")', {"units"}),
        ('claim("two", ', 'claim("two", withdrawn="it was wrong", statistic=', {"two"}),
        ('claim("two", ', 'claim("two", out_of_reach="too few steps", statistic=', {"two"}),
    ],
)
def test_what_decides_a_claim_changes_its_hash(tmp_path, old, new, those):
    assert changed(tmp_path, old, new) == those


def the_study(folder, text=SCRIPT):
    place = folder / f"script{len(list(folder.iterdir()))}"
    place.mkdir()
    (place / "paper.py").write_text(text)
    return work.script(place / "paper.py").study


def test_claims_are_frozen_with_the_day_before_the_first_run(tmp_path):
    store = tmp_path / "store"
    found = freeze(the_study(tmp_path), "small", store, "2026-11-29", is_first=True)
    (entry,) = found["closure"]
    assert (entry["date"], entry["before_runs"], entry["text"]) == ("2026-11-29", True, "The claim closure")
    assert entry["bounds"] == "a number ≥ 1.00; control: another ≥ 1.00"
    assert freeze(the_study(tmp_path), "small", store, "2026-12-24", is_first=True) == found  # it stays as it is


def test_a_later_change_is_frozen_too_and_came_after_the_runs(tmp_path):
    store = tmp_path / "store"
    first = freeze(the_study(tmp_path), "small", store, "2026-11-29", is_first=True)
    text = SCRIPT.replace('over("loss")', 'over("loss", 3.0)').replace('claim("two", ', 'claim("three", ')
    found = freeze(the_study(tmp_path, text), "small", store, "2026-11-30", is_first=True)
    old, new = found["closure"]
    assert old == first["closure"][0]
    assert (new["date"], new["before_runs"]) == ("2026-11-30", False)
    assert [entry["before_runs"] for entry in found["three"]] == [False]
    assert found["two"] == first["two"]  # what is gone is kept


def test_where_a_record_was_published_nothing_is_before_the_runs(tmp_path):
    found = freeze(the_study(tmp_path), "small", tmp_path / "store", "2026-11-29", is_first=False)
    assert {entry["before_runs"] for (entry,) in found.values()} == {False}


@pytest.mark.parametrize("text", ["", "[]", '{"claims": {}}', "{"])
def test_a_damaged_freeze_is_refused(tmp_path, text):
    store = tmp_path / "store"
    freeze(the_study(tmp_path), "small", store, "2026-11-29", is_first=True)
    (path,) = (store / "claims").iterdir()
    path.write_text(text)
    with pytest.raises(InputError, match=path.name):
        freeze(the_study(tmp_path), "small", store, "2026-11-29", is_first=True)
    whole = {"study": "paper", "scale": "small", "testbed": "encoder", "claims": {"closure": []}}
    path.write_text(json.dumps(whole))
    with pytest.raises(InputError, match="without a hash"):
        freeze(the_study(tmp_path), "small", store, "2026-11-29", is_first=True)


def test_on_another_test_bed_its_own_claims_are_frozen(tmp_path):
    scales = '"lm": StudyScale(testbed="decoder")}, elsewhere={"decoder": {"claims": (claim("there", Mean("loss")),)}},'
    study = the_study(tmp_path, SCRIPT.replace('{"small": StudyScale()},', '{"small": StudyScale(), ' + scales))
    assert freeze(study, "small", tmp_path, "2026-11-29", is_first=True).keys() == EVERY
    assert freeze(study, "lm", tmp_path, "2026-11-29", is_first=True).keys() == {"there"}


def test_other_words_of_notes_and_origins_change_no_hash():
    criterion = Criterion("a number", len, at_least=1.0, origin="ours: half a point here")
    claim = Claim("one", "It is so", "a paper", (criterion,), note="Two of three. Not here.")
    (found,) = reworded([claim], {"half a point here": "a point there", " Not here.": ""})
    assert (found.note, found.criteria[0].origin) == ("Two of three.", "ours: a point there")
    assert claim_hash(found, "decoder") == claim_hash(claim, "decoder")
