"""`lorascope delta` as a process: its numbers, its streams, its files, its refusals."""

import csv

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorascope.weights import io
from tests.cli.command import here, lorascope, refused, valid

RECORD = {
    "name", "parameter", "type", "depth", "shape", "transposed", "base_dtype", "tuned_dtype", "effective_dtype",
    "base_norm", "frobenius_norm", "relative_norm", "moved_share", "non_finite", "singular_values", "accuracy",
    "remaining_energy", "spectral_norm", "nuclear_norm", "stable_rank", "effective_rank", "energy_effective_rank",
    "participation_ratio", "null", "noise_floor", "marchenko_pastur", "gavish_donoho", "permutation", "best",
    "captured", "notes", "energy_share", *(f"energy_rank_{share}" for share in (0.9, 0.95, 0.99)),
    *(f"energy_rank_of_null_{share}" for share in (0.9, 0.95, 0.99)),
}  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The base of `lora_folder`'s shapes, and that base with a full-rank change."""
    folder = tmp_path_factory.mktemp("pair")
    rng = np.random.default_rng(1)
    names = [f"model.layers.{i}.self_attn.{n}_proj" for i in range(2) for n in "qv"]
    base = {f"{name}.weight": rng.standard_normal((16, 24)).astype("f4") for name in names}
    base["model.norm.weight"] = np.ones(24, "f4")
    tuned = {name: w + rng.standard_normal(w.shape).astype("f4") / 10 for name, w in base.items()}
    for side, arrays in (("base", base), ("tuned", tuned)):
        (folder / side).mkdir()
        save_file(arrays, folder / side / "model.safetensors")
    return folder


def test_numbers_files_and_streams(pair, lora_folder, tmp_path):
    out = [tmp_path / name for name in ("d.json", "d.csv", "d.html")]
    done = lorascope(
        "delta", pair / "base", pair / "tuned", "--adapter", lora_folder, "--extract", 3, "--output", tmp_path / "best",
        "--json", out[0], "--csv", out[1], "--html", out[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "What the adapters capture" in done.stdout
    assert sorted(done.stderr.split()[1::2]) == sorted(map(str, [*out, tmp_path / "best"]))
    found = valid("delta", out[0].read_text())
    assert found["schema"] == 2
    assert [len(found[key]) for key in ("matrices", "vectors", "adapters", "skipped")] == [4, 1, 1, 1]
    assert all(set(matrix) == RECORD for matrix in found["matrices"])
    assert all(matrix["captured"] for matrix in found["matrices"])
    rows = list(csv.DictReader(out[1].open()))
    assert [row["kind"] for row in rows] == ["matrix"] * 4 + ["vector"]
    assert float(rows[0]["energy_rank_0.9"]) == found["matrices"][0]["energy_rank_0.9"]
    assert "<svg" in out[2].read_text()
    assert len(io.read(tmp_path / "best").updates) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "d.csv", "d.html", "d.json"]


def test_json_on_stdout_is_json_alone(pair):
    done = here("delta", pair / "base", pair / "tuned", "--json", "-", "--top", 2)
    assert done.stderr == ""
    found = valid("delta", done.stdout)
    assert found["top"] == 2
    assert [len(matrix["singular_values"]) for matrix in found["matrices"]] == [2] * 4


def test_refusals(pair, lora_folder, tmp_path):
    assert "no such file or folder" in refused(here("delta", pair / "base", pair / "nowhere"))
    assert "--extract requires --output" in refused(here("delta", pair / "base", pair / "tuned", "--extract", 2))
    assert "is not a metric" in refused(here("delta", pair / "base", pair / "tuned", "--sort", "size"))
    assert "already exists" in refused(
        here("delta", pair / "base", pair / "tuned", "--extract", 2, "--output", lora_folder)
    )
