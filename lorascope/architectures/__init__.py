"""How models name their blocks, projections, experts, heads and embeddings: the one place that knows.

Names alone: no torch, no model. What a live model is asked for is in `adapt/sublayers.py` and `adapt/targets.py`.
Orientation (transformers 5.23): GPT-2 and its kin store a Conv1D as (d_in, d_out), and so do fused experts whose class
says `is_transposed`; the module's class decides it, and of a square no shape can tell.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

# Task heads, direct children of a model, by the names that transformers' classes give them, and our own (mean pooling).
MEAN_POOL_HEAD = "mean_pool_head"
CLASSIFIER_HEADS = ("classifier", "score", "pre_classifier", "classification_head", "logits_proj", MEAN_POOL_HEAD)
TASK_HEADS = ("score", "classifier", "classification_head", "logits_proj", "qa_outputs", MEAN_POOL_HEAD)
# PEFT saves these with a task's adapter, by its task type (PEFT 0.21.2).
PEFT_HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
LINEAR_HEADS = ("lm_head", "score", "classifier", "qa_outputs")  # a Linear in every model

# A feed-forward layer's last projection: (IA)³ scales its input (Liu et al. 2022), and PEFT's config must name it.
FEEDFORWARD_OUTPUTS = ("down_proj", "fc2", "wo", "w2", "fc_out", "dense_4h_to_h", "mlp.c_proj", "output.dense")
FEEDFORWARD_INPUTS = ("intermediate.dense", "fc1", "lin1", "c_fc", "dense_h_to_4h", "up_proj", "wi")
QUERIES = ("query", "q_proj", "q_lin", "q")
# A sublayer's last projection, which brings its output back to the width of the residual stream.
SUBLAYER_OUTPUTS = frozenset(
    "dense o_proj out_proj c_proj out_lin o wo proj lin2 fc2 down_proj dense_4h_to_h w2 fc_out output".split()  # noqa: SIM905
)
# Projections that read the hidden state in every common architecture, so that they all have one input width.
READ_HIDDEN = frozenset(
    {"q_proj", "k_proj", "v_proj", "query", "key", "value", "qkv_proj", "qkv", "query_key_value", "c_attn", "Wqkv"}
    | {"gate_proj", "up_proj", "gate_up_proj"}
)

# A fused parameter of experts, and the parts that files keep of each expert, in the order in which they are joined.
FUSED_EXPERTS = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
    "up_proj": (("up_proj",),),
}
EXPERT_PARAMETERS = ("gate_up_proj", "gate_proj", "w1", "up_proj", "w3", "down_proj", "w2")  # in a block's order
# By how many of them a module of experts has, in the order in which models register them.
USUAL_EXPERT_PARAMETERS = {2: ("gate_up_proj", "down_proj"), 3: ("gate_proj", "up_proj", "down_proj")}
LITGPT_FUSED = (".attn.attn", ".attn.qkv")  # litgpt's query, key and value in one

TOKEN_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in", "shared")
# An output head or an embedding, one of which a model may tie to the other, by any model's name for it.
TIED = (
    "lm_head", "embed_out", "cls.predictions.decoder", "lm_head.decoder", "output_projection",
    "vocab_projector", "lm_loss", "generator_lm_head", "predictions.decoder", "proj_out", *TOKEN_EMBEDDINGS,
)  # fmt: skip
TIED_TO_LM_HEAD = ("embed_tokens", "wte")  # where `lm_head` is what such an embedding is tied to, in every model
# PEFT stores an embedding's factors under keys of their own; modules by these names are embeddings.
EMBEDDINGS = (*TOKEN_EMBEDDINGS, "wpe")
# What PEFT stores whole by itself where the vocabulary was resized, by the last part of its name.
VOCABULARY = frozenset(
    {*TOKEN_EMBEDDINGS, "embeddings", "embed", "embedding", "lm_head", "embed_out", "output_projection", "decoder"}
)
# By other names than `….embeddings` and `embed_…`: every one of transformers' modules that is nothing else elsewhere.
_OTHER_EMBEDDINGS = (
    "wte", "wpe", "shared", "embed_in", "(global_)?relative_attention_bias", "pe_k", "tgt_embed", "tokens_embed",
    "positions_embed", "text_embed_tokens", "position_embedding_table", "visual_embeddings_table",
    "input_embeds_layers?", "position_embeds_layer", "pos_embed", "pos_emb", "rel_pos_emb", "rel_attn_embed",
    "freq_emb", "segment_emb", "level_embed", "label_embed", "cls_embed", "codec_embed", "shape_embed",
    "pronunciation_embed", "num_speakers_embed", "denoising_class_embed", "dist_bin_pairwise_embed", "recycle_disto",
    "prefix_bucket", "bias_values", "codebook", "down_embed", "up_embed", "row_embedder", "column_embedder",
    "embedders", "queries_embedder", "queries_features", r"query_(embed|feat|\d+_resolution)",
    "reference_point_embed", "learn_initial_query", "patterns", "prompt_ctx", "point_embed", "not_a_point_embed",
    "no_mask_embed", "mask_tokens", "(iou|hq|obj_score|presence)_token", "audio_bos_eos_token", r"transformer\.w",
    r"cpmant\.input_embedding",
)  # fmt: skip
# Linear maps and norms whose names sound like one.
_NO_EMBEDDING = (
    "embed_(out|proj|return|state|action|norm|ln)", "layernorm_embedding", "box_linear_embeddings", "input_embedding",
    "(decoder|predictor|relative_pos|xpath_unitseq2)_embeddings", "(patch|share)_embedding",
)  # fmt: skip
_EMBEDDING = re.compile(
    rf"(^|\.)(?!({'|'.join(_NO_EMBEDDING)})(\.\d+)?$)"
    rf"(\w*embeddings?|embed_\w+|{'|'.join(_OTHER_EMBEDDINGS)})(\.\d+)?$"
)
_CONVOLUTION = re.compile(r"conv|patch_emb|downsampl|upsampl|(^|[._])stem([._]|$)", re.I)
_OUTPUT_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|decoder|output|output_projection)$")

FUSED_CONV1D = "c_attn"  # GPT-2's query, key and value in one: (d, 3·d), which no Linear of them is
_CONV1D = re.compile(r"(^|\.)(c_attn|c_proj|c_fc|q_attn)$")
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
_TRANSPOSED_EXPERTS = ("gpt_oss", "aria", "aria_text", "openai_privacy_filter")
_ALTERNATING_EXPERTS = ("gpt_oss",)


def is_conv1d(module: str, config: Mapping[str, Any]) -> bool | None:
    """Whether a module is transformers' Conv1D; None where the base's config does not say which model it is."""
    kind = config.get("model_type")
    return None if kind is None else kind in _CONV1D_MODELS and _CONV1D.search(module) is not None


def looks_like_conv1d(module: str) -> bool:
    """Whether a module has one of the names that Conv1D has in GPT-2."""
    return _CONV1D.search(module) is not None


def looks_like_convolution(module: str) -> bool:
    """Whether a name of this kind stands for a convolution somewhere; asked where only the base could say."""
    return _CONVOLUTION.search(module) is not None


def experts_transposed(config: Mapping[str, Any]) -> bool | None:
    """Whether fused experts are stored (experts, d_in, d_out); None where the config does not say which model it is."""
    kinds = _kinds(config)
    return any(kind in _TRANSPOSED_EXPERTS for kind in kinds) if kinds else None


def experts_alternate(config: Mapping[str, Any]) -> bool:
    """Whether gate and up alternate in a fused parameter, and do not lie one behind the other (`GptOssExperts`)."""
    return any(kind in _ALTERNATING_EXPERTS for kind in _kinds(config))


def _kinds(config: Mapping[str, Any]) -> list[Any]:
    """The `model_type` of a config and of its language model, where they say it."""
    inner = config.get("text_config")
    kinds = [part.get("model_type") for part in (config, inner) if isinstance(part, Mapping)]
    return [kind for kind in kinds if kind is not None]


def in_attention(path: str) -> bool:
    """Whether a module lies below one that has "attn" or "attention" in its name."""
    return any("attn" in part or "attention" in part for part in path.lower().split("."))


def is_vocabulary(module: str) -> bool:
    """Whether a module's rows are tokens: an embedding or an output head."""
    return is_embedding(module) or _OUTPUT_HEAD.search(module) is not None


def is_embedding(module: str) -> bool:
    """Whether a module is an embedding, or one of a list of them, by its name."""
    return _EMBEDDING.search(module) is not None


def ends_with(path: str, names: Iterable[str]) -> bool:
    """Whether a module's path is one of these names or ends with "." and one."""
    return any(path == name or path.endswith("." + name) for name in names)


# The order in which a block computes, by the last part of a type's name in any model.
_ORDER = (
    ("q_proj", "query", "q", "q_lin", "to_q", "wq"), ("k_proj", "key", "k", "k_lin", "to_k", "wk"),
    ("v_proj", "value", "v", "v_lin", "to_v", "wv"), ("qkv_proj", "qkv", "query_key_value", "c_attn", "Wqkv", "to_qkv"),
    ("o_proj", "out_proj", "o", "out_lin", "to_out", "wo", "proj"),
    ("gate_proj", "w1", "gate_up_proj", "intermediate", "fc1", "lin1", "c_fc", "dense_h_to_4h"), ("up_proj", "w3"),
    ("down_proj", "w2", "fc2", "lin2", "c_proj", "dense_4h_to_h"),
)  # fmt: skip


_FEEDFORWARD = re.compile(r"(^|[._])ff[._]net[._]\*([._]proj)?$")  # of diffusers: gate and value, then the output


_PLACE = {name: i for i, names in enumerate(_ORDER) for name in names}


def natural_order(types: Iterable[str]) -> list[str]:
    """Module types in the order in which a block computes: q, k, v, o, gate, up, down; others after, as they come."""
    place = _PLACE

    def key(kind: str) -> int:
        parts = kind.split(".")
        if _FEEDFORWARD.search(kind):
            return place["down_proj" if kind.endswith("*") else "gate_proj"]
        if len(parts) == 1 and kind not in place:  # kohya's names have underscores alone
            flat = kind.removesuffix("_*")
            return min((place[name] for name in place if flat.endswith(f"_{name}")), default=len(_ORDER))
        if ends_with(kind, ("attention.output.dense", "attn.c_proj")):
            return place["o_proj"]
        if ends_with(kind, ("output.dense",)):
            return place["down_proj"]
        return min((place[part] for part in (parts[-1], parts[0] if len(parts) == 2 else "") if part in place),
                   default=len(_ORDER))  # fmt: skip

    return sorted(dict.fromkeys(types), key=key)


_INDEX = re.compile(r"(?:^|[._])(\d+)(?=[._]|$)")


def depth(name: str) -> int | None:
    """The first index in the path: `model.layers.7.mlp.experts.3.up_proj` lies at 7; None where there is none."""
    index = _INDEX.search(name)
    return int(index[1]) if index else None


_WITHIN_BLOCK = re.compile(r"^(.*?(?:^|\.)\d+)\.")


def block(name: str) -> str:
    """The path of the numbered block that a module or parameter lies in, the outermost; "" outside of all."""
    match = _WITHIN_BLOCK.match(name)
    return match[1] if match else ""


def module_types(names: Iterable[str]) -> dict[str, str]:
    """Module path to type: what follows the layer index, as short as stays unambiguous.

    `…layer.0.attention.self.query` is "query", but of BERT's two kinds of `output.dense` one is
    "attention.output.dense". Later indices (experts) become `*`.
    """
    tails = {name: _tail(name) for name in names}
    ends: dict[str, set[str]] = {}
    for tail in set(tails.values()):
        for end in _ends(tail):
            ends.setdefault(end, set()).add(_BLOCK.sub("", re.sub(r"(^|[._])\*(?=[._]|$)", "", tail)).strip("._"))
    short = {tail: next((end for end in _ends(tail) if len(ends[end]) == 1), tail) for tail in set(tails.values())}
    return {name: short[tail] for name, tail in tails.items()}


_BLOCK = re.compile(r"^.*transformer_blocks")  # of diffusers, at several depths of a UNet


def _tail(name: str) -> str:
    index = _INDEX.search(name)
    tail = name[index.end() :].lstrip("._") if index else name
    return re.sub(r"(?<![^._\[])\d+(?![^._\]])", "*", tail) or name


def _ends(tail: str) -> list[str]:
    """What a tail may be called, the shortest first: its last part, its last two, …, without indices."""
    parts = [part for part in tail.split(".") if part != "*"]
    if len(parts) == 1 == len(tail.split(".")):  # kohya's: a known name, or what follows the last index, if two words
        pieces = re.split(r"(?:^|_)\*_", tail)
        end = pieces[-1] if "_" in pieces[-1] else "_*_".join(pieces[-2:])
        known = [name for name in _PLACE if "_" in name and end.removesuffix("_*").endswith(f"_{name}")]
        return [*sorted(known, key=len)[-1:], end, tail]
    return [".".join(parts[-count:]) for count in range(1, len(parts) + 1)] + [tail]


# Parts of a model and kinds of its blocks, by what stands in a name before the first layer's index.
_PARTS = (
    (r"(^|[._])(lora_|oft_)?(te1|clip_l)([._]|$)|text_encoder([._]|$)(?!2)|lora_te_", "text encoder"),
    (r"(^|[._])(lora_|oft_)?(te2|clip_g)([._]|$)|text_encoder_2", "text encoder 2"),
    (r"text_encoder_3|(^|[._])(te3|t5xxl)([._]|$)", "text encoder 3"),
    (r"unet", "UNet"),
    (r"vision|visual|image_encoder", "vision"),
    (r"audio", "audio"),
    (r"language_model|text_model|llm", "language"),
)
_BLOCKS = (
    (r"(input|down)_blocks?$", "input blocks"), (r"(middle|mid)_blocks?$", "middle block"),
    (r"(output|up)_blocks?$", "output blocks"), (r"single_(transformer_)?blocks$", "single blocks"),
    (r"(double_blocks|(^|[._])transformer_blocks|lora_transformer_transformer_blocks)$", "double blocks"),
    (r"(^|[._])decoder([._]|$)", "decoder"), (r"(^|[._])encoder([._]|$)", "encoder"),
)  # fmt: skip
_MAX_COMPONENTS = 12


def components(names: Iterable[str]) -> dict[str, str]:
    """Module path to the part of the model that it lies in, where there are several with layers of their own: encoder
    and decoder, vision and language, double and single blocks, UNet and text encoders, input and output blocks.

    Parts differ in what stands before the first layer's index. Modules without an index are in none; "" for all where
    there is one part, or more than a model has.
    """
    before = {name: name[: index.start()] for name in names if (index := _INDEX.search(name))}
    prefixes = list(dict.fromkeys(before.values()))
    if not 1 < len(prefixes) <= _MAX_COMPONENTS:
        return dict.fromkeys(before, "")
    words = {prefix: (_named(_PARTS, prefix), _named(_BLOCKS, prefix)) for prefix in prefixes}
    labels = {}
    for prefix, (part, blocks) in words.items():
        others = {other for p, other in words.values() if p == part}
        label = ", ".join(filter(None, (part, blocks if len(others) > 1 or not part else "")))
        labels[prefix] = label or prefix.strip("._") or "model"
    if len(set(labels.values())) < len(labels):  # two parts by one name: their own names tell them apart
        labels = {prefix: prefix.strip("._") or "model" for prefix in prefixes}
    return {name: labels[prefix] for name, prefix in before.items()}


def _named(patterns: Iterable[tuple[str, str]], text: str) -> str:
    return next((label for pattern, label in patterns if re.search(pattern, text)), "")
