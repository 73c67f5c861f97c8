"""`lorascope compare` as a process: its streams, its files, its page."""

import csv
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.cli.command import here, lorascope, refused, valid
from tests.contracts.test_house import loaded_by


@pytest.fixture(scope="module")
def other_folder(lora_folder, tmp_path_factory):
    """A LoRA of the same A and another B, without the last module."""
    folder = shutil.copytree(lora_folder, tmp_path_factory.mktemp("pair") / "other")
    tensors = load_file(folder / "adapter_model.safetensors")
    rng = np.random.default_rng(1)
    kept = {key: value for key, value in tensors.items() if "layers.1.self_attn.v_proj" not in key}
    kept = {k: rng.standard_normal(v.shape).astype(v.dtype) if "lora_B" in k else v for k, v in kept.items()}
    save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def test_json_on_stdout_has_the_schema_and_the_dense_numbers(lora_folder, other_folder):
    done = lorascope("compare", lora_folder, other_folder, "--json", "-")
    assert done.returncode == 0
    assert done.stderr == ""
    found = valid("compare", done.stdout)
    assert found["schema"] == 2
    (item,) = found["skipped"]
    assert item["name"] == "model.layers.1.self_attn.v_proj"
    assert item["reason"].startswith("only in ")
    assert item["reason"].endswith("; missing in other")
    (pair,) = found["pairs"]
    for row in pair["modules"]:
        dense = []
        for folder in (lora_folder, other_folder):
            tensors = load_file(folder / "adapter_model.safetensors")
            a, b = (tensors[f"base_model.model.{row['name']}.lora_{role}.weight"].astype(float) for role in "AB")
            dense.append(b @ a)
        x, y = dense
        assert row["cosine"] == pytest.approx(np.sum(x * y) / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-9)
        u, v = (np.linalg.svd(one)[0][:, :4] for one in dense)
        assert row["left"]["phi"][3][3] == pytest.approx(np.linalg.norm(u.T @ v) ** 2 / 4, rel=1e-6)
        assert row["right"]["phi"][3][3] == pytest.approx(1, abs=1e-9)
    assert any("Same random initialisation" in finding["text"] for finding in found["findings"])


def test_terminal_and_files(lora_folder, other_folder, tmp_path):
    outputs = [tmp_path / name for name in ("a.html", "a.json", "a.csv")]
    done = here("compare", lora_folder, other_folder, "--html", outputs[0], "--json", outputs[1], "--csv", outputs[2])
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) <= 45
    assert done.stdout.index("Same random initialisation") < done.stdout.index("By module type")
    rows = list(csv.DictReader(outputs[2].open()))
    modules = json.loads(outputs[1].read_text())["pairs"][0]["modules"]
    assert [row["name"] for row in rows] == [m["name"] for m in modules]
    assert [float(row["left.phi_whole"]) for row in rows] == [m["left"]["phi_whole"] for m in modules]


def test_usage_errors_exit_with_2(lora_folder, tmp_path):
    assert "two adapters or more" in refused(here("compare", lora_folder))
    assert "no such file or folder" in refused(here("compare", lora_folder, tmp_path / "nothing"))
    save_file({"model.layers.0.q.weight": np.ones((4, 4), np.float32)}, tmp_path / "model.safetensors")
    assert "full model" in refused(here("compare", lora_folder, tmp_path))


def test_named_groups(lora_folder, other_folder):
    done = here("compare", lora_folder, other_folder, lora_folder, "--group", "lora|other", "--json", "-")
    assert done.returncode == 0, done.stderr
    found = valid("compare", done.stdout)["groups_by_label"]
    assert sorted(map(len, found["groups"].values())) == [1, 2]
    assert set(found["measures"]) == {"cosine", "left_effect", "right_effect"}
    assert "matches nothing in" in refused(here("compare", lora_folder, other_folder, "--group", "no such part"))
    assert "not a regular expression" in refused(here("compare", lora_folder, other_folder, "--group", "("))


def test_an_adapter_against_a_full_fine_tune(lora_folder, tmp_path):
    """The full model is the base with the adapter merged: one update, told from its two forms."""
    tensors = load_file(lora_folder / "adapter_model.safetensors")
    rng = np.random.default_rng(2)
    base, tuned = {}, {}
    for key in (key for key in tensors if "lora_A" in key):
        name = key.removeprefix("base_model.model.").replace(".lora_A", "")
        base[name] = rng.standard_normal((16, 24)).astype(np.float32)
        tuned[name] = base[name] + 2 * tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
    for folder, weights in (("base", base), ("tuned", tuned)):
        (tmp_path / folder).mkdir()
        save_file(weights, tmp_path / folder / "model.safetensors")
    arguments = ("compare", lora_folder, tmp_path / "tuned", "--base", tmp_path / "base", "--json", "-")
    (pair,) = json.loads(here(*arguments).stdout)["pairs"]
    assert len(pair["modules"]) == 4
    for row in pair["modules"]:
        assert row["cosine"] == pytest.approx(1, abs=1e-5)  # float32 of the merged weights
        assert row["kind"] == ["low_rank", "tuned"]
        assert row["left"]["energy_of_b_in_a"]["value"] == pytest.approx(1, abs=1e-5)


def test_no_torch(lora_folder, other_folder):
    loaded = loaded_by("compare", str(lora_folder), str(other_folder), "--json", "-")
    assert not loaded & {"torch", "transformers", "pandas", "matplotlib"}


def test_the_page_in_a_real_browser(lora_folder, other_folder, tmp_path, page_in_browser):
    """φ grids of both sides and of A, the chance levels named on their scales; nothing complains."""
    file = tmp_path / "a.html"
    assert here("compare", lora_folder, other_folder, "--html", file).returncode == 0
    opened = page_in_browser(file)
    grids = opened.page.locator("figure.heatmap", has_text="φ(i, j)")
    assert grids.count() == 3
    shown = grids.nth(0).locator(".layer:visible")
    assert shown.locator(".marks").text_content().strip() == "chance 0"  # z, first
    grids.nth(0).locator(".switch label").nth(1).click()
    assert shown.locator(".marks").text_content().count("chance") == 2
    assert "chance φ(4,4) 0.250" in shown.locator(".marks").text_content()  # 4/16
    assert shown.locator("rect.mark").count() == 2
    assert opened.troubles == []
    assert opened.others_asked_for() == []
