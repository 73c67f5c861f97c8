"""Several adapters in one file: one is chosen by its name, the others are listed."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

import lorascope as ls
from lorascope.errors import InputError
from lorascope.updates.base import dense
from lorascope.weights.io import read
from tests.cli.command import here
from tests.weights.example import double, normal

PREFIX = "base_model.model."


@pytest.fixture
def two(tmp_path):
    """A file with the adapters default and other, and the factors by name."""
    rng = np.random.default_rng(0)
    factors = {name: (normal(rng, 3, 10), normal(rng, 6, 3)) for name in ("default", "other")}
    tensors = {f"{PREFIX}h.0.q.lora_A.{name}.weight": a for name, (a, _) in factors.items()}
    tensors |= {f"{PREFIX}h.0.q.lora_B.{name}.weight": b for name, (_, b) in factors.items()}
    tensors |= {f"{PREFIX}head.modules_to_save.{name}.weight": normal(rng, 2, 6) for name in factors}
    save_file(tensors, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors", factors, tensors


@pytest.mark.parametrize("name", ["default", "other"])
def test_the_named_one_is_read(name, two):
    path, factors, tensors = two
    adapter = read(path, adapter_name=name)
    a, b = factors[name]
    np.testing.assert_allclose(dense(adapter.updates["h.0.q"].delta()), double(b) @ double(a), rtol=0, atol=1e-13)
    other = "other" if name == "default" else "default"
    assert {item.name for item in adapter.skipped} == {key for key in tensors if f".{other}." in key}
    np.testing.assert_array_equal(
        adapter.saved["head.weight"].read(), tensors[f"{PREFIX}head.modules_to_save.{name}.weight"]
    )


def test_without_a_name_the_names_are_said(two):
    with pytest.raises(InputError, match=r"default, other.*--adapter-name"):
        read(two[0])


def test_a_name_that_is_not_there(two, tmp_path):
    with pytest.raises(InputError, match=r"no adapter named 'third'.*'default', 'other'"):
        read(two[0], adapter_name="third")
    save_file({f"{PREFIX}h.q.lora_A.weight": np.ones((2, 3), np.float32)}, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="keys carry no name"):
        read(tmp_path / "b.safetensors", adapter_name="other")


def test_state_dicts_and_the_command_line(two):
    path, factors, tensors = two
    adapter = ls.read(tensors, adapter_name="other", config={"peft_type": "LORA", "r": 3, "lora_alpha": 3})
    a, b = factors["other"]
    np.testing.assert_allclose(dense(adapter.updates["h.0.q"].delta()), double(b) @ double(a), rtol=0, atol=1e-13)
    done = here("analyze", path, "--adapter-name", "other")
    assert done.returncode == 0, done.stderr
    assert "1 module" in done.stdout


def test_a_folder_of_several_adapters(two, tmp_path):
    """As `save_pretrained` leaves them: "default" at the top, each other one in a folder of its name."""
    _, factors, _ = two
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 3, "base_model_name_or_path": "nowhere"}
    for name, folder in (("default", tmp_path / "both"), ("other", tmp_path / "both" / "other")):
        folder.mkdir()
        a, b = factors[name]
        save_file(
            {f"{PREFIX}h.0.q.lora_A.weight": a, f"{PREFIX}h.0.q.lora_B.weight": b}, folder / "adapter_model.safetensors"
        )
        (folder / "adapter_config.json").write_text(json.dumps(config))
    for name in ("default", "other"):
        a, b = factors[name]
        update = read(tmp_path / "both", adapter_name=name).updates["h.0.q"]
        np.testing.assert_allclose(dense(update.delta()), double(b) @ double(a), rtol=0, atol=1e-13)
    with pytest.raises(InputError, match="no adapter named 'third'"):
        read(tmp_path / "both", adapter_name="third")
    (tmp_path / "both" / "adapter_model.safetensors").unlink()
    (tmp_path / "both" / "other").rename(tmp_path / "both" / "first")
    shutil.copytree(tmp_path / "both" / "first", tmp_path / "both" / "second")
    with pytest.raises(InputError, match=r"choose one with --adapter-name: 'first', 'second'"):
        read(tmp_path / "both")


def record(folder, *arguments):
    done = here(*arguments, "--json", folder / "out.json")
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out.json").read_text())


def test_two_adapters_of_one_file_are_compared(two, tmp_path):
    path, factors, _ = two
    pair = record(tmp_path, "compare", path, path, "--adapter-name", "other", "--adapter-name", "default")
    assert [one["label"] for one in pair["adapters"]] == ["a.safetensors (other)", "a.safetensors (default)"]
    first, second = (double(factors[each][1]) @ double(factors[each][0]) for each in ("other", "default"))
    (module,) = pair["pairs"][0]["modules"]
    cosine = np.vdot(first, second) / np.linalg.norm(first) / np.linalg.norm(second)
    assert module["cosine"] == pytest.approx(cosine)
    done = here("compare", path, path, *("--adapter-name", "other") * 3)
    assert "3 names, 2 adapters" in done.stderr


@pytest.mark.slow
def test_the_commands_with_a_base_take_the_name(two, tmp_path):
    path, factors, _ = two
    a, b = factors["other"]
    weight = normal(np.random.default_rng(1), 6, 10)
    base, tuned = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    save_file({"h.0.q.weight": weight}, base)
    save_file({"h.0.q.weight": weight + b @ a}, tuned)
    name = ("--adapter-name", "other")
    (row,) = record(tmp_path, "delta", base, tuned, "--adapter", path, *name)["matrices"]
    (captured,) = row["captured"].values()
    assert captured["residual"] < 1e-12
    (row,) = record(tmp_path, "intruders", path, "--base", base, *name, "--no-cache")["modules"]
    assert row["delta_norm"] == pytest.approx(np.linalg.norm(double(b) @ double(a)))
