"""`--check`, `--sarif`, `--quiet`, colour, help and completion: what scripts and CI rely on."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lorascope.analyses import rules
from lorascope.analyses.sarif import sarif
from lorascope.blocks import Finding
from tests.benchmarks.adapters import write_llama_adapter
from tests.cli.command import here, lorascope, refused


def with_alpha(source, target, alpha):
    folder = shutil.copytree(source, target)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": alpha}))
    return folder


@pytest.fixture(scope="module")
def healthy(lora_folder, tmp_path_factory):
    """The adapter with entries of a trained one's size."""
    folder = shutil.copytree(lora_folder, tmp_path_factory.mktemp("healthy") / "adapter")
    tensors = {key: 0.05 * array for key, array in load_file(folder / "adapter_model.safetensors").items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def odd_scale(healthy, tmp_path_factory):
    """The adapter with α/r = 0.075: a warning, and no error."""
    return with_alpha(healthy, tmp_path_factory.mktemp("odd") / "odd scale", 0.3)


@pytest.fixture(scope="module")
def broken(lora_folder, tmp_path_factory):
    """The adapter with a NaN in two of its modules: an error."""
    folder = shutil.copytree(lora_folder, tmp_path_factory.mktemp("broken") / "nan")
    tensors = load_file(folder / "adapter_model.safetensors")
    for key in sorted(tensors)[::4]:
        tensors[key][0, 0] = np.nan
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def test_check_fails_on_errors_or_on_warnings(broken, odd_scale, healthy):
    for folder, plain, strict in ((broken, 1, 1), (odd_scale, 0, 1), (healthy, 0, 0)):
        assert here("analyze", folder).returncode == 0
        assert here("analyze", "--check", folder).returncode == plain  # the folder is not taken for its value
        assert here("analyze", folder, "--check=warning").returncode == strict
    assert "No problems found" in here("analyze", healthy).stdout
    assert "--check=all" in refused(here("analyze", healthy, "--check=all"))


def test_the_scale_is_on_the_first_screen(lora_folder, tmp_path):
    text = here("analyze", with_alpha(lora_folder, tmp_path / "odd", 512)).stdout
    assert "r = 4   α = 512 (scale 128)" in text
    assert "! Scale α/r = 128 (α = 512, r = 4); 0.5 to 4 is usual" in text


def test_sarif_has_the_shape_of_2_1_0(broken, tmp_path):
    out = tmp_path / "a.sarif"
    done = here("analyze", broken, "--sarif", out)
    assert f"wrote {out}" in done.stderr
    log = json.loads(out.read_text())
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "lorascope"
    ids = [rule["id"] for rule in driver["rules"]]
    assert len(ids) == len(set(ids))
    for rule in driver["rules"]:
        assert rule["shortDescription"]["text"]
        assert rule["defaultConfiguration"]["level"] in ("error", "warning", "note")
    assert run["results"]
    for result in run["results"]:
        assert result["level"] in ("error", "warning", "note")
        assert result["ruleId"] == ids[result["ruleIndex"]]
        assert result["message"]["text"]
        (location,) = result["locations"]
        assert location["physicalLocation"]["artifactLocation"]["uri"] == f"file://{broken}"
    worst = run["results"][0]
    assert (worst["ruleId"], worst["level"]) == ("LS101", "error")
    assert len(worst["locations"][0]["logicalLocations"]) == 2


def test_sarif_of_odd_paths_and_unknown_rules():
    log = sarif([(["a b/ü", "/base"], [Finding("note", "text", rule="XY1")])])
    result = log["runs"][0]["results"][0]
    assert result["ruleId"] == rules.OTHER.code
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "a%20b/%C3%BC"
    (related,) = result["relatedLocations"]
    assert related["physicalLocation"]["artifactLocation"]["uri"] == "file:///base"


COMMANDS = ("analyze", "compare", "delta", "dimension", "intruders", "activations", "resize", "trajectory")


@pytest.fixture(scope="module")
def commands():
    from typer.main import get_command

    from lorascope.cli import app

    app._register()
    return get_command(app.app).commands


def test_every_command_that_analyses_has_both_options_and_no_other_command(commands):
    for name, command in commands.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert options.issuperset({"--check", "--sarif"}) == (name in COMMANDS), name


@pytest.fixture(scope="module")
def unchanged(healthy, tmp_path_factory):
    """The adapter with B = 0."""
    folder = shutil.copytree(healthy, tmp_path_factory.mktemp("zero") / "zero")
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors = {key: array * ("lora_A" in key) for key, array in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def base(healthy, tmp_path_factory):
    """A model that has the weights which the adapter changes."""
    folder = tmp_path_factory.mktemp("model") / "base"
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = [f"model.layers.{layer}.self_attn.{name}.weight" for layer in range(2) for name in ("q_proj", "v_proj")]
    save_file({name: rng.standard_normal((16, 24)).astype(np.float32) for name in names}, folder / "model.safetensors")
    return folder


def test_the_other_analyses_fail_on_what_they_find(healthy, odd_scale, unchanged, base, tmp_path):
    """Each on something that it calls an error or a warning, and on a plain input."""
    out = tmp_path / "found.sarif"
    for arguments, check, rule, code in (
        (("compare", healthy, odd_scale), "--check=warning", "LS302", 1),
        (("compare", healthy, odd_scale), "--check", "LS302", 0),
        (("delta", base, base), "--check", "LS402", 1),
        (("intruders", unchanged, "--base", base, "--no-cache"), "--check", "LS102", 1),
        (("intruders", healthy, "--base", base, "--no-cache", "--k", 2), "--check", "LS700", 0),
        (("resize", unchanged, "--rank", 2), "--check", "LS102", 1),
        (("resize", healthy, "--rank", 2), "--check", "LS500", 0),
        (("trajectory", unchanged, unchanged), "--check", "LS102", 1),
        (("trajectory", healthy, healthy), "--check", "LS951", 0),
    ):
        done = here(*arguments, check, "--sarif", out)
        assert done.returncode == code, (arguments, done.stderr, done.stdout)
        results = json.loads(out.read_text())["runs"][0]["results"]
        assert rule in [result["ruleId"] for result in results], arguments


@pytest.mark.skipif("SARIF_SCHEMA" not in os.environ, reason="SARIF_SCHEMA does not name sarif-schema-2.1.0.json")
def test_sarif_is_what_the_schema_of_oasis_says(broken, healthy, odd_scale, tmp_path):
    import jsonschema

    schema = json.loads(Path(os.environ["SARIF_SCHEMA"]).read_text())
    check = jsonschema.validators.validator_for(schema)(schema)
    for arguments in (("analyze", broken, odd_scale), ("compare", healthy, odd_scale), ("resize", healthy)):
        here(*arguments, "--sarif", tmp_path / "a.sarif")
        check.validate(json.loads((tmp_path / "a.sarif").read_text()))


def test_quiet_prints_nothing_but_json_and_errors(lora_folder, tmp_path):
    out = tmp_path / "a.json"
    done = here("analyze", lora_folder, "--quiet", "--json", out)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads(out.read_text())["analysis"] == "analyze"
    assert json.loads(here("analyze", lora_folder, "-q", "--json", "-").stdout)["analysis"] == "analyze"
    assert refused(here("analyze", tmp_path / "no", "--quiet")).startswith("error: no such file or folder")
    assert "modules" in here("analyze", lora_folder).stdout  # the next command speaks again


@pytest.mark.parametrize(
    ("env", "coloured"), [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)]
)
def test_colour_where_it_is_asked_for(lora_folder, env, coloured):
    clean = {"NO_COLOR": "", "FORCE_COLOR": ""}
    assert ("\x1b[" in here("analyze", lora_folder, env=clean | env).stdout) is coloured


def test_help_is_in_groups_with_whole_summaries():
    shown = here("--help", env={"COLUMNS": "80"}).stdout
    places = [shown.index(f"{title}:") for title in ("Inspect", "Compare", "Change", "Train", "Studies")]
    assert places == sorted(places)
    assert "..." not in shown[places[0] :]
    assert "More:" not in shown  # every command has its group


def test_usage_errors_have_a_hint(lora_folder):
    done = here("analyze", lora_folder, "--nope")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith("error: No such option: --nope")
    assert done.stderr.splitlines()[1] == "hint: lorascope analyze --help lists what it takes."


def test_completion_of_the_shell():
    done = lorascope(env={"_LORASCOPE_COMPLETE": "complete_bash", "COMP_WORDS": "lorascope an", "COMP_CWORD": "1"})
    assert done.stdout.split() == ["analyze"]


def test_the_first_screen_of_a_large_adapter_has_22_lines_of_80_columns(tmp_path):
    """32 layers of seven projections, as an 8B model has them, at a hundredth of the width."""
    folder = write_llama_adapter(tmp_path / "llama8b_r16", rank=16, layers=32, hidden=64, kv=32, inner=96)
    done = here("analyze", folder.name, cwd=tmp_path, env={"COLUMNS": "80", "NO_COLOR": "", "FORCE_COLOR": ""})
    lines = done.stdout.splitlines()
    assert len(lines) <= 22
    assert max(map(len, lines)) <= 80
    assert lines[0].endswith("llama8b_r16   LoRA (PEFT) for llama")
    assert lines[1].startswith("r = 16   α = 32 (scale 2)   224 modules   ")
    types = [line.split()[0] for line in lines if "_proj" in line and "█" in line]
    assert types == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert "0 … 31" in done.stdout
    assert any("--base MODEL" in line for line in lines)
