"""LoRA in GGUF, of llama.cpp and Ollama: `blk.0.attn_q.weight.lora_a` (r, d_in) and `.lora_b` (d_out, r).

ΔW = s·B·A with s = `adapter.lora.alpha` over the rank that B has, and s = 1 where alpha is 0 (`llama-adapter.h`).
`token_embd.weight.lora_a` is (V, r), B of experts (E, d_out, r). What the converter changes is changed back: names
become Hugging Face's where an architecture has one, and the rows of query and key, which the converter permutes for
models with rotary pairs side by side, get the order of the base whose config is given.

Source: ggml-org/llama.cpp, `convert_lora_to_gguf.py`, `conversion/llama.py` (`permute`), `src/llama-adapter.{h,cpp}`.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lorascope.errors import InputError
from lorascope.updates.base import Update
from lorascope.weights.formats.base import Bundle, Format, Ledger, Parsed, formats
from lorascope.weights.formats.expert_factors import W_NAMES, per_expert
from lorascope.weights.formats.key_groups import KeyGroup, by_module
from lorascope.weights.gguf_names import COMMON, EMBEDDING, EXPERTS, PERMUTED, hugging_face, unpermuted
from lorascope.weights.support import Support
from lorascope.weights.tensors import transposed

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

SUFFIXES = ("lora_a", "lora_b")
ALPHA = "adapter.lora.alpha"
CONVERTER = (
    "scale alpha/r, as llama.cpp applies it: convert_lora_to_gguf.py writes lora_alpha alone, so an adapter that had "
    "use_rslora or alpha_pattern had another scale in PEFT"
)
ROWS = (
    "the rows of query and key are in llama.cpp's order (rotary pairs side by side), which changes no spectrum; "
    "--base MODEL with its config.json puts them into Hugging Face's"
)
OLLAMA = "made by Ollama's converter: the rows of query and key are left as they are stored"
NAMES = "names are llama.cpp's: lorascope does not know this architecture's names in Hugging Face's models"
NORM = "a norm's weight, which llama.cpp leaves out"
ALORA = "activated LoRA: the update applies only after the invocation tokens"
ROUTER = "ffn_gate_inp"


class Gguf(Format):
    name = "gguf"
    about = "GGUF adapters of llama.cpp and Ollama: NAME.weight.lora_a and NAME.weight.lora_b"

    def claims(self, bundle: Bundle) -> bool:
        if bundle.config is not None and "peft_type" in bundle.config:
            return False
        return any(key.endswith((".weight.lora_a", ".weight.lora_b")) for key in bundle.tensors)

    def read(self, bundle: Bundle, ledger: Ledger, base: "Checkpoint | None" = None) -> Parsed:
        metadata = dict(bundle.metadata)
        groups = {m: g for m, g in by_module(bundle.tensors, SUFFIXES).items() if m.endswith(".weight")}
        alpha, architecture = _alpha(metadata), metadata.get("general.architecture", "")
        updates = {u.name: u for group in groups.values() for u in _updates(group, ledger, alpha, architecture)}
        if len(updates) < len(groups):
            raise InputError(f"{bundle.path}: two tensors are of one module", found=", ".join(list(groups)[:5]))
        notes = [CONVERTER] if alpha else []
        notes += [NAMES] if architecture not in COMMON else []
        notes += [ALORA] if "adapter.alora.invocation_tokens" in metadata else []
        if architecture in PERMUTED:
            ollama = f"{architecture}.attention.head_count" in metadata
            heads = None if ollama or base is None else _heads(base.config)
            updates, reordered = _hugging_face_rows(updates, heads)
            notes += [OLLAMA if ollama else ROWS] if not reordered else []
        for key in ledger.left():
            if key.endswith("_norm.weight"):
                ledger.skip(key, NORM)
        return Parsed(updates, "LoRA", metadata, notes=tuple(notes))


def _alpha(metadata: Mapping[str, str]) -> float:
    text = metadata.get(ALPHA, "0")
    try:
        alpha = float(text)
    except ValueError:
        alpha = math.nan
    if not math.isfinite(alpha):
        raise InputError(f"{ALPHA} in the file's metadata is not a number", found=text)
    return alpha


def _updates(group: KeyGroup, ledger: Ledger, alpha: float, architecture: str) -> Iterator[Update]:
    a, b = group.take(ledger, "lora_a"), group.take(ledger, "lora_b")
    keys = group.keys["lora_a"], group.keys["lora_b"]
    module = group.module.removesuffix(".weight")
    embedding = module.rpartition(".")[2] == EMBEDDING
    if embedding and len(a.shape) == 2:
        a = transposed(a)
    rank = math.prod(b.shape[-1:])
    scale = alpha / rank if alpha and rank else 1.0
    name = hugging_face(module, architecture)
    if len(a.shape) == len(b.shape) == 3:
        for update in per_expert(name or module, a, b, scale, keys):
            yield _named(update, module, architecture)
        return
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise InputError(
            f"{keys[0]!r} and {keys[1]!r} do not fit together",
            found=f"{tuple(a.shape)} and {tuple(b.shape)}",
            expected="(V, r) and (d, r)" if embedding else "(r, d_in) and (d_out, r)",
        )
    roles = {"A": a, "B": b}
    one = Update(name or module, "low_rank", roles, scale, transposed=embedding, embedding=embedding)
    yield _named(one, module, architecture)


def _named(update: Update, module: str, architecture: str) -> Update:
    """An expert's update by its name in Hugging Face's model, where that is known; Mixtral's router as its experts."""
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)", module)
    if block is not None and block[2] == ROUTER and architecture == "llama":
        return replace(update, name=f"model.layers.{block[1]}.block_sparse_moe.gate")
    if block is None or block[2] not in EXPERTS or architecture not in COMMON or update.expert is None:
        return update
    part, owner = EXPERTS[block[2]], "mlp.experts"
    if architecture == "llama":  # Mixtral's
        part, owner = W_NAMES[part], "block_sparse_moe.experts"
    name = f"model.layers.{block[1]}.{owner}.{update.expert}.{part}"
    return replace(update, name=name, base_weight=None, expert=None)


def _heads(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """The numbers of heads of query and of key by a model's config; None where it does not say."""
    inner = config.get("text_config")
    whole = inner if isinstance(inner, Mapping) else config
    heads = whole.get("num_attention_heads")
    of_key = whole.get("num_key_value_heads") or heads
    return (heads, of_key) if type(heads) is int and type(of_key) is int and min(heads, of_key) > 0 else None


def _hugging_face_rows(updates: Mapping[str, Update], heads: tuple[int, int] | None) -> tuple[dict[str, Update], bool]:
    """Updates whose B of query and key have their rows in Hugging Face's order; and whether no permuted one is left."""
    in_order = {}
    left = False
    for name, update in updates.items():
        which = next((i for i, part in enumerate(("q_proj", "k_proj")) if name.endswith(f"self_attn.{part}")), None)
        if which is not None and heads is not None and update.shape[0] % (2 * heads[which]) == 0:
            roles = {**update.roles, "B": unpermuted(update.roles["B"], heads[which])}
            update = replace(update, roles=roles)
        elif which is not None:
            left = True
        in_order[name] = update
    return in_order, not left


formats.register("gguf")(Gguf())

SUPPORT = (
    Support("GGUF (llama.cpp, Ollama): LoRA", "llama.cpp's formula in float64", base="for the rows' order of q and k"),
)
