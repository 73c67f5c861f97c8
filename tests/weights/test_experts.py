"""Experts' factors that contradict each other or the config, and what is said of those that are read."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorascope.errors import InputError
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.formats.peft import experts
from lorascope.weights.io import read

PLACE = "model.layers.0.mlp.experts"
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}


def folder_of(folder, a, b, config=LORA, module=f"{PLACE}.down_proj", **more):
    keys = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b, **more}
    tensors = {f"base_model.model.{key}": np.ones(shape, np.float32) for key, shape in keys.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ((3, 5, 16), (3, 20, 5), "has rank 5.*expected rank 4"),
        ((3, 4, 16), (2, 20, 4), "do not fit together"),
        ((3, 4, 16), (3, 20, 5), "do not fit together"),
        ((3, 4, 16), (20, 12), "do not fit together"),
        ((13, 16), (20, 13), "has rank 13"),
    ],
)
def test_contradictions_are_said(a, b, reason, tmp_path):
    with pytest.raises(InputError, match=reason):
        read(folder_of(tmp_path, a, b))


def test_one_matrix_without_a_config_is_not_taken_for_one_lora(tmp_path):
    with pytest.raises(InputError, match="how many there are"):
        read(folder_of(tmp_path, (12, 16), (20, 12), None, PLACE))


def test_a_guess_is_said(tmp_path):
    adapter = read(folder_of(tmp_path, (12, 16), (20, 12), module=PLACE))
    assert list(adapter.updates) == [f"{PLACE}[{e}]" for e in range(3)]
    assert "target_parameters is missing" in adapter.notes[0]


def test_a_convolution_is_none_of_them(tmp_path):
    adapter = read(folder_of(tmp_path, (4, 6, 3), (8, 4, 1), module="conv"))
    assert adapter.updates["conv"].kernel == (3,)


def test_a_rank_that_both_ways_fit_is_the_configs(tmp_path):
    """A (3, 16, 4) and B (3, 4, 16) are rank 4 with its axes swapped, or rank 16 upright."""
    update = read(folder_of(tmp_path, (3, 16, 4), (3, 4, 16))).updates[f"{PLACE}.down_proj[0]"]
    assert (update.rank, update.shape) == (4, (16, 16))
    assert "were transposed" in update.notes[0]


def test_two_modules_of_one_name_are_refused(tmp_path):
    more = {"lm_head.lora_A.weight": (4, 6), "lm_head.lora_B.weight": (5, 4)}
    with pytest.raises(InputError, match="two updates for one module"):
        read(folder_of(tmp_path, (4, 6), (5, 4), module="model.unembed_tokens", **more))


@pytest.mark.parametrize(("stored", "transposed"), [((3, 12, 16), False), ((3, 16, 12), True)])
def test_the_base_shows_how_an_expert_that_is_no_square_lies(stored, transposed, tmp_path):
    """Whatever the model's class: of (d_out, d_in) = (12, 16)."""
    save_file({f"{PLACE}.down_proj": np.zeros(stored, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_oss" if not transposed else "unheard_of"}))
    assert experts._stored_transposed(f"{PLACE}.down_proj", (12, 16), open_checkpoint(tmp_path)) is transposed
