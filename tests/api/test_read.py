"""Adapters in memory give the numbers of the files that PEFT writes."""

import re

import numpy as np
import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
    get_peft_model_state_dict,
)
from transformers import LlamaConfig, LlamaForCausalLM

import lorascope as ls
from lorascope.weights.adapter import Adapter, Skipped

TARGETS = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
CONFIGS = {
    "lora": LoraConfig(**TARGETS, init_lora_weights=False, modules_to_save=["lm_head"], rank_pattern={"q_proj": 2}),
    "embedding": LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"], init_lora_weights=False),
    "dora": LoraConfig(**TARGETS, init_lora_weights=False, use_dora=True, use_rslora=True),
    "vera": VeraConfig(**TARGETS, init_weights=False),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False),
    "loha": LoHaConfig(**TARGETS, init_weights=False, task_type="CAUSAL_LM"),
    "adalora": AdaLoraConfig(
        init_r=4, target_r=2, total_step=10, tinit=1, tfinal=1, target_modules=["q_proj"], init_lora_weights=False
    ),
}


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **sizes))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_peft_model_is_read_as_its_files_are(name, tmp_path):
    model = get_peft_model(llama(), CONFIGS[name])
    model.save_pretrained(tmp_path)
    on_disk, live = ls.read(tmp_path, base=llama()), ls.read(model, base=llama())
    assert list(on_disk.updates) == list(live.updates)
    for module, update in on_disk.updates.items():
        twin = live.updates[module]
        assert (update.kind, update.scale, update.transposed) == (twin.kind, twin.scale, twin.transposed)
        assert all(np.array_equal(stored.read(), twin.roles[role].read()) for role, stored in update.roles.items())
    assert list(on_disk.saved) == list(live.saved)
    assert [item.name for item in on_disk.skipped] == [item.name for item in live.skipped]
    assert on_disk.notes == live.notes
    ordered = ("target_modules", "modules_to_save")  # sets, which PEFT writes in any order
    for key, value in on_disk.settings.items():
        same = sorted if key in ordered and isinstance(value, list) else lambda found: found
        assert same(live.settings[key]) == same(value), key
    assert on_disk.source.method == live.source.method


def test_an_adapter_is_one_line():
    adapter = ls.read(get_peft_model(llama(), CONFIGS["lora"]))
    (line,) = repr(adapter).splitlines()
    assert re.fullmatch(r"<Adapter .+: LoRA, 4 modules, rank 2 to 4, 1 tensor stored whole>", line), line
    one = Adapter({"a": next(iter(adapter.updates.values()))}, skipped=(Skipped("b", "why"),))
    assert repr(one) == "<Adapter in memory: 1 module, rank 2, 1 skipped>"


def test_transformers_own_adapter_and_a_state_dict(tmp_path):
    model = llama()
    model.add_adapter(CONFIGS["dora"])
    whole = ls.read(model)
    assert next(iter(whole.updates)) == "model.layers.0.self_attn.q_proj"
    peft = get_peft_model(llama(), CONFIGS["lora"])
    state = get_peft_model_state_dict(peft)
    by_dictionary = ls.read(state, config=CONFIGS["lora"].to_dict())
    by_config = ls.read(state, config=CONFIGS["lora"])
    assert (
        {u.scale for u in by_dictionary.updates.values()} == {u.scale for u in by_config.updates.values()} == {2.0, 4.0}
    )


def test_which_of_several_adapters():
    model = get_peft_model(llama(), CONFIGS["lora"])
    model.add_adapter("other", LoraConfig(r=2, target_modules=["k_proj"]))
    assert all(name.endswith(("q_proj", "v_proj")) for name in ls.read(model).updates)
    assert all(name.endswith("k_proj") for name in ls.read(model, adapter_name="other").updates)
    with pytest.raises(ls.InputError, match="no adapter 'third'"):
        ls.read(model, adapter_name="third")


def test_one_of_several_active_adapters_says_so():
    model = get_peft_model(llama(), CONFIGS["lora"])
    model.add_adapter("other", LoraConfig(r=2, target_modules=["k_proj"]))
    assert not any("active" in note for note in ls.read(model).notes)
    model.base_model.set_adapter(["default", "other"])
    notes = [note for note in ls.read(model).notes if "active" in note]
    assert notes == ["2 adapters are active, default, other: this is default alone, the model adds up all"]


def test_what_is_no_adapter_says_what_to_do():
    with pytest.raises(ls.InputError, match=r"no adapter.*lorascope\.delta"):
        ls.read(llama())
    with pytest.raises(ls.InputError, match="found a int"):
        ls.read(3)
    with pytest.raises(ls.InputError, match="holds no tensors"):
        ls.read({"a": 1})


def test_a_copy_is_read_that_training_does_not_change():
    model = get_peft_model(llama(), CONFIGS["lora"])
    adapter = ls.read(model)
    update = next(iter(adapter.updates.values()))
    before = update.roles["A"].read()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert np.array_equal(update.roles["A"].read(), before)


def test_a_model_in_memory_is_a_base(tmp_path):
    llama().save_pretrained(tmp_path)
    on_disk, live = ls.open_model(tmp_path), ls.open_model(llama())
    for module in ("model.layers.1.mlp.down_proj", "lm_head", "model.embed_tokens"):
        assert np.array_equal(on_disk.find(module).read(), live.find(module).read())
    assert live.layers == on_disk.layers == 2
    with pytest.raises(ls.InputError, match="carries an adapter"):
        ls.open_model(get_peft_model(llama(), CONFIGS["lora"]))
    assert isinstance(get_peft_model(llama(), CONFIGS["lora"]), PeftModel)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_numbers_from_files_and_from_memory(name, tmp_path):
    model = get_peft_model(llama(), CONFIGS[name])
    model.save_pretrained(tmp_path / "adapter")
    llama().save_pretrained(tmp_path / "base")
    on_disk = ls.analyze(tmp_path / "adapter", base=tmp_path / "base").to_json()
    live = ls.analyze(model, base=llama()).to_json()
    for key in ("summary", "modules", "skipped", "method_specific"):
        assert on_disk[key] == live[key], key
