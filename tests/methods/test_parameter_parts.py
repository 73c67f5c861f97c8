"""LoRA on fused experts and on torch's attention, and trained rows of tokens, against PEFT's and closed forms."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import GptOssConfig, GptOssForCausalLM, MixtralConfig, MixtralForCausalLM

import lorascope as ls
from lorascope.errors import InputError
from tests.adapt.test_several import logits, randomised
from tests.methods.models import llama, tokens

SIZES = {
    "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 64, "num_local_experts": 3, "num_experts_per_tok": 2,
}  # fmt: skip
BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def mixture(sort: str) -> nn.Module:
    """A tiny mixture of experts, whose experts are stored as (d_out, d_in) or, as GPT-OSS's, (d_in, d_out)."""
    torch.manual_seed(0)
    if sort == "mixtral":
        model = MixtralForCausalLM(MixtralConfig(**SIZES))
    else:
        model = GptOssForCausalLM(GptOssConfig(**SIZES, head_dim=8, layer_types=["full_attention"]))
    model.set_experts_implementation("eager")  # torch's grouped product has no float64
    return model.double()


def random_peft(base: nn.Module, **config) -> nn.Module:
    theirs = get_peft_model(base, LoraConfig(r=2, lora_alpha=6, **config)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name or "trainable_tokens_delta" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)
    return theirs


def step(model: nn.Module) -> torch.Tensor:
    loss = model(tokens(), labels=tokens()).loss
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("sort", ["mixtral", "gpt-oss"])
def test_fused_experts_are_pefts(sort, tmp_path):
    base = mixture(sort)
    theirs = random_peft(copy.deepcopy(base), target_modules=["q_proj"], target_parameters=BOTH)
    theirs.save_pretrained(tmp_path / "peft")
    model = copy.deepcopy(base)
    injected = ls.load(model, tmp_path / "peft")
    close = {"rtol": 1e-9, "atol": 1e-11}  # float64, sums in another order
    torch.testing.assert_close(step(model), step(theirs), **close)
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    module = "base_model.model.model.layers.0.mlp.experts"
    for path, inner in (("gate_up_proj", ".base_layer"), ("down_proj", "")):
        part = injected.parts[f"model.layers.0.mlp.experts.{path}"]
        of_a, of_b = (gradients[f"{module}{inner}.lora_{role}.default.weight"] for role in "AB")
        torch.testing.assert_close(part.A.grad.flatten(0, 1), of_a, **close)
        torch.testing.assert_close(part.B.grad.permute(1, 2, 0).flatten(1), of_b, **close)
    ls.save(injected, tmp_path / "ours")
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours").double()
    expected = logits(theirs)
    torch.testing.assert_close(logits(again), expected, **close)
    injected.merge()
    torch.testing.assert_close(logits(model), expected, **close)
    merged = theirs.merge_and_unload()
    for name in ("gate_up_proj", "down_proj"):
        ours = getattr(model.model.layers[0].mlp.experts, name)
        torch.testing.assert_close(ours.data, getattr(merged.model.layers[0].mlp.experts, name).data, **close)
    injected.unmerge()
    torch.testing.assert_close(logits(model), expected, **close)
    with injected.disabled():
        torch.testing.assert_close(logits(model), logits(base), rtol=0, atol=0)
    injected.remove()
    torch.testing.assert_close(logits(model), logits(base), rtol=0, atol=0)


def test_fresh_experts_change_nothing_and_alone_are_enough():
    base = mixture("mixtral")
    before = logits(base)
    injected = ls.inject(base, "lora", r=2, target_parameters=BOTH)
    torch.testing.assert_close(logits(base), before, rtol=0, atol=0)
    assert not injected.layers
    of_the_model = {id(parameter) for parameter in base.parameters() if parameter.requires_grad}
    assert of_the_model == {id(parameter) for parameter in injected.trainable().values()}, "a Trainer finds them"
    assert injected.parameter_count() == 2 * 3 * ((24 + 16) + (16 + 12))
    with pytest.raises(InputError, match="no parameter is named 'nothing'"):
        ls.inject(mixture("mixtral"), "lora", target_parameters=["nothing"])
    with pytest.raises(InputError, match="dora has no target_parameters"):
        ls.inject(mixture("mixtral"), "dora", target_parameters=BOTH)
    with pytest.raises(InputError, match="dropout"):
        ls.inject(mixture("mixtral"), "lora", target_parameters=BOTH, dropout=0.1)


def test_torchs_attention_by_its_parameters(tmp_path):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double()
    plain = copy.deepcopy(attention)
    injected = randomised(ls.inject(attention, "lora", r=2, target_parameters=["in_proj_weight", "out_proj.weight"]), 2)
    with torch.no_grad():
        for name, part in injected.parts.items():
            plain.get_parameter(name).add_(part.scale * part.B[0] @ part.A[0])
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    for training in (True, False):  # torch has a shorter path in evaluation
        torch.testing.assert_close(
            attention.train(training)(x, x, x)[0], plain.train(training)(x, x, x)[0], rtol=1e-11, atol=1e-11
        )
    attention.train()(x, x, x)[0].square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in injected.trainable().values())
    with pytest.raises(InputError, match="PEFT has no place"):
        ls.save(injected, tmp_path)


@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_tokens_are_pefts(tied, tmp_path):
    base = llama(tie_word_embeddings=tied).double()
    rows = [int(tokens()[0, 0]), 5, 60]
    theirs = random_peft(copy.deepcopy(base), target_modules=["q_proj"], trainable_token_indices=rows)
    theirs.save_pretrained(tmp_path / "peft")
    model = copy.deepcopy(base)
    injected = ls.load(model, tmp_path / "peft")
    close = {"rtol": 1e-9, "atol": 1e-11}  # float64, sums in another order
    torch.testing.assert_close(step(model), step(theirs), **close)
    (gradient,) = (p.grad for n, p in theirs.named_parameters() if "trainable_tokens_delta" in n and p.requires_grad)
    (part,) = injected.parts.values()
    torch.testing.assert_close(part.tokens.grad, gradient, **close)
    assert any(part.tokens is parameter for parameter in model.parameters())
    assert injected.parameter_count() == sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    ls.save(injected, tmp_path / "ours")
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours").double()
    expected = logits(theirs)
    torch.testing.assert_close(logits(again), expected, **close)
    injected.merge_and_unload()
    torch.testing.assert_close(logits(model), expected, **close)
    assert isinstance(model.get_input_embeddings(), nn.Embedding)
    with pytest.raises(InputError, match="rows from 0 to 63"):
        ls.inject(llama(), "lora", trainable_token_indices=[64])
