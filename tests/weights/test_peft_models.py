"""Whole models of transformers with PEFT's adapters: what we write of what we read gives the same logits."""

import copy
import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from lorascope.updates.base import dense
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.io import read, write
from tests.weights.examples_peft import randomise

IDS = torch.arange(2, 14).reshape(2, 6)


def bert():
    size = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 40,
    }
    return BertForSequenceClassification(BertConfig(**size, num_labels=3))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=16))


def llama():
    size = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 40,
    }
    return LlamaForCausalLM(LlamaConfig(**size, num_key_value_heads=2))


def mixtral():
    size = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 40,
    }
    return MixtralForCausalLM(MixtralConfig(**size, num_key_value_heads=1, num_local_experts=3))


CASES = {
    "bert": (bert, LoraConfig(r=3, task_type=TaskType.SEQ_CLS, target_modules=["query", "value"])),
    "gpt2": (
        gpt2,
        LoraConfig(r=3, task_type=TaskType.CAUSAL_LM, target_modules=["c_attn", "wte"], fan_in_fan_out=True),
    ),
    "llama": (llama, LoraConfig(r=3, use_rslora=True, target_modules="all-linear", rank_pattern={"mlp.up_proj": 2})),
    "llama dora": (llama, LoraConfig(r=3, use_dora=True, target_modules=["q_proj", "down_proj"])),
    "llama head": (llama, LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])),
}


def adapted(make, config, folder):
    """The base and PEFT's trained model of it, both saved below `folder`."""
    torch.manual_seed(0)
    base = make().eval()
    base.save_pretrained(folder / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = randomise(get_peft_model(copy.deepcopy(base), copy.deepcopy(config)), 1).eval()
        model.save_pretrained(folder / "peft")
    return base, model


@pytest.mark.parametrize("case", CASES)
def test_what_is_read_and_written_gives_the_same_logits(case, tmp_path):
    base, model = adapted(*CASES[case], tmp_path)
    write(read(tmp_path / "peft"), tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*(missing|unexpected).*")
        again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours").eval()
        with torch.no_grad():
            expected, found = model(input_ids=IDS).logits, again(input_ids=IDS).logits
            plain = base(input_ids=IDS).logits
    assert torch.equal(found, expected)
    assert not torch.allclose(plain, expected)


@pytest.mark.parametrize("case", CASES)
def test_every_update_finds_its_weight_in_the_saved_base(case, tmp_path):
    _, model = adapted(*CASES[case], tmp_path)
    checkpoint = open_checkpoint(tmp_path / "base")
    adapter = read(tmp_path / "peft", checkpoint)
    state = model.get_base_model().state_dict()
    for name, update in adapter.updates.items():
        weight = state[f"{name}.base_layer.weight"].double().numpy()
        np.testing.assert_array_equal(checkpoint.of(update).read(), weight.T if update.transposed else weight)


@pytest.mark.parametrize("targets", [["experts.gate_up_proj"], ["experts.down_proj", "experts.gate_up_proj"]])
def test_fused_experts_of_mixtral(targets, tmp_path):
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj"], target_parameters=targets)
    _, model = adapted(mixtral, config, tmp_path)
    adapter = read(tmp_path / "peft")
    found = 0
    for name, module in model.double().get_base_model().named_modules():
        if type(module).__name__ == "ParamWrapper":
            delta = module.get_delta_weight("default").detach().numpy()  # (experts, d_out, d_in)
            path = f"{name.replace('.base_layer', '')}.{module.parameter_name}"
            for expert, expected in enumerate(delta):
                update = adapter.updates[f"{path}[{expert}]"]
                # float64 sums of two products on both sides
                np.testing.assert_allclose(dense(update.delta()), expected, rtol=0, atol=1e-14)
                found += 1
    assert found == 2 * 3 * len(targets)
    assert len(adapter.updates) == found + 2  # and q_proj of two layers
