"""MLX's files by hand, with the truth by mlx_lm's own `fuse` in float64: scale·(lora_a lora_b)ᵀ, scale not over r."""

import json

import numpy as np
from safetensors.numpy import save_file

from tests.weights.example import double, normal
from tests.weights.examples import Example

SCALE = 20.0


def folder_of(folder, tensors, config, base=None):
    """An MLX adapter's folder, with a checkpoint of training next to it as mlx_lm leaves them."""
    save_file(tensors, folder / "adapters.safetensors")
    save_file({key: value * 0 for key, value in tensors.items()}, folder / "0000100_adapters.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if base is not None:
        (folder / "base").mkdir()
        save_file(base, folder / "base/model.safetensors")
        (folder / "base/config.json").write_text("{}")
    return folder


def config(sort="lora", **more):
    return {"fine_tune_type": sort, "num_layers": 2, "lora_parameters": {"rank": 3, "scale": SCALE, **more}}


def mlx_lora(folder):
    """A linear map, an embedding (V, r), and three experts, A of all of them once in three axes and once in two."""
    rng = np.random.default_rng(0)
    a, b = normal(rng, 10, 3), normal(rng, 3, 6)
    tokens, width = normal(rng, 12, 3), normal(rng, 3, 5)
    expert_a, expert_b = normal(rng, 3, 2, 7), normal(rng, 3, 4, 2)
    q, gate, up = (
        "model.layers.0.self_attn.q_proj",
        *(f"model.layers.0.mlp.switch_mlp.{p}_proj" for p in ("gate", "up")),
    )
    tensors = {
        f"{q}.lora_a": a, f"{q}.lora_b": b,
        "model.embed_tokens.lora_a": tokens, "model.embed_tokens.lora_b": width,
        f"{gate}.lora_a": expert_a, f"{gate}.lora_b": expert_b,
        f"{up}.lora_a": expert_a.reshape(6, 7), f"{up}.lora_b": expert_b,
    }  # fmt: skip
    deltas = {
        q: SCALE * (double(a) @ double(b)).T,
        "model.embed_tokens": SCALE * (double(tokens) @ double(width)).T,  # W is stored (V, d): the map is Wᵀ
    }
    for module in (gate, up):
        fused = SCALE * np.einsum("eor,eri->eoi", double(expert_b), double(expert_a))
        deltas |= {f"{module}[{e}]": fused[e] for e in range(3)}
    return Example(folder_of(folder, tensors, config()), deltas)


def mlx_dora(folder):
    rng = np.random.default_rng(1)
    a, b, m = normal(rng, 10, 3), normal(rng, 3, 6), normal(rng, 6)
    tokens, width, lengths = normal(rng, 12, 3), normal(rng, 3, 5), normal(rng, 12)
    base = {"model.layers.0.q_proj.weight": normal(rng, 6, 10), "model.embed_tokens.weight": normal(rng, 12, 5)}
    linear = double(base["model.layers.0.q_proj.weight"])
    turned = linear + SCALE * (double(a) @ double(b)).T
    embedding = double(base["model.embed_tokens.weight"])
    moved = embedding + SCALE * double(tokens) @ double(width)
    tensors = {
        "model.layers.0.q_proj.lora_a": a, "model.layers.0.q_proj.lora_b": b, "model.layers.0.q_proj.m": m,
        "model.embed_tokens.lora_a": tokens, "model.embed_tokens.lora_b": width, "model.embed_tokens.m": lengths,
    }  # fmt: skip
    deltas = {
        "model.layers.0.q_proj": (double(m) / np.linalg.norm(turned, axis=1))[:, None] * turned - linear,
        "model.embed_tokens": (double(lengths) / np.linalg.norm(moved, axis=1))[:, None] * moved - embedding,
    }
    return Example(folder_of(folder, tensors, config("dora"), base), deltas, folder / "base")


def mlx_full(folder):
    rng = np.random.default_rng(2)
    name = "model.layers.1.mlp.down_proj"
    base = {f"{name}.weight": normal(rng, 6, 10), "model.norm.weight": normal(rng, 6)}
    tuned = {f"{name}.weight": normal(rng, 6, 10), "model.norm.weight": normal(rng, 6)}
    delta = double(tuned[f"{name}.weight"]) - double(base[f"{name}.weight"])
    written = {"fine_tune_type": "full", "num_layers": 1}
    return Example(folder_of(folder, tuned, written, base), {name: delta}, folder / "base")


def mlx_vlm(folder):
    rng = np.random.default_rng(3)
    a, b, name = normal(rng, 10, 3), normal(rng, 3, 6), "language_model.model.layers.0.self_attn.q_proj"
    written = {"rank": 3, "alpha": 0.1, "dropout": 0.0}
    delta = 0.1 * (double(a) @ double(b)).T
    return Example(folder_of(folder, {f"{name}.A": a, f"{name}.B": b}, written), {name: delta})


def mlx_experts_of_hugging_face(folder):
    """A base that keeps Mixtral's experts apart: the updates have its names."""
    rng = np.random.default_rng(4)
    a, b, place = normal(rng, 2, 2, 7), normal(rng, 2, 4, 2), "model.layers.0.block_sparse_moe"
    base = {f"{place}.experts.{e}.w1.weight": normal(rng, 4, 7) for e in range(2)}
    tensors = {f"{place}.switch_mlp.gate_proj.lora_a": a, f"{place}.switch_mlp.gate_proj.lora_b": b}
    deltas = {f"{place}.experts.{e}.w1": SCALE * double(b)[e] @ double(a)[e] for e in range(2)}
    return Example(folder_of(folder, tensors, config(), base), deltas, folder / "base")


EXAMPLES = [mlx_lora, mlx_dora, mlx_full, mlx_vlm, mlx_experts_of_hugging_face]
