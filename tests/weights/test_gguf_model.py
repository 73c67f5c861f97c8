"""Whole models in GGUF against ggml's own package, and llama.cpp's permutation written out."""

import json

import numpy as np
import pytest

from lorascope.errors import InputError
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.quantised import Decoded, Unreadable

gguf = pytest.importorskip("gguf")
TYPES = gguf.constants.GGMLQuantizationType
HEADS, KEY_HEADS, WIDTH = 4, 2, 256


def permute(weights, heads):
    """As `LlamaModel.permute` in llama.cpp's conversion has it."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def write(path, tensors, architecture="llama", heads=HEADS):
    """`tensors`: by llama.cpp's name, numbers, or (bytes of blocks, type)."""
    writer = gguf.GGUFWriter(path, architecture)
    if heads:
        writer.add_head_count(heads)
        writer.add_head_count_kv(KEY_HEADS)
    writer.add_block_count(1)
    for name, tensor in tensors.items():
        blocks, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
        writer.add_tensor(name, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def coded(values, kind):
    return gguf.quants.quantize(values.astype(np.float32), kind), kind


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_a_llama_by_its_own_names(rng, kind, tmp_path):
    kind = TYPES[kind]
    query, key, down = (rng.standard_normal((size, WIDTH)) for size in (WIDTH, WIDTH // 2, 96))
    norm = rng.standard_normal(WIDTH).astype(np.float32)
    tensors = {
        "token_embd.weight": coded(down, TYPES.Q8_0),
        "blk.0.attn_q.weight": coded(permute(query, HEADS), kind),
        "blk.0.attn_k.weight": coded(permute(key, KEY_HEADS), kind),
        "blk.0.ffn_down.weight": coded(down, kind),
        "blk.0.attn_norm.weight": norm,
        "output_norm.weight": norm,
    }
    checkpoint = open_checkpoint(write(tmp_path / "m.gguf", tensors))
    stored = checkpoint.stored
    layer = "model.layers.0"
    for name, values in (("self_attn.q_proj", query), ("self_attn.k_proj", key), ("mlp.down_proj", down)):
        expected = gguf.quants.dequantize(coded(values, kind)[0], kind)
        np.testing.assert_array_equal(stored[f"{layer}.{name}.weight"].read(), expected)
        assert stored[f"{layer}.{name}.weight"].scheme == f"GGUF {kind.name}"
    np.testing.assert_array_equal(stored[f"{layer}.input_layernorm.weight"].read(), norm)
    assert "model.norm.weight" in stored
    rows = stored[f"{layer}.mlp.down_proj.weight"].rows(3, 9).read()
    np.testing.assert_array_equal(rows, stored[f"{layer}.mlp.down_proj.weight"].read()[3:9])
    assert checkpoint.resolve("lm_head") == "model.embed_tokens.weight"


K_QUANTS = [kind for kind in TYPES if kind.name.endswith("_K") and kind.name != "Q8_K"]
OTHERS = [*K_QUANTS, *(kind for kind in TYPES if kind.name.startswith(("IQ", "TQ", "MX")))]


@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.name)
def test_other_blocks(rng, kind, tmp_path):
    """Random bytes are blocks too."""
    entries, size = gguf.constants.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (6, 512 // entries * size)).astype(np.uint8)
    stored = open_checkpoint(write(tmp_path / "m.gguf", {"blk.0.ffn_up.weight": (blocks, kind)}, "qwen3")).stored
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, kind)
        np.testing.assert_array_equal(stored["model.layers.0.mlp.up_proj.weight"].read(), expected)


def test_experts_and_norms_that_one_was_added_to(rng, tmp_path):
    experts = rng.standard_normal((3, 8, 32)).astype(np.float32)
    path = write(
        tmp_path / "m.gguf", {"blk.0.ffn_up_exps.weight": experts, "blk.0.ffn_gate_exps.weight": experts}, "qwen3moe"
    )
    checkpoint = open_checkpoint(path)
    np.testing.assert_array_equal(checkpoint.weight("model.layers.0.mlp.experts.2.up_proj").read(), experts[2])
    fused = checkpoint.weight("model.layers.0.mlp.experts.gate_up_proj").read()
    np.testing.assert_array_equal(fused, np.concatenate([experts, experts], axis=1))
    norm = np.linspace(0, 2, 8).astype(np.float32)
    gemma = open_checkpoint(write(tmp_path / "g.gguf", {"blk.0.ffn_norm.weight": norm}, "gemma2"))
    np.testing.assert_array_equal(
        gemma.stored["model.layers.0.pre_feedforward_layernorm.weight"].read(), norm.astype(float) - 1
    )


def test_rows_without_heads_are_not_read(rng, tmp_path):
    tensors = {"blk.0.attn_q.weight": rng.standard_normal((8, 32)).astype(np.float32)}
    stored = open_checkpoint(write(tmp_path / "m.gguf", tensors, heads=0)).stored[
        "model.layers.0.self_attn.q_proj.weight"
    ]
    assert isinstance(stored, Unreadable)
    with pytest.raises(InputError, match="how many heads"):
        stored.read()


def test_a_folder_with_a_config(rng, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "num_attention_heads": HEADS}))
    write(tmp_path / "m.gguf", {"blk.0.ffn_up.weight": coded(rng.standard_normal((8, 64)), TYPES.Q8_0)})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config["model_type"] == "llama"
    assert isinstance(checkpoint.stored["model.layers.0.mlp.up_proj.weight"], Decoded)
