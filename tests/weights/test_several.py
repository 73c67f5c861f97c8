"""Several adapters in one file: one is chosen by its name, the others are listed."""

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
        read(tmp_path / "b.safetensors", adapter_name="default")


def test_state_dicts_and_the_command_line(two):
    path, factors, tensors = two
    adapter = ls.read(tensors, adapter_name="other", config={"peft_type": "LORA", "r": 3, "lora_alpha": 3})
    a, b = factors["other"]
    np.testing.assert_allclose(dense(adapter.updates["h.0.q"].delta()), double(b) @ double(a), rtol=0, atol=1e-13)
    done = here("analyze", path, "--adapter-name", "other")
    assert done.returncode == 0, done.stderr
    assert "1 module" in done.stdout
