"""`lorascope intruders`, and `analyze --base`, as processes: numbers, streams, files, the cache, refusals."""

import csv
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorascope.training import run
from lorascope.training.config import parse
from tests.cli.command import here, lorascope, refused, valid
from tests.training.tiny import lm_values

MODULE = {
    "name", "parameter", "type", "depth", "shape", "transposed", "kind", "base_norm", "delta_norm", "relative_norm",
    "delta_sigma", "base_sigma", "base_rank", "spike_margin", "vectors", "chance", "equal_singular_values",
    "prediction", "method", "error", "non_finite", "notes", "intruders", "lowest_cosine", "intruder_energy_share",
}  # fmt: skip
VECTOR = {"position", "sigma", "energy_share", "cosine", "nearest", "of_base", "of_change"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The base of `lora_folder`'s shapes."""
    folder = tmp_path_factory.mktemp("base")
    rng = np.random.default_rng(1)
    names = [f"model.layers.{i}.self_attn.{n}_proj" for i in range(2) for n in "qv"]
    weights = {f"{name}.weight": rng.standard_normal((16, 24)).astype("f4") for name in names}
    weights["model.norm.weight"] = np.ones(24, "f4")
    save_file(weights, folder / "model.safetensors")
    return folder


def test_numbers_files_and_streams(base, lora_folder, tmp_path):
    out = [tmp_path / name for name in ("i.json", "i.csv", "i.html")]
    files = ("--json", out[0], "--csv", out[1], "--html", out[2])
    where = {"XDG_CACHE_HOME": str(tmp_path / "home")}
    done = lorascope("intruders", lora_folder, "--base", base, "-k", 4, "--epsilon", 0.7, *files, env=where)
    assert done.returncode == 0, done.stderr
    assert "Intruders for each ε and k" in done.stdout
    assert sorted(done.stderr.split()[1::2]) == sorted(map(str, out))
    found = valid("intruders", out[0].read_text())
    assert (found["schema"], found["k"], found["epsilon"]) == (2, 4, 0.7)
    assert all(set(module) == MODULE for module in found["modules"])
    assert all(set(vector) == VECTOR for module in found["modules"] for vector in module["vectors"])
    assert found["cache"]["computed"] == 4
    row = found["counts"]["epsilon"].index(0.7)
    assert found["counts"]["left"][row][3] == found["summary"]["intruders"]["left"] > 0
    rows = list(csv.DictReader(out[1].open()))
    assert [int(row["intruders.left"]) for row in rows] == [m["intruders"]["left"] for m in found["modules"]]
    assert "<svg" in out[2].read_text()
    assert len(list((tmp_path / "home" / "lorascope" / "svd").iterdir())) == 4  # the user's cache folder


def test_the_cache_is_read_kept_elsewhere_or_left_alone(base, lora_folder, tmp_path):
    where = {"XDG_CACHE_HOME": str(tmp_path / "home")}
    common = ("intruders", lora_folder, "--base", base, "--json", "-")
    seen = [
        json.loads(here(*common, *more, env=where).stdout)
        for more in (["--cache", tmp_path / "own"], ["--cache", tmp_path / "own"], ["--no-cache"])
    ]
    assert [(s["cache"]["read"], s["cache"]["computed"]) for s in seen] == [(0, 4), (4, 0), (0, 4)]
    assert seen[0]["modules"] == seen[1]["modules"] == seen[2]["modules"]
    assert not (tmp_path / "home").exists()
    damaged = next((tmp_path / "own").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:100])
    done = here(*common, "--cache", tmp_path / "own")
    assert "is damaged: the decomposition is computed again" in done.stderr
    assert json.loads(done.stdout)["modules"] == seen[0]["modules"]


def test_a_tuned_model_in_the_adapters_place(base, tmp_path):
    from safetensors.numpy import load_file

    weights = load_file(base / "model.safetensors")
    rng = np.random.default_rng(2)
    save_file(
        {n: w + rng.standard_normal(w.shape).astype("f4") for n, w in weights.items()}, tmp_path / "t.safetensors"
    )
    done = here("intruders", tmp_path / "t.safetensors", "--base", base, "--no-cache", "--json", "-")
    found = json.loads(done.stdout)
    assert [m["method"] for m in found["modules"]] == ["dense"] * 4
    assert [item["name"] for item in found["skipped"]] == ["model.norm"]


def test_refusals(base, lora_folder, tmp_path):
    assert "pass --base MODEL" in refused(here("intruders", lora_folder))
    assert "pass --data FILE" in refused(here("intruders", lora_folder, "--base", base, "--intervene"))
    assert "--retain requires --intervene" in refused(
        here("intruders", lora_folder, "--base", base, "--retain", "x.txt")
    )
    assert "exclude each other" in refused(
        here("intruders", lora_folder, "--base", base, "--no-cache", "--cache", tmp_path)
    )
    assert "is a cosine" in refused(here("intruders", lora_folder, "--base", base, "--epsilon", 2, "--no-cache"))
    assert "not a list of numbers" in refused(
        here("intruders", lora_folder, "--base", base, "--intervene", "--lambdas", "a,b")
    )


def test_a_language_models_intruders_are_scaled_beside_the_controls(tmp_path, tiny_llama, plain_text):
    values = lm_values(tiny_llama, plain_text)
    values["optim"]["learning_rate"] = 0.5  # so that there are intruders
    run.train(parse(values), tmp_path / "run")
    other = tmp_path / "other.txt"
    other.write_text("\n".join(plain_text.read_text().splitlines()[::-1]))
    done = here(
        "intruders", tmp_path / "run", "--intervene", "--retain", other, "--lambdas", "0,0.5,1", "-k", 3, "--epsilon",
        0.9, "--json", tmp_path / "i.json", "--html", tmp_path / "i.html", "--no-cache", "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Scores with the intruders scaled" in done.stdout
    made = valid("intruders", (tmp_path / "i.json").read_text())["intervention"]
    assert made["modules"]
    assert {(p["arm"], p["lambda"]) for p in made["points"]} == {
        (arm, f) for arm in ("intruder", "neighbour", "shrink", "step", "random") for f in (0.0, 0.5)
    }
    assert all(set(p) == {"arm", "lambda", "loss", "accuracy", "retained_loss", "norm"} for p in made["points"])
    assert made["base"] != made["trained"]
    assert "Loss against λ" in (tmp_path / "i.html").read_text()
    assert made["texts"]["other texts"] == 60  # all of a file


def test_analyze_sets_the_change_against_the_base(base, lora_folder, tmp_path):
    done = here("analyze", lora_folder, "--base", base, "--json", tmp_path / "a.json", "--cache", tmp_path / "svd",
                     "--csv", tmp_path / "a.csv")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "W in ΔW's directions" in done.stdout
    found = valid("analyze", (tmp_path / "a.json").read_text())
    assert found["against_base"]["summary"]["modules"] == 4
    module = found["modules"][0]["against_base"]
    assert module["relative_norm"] > 0  # as before, and more
    assert module["amplification_random"] > 0
    assert module["left"]["r"]["chance"] == pytest.approx(4 / 16)
    assert module["right"]["tenth"]["chance"] == pytest.approx(4 / 24)
    assert float(next(csv.DictReader((tmp_path / "a.csv").open()))["against_base.ratio"]) == module["ratio"]
    assert len(list((tmp_path / "svd").iterdir())) == 4
    assert "against_base" not in json.loads(here("analyze", lora_folder, "--json", "-").stdout)
