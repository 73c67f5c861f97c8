"""The runner does each piece of work once, whatever happens to it on the way."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lorascope.errors import InputError
from lorascope.study import MeasurementSpec, work
from lorascope.study.chunks import chunks
from lorascope.study.local import Local
from lorascope.study.runner import Final, Runner
from lorascope.study.store import Job, Store
from lorascope.study.tuning import Tuned
from lorascope.study.work import Chunk
from tests.study.conftest import TOY

FINAL, MEASURED = 6, 6 + 4  # of scale smoke: 3 arms x 2 replicates; each run, and waves


class Counting(Local):
    """An engine that counts jobs, and may stop after some chunks as a killed process would."""

    def __init__(self, most=None):
        super().__init__()
        self.most, self.titles = most, []

    def run(self, chunks, store):
        for chunk in chunks:
            if self.most is not None and len(self.titles) >= self.most:
                raise KeyboardInterrupt
            self.titles += [job.title for job in chunk.jobs]
            yield from super().run([chunk], store)


def test_a_study_from_nothing_and_again(toy):
    engine = Counting()
    runner = toy(engine=engine)
    results, _tuned = runner.run()
    assert len(engine.titles) == len(set(engine.titles)) == len(runner.used)
    assert len(results.candidates) == FINAL + 2 * 2  # two finalists of each sweep
    assert len(runner.used) > len(results.candidates) + MEASURED  # and what was swept
    assert not runner.failures
    assert len(results.runs) == FINAL
    assert results.runs["loss"].notna().all()
    assert set(results.tables) == {"sizes", "waves"}
    assert list(results.tables["sizes"]["size"]) == [9.0] * FINAL  # three steps, squared
    assert {"rank", "replicate", "power"} <= set(results.tables["sizes"].columns)
    again = Counting()
    results_again, _ = toy(engine=again).run()
    assert again.titles == []
    assert results_again.runs.equals(results.runs)


def test_every_run_has_seeds_of_its_own(finished):
    assert finished.runs["seed"].nunique() == FINAL
    assert finished.runs["seed"].min() >= 0


def test_arms_share_texts_order_and_head_within_a_replicate_and_are_paired(finished, toy):
    assert finished.strata["runs"] == finished.strata["sizes"] == [0] * FINAL
    assert finished.strata["waves"] == [1] * 4
    runner = toy()
    seeds = [runner._train_job(arm, 1e-3, 1).spec["config"]["training"] for arm in runner.arms]
    assert {each["data_seed"] for each in seeds} == {1}
    assert len({each["seed"] for each in seeds}) == len(runner.arms)


def test_arms_with_data_of_their_own_are_strata_of_their_own(toy, tmp_path):
    runner = toy()
    alone = tuple(replace(arm, own_data=True, learning_rates=(1e-3,), rate_of=None) for arm in runner.arms)
    runner.arms = alone
    assert runner.run()[0].strata["runs"] == [0, 0, 1, 1, 2, 2]
    sizes, waves = runner.study.measures

    def pairs(results):
        keys = results.runs["key"].tolist()
        both = [MeasurementSpec((keys[i], keys[2 + i]), {"frequency": 1.0, "replicate": i}) for i in range(2)]
        return [*both, *waves.specs(results)]

    runner = toy()
    paired = replace(waves, specs=pairs, independent_params=("frequency",))
    runner.arms, runner.study = alone, replace(runner.study, measures=(sizes, paired))
    found = runner.run()[0].strata
    assert found["runs"] == found["sizes"] == [0, 0, 0, 0, 1, 1]  # measured together
    assert found["waves"] == [0, 0, 2, 2, 3, 3]
    runner = toy()
    first, second, third = alone
    runner.arms = (replace(first, seed=3), second, replace(third, seed=4))
    assert runner.run()[0].strata["runs"] == [0, 0, 1, 1, 0, 0]  # seeds 3, 4 and 4, 5


def test_arms_that_differ_in_their_rate_alone_share_seeds(toy, finished, tmp_path):
    finished.into(tmp_path)
    runner = toy()
    twin = replace(runner.arms[0], labels={"method": "lora", "rank": 7}, learning_rates=(3e-4,))
    runner.arms = (*runner.arms, twin)
    results, _ = runner.run()
    seeds = results.runs.groupby("rank")["seed"].apply(list)
    assert seeds[7] == seeds[1] != seeds[2]


def test_an_arm_may_take_the_rate_of_another(finished):
    rates = finished.runs.groupby("rank")["learning_rate"].first()
    assert rates[0] == rates[1]


def test_and_take_it_times_a_factor(toy, finished, tmp_path):
    finished.into(tmp_path)
    runner = toy()
    runner.arms = (*runner.arms[:2], replace(runner.arms[2], rate_factor=0.25))
    rates = runner.run()[0].runs.groupby("rank")["learning_rate"].first()
    assert rates[0] == pytest.approx(rates[1] / 4, rel=5e-3)  # rates have three digits


def test_a_config_value_may_be_the_seed(toy):
    runner = toy()
    runner.arms = (replace(runner.arms[0], learning_rates=(), seeded=("data.max_length",)),)
    job = runner._train_job(runner.arms[0], None, 1)
    assert job.spec["config"]["data"]["max_length"] == job.spec["config"]["training"]["seed"]


def test_a_sweep_takes_the_rate_of_the_lowest_mean_over_all_replicates(finished):
    for each in finished.tuned[:2]:
        whole = {rate: sum(losses.values()) for rate, losses in each.curve.items() if len(losses) == 2}
        assert each.rate == min(whole, key=whole.get)
        assert each.finalists[0] == each.rate
        assert each.interior == (min(each.curve) < each.rate < max(each.curve))


@pytest.mark.parametrize("most", [2, 7, 12])
def test_a_study_that_was_stopped_goes_on(toy, finished, most):
    stopped = Counting(most)
    with pytest.raises(KeyboardInterrupt):
        toy(engine=stopped).run()
    rest = Counting()
    results, _ = toy(engine=rest).run()
    assert not set(stopped.titles) & set(rest.titles)
    assert results.runs.drop(columns="seconds").equals(finished.runs.drop(columns="seconds"))


def test_a_failure_is_kept_and_told_and_tried_again(toy, monkeypatch):
    module = work.script(TOY)
    monkeypatch.setattr(module, "_raised", lambda steps, power: 1 / 0)
    runner = toy()
    results, _ = runner.run()
    assert results.tables["sizes"].empty
    assert len(runner.failures) == FINAL
    assert all("ZeroDivisionError" in message for message in runner.failures.values())
    assert len(results.tables["waves"]) == 4
    monkeypatch.undo()
    healed = toy()
    results, _ = healed.run()
    assert not healed.failures
    assert len(results.tables["sizes"]) == FINAL


def test_a_run_that_diverges_is_no_run(toy, monkeypatch):
    runner = toy(overrides=["optim.learning_rate=1e30"])
    runner.arms = (replace(runner.arms[0], learning_rates=()),)  # takes the config's
    results, _ = runner.run()
    assert results.runs.empty
    assert all("diverged" in message for message in runner.failures.values())


def test_an_unknown_scale_and_twin_arms(toy):
    with pytest.raises(InputError, match="no scale"):
        toy("huge")
    study = work.script(TOY).study
    twice = replace(study, arms=lambda scale: [*study.arms(scale), *study.arms(scale)])
    with pytest.raises(InputError, match="same labels"):
        Runner(twice, TOY, "smoke", toy().store, Local())


def test_runs_that_share_a_pass_equal_their_own(toy, finished, monkeypatch):
    from lorascope.study import runner as module

    made = []
    divide = module.chunks
    monkeypatch.setattr(module, "chunks", lambda *given: made.extend(divide(*given)) or divide(*given))
    alone = {1: 8, 2: 1}
    monkeypatch.setattr("lorascope.study.chunks._max_together", lambda job: alone[job.spec["config"]["method"]["rank"]])
    together, _ = toy().run()
    assert max(len(chunk.jobs) for chunk in made) > 1
    columns = ["rank", "replicate", "seed"]
    assert together.runs[columns].equals(finished.runs[columns])
    assert together.runs["loss"].to_numpy() == pytest.approx(finished.runs["loss"].to_numpy(), rel=1e-5)  # float32


@pytest.mark.parametrize(
    ("runs", "workers", "sizes"),
    [
        (7, 1, [4, 3]),
        (7, 2, [4, 3]),
        (7, 3, [3, 2, 2]),
        (7, 7, [1] * 7),
        (7, 9, [1] * 7),
        (10, 1, [4, 3, 3]),
        (10, 2, [3, 3, 2, 2]),  # not 4, 4 and 2, of which one worker would do the last
        (18, 2, [3] * 6),
    ],
)
def test_runs_that_share_a_pass_leave_no_worker_idle(toy, monkeypatch, runs, workers, sizes):
    monkeypatch.setattr("lorascope.study.chunks._max_together", lambda job: 4)
    runner = toy()
    arm = runner.arms[0]
    jobs = [runner._train_job(arm, 1e-3, replicate) for replicate in range(runs)]
    made = chunks(jobs, workers)
    assert [len(chunk.jobs) for chunk in made] == sizes
    assert [job for chunk in made for job in chunk.jobs] == jobs


def test_a_worker_without_a_sweep_s_run_gets_a_final_one(toy, finished, tmp_path):
    """Of two workers one would wait for the last run of the second arm's sweep: a run at the first arm's rate is there
    to be done, but none at a rate that is still looked for, and none where both have a run of a sweep."""
    finished.into(tmp_path)
    engine = Counting()
    engine.slots = 2
    runner = toy(engine=engine)
    first, second, borrower = runner.arms
    later = replace(borrower, labels={"method": "lora", "rank": 9}, rate_of=dict(second.labels), rate_factor=2.0)
    runner.arms = (first, second, replace(borrower, rate_factor=0.5), later)
    lost = runner._train_job(second, finished.tuned[1].finalists[-1], 1)
    shutil.rmtree(runner.store.folder(lost.key))
    stages = []
    runner.progress = lambda stage, *_: stages.append((stage, list(engine.titles)))
    runner.run()
    tuning = [titles for stage, titles in stages if stage == "tuning"][-1]
    assert len(tuning) == 2
    assert lost.title in tuning
    assert "rank 0" in next(title for title in tuning if title != lost.title)


def test_runs_of_two_methods_fill_their_passes(toy, monkeypatch):
    """Four runs of each on two workers are a pass for each, not four halves."""
    monkeypatch.setattr("lorascope.study.chunks._max_together", lambda job: 4)
    runner = toy()
    other = replace(runner.arms[0], changes={**runner.arms[0].changes, "method.name": "rslora"})
    jobs = [runner._train_job(arm, 1e-3, n) for arm in (runner.arms[0], other) for n in range(4)]
    assert [len(chunk.jobs) for chunk in chunks(jobs, 2)] == [4, 4]


def test_workers_in_processes_of_their_own(toy, finished):
    workers = Local(2)
    there, _ = toy(engine=workers).run()
    workers.close()
    assert there.runs["loss"].to_numpy() == pytest.approx(finished.runs["loss"].to_numpy(), rel=1e-5)  # other threads


KILLER = """
import os, signal
from pathlib import Path
def kill(folders, flag, name):
    if name == "bad" or (name == "once" and not Path(flag).exists()):
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return [{"name": name}]
"""


def test_a_worker_that_is_killed_costs_its_own_work_alone(tmp_path):
    script = tmp_path / "killer.py"
    script.write_text(KILLER)
    store = Store(tmp_path / "store")

    def job(name):
        params = {"flag": str(tmp_path / f"flag-{name}"), "name": name}
        spec = {"kind": "measure", "script": str(script), "function": "kill", "code": "", "params": params}
        return Job(spec, title=name)

    jobs = [job(name) for name in ("bad", "good", "once", "fine")]
    workers = Local(2)
    ended = {chunk.jobs[0].title: failed for chunk, failed in workers.run([Chunk((each,)) for each in jobs], store)}
    workers.close()
    assert set(ended) == {"bad", "good", "once", "fine"}
    assert [name for name, failed in ended.items() if failed] == ["bad"]
    assert "died" in store.failure(jobs[0].key)["message"]
    assert json.loads((store.folder(jobs[2].key) / "rows.json").read_text())["rows"] == [{"name": "once"}]


# --- what is scored, and on which texts -------------------------------------------------------------------------------


def test_a_file_of_texts_has_no_split_to_be_tested_on(toy):
    """Another draw of what is held out would hold texts that were trained on."""
    runner = toy()
    study = replace(runner.study, scales={"smoke": replace(runner.study.scales["smoke"], test_split="test")})
    own = Runner(
        study, TOY, "smoke", runner.store, Local(), overrides=[f"data.path={runner.scale.config['data']['path']}"]
    )
    assert own.scale.test_split is None
    packaged = Runner(study, TOY, "smoke", runner.store, Local(), overrides=["data.path=wordnet-classes"])
    assert packaged.scale.test_split == "test"


def test_a_run_that_stores_its_training_texts_is_scored_on_them(toy, monkeypatch):
    runner = toy()
    job = runner._train_job(runner.arms[0], 1e-3, 1)
    data = {**job.spec["config"]["data"], "eval_split": "train", "train_split": "train"}
    spec = {**job.spec, "test_split": "test", "config": {**job.spec["config"], "data": data}}
    job = Job(spec, title="memorise")
    run = runner.store.run_folder(job.key)
    run.mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps({"held_out": {"loss": 0.25, "accuracy": 0.9}, "steps": 3}))
    (run / "test.json").write_text(json.dumps({"loss": 7.0, "accuracy": 0.1}))
    runner.store.finish(job.key, {"seconds": 1.0})
    assert runner._row(job)["loss"] == 0.25
    scored = [Final(0, 0, 1, each) for each in (job, runner._train_job(runner.arms[0], 1e-3, 0))]
    monkeypatch.setattr("lorascope.study.runner.read_texts", lambda runs: dict(runs))
    monkeypatch.setattr(runner, "_row", lambda job: {"held_out_loss": 0.0})
    assert list(runner._results(scored, [Tuned(1e-3)] * 3).texts) == [scored[1].job.key]  # not by texts of other splits
    monkeypatch.undo()
    other = Job({**spec, "config": {**spec["config"], "data": {**data, "eval_split": "validation"}}}, title="other")
    shutil.copytree(runner.store.folder(job.key), runner.store.folder(other.key))
    assert runner._row(other)["loss"] == 7.0
    (runner.store.run_folder(other.key) / "test.json").unlink()
    assert runner._row(other) is None  # held-out texts are no substitute: the rate was chosen on them
    assert "test.json is missing" in runner.failures["other"]


def test_a_measure_whose_calls_cannot_be_made_costs_itself_alone(toy):
    runner = toy()
    wrong = replace(runner.study.measures[0], specs=lambda results: results.runs["absent"])
    runner.study = replace(runner.study, measures=(wrong, runner.study.measures[1]))
    runner.arms = ()
    results, _ = runner.run()
    assert "KeyError" in runner.failures["sizes"]
    assert len(results.tables["waves"]) == 4


def test_a_run_of_two_arms_is_measured_once_and_stands_in_both(toy):
    """Arms may agree in all but their names, such as LoRA at its own rate and LoRA at that of another arm."""
    runner = toy()
    own = replace(runner.arms[0], learning_rates=(1e-3,))
    runner.arms = (own, replace(own, labels={"method": "lora", "rank": "the same"}))
    results, _ = runner.run()
    assert results.runs["key"].nunique() == 2
    assert sorted(results.tables["sizes"].groupby(["rank", "replicate"]).groups, key=str) == sorted(
        [(rank, n) for rank in (1, "the same") for n in (0, 1)], key=str
    )
    assert sum(job.spec["kind"] == "measure" for job in runner.used.values()) == 2 + 4
    call = MeasurementSpec((results.runs["key"].iloc[0],), {"rank": "the same"})
    assert [row["rank"] for row in runner._labels_of(call, results.runs)] == ["the same"]


def test_rows_with_and_without_replicates_do_not_mix(toy, monkeypatch):
    runner = toy()
    runner.arms = ()
    results, _ = runner.run()
    read = iter([[{"wave": 1.0}], *[[{"wave": 1.0, "replicate": None}]] * 3])
    monkeypatch.setattr("lorascope.study.runner.read_rows", lambda folder: next(read))
    with pytest.raises(InputError, match="name a replicate and some do not"):
        runner._measure(runner.study.measures[1], results)


def test_an_arm_cannot_take_a_rate_that_nobody_tunes(toy):
    study = work.script(TOY).study
    untuned = replace(study, arms=lambda scale: [replace(arm, learning_rates=()) for arm in study.arms(scale)])
    with pytest.raises(InputError, match="has no learning rates"):
        Runner(untuned, TOY, "smoke", toy().store, Local())


def test_what_an_earlier_try_left_is_resumed_or_started_over(toy, tmp_path):
    """A checkpoint that is damaged, or of another config, costs its own run's time and no more."""
    runner = toy()
    job = runner._train_job(runner.arms[0], 1e-3, 1)
    runner.store.begin(job)
    run = runner.store.run_folder(job.key)
    run.mkdir()
    (run / "checkpoint.pt").write_bytes(b"no checkpoint")
    (run / ".config.yaml.x1").write_text("half")
    assert work.execute(Chunk((job,)), runner.store) == []
    assert runner.store.intact(job)
    assert not (run / "checkpoint.pt").exists()


ORPHAN = """
import sys, time
from pathlib import Path
from lorascope.study.local import Local
from lorascope.study.store import Job, Store
from lorascope.study.tuning import Tuned
from lorascope.study.work import Chunk
if __name__ == "__main__":
    spec = {"kind": "measure", "script": sys.argv[1], "function": "wait", "code": "", "params": {"folder": sys.argv[2]}}
    jobs = [Job({**spec, "params": {**spec["params"], "n": n}}) for n in range(2)]
    list(Local(2).run([Chunk((job,)) for job in jobs], Store(Path(sys.argv[2]) / "store")))
"""
WAIT = """
import os, time
from pathlib import Path
def wait(folders, folder, n):
    (Path(folder) / f"pid-{n}").write_text(str(os.getpid()))
    time.sleep(120)
    return []
"""


def test_workers_end_with_their_parent(tmp_path):
    """The parent is killed, as the system does when memory runs out; nobody else would end its workers."""
    (tmp_path / "orphan.py").write_text(ORPHAN)
    (tmp_path / "wait.py").write_text(WAIT)
    command = [sys.executable, str(tmp_path / "orphan.py"), str(tmp_path / "wait.py"), str(tmp_path)]
    parent = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while len(pids := [path.read_text() for path in tmp_path.glob("pid-*")]) < 2 or not all(pids):
        assert time.monotonic() < deadline
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while alive := [pid for pid in pids if running(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_measures_are_made_on_the_device_of_the_study(toy):
    runner = toy()
    runner.device = "cuda:1"
    job = runner._measure_job(runner.study.measures[1], MeasurementSpec((), {"frequency": 1.0}))
    assert job.spec["device"] == "cuda:1"
