"""Where PEFT's layer computes more than s·B·A on one weight: torch's attention, replicas, starts taken away from W."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from torch import nn
from transformers import GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM

from lorascope.analyses import spectrum
from lorascope.analyses import truncate as resize
from lorascope.analyses.spectrum.result import COMPARISON
from lorascope.errors import InputError
from lorascope.updates.base import dense
from lorascope.weights import io
from lorascope.weights.caveats import of_another_base
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.tensors import InMemory

TINY = {"vocab_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}


def llama(folder, seed=0, **more):
    torch.manual_seed(seed)
    size = {"hidden_size": 16, "intermediate_size": 24, "initializer_range": 0.3}
    model = LlamaForCausalLM(LlamaConfig(**{**TINY, **size, **more}))
    model.save_pretrained(folder)
    return model


def trained(model, config, folder):
    """A PEFT model whose factors have moved, saved; the model."""
    peft = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    peft.save_pretrained(folder)
    return peft


@pytest.mark.parametrize("r", [4, 20])  # of 16 and 24 directions
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_start_that_was_taken_from_w_is_taken_away_again(init, r, tmp_path):
    """PEFT's own merge of the reloaded file, less W, but for the rounding of W − S and of the sum to float32: 1e-7 of
    ‖W‖. The fourth and the fifth direction of one weight are as good as degenerate: which of them is taken away is
    decided by the rounding of the SVD itself, and S of an SVD in float64 is another one."""
    model = llama(tmp_path / "base")
    close = model.model.layers[0].self_attn.q_proj.weight
    u, sigma, vh = torch.linalg.svd(close.detach().double(), full_matrices=False)
    sigma[4] = sigma[3] * (1 - 1e-8)
    close.data = (u * sigma @ vh).float()
    model.save_pretrained(tmp_path / "base")
    before = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    targets = ["q_proj", "down_proj", "embed_tokens"]  # of an embedding no start is taken
    trained(model, LoraConfig(r=r, target_modules=targets, init_lora_weights=init), tmp_path / "a")
    reloaded = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "a")
    after = dict(reloaded.merge_and_unload().named_parameters())
    base = open_checkpoint(tmp_path / "base")
    adapter = io.read(tmp_path / "a", base)
    assert of_another_base(adapter) is None  # which merge asks
    for name, update in adapter.updates.items():
        weight = before[f"{name}.weight"].numpy()
        change = after[f"{name}.weight"].detach().double().numpy() - weight
        found = dense(update.delta(base.of(update).read() if update.needs_base else None))
        found = found.T if update.transposed else found
        assert np.linalg.norm(found - change) < 2e-7 * np.linalg.norm(weight)
    with pytest.raises(InputError, match="depends on the base weights"):
        resize.decompose(io.read(tmp_path / "a"))
    alone = spectrum.run(io.read(tmp_path / "a"))
    assert any("s·B·A, which is not the full ΔW" in finding.text for finding in alone.findings)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attn = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        return self.attn(x, x, x, need_weights=False)[0]

    def changed(self, adapter):
        """What it gives with the adapter's ΔW added to its weights."""
        with torch.no_grad():
            for name, update in adapter.updates.items():
                own = update.base_weight or f"{name}.weight"
                self.get_parameter(own).add_(torch.from_numpy(dense(update.delta())))
        return self(X)


X = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
STORED = {"rtol": 1e-6, "atol": 1e-7}  # factors are stored in float32


@pytest.mark.parametrize(
    "patterns",
    [{}, {"alpha_pattern": {"attn": 5}}, {"alpha_pattern": {"out_proj": 5}}, {"rank_pattern": {"attn": 1}}],
)
def test_torch_s_attention_is_what_peft_s_layer_computes(patterns, tmp_path):
    """PEFT takes rank and α of both projections from the attention's own entry, and adds out_proj's update twice."""
    model = Attention().double()
    torch.save(model.state_dict(), tmp_path / "base.pt")
    peft = trained(model, LoraConfig(r=2, lora_alpha=3, target_modules=["attn"], **patterns), tmp_path / "a")
    expected = peft(X).detach()
    adapter = io.read(tmp_path / "a", open_checkpoint(tmp_path / "base.pt"))
    assert set(adapter.updates) == {"attn.in_proj_weight", "attn.out_proj"}
    torch.testing.assert_close(Attention().double().changed(adapter), expected, **STORED)
    result = spectrum.run(adapter, base=open_checkpoint(tmp_path / "base.pt"))
    assert not result.skipped_in(COMPARISON)


@pytest.mark.parametrize("scales", [(1.5, 3.0), (0.5, 7.0), (0.0, 2.0), (2.0, 0.0), (0.0, 0.0)])
@pytest.mark.parametrize("rank", [1, 2])
def test_torch_s_attention_is_written_as_peft_reads_it(scales, rank, tmp_path):
    """Its wrapper has one rank and one scale: the smaller rank is filled up, and B takes what the scale lacks."""
    trained(Attention(), LoraConfig(r=2, lora_alpha=3, target_modules=["attn"]), tmp_path / "a")
    adapter = io.read(tmp_path / "a")
    updates = {}
    for name, scale, r in zip(("attn.in_proj_weight", "attn.out_proj"), scales, (2, rank), strict=True):
        a, b = (adapter.updates[name].read()[role] for role in "AB")
        roles = {"A": InMemory(a[:r]), "B": InMemory(b[:, :r])}
        updates[name] = replace(adapter.updates[name], roles=roles, scale=scale)
    adapter = replace(adapter, updates=updates)
    io.write(adapter, tmp_path / "b")
    model = PeftModel.from_pretrained(Attention().double(), tmp_path / "b", autocast_adapter_dtype=False)
    torch.testing.assert_close(model.double()(X), Attention().double().changed(adapter), **STORED)


def test_replicas_are_compared_with_the_layer_they_are_made_of(tmp_path):
    model = llama(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], layer_replication=[[0, 1], [0, 2]])
    trained(model, config, tmp_path / "a")
    base = open_checkpoint(tmp_path / "base")
    adapter = io.read(tmp_path / "a", base)
    source = {0: 0, 1: 0, 2: 1}
    assert len(adapter.updates) == 3
    for name, update in adapter.updates.items():
        layer = source[int(name.split(".")[2])]
        expected = base.weight(f"model.layers.{layer}.self_attn.q_proj").read()
        np.testing.assert_array_equal(base.of(update).read(), expected)
    io.write(adapter, tmp_path / "b")  # and are written as they were
    assert load_file(tmp_path / "b" / "adapter_model.safetensors").keys() == (
        load_file(tmp_path / "a" / "adapter_model.safetensors").keys()
    )
    assert json.loads((tmp_path / "b" / "adapter_config.json").read_text())["layer_replication"] == [[0, 1], [0, 2]]


def test_plain_weights_among_target_parameters_are_written_as_their_layers(tmp_path):
    model = llama(tmp_path / "base")
    names = ["self_attn.q_proj.weight", "self_attn.v_proj.weight"]
    trained(model, LoraConfig(r=2, target_modules=[], target_parameters=names), tmp_path / "a")
    io.write(io.read(tmp_path / "a", open_checkpoint(tmp_path / "base")), tmp_path / "b")
    merged = [
        PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / which)
        .merge_and_unload()
        .state_dict()
        for which in "ab"
    ]
    for name, weight in merged[0].items():
        torch.testing.assert_close(merged[1][name], weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("width", [16, 24])
def test_experts_stored_transposed_are_told_by_their_class(width, tmp_path):
    torch.manual_seed(0)
    config = GptOssConfig(**TINY, hidden_size=16, intermediate_size=width, num_local_experts=3, head_dim=8)
    model = GptOssForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    path = "model.layers.0.mlp.experts.down_proj"
    before = model.get_parameter(path).detach().double().clone()
    parameters = ["mlp.experts.down_proj"]
    peft = trained(model, LoraConfig(r=2, target_modules=[], target_parameters=parameters), tmp_path / "a")
    change = peft.merge_and_unload().get_parameter(path).detach().double() - before
    base = open_checkpoint(tmp_path / "base")
    for expert in range(3):
        update = io.read(tmp_path / "a", base).updates[f"{path}[{expert}]"]
        assert update.transposed
        np.testing.assert_allclose(dense(update.delta()).T, change[expert].numpy(), rtol=0, atol=1e-6)
        np.testing.assert_array_equal(base.of(update).read(), before[expert].numpy().T)


@pytest.mark.parametrize("flag", [True, False])
def test_without_a_base_the_flag_says_how_w_is_stored_and_a_head_is_a_linear(flag, tmp_path):
    """`fan_in_fan_out` is PEFT's word for a Conv1D's W (d_in, d_out); PEFT takes it back for a Linear."""
    tensors = {}
    for module in ("h.0.attn.c_attn", "score"):
        tensors[f"base_model.model.{module}.lora_A.weight"] = np.ones((2, 6), np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = np.ones((4, 2), np.float32)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "fan_in_fan_out": flag, "target_modules": ["c_attn"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    updates = io.read(tmp_path).updates
    assert updates["h.0.attn.c_attn"].transposed is flag
    assert updates["score"].transposed is False
