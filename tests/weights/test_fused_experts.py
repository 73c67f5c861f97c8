"""Experts that lie apart in an adapter, on bases that fuse them: W of each, and the merged model."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from lorascope.adapt.merge import merge
from lorascope.updates.base import dense
from lorascope.weights import io
from lorascope.weights.checkpoint import open_checkpoint

E, D, F, R = 3, 32, 16, 2
SIZES = {
    "vocab_size": 48, "hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
    "head_dim": 16, "initializer_range": 0.3,
}  # fmt: skip
OWNER = "model.layers.0.mlp.experts"


def build(kind):
    torch.manual_seed(0)
    if kind == "gpt_oss":  # transposed, gate and up in turns; both of its matrices are square for a fused one of 2·16
        return GptOssForCausalLM(GptOssConfig(**SIZES, intermediate_size=F, num_local_experts=E, num_experts_per_tok=1))
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, moe_intermediate_size=F, num_experts=E, num_experts_per_tok=1))


@pytest.fixture
def tinker(tmp_path):
    rng = torch.Generator().manual_seed(1)
    shapes = {"w1": ((1, R, D), (E, F, R)), "w3": ((1, R, D), (E, F, R)), "w2": ((E, R, F), (1, D, R))}
    tensors = {
        f"base_model.model.{OWNER}.{part}.lora_{side}.weight": torch.randn(shape, generator=rng)
        for part, both in shapes.items()
        for side, shape in zip("AB", both, strict=True)
    }
    (tmp_path / "a").mkdir()
    save_file(tensors, tmp_path / "a/adapter_model.safetensors")
    (tmp_path / "a/adapter_config.json").write_text(json.dumps({"lora_alpha": 4, "r": R}))
    return tmp_path / "a"


def of_expert(weights, kind, part, expert):
    """W (d_out, d_in) as the model's own forward takes it."""
    if part == "down_proj":
        whole = weights[f"{OWNER}.down_proj"][expert]
        return whole.T if kind == "gpt_oss" else whole
    whole, up = weights[f"{OWNER}.gate_up_proj"][expert], part == "up_proj"
    return whole[:, up::2].T if kind == "gpt_oss" else whole.chunk(2)[up]


@pytest.mark.parametrize("kind", ["gpt_oss", "qwen3_moe"])
def test_w_of_an_expert_and_the_merged_model(kind, tinker, tmp_path):
    model = build(kind)
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    save_file(before | {"lm_head.weight": before["lm_head.weight"].clone()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    base = open_checkpoint(tmp_path)  # fused, as gpt-oss is stored, and what transformers holds in memory
    adapter = io.read(tinker, base)
    assert len(adapter.updates) == 3 * E
    for name, update in adapter.updates.items():
        expert, part = name.split(".")[-2:]
        wanted = of_expert(before, kind, part, int(expert))
        np.testing.assert_array_equal(base.of(update).read(), wanted.double().numpy())
    done = merge(model, adapter, checkpoint=base)
    assert len(done.weights) == 3 * E
    after = model.state_dict()
    for name, update in adapter.updates.items():
        expert, part = name.split(".")[-2:]
        change = (of_expert(after, kind, part, int(expert)) - of_expert(before, kind, part, int(expert))).double()
        np.testing.assert_allclose(change.numpy(), dense(update.delta()), rtol=0, atol=2e-6)  # float32 sums
    factors = load_file(tinker / "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.{OWNER}.w3.lora_{side}.weight"].double() for side in "AB")
    np.testing.assert_allclose(dense(adapter.updates[f"{OWNER}.1.up_proj"].delta()), (2 * b[1] @ a[0]).numpy())


def test_mixtrals_old_names_are_those_of_today_s_experts_and_router(tmp_path):
    """Before transformers 5 they lay apart, below `block_sparse_moe`; PEFT loads such a file into fused ones."""
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**SIZES, intermediate_size=F, num_local_experts=E, num_experts_per_tok=1))
    before = {name: tensor.detach().double() for name, tensor in model.state_dict().items()}
    old = "model.layers.0.block_sparse_moe"
    sides = {f"{old}.experts.{e}.{part}": (F, D) for e in range(E) for part in ("w1", "w3")}
    sides |= {f"{old}.experts.{e}.w2": (D, F) for e in range(E)} | {f"{old}.gate": (E, D)}
    factors = {name: (torch.randn(out, R), torch.randn(R, into)) for name, (out, into) in sides.items()}
    tensors = {}
    for name, (b, a) in factors.items():
        tensors |= {f"base_model.model.{name}.lora_{role}.weight": each for role, each in (("A", a), ("B", b))}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": R, "r": R}))
    merge(model, io.read(tmp_path))
    after = {name: tensor.double() - before[name] for name, tensor in model.state_dict().items()}
    changes = {name: (b.double() @ a.double()) for name, (b, a) in factors.items()}
    for e in range(E):
        gate_up = torch.cat([changes[f"{old}.experts.{e}.{part}"] for part in ("w1", "w3")])
        torch.testing.assert_close(after[f"{OWNER}.gate_up_proj"][e], gate_up, rtol=0, atol=2e-6)  # float32 sums
        down = changes[f"{old}.experts.{e}.w2"]
        torch.testing.assert_close(after[f"{OWNER}.down_proj"][e], down, rtol=0, atol=2e-6)
    gate = after["model.layers.0.mlp.gate.weight"]
    torch.testing.assert_close(gate, changes[f"{old}.gate"], rtol=0, atol=2e-6)
