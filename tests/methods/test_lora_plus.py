"""LoRA+'s rule: whose rate is what, against the groups of PEFT's own optimiser where the two mean the same."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer

from lorascope.adapt.inject import Injected, inject
from lorascope.errors import InputError
from lorascope.methods.dora import DoRA, DoRAConfig
from lorascope.methods.lora import LoRA, LoRAConfig
from lorascope.methods.lora_plus import LoRAPlus, LoRAPlusConfig
from tests.methods import models

TARGETS = ["query", "value", "word_embeddings"]


def rates(injected: Injected, lr: float = 1e-3, weight_decay: float = 0.1) -> dict[str, float]:
    names = {id(p): name for name, p in injected.trainable().items()}
    groups = injected.method.parameter_groups(injected, lr, weight_decay)
    assert all(group["weight_decay"] == weight_decay for group in groups)
    return {names[id(p)]: group["lr"] for group in groups for p in group["params"]}


def test_b_learns_sixteen_times_faster():
    injected = inject(models.bert(), LoRAPlus(), targets=TARGETS, modules_to_save=["classifier"])
    for name, rate in rates(injected).items():
        if "word_embeddings" in name:
            assert rate == 1e-6
        elif name.endswith(".B"):
            assert rate == 16e-3
        else:  # A, and the head's weight and bias alike
            assert rate == 1e-3
    assert sum(name.startswith("classifier.") for name in rates(injected)) == 2


def test_it_is_an_option_of_the_whole_family():
    plain = inject(models.bert(), LoRA(LoRAConfig(rank=4)), targets=TARGETS)
    assert set(rates(plain).values()) == {1e-3}
    dora = inject(
        models.bert(), DoRA(DoRAConfig(rank=4, loraplus_lr_ratio=4.0, loraplus_lr_embedding=1e-5)), targets=TARGETS
    )
    found = rates(dora)
    assert {rate for name, rate in found.items() if name.endswith("query.B")} == {4e-3}
    assert {rate for name, rate in found.items() if name.endswith((".m", "query.A"))} == {1e-3}
    assert {rate for name, rate in found.items() if name.endswith("word_embeddings.A")} == {1e-5}


def test_rates_of_a_and_b_are_those_of_pefts_optimiser():
    other = get_peft_model(models.bert(), LoraConfig(r=8, target_modules=TARGETS))
    optimiser = create_loraplus_optimizer(other, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0)
    by_id = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    theirs = {
        name.removeprefix("base_model.model.")
        .replace("lora_embedding_", "")
        .replace("lora_", "")
        .split(".default")[0]: (by_id[id(p)])
        for name, p in other.named_parameters()
        if p.requires_grad
    }
    assert rates(inject(models.bert(), LoRAPlus(), targets=TARGETS)) == theirs


def test_the_first_group_is_a_rate_that_was_asked_for():
    """The loop logs the first group's rate as the learning rate."""
    injected = inject(models.bert(), LoRAPlus(), targets=TARGETS)
    assert injected.method.parameter_groups(injected, 1e-3, 0.0)[0]["lr"] == 1e-3


@pytest.mark.parametrize("wrong", [{"loraplus_lr_ratio": 0.0}, {"loraplus_lr_embedding": -1.0}])
def test_rates_must_be_positive(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        LoRAPlusConfig(**wrong)
