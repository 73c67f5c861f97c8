"""`lorascope activations` as a process: its numbers, its streams, its files, its refusals."""

import csv
import json

import pytest

from lorascope.training import run
from lorascope.training.config import parse, resolved
from tests.cli.command import here, lorascope, refused, valid

MODULE = {
    "run", "name", "type", "depth", "shape", "uses", "tokens", "share", "share_of_output", "cosine", "chance_share",
    "chance_cosine", "weight_ratio", "update_gain", "base_gain",
}  # fmt: skip
CKA = {"a", "b", "layer", "value", "low", "high", "chance_sd", "biased", "biased_chance", "n"}


@pytest.fixture
def runs(classifier, tmp_path):
    """A LoRA run and a full fine-tuning run of one base and data."""
    base = resolved(classifier("training.max_steps=3", "optim.learning_rate=2e-2"))
    for name, method in (("lora", {"targets": "all-linear", "rank": 2}), ("full", {})):
        run.train(parse({**base, "method": {"name": name, **method}}), tmp_path / name)
    return tmp_path


def test_numbers_files_and_streams(runs, tmp_path, page_in_browser):
    out = [tmp_path / name for name in ("a.json", "a.csv", "a.html")]
    done = lorascope(
        "activations", runs / "lora", runs / "full", "--max-samples", 8, "--device", "cpu",
        "--json", out[0], "--csv", out[1], "--html", out[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "CKA of hidden states" in done.stdout
    assert sorted(done.stderr.split()[1::2]) == sorted(map(str, out))
    found = valid("activations", out[0].read_text())
    assert found["schema"] == 2
    assert all(set(module) == MODULE for module in found["modules"])
    assert all(set(one) == CKA for one in found["cka"])
    assert {module["run"] for module in found["modules"]} == {"lora", "full"}
    assert len(found["cka"]) == 3 * 3  # pairs, layers
    names = [{m["name"] for m in found["modules"] if m["run"] == label} for label in ("lora", "full")]
    assert names[0] <= names[1]  # the same layers go by the same names
    assert all(module["share"]["mean"] > 0 for module in found["modules"])
    start = next(one for one in found["cka"] if (one["a"], one["b"], one["layer"]) == ("base", "lora", 0))
    assert start["value"] == pytest.approx(1, abs=1e-6)  # LoRA left the embeddings alone
    rows = list(csv.DictReader(out[1].open()))
    assert [row["kind"] for row in rows].count("cka") == 9
    assert float(rows[0]["share.mean"]) == found["modules"][0]["share"]["mean"]
    opened = page_in_browser(out[2])
    assert opened.troubles == []
    assert opened.others_asked_for() == []
    assert opened.page.locator("svg").count() >= 2  # shares and CKA
    alone = here("activations", runs / "lora", "--pooled", "--json", "-", "--device", "cpu")
    assert alone.stderr == ""
    assert json.loads(alone.stdout)["summary"]["sample"] == "mean over a text's tokens"


def test_refusals(tmp_path):
    assert "is not the folder of a finished run" in refused(here("activations", tmp_path))
