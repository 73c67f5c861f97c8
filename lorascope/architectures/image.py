"""Two names for one module: the schemes in which image and video models name their blocks, brought under diffusers'.

The original repositories (Black Forest Labs, Stability AI, Tencent, Wan, Lightricks) have names of their own, and join
query, key and value into one matrix where diffusers keeps three. Facts as in diffusers 0.42
(loaders/lora_conversion_utils.py, scripts/convert_sd3_to_diffusers.py). Dots and underscores are one here: sd-scripts
writes every dot as an underscore.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache

EQUAL, LINEAR1, GROUPED = "equal", "linear1", "grouped"


@dataclass(frozen=True)
class Place:
    """Where a module's rows lie in diffusers' scheme.

    Attributes:
        parts: the modules of diffusers whose rows these are, one after the other.
        rows: how the rows are divided: EQUAL; LINEAR1, as many as inputs for each but the last, which has the rest; or
            GROUPED, as many as inputs for the first, and the others share the rest.
        swapped: the two halves of the rows are the other way round in diffusers (shift and scale of a last norm).
        swapped_if_two: only where there are two halves, each as many rows as inputs (the last block's norm of SD3).
    """

    parts: tuple[str, ...]
    rows: str = EQUAL
    swapped: bool = False
    swapped_if_two: bool = False

    def sizes(self, d_out: int, d_in: int) -> tuple[int, ...] | None:
        """Rows of each part of a matrix (d_out, d_in); None where it does not divide so."""
        count = len(self.parts)
        if self.rows == EQUAL:
            return (d_out // count,) * count if d_out % count == 0 else None
        if self.rows == LINEAR1:
            rest = d_out - (count - 1) * d_in
            return (*[d_in] * (count - 1), rest) if rest > 0 else None
        rest = d_out - d_in
        return (d_in, *[rest // (count - 1)] * (count - 1)) if rest > 0 and rest % (count - 1) == 0 else None


# What stands in front of a module of the denoising network, and of a text encoder, in one file or another.
_DOTTED = re.compile(r"(base_model\.model\.)?((model\.)?diffusion_model|transformer|unet)\.(base_model\.model\.)?")
_FLAT = re.compile(
    r"(lora_unet|lora_transformer|lora_prior_unet|oft_unet|lycoris|diffusion_model|Hunyuan_video_I2V_lora)_+"
)
_SECOND = re.compile(r"(lora_)?transformer_2_")  # Wan 2.2 has two
_TEXT_ENCODERS = (
    (re.compile(r"(lora_te_|lora_te1_|oft_te_|oft_te1_|text_encoders_clip_l_transformer_|clip_l_(transformer_)?)"), 1),
    (re.compile(r"(lora_te2_|oft_te2_|text_encoders_clip_g_transformer_|clip_g_(transformer_)?)"), 2),
)

_QKV = ("to_q", "to_k", "to_v")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
_DOUBLE, _SINGLE, _JOINT = r"double_blocks_(\d+)_", r"single_blocks_(\d+)_", r"joint_blocks_(\d+)_"
_BLOCK, _ONE = r"transformer_blocks.\1.", r"single_transformer_blocks.\1."
_MLP = {"0": "net.0.proj", "2": "net.2", "fc1": "net.0.proj", "fc2": "net.2"}
Rule = tuple[str, tuple[str, ...], str]


def _names(pattern: str, targets: dict[str, str]) -> list[Rule]:
    """One rule for each ending of the pattern."""
    return [(pattern + ending, (target,), EQUAL) for ending, target in targets.items()]


def _flux() -> list[Rule]:
    """FLUX.1 and .2 of Black Forest Labs, XLabs' and Nunchaku's names for its parts, and HunyuanVideo's blocks."""
    rules: list[Rule] = []
    for stream, ff, norm, projections, out, number in (
        ("img", "ff", "norm1", _QKV, "attn.to_out.0", "1"),
        ("txt", "ff_context", "norm1_context", _ADDED, "attn.to_add_out", "2"),
    ):
        qkv = tuple(f"{_BLOCK}attn.{name}" for name in projections)
        rules.append((rf"{_DOUBLE}({stream}_attn_qkv|processor_qkv_lora{number})", qkv, EQUAL))
        rules.append((rf"{_DOUBLE}({stream}_attn_proj|processor_proj_lora{number})", (_BLOCK + out,), EQUAL))
        rules.append((rf"{_DOUBLE}{stream}_mod_lin(ear)?", (f"{_BLOCK}{norm}.linear",), EQUAL))
        rules += _names(_DOUBLE + stream + "_mlp_", {end: f"{_BLOCK}{ff}.{target}" for end, target in _MLP.items()})
        diffusers_2 = {"linear_in": f"{_BLOCK}{ff}.net.0.proj", "linear_out": f"{_BLOCK}{ff}.net.2"}
        rules += _names(rf"transformer_blocks_(\d+)_{ff}_", diffusers_2)
        nunchaku = "" if stream == "img" else "_context"
        rules.append((rf"transformer_blocks_(\d+)_qkv_proj{nunchaku}", qkv, EQUAL))
        rules.append((rf"transformer_blocks_(\d+)_out_proj{nunchaku}", (_BLOCK + out,), EQUAL))
        fcs = {"fc1": f"{_BLOCK}{ff}.net.0.proj", "fc2": f"{_BLOCK}{ff}.net.2"}
        rules += _names(rf"transformer_blocks_(\d+)_mlp{nunchaku}_", fcs)
    qkv = tuple(f"{_ONE}attn.{name}" for name in _QKV)
    rules.append((r"single_transformer_blocks_(\d+)_qkv_proj", qkv, EQUAL))
    rules.append((r"single_transformer_blocks_(\d+)_mlp_fc1", (f"{_ONE}proj_mlp",), EQUAL))
    joined = (*qkv, f"{_ONE}proj_mlp")
    rules.append((_SINGLE + "linear1", joined, LINEAR1))
    rules.append((r"single_transformer_blocks_(\d+)_attn_to_qkv_mlp_proj", joined, LINEAR1))
    rules.append((_SINGLE + "processor_qkv_lora", qkv, EQUAL))
    rules.append((_SINGLE + "(linear2|processor_proj_lora)", (f"{_ONE}proj_out",), EQUAL))
    rules.append((r"single_transformer_blocks_(\d+)_attn_to_out", (f"{_ONE}proj_out",), EQUAL))
    rules.append((_SINGLE + "modulation_lin(ear)?", (f"{_ONE}norm.linear",), EQUAL))
    stream = r"(single_stream_modulation|double_stream_modulation_img|double_stream_modulation_txt)_lin(ear)?"
    return [*rules, (stream, (r"\1.linear",), EQUAL), *_outside_blocks()]


def _outside_blocks() -> list[Rule]:
    """What FLUX, HunyuanVideo and SD3 have before and after their blocks."""
    embed = "time_text_embed."
    rules = _names("", {
        "img_in": "x_embedder", "img_in_proj": "x_embedder.proj", "pos_embed_proj": "x_embedder.proj",
        "txt_in": "context_embedder", "final_layer_linear": "proj_out",
    })  # fmt: skip
    for original, target in (("time_in", "timestep"), ("vector_in", "text"), ("guidance_in", "guidance")):
        for layers, number in (("(in_layer|mlp_0)", 1), ("(out_layer|mlp_2)", 2)):
            rules.append((f"{original}_{layers}", (f"{embed}{target}_embedder.linear_{number}",), EQUAL))
    for original, target in (("t_embedder", "timestep"), ("y_embedder", "text")):
        for layer, number in ((0, 1), (2, 2)):
            rules.append((f"{original}_mlp_{layer}", (f"{embed}{target}_embedder.linear_{number}",), EQUAL))
    guided = r"time_guidance_embed_(timestep|guidance)_embedder_linear_(\d)"
    return [*rules, (guided, (rf"{embed}\1_embedder.linear_\2",), EQUAL)]


def _stable_diffusion_3() -> list[Rule]:
    rules: list[Rule] = []
    for stream, ff, projections, out in (
        ("x_block", "ff", _QKV, "attn.to_out.0"),
        ("context_block", "ff_context", _ADDED, "attn.to_add_out"),
    ):
        prefix = f"{_JOINT}{stream}_"
        rules.append((prefix + "attn_qkv", tuple(f"{_BLOCK}attn.{name}" for name in projections), EQUAL))
        rules.append((prefix + "attn_proj", (_BLOCK + out,), EQUAL))
        rules += _names(prefix + "mlp_", {end: f"{_BLOCK}{ff}.{_MLP[end]}" for end in ("fc1", "fc2")})
    rules.append((_JOINT + "x_block_attn2_qkv", tuple(f"{_BLOCK}attn2.{name}" for name in _QKV), EQUAL))
    rules.append((_JOINT + "x_block_attn2_proj", (_BLOCK + "attn2.to_out.0",), EQUAL))
    return [*rules, (_JOINT + "x_block_adaLN_modulation_1", (_BLOCK + "norm1.linear",), EQUAL)]


def _hunyuan_video() -> list[Rule]:
    """The refiner of its text; its other blocks are named as FLUX's."""
    refiner = r"txt_in_individual_token_refiner_blocks_(\d+)_"
    target = r"context_embedder.token_refiner.refiner_blocks.\1."
    return [
        (refiner + "self_attn_qkv", tuple(f"{target}attn.{name}" for name in _QKV), EQUAL),
        *_names(refiner, {
            "self_attn_proj": target + "attn.to_out.0", "mlp_fc1": target + "ff.net.0.proj",
            "mlp_fc2": target + "ff.net.2", "adaLN_modulation_1": target + "norm_out.linear",
        }),
        *_names("txt_in_", {
            "input_embedder": "context_embedder.proj_in",
            "t_embedder_mlp_0": "context_embedder.time_text_embed.timestep_embedder.linear_1",
            "t_embedder_mlp_2": "context_embedder.time_text_embed.timestep_embedder.linear_2",
            r"c_embedder_linear_([12])": r"context_embedder.time_text_embed.text_embedder.linear_\1",
        }),
    ]  # fmt: skip


def _wan() -> list[Rule]:
    block, target = r"blocks_(\d+)_", r"blocks.\1."
    rules = _names(block, {"ffn_0": target + "ffn.net.0.proj", "ffn_2": target + "ffn.net.2"})
    for original, attention in (("self_attn", "attn1"), ("cross_attn", "attn2")):
        ends = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "k_img": "add_k_proj", "v_img": "add_v_proj"}
        rules += _names(f"{block}{original}_", {end: f"{target}{attention}.{name}" for end, name in ends.items()})
    embedder = "condition_embedder."
    for original in ("text", "time"):
        for layer, number in ((0, 1), (2, 2)):
            name = f"{embedder}{original}_embedder.linear_{number}"
            rules.append((f"{original}_embedding_{layer}", (name,), EQUAL))
    return [*rules, *_names("", {
        "time_projection_1": embedder + "time_proj", "head_head": "proj_out",
        "img_emb_proj_1": embedder + "image_embedder.ff.net.0.proj",
        "img_emb_proj_3": embedder + "image_embedder.ff.net.2",
    })]  # fmt: skip


def _anima() -> list[Rule]:
    block, target = r"blocks_(\d+)_", r"transformer_blocks.\1."
    rules = _names(block, {"mlp_layer1": target + "ff.net.0.proj", "mlp_layer2": target + "ff.net.2"})
    for original, attention in (("self_attn", "attn1"), ("cross_attn", "attn2")):
        ends = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "output_proj": "to_out.0"}
        rules += _names(f"{block}{original}_", {end: f"{target}{attention}.{name}" for end, name in ends.items()})
    return rules


def _lumina_and_z_image() -> list[Rule]:
    block = r"(layers|noise_refiner|context_refiner)_(\d+)_"
    target = r"\1.\2.attention."
    return [
        (block + "attention_qkv", tuple(target + name for name in _QKV), GROUPED),
        (block + "attn_to_([qkv])", (target + r"to_\3",), EQUAL),
        (block + "(attention_out|attention_to_out_0|attn_to_out_0)", (target + "to_out.0",), EQUAL),
        (block + r"feed_forward_linear_([123])", (r"\1.\2.feed_forward.w\3",), EQUAL),
        (block + "norm1_linear", (r"\1.\2.adaLN_modulation.1",), EQUAL),
    ]


def _ltx() -> list[Rule]:
    return [
        *_names("", {"patchify_proj": "proj_in", "audio_patchify_proj": "audio_proj_in"}),
        (r"adaln_single_(.+)", (r"time_embed_\1",), EQUAL),
        (r"audio_adaln_single_(.+)", (r"audio_time_embed_\1",), EQUAL),
    ]


_INNER = {
    "in_layers_2": "conv1", "out_layers_3": "conv2", "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut", "in_layers_0": "norm1", "out_layers_0": "norm2",
}  # fmt: skip
_UNET_OUTSIDE = {
    "time_embed_0": "time_embedding.linear_1", "time_embed_2": "time_embedding.linear_2",
    "label_emb_0_0": "add_embedding.linear_1", "label_emb_0_2": "add_embedding.linear_2",
    "input_blocks_0_0": "conv_in", "out_2": "conv_out", "out_0": "conv_norm_out",
}  # fmt: skip
_UNET = re.compile(r"(input_blocks_|output_blocks_|middle_block_)(\d+)_(?:(\d+)_)?(.+)")


def _unet(body: str) -> str | None:
    """A module of the UNet of Stable Diffusion 1, 2 and XL: three layers to a block of inputs, and of outputs."""
    if body in _UNET_OUTSIDE:
        return _UNET_OUTSIDE[body]
    if (match := _UNET.fullmatch(body)) is None:
        return None
    side, number, inner, rest = match[1], int(match[2]), match[3], match[4]
    if side == "middle_block_":
        rest = rest if inner is None else f"{inner}_{rest}"
        owner = {0: "resnets.0", 1: "attentions.0", 2: "resnets.1"}.get(number)
        return None if owner is None else f"mid_block.{owner}.{_INNER.get(rest, rest)}"
    if inner is None:
        return None
    block, layer = divmod(number - 1 if side == "input_blocks_" else number, 3)
    owner = f"{'down' if side == 'input_blocks_' else 'up'}_blocks.{block}"
    if rest == "op":
        return f"{owner}.downsamplers.0.conv"
    if rest == "conv" and side == "output_blocks_":
        return f"{owner}.upsamplers.0.conv"
    kind = {"0": "resnets", "1": "attentions"}.get(inner)
    return None if kind is None else f"{owner}.{kind}.{layer}.{_INNER.get(rest, rest)}"


_FAMILIES: tuple[Callable[[], list[Rule]], ...] = (
    _flux, _stable_diffusion_3, _hunyuan_video, _wan, _anima, _lumina_and_z_image, _ltx,
)  # fmt: skip


@cache
def _rules() -> list[tuple[re.Pattern[str], tuple[str, ...], str]]:
    """All families' rules, compiled when a name is first asked for: that takes as long as reading a small adapter."""
    return [(re.compile(pattern), targets, rows) for family in _FAMILIES for pattern, targets, rows in family()]


_SWAPPED = re.compile(r"final_layer_adaLN_modulation_1")
_SWAPPED_IF_TWO = re.compile(_JOINT + "context_block_adaLN_modulation_1")


@lru_cache(maxsize=1 << 14)
def place(name: str) -> Place:
    """Where a module lies in diffusers' scheme, by its name in any: its own name in flat form where none is known."""
    dotted = _DOTTED.match(name)
    flat = name[dotted.end() if dotted else 0 :].replace(".", "_")
    prefix, body = "", flat
    if second := _SECOND.match(flat):
        first = place(flat[second.end() :])
        return replace(first, parts=tuple(f"transformer_2.{part}" for part in first.parts))
    if denoiser := _FLAT.match(flat):
        body = flat[denoiser.end() :]
    for pattern, number in _TEXT_ENCODERS:
        if encoder := pattern.match(flat):
            prefix, body = "text_encoder." if number == 1 else "text_encoder_2.", flat[encoder.end() :]
    if prefix:
        return Place((prefix + body,))
    if _SWAPPED.fullmatch(body):
        return Place(("norm_out.linear",), swapped=True)
    if match := _SWAPPED_IF_TWO.fullmatch(body):
        return Place((match.expand(_BLOCK + "norm1_context.linear"),), swapped_if_two=True)
    if unet := _unet(body):
        return Place((unet,))
    for pattern, targets, rows in _rules():
        if match := pattern.fullmatch(body):
            return Place(tuple(match.expand(target) for target in targets), rows)
    return Place((body,))
