"""`training.snapshot_steps`: the adapter at some steps, whole, small and analysable at any time."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import lorascope as ls
from lorascope.errors import InputError
from lorascope.training import run
from lorascope.training.loop import Loop
from lorascope.training.parallel import World
from lorascope.training.run_folder import Record
from lorascope.weights import io

QUICK = ("training.num_threads=1", "training.measure_cost=false")


def test_snapshots_are_the_adapter_at_their_steps(classifier, tmp_path):
    run.train(classifier("training.max_steps=6", "training.snapshot_steps=2"), tmp_path / "run")
    snapshots = sorted(path.name for path in (tmp_path / "run" / "snapshots").iterdir())
    assert snapshots == ["step-0000002", "step-0000004", "step-0000006"]
    weights = [tmp_path / "run" / at / "adapter_model.safetensors" for at in ("adapter", "snapshots/step-0000006")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    # A constant rate makes the first four steps of a longer run those of a shorter one.
    constant = ("training.measure_cost=false", "optim.lr_scheduler_type=constant", "training.num_threads=1")
    run.train(classifier("training.max_steps=4", *constant), tmp_path / "short")
    run.train(classifier("training.max_steps=6", "training.snapshot_steps=4", *constant), tmp_path / "long")
    short, long = (tmp_path / at for at in ("short/adapter", "long/snapshots/step-0000004"))
    for name, update in io.read(short).updates.items():
        np.testing.assert_array_equal(update.delta().dense(), io.read(long).updates[name].delta().dense())
    result = ls.trajectory(tmp_path / "run")
    assert result.steps == (2, 4, 6)
    assert all(each.training_loss is not None for each in result.checkpoints)


def test_they_can_be_followed_while_the_run_goes_on(classifier, tmp_path, monkeypatch):
    seen = []
    evaluate = Loop._evaluate

    def look(loop, bar, *due):
        if loop.step == 5:
            result = ls.trajectory(tmp_path / "run")
            seen.extend(result.steps)
        evaluate(loop, bar, *due)

    monkeypatch.setattr(Loop, "_evaluate", look)
    run.train(classifier("training.max_steps=6", "training.snapshot_steps=2"), tmp_path / "run")
    assert seen == [2, 4]


def test_they_change_nothing_and_another_run_in_their_place_leaves_none(classifier, tmp_path):
    torch.manual_seed(1)
    run.train(classifier(*QUICK, "training.snapshot_steps=1"), tmp_path / "with")
    run.train(classifier(*QUICK), tmp_path / "without")
    one, other = (tmp_path / at / "adapter" / "adapter_model.safetensors" for at in ("with", "without"))
    assert one.read_bytes() == other.read_bytes()
    run.train(classifier(*QUICK), tmp_path / "with", replace_run=True)
    assert not (tmp_path / "with" / "snapshots").exists()


def test_a_sweep_keeps_those_of_each_member(classifier, tmp_path):
    config = classifier("training.max_steps=4", "training.snapshot_steps=2")
    other = replace(config, optim=replace(config.optim, learning_rate=1e-3))
    jobs = []
    prepared = run.prepare_together([config, other], torch.device("cpu"))
    for name, one, ready in zip(("a", "b"), (config, other), prepared, strict=True):
        jobs.append(run.Job(one, ready, tmp_path / name, Record(tmp_path / name, one)))
    run.fit_together(jobs, World(torch.device("cpu")), progress=False)
    for name in ("a", "b"):
        last, final = (io.read(tmp_path / name / at) for at in ("snapshots/step-0000004", "adapter"))
        assert last.source.sha256 == final.source.sha256
    hashes = {io.read(tmp_path / name / "snapshots" / "step-0000002").source.sha256 for name in ("a", "b")}
    assert len(hashes) == 2


def test_the_key_is_checked(classifier):
    with pytest.raises(InputError, match="snapshot_steps must be positive"):
        classifier("training.snapshot_steps=0")
