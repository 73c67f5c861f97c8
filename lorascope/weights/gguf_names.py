"""llama.cpp's names of a model's parameters in Hugging Face's words, and its order of the rows of query and key.

Source: ggml-org/llama.cpp, `gguf-py/gguf/tensor_mapping.py`, `conversion/llama.py` (`permute`), `conversion/gemma.py`.
"""

import re

import numpy as np

from lorascope.updates.base import Stored
from lorascope.weights.tensors import Mapped

EMBEDDING = "token_embd"
# Architectures whose query and key are permuted: `LlamaModel` and what inherits its conversion.
PERMUTED = frozenset(
    {"llama", "llama-embed", "arcee", "smollm3", "mistral3", "granite", "granitemoe", "granitehybrid", "olmo"}
)
# Architectures whose blocks are `model.layers.N` with the names below.
COMMON = PERMUTED | frozenset(
    """
    qwen2 qwen3 qwen2moe qwen3moe qwen2vl qwen3vl gemma gemma2 gemma3 phi3 olmo2 olmoe stablelm command-r cohere2
    exaone4 seed_oss apertus deepseek2 llama4
    """.split()  # noqa: SIM905
)
_BLOCK = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_qkv": "self_attn.qkv_proj", "attn_q_a": "self_attn.q_a_proj",
    "attn_q_b": "self_attn.q_b_proj", "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_b": "self_attn.kv_b_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "ffn_gate_inp": "mlp.gate",
}  # fmt: skip
EXPERTS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
_TOP = {EMBEDDING: "model.embed_tokens", "output": "lm_head"}
_NORMS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
_SANDWICHED = ("gemma2", "gemma3")  # whose blocks have four norms


def hugging_face(module: str, architecture: str) -> str | None:
    """A module's name in Hugging Face's model; None where that is not known. Of experts, the format knows."""
    if architecture not in COMMON:
        return None
    if module in _TOP:
        return _TOP[module]
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)", module)
    if block is None or block[2] not in _BLOCK:
        return None
    part = "mlp.gate_up_proj" if (architecture, block[2]) == ("phi3", "ffn_up") else _BLOCK[block[2]]
    return f"model.layers.{block[1]}.{part}"


def norm_name(module: str, architecture: str) -> str | None:
    """A norm's name in Hugging Face's model; None of other modules."""
    if module == "output_norm":
        return "model.norm"
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)", module)
    if architecture not in COMMON or block is None or block[2] not in _NORMS:
        return None
    sandwiched = architecture in _SANDWICHED and block[2] == "ffn_norm"
    return f"model.layers.{block[1]}.{'pre_feedforward_layernorm' if sandwiched else _NORMS[block[2]]}"


def hugging_face_rows(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows that are, head by head, pairs (i, i + d/2) side by side, in the order 0 ... d − 1."""
    pairs = values.reshape(heads, -1, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def unpermuted(stored: Stored, heads: int) -> Stored:
    """An array whose rows are in llama.cpp's order, in Hugging Face's."""
    return Mapped(stored, tuple(stored.shape), lambda values: hugging_face_rows(values, heads))
