"""`lorascope analyze` as a process: its numbers, its streams, its exit codes, its files."""

import csv
import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lorascope as package
from tests.cli.command import here, lorascope, refused

MODULE_KEYS = {
    "name", "kind", "type", "depth", "shape", "rank", "scale", "dtype", "transposed", "singular_values",
    "frobenius_norm", "spectral_norm", "nuclear_norm", "stable_rank", "effective_rank", "energy_effective_rank",
    "participation_ratio", "energy_rank_0.9", "energy_rank_0.95", "energy_rank_0.99", "rank_utilisation", "null",
    "rank_utilisation_of_null", "negligible_share",
    "energy_share", "b_zero", "a_at_initialisation", "non_finite", "non_finite_in", "against_base", "notes",
}  # fmt: skip


def test_json_on_stdout_has_the_schema_and_the_dense_numbers(lora_folder):
    done = lorascope("analyze", lora_folder, "--json", "-")
    assert done.returncode == 0
    assert done.stderr == ""
    found = json.loads(done.stdout, parse_constant=pytest.fail)  # NaN and Infinity are not JSON
    weights = lora_folder / "adapter_model.safetensors"
    assert found["schema"] == 2
    assert found["lorascope"] == package.__version__
    assert found["source"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (found["source"]["format"], found["source"]["method"]) == ("peft", "LoRA")
    assert found["skipped"] == []
    assert {f["severity"] for f in found["findings"]} <= {"error", "warning", "note"}
    tensors = load_file(weights)
    assert len(found["modules"]) == 4
    for module in found["modules"]:
        assert set(module) == MODULE_KEYS
        key = f"base_model.model.{module['name']}"
        a, b = (tensors[f"{key}.lora_{role}.weight"].astype(float) for role in "AB")
        sigma = np.linalg.svd(2 * b @ a, compute_uv=False)[:4]  # alpha / r = 2
        np.testing.assert_allclose(module["singular_values"], sigma, rtol=1e-12)
        assert module["frobenius_norm"] == pytest.approx(np.linalg.norm(sigma), rel=1e-12)
        assert module["shape"] == [16, 24]
        assert set(module["null"]) >= {"stable_rank", "energy_rank_0.9", "energy_rank_0.95", "energy_rank_0.99"}


def test_a_file_and_its_folder_give_the_same_modules(lora_folder):
    both = [
        json.loads(here("analyze", path, "--json", "-").stdout)
        for path in (lora_folder, lora_folder / "adapter_model.safetensors")
    ]
    assert both[0]["modules"] == both[1]["modules"]
    assert both[0]["source"]["path"] != both[1]["source"]["path"]


def test_terminal_fits_a_screen_and_files_are_named(lora_folder, tmp_path):
    outputs = [tmp_path / name for name in ("a.html", "a.json", "a.csv")]
    done = here("analyze", lora_folder, "--html", outputs[0], "--json", outputs[1], "--csv", outputs[2])
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) <= 24  # 22, and two where the long name of the temporary folder wraps
    assert done.stdout.index("r = 4   α = 8 (scale 2)") < done.stdout.index("energy") < done.stdout.index("largest  ")
    for path in outputs:
        assert f"wrote {path}" in done.stderr
    rows = list(csv.DictReader(outputs[2].open()))
    modules = json.loads(outputs[1].read_text())["modules"]
    assert [row["name"] for row in rows] == [m["name"] for m in modules]
    assert [float(row["stable_rank"]) for row in rows] == [m["stable_rank"] for m in modules]
    assert "model.layers.1.self_attn.v_proj" in outputs[0].read_text()


def test_several_adapters_at_once(lora_folder, tmp_path):
    second = shutil.copytree(lora_folder, tmp_path / "second")
    found = json.loads(here("analyze", lora_folder, second, "--json", "-").stdout)
    assert [a["source"]["path"] for a in found["adapters"]] == [str(lora_folder), str(second)]
    assert found["adapters"][0]["modules"] == found["adapters"][1]["modules"]
    done = here("analyze", lora_folder, second)
    assert str(lora_folder) in done.stdout
    assert str(second) in done.stdout
    assert "2 with problems, none without" in done.stdout  # entries of ΔW are of order 1


def test_several_adapters_open_with_what_is_wrong_and_a_row_each(lora_folder, tmp_path):
    good = shutil.copytree(lora_folder, tmp_path / "good")
    tensors = load_file(good / "adapter_model.safetensors")
    small = {key: tensor * np.float32(0.05) for key, tensor in tensors.items()}
    save_file(small, good / "adapter_model.safetensors", metadata={"format": "pt"})
    lines = here("analyze", good, lora_folder).stdout.splitlines()
    assert lines[:2] == ["2 adapters", "1 with problems, 1 without"]
    name = "/".join(lora_folder.parts[-2:])
    assert next(line for line in lines if line.startswith("✗")).startswith(f"✗ {name}, 1 error (")
    table = map(str.split, lines[lines.index("Comparison") : lines.index("", lines.index("Comparison"))])
    counts = {row[0].rpartition("/")[2]: row[1:3] for row in table if row[1:2] in (["0"], ["1"])}
    assert counts == {"good": ["0", "0"], lora_folder.name: ["1", "0"]}
    assert here("analyze", good, good).stdout.splitlines()[1] == "No problems found in any of them"


def test_the_size_relative_to_the_base_is_in_the_terminal(lora_folder, tmp_path):
    names = [f"model.layers.{layer}.self_attn.{name}" for layer in range(2) for name in ("q_proj", "v_proj")]
    ones = np.full((16, 24), 1e3, np.float32)  # of norm 1e3 √384
    save_file({f"{name}.weight": ones for name in names}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    table = here("analyze", lora_folder, "--base", tmp_path).stdout.split("ΔW against W")[0]
    tensors = load_file(lora_folder / "adapter_model.safetensors")
    a, b = ([tensors[f"base_model.model.{name}.lora_{role}.weight"] for name in names[::2]] for role in "AB")
    norms = [np.linalg.norm(2 * left @ right) for left, right in zip(b, a, strict=True)]  # alpha / r = 2
    expected = 100 * np.median(norms) / (1e3 * 384**0.5)
    row = next(line for line in table.splitlines() if line.startswith("q_proj"))
    assert "‖ΔW‖/‖W‖" in table
    assert f"{expected:.2g} %" in row


def test_selection_order_and_length_of_the_list(lora_folder):
    done = here("analyze", lora_folder, "--modules", "v_proj$", "--sort", "stable_rank", "--top", "1")
    assert "q_proj" not in done.stdout
    assert "by stable rank" in done.stdout
    assert "stable_rank" in refused(here("analyze", lora_folder, "--sort", "size"))
    assert "matches none" in refused(here("analyze", lora_folder, "--modules", "k_proj"))


def test_help_names_every_metric_to_sort_by():
    from lorascope.analyses.spectrum import METRICS

    listed = " ".join(here("analyze", "--help").stdout.split())
    assert f"Metrics to sort by: {', '.join(metric.key for metric in METRICS)}." in listed


def test_unfinished_output_leaves_nothing(lora_folder, tmp_path):
    missing = tmp_path / "no" / "such" / "a.html"
    done = here("analyze", lora_folder, "--html", missing)
    assert done.returncode == 2
    assert "a folder that is not there" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(lora_folder, tmp_path):
    """A limit of 100 bytes on any file stands for the disk that is full: the write fails in the same place."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100));"
        "from lorascope.cli.app import main; sys.argv = ['lorascope', *sys.argv[1:]]; main()"
    )
    out = tmp_path / "a.json"
    command = [sys.executable, "-c", code, "analyze", str(lora_folder), "--json", str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"PATH": "/usr/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    )
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def copy_with(folder, target, edit):
    """A copy of the adapter whose tensors `edit` has changed in place."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    return target


def test_nan_is_null_in_json_and_an_error_in_words(lora_folder, tmp_path):
    def spoil(tensors):
        next(iter(tensors.values()))[0, 0] = np.nan

    folder = copy_with(lora_folder, tmp_path / "nan", spoil)
    found = json.loads(here("analyze", folder, "--json", "-").stdout, parse_constant=pytest.fail)
    broken = [m for m in found["modules"] if m["non_finite"]]
    assert len(broken) == 1
    assert broken[0]["singular_values"] is None
    assert found["findings"][0]["severity"] == "error"
    assert found["findings"][0]["module"] == broken[0]["name"]


HOSTILE = "layers.0.<script>alert(1)</script>\x1b[31m"


def test_hostile_keys_neither_script_nor_colour(lora_folder, tmp_path):
    def rename(tensors):
        for role in "AB":
            key = f"base_model.model.model.layers.0.self_attn.q_proj.lora_{role}.weight"
            tensors[f"base_model.model.{HOSTILE}.q_proj.lora_{role}.weight"] = tensors.pop(key)

    folder = copy_with(lora_folder, tmp_path / "hostile", rename)
    done = here("analyze", folder, "--html", tmp_path / "a.html")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    page = (tmp_path / "a.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


BAD = {
    "missing": lambda f: f.unlink(),
    "empty": lambda f: f.write_bytes(b""),
    "truncated": lambda f: f.write_bytes(f.read_bytes()[:-7]),
    "header cut": lambda f: f.write_bytes(f.read_bytes()[:40]),
    "header of a lying size": lambda f: f.write_bytes((1 << 60).to_bytes(8, "little") + f.read_bytes()[8:]),
    "text": lambda f: f.write_text("<html>not found</html>"),
}


@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD)
def test_damaged_files_get_one_sentence(spoil, lora_folder, tmp_path):
    folder = shutil.copytree(lora_folder, tmp_path / "bad")
    spoil(folder / "adapter_model.safetensors")
    sentence = refused(here("analyze", folder, "--html", tmp_path / "a.html"))
    assert "bad" in sentence  # it names the file or folder
    assert not (tmp_path / "a.html").exists()


def test_usage_errors_exit_with_2(tmp_path):
    assert "no such file or folder" in refused(here("analyze", tmp_path / "nothing"))
    assert "no adapter" in refused(here("analyze", tmp_path))
    assert here("analyze").returncode == 2
    assert here("analyze", tmp_path, "--no-such-option").returncode == 2


def test_a_full_model_is_not_an_adapter(tmp_path):
    save_file({"model.layers.0.q.weight": np.ones((4, 4), np.float32)}, tmp_path / "model.safetensors")
    assert "lorascope delta" in refused(here("analyze", tmp_path))
    assert "lorascope delta" in refused(here("analyze", tmp_path / "model.safetensors"))


def test_the_page_in_a_real_browser(lora_folder, tmp_path, page_in_browser):
    """Sorts the table, switches the heatmap; no console error, no request but the page itself."""
    file = tmp_path / "a.html"
    assert here("analyze", lora_folder, "--html", file).returncode == 0
    opened = page_in_browser(file)
    names = opened.page.locator("figure[data-interactive] tbody th")
    before = names.all_text_contents()
    assert len(before) == 4
    sizes = json.loads(here("analyze", lora_folder, "--json", "-").stdout)["modules"]
    ascending = [m["name"] for m in sorted(sizes, key=lambda m: m["frobenius_norm"])]
    opened.page.locator("figure[data-interactive] thead [role=button]", has_text="‖ΔW‖F").click()
    assert names.all_text_contents() in (ascending, ascending[::-1])
    shown = opened.page.locator(".heatmap .layer:visible .measure")
    first = shown.all_text_contents()
    opened.page.locator(".switch").get_by_text("stable rank", exact=True).click()
    assert shown.all_text_contents() != first
    assert opened.troubles == []
    assert opened.others_asked_for() == []
