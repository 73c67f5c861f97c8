"""`lorascope trajectory` as a user runs it."""

import json

import numpy as np

from tests.analyses.test_trajectory import factors, write_trainer_run
from tests.cli.command import here, lorascope, refused


def test_a_trainers_folder_gives_a_page_json_and_an_average(tmp_path, rng):
    write_trainer_run(tmp_path / "out", factors(rng, 3))
    done = lorascope(
        "trajectory", tmp_path / "out", "--html", tmp_path / "t.html", "--json", tmp_path / "t.json",
        "--csv", tmp_path / "t.csv", "--average", tmp_path / "average", "--average-last", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 checkpoints, steps 10 to 30" in done.stdout
    record = json.loads((tmp_path / "t.json").read_text())
    assert [each["step"] for each in record["checkpoints"]] == [10, 20, 30]
    assert (tmp_path / "t.csv").read_text().count("\n") == 1 + 2 * 3
    assert "<h1" in (tmp_path / "t.html").read_text()
    assert "mean ΔW of steps 20 to 30" in done.stderr
    assert (tmp_path / "average" / "adapter_config.json").is_file()
    again = here("trajectory", tmp_path / "out" / "checkpoint-30", tmp_path / "out" / "checkpoint-10", "--json", "-")
    assert [each["step"] for each in json.loads(again.stdout)["checkpoints"]] == [10, 30]


def test_it_imports_no_torch(tmp_path, rng):
    from tests.contracts.test_house import HEAVY, loaded_by

    write_trainer_run(tmp_path, factors(rng, 2))
    loaded = loaded_by("trajectory", str(tmp_path), "--json", "-")
    assert "numpy" in loaded
    assert not loaded & HEAVY


def test_refusals(tmp_path, rng):
    assert "two checkpoints" in refused(here("trajectory", tmp_path))
    write_trainer_run(tmp_path / "out", factors(rng, 2))
    assert "--average DIR" in refused(here("trajectory", tmp_path / "out", "--average-last", 2))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert "is there already" in refused(here("trajectory", tmp_path / "out", "--average", tmp_path / "full"))


def test_from_python(tmp_path, rng):
    import lorascope as ls

    write_trainer_run(tmp_path, factors(rng, 2))
    result = ls.trajectory(tmp_path)
    assert result.steps == (10, 20)
    assert np.isfinite(result.rows[0].points[0].left_to_last)
