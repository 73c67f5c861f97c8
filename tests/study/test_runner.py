"""The runner does each piece of work once, whatever happens to it on the way."""

import json
from dataclasses import replace

import pytest

from lorascope.errors import InputError
from lorascope.study import work
from lorascope.study.local import Local
from lorascope.study.runner import Runner
from lorascope.study.store import Job, Store
from lorascope.study.work import Chunk
from tests.study.conftest import TOY

TUNING, FINAL, MEASURED = 4, 6, 6 + 4  # of scale smoke: 2 arms x 2 rates; 3 arms x 2 replicates; each run, and waves


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
    extended = len(runner.used) - TUNING - FINAL - MEASURED
    assert len(engine.titles) == len(runner.used)
    assert not runner.failures
    assert extended in range(7)  # sweeps whose best was at their end went on
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


def test_every_run_has_seeds_of_its_own(toy):
    results, _ = toy().run()
    assert results.runs["seed"].nunique() == FINAL
    assert results.runs["seed"].min() >= 0


def test_an_arm_may_take_the_rate_of_another(toy):
    results, _ = toy().run()
    rates = results.runs.groupby("rank")["learning_rate"].first()
    assert rates[0] == rates[1]


def test_and_take_it_times_a_factor(toy):
    runner = toy()
    runner.arms = (*runner.arms[:2], replace(runner.arms[2], rate_factor=0.25))
    rates = runner.run()[0].runs.groupby("rank")["learning_rate"].first()
    assert rates[0] == pytest.approx(rates[1] / 4, rel=5e-3)  # rates have three digits


def test_a_config_value_may_be_the_seed(toy):
    runner = toy()
    runner.arms = (replace(runner.arms[0], learning_rates=(), seeded=("data.max_length",)),)
    job = runner._train_job(runner.arms[0], 77, None, "a run", final=True)
    assert job.spec["config"]["data"]["max_length"] == job.spec["config"]["training"]["seed"] == 77


def test_a_sweep_whose_best_is_at_its_end_goes_on(toy):
    _, tuned = toy(overrides=["training.max_steps=1"]).run()
    for each in tuned[:2]:
        known = {rate: loss for rate, loss in each.curve.items() if loss is not None}
        assert each.rate == min(known, key=known.get)
        assert each.interior == (min(each.curve) < each.rate < max(each.curve))
        assert each.interior or len(each.curve) == 2 + 3


@pytest.mark.parametrize("most", [2, 7, 12])
def test_a_study_that_was_stopped_goes_on(toy, most):
    whole, _ = toy(store=Store(toy().store.root / "other")).run()
    stopped = Counting(most)
    with pytest.raises(KeyboardInterrupt):
        toy(engine=stopped).run()
    rest = Counting()
    results, _ = toy(engine=rest).run()
    assert not set(stopped.titles) & set(rest.titles)
    assert results.runs.drop(columns="seconds").equals(whole.runs.drop(columns="seconds"))


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


def test_runs_that_share_a_pass_equal_their_own(toy, monkeypatch):
    from lorascope.study import runner as module

    alone, _ = toy(store=Store(toy().store.root / "alone"), engine=Counting()).run()
    made = []
    chunks = module._chunks
    monkeypatch.setattr(module, "_chunks", lambda jobs: made.extend(chunks(jobs)) or chunks(jobs))
    monkeypatch.setattr(module, "_most_together", lambda job: 1 if job.spec["config"]["method"]["rank"] == 2 else 8)
    together, _ = toy(store=Store(toy().store.root / "together")).run()
    assert max(len(chunk.jobs) for chunk in made) > 1
    columns = ["rank", "replicate", "seed"]
    assert together.runs[columns].equals(alone.runs[columns])
    assert together.runs["loss"].to_numpy() == pytest.approx(alone.runs["loss"].to_numpy(), rel=1e-5)  # float32


def test_workers_in_processes_of_their_own(toy, tmp_path):
    here, _ = toy(store=Store(tmp_path / "here")).run()
    workers = Local(2)
    there, _ = toy(store=Store(tmp_path / "there"), engine=workers).run()
    workers.close()
    assert there.runs["loss"].to_numpy() == pytest.approx(here.runs["loss"].to_numpy(), rel=1e-5)  # other threads


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
