"""`--adapter-name` where an adapter is evaluated or followed: what PEFT's own model gives with that adapter active."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorascope.training.foreign import open_evaluated
from lorascope.training.given import Given
from lorascope.weights import io
from tests.cli.command import here
from tests.training.test_foreign import loss_of
from tests.training.tiny import sentences

TARGETS = {"default": ["q_proj", "v_proj"], "other": ["o_proj"]}


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(12, seed=3)))
    return path


@pytest.fixture
def checkpoints(tiny_llama, tmp_path):
    """Two checkpoints of a Trainer whose model had two adapters: PEFT puts each but `default` in a folder of its
    name."""
    torch.manual_seed(4)
    settings = {"r": 2, "lora_alpha": 4, "task_type": "CAUSAL_LM"}
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    peft = get_peft_model(model, LoraConfig(**settings, target_modules=TARGETS["default"]))
    peft.add_adapter("other", LoraConfig(**settings, target_modules=TARGETS["other"]))
    for step in (1, 2):
        with torch.no_grad():
            for name, parameter in peft.named_parameters():
                if "lora_B" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.5)
        at = tmp_path / "out" / f"checkpoint-{step}"
        peft.save_pretrained(at)
        AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(at)
    return tmp_path / "out"


def of_modules(names) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name in names}


def test_the_loss_is_that_of_the_named_adapter(checkpoints, texts, tiny_llama):
    folder, losses = checkpoints / "checkpoint-2", {}
    for name in (None, "default", "other"):
        opened = open_evaluated(folder, Given(data=str(texts), base=str(tiny_llama), adapter_name=name), "cpu")
        place = folder / "other" if name == "other" else folder
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), place).eval()
        losses[name] = opened.score().loss
        # float32: W + ΔW in one sum here, in two products there
        assert losses[name] == pytest.approx(loss_of(model, opened.held_out.tokens), rel=1e-5)
    assert losses[None] == losses["default"] != losses["other"]


@pytest.mark.parametrize("name", ["default", "other"])
def test_commands_measure_the_named_adapter(checkpoints, texts, tiny_llama, name):
    options = ("--data", texts, "--base", tiny_llama, "--adapter-name", name, "--json", "-", "--device", "cpu")
    measured = json.loads(here("activations", checkpoints / "checkpoint-2", *options).stdout)
    assert of_modules(each["name"] for each in measured["modules"]) == set(TARGETS[name])
    followed = json.loads(here("trajectory", checkpoints, *options).stdout)
    assert [each["step"] for each in followed["checkpoints"]] == [1, 2]
    assert of_modules(each["name"] for each in followed["modules"]) == set(TARGETS[name])
    scored = open_evaluated(checkpoints / "checkpoint-2", Given(str(tiny_llama), str(texts), adapter_name=name), "cpu")
    assert followed["checkpoints"][-1]["score"]["loss"] == pytest.approx(scored.score().loss, rel=1e-6)
    adapter = io.read(checkpoints / "checkpoint-2", adapter_name=name)
    sizes = {
        u.name: np.linalg.norm(u.scale * u.roles["B"].read() @ u.roles["A"].read()) for u in adapter.updates.values()
    }
    for each in followed["modules"]:
        assert each["points"][-1]["frobenius_norm"] == pytest.approx(sizes[each["name"]], rel=1e-10)
