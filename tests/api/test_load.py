"""Adapters go back into models: as trainable layers, and into the weights. PEFT's own forward pass is the oracle."""

import pytest
import torch
from peft import get_peft_model

import lorascope as ls
from tests.api.test_read import CONFIGS, llama

IDS = torch.arange(24).view(2, 12)
ROUNDING = 2e-6  # of logits near 1: a few roundings of float32 in another order


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "loha"])
def test_what_peft_computes(name, tmp_path):
    model = get_peft_model(llama(), CONFIGS[name]).eval()
    expected = model(IDS).logits
    model.save_pretrained(tmp_path)
    for source in (tmp_path, model):
        fresh = llama().eval()
        injected = ls.load(fresh, source)
        torch.testing.assert_close(fresh(IDS).logits, expected, atol=ROUNDING, rtol=0)
        assert injected.trainable()
    merged = ls.merge(llama().eval(), tmp_path)
    torch.testing.assert_close(merged.model(IDS).logits, expected, atol=ROUNDING, rtol=0)
    assert "updates, at most" in repr(merged)


def test_a_loaded_adapter_trains_on(tmp_path):
    model = llama()
    injected = ls.inject(model, "lora", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    ls.save(injected, tmp_path / "first")
    again = ls.load(llama(), tmp_path / "first")
    assert {p.shape for p in again.trainable().values()} == {p.shape for p in injected.trainable().values()}
    again.model(IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is not None for parameter in again.trainable().values())
    torch.optim.SGD(again.trainable().values(), 0.1).step()
    ls.save(again, tmp_path / "second")
    changed = ls.read(tmp_path / "second").updates["model.layers.0.self_attn.q_proj"]
    assert changed.delta().frobenius_norm() > 0


def test_what_no_method_trains_says_so():
    with pytest.raises(ls.InputError, match=r"no method here trains.*hadamard.*lorascope\.merge"):
        ls.load(llama(), get_peft_model(llama(), CONFIGS["loha"]))


def test_another_model_is_refused(tmp_path):
    from tests.methods.models import gpt2

    ls.save(ls.inject(llama(), "lora", target_modules=["q_proj"]), tmp_path)
    with pytest.raises(ls.InputError, match=r"the model has no 'model\.layers\.0.*GPT2LMHeadModel"):
        ls.load(gpt2(), tmp_path)


def test_resized_and_saved(tmp_path):
    result = ls.resize(get_peft_model(llama(), CONFIGS["dora"]), rank=2, base=llama())
    ls.save(result, tmp_path)
    assert {update.rank for update in ls.read(tmp_path).updates.values()} == {2}
