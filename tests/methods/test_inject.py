"""Injecting, freezing, seeding, merging, saving: what no method needs to know."""

import copy

import pytest
import torch
from torch import nn

from lorascope.adapt.inject import inject, layer_generator
from lorascope.errors import InputError
from lorascope.methods.lora import LoRA, LoRAConfig
from tests.methods import models


def lora(model: nn.Module, targets="all-linear", rank: int = 4, **options):
    return inject(model, LoRA(LoRAConfig(rank=rank, alpha=8.0)), targets=targets, **options)


def trained(injected):
    """Give every B and every saved module values, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in injected.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.1)
    return injected


def test_only_the_adapter_trains():
    model = models.llama()
    base = {id(p) for p in model.parameters()}
    injected = lora(model)
    ids = models.tokens()
    model(ids, labels=ids).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in model.parameters() if id(p) in base)
    assert set(injected.trainable()) == {f"{name}.{role}" for name in injected.layers for role in "AB"}
    assert {id(p) for p in injected.trainable().values()} == {id(p) for p in model.parameters() if p.requires_grad}


def test_draws_depend_on_seed_and_name_and_on_nothing_else():
    full, part = lora(models.llama(), seed=3), lora(models.llama(), targets=["v_proj"], seed=3)
    for name, layer in part.layers.items():
        assert torch.equal(layer.delta.A, full.layers[name].delta.A)
    other = lora(models.llama(), seed=4)
    drawn = [tuple(layer.delta.A.flatten().tolist()) for one in (full, other) for layer in one.layers.values()]
    assert len(set(drawn)) == len(drawn)


def test_ranks_share_no_rows():
    """From one stream A (4, d) would be the first rows of A (8, d), and their subspaces overlap before any training."""
    small, large = lora(models.llama(), rank=4, seed=3), lora(models.llama(), rank=8, seed=3)
    for name, layer in small.layers.items():
        rows = {tuple(row) for row in large.layers[name].delta.A.tolist()}
        assert not any(tuple(row) in rows for row in layer.delta.A.tolist())


def test_generators_are_the_same_on_every_machine():
    drawn = torch.rand(2, generator=layer_generator(0, "model.layers.0.self_attn.q_proj", "rank=8"))
    again = torch.rand(2, generator=layer_generator(0, "model.layers.0.self_attn.q_proj", "rank=8"))
    assert torch.equal(drawn, again)
    # printf "0\na\nb" | sha256sum, its first 64 bits without the last: a change would change every published run
    assert layer_generator(0, "a", "b").initial_seed() == 0xA40D8E30131D7357 >> 1


def test_a_head_is_trained_as_a_copy():
    model = models.bert()
    original = model.classifier
    injected = lora(model, targets="attention", modules_to_save=["classifier"])
    assert list(injected.saved) == ["classifier"]
    assert model.classifier is not original
    assert set(injected.trainable()) >= {"classifier.weight", "classifier.bias"}
    before = original.weight.clone()
    trained(injected)
    assert torch.equal(original.weight, before)
    assert not torch.equal(model.classifier.weight, before)
    assert injected.remove().classifier is original


def test_a_head_on_a_bfloat16_base_is_trained_in_float32():
    model = models.bert().to(torch.bfloat16)
    injected = lora(model, targets="attention", modules_to_save=["classifier"])
    out = model(models.tokens(), labels=torch.tensor([0, 2]))
    assert out.logits.dtype == torch.bfloat16
    out.loss.backward()
    assert {p.dtype for p in injected.trainable().values()} == {torch.float32}
    assert all(p.grad is not None for p in injected.trainable().values())


def test_a_module_to_save_that_is_not_there():
    with pytest.raises(InputError, match="did you mean 'classifier'"):
        lora(models.bert(), targets="attention", modules_to_save=["classifer"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folded_it_is_an_ordinary_model(dtype, tmp_path):
    model, ids = models.bert().to(dtype), models.tokens()
    modules = [(name, type(module)) for name, module in model.named_modules()]
    injected = trained(lora(model, targets="attention", modules_to_save=["classifier"]))
    before = model.eval()(ids).logits
    injected.merge_and_unload()
    assert [(name, type(module)) for name, module in model.named_modules()] == modules
    assert {p.dtype for p in model.parameters()} == {dtype}
    # float32: rounding of the sums. bfloat16: W + ΔW and the trained head rounded to 2⁻⁹ once more
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    after = model(ids).logits
    assert float((after - before).detach().float().norm() / before.detach().float().norm()) < tolerance
    model.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path, dtype=dtype).eval()(ids).logits, after)


def test_folding_a_trained_head_that_was_tied(tmp_path):
    model, ids = models.gpt2(), models.tokens()
    injected = trained(lora(model, targets=["c_attn"], modules_to_save=["lm_head"]))
    embedding, before = model.transformer.wte.weight.clone(), model.eval()(ids).logits
    injected.merge_and_unload()
    assert torch.equal(model.transformer.wte.weight, embedding)
    model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(reloaded(ids).logits, before, rtol=1e-5, atol=1e-5)  # float32 rounding


def test_a_layer_under_two_names_is_adapted_under_both():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.again = nn.ModuleDict({"inner": self.first})

    model, x = Shared(), torch.randn(2, 4)
    injected = trained(lora(model, rank=2))
    assert list(injected.layers) == ["first"]
    assert model.again["inner"] is model.first is injected.layers["first"]
    assert not torch.equal(model.again["inner"](x), model.first.base(x))
    injected.remove()
    assert type(model.first) is nn.Linear
    assert model.again["inner"] is model.first


def test_a_failure_leaves_the_model_as_it_was():
    class Failing(LoRA):
        def make(self, site, generator):
            if site.name.endswith("v_proj"):
                raise InputError("no")
            return super().make(site, generator)

    model = models.llama()
    modules = list(model.named_modules())
    with pytest.raises(InputError):
        inject(model, Failing(LoRAConfig(rank=2)), targets="all-linear")
    assert list(model.named_modules()) == modules
    assert all(p.requires_grad for p in model.parameters())


def test_one_adapter_at_a_time():
    model = models.llama()
    lora(model)
    with pytest.raises(InputError, match="carries an adapter already"):
        lora(model)


def test_remove_gives_the_model_back():
    model, ids = models.gpt2(), models.tokens()
    modules, before = list(model.named_modules()), model(ids).logits
    assert list(trained(lora(model)).remove().named_modules()) == modules
    assert torch.equal(model(ids).logits, before)


def test_state_holds_the_adapter_and_never_the_base():
    injected = trained(lora(models.bert(), targets="attention", modules_to_save=["classifier"]))
    state = copy.deepcopy(injected.state_dict())
    assert set(state) == set(injected.trainable())
    other = lora(models.bert(), targets="attention", modules_to_save=["classifier"], seed=9)
    other.load_state_dict(state)
    ids = models.tokens()
    assert torch.equal(other.model(ids).logits, injected.model(ids).logits)


def test_a_state_that_does_not_fit_is_refused():
    injected = lora(models.llama(), targets=["q_proj"])
    state = injected.state_dict()
    first = next(iter(state))
    with pytest.raises(InputError, match=f"no '{first}'"):
        injected.load_state_dict({k: v for k, v in state.items() if k != first})
    with pytest.raises(InputError, match="unknown 'extra'"):
        injected.load_state_dict({**state, "extra": torch.zeros(1)})
    with pytest.raises(InputError, match="another shape"):
        injected.load_state_dict({**state, first: torch.zeros(1)})
    injected.load_state_dict({first: state[first]}, strict=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_logits_and_exact_unmerge(dtype):
    model, ids = models.gpt2().to(dtype), models.tokens()
    injected = trained(lora(model))
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    before = model(ids).logits
    reports = injected.merge()
    assert [r.name for r in reports] == list(injected.layers)
    # float32: rounding of the sum. bfloat16: every weight of W + ΔW is rounded to 2⁻⁹ once more
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    assert float((model(ids).logits - before).detach().float().norm() / before.detach().float().norm()) < tolerance
    with pytest.raises(InputError, match="merged already"):
        injected.merge()
    injected.unmerge()
    assert all(torch.equal(weights[name], p) for name, p in model.named_parameters())
    assert torch.equal(model(ids).logits, before)


def test_rounding_loss_is_what_bfloat16_could_not_hold():
    """methods.md B1's case: ‖ΔW‖/‖W‖ = 1e-3 on a bfloat16 weight loses most of the update; in float32 nothing."""
    losses = {}
    for dtype in (torch.bfloat16, torch.float32):
        torch.manual_seed(0)
        layer = nn.Linear(256, 256, bias=False)
        nn.init.normal_(layer.weight, std=0.02)
        injected = lora(nn.Sequential(layer).to(dtype), targets=["0"], rank=8)
        delta = injected.layers["0"].delta
        nn.init.normal_(delta.B)
        with torch.no_grad():
            delta.B.mul_(1e-3 * layer.weight.float().norm() / delta.weight().norm())
        original = layer.weight.detach().double()
        (report,) = injected.merge()
        wanted = delta.weight().double()
        assert report.relative_size == pytest.approx(1e-3, rel=1e-3)
        assert report.rounding_loss == pytest.approx(
            float((layer.weight.detach().double() - original - wanted).norm() / wanted.norm()), rel=1e-3
        )
        losses[dtype] = report.rounding_loss
    assert losses[torch.bfloat16] > 0.5
    assert losses[torch.float32] < 1e-4


@pytest.mark.parametrize("target", ["lm_head", "wte"])
def test_merging_one_of_two_tied_weights_leaves_the_other(target, tmp_path):
    from transformers import GPT2LMHeadModel

    model, ids = models.gpt2(), models.tokens()
    injected = trained(lora(model, targets=[target]))
    before, shared = model(ids).logits, model.lm_head.weight
    (report,) = injected.merge()
    assert report.untied == (("transformer.wte",) if target == "lm_head" else ("lm_head",))
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-5, atol=1e-5)  # float32 rounding
    assert not model.config.tie_word_embeddings
    merged = model(ids).logits
    injected.unmerge()
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.transformer.wte.weight is shared
    injected.merge_and_unload()
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(GPT2LMHeadModel.from_pretrained(tmp_path).eval()(ids).logits, merged)


def test_adapting_one_of_two_tied_weights_does_not_touch_the_other():
    model, ids = models.gpt2(), models.tokens()
    hidden = model(ids, output_hidden_states=True).hidden_states[0]
    trained(lora(model, targets=["lm_head"]))
    assert torch.equal(model(ids, output_hidden_states=True).hidden_states[0], hidden)


def test_a_scaled_embedding_scales_its_update():
    class Scaled(nn.Embedding):
        embed_scale = 3.0

        def forward(self, ids):
            return super().forward(ids) * self.embed_scale

    injected = trained(lora(nn.Sequential(Scaled(10, 4)), targets=["0"], rank=2))
    ids = torch.tensor([1, 5, 9])
    before = injected.model(ids)
    injected.merge()
    torch.testing.assert_close(injected.model(ids), before, rtol=1e-5, atol=1e-6)  # float32 rounding


def test_hooks_of_the_base_layer_run():
    model = nn.Sequential(nn.Linear(4, 4))
    seen = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    trained(lora(model, targets=["0"], rank=2))
    model(torch.randn(2, 4))
    assert len(seen) == 1


def test_export_and_load_within_memory():
    injected = trained(lora(models.bert(), targets="attention", modules_to_save=["classifier"]))
    adapter = injected.export(base_model_name_or_path="tiny")
    assert adapter.settings["base_model_name_or_path"] == "tiny"
    assert adapter.settings["modules_to_save"] == ["classifier"]
    other = lora(models.bert(), targets="attention", modules_to_save=["classifier"], rank=2, seed=5)
    other.load(adapter)  # of another rank and scale: the file's are taken
    ids = models.tokens()
    assert torch.equal(other.model(ids).logits, injected.model(ids).logits)
    with pytest.raises(InputError, match="modules are not the model's"):
        lora(models.bert(), targets="all-linear", modules_to_save=["classifier"]).load(adapter)
    with pytest.raises(InputError, match="saved tensors are not the model's"):
        lora(models.bert(), targets="attention").load(adapter)


def test_export_does_not_alias_the_parameters():
    injected = lora(models.llama(), targets=["q_proj"])
    adapter = injected.export()
    before = {name: update.read()["A"].copy() for name, update in adapter.updates.items()}
    trained(injected)
    assert all((update.read()["A"] == before[name]).all() for name, update in adapter.updates.items())


def test_deepcopy_of_an_adapted_model_is_independent():
    injected = trained(lora(models.llama()))
    twin = copy.deepcopy(injected)
    ids = models.tokens()
    before = injected.model(ids).logits
    assert torch.equal(twin.model(ids).logits, before)
    trained(twin)
    assert torch.equal(injected.model(ids).logits, before)


def test_compiles_without_a_graph_break():
    """In a fresh process, because this suite's checks of shapes are themselves no code to compile."""
    import subprocess
    import sys

    script = """
import torch
from lorascope.adapt.inject import inject
from lorascope.methods.lora import LoRA, LoRAConfig
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
injected = inject(model, LoRA(LoRAConfig(rank=2)), targets="all-linear")
for layer in injected.layers.values():
    torch.nn.init.normal_(layer.delta.B)
x = torch.randn(5, 8)
def gradients(call):
    for p in injected.trainable().values():
        p.grad = None
    call(x).square().sum().backward()
    return [p.grad.clone() for p in injected.trainable().values()]
eager = gradients(model)
compiled = gradients(torch.compile(model, fullgraph=True, backend="aot_eager"))
torch.testing.assert_close(compiled, eager)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
