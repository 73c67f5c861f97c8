"""The fused node on a CUDA device: against the formula there, and against the CPU."""

import dataclasses

import pytest
import torch
from torch import nn

from lorascope.adapt.inject import inject
from lorascope.adapt.method import methods
from lorascope.methods.lora import LoRA, LoRAConfig
from tests.methods import models

pytestmark = pytest.mark.gpu


def adapted(model: nn.Module):
    injected = inject(model, LoRA(LoRAConfig(rank=4)), targets="all-linear")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in injected.trainable().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return injected


def gradients(model: nn.Module, injected, ids) -> dict[str, torch.Tensor]:
    for parameter in injected.trainable().values():
        parameter.grad = None
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad.detach().cpu() for name, p in injected.trainable().items()}


@pytest.mark.parametrize("make", [models.llama, models.gpt2])
def test_a_model_on_the_gpu_equals_it_on_the_cpu(make, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    ids = models.tokens()
    on_cpu = adapted(make())
    wanted, logits = gradients(on_cpu.model, on_cpu, ids), on_cpu.model(ids).logits.detach()
    on_gpu = adapted(make().cuda())
    assert all(p.is_cuda for p in on_gpu.trainable().values())
    found = gradients(on_gpu.model, on_gpu, ids.cuda())
    # float32 sums in another order
    torch.testing.assert_close(on_gpu.model(ids.cuda()).logits.detach().cpu(), logits, rtol=1e-4, atol=1e-5)
    for name, gradient in found.items():
        assert float((gradient - wanted[name]).norm() / wanted[name].norm()) < 1e-5, name


@pytest.mark.parametrize("name", methods.names())
def test_every_method_on_the_gpu_equals_it_on_the_cpu(name, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    ids, method = models.tokens(), methods.get(name)
    found = {}
    for device in ("cpu", "cuda"):
        injected = inject(models.bert().to(device), method(small(method.Config)), targets="all-linear", seed=1)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in injected.trainable().values():
                parameter.add_((torch.randn(parameter.shape, generator=generator) * 0.05).to(parameter))
        injected.model(input_ids=ids.to(device)).logits.square().sum().backward()
        found[device] = {key: p.grad.cpu() for key, p in injected.trainable().items() if p.grad is not None}
    assert found["cpu"].keys() == found["cuda"].keys()
    for key, gradient in found["cuda"].items():
        wanted = found["cpu"][key]  # float32 sums in another order
        assert float((gradient - wanted).norm()) < 1e-4 * float(wanted.norm()) + 1e-6, key


def small(config: type) -> object:
    """The method's settings with no rank above what the tiny model has."""
    known = {field.name for field in dataclasses.fields(config)}
    return config(**{name: value for name, value in {"rank": 4, "d": 64}.items() if name in known})


def test_the_draws_are_the_same_on_both():
    on_cpu = inject(models.llama(), LoRA(LoRAConfig(rank=4)), targets="all-linear")
    on_gpu = inject(models.llama().cuda(), LoRA(LoRAConfig(rank=4)), targets="all-linear")
    assert all(torch.equal(on_gpu.trainable()[name].cpu(), value) for name, value in on_cpu.trainable().items())


def test_bfloat16_base_and_autocast():
    ids = models.tokens().cuda()
    exact = adapted(models.llama().cuda())
    wanted = gradients(exact.model, exact, ids)
    narrow = adapted(models.llama().cuda().to(torch.bfloat16))
    mixed = adapted(models.llama().cuda())
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = mixed.model(input_ids=ids, labels=ids).loss
    loss.backward()
    for found in (gradients(narrow.model, narrow, ids), {n: p.grad.cpu() for n, p in mixed.trainable().items()}):
        assert all(g.dtype == torch.float32 for g in found.values())
        error = sum(float((found[n] - wanted[n]).square().sum()) for n in wanted) ** 0.5
        assert (
            error / sum(float(w.square().sum()) for w in wanted.values()) ** 0.5 < 0.05
        )  # bfloat16 through two blocks


def test_merge_on_the_gpu():
    injected = adapted(models.gpt2().cuda())
    ids = models.tokens().cuda()
    weights = {name: p.detach().clone() for name, p in injected.model.named_parameters()}
    before = injected.model.eval()(ids).logits
    injected.merge()
    torch.testing.assert_close(injected.model(ids).logits, before, rtol=1e-3, atol=1e-4)  # float32, TF32 possible
    injected.unmerge()
    assert all(torch.equal(weights[name], p) for name, p in injected.model.named_parameters())


def test_compiled_equals_eager():
    injected = adapted(models.llama().cuda())
    ids = models.tokens().cuda()
    wanted = gradients(injected.model, injected, ids)
    found = gradients(torch.compile(injected.model), injected, ids)
    for name in wanted:
        assert float((found[name] - wanted[name]).norm() / wanted[name].norm()) < 1e-4, (
            name
        )  # other kernels, same dtype
