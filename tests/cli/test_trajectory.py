"""`lorascope trajectory` as a user runs it."""

import json

import numpy as np
from safetensors.numpy import save_file

from tests.analyses.test_trajectory import factors, write_trainer_run
from tests.cli.command import here, lorascope, refused, valid


def test_a_trainers_folder_gives_a_page_json_and_an_average(tmp_path, rng):
    write_trainer_run(tmp_path / "out", factors(rng, 3))
    done = lorascope(
        "trajectory", tmp_path / "out", "--html", tmp_path / "t.html", "--json", tmp_path / "t.json",
        "--csv", tmp_path / "t.csv", "--average", tmp_path / "average", "--average-last", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 checkpoints, steps 10 to 30" in done.stdout
    record = valid("trajectory", (tmp_path / "t.json").read_text())
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
    assert "already exists" in refused(here("trajectory", tmp_path / "out", "--average", tmp_path / "full"))


def test_from_python(tmp_path, rng):
    import lorascope as ls

    write_trainer_run(tmp_path, factors(rng, 2))
    result = ls.trajectory(tmp_path)
    assert result.steps == (10, 20)
    assert np.isfinite(result.rows[0].points[0].left_to_last)


def test_mlx_numbered_files(tmp_path, rng):
    """MLX has lora_a (in, r), lora_b (r, out), and a scale that is not divided by r; ΔW = scale·lora_bᵀ·lora_aᵀ."""
    series = factors(rng, 3)
    name = next(iter(series))
    for i, (b, a) in enumerate(series[name], 1):
        tensors = {f"{name}.lora_a": np.ascontiguousarray(a.T, np.float32)}
        tensors[f"{name}.lora_b"] = np.ascontiguousarray(b.T, np.float32)
        save_file(tensors, tmp_path / f"{i}00_adapters.safetensors".zfill(len("0000100_adapters.safetensors")))
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 4, "scale": 20.0, "dropout": 0.0}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    done = here("trajectory", tmp_path, "--json", "-")
    record = json.loads(done.stdout or done.stderr)
    assert [each["step"] for each in record["checkpoints"]] == [100, 200, 300]
    sigma = np.linalg.svd(20.0 * series[name][-1][0] @ series[name][-1][1], compute_uv=False)[:4]
    np.testing.assert_allclose(record["modules"][0]["points"][-1]["singular_values"], sigma, rtol=1e-6)  # float32 files
