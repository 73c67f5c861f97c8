"""`lorascope resize` as a process: files that read back, streams, the score in a run, refusals."""

import csv
import json
import shutil

from lorascope.weights import io
from tests.cli.command import here, lorascope, refused, valid

MODULE = {
    "name", "type", "depth", "shape", "rank_before", "rank", "norm", "error", "error_null", "rounding", "parameters",
    "error_total",
}  # fmt: skip


def test_numbers_files_and_streams(lora_folder, tmp_path):
    out = [tmp_path / name for name in ("r.json", "r.csv", "r.html")]
    done = lorascope(
        "resize", lora_folder, "--budget-rank", 2, "--output", tmp_path / "small", "--dtype", "bfloat16",
        "--json", out[0], "--csv", out[1], "--html", out[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "budget-rank 2: ranks" in done.stdout
    assert sorted(done.stderr.split()[1::2]) == sorted(map(str, [*out, tmp_path / "small"]))
    found = valid("resize", out[0].read_text())
    assert found["schema"] == 2
    (plan,) = found["plans"]
    assert all(set(module) == MODULE for module in plan["modules"])
    assert sum(module["rank"] for module in plan["modules"]) == 8
    small = io.read(tmp_path / "small")
    assert {name: update.rank for name, update in small.updates.items()} == {
        module["name"]: module["rank"] for module in plan["modules"]
    }
    assert {stored.dtype for update in small.updates.values() for stored in update.roles.values()} == {"BF16"}
    assert [float(row["error"]) for row in csv.DictReader(out[1].open())] == [m["error"] for m in plan["modules"]]
    assert "<svg" in out[2].read_text() or "heatmap" in out[2].read_text()


def test_without_a_rule_it_compares_plans_and_writes_nothing(lora_folder, tmp_path):
    done = here("resize", lora_folder, cwd=tmp_path)
    assert done.stderr == ""
    assert not list(tmp_path.iterdir())
    assert [line.split()[:2] for line in done.stdout.splitlines() if line.startswith(("rank ", "energy "))] == [
        *(["rank", r] for r in "124"),
        *(["energy", p] for p in ("0.5", "0.9", "0.95", "0.99")),
    ]


def test_what_train_left_with_an_adapter_goes_along(lora_folder, tmp_path):
    """Without it `merge` knows neither the head nor the classes' names."""
    trained = tmp_path / "trained"
    shutil.copytree(lora_folder, trained)
    (trained / "lorascope.json").write_text('{"labels": ["a", "b"]}')
    (trained / "README.md").write_text("# lora adapter")
    (trained / "notes.txt").write_text("mine")
    here("resize", trained, "--rank", 2, "--output", tmp_path / "small")
    assert (tmp_path / "small" / "lorascope.json").read_text() == '{"labels": ["a", "b"]}'
    assert (tmp_path / "small" / "README.md").read_text() == "# lora adapter"
    assert not (tmp_path / "small" / "notes.txt").exists()


def test_json_on_stdout_is_json_alone(lora_folder):
    done = here("resize", lora_folder, "--rank", 1, "--rank", 2, "--json", "-")
    assert done.stderr == ""
    assert [plan["plan"] for plan in json.loads(done.stdout)["plans"]] == ["rank 1", "rank 2"]


def test_refusals(lora_folder, tmp_path):
    assert "exactly one rule" in refused(here("resize", lora_folder, "--output", tmp_path / "x"))
    both = here("resize", lora_folder, "--rank", 1, "--energy", 0.9, "--output", tmp_path / "x")
    assert "exactly one rule" in refused(both)
    assert "already exists" in refused(here("resize", lora_folder, "--rank", 1, "--output", lora_folder))
    assert "is not supported" in refused(here("resize", lora_folder, "--dtype", "int4"))
    assert "--by-energy" in refused(here("resize", lora_folder, "--by-energy"))
    assert "belongs to --evaluate" in refused(here("resize", lora_folder, "--max-samples", 3))
    assert not (tmp_path / "x").exists()


def test_the_page_in_a_real_browser(lora_folder, tmp_path, page_in_browser):
    file = tmp_path / "resize.html"
    assert here("resize", lora_folder, "--html", file).returncode == 0
    opened = page_in_browser(file)
    assert opened.troubles == []
    assert opened.others_asked_for() == []
    assert opened.page.locator("figure").count() >= 2  # the curve and the map by depth
