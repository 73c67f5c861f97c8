"""The Ray engine on a real Ray of this machine: two workers, some of them killed."""

import importlib.util
import os
import signal
import time
from pathlib import Path

import pytest

from lorascope.errors import InputError
from lorascope.study import work
from lorascope.study.store import Job, Store
from lorascope.study.work import Chunk
from tests.study.test_runner import FINAL, KILLER

HERE = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HERE, reason="Ray is an optional extra: pip install 'lorascope[ray]'")


def real(test):
    """A test on a real Ray: half a minute, since each worker imports torch."""
    return pytest.mark.slow(needs_ray(test))


def processes():
    """Parent and command line of every process, by its id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(folder.name)] = parent, (folder / "cmdline").read_text().replace("\0", " ")
        except (OSError, ValueError):
            continue
    return found


def descendants(of):
    """Processes that this one started, however indirectly: their ids and command lines."""
    every, found = processes(), {of}
    while more := {pid for pid, (parent, _) in every.items() if parent in found} - found:
        found |= more
    return {pid: every[pid][1] for pid in found if pid in every and pid != of}


def busy():
    return [pid for pid, command in descendants(os.getpid()).items() if command.startswith("ray::_execute")]


@pytest.fixture
def cluster():
    """Ray with two workers; afterwards none of its processes may be left."""
    import ray

    from lorascope.study.cluster import Cluster

    assert not ray.is_initialized()
    made = Cluster(jobs=2)
    started = descendants(os.getpid())
    assert any("raylet" in command for command in started.values())
    yield made
    made.close()
    deadline = time.monotonic() + 30
    while (left := set(started) & set(processes())) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, [command[:80] for pid, (_, command) in processes().items() if pid in left]


class Killing:
    """An engine around the cluster that notes what ends and kills a busy worker once, after so many chunks."""

    def __init__(self, cluster, after=None):
        self.cluster, self.after, self.ended, self.killed = cluster, after, [], []
        self.slots = cluster.slots

    def close(self):
        pass

    def run(self, chunks, store):
        for chunk, failed in self.cluster.run(chunks, store):
            self.ended += [job.key for job in chunk.jobs]
            self._maybe_kill()
            yield chunk, failed

    def _maybe_kill(self):
        if self.after is not None and len(self.ended) >= self.after and not self.killed and (found := busy()):
            os.kill(found[0], signal.SIGKILL)
            self.killed = found[:1]


@real
def test_a_study_whose_worker_is_killed_gives_the_numbers_of_this_machine(toy, tmp_path, cluster):
    here, _ = toy(store=Store(tmp_path / "here")).run()
    engine = Killing(cluster, after=2)
    store = Store(tmp_path / "there")
    runner = toy(store=store, engine=engine)
    there, _ = runner.run()
    assert engine.killed
    assert engine.killed[0] not in processes()
    assert not runner.failures
    assert len(there.runs) == FINAL
    assert sorted(engine.ended) == sorted(set(engine.ended)) == sorted(runner.used)
    columns = ["loss", "accuracy", "held_out_loss", "learning_rate"]
    assert there.runs[columns].to_numpy() == pytest.approx(here.runs[columns].to_numpy(), rel=1e-5)  # other threads
    for name, table in here.tables.items():
        assert there.tables[name].equals(table)
    written = {path: path.stat().st_mtime_ns for path in store.root.rglob("done.json")}
    assert len(written) == len(runner.used)
    again = Killing(cluster)
    toy(store=store, engine=again).run()
    assert again.ended == []
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("done.json")} == written


@real
def test_a_job_that_always_kills_its_worker_fails_and_the_rest_does_not(tmp_path, cluster):
    script = tmp_path / "killer.py"
    script.write_text(KILLER)
    store = Store(tmp_path / "store")

    def job(name):
        params = {"flag": str(tmp_path / f"flag-{name}"), "name": name}
        spec = {"kind": "measure", "script": str(script), "function": "kill", "code": "", "params": params}
        return Job(spec, title=name)

    jobs = [job(name) for name in ("bad", "good", "once", "fine")]
    ended = {chunk.jobs[0].title: failed for chunk, failed in cluster.run([Chunk((each,)) for each in jobs], store)}
    assert {name: bool(failed) for name, failed in ended.items()} == {
        "bad": True, "good": False, "once": False, "fine": False,
    }  # fmt: skip
    assert "3 tries" in store.failure(jobs[0].key)["message"]
    assert all(work.read_rows(store.folder(each.key)) == [{"name": each.title}] for each in jobs[1:])


@real
def test_more_gpus_than_there_are_is_refused_and_nothing_is_left():
    import ray

    from lorascope.study.cluster import Cluster

    with pytest.raises(InputError, match="no node of the Ray cluster has room"):
        Cluster(gpus=1000)
    assert not ray.is_initialized()


@real
def test_a_cluster_that_does_not_answer(monkeypatch):
    from lorascope.study.cluster import Cluster

    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "1")
    with pytest.raises(InputError, match="cannot start work on Ray"):
        Cluster(address="nowhere")


def test_a_node_with_other_versions_or_data_is_refused(toy, tmp_path):
    from lorascope.study.cluster import _mismatch

    runner = toy()
    job = runner._train_job(runner.arms[0], 1e-3, 0)
    assert _mismatch(Chunk((job,)), [job.key]) is None
    assert "other versions" in _mismatch(Chunk((job,)), ["0" * 16])
    assert "other data" in _mismatch(Chunk((Job({**job.spec, "data": ["0"]}),)), [Job({**job.spec, "data": ["0"]}).key])


@pytest.mark.skipif(HERE, reason="Ray is installed")
def test_without_ray_one_sentence_says_so():
    from lorascope.study.cluster import Cluster

    with pytest.raises(InputError, match="pip install"):
        Cluster()


def test_an_answer_stays_in_its_folder(tmp_path):
    from lorascope.study.cluster import packed, unpack

    with pytest.raises(InputError, match="outside"):
        unpack({"../evil": b"x"}, tmp_path / "folder")
    assert not (tmp_path / "evil").exists()
    files = {"run/a": b"1", "done.json": b"{}"}
    unpack(files, tmp_path / "folder")
    assert packed(tmp_path / "folder") == files
