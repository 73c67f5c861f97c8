"""One adapter under two schemes of names is one adapter: every module finds its own, and the cosine is 1.

The pairs of names are facts of diffusers' converters (loaders/lora_conversion_utils.py and, of SD3,
scripts/convert_sd3_to_diffusers.py, of 0.42), written out here for one module of each sort.
"""

import numpy as np
import pytest

from lorascope.analyses.compare import run
from lorascope.analyses.compare.image_modules import in_one_scheme
from lorascope.architectures.image import place
from lorascope.updates.base import Update, dense
from lorascope.weights.adapter import Adapter, Source
from lorascope.weights.tensors import InMemory

WIDTH, RANK = 8, 3
QKV, ADDED = ("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
# The original's name, diffusers' names of its rows in order, and how many rows each has, in units of the width.
FLUX = [
    ("double_blocks.4.img_attn.qkv", [f"transformer_blocks.4.{name}" for name in QKV], (1, 1, 1)),
    ("double_blocks.4.txt_attn.qkv", [f"transformer_blocks.4.{name}" for name in ADDED], (1, 1, 1)),
    ("double_blocks.4.img_attn.proj", ["transformer_blocks.4.attn.to_out.0"], (1,)),
    ("double_blocks.4.txt_attn.proj", ["transformer_blocks.4.attn.to_add_out"], (1,)),
    ("double_blocks.4.img_mlp.0", ["transformer_blocks.4.ff.net.0.proj"], (4,)),
    ("double_blocks.4.txt_mlp.2", ["transformer_blocks.4.ff_context.net.2"], (1,)),
    ("double_blocks.4.img_mod.lin", ["transformer_blocks.4.norm1.linear"], (6,)),
    (
        "single_blocks.7.linear1",
        [f"single_transformer_blocks.7.{name}" for name in (*QKV, "proj_mlp")],
        (1, 1, 1, 4),
    ),
    ("single_blocks.7.linear2", ["single_transformer_blocks.7.proj_out"], (1,)),
    ("single_blocks.7.modulation.lin", ["single_transformer_blocks.7.norm.linear"], (3,)),
    ("img_in", ["x_embedder"], (1,)),
    ("vector_in.out_layer", ["time_text_embed.text_embedder.linear_2"], (1,)),
    ("final_layer.linear", ["proj_out"], (2,)),
]
SD3 = [
    ("joint_blocks.2.x_block.attn.qkv", [f"transformer_blocks.2.{name}" for name in QKV], (1, 1, 1)),
    ("joint_blocks.2.context_block.attn.qkv", [f"transformer_blocks.2.{name}" for name in ADDED], (1, 1, 1)),
    ("joint_blocks.2.x_block.attn2.qkv", [f"transformer_blocks.2.attn2.to_{x}" for x in "qkv"], (1, 1, 1)),
    ("joint_blocks.2.x_block.mlp.fc1", ["transformer_blocks.2.ff.net.0.proj"], (4,)),
    ("joint_blocks.2.context_block.adaLN_modulation.1", ["transformer_blocks.2.norm1_context.linear"], (6,)),
    ("y_embedder.mlp.2", ["time_text_embed.text_embedder.linear_2"], (1,)),
]
WAN = [
    ("blocks.3.self_attn.q", ["blocks.3.attn1.to_q"], (1,)),
    ("blocks.3.cross_attn.o", ["blocks.3.attn2.to_out.0"], (1,)),
    ("blocks.3.cross_attn.v_img", ["blocks.3.attn2.add_v_proj"], (1,)),
    ("blocks.3.ffn.2", ["blocks.3.ffn.net.2"], (1,)),
    ("time_projection.1", ["condition_embedder.time_proj"], (6,)),
    ("head.head", ["proj_out"], (2,)),
]
HUNYUAN = [
    ("double_blocks.1.img_attn_qkv", [f"transformer_blocks.1.{name}" for name in QKV], (1, 1, 1)),
    ("double_blocks.1.img_mlp.fc1", ["transformer_blocks.1.ff.net.0.proj"], (4,)),
    (
        "txt_in.individual_token_refiner.blocks.0.self_attn_qkv",
        [f"context_embedder.token_refiner.refiner_blocks.0.{name}" for name in QKV],
        (1, 1, 1),
    ),
]
Z_IMAGE = [
    ("layers.5.attention.qkv", [f"layers.5.attention.to_{x}" for x in "qkv"], (1, 1, 1)),
    ("noise_refiner.0.attention.out", ["noise_refiner.0.attention.to_out.0"], (1,)),
]
LUMINA = [("layers.5.attention.qkv", [f"layers.5.attn.to_{x}" for x in "qkv"], (1, 0.5, 0.5))]
SDXL = [
    ("input_blocks.1.0.in_layers.2", ["down_blocks.0.resnets.0.conv1"], (1,)),
    ("input_blocks.3.0.op", ["down_blocks.0.downsamplers.0.conv"], (1,)),
    (
        "input_blocks.8.1.transformer_blocks.9.ff.net.0.proj",
        ["down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj"],
        (1,),
    ),
    ("middle_block.1.proj_in", ["mid_block.attentions.0.proj_in"], (1,)),
    ("output_blocks.2.2.conv", ["up_blocks.0.upsamplers.0.conv"], (1,)),
    ("output_blocks.4.0.skip_connection", ["up_blocks.1.resnets.1.conv_shortcut"], (1,)),
]
FAMILIES = {
    "flux": FLUX, "sd3": SD3, "wan": WAN, "hunyuan": HUNYUAN, "z-image": Z_IMAGE, "lumina": LUMINA, "sdxl": SDXL,
}  # fmt: skip
PREFIXES = ("diffusion_model.", "lora_unet_", "")


def spelled(name, prefix):
    return prefix + (name.replace(".", "_") if prefix.endswith("_") else name)


def adapter(updates, label):
    return Adapter({update.name: update for update in updates}, source=Source(label))


def low_rank(name, a, b):
    return Update(name, "low_rank", {"A": InMemory(a), "B": InMemory(b)}, scale=0.5)


def two_schemes(family, prefix, rng):
    """The same update twice: under the original's names, and under diffusers'."""
    original, diffusers = [], []
    for name, parts, rows in FAMILIES[family]:
        sizes = [int(count * WIDTH) for count in rows]
        a, b = rng.standard_normal((RANK, WIDTH)), rng.standard_normal((sum(sizes), RANK))
        original.append(low_rank(spelled(name, prefix), a, b))
        for part, size in zip(parts, np.split(b, np.cumsum(sizes)[:-1]), strict=True):
            diffusers.append(low_rank(f"transformer.{part}", a, size))
    return adapter(original, "original"), adapter(diffusers, "diffusers")


def identical(result, modules):
    (pair,) = result.pairs
    assert len(pair.modules) == modules
    assert not result.skipped
    for row in pair.modules:
        assert row["cosine"] == pytest.approx(1, abs=1e-12)  # rounding of two QRs
        assert row["frobenius_norm"][0] == pytest.approx(row["frobenius_norm"][1], rel=1e-12)


@pytest.mark.parametrize(
    ("family", "prefix"),
    [("flux", prefix) for prefix in PREFIXES[1:]] + [(family, PREFIXES[k % 3]) for k, family in enumerate(FAMILIES)],
)
def test_one_adapter_in_two_schemes_is_identical(family, prefix, rng):
    first, second = two_schemes(family, prefix, rng)
    identical(run([first, second]), len(second.updates))
    if (family, prefix) == ("flux", ""):
        identical(run([second, first]), len(second.updates))


def test_a_fused_projection_is_compared_whole_where_both_are_fused(rng):
    first, _ = two_schemes("flux", "diffusion_model.", rng)
    second = adapter(
        [low_rank(spelled(u.name, "lora_unet_").replace("diffusion_model_", ""), u.roles["A"].values,
                  u.roles["B"].values) for u in first.updates.values()],
        "kohya",
    )  # fmt: skip
    identical(run([first, second]), len(FLUX))


def test_the_names_of_xlabs(rng):
    a, b = rng.standard_normal((RANK, WIDTH)), rng.standard_normal((3 * WIDTH, RANK))
    xlabs = adapter([low_rank("double_blocks.0.processor.qkv_lora1", a, b)], "xlabs")
    parts = [low_rank(f"transformer_blocks.0.{n}", a, r) for n, r in zip(QKV, np.split(b, 3), strict=True)]
    identical(run([xlabs, adapter(parts, "diffusers")]), 3)


@pytest.mark.parametrize(
    ("original", "diffusers", "rows"),
    [
        ("final_layer.adaLN_modulation.1", "norm_out.linear", 2),
        ("joint_blocks.23.context_block.adaLN_modulation.1", "transformer_blocks.23.norm1_context.linear", 2),
    ],
)
def test_shift_and_scale_are_the_other_way_round(original, diffusers, rows, rng):
    a, b = rng.standard_normal((RANK, WIDTH)), rng.standard_normal((rows * WIDTH, RANK))
    shift, scale = np.split(b, 2)
    other = low_rank(diffusers, a, np.concatenate([scale, shift]))
    identical(run([adapter([low_rank(original, a, b)], "a"), adapter([other], "b")]), 1)


def test_rows_of_other_kinds(rng):
    """LoHa by its left factors, LoKr by whole rows of its first operand; a cut that no operand allows is none."""
    shapes = {"w1_a": (24, 2), "w1_b": (2, WIDTH), "w2_a": (24, 2), "w2_b": (2, WIDTH)}
    roles = {name: InMemory(rng.standard_normal(shape)) for name, shape in shapes.items()}
    loha = Update("double_blocks.0.img_attn.qkv", "hadamard", roles)
    whole = {"w1": InMemory(rng.standard_normal((6, 4))), "w2": InMemory(rng.standard_normal((4, 2)))}
    lokr = Update("double_blocks.1.img_attn.qkv", "kronecker", whole)
    coarse = {"w1": InMemory(rng.standard_normal((2, 4))), "w2": InMemory(rng.standard_normal((12, 2)))}
    not_cut = Update("double_blocks.2.img_attn.qkv", "kronecker", coarse)
    parts = []
    for block, update in enumerate((loha, lokr, not_cut)):
        for name, rows in zip(QKV, np.split(np.asarray(dense(update.delta())), 3), strict=True):
            parts.append(Update(f"transformer_blocks.{block}.{name}", "dense", {"delta": InMemory(rows)}))
    result = run([adapter([loha, lokr, not_cut], "a"), adapter(parts, "b")])
    assert {row["name"] for row in result.pairs[0].modules} == {
        f"transformer_blocks.{k}.{n}" for k in (0, 1) for n in QKV
    }
    assert all(row["cosine"] == pytest.approx(1, abs=1e-12) for row in result.pairs[0].modules)
    (reason,) = (item.reason for item in result.skipped if item.name == not_cut.name)
    assert reason.startswith("only in a")
    assert "a kronecker update is not made of rows" in reason
    assert {item.name for item in result.skipped} == {not_cut.name, *(f"transformer_blocks.2.{n}" for n in QKV)}


def test_what_has_no_shape_without_the_base_is_matched_by_its_name():
    """Of a rotation only the base knows d_in: it is never cut, and found under each spelling of its name."""
    roles = {"entries": InMemory(np.ones((2, 6)))}
    known = in_one_scheme({
        0: [Update("diffusion_model.double_blocks.0.img_attn.qkv", "oft_v2", roles)],
        1: [Update("lora_unet_double_blocks_0_img_attn_qkv", "oft_v2", roles)],
    })  # fmt: skip
    assert len({each.key for several in known.values() for each in several}) == 1


def test_text_encoders_and_the_second_transformer_are_told_apart():
    assert place("lora_te2_text_model_encoder_layers_0_mlp_fc1") != place(
        "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    )
    assert place("transformer_2.blocks.0.attn1.to_q") != place("transformer.blocks.0.attn1.to_q")
    flat = {place(name).parts[0].replace(".", "_") for name in (
        "lora_transformer_2_blocks_0_attn1_to_q", "transformer_2.blocks.0.attn1.to_q",
        "transformer_2.blocks.0.self_attn.q",
    )}  # fmt: skip
    assert len(flat) == 1


def test_two_modules_of_one_adapter_that_mean_the_same_keep_their_own_names(rng):
    a, b = rng.standard_normal((RANK, WIDTH)), rng.standard_normal((WIDTH, RANK))
    both = adapter([low_rank("img_in", a, b), low_rank("x_embedder", a, -b)], "both")
    one = adapter([low_rank("transformer.x_embedder", a, b)], "one")
    (pair,) = run([both, one]).pairs
    assert [(row["name"], round(row["cosine"])) for row in pair.modules] == [("x_embedder", -1)]
