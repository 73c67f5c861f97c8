"""Prompt tuning, prefix tuning and P-tuning v2: against attention by hand, and against PEFT, files both ways."""

import math

import peft
import pytest
import torch
from torch import Tensor, nn

from lorascope.adapt.inject import Injected, inject
from lorascope.adapt.method import methods
from lorascope.adapt.sublayers import blocks
from lorascope.errors import InputError
from lorascope.methods.prefix import real_keys_values
from lorascope.models.loading import MeanPoolClassifier
from lorascope.weights import io
from tests.methods import models

N, LENGTH = 5, 12
NAMES = ["prompt", "prefix", "p_tuning_v2"]
MAKERS = {"llama": models.llama, "gpt2": models.gpt2, "bert": models.bert}
KINDS = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig, "p_tuning_v2": peft.PrefixTuningConfig}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
every_name = pytest.mark.parametrize("name", NAMES)
every_model = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def ours(make, name: str, moved: bool = True, **options) -> Injected:
    """A method in a fresh model, every trained number moved as by some training."""
    method = methods.get(name)
    model = make()
    saved = ["classifier"] if hasattr(model, "classifier") else []
    injected = inject(model, method(method.Config(num_virtual_tokens=N, **options)), modules_to_save=saved, seed=1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in injected.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.3 * moved)
    injected.model.eval()
    return injected


def prompt_of(injected: Injected) -> Tensor:
    (part,) = injected.parts.values()
    return part.tensors()["prompt_embeddings"].detach()


def padded() -> Tensor:
    """A mask with padding behind the first text and before the second."""
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, -3:] = mask[1, :2] = 0
    return mask


def theirs(make, name: str) -> peft.PeftModel:
    task = "SEQ_CLS" if make is models.bert else "CAUSAL_LM"
    return peft.get_peft_model(make(), KINDS[name](task_type=task, num_virtual_tokens=N)).eval()


def logits(model: nn.Module, mask: Tensor | None = None) -> Tensor:
    """Of the real tokens alone."""
    found = model(input_ids=models.tokens(length=LENGTH), attention_mask=mask).logits
    return found[:, -LENGTH:] if found.ndim == 3 else found


@every_name
@every_model
@pytest.mark.parametrize("mask", [None, padded()], ids=["no mask", "padding"])
def test_our_file_gives_the_same_outputs_in_peft(make, name, mask, tmp_path):
    mine = ours(make, name)
    io.write(mine.export(task_type="SEQ_CLS" if make is models.bert else "CAUSAL_LM"), tmp_path)
    loaded = peft.PeftModel.from_pretrained(make(), tmp_path).eval()
    torch.testing.assert_close(logits(mine.model, mask), logits(loaded, mask), rtol=0, atol=0)  # the same operations
    assert not torch.equal(logits(mine.model, mask), logits(make().eval(), mask))


@every_name
@every_model
def test_pefts_file_loads_here(make, name, tmp_path):
    other = theirs(make, name)
    other.save_pretrained(tmp_path)
    mine = ours(make, name)
    mine.load(io.read(tmp_path))
    assert torch.equal(logits(mine.model, padded()), logits(other, padded()))


def test_pefts_p_tuning_is_a_prompt(tmp_path):
    config = peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=N, encoder_hidden_size=8)
    other = peft.get_peft_model(models.llama(), config).eval()
    other.save_pretrained(tmp_path)
    mine = ours(models.llama, "prompt")
    mine.load(io.read(tmp_path))
    assert torch.equal(logits(mine.model), logits(other))


@every_name
@pytest.mark.parametrize("make", [models.llama, models.gpt2])
def test_generated_text_is_pefts(make, name, tmp_path):
    mine = ours(make, name)
    io.write(mine.export(task_type="CAUSAL_LM"), tmp_path)
    other = peft.PeftModel.from_pretrained(make(), tmp_path).eval()
    mask = padded()
    mask[0] = 1  # what is generated comes after the text, so that padding stands before it
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ids = models.tokens(length=LENGTH)
    wanted = other.generate(input_ids=ids, **options)
    for cached in (True, False):
        assert torch.equal(mine.model.generate(ids, use_cache=cached, **options), wanted)


@every_name
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(name, reentrant):
    """Where PEFT refuses: the cache that carries its prefixes is dropped there."""

    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        injected = ours(models.llama, name)
        if checkpointing:
            injected.model.enable_input_require_grads()
            injected.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        injected.model.train()
        injected.model(input_ids=models.tokens()).logits.square().mean().backward()
        return {key: parameter.grad for key, parameter in injected.trainable().items()}

    plain, recomputed = gradients(False), gradients(True)
    for key, wanted in plain.items():
        assert wanted.norm() > 0
        torch.testing.assert_close(recomputed[key], wanted, rtol=1e-5, atol=1e-8)  # float32 sums in another order


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_prefix_is_attention_over_more_keys_and_values(implementation):
    """softmax(q·[K; k]ᵀ/√d)·[V; v] written out for BERT's first layer, in float64."""
    injected = ours(lambda: models.bert(attn_implementation=implementation).double(), "p_tuning_v2")
    attention = injected.model.bert.encoder.layer[0].attention.self
    x = torch.randn(2, LENGTH, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stored = prompt_of(injected)  # (n, layers · 2 · width)
    outputs = []
    for head in range(4):
        own = slice(head * 8, head * 8 + 8)
        q, k, v = (x @ m.weight[own].T + m.bias[own] for m in (attention.query, attention.key, attention.value))
        key = torch.cat([stored[:, :32][:, own].expand(2, -1, -1), k], 1)
        value = torch.cat([stored[:, 32:64][:, own].expand(2, -1, -1), v], 1)
        outputs.append(torch.softmax(q @ key.transpose(1, 2) / math.sqrt(8), -1) @ value)
    # float64 rounding of sums of at most 32 products
    torch.testing.assert_close(attention(x)[0], torch.cat(outputs, -1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [models.llama, models.gpt2])
def test_a_prefix_of_real_tokens_is_these_tokens(make):
    """A causal model with the keys and values of P before X is the same model that reads [P; X]."""
    model, text = make().double().eval(), models.tokens(length=LENGTH)
    before = torch.tensor([3, 1, 4, 1, 5])
    wanted = model(input_ids=torch.cat([before.expand(2, -1), text], 1)).logits[:, N:]
    stored = real_keys_values(model, before)
    method = methods.get("p_tuning_v2")
    injected = inject(model, method(method.Config(num_virtual_tokens=N)))
    injected.parts["prefix"].load({}, {"prompt_embeddings": stored})
    torch.testing.assert_close(injected.model(input_ids=text).logits, wanted, rtol=1e-10, atol=1e-12)  # float64


@every_model
def test_a_prompt_of_real_tokens_is_these_tokens(make):
    model, text = make().double().eval(), models.tokens(length=LENGTH)
    before = torch.tensor([3, 1, 4, 1, 5])
    wanted = model(input_ids=torch.cat([before.expand(2, -1), text], 1)).logits
    method = methods.get("prompt")
    injected = inject(model, method(method.Config(num_virtual_tokens=N)))
    injected.parts["prompt"].load({}, {"prompt_embeddings": model.get_input_embeddings().weight[before].detach()})
    found = injected.model(input_ids=text).logits
    torch.testing.assert_close(found, wanted[:, N:] if wanted.ndim == 3 else wanted, rtol=1e-12, atol=1e-12)


@every_name
def test_the_mean_is_over_real_tokens(name):
    """Padding changes nothing: not virtual tokens, nor their neighbours, enter the mean with it."""

    def make() -> nn.Module:
        return MeanPoolClassifier(models.bert().bert, 3).double()

    model, ids = ours(make, name).model, models.tokens(length=LENGTH)
    longer, mask = torch.cat([ids, ids[:, :4]], 1), torch.ones(2, LENGTH + 4)
    mask[:, LENGTH:] = 0
    assert model.features(ids, torch.ones(2, LENGTH)).shape == (2, 32)
    torch.testing.assert_close(model(ids, torch.ones(2, LENGTH)).logits, model(longer, mask).logits, rtol=1e-12, atol=0)


def test_a_prefix_through_a_network_is_saved_without_it(tmp_path):
    mine = ours(models.llama, "prefix", encoder_hidden_size=7)
    width, every = 16, 2 * 2 * 16  # 2 key-value heads of 8; a key and a value in each of 2 layers
    assert mine.parameter_count() == N * width + (width * 7 + 7) + (7 * every + every)
    io.write(mine.export(task_type="CAUSAL_LM"), tmp_path)
    other = ours(models.llama, "prefix")
    other.load(io.read(tmp_path))
    assert list(other.trainable()) == ["prefix.table"]
    # one product of 7 terms per number, taken layer by layer or all at once
    torch.testing.assert_close(logits(other.model), logits(mine.model), rtol=1e-5, atol=1e-6)


@every_name
@every_model
def test_parameter_counts(make, name):
    method = methods.get(name)(methods.get(name).Config(num_virtual_tokens=N))
    counted = method.total_parameter_count(make(), [])
    assert counted == inject(make(), method).parameter_count()
    if name != "prefix":
        heads = 2 if make is models.llama else 4
        assert counted == N * (32 if name == "prompt" else 2 * len(blocks(make())) * heads * 8)


@every_name
def test_too_many_tokens_are_refused_in_words(name):
    method = methods.get(name)
    model = inject(models.gpt2(), method(method.Config(num_virtual_tokens=28))).model
    model(input_ids=models.tokens(length=4))
    with pytest.raises(InputError, match=r"found 28 \+ 5, *expected at most 32|found 28 \+ 5; expected at most 32"):
        model(input_ids=models.tokens(length=5))


@every_name
def test_settings_that_cannot_be(name):
    config = methods.get(name).Config
    for wrong in ({"num_virtual_tokens": 0}, {"init": "text"}, {"init_text": "a"}):
        with pytest.raises(InputError):
            config(**wrong)


def test_a_file_of_another_model_is_refused(tmp_path):
    io.write(ours(models.gpt2, "p_tuning_v2").export(), tmp_path)
    with pytest.raises(InputError, match="prompt_embeddings has another shape"):
        ours(models.llama, "p_tuning_v2").load(io.read(tmp_path))


def test_analyze_says_what_it_is(tmp_path):
    from lorascope.analyses.spectrum import run

    io.write(ours(models.llama, "p_tuning_v2").export(), tmp_path)
    adapter = io.read(tmp_path)
    assert adapter.source.method == "prefix tuning"
    assert not adapter.updates
    with pytest.raises(InputError, match="prefix tuning: keys and values of virtual tokens"):
        run(adapter)


def test_the_network_can_learn_at_a_rate_of_its_own():
    injected = ours(models.bert, "prefix", encoder_lr_ratio=0.1)
    rates = {id(p): g["lr"] for g in injected.method.parameter_groups(injected, 0.5, 0.0) for p in g["params"]}
    for name, parameter in injected.trainable().items():
        assert rates[id(parameter)] == pytest.approx(0.05 if name.startswith("prefix.") else 0.5), name
