"""What a file says of its training, as each trainer writes it."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorascope.weights.io import read
from lorascope.weights.metadata import LONGEST, kept, training

KOHYA = {
    "ss_sd_model_name": "sd_xl_base_1.0.safetensors",
    "ss_base_model_version": "sdxl_base_v1-0",
    "ss_network_module": "networks.lora",
    "ss_network_dim": "16",
    "ss_steps": "1200",
    "ss_num_epochs": "10",
    "ss_unet_lr": "0.0001",
    "ss_tag_frequency": json.dumps({"10_sks dog": {"sks dog": 20, "outdoors": 12, "grass": 3}}),
    "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    "modelspec.title": "dogs",
    "modelspec.license": "CreativeML Open RAIL",
}
AI_TOOLKIT = {
    "software": json.dumps({"name": "ai-toolkit", "repo": "https://example.org", "version": "0.1.0"}),
    "training_info": json.dumps({"step": 3000, "epoch": 12}),
    "name": "my_flux_lora",
    "version": "1.0",
    "ss_base_model_version": "flux.1",
    "ss_output_name": "my_flux_lora_v1",
    "ss_tag_frequency": json.dumps({"1_p3rs0n": {"p3rs0n": 1}}),
    "format": "pt",
}
ONE_TRAINER = {
    "modelspec.sai_model_spec": "1.0.0",
    "modelspec.architecture": "Flux.1-dev/lora",
    "modelspec.date": "2026-05-01",
    "modelspec.trigger_phrase": "zxq",
    "ot_branch": "master",
    "ot_revision": "abc",
    "ot_config": json.dumps({
        "base_model_name": "black-forest-labs/FLUX.1-dev", "epochs": 100, "learning_rate": 3e-4,
        "optimizer": {"optimizer": "ADAMW"},
    }),
}  # fmt: skip


def test_kohya():
    about = training(KOHYA)
    assert (about["base_model"], about["architecture"]) == (
        "sd_xl_base_1.0.safetensors",
        "stable-diffusion-xl-v1-base/lora",
    )
    assert (about["title"], about["license"], about["steps"]) == ("dogs", "CreativeML Open RAIL", "1200")
    assert about["trigger_words"] == ["sks dog"]
    assert about["frequent_tags"] == ["sks dog (20)", "outdoors (12)", "grass (3)"]
    assert about["tool"] == "sd-scripts' networks.lora"
    assert "author" not in about


def test_ai_toolkit():
    about = training(AI_TOOLKIT)
    assert (about["tool"], about["steps"], about["epochs"]) == ("ai-toolkit 0.1.0", "3000", "12")
    assert (about["base_model"], about["trigger_words"]) == ("flux.1", ["p3rs0n"])
    entries = kept(AI_TOOLKIT)
    assert entries["training_info"] == {"step": 3000, "epoch": 12}
    assert "format" not in entries


def test_one_trainer():
    about = training(ONE_TRAINER)
    assert (about["tool"], about["base_model"]) == ("OneTrainer", "black-forest-labs/FLUX.1-dev")
    assert (about["trigger_words"], about["optimizer"], about["epochs"]) == (["zxq"], "ADAMW", "100")
    assert about["learning_rate"] == "0.0003"


def test_a_folder_of_another_name_than_its_tags_is_no_trigger_word():
    about = training({"ss_tag_frequency": json.dumps({"5_photos": {"tree": 2}})})
    assert about == {"frequent_tags": ["tree (2)"]}


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"format": "pt", "name": "not of a trainer"},
        {"ss_tag_frequency": "{", "software": "[]", "training_info": "3", "ot_config": "null"},
        {"ss_tag_frequency": json.dumps({"a": 1, "1_b": {"": 2, "c": "d", "e": None}}), "software": '{"name": {}}'},
        {"ss_tag_frequency": "[" * 100_000, "ss_steps": "None"},
    ],
)
def test_what_says_nothing_or_is_broken_is_nothing(metadata):
    assert training(metadata) == {}


def test_texts_are_one_line_without_control_characters_and_cut():
    about = training({"modelspec.title": "a\n\tb \x1b[31m<script>", "modelspec.author": "x" * 10_000})
    assert about["title"] == "a b \\x1b[31m<script>"
    assert len(about["author"]) <= LONGEST
    assert kept({"modelspec.thumbnail": "y" * 5000}) == {"modelspec.thumbnail": "(5000 characters)"}
    assert len(kept({f"ss_{n}": "1" for n in range(2000)})) == 500


@pytest.mark.parametrize("metadata", [KOHYA, AI_TOOLKIT, ONE_TRAINER], ids=["kohya", "ai-toolkit", "OneTrainer"])
@pytest.mark.parametrize("keys", ["lora_down/lora_up", "lora_A/lora_B"])
def test_every_dialect_keeps_it(metadata, keys, tmp_path):
    down, up = keys.split("/")
    factors = {f"transformer.q.{down}.weight": (2, 4), f"transformer.q.{up}.weight": (3, 2)}
    save_file({key: np.ones(shape, np.float32) for key, shape in factors.items()}, tmp_path / "a.safetensors", metadata)
    adapter = read(tmp_path / "a.safetensors")
    assert adapter.training == training(metadata)
    assert {key for key in metadata if key.startswith(("ss_", "modelspec.", "ot_"))} <= adapter.settings.keys()
