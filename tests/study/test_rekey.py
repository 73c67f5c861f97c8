"""A measurement is found under today's key after `rekey` alone, and only where its code was current before."""

from lorascope.outputs import write_json
from lorascope.study.store import Job, Store
from lorascope.study.work import ROWS, read_rows
from tests.study.rekey import ROOT, codes, rekey

WHICH = ("rank_sweep.py", "spectra")


def measured(store, code, value):
    spec = {"kind": "measure", "script": WHICH[0], "function": WHICH[1], "code": code, "params": {"n": value}}
    job = Job({**spec, "device": "cpu"}, ("run",), "measured")
    folder = store.begin(job)
    write_json(folder / ROWS, {"rows": [{"value": value}]})
    store.finish(job.key, {"seconds": 1.0})
    return job


def test_what_was_current_is_found_again_and_nothing_else(tmp_path):
    store = Store(tmp_path)
    current, outdated, new = measured(store, "old", 1), measured(store, "older", 2), measured(store, "now", 3)
    assert rekey(store, {WHICH: "old"}, {WHICH: "now"}) == (1, 1)
    moved = Job({**current.spec, "code": "now"}, current.inputs)
    assert store.intact(moved)
    assert read_rows(store.folder(moved.key)) == [{"value": 1}]
    assert store.intact(new)
    assert not store.scored(Job({**outdated.spec, "code": "now"}, outdated.inputs))
    assert rekey(store, {WHICH: "old"}, {WHICH: "now"}) == (0, 1)  # nothing is copied twice
    assert rekey(store, {}, {}) == (0, 4)  # a function that is no longer there


def test_codes_are_those_of_the_tree_that_they_are_asked_of():
    here = codes(ROOT, {WHICH, ("rank_sweep.py", "no_such"), ("no_such.py", "spectra")})
    assert set(here) == {WHICH}
    assert len(here[WHICH]) == 16
