"""Files of virtual tokens: what is read, what is refused, and the config that is written for PEFT."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lorascope.errors import InputError
from lorascope.updates.base import Update
from lorascope.weights import io
from lorascope.weights.tensors import InMemory


def read(folder, config, shapes):
    """An adapter with tensors of these shapes, 0, 1, 2, ... each."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {key: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for key, shape in shapes.items()}
    save_file(arrays, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return io.read(folder)


def tokens(*shape):
    return {"prompt_embeddings": shape}


SOFT = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}
PREFIX = SOFT | {"peft_type": "PREFIX_TUNING"}
BOTH = {"num_transformer_submodules": 2}  # an encoder with a decoder
TASKS = {"prefix_task_cols": (3, 4, 2), "prefix_task_rows": (3, 2, 6)}


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        (SOFT, tokens(4, 6)),
        ({"peft_type": "P_TUNING"}, tokens(5, 6)),  # nothing is announced
        (SOFT | BOTH, tokens(8, 6)),
        (SOFT | {"num_transformer_submodules": None}, tokens(4, 6)),
        (PREFIX | BOTH, tokens(4, 24)),  # both stacks have the same prefix
        (SOFT | {"peft_type": "MULTITASK_PROMPT_TUNING"}, tokens(4, 6) | TASKS),
        (SOFT | {"peft_type": "CPT"}, tokens(7, 6)),  # counts other tokens
    ],
)
def test_virtual_tokens_are_kept_and_are_no_update(config, shapes, tmp_path):
    adapter = read(tmp_path, config, shapes)
    assert (dict(adapter.updates), adapter.skipped) == ({}, ())
    assert set(adapter.saved) == set(adapter.non_weight_tensors) == set(shapes)
    assert len(set(adapter.non_weight_tensors.values())) == 1
    assert all("no change of a weight" in reason for reason in adapter.non_weight_tensors.values())
    for name, shape in shapes.items():
        np.testing.assert_array_equal(adapter.saved[name].read().ravel(), np.arange(np.prod(shape)))


@pytest.mark.parametrize(
    ("config", "shapes", "said"),
    [
        (SOFT, tokens(5, 6), "is not what adapter_config.json announces"),
        (SOFT, tokens(4), "is not what adapter_config.json announces"),
        (SOFT, tokens(4, 6, 1), "is not what adapter_config.json announces"),
        (SOFT | {"peft_type": "CPT"}, tokens(4, 6, 1), "is not what adapter_config.json announces"),
        (SOFT | BOTH, tokens(4, 6), "is not what adapter_config.json announces"),
        (PREFIX | BOTH, tokens(8, 24), "is not what adapter_config.json announces"),
        (SOFT | {"num_virtual_tokens": "4"}, tokens(4, 6), "num_virtual_tokens is not a number"),
        (SOFT | {"num_virtual_tokens": 4.0}, tokens(4, 6), "num_virtual_tokens is not a number"),
        (SOFT, tokens(4, 6) | TASKS, "prefix_task_cols"),
    ],
)
def test_other_tokens_than_the_config_announces_are_refused(config, shapes, said, tmp_path):
    with pytest.raises(InputError, match=said):
        read(tmp_path, config, shapes)


HEAD = {"base_model.score.dense.weight": (2, 6)}


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"])
def test_the_config_that_is_written_is_pefts(kind, tmp_path):
    """Fields that PEFT does not know, and the class that it looks up by itself, are left behind."""
    config = {"peft_type": kind, "modules_to_save": ["score"], "auto_mapping": {}, "unheard_of": 1, "num_layers": 3}
    adapter = read(tmp_path / "made", config, tokens(4, 6) | HEAD)
    further = InMemory(np.ones((2, 6), np.float32), "F32")  # a head that modules_to_save does not name
    adapter = replace(adapter, saved={**adapter.saved, "classifier.weight": further})
    files = io.write(adapter, tmp_path / "again")
    assert [file.name for file in files] == ["adapter_model.safetensors", "adapter_config.json"]
    assert json.loads(files[1].read_text()) == {
        "peft_type": kind, "base_model_name_or_path": None, "task_type": None, "num_layers": 3, "num_virtual_tokens": 4,
        "num_transformer_submodules": 1, "token_dim": 6, "modules_to_save": ["score", "classifier"],
        "inference_mode": True,
    }  # fmt: skip
    made, again = load_file(tmp_path / "made/adapter_model.safetensors"), load_file(files[0])
    assert set(again) == {*made, "base_model.classifier.weight"}
    for key, value in made.items():
        np.testing.assert_array_equal(again[key], value)


def test_what_the_settings_say_of_the_width_is_kept_and_no_head_is_announced_where_there_is_none(tmp_path):
    adapter = read(tmp_path / "made", PREFIX | {"token_dim": 12, "base_model_name_or_path": "a/b"}, tokens(4, 24))
    config = json.loads(io.write(adapter, tmp_path / "again")[1].read_text())
    assert (config["token_dim"], config["modules_to_save"], config["base_model_name_or_path"]) == (12, None, "a/b")


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(InputError, match="reads PEFT's CPT and does not write it"):
        io.write(read(tmp_path / "cpt", {"peft_type": "CPT"}, tokens(4, 6)), tmp_path / "again")
    soft = read(tmp_path / "soft", SOFT, tokens(4, 6))
    with pytest.raises(InputError, match=r"virtual tokens and no updates.*no virtual tokens"):
        io.write(replace(soft, saved={}, non_weight_tensors={}), tmp_path / "again")
    roles = {"A": InMemory(np.ones((1, 3)), "F32"), "B": InMemory(np.ones((2, 1)), "F32")}
    with pytest.raises(InputError, match=r"virtual tokens and no updates.*l\.q"):
        io.write(replace(soft, updates={"l.q": Update("l.q", "low_rank", roles)}), tmp_path / "again")
    assert not (tmp_path / "again").exists() or not list((tmp_path / "again").iterdir())
