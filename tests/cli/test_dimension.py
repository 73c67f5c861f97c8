"""`lorascope dimension` as a process, on tiny runs that were really trained: numbers, files, refusals, the search."""

import csv
import json
import shutil

import pytest

from lorascope.errors import LorascopeError
from lorascope.training import run
from lorascope.training.config import override, parse
from tests.cli.command import here, lorascope, refused, valid
from tests.training.tiny import classifier_values, sentences

ENV = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def runs(tiny_bert, labelled, tmp_path_factory):
    """Two full runs, LoRA at two ranks, one random subspace, VeRA, and a run that diverged."""
    import torch

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    held_out = tmp_path_factory.mktemp("held_out") / "rows.jsonl"
    rows = [{"text": text, "label": "yes" if "the" in text.split() else "no"} for text in sentences(40, seed=9)]
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = override(
        classifier_values(tiny_bert, labelled),
        [f"data.eval_path={held_out}", "training.max_steps=12", "training.measure_cost=false", "model.dropout=0"],
    )

    def train(name, method, rate, seed=0):
        training = {**values["training"], "seed": seed}
        config = parse({**values, "method": method, "optim": {"learning_rate": rate}, "training": training})
        run.train(config, folder / name)

    lora = {"name": "lora", "targets": "all-linear"}
    train("full-0", {"name": "full", "embeddings": False}, 1e-2)
    train("full-1", {"name": "full", "embeddings": False}, 1e-2, 1)
    train("sweep/rank=1", {**lora, "rank": 1, "alpha": 2}, 2e-2)
    train("sweep/rank=4", {**lora, "rank": 4, "alpha": 8}, 2e-2)
    train("did", {"name": "random_subspace", "d": 50, "embeddings": False}, 5e-2)
    train("vera", {"name": "vera", "targets": "all-linear", "rank": 8}, 2e-2)
    with pytest.raises(LorascopeError):
        train("gone", {**lora, "rank": 2, "alpha": 4}, 1e30)
    return folder


def test_numbers_files_and_streams(runs, tmp_path):
    out = [tmp_path / name for name in ("d.json", "d.csv", "d.html")]
    done = lorascope(
        "dimension", runs, "--json", out[0], "--csv", out[1], "--html", out[2], "--draws", 2, "--device", "cpu", env=ENV
    )
    assert done.returncode == 0, done.stderr
    assert "Intrinsic dimension, by its meanings" in done.stdout
    assert done.stderr.split()[1::2] == list(map(str, out))
    found = valid("dimension", out[0].read_text())
    assert found["schema"] == 2
    assert [each["run"] for each in found["full"]] == ["full-0", "full-1"]
    assert [each["run"] for each in found["diverged"]] == ["gone"]
    families = {group["label"]: group for group in found["families"]}
    assert set(families) == {"LoRA", "VeRA", "DID"}
    assert [level["size"] for level in families["LoRA"]["levels"]] == [1, 4]
    # 2 layers of 4 matrices 16 × 16 and two of 16 × 32, and the pooler's, each with r (m + n) numbers
    matrices = found["full"][0]["matrices"]
    adapted = {record["name"]: record["shape"] for record in found["adapters"] if record["run"] == "rank=4"}
    assert adapted.keys() <= matrices.keys()
    assert families["LoRA"]["levels"][1]["parameters"] == sum(4 * sum(shape) for shape in adapted.values())
    assert families["DID"]["levels"][0]["parameters"] == 50
    top = found["full"][0]["curves"][0]["points"]
    assert top[0]["k"] == 0
    assert top[0]["loss"] == found["full"][0]["start_loss"]
    assert top[-1]["recovered"] == 1
    summary = json.loads((runs / "full-0" / "summary.json").read_text())
    # float32 weights: U S Vᵀ is ΔW up to 1e-7 of it
    assert top[-1]["loss"] == pytest.approx(summary["held_out"]["loss"], rel=1e-5)
    own = {each["run"]: each["loss"] for each in found["runs"]}
    for name, folder in (("rank=4", "sweep/rank=4"), ("did", "did"), ("vera", "vera")):
        theirs = json.loads((runs / folder / "summary.json").read_text())["held_out"]["loss"]
        assert own[name] == pytest.approx(theirs, rel=1e-5)
    kinds = {row["kind"] for row in csv.DictReader(out[1].open())}
    assert kinds == {"full ΔW", "adapter ΔW", "run", "diverged", "curve top", "curve threshold", "curve bottom",
                     "curve random", "curve haar", "curve lora"}  # fmt: skip
    assert "<svg" in out[2].read_text()


def test_the_search_trains_and_goes_on(runs, tmp_path):
    folder = tmp_path / "search"
    asked = ("dimension", runs / "full-0", "--search", folder, "--said-scaling", "layer", "--start", 40,
             "--tolerance", 40, "--learning-rates", "5e-2", "--draws", 1, "--max-samples", 20,
             "--json", "-")  # fmt: skip
    first = here(*asked, env=ENV)
    assert first.returncode == 0, first.stderr
    found = valid("dimension", first.stdout)  # and nothing else is on stdout
    assert found["texts"]["count"] == 20
    assert found["search"]["trained"] == len(list(folder.glob("said=layer,d=*"))) > 0
    assert [group["label"] for group in found["families"]] == ["SAID by layer"]
    assert [level["size"] for level in found["families"][0]["levels"]] == [t["d"] for t in found["search"]["tried"]]
    (tmp_path / "x").mkdir()
    twice = tmp_path / "x" / ".." / "search"  # named as runs, too, and spelled another way
    again = json.loads(here(*asked, twice, env=ENV).stdout)
    assert (again["search"]["trained"], again["search"]["found"]) == (0, found["search"]["trained"])
    assert again["families"] == found["families"]


def test_refusals(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is not a run directory" in refused(here("dimension", tmp_path / "empty", env=ENV))
    assert "no run is a full fine-tuning" in refused(here("dimension", runs / "did", env=ENV))
    assert "--said-scaling is unknown" in refused(here("dimension", runs / "full-0", "--said", "x", env=ENV))
    assert "--baseline is unknown" in refused(here("dimension", runs / "full-0", "--baseline", "x", env=ENV))
    other = tmp_path / "other"
    shutil.copytree(runs / "did", other)
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("max_length: 16", "max_length: 12"))
    assert "do not share data.max_length" in refused(here("dimension", runs / "full-0", other, env=ENV))
    (other / "summary.json").unlink()
    assert "has not ended" in refused(here("dimension", runs / "full-0", other, env=ENV))


@pytest.mark.slow
def test_minilm_on_wordnet(tmp_path):
    """Real weights and data: the functional rank is far below the spectral one, and the controls fail."""
    values = {
        "model": {"name": "minilm", "head": "mean-pool", "dropout": 0.0},
        "data": {"path": "wordnet-classes", "max_length": 32, "max_train_samples": 1600, "max_eval_samples": 200},
        "training": {"max_steps": 50, "per_device_train_batch_size": 32, "measure_cost": False, "device": "cpu"},
    }
    for name, method, rate in (
        ("full", {"name": "full", "embeddings": False}, 5e-4),
        ("lora", {"name": "lora", "targets": "all-linear", "rank": 4, "alpha": 8}, 2e-3),
    ):
        run.train(parse({**values, "method": method, "optim": {"learning_rate": rate}}), tmp_path / name)
    done = here("dimension", tmp_path, "--json", "-", "--draws", 1, "--modules", "encoder", env=ENV)
    found = valid("dimension", done.stdout)
    (k90,) = found["summary"]["functional"]["k90"]
    assert k90 < found["summary"]["spectral"]["energy_rank_0.9"]
    curves = {curve["kind"]: {p["k"]: p["recovered"] for p in curve["points"]} for curve in found["full"][0]["curves"]}
    assert curves["bottom"][k90] < 0.2
    assert curves["random"][k90] < 0.9
    assert curves["haar"][k90] < 0.9
    assert found["families"][0]["levels"][0]["gain"] > 0.5
