"""NeMo's and Megatron-Bridge's state dicts by hand, alpha in the run's config or unknown."""

import json

import numpy as np
from safetensors.numpy import save_file

from tests.weights.example import Example, double, normal
from tests.weights.examples import Example as Written


def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    inner, outer = normal(rng, 3, 10), normal(rng, 6, 3)
    one = "model.language_model.encoder.layers.0.self_attention.adapter_layer.lora_kqv_adapter"
    two = "decoder.layers.0.self_attention.linear_qkv"
    delta = double(outer) @ double(inner)
    return [
        Example("nemo_1", {f"{one}.linear_in.weight": inner, f"{one}.linear_out.weight": outer}, {one: delta}),
        Example(
            "nemo_2",
            {f"{two}.adapter.linear_in.weight": inner, f"{two}.adapter.linear_out.weight": outer},
            {two: delta},
        ),
    ]


HEADS, GROUPS, WIDTH = 4, 2, 3


def fused(q, k, v):
    """Rows of query, key and value as Megatron keeps them: of each group its queries, its key, its value."""
    rows, per_group = [], HEADS // GROUPS
    for group in range(GROUPS):
        rows.append(q[group * per_group * WIDTH : (group + 1) * per_group * WIDTH])
        rows += [part[group * WIDTH : (group + 1) * WIDTH] for part in (k, v)]
    return np.concatenate(rows)


def nemo_in_hugging_faces_names(folder):
    """With a base: query, key and value taken apart, gate and up too; the scale of run_config.yaml is alpha over r."""
    rng = np.random.default_rng(1)
    a, up_a, k_a = (normal(rng, 2, 8) for _ in range(3))
    q, k, v = (normal(rng, heads * WIDTH, 2) for heads in (HEADS, GROUPS, GROUPS))
    up, one = normal(rng, 10, 2), normal(rng, GROUPS * WIDTH, 2)
    linear, canonical = "decoder.layers.0.self_attention.linear_qkv", "decoder.layers.1.self_attention.linear_qkv"
    tensors = {
        f"{linear}.adapter.linear_in.weight": a, f"{linear}.adapter.linear_out.weight": fused(q, k, v),
        "decoder.layers.0.mlp.linear_fc1.adapter.linear_in.weight": up_a,
        "decoder.layers.0.mlp.linear_fc1.adapter.linear_out.weight": up,
        f"{canonical}.adapter.adapter_k.linear_in.weight": k_a, f"{canonical}.adapter.adapter_k.linear_out.weight": one,
    }  # fmt: skip
    deltas = {
        f"model.layers.0.self_attn.{p}_proj": 8 * double(b) @ double(a) for p, b in (("q", q), ("k", k), ("v", v))
    }
    deltas["model.layers.0.mlp.gate_proj"] = 8 * double(up)[:5] @ double(up_a)
    deltas["model.layers.0.mlp.up_proj"] = 8 * double(up)[5:] @ double(up_a)
    deltas["model.layers.1.self_attn.k_proj"] = 8 * double(one) @ double(k_a)
    save_file(tensors, folder / "adapter.safetensors")
    (folder / "run_config.yaml").write_text(
        "peft:\n  _target_: megatron.bridge.peft.lora.LoRA\n  dim: 2\n  alpha: 16\n"
    )
    (folder / "base").mkdir()
    save_file(
        {f"{name}.weight": normal(rng, *delta.shape) for name, delta in deltas.items()},
        folder / "base/model.safetensors",
    )
    config = {"num_attention_heads": HEADS, "num_key_value_heads": GROUPS}
    (folder / "base/config.json").write_text(json.dumps(config))
    return Written(folder / "adapter.safetensors", deltas, folder / "base")


EXAMPLES = [nemo_in_hugging_faces_names]
