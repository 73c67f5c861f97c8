"""Which format a file is of, by its keys, its config and its metadata alone."""

from pathlib import Path

import numpy as np
import pytest

from lorascope.weights.formats import bottlenecks, kohya
from lorascope.weights.formats.base import Bundle, formats
from lorascope.weights.formats.peft.recognise import is_peft
from lorascope.weights.tensors import InMemory

ONE = InMemory(np.ones((1, 1), np.float32))
PEFT = {"peft_type": "LORA"}
VLM = {"rank": 2, "alpha": 1}
PAIR, OLD = ["m.lora_A.weight", "m.lora_B.weight"], ["m.lora_down.weight", "m.lora_up.weight"]
IN_UNET = [f"unet.{key}" for key in PAIR]
METADATA = {"lora_adapter_metadata": "{}"}


def claiming(keys, config=None, metadata=None):
    bundle = Bundle(Path("a"), dict.fromkeys(keys, ONE), metadata or {}, config)
    return [name for name, format in formats.items() if format.claims(bundle)]


BY_KEYS = [
    # bottlenecks, each by its first key alone
    *((key, "bottlenecks") for key in (
        "l.0.adapters.n.adapter_down.0.weight", "invertible_adapters.n.F.0.weight",
        "e.invertible_adapters.n.F.0.weight",
        "shared_parameters.n.W_down", "e.shared_parameters.n.s_up", "shared_parameters.n.phm_rule",
        "l.adapter_fusion_layer.n.query.weight", "prefix_tuning.w", "e.prefix_tunings.n.wte.weight",
        "prefix_gates.w", "prompt_tuning.w", "e.prompt_tunings.n.w", "l.refts.n.w",
        "l.adapter_layer.adapter_1.linear_in.weight", "l.adapter_layer.infused_adapter.scale",
    )),
    ("l.0.adapters.weight", None),
    ("shared_parameters.n.other", None),
    ("l.adapter_layer.adapter_x.linear_in.weight", None),
    # kohya
    ("m.lora_down.weight", "kohya"),
    ("m.lora_up.weight", "kohya"),
    ("m.lora_down.7.weight", "kohya"),
    ("m.lora_down.8.weight", None),
    ("m.lora_mid.weight", None),
    # LyCORIS, each by a key that nobody else writes
    *((f"m.{suffix}", "lycoris") for suffix in (
        "hada_w1_a", "hada_t2", "lokr_w1", "lokr_w2_b", "lokr_t2", "diff", "diff_b", "w_norm", "b_norm", "on_input",
        "oft_blocks", "oft_blocks.0", "lambda_layer", "oft_R.weight",
    )),
    ("m.hada_t3", None),
    ("lycoris_m.lora_down.weight", "lycoris"),
    ("lycoris_m.lora_up.weight", "kohya"),
    # diffusers of 2023
    *((f"unet.m.{key}", "diffusers") for key in (
        "processor.to_q_lora.down.weight", "to_q.lora.up.weight", "q_proj.lora_linear_layer.down.weight",
        "processor.qkv_lora1.down.weight",
    )),
    # the rest
    ("blk.0.attn_q.weight.lora_a", "gguf"),
    ("blk.0.attn_q.weight.lora_b", "gguf"),
    ("m.w_lora_a", "jax"),
    ("m.kernel_lora_b", "jax"),
    ("m.vars.lora_kernel_a", "jax"),
    ("m.lora_embeddings_b", "jax"),
    ("m.other_lora_a", None),
    ("m.lora_A", "loralib"),
    ("m.lora_B", "loralib"),
    ("m.lora_E", None),
    ("m.lora_a", "mlx"),
    ("m.lora_b", "mlx"),
    ("m.m", None),
    ("l.linear_qkv.adapter.linear_in.weight", "nemo"),
    ("l.self_attention.adapter_layer.lora_kqv_adapter.linear_out.weight", "nemo"),
    ("l.adapter_layer.linear_in.weight", None),
    ("m.lora_down", "nunchaku"),
    ("m.lora_up", "nunchaku"),
    ("m.lora_a.weight", "torchtune"),
    ("m.lora_b.weight", "torchtune"),
    ("base_model.model.m.lora_A.weight", "peft"),
    ("base_model.model.m.ia3_l", "peft"),
    ("base_model.model.m.lora_diag", "peft"),
    ("base_model.model.m.lily_router.weight", "peft"),
    ("base_model.model.m.weight", None),
    ("m.lora_A.weight", "peft"),
    ("m.lora_A.default.weight", "peft"),
    ("m.lora_embedding_A", "peft"),
    ("m.lora_embedding_A.default", "peft"),
    ("prompt_embeddings", "peft"),
    ("m.tinylora_A", "peft"),
    ("m.weight", None),
]  # fmt: skip


@pytest.mark.parametrize(("key", "format"), BY_KEYS, ids=lambda value: str(value))
def test_one_key_tells(key, format):
    """Unless a config says that it is PEFT's, or lorascope's own, whose record says what the keys are."""
    owner = [format] if format is not None else []
    assert claiming([key]) == claiming(["x.weight", key], {}) == owner
    both = ["kohya", "peft"]  # kohya's keys next to PEFT's config contradict each other, which io says
    assert claiming([key], PEFT) == (both if format == "kohya" else ["peft"])
    assert "lorascope" in claiming([key], {"format": "lorascope"})
    assert "lorascope" in claiming([key], metadata={"format": "lorascope"})
    assert "lorascope" not in claiming([key], {"format": "pt"}, {"format": "pt"})


@pytest.mark.parametrize(
    ("keys", "config", "metadata", "owner"),
    [
        # diffusers of today, next to PEFT's own spelling
        (IN_UNET, None, {}, "diffusers"),
        ([*IN_UNET, "text_encoder_2.m.lora_A.weight"], None, {}, "diffusers"),
        ([*IN_UNET, *PAIR], None, {}, "peft"),
        ([*IN_UNET, *PAIR], None, METADATA, "diffusers"),
        (PAIR, None, METADATA, "diffusers"),
        (PAIR, None, {}, "peft"),
        ([*PAIR, "m.alpha"], None, {}, "diffusers"),
        (["base_model.model.m.lora_A.weight"], None, METADATA, "peft"),
        (["base_model.model.m.lora_A.weight", "m.alpha"], None, {}, "diffusers"),
        (["m.alpha"], None, METADATA, None),
        (PAIR, PEFT, METADATA, "peft"),
        # two spellings in one file
        ([*PAIR, *OLD], None, {}, "diffusers"),
        (OLD, None, {}, "kohya"),
        (["base_model.model.m.lora_down.weight"], None, {}, None),
        # what LyCORIS writes, and what it shares with others
        ([*OLD, "m.diff"], None, {}, "lycoris"),
        ([*PAIR, "n.diff_b"], None, {}, "lycoris"),
        ([f"m.{half}.weight" for half in ("a1", "a2", "b1", "b2")], None, {}, "lycoris"),
        ([f"m.{half}.weight" for half in ("a1", "a2", "b1")], None, {}, None),
        (["m.a1.weight", "n.a2.weight", "n.b1.weight", "n.b2.weight"], None, {}, None),
        (["base_model.model.m.hada_w1_a"], None, {}, "peft"),
        # AdapterHub's LoRA may lie next to its bottlenecks
        (["l.adapters.n.x", "l.loras.n.lora_A"], {"config": {}}, {}, "loralib"),
        (["l.adapters.n.x", "l.q.lora_A"], None, {}, "loralib"),
        (["l.adapters.n.x", "l.q.weight"], None, {}, "bottlenecks"),
        (["l.adapters.n.x"], {"format": "x"}, {}, None),
        # MLX: mlx_vlm's names, and whole weights
        (["m.A", "m.B"], VLM, {}, "mlx"),
        (["m.A"], VLM, {}, "mlx"),
        (["m.A", "m.B"], None, {}, None),
        (["m.A", "m.B"], {"rank": 2}, {}, None),
        (["m.A", "m.B"], VLM | {"r": 2}, {}, None),
        (["m.weight"], {"fine_tune_type": "full"}, {}, "mlx"),
        (["m.weight"], {"fine_tune_type": "lora"}, {}, None),
        (["x.weight", *OLD], {"fine_tune_type": "full"}, {}, "kohya"),
        # a base of Nunchaku's
        (["m.lora_down", "m.qweight"], None, {}, None),
        (["m.lora_down", *(f"n.{key}" for key in PAIR)], None, {}, "nunchaku"),
        (["m.lora_down", *IN_UNET], None, {}, "nunchaku"),
    ],
)  # fmt: skip
def test_several_keys_tell(keys, config, metadata, owner):
    assert claiming(keys, config, metadata) == ([owner] if owner is not None else [])


@pytest.mark.parametrize(
    ("keys", "both"),
    [
        (PAIR + OLD, True),
        (PAIR, False),
        (OLD, False),
        (["m.lora_A.weight", "n.lora_up.weight"], True),
        (["up.lora_A.weight"], False),
        (["base_model.m.lora_A.weight", "n.lora_up.weight"], False),
        ([], False),
    ],
)
def test_two_spellings_of_a_pair(keys, both):
    assert kohya.of_two_spellings(keys) is both


def test_what_a_key_says_of_a_module_of_its_own():
    assert bottlenecks.reason_of("l.0.adapters.n.adapter_up.weight") == bottlenecks.BOTTLENECK
    assert bottlenecks.reason_of("l.refts.n.w").startswith("ReFT")
    assert bottlenecks.reason_of("l.0.weight") is None


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("base_model.model.m.lora_A.weight", True),
        ("base_model.model.m.lora_B.default.bias", True),
        ("base_model.model.m.shadow_x.weight", True),  # a method that is known by name only
        ("base_model.model.m.bias", False),
        ("m.shadow_x.weight", False),
        ("m.ia3_l", False),
        ("base_model.model.e.token_adapter.trainable_tokens_delta", True),
        ("e.token_adapter.trainable_tokens_delta", False),
    ],
)
def test_keys_that_peft_writes(key, found):
    assert is_peft(key) is found
