"""Adapters on frozen bases in codes, against PEFT's on the same base and against the dequantised base."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

import lorascope as ls
from lorascope.adapt.dequantise import dense_weight, is_quantised
from tests.methods.models import llama, tokens
from tests.training.test_callbacks import Rows

TARGETS = ["q_proj", "down_proj"]
FOUR = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
BITS = {4: FOUR, 8: {"load_in_8bit": True}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("bitsandbytes")
    path = tmp_path_factory.mktemp("base")
    model = llama(head_dim=16)
    config = copy.deepcopy(model.config)
    config.hidden_size, config.intermediate_size, config.tie_word_embeddings = 64, 128, False  # blocks of 64
    torch.manual_seed(0)
    type(model)(config).save_pretrained(path)
    return path


def quantised(folder, bits: int) -> nn.Module:
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(**BITS[bits]), device_map="cpu"
    )
    return model.train()


def step(model):
    """The loss of one pass in training, whose gradients are left."""
    loss = model(tokens(), labels=tokens()).loss
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize(("bits", "dora"), [(4, False), (8, False), (4, True), (8, True)])
def test_it_trains_as_pefts_on_the_same_base(folder, bits, dora):
    config = LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS, task_type="CAUSAL_LM", use_dora=dora)
    theirs, model = get_peft_model(quantised(folder, bits), config).train(), quantised(folder, bits)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8)
    injected = ls.load(model, ls.read(theirs))
    model.train()
    # float32 and sums in another order; int8 products round x, so a last bit of x moves its code
    close = {"rtol": 1e-4, "atol": 1e-5} if bits == 4 else {"rtol": 2e-2, "atol": 2e-3}
    torch.testing.assert_close(step(model), step(theirs), **close)
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    for name, layer in injected.layers.items():
        for role in "AB":
            peft = gradients[f"base_model.model.{name}.lora_{role}.default.weight"]
            torch.testing.assert_close(getattr(layer.delta, role).grad, peft, **close)
        if dora:
            peft = gradients[f"base_model.model.{name}.lora_magnitude_vector.default.weight"]
            torch.testing.assert_close(layer.delta.m.grad, peft, **close)


@pytest.mark.parametrize("bits", [4, 8])
def test_merging_dequantises_and_says_what_coding_again_loses(folder, bits):
    model = quantised(folder, bits)
    injected = ls.inject(model, "lora", r=4, lora_alpha=8, target_modules=TARGETS)
    with torch.no_grad():
        for layer in injected.layers.values():
            layer.delta.B.normal_(std=0.05)
    layer = injected.layers["model.layers.0.self_attn.q_proj"]
    coded, dense = layer.base, dense_weight(layer.base)
    delta = layer.delta.weight()
    reports = {report.name: report for report in injected.merge()}
    assert type(layer.base) is nn.Linear
    torch.testing.assert_close(layer.base.weight.data, dense + delta, rtol=1e-6, atol=1e-7)
    lost = reports["model.layers.0.self_attn.q_proj"].requantising_loss
    if bits == 8:
        merged = dense + delta
        largest = merged.abs().amax(dim=1, keepdim=True)
        error = torch.round(merged / largest * 127) * largest / 127 - merged
        assert lost == pytest.approx(float(error.norm() / delta.norm()), rel=1e-2)  # a code at a tie may go either way
    assert lost > 0
    injected.unmerge()
    assert layer.base is coded
    injected.merge_and_unload()
    assert is_quantised(model.model.layers[0].self_attn.k_proj)
    assert "model.layers.0.self_attn.q_proj" in model.config.quantization_config.llm_int8_skip_modules
    with torch.no_grad():
        assert torch.isfinite(model(tokens()).logits).all()


def test_trainer_takes_a_quantised_base(folder, tmp_path):
    model = quantised(folder, 4)
    ls.inject(model, "lora", r=2, target_modules=TARGETS)
    arguments = TrainingArguments(str(tmp_path), max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True)
    Trainer(model, arguments, train_dataset=Rows()).train()
    assert (tmp_path / "checkpoint-2" / "adapter_model.safetensors").is_file()
    assert not list((tmp_path / "checkpoint-2").glob("model*"))


class Packed(nn.Module):
    """As GPTQ's and AWQ's layers: codes, scales, no weight, and only its forward pass knows how they are packed."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.in_features, self.out_features = d_in, d_out
        self.register_buffer("qweight", torch.randint(-8, 8, (d_in, d_out), dtype=torch.int32))
        self.register_buffer("scales", torch.rand(d_out))
        self.bias = nn.Parameter(torch.randn(d_out), requires_grad=False)

    def forward(self, x):
        return x @ (self.qweight * self.scales) + self.bias


@pytest.mark.parametrize("method", ["lora", "dora", "vera"])
def test_a_layer_of_codes_alone_is_a_base(method):
    torch.manual_seed(0)
    net = nn.Sequential(Packed(6, 5), nn.Tanh(), Packed(5, 4))
    plain = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).requires_grad_(False)
    for ours, codes in zip(plain[::2], net[::2], strict=True):
        ours.weight.copy_((codes.qweight * codes.scales).t())
        ours.bias.copy_(codes.bias)
    x = torch.randn(7, 6)
    adapted = [ls.inject(each, method, r=2, target_modules=["0", "2"]) for each in (net, plain)]
    for one in adapted:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in one.trainable().values():
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 4)
    # float32, and W was taken out of the forward pass
    torch.testing.assert_close(net(x), plain(x), rtol=1e-4, atol=1e-5)
    for one in adapted:
        one.model(x).square().sum().backward()
    for ours, theirs in zip(*(one.trainable().values() for one in adapted), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)
    before = net(x).detach()
    adapted[0].merge()
    assert type(adapted[0].layers["0"].base) is nn.Linear
    torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-4)


def test_torchao_codes_are_a_base():
    quantization = pytest.importorskip("torchao.quantization")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32))
    quantization.quantize_(net, quantization.Int8WeightOnlyConfig())
    x = torch.randn(3, 64)
    base = net(x).detach()
    injected = ls.inject(net, "lora", r=2, target_modules=["0"])
    with torch.no_grad():
        injected.layers["0"].delta.B.normal_()
        dense = dense_weight(injected.layers["0"].base) + injected.layers["0"].delta.weight()
        adapted = net(x)
        assert not torch.allclose(adapted, base)
        injected.merge()
        torch.testing.assert_close(injected.layers["0"].base.weight.data, dense)
        torch.testing.assert_close(net(x), adapted, rtol=1e-3, atol=1e-3)  # torchao's product rounds otherwise
