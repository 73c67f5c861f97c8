"""A run that is killed and resumed ends in the same bytes as one that was not."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from lorascope.adapt.method import methods
from lorascope.errors import InputError
from lorascope.training import run
from lorascope.training.config import override, parse, resolved
from tests.training.tiny import classifier_values

SETTINGS = ("training.max_steps=200", "training.save_steps=10", "training.eval_steps=25")
SETTINGS += ("training.load_best_model_at_end=true",)
SETTINGS += ("training.num_threads=1",)  # in every process: two threads add a sum's parts in another order than one
MORE = {  # what makes a method draw random numbers and keep state while it trains
    "adalora": {"init_r": 4, "target_r": 2, "dropout": 0.1},
    "dora": {"dropout": 0.1},
    "lora": {"dropout": 0.1, "init": "pissa"},
    "random_subspace": {"d": 40, "said": "layer"},
}


def start(config, folder, *options) -> subprocess.Popen:
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump(resolved(config)))
    command = [sys.executable, "-c", "from lorascope.cli.app import main; main()"]
    command += ["train", str(path), "--output", str(folder), *options]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)


def bytes_of(folder):
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_killed_and_resumed_ends_in_the_same_bytes(classifier, tmp_path):
    config = classifier(*SETTINGS)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run.train(config, whole)

    process = start(config, broken)
    deadline = time.monotonic() + 120  # a minute of imports on a busy machine, and a second of training
    while not (broken / "checkpoint.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it was still running
    process.stderr.close()
    assert not (broken / "adapter").exists()
    assert 0 < step_of(broken) < 200

    run.train(config, broken, resume=True)
    assert bytes_of(broken) == bytes_of(whole)
    assert metrics(broken) == metrics(whole)  # no line is lost or written twice
    assert {path.name for path in broken.iterdir()} == {path.name for path in whole.iterdir()}


def step_of(folder) -> int:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["step"]


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def interrupt(config, folder, monkeypatch, at):
    """Run until the checkpoint of step `at` is written, and stop there."""

    class Stop(Exception):
        pass

    save = run.Loop.save

    def stopping(self, record):
        save(self, record)
        if self.step == at:
            raise Stop

    monkeypatch.setattr(run.Loop, "save", stopping)
    with pytest.raises(Stop):
        run.train(config, folder)
    monkeypatch.setattr(run.Loop, "save", save)


def test_the_checkpoint_holds_the_adapter_and_never_the_base(classifier, tmp_path, monkeypatch):
    config = classifier("training.save_steps=2")
    interrupt(config, tmp_path / "run", monkeypatch, at=4)
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    prepared = run.prepare(config, torch.device("cpu"))
    assert state["members"][0]["adapter"].keys() == prepared.injected.state_dict().keys()
    assert state["step"] == 4


def test_another_config_is_not_resumed(classifier, tmp_path, monkeypatch):
    interrupt(classifier("training.save_steps=2"), tmp_path / "run", monkeypatch, at=2)
    other = classifier("training.save_steps=2", "optim.learning_rate=0.5")
    with pytest.raises(InputError, match=r"other values of optim\.learning_rate"):
        run.train(other, tmp_path / "run", resume=True)


def test_a_damaged_checkpoint_is_refused_in_one_sentence(classifier, tmp_path, monkeypatch):
    config = classifier("training.save_steps=2")
    interrupt(config, tmp_path / "run", monkeypatch, at=2)
    path = tmp_path / "run" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"checkpoint\.pt is not a checkpoint"):
        run.train(config, tmp_path / "run", resume=True)


def test_there_must_be_a_run_to_resume_and_none_to_start(classifier, tmp_path):
    with pytest.raises(InputError, match="nothing to resume"):
        run.train(classifier(), tmp_path / "new", resume=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("keep me")
    with pytest.raises(InputError, match="is not empty"):
        run.train(classifier(), tmp_path / "full")


@pytest.mark.parametrize("name", methods.names())
def test_every_method_resumes_exactly(name, tiny_bert, labelled, tmp_path, monkeypatch):
    """Broken off in step 5, two steps behind the checkpoint."""
    method = {"name": name, **MORE.get(name, {})}
    if methods.get(name).uses_targets:
        method["targets"] = ["query", "value"]
    values = classifier_values(tiny_bert, labelled) | {"method": method}
    config = parse(override(values, ["training.save_steps=3", "training.measure_cost=false"]))
    run.train(config, tmp_path / "whole")
    cls = methods.get(name)
    after_step = cls.after_step

    def break_off(self, step, total):
        if step == 4:
            raise KeyboardInterrupt
        after_step(self, step, total)

    with monkeypatch.context() as patched:
        patched.setattr(cls, "after_step", break_off)
        with pytest.raises(KeyboardInterrupt):
            run.train(config, tmp_path / "broken")
    assert step_of(tmp_path / "broken") == 3
    run.train(config, tmp_path / "broken", resume=True)
    assert bytes_of(tmp_path / "broken") == bytes_of(tmp_path / "whole")
