"""A whole model in a GGUF file: its parameters by Hugging Face's names, blocks of codes decoded when they are read.

What llama.cpp's converter changes is changed back: names, the order of the rows of query and key, and the one that it
adds to Gemma's norms. Names that are not known stay llama.cpp's.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorascope.updates.base import Stored
from lorascope.weights.codes.decoded import Decoded, Unreadable
from lorascope.weights.gguf_file import Blocks, Undecoded
from lorascope.weights.gguf_names import (
    COMMON,
    EXPERTS,
    PERMUTED,
    hugging_face,
    hugging_face_rows,
    norm_name,
    unpermuted,
)
from lorascope.weights.support import Support
from lorascope.weights.tensors import Mapped, slot

_MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
_ADDED_ONE = ("gemma", "gemma2", "gemma3")


@dataclass(frozen=True)
class InBlocks:
    """ggml's blocks; `heads` of query or key whose rows are put into Hugging Face's order, else 0."""

    heads: int = 0

    @property
    def by_rows(self) -> bool:
        return not self.heads

    def fill(self, sources: tuple[Stored, ...], out: np.ndarray, start: int) -> None:
        blocks: Any = sources[0]
        values = blocks.rows(start, start + len(out)).read()
        out[...] = hugging_face_rows(values, self.heads) if self.heads else values


def config_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What the metadata say of the model, by the names of Hugging Face's config."""
    architecture = metadata.get("general.architecture", "")
    keys = {
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "num_hidden_layers": "block_count",
    }
    values = {name: _number(metadata.get(f"{architecture}.{key}")) for name, key in keys.items()}
    return {name: value for name, value in values.items() if value is not None}


def _number(value: Any) -> int | None:
    """A positive whole number, which may be a text."""
    text = str(value)
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) and int(text) > 0 else None


def parameters(tensors: Mapping[str, Stored], metadata: Mapping[str, Any]) -> dict[str, Stored]:
    """The parameters by name, in file order."""
    architecture = str(metadata.get("general.architecture", ""))
    config = config_of(metadata)
    return {name: part for key, stored in tensors.items() for name, part in _parts(key, stored, architecture, config)}


def _parts(key: str, stored: Stored, architecture: str, config: Mapping[str, Any]) -> Iterator[tuple[str, Stored]]:
    """A tensor, or the experts in it, by name."""
    module, _, leaf = key.rpartition(".")
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)", module)
    if isinstance(stored, Undecoded):
        reason = f"the base stores {key} in ggml's type {stored.type}, which lorascope does not decode"
        stored = Unreadable(stored.shape, stored.dtype, reason)
    if block and block[2] in EXPERTS and architecture in COMMON and len(stored.shape) == 3:
        part, owner = EXPERTS[block[2]], "mlp.experts"
        if architecture == "llama":
            part, owner = _MIXTRAL[part], "block_sparse_moe.experts"
        for expert in range(stored.shape[0]):
            one = stored if isinstance(stored, Unreadable) else slot(_plain(stored), expert)
            yield f"model.layers.{block[1]}.{owner}.{expert}.{part}.{leaf}", one
        return
    norm = norm_name(module, architecture)
    name = norm or hugging_face(module, architecture) or module
    which = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(block[2] if block else "")
    if norm and architecture in _ADDED_ONE and leaf == "weight":
        yield f"{name}.{leaf}", Mapped(stored, tuple(stored.shape), lambda values: values - 1)
    elif which and architecture in PERMUTED and not isinstance(stored, Unreadable):
        yield f"{name}.{leaf}", _reordered(key, stored, config.get(which) or config.get("num_attention_heads"))
    else:
        yield f"{name}.{leaf}" if module else key, _plain(stored)


def _plain(stored: Stored, heads: int = 0) -> Stored:
    if not isinstance(stored, Blocks):
        return stored
    return Decoded(stored.shape, "F32", f"GGUF {stored.type.name}", (stored,), InBlocks(heads))


def _reordered(key: str, stored: Stored, heads: int | None) -> Stored:
    """Query or key with its rows in Hugging Face's order."""
    if heads is None or not stored.shape or stored.shape[0] % (2 * heads):
        reason = f"the rows of {key} are in llama.cpp's order, and the file does not say how many heads they are of"
        return Unreadable(tuple(stored.shape), stored.dtype, reason)
    return _plain(stored, heads) if isinstance(stored, Blocks) else unpermuted(stored, heads)


SUPPORT = (
    Support("GGUF: Q4_0 to Q8_0, Q2_K to Q6_K, IQ1 to IQ4, TQ, MXFP4", "the package gguf, and llama.cpp's permutation"),
)
