"""Keys: what changes a result changes the key, and nothing else does."""

import multiprocessing
import time

import pytest
import torch

from lorascope.errors import LorascopeError
from lorascope.study import store
from lorascope.study.store import Job, Store, fingerprint
from lorascope.study.work import Chunk, execute, read_rows, script
from lorascope.training import run
from lorascope.training.config import parse, resolved
from tests.study.toy import CONFIG


def train_job(**changes):
    values = {section: dict(keys) for section, keys in CONFIG.items()}
    for path, value in changes.items():
        section, _, key = path.partition("__")
        values.setdefault(section, {})[key] = value
    return Job({"kind": "train", "config": resolved(parse(values)), "test_split": None})


def test_what_changes_a_run_changes_its_key():
    keys = {
        train_job().key,
        train_job(optim__learning_rate=2e-3).key,
        train_job(training__seed=1).key,
        train_job(method__rank=4).key,
        train_job(data__max_length=32).key,
        train_job(model__name="other").key,
        Job({**train_job().spec, "test_split": "test"}).key,
    }
    assert len(keys) == 7


def test_what_does_not_keeps_it():
    assert train_job(training__device="auto").key == train_job().key
    assert train_job(training__num_threads=3).key == train_job().key
    assert train_job(optim__learning_rate=1e-3).key == train_job().key  # the default, written out


def test_a_measure_has_one_key_on_all_devices(tmp_path):
    script = tmp_path / "where.py"
    script.write_text(
        "def where(folders):\n    from lorascope.study.measures import finished\n"
        "    return [{'device': finished._device.get()}]\n"
    )
    spec = {"kind": "measure", "script": str(script), "function": "where", "code": "", "params": {}}
    job = Job({**spec, "device": "cuda:1"})
    assert job.key == Job(spec).key == Job({**spec, "device": "cpu"}).key
    here = Store(tmp_path / "store")
    assert execute(Chunk((job,)), here) == []
    assert read_rows(here.folder(job.key)) == [{"device": "cuda:1"}]


def test_a_key_that_configs_got_later_changes_only_runs_that_set_it():
    """Runs that were stored before there was one are found."""
    spec = train_job().spec
    before = {name: value for name, value in spec["config"]["data"].items() if not name.startswith("add_")}
    assert Job({**spec, "config": {**spec["config"], "data": before}}).key == train_job().key
    lm = {"model__task_type": "CAUSAL_LM"}
    assert train_job(**lm, data__add_bos_token=False).key != train_job(**lm).key


def test_other_versions_are_other_runs(monkeypatch):
    before = train_job().key
    monkeypatch.setattr(store, "RECIPE", store.RECIPE + 1)
    assert train_job().key != before


def one(x):
    """Says something."""
    return two(x)  # and this


def two(x):
    return x + 1


def test_a_measure_has_the_fingerprint_of_its_code(monkeypatch):
    before = fingerprint(one)
    monkeypatch.setitem(globals(), "two", three)
    assert fingerprint(one) != before  # of what it calls, too
    monkeypatch.undo()
    assert fingerprint(one) == before


def three(x):
    return x + 2


FACTOR, NAMES = 2, ("a", "b")


class Box:
    size = 3


def four(x):
    from lorascope.analyses import spectrum
    from lorascope.linalg.spectrum import stable_rank

    return FACTOR * x, Box, NAMES, spectrum.run, stable_rank


def test_constants_and_classes_of_the_script_belong_to_it(monkeypatch):
    before = fingerprint(four)
    for name, other in (("FACTOR", 3), ("NAMES", ("a",)), ("Box", three)):
        monkeypatch.setitem(globals(), name, other)
        assert fingerprint(four) != before
        monkeypatch.undo()
    assert fingerprint(four) == before


def other(*_):
    return None


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("linalg.spectrum.stable_rank", True),
        ("linalg.spectrum._stable", True),  # which that calls
        ("analyses.spectrum.run", True),  # of a module that is imported in the function
        ("analyses.spectrum.result.draft", True),
        ("linalg.dense._energy", True),  # five calls below
        ("linalg.dense.ACCURACY", True),
        ("linalg.fastest_routine._known", False),  # a cache
        ("linalg.noise.noise_level", False),  # not called
        ("analyses.base.SCHEMA_NOTE", False),  # words
        ("weights.io.read", False),  # reads
        ("training.loop.arrange", False),
    ],
)
def test_so_does_all_code_below_it_that_measures(monkeypatch, name, counts):
    before = fingerprint(four)
    monkeypatch.setattr(f"lorascope.{name}", {"other": 1} if name.endswith("_known") else other)
    assert (fingerprint(four) != before) == counts


CODE = "def add(x):\n    if x < 0:\n        raise ValueError('negative')\n    return x + 1\n"
SAME = (
    CODE.replace("    if", "    # a comment\n    if"),
    CODE.replace("    if", '    """Adds."""\n    if', 1),
    CODE.replace("negative", "below zero"),
    CODE.replace("(x)", "(x: int) -> int"),
    CODE.replace("x + 1", "(x\n        + 1)"),
    f"import os\n\n\n{CODE}",
)


def test_what_changes_no_number_keeps_it(tmp_path):
    def code(text, folder):
        path = tmp_path / folder / "study.py"
        path.parent.mkdir()
        path.write_text(text)
        return fingerprint(script(path).add)

    before = code(CODE, "before")
    assert [code(text, str(place)) for place, text in enumerate(SAME)] == [before] * len(SAME)
    assert code(CODE.replace("x + 1", "x + 2"), "other") != before


def test_a_config_trains_what_it_trained(tiny_bert, labelled, tmp_path):
    """Raise `store.RECIPE` where this fails for a good reason: runs in people's stores are then no longer these."""
    config = {section: dict(keys) for section, keys in CONFIG.items()}
    config["model"]["name"], config["data"]["path"] = str(tiny_bert), str(labelled)
    config["optim"] = {"learning_rate": 3e-2}
    config["training"] |= {"max_steps": 30, "measure_cost": False}
    torch.set_num_threads(1)
    finished = run.train(parse(config), tmp_path / "run")
    # another processor rounds otherwise: 1e-4 of a loss that the first step changes by a hundred times as much
    assert store.RECIPE == 2
    assert finished.score.loss == pytest.approx(LOSS, rel=1e-4)


LOSS = 0.7792521


# --- damage, full disks, other processes ------------------------------------------------------------------------------


SCRIPT = """
import time
from pathlib import Path
def slow(folders, log):
    with Path(log).open("a") as file:
        file.write("x")
    time.sleep(0.3)
    return [{"a": 1}]
"""


@pytest.fixture
def measured(tmp_path):
    """A job that leaves a mark each time it is done, and a store."""
    script = tmp_path / "slow.py"
    script.write_text(SCRIPT)
    params = {"log": str(tmp_path / "log")}
    spec = {"kind": "measure", "script": str(script), "function": "slow", "code": "", "params": params}
    return Job(spec, title="slow"), Store(tmp_path / "store"), tmp_path / "log"


def test_two_processes_do_a_job_once(measured):
    job, kept, log = measured
    spawn = multiprocessing.get_context("spawn")
    both = [spawn.Process(target=execute, args=(Chunk((job,)), kept)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert log.read_text() == "x"
    assert kept.intact(job)


def test_a_dead_process_holds_no_lock(measured):
    job, kept, log = measured
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=execute, args=(Chunk((job,)), kept))
    process.start()
    while not (log.exists() and log.read_text()):  # it is written a moment after it is made
        time.sleep(0.02)
    process.kill()
    process.join()
    assert not kept.intact(job)
    assert execute(Chunk((job,)), kept) == []
    assert log.read_text() == "xx"


@pytest.mark.parametrize("damage", ["gone", "short", "no done", "half done", "list done"])
def test_damaged_work_is_done_again(measured, damage):
    job, kept, log = measured
    execute(Chunk((job,)), kept)
    rows, done = kept.folder(job.key) / "rows.json", kept.folder(job.key) / "done.json"
    {
        "gone": rows.unlink,
        "short": lambda: rows.write_text("{"),
        "no done": done.unlink,
        "half done": lambda: done.write_text(done.read_text()[:9]),
        "list done": lambda: done.write_text("[1]"),
    }[damage]()
    assert not kept.intact(job)
    assert execute(Chunk((job,)), kept) == []
    assert kept.intact(job)
    assert log.read_text() == "xx"


def test_work_of_before_sizes_were_noted_counts(measured):
    job, kept, _ = measured
    execute(Chunk((job,)), kept)
    (kept.folder(job.key) / "done.json").write_text('{"seconds": 1.0}')
    assert kept.intact(job)


def test_a_full_disk_ends_the_study_in_a_sentence(measured, monkeypatch):
    job, kept, _ = measured

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(LorascopeError, match="No space left"):
        execute(Chunk((job,)), kept)
    monkeypatch.undo()
    assert execute(Chunk((job,)), kept) == []
    assert not [path for path in kept.root.rglob(".*") if path.is_file()]  # no half-written file


def test_a_store_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(LorascopeError, match="cannot write"):
        Store(tmp_path / "file")
