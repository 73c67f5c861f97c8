"""GGUF adapters as llama.cpp's converter writes them, by the gguf package; the truth is the PEFT adapter's before."""

import json

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from safetensors.numpy import save_file

from tests.weights.example import double, normal
from tests.weights.examples import Example

ALPHA = 12.0
HEADS, KEY_HEADS = 4, 2


def permuted(b, heads):
    """Rows i and i + d/2 of each head side by side: what `LlamaModel.permute` does, one row at a time."""
    width = len(b) // heads
    order = [
        head * width + half * (width // 2) + i for head in range(heads) for i in range(width // 2) for half in (0, 1)
    ]
    return b[order]


def write(path, tensors, architecture="llama", alpha=ALPHA, **metadata):
    """A GGUF file of general.type adapter."""
    writer = GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    writer.add_array("some.list", [1, 2, 3])
    writer.add_array("some.words", ["a", "b"])
    for key, value in metadata.items():
        writer.add_uint32(key, value)
    for name, array in tensors.items():
        array, dtype = array if isinstance(array, tuple) else (array, None)
        writer.add_tensor(name, array, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def base_of(folder, tensors, **config):
    (folder / "base").mkdir()
    save_file(tensors, folder / "base/model.safetensors")
    (folder / "base/config.json").write_text(json.dumps(config))
    return folder / "base"


def gguf_llama(folder):
    """Query and key permuted, an embedding transposed, a norm, and a base that says how many heads there are."""
    rng = np.random.default_rng(0)
    layer = "model.layers.0"
    pairs = {"q": (normal(rng, 3, 10), normal(rng, 16, 3)), "k": (normal(rng, 3, 10), normal(rng, 8, 3))}
    tokens, width = normal(rng, 3, 12), normal(rng, 10, 3)
    tensors = {
        "blk.0.attn_q.weight.lora_a": pairs["q"][0], "blk.0.attn_q.weight.lora_b": permuted(pairs["q"][1], HEADS),
        "blk.0.attn_k.weight.lora_a": pairs["k"][0], "blk.0.attn_k.weight.lora_b": permuted(pairs["k"][1], KEY_HEADS),
        "token_embd.weight.lora_a": np.ascontiguousarray(tokens.T), "token_embd.weight.lora_b": width,
        "blk.0.attn_norm.weight": normal(rng, 10),
    }  # fmt: skip
    deltas = {f"{layer}.self_attn.{p}_proj": ALPHA / 3 * double(b) @ double(a) for p, (a, b) in pairs.items()}
    deltas["model.embed_tokens"] = ALPHA / 3 * double(width) @ double(tokens)
    base = {f"{name}.weight": normal(rng, *delta.shape) for name, delta in deltas.items() if "layers" in name}
    base["model.embed_tokens.weight"] = normal(rng, 12, 10)
    folder_of_base = base_of(folder, base, num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS)
    skipped = frozenset({"blk.0.attn_norm.weight"})
    return Example(write(folder / "a.gguf", tensors), deltas, folder_of_base, skipped=skipped)


def gguf_types(folder):
    """f16, bf16 and q8_0, no alpha, experts; the truth from the numbers that the types hold."""
    rng = np.random.default_rng(1)
    a, b = normal(rng, 2, 64), normal(rng, 32, 32)
    half = normal(rng, 32, 64).astype(np.float16)
    blocks = quantize(b, GGMLQuantizationType.Q8_0)
    # 34 bytes a block: the scale in float16, then 32 codes
    codes = blocks.reshape(-1, 34)[:, 2:].view(np.int8).astype(np.float64)
    scales = blocks.reshape(-1, 34)[:, :2].copy().view(np.float16).astype(np.float64)
    held = (codes * scales).reshape(32, 32)
    brain = (a.view(np.uint32) >> 16).astype(np.uint16)
    cut = (brain.astype(np.uint32) << 16).view(np.float32)
    v_b, expert_a, expert_b = normal(rng, 5, 2), normal(rng, 3, 2, 7), normal(rng, 3, 4, 2)
    tensors = {
        "blk.1.attn_output.weight.lora_a": half,
        "blk.1.attn_output.weight.lora_b": (blocks, GGMLQuantizationType.Q8_0),
        "blk.1.attn_v.weight.lora_a": (brain.view(np.uint8), GGMLQuantizationType.BF16),
        "blk.1.attn_v.weight.lora_b": v_b,
        "blk.1.ffn_down_exps.weight.lora_a": expert_a, "blk.1.ffn_down_exps.weight.lora_b": expert_b,
    }  # fmt: skip
    deltas = {
        "model.layers.1.self_attn.o_proj": held @ double(half),
        "model.layers.1.self_attn.v_proj": double(v_b) @ double(cut),
    }
    deltas |= {f"model.layers.1.mlp.experts.{e}.down_proj": double(expert_b)[e] @ double(expert_a)[e] for e in range(3)}
    return Example(write(folder / "sha256-of-ollama", tensors, "qwen3moe", 0.0), deltas)


def gguf_unknown_architecture(folder):
    rng = np.random.default_rng(2)
    a, b = normal(rng, 2, 6), normal(rng, 4, 2)
    tensors = {"blk.0.attn_qkv.weight.lora_a": a, "blk.0.attn_qkv.weight.lora_b": b}
    delta = {"blk.0.attn_qkv": ALPHA / 2 * double(b) @ double(a)}
    return Example(write(folder / "a.gguf", tensors, "falcon"), delta)


EXAMPLES = [gguf_llama, gguf_types, gguf_unknown_architecture]
