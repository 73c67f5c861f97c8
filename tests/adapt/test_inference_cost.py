"""What an adapter costs at inference: counts against formulas, and a model that is left as it was."""

import pytest
import torch

from lorascope.adapt import inference_cost
from lorascope.adapt.inject import Injected, inject
from lorascope.adapt.method import methods
from lorascope.training.batches import Batch
from tests.methods import models

TEXTS, TOKENS, WIDTH, LAYERS = 2, 12, 32, 2


def batch() -> Batch:
    ids = models.tokens(TEXTS, TOKENS)
    return Batch(ids, torch.ones_like(ids), torch.zeros(TEXTS))


def adapted(name: str, **options) -> Injected:
    method = methods.get(name)
    injected = inject(models.bert(), method(method.Config(**options)), targets=["query", "value"])
    with torch.no_grad():
        for parameter in injected.trainable().values():
            parameter.add_(0.1)
    return injected


def measured(injected: Injected) -> inference_cost.Cost:
    return inference_cost.measure(injected, batch(), seconds=0.01)


@pytest.mark.parametrize("name", methods.names())
def test_the_model_is_left_as_it_was(name):
    injected = adapted(name)
    injected.model.train()
    injected.model.bert.eval()
    modes = {module: module.training for module in injected.model.modules()}
    state = {key: tensor.clone() for key, tensor in injected.model.state_dict().items()}
    ids = models.tokens()
    before = injected.model(input_ids=ids).logits
    measured(injected)
    after = injected.model.state_dict()
    assert all(module.training == training for module, training in modes.items())
    assert state.keys() == after.keys()
    assert all(torch.equal(state[key], after[key]) for key in state)
    assert torch.equal(injected.model(input_ids=ids).logits, before)


def test_lora_costs_its_two_products_until_it_is_merged():
    found = measured(adapted("lora", rank=4))
    assert found.extra_parameters == LAYERS * 2 * 4 * (WIDTH + WIDTH)
    assert found.unmerged_flops - found.base_flops == 2 * TEXTS * TOKENS * found.extra_parameters
    assert found.merged_seconds > 0
    assert found.context_tokens == 0


def test_houlsby_costs_two_products_in_each_sublayer_for_good():
    found = measured(adapted("houlsby", bottleneck=5))
    weights = LAYERS * 2 * 2 * 5 * WIDTH
    assert found.unmerged_flops - found.base_flops == 2 * TEXTS * TOKENS * weights
    assert found.extra_parameters == weights + LAYERS * 2 * (5 + WIDTH)
    assert found.merged_seconds is None


@pytest.mark.parametrize("name", ["prefix", "p_tuning_v2"])
def test_a_prefix_costs_attention_to_it_and_context(name):
    """q·Kᵀ and the weights' product with V over 6 more keys; nothing is left of the network."""
    found = measured(adapted(name, num_virtual_tokens=6))
    assert found.unmerged_flops - found.base_flops == LAYERS * 2 * (2 * TEXTS * TOKENS * 6 * WIDTH)
    assert found.extra_parameters == 6 * LAYERS * 2 * WIDTH
    assert (found.context_tokens, found.merged_seconds) == (6, None)


def test_a_prompt_costs_what_longer_texts_cost():
    found = measured(adapted("prompt", num_virtual_tokens=6))
    longer = torch.cat([models.tokens(TEXTS, 6), batch().input_ids], 1)
    plain = inference_cost.measure(
        adapted("lora"), Batch(longer, torch.ones_like(longer), torch.zeros(TEXTS)), seconds=0.01
    )
    assert found.unmerged_flops == plain.base_flops
    assert (found.context_tokens, found.extra_parameters) == (6, 6 * WIDTH)


def test_in_words():
    found = inference_cost.Cost(4, 27, 5, 0.1, 0.11, 0.101, 1000, 1100, 1234, 20).to_json()
    assert inference_cost.in_words(found) == (
        "cost at inference: +10.0 % FLOPs, 1,234 extra parameters, 20 tokens of context; nothing once merged"
    )
    assert "cannot be merged" in inference_cost.in_words({**found, "merged_seconds": None})
