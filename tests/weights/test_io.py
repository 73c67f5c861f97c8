"""Finding and opening files: folders, shards, PyTorch files, things given by mistake; and fuzzed adapters."""

import hashlib
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from lorascope.errors import InputError
from lorascope.updates.base import Update, dense
from lorascope.weights.adapter import Adapter, Skipped
from lorascope.weights.io import read, write
from lorascope.weights.tensors import InMemory
from tests.weights import examples_peft as peft


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A PEFT LoRA folder, never changed: (folder, tensors, config)."""
    folder = peft.lora(tmp_path_factory.mktemp("made")).path
    return folder, load_file(folder / "adapter_model.safetensors"), (folder / "adapter_config.json").read_text()


def folder_of(tmp_path, made, **files):
    """A folder with the config of `made`, and `files`."""
    (tmp_path / "adapter_config.json").write_text(made[2])
    return tmp_path


def deltas(adapter):
    return {name: dense(update.delta()) for name, update in adapter.updates.items()}


def assert_same(adapter, other):
    assert set(adapter.updates) == set(other.updates)
    for name, delta in deltas(other).items():
        np.testing.assert_array_equal(deltas(adapter)[name], delta)


def split(folder, tensors, suffix, save):
    """`tensors` in two shards with an index, as transformers names them; the index."""
    names = [f"adapter_model-0000{n}-of-00002.{suffix}" for n in (1, 2)]
    weight_map = {key: names[n % 2] for n, key in enumerate(tensors)}
    for name in names:
        save({key: tensors[key] for key, owner in weight_map.items() if owner == name}, folder / name)
    index = folder / f"adapter_model.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def save_bin(tensors, path):
    torch.save({key: torch.tensor(value) for key, value in tensors.items()}, path)


def test_file_and_folder_are_the_same_and_hashed(made):
    folder, *_ = made
    adapter, other = read(folder), read(folder / "adapter_model.safetensors")
    assert_same(adapter, other)
    expected = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert adapter.source.sha256 == other.source.sha256 == expected
    assert adapter.source.path == str(folder)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_read_as_one(suffix, made, tmp_path):
    index = split(folder_of(tmp_path, made), made[1], suffix, save_file if suffix == "safetensors" else save_bin)
    assert_same(read(tmp_path), read(made[0]))
    assert_same(read(index), read(made[0]))
    digest = hashlib.sha256()
    for name in sorted(os.listdir(tmp_path)):
        if "-of-" in name:
            digest.update((tmp_path / name).read_bytes())
    assert read(index).source.sha256 == digest.hexdigest()


def test_one_shard_alone_is_an_error(made, tmp_path):
    split(folder_of(tmp_path, made), made[1], "safetensors", save_file)
    with pytest.raises(InputError, match=r"is shard 1 of 2, not the whole; pass the folder, or the \.index\.json"):
        read(tmp_path / "adapter_model-00001-of-00002.safetensors")


def test_a_shard_that_is_missing(made, tmp_path):
    split(folder_of(tmp_path, made), made[1], "safetensors", save_file)
    (tmp_path / "adapter_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"1 of 2 shards .* missing; found 'adapter_model-00002-of-00002"):
        read(tmp_path)


@pytest.mark.parametrize("outside", ["../a.safetensors", "/etc/passwd", "..", "", "sub/a.safetensors", "a\\b"])
def test_an_index_cannot_name_files_elsewhere(outside, made, tmp_path):
    index = folder_of(tmp_path, made) / "adapter_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": outside}}))
    with pytest.raises(InputError, match="outside its folder, which is refused"):
        read(tmp_path)


@pytest.mark.parametrize(
    "content", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[]", "{", '{"weight_map": {}}']
)
def test_an_index_that_is_none(content, made, tmp_path):
    (folder_of(tmp_path, made) / "adapter_model.safetensors.index.json").write_text(content)
    with pytest.raises(InputError, match=r"index\.json"):
        read(tmp_path)


def test_an_index_that_contradicts_its_shards(made, tmp_path):
    index = split(folder_of(tmp_path, made), made[1], "safetensors", save_file)
    content = json.loads(index.read_text())
    content["weight_map"]["base_model.model.ghost.lora_A.weight"] = "adapter_model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"do not hold; found .*ghost"):
        read(index)
    save_file(made[1], tmp_path / "adapter_model-00001-of-00002.safetensors")  # now holds the other's keys too
    with pytest.raises(InputError, match="one shard for each key"):
        read(index)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("legacy", [False, True])
def test_pytorch_files_are_read(dtype, legacy, made, tmp_path):
    tensors = {key: torch.tensor(value).to(dtype) for key, value in made[1].items()}
    folder_of(tmp_path, made)
    torch.save(tensors, tmp_path / "adapter_model.bin", _use_new_zipfile_serialization=not legacy)
    adapter = read(tmp_path)
    a = adapter.updates["layers.0.q_proj"].roles["A"]
    np.testing.assert_array_equal(a.read(), tensors["base_model.model.layers.0.q_proj.lora_A.weight"].double().numpy())
    write(adapter, tmp_path / "again")
    assert read(tmp_path / "again").updates["layers.0.q_proj"].roles["A"].dtype == a.dtype


class Bomb:
    """Unpickling it would make a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("save", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_executed(save, made, tmp_path):
    folder, trace = folder_of(tmp_path, made), tmp_path / "executed"
    content = {"base_model.model.q.lora_A.weight": Bomb(trace)}
    if save == "torch":
        torch.save(content, folder / "adapter_model.bin")
    else:
        (folder / "adapter_model.bin").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match="refused and not executed"):
        read(folder)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello world, this is no pickle", "refused|not a PyTorch file"),
        (b"PK\x03\x04" + bytes(100), "not a PyTorch file|refused"),
    ],
)
def test_a_damaged_pytorch_file(content, message, made, tmp_path):
    (folder_of(tmp_path, made) / "adapter_model.bin").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_a_truncated_pytorch_file(made, tmp_path):
    save_bin(made[1], folder_of(tmp_path, made) / "adapter_model.bin")
    content = (tmp_path / "adapter_model.bin").read_bytes()
    for size in range(0, len(content), len(content) // 23):
        (tmp_path / "adapter_model.bin").write_bytes(content[:size])
        with pytest.raises(InputError):
            read(tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(3), "holds no tensors by name; found Tensor"),
        ({"a": 3}, "more than tensors"),
        ({}, "no tensors by name"),
    ],
)
def test_a_pytorch_file_of_something_else(value, message, tmp_path):
    torch.save(value, tmp_path / "a.pt")
    with pytest.raises(InputError, match=message):
        read(tmp_path / "a.pt")


def test_a_state_dict_within_a_checkpoint_is_found(made, tmp_path):
    torch.save({"state_dict": {key: torch.tensor(v) for key, v in made[1].items()}}, tmp_path / "a.pt")
    (tmp_path / "adapter_config.json").write_text(made[2])
    assert_same(read(tmp_path / "a.pt"), read(made[0]))


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        read(tmp_path / "nothing")


def test_an_empty_folder_and_one_without_an_adapter(tmp_path):
    with pytest.raises(
        InputError, match=r"holds no adapter; found an empty folder; expected adapter_model\.safetensors"
    ):
        read(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"holds no adapter; found 'notes\.txt'"):
        read(tmp_path)


def test_the_folder_above_is_told_where_to_look(made, tmp_path):
    (tmp_path / "checkpoint-500").mkdir()
    save_file(made[1], tmp_path / "checkpoint-500" / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"did you mean .*checkpoint-500"):
        read(tmp_path)


def test_several_files_and_none_named(made, tmp_path):
    for name in ("one.safetensors", "two.safetensors"):
        save_file(made[1], tmp_path / name)
    with pytest.raises(InputError, match=r"several weights files; found 'one\.safetensors', 'two\.safetensors'"):
        read(tmp_path)


@pytest.mark.parametrize("whole", ["folder", "file"])
def test_a_full_model_is_told_the_other_command(whole, tmp_path):
    save_file(
        {"model.embed.weight": np.ones((3, 2), np.float32), "lm_head.weight": np.ones((3, 2), np.float32)},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(InputError, match=r"full model.*`lorascope delta BASE TUNED`"):
        read(tmp_path if whole == "folder" else tmp_path / "model.safetensors")


def test_keys_in_no_format(tmp_path):
    save_file({"hello": np.ones(3, np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(
        InputError, match=r"has an unknown adapter format; found 'hello'; expected keys of one of .*peft"
    ):
        read(tmp_path / "a.safetensors")


def test_keys_nobody_understands_are_named(made, tmp_path):
    extra = {**made[1], "base_model.model.layers.0.q_proj.lora_C.weight": np.ones((2, 2), np.float32)}
    save_file(extra, folder_of(tmp_path, made) / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"1 of its keys are not understood; found '.*lora_C\.weight'"):
        read(tmp_path)


def test_the_config_given_in_place_of_the_weights(made):
    with pytest.raises(InputError, match="pass the folder it lies in"):
        read(made[0] / "adapter_config.json")


@pytest.mark.parametrize("content", ["", "{", "[]", "{" * 100_000, "\x00"])
def test_a_malformed_config(content, made, tmp_path):
    save_file(made[1], tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(InputError, match=r"adapter_config\.json is not"):
        read(tmp_path)


def test_a_script_in_a_key_stays_text(made, tmp_path):
    name = "<script>alert(1)</script>\x1b[31m"
    tensors = {f"base_model.model.{name}.lora_{x}.weight": np.ones((2, 2), np.float32) for x in "AB"}
    save_file(tensors, tmp_path / "a.safetensors")
    assert list(read(tmp_path / "a.safetensors").updates) == [name]
    save_file({**tensors, f"{name}.x": np.ones(2, np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError) as caught:
        read(tmp_path / "a.safetensors")
    assert "\x1b" not in str(caught.value)


def test_writing_what_was_not_analysed_is_refused(made, tmp_path):
    adapter = read(made[0])
    partial = Adapter(adapter.updates, adapter.settings, skipped=(Skipped("x.lora_B.bias", "a bias"),))
    with pytest.raises(InputError, match=r"would lose what was not analysed; found 'x\.lora_B\.bias'"):
        write(partial, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("named", "kept"), [(["q_proj", "v_proj"], True), (["q_proj"], False), (r".*\.[qv]_proj", True)]
)
def test_target_modules_are_written_as_they_were_while_they_name_all(named, kept, tmp_path):
    """Each module is named by one of the list, not by all of it."""
    updates = {
        name: Update(name, "low_rank", {"A": InMemory(np.ones((2, 4))), "B": InMemory(np.ones((3, 2)))})
        for name in ("h.0.q_proj", "h.0.v_proj")
    }
    write(Adapter(updates, {"peft_type": "LORA", "target_modules": named}), tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert written == (named if kept else ["h.0.q_proj", "h.0.v_proj"])


def test_writing_over_the_file_that_is_being_read(made, tmp_path):
    """The lazily read source is replaced by rename, so its open file still holds the old bytes."""
    write(read(made[0]), tmp_path)
    again = read(tmp_path)
    write(again, tmp_path)
    assert_same(read(tmp_path), read(made[0]))


def test_a_plain_adapter_is_read_without_torch(made):
    code = f"import sys; from lorascope.weights.io import read; all = read({str(made[0])!r}).updates"
    code += "; [u.read() for u in all.values()]"
    code += "; print([m for m in ('torch', 'scipy', 'pandas', 'safetensors') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ROLES = """
    lora_A.weight lora_B.weight lora_A lora_E lora_embedding_A lora_magnitude_vector vera_lambda_b vera_A
    ia3_l hada_w1_a hada_t1 lokr_w1 lokr_w2_b lokr_t2 base_layer.weight weight alpha modules_to_save.default.weight
    lora_B.bias lora_down.weight lora_up.weight lora_A.default.weight
"""
NAMES = st.sampled_from(ROLES.split())
MODULES = st.sampled_from(
    ["q", "layers.0.q_proj", "", "q.base_layer", "a..b", "lora_A", "unet.down", "lora_unet_x", "é"]
)
PREFIXES = st.sampled_from(["base_model.model.", "base_model.", "", "unet.", "lora_te_"])
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.floats()
    | st.sampled_from(["q_proj", "LORA", "VERA", "IA3", "("])
)
CONFIGS = st.none() | st.dictionaries(
    st.sampled_from(["peft_type", "r", "lora_alpha", "alpha", "rank_pattern", "target_parameters", "bias", "init_r"]),
    VALUES | st.lists(VALUES, max_size=2) | st.dictionaries(st.sampled_from(["q", ".*", "("]), VALUES, max_size=2),
)


@FUZZ
@given(
    keys=st.dictionaries(st.tuples(PREFIXES, MODULES, NAMES), SHAPES, min_size=1, max_size=6),
    config=CONFIGS,
)
def test_keys_shapes_and_configs_of_all_sorts(keys, config, tmp_path):
    """Whatever a file says, it is read (and every update's ΔW has the shape it claims), or it is an InputError."""
    tensors = {f"{p}{m}.{n}" if m else p + n: np.ones(shape, np.float32) for (p, m, n), shape in keys.items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    path = tmp_path / "adapter_config.json"
    path.unlink(missing_ok=True)
    if config is not None:
        path.write_text(json.dumps(config))
    try:
        adapter = read(tmp_path)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    for update in adapter.updates.values():
        if not update.needs_base:
            assert tuple(dense(update.delta()).shape) == update.shape


@FUZZ
@given(data=st.data())
def test_flipped_bytes_in_the_config_and_the_weights(data, made, tmp_path):
    folder, _, config = made
    weights = bytearray((folder / "adapter_model.safetensors").read_bytes())
    text = bytearray(config.encode())
    which = data.draw(st.sampled_from([weights[:1200], text]))
    target = text if which == text else weights
    for _ in range(data.draw(st.integers(1, 3))):
        target[data.draw(st.integers(0, len(which) - 1))] ^= data.draw(st.integers(1, 255))
    (tmp_path / "adapter_model.safetensors").write_bytes(weights)
    (tmp_path / "adapter_config.json").write_bytes(text)
    try:
        adapter = read(tmp_path)
    except InputError:
        return
    for update in adapter.updates.values():
        if not update.needs_base:
            update.delta()
