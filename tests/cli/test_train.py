import json
import os

import pytest
import torch
import yaml

from tests.cli.command import here, lorascope, refused
from tests.training.tiny import classifier_values

QUIET = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_bert, labelled):
    path = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    path.write_text(yaml.safe_dump(classifier_values(tiny_bert, labelled)))
    return path


def test_train_writes_the_run_and_says_where(config, tmp_path):
    done = lorascope(
        "train", config, "--set", "method.rank=3", "--set", "training.max_steps=2", cwd=tmp_path, env=QUIET
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("held-out loss")
    assert "the base model's held-out loss" in done.stdout
    assert "adapter: runs/tiny/adapter" in done.stdout
    assert "step 2 of 2: held-out loss" in done.stderr  # a log has lines instead of a bar
    run = tmp_path / "runs" / "tiny"
    assert yaml.safe_load((run / "config.yaml").read_text())["method"]["rank"] == 3
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["r"] == 3
    assert json.loads((run / "run.json").read_text())["command"][:2] == ["lorascope", "train"]
    assert "holds a run already" in refused(here("train", config, cwd=tmp_path, env=QUIET))


def test_an_adapter_worse_than_the_base_ends_with_a_warning(config, tmp_path):
    wild = ("optim.learning_rate=1e4", "optim.max_grad_norm=null", "training.measure_cost=false")
    overrides = [part for each in wild for part in ("--set", each)]
    done = here("train", config, *overrides, "--output", tmp_path / "run", env=QUIET)
    assert done.returncode == 0, done.stderr
    assert "warning: the adapter is worse than the base model" in done.stdout
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "worse_than_base"
    assert summary["held_out"]["loss"] > summary["base"]["loss"]


def test_an_adapter_named_as_the_base_is_refused(config, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    message = refused(here("train", config, "--set", f"model.name={tmp_path}", cwd=tmp_path, env=QUIET))
    assert "set model.name to some/base" in message


def test_a_sweep_writes_a_run_for_each_and_prints_the_table(tmp_path, tiny_bert, labelled):
    values = classifier_values(tiny_bert, labelled)
    values["model"]["dropout"] = 0.0
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({**values, "sweep": {"method.rank": [2, 3]}}))
    done = here("train", path, "--set", "training.max_steps=2", cwd=tmp_path, env=QUIET)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["adapter", "rank=2", "rank=3"]
    assert lines[3].startswith("the base model's held-out loss: ")
    for rank in (2, 3):
        run = tmp_path / "runs" / "grid" / f"rank={rank}"
        assert json.loads((run / "adapter" / "adapter_config.json").read_text())["r"] == rank
        assert "sweep" not in yaml.safe_load((run / "config.yaml").read_text())
    assert "is not empty. hint: continue it with --resume" in refused(here("train", path, cwd=tmp_path, env=QUIET))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_for_and_absent_is_one_sentence(config, tmp_path):
    message = refused(here("train", config, "--device", "cuda", cwd=tmp_path, env=QUIET))
    assert "cuda was asked for and is not there" in message
    assert list(tmp_path.iterdir()) == []


def test_wrong_keys_are_one_sentence(config, tmp_path):
    message = refused(here("train", config, "--set", "optim.lerning_rate=1", "--set", "method.rnk=2", env=QUIET))
    assert "did you mean learning_rate?" in message
    assert "did you mean rank?" in message


def test_an_output_that_cannot_be_written_is_a_failure(config, tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = here("train", config, "--output", tmp_path / "file" / "run", env=QUIET)
    assert "cannot use the folder" in refused(done, code=1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence(config, tmp_path):
    """The metrics are a link to a device that is always full."""
    code = (
        "import sys; from pathlib import Path; from lorascope.training import run_folder\n"
        "start = run_folder.Record.start\n"
        "def linked(self, *args, **more):\n"
        "    start(self, *args, **more); (self.folder / 'metrics.jsonl').symlink_to('/dev/full')\n"
        "run_folder.Record.start = linked\n"
        f"sys.argv = ['lorascope', 'train', {str(config)!r}, '--output', {str(tmp_path / 'run')!r}]\n"
        "from lorascope.cli.app import main; main()"
    )
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **QUIET})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "run" / "adapter").exists()
