"""diffusers' files by hand, in today's spelling with and without metadata, and in those of 2023.

Keys and metadata as `save_lora_adapter` and `save_lora_weights` of diffusers 0.42.1 write them.
"""

import json

import numpy as np

from tests.weights.example import Example, double, normal

BLOCK = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn"


def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    a, b = normal(rng, 4, 10), normal(rng, 6, 4)
    kernel, out = normal(rng, 2, 5, 3, 3), normal(rng, 7, 2, 1, 1)
    product = double(b) @ double(a)
    comfy = {
        **_pair("diffusion_model.blocks.0.q.lora_A.weight", "diffusion_model.blocks.0.q.lora_B.weight", a, b),
        "diffusion_model.blocks.0.q.alpha": np.array(3.0, np.float32),
    }
    return [
        *_today(a, b, kernel, out),
        Example("comfy_today", comfy, {"diffusion_model.blocks.0.q": product * (3 / 4)}),
        _of_2023(a, b),
    ]


def _today(a: np.ndarray, b: np.ndarray, kernel: np.ndarray, out: np.ndarray) -> list[Example]:
    """With metadata, without, and of one model alone."""
    product = double(b) @ double(a)
    conv = np.einsum("or,rikl->oikl", double(out[..., 0, 0]), double(kernel)).reshape(7, 45)
    config = {
        "unet.r": 4,
        "unet.lora_alpha": 2,
        "unet.rank_pattern": {"conv1": 2},
        "unet.alpha_pattern": {"attn1.to_k": 7.0},
        "unet.peft_type": "LORA",
        "text_encoder.r": 4,
        "text_encoder.lora_alpha": 6,
        "text_encoder.use_rslora": True,
    }
    tensors = {
        **_pair(f"{BLOCK}.to_q.lora_A.weight", f"{BLOCK}.to_q.lora_B.weight", a, b),
        **_pair(f"{BLOCK}.to_k.lora_A.weight", f"{BLOCK}.to_k.lora_B.weight", a, b),
        **_pair("unet.resnets.0.conv1.lora_A.weight", "unet.resnets.0.conv1.lora_B.weight", kernel, out),
        **_pair(f"{TEXT}.q_proj.lora_linear_layer.down.weight", f"{TEXT}.q_proj.lora_linear_layer.up.weight", a, b),
    }
    expected = {
        f"{BLOCK}.to_q": product * (2 / 4),
        f"{BLOCK}.to_k": product * (7 / 4),
        "unet.resnets.0.conv1": conv * (2 / 2),
        f"{TEXT}.q_proj": product * (6 / 2),  # alpha / √r
    }

    def of_unet(values: dict) -> dict:
        return {name.removeprefix("unet."): value for name, value in values.items() if name.startswith("unet.")}

    metadata = {"lora_adapter_metadata": json.dumps(of_unet(config))}
    return [
        Example("today", tensors, expected, {"format": "pt", "lora_adapter_metadata": json.dumps(config)}),
        Example("bare", tensors, dict.fromkeys(expected, product) | {"unet.resnets.0.conv1": conv}),
        Example("one_model", of_unet(tensors), of_unet(expected), metadata),
    ]


def _of_2023(a: np.ndarray, b: np.ndarray) -> Example:
    tensors = {
        **_pair(f"{BLOCK}.processor.to_q_lora.down.weight", f"{BLOCK}.processor.to_q_lora.up.weight", a, b),
        **_pair(f"{BLOCK}.processor.to_out_lora.down.weight", f"{BLOCK}.processor.to_out_lora.up.weight", a, b),
        **_pair(f"{BLOCK}.to_v.lora.down.weight", f"{BLOCK}.to_v.lora.up.weight", a, b),
        **_pair(f"{TEXT}.to_out_lora.down.weight", f"{TEXT}.to_out_lora.up.weight", a, b),
        f"{BLOCK}.to_v.lora.alpha": np.array(1.0, np.float32),
    }
    product = double(b) @ double(a)
    plain = {f"{BLOCK}.to_q": product, f"{BLOCK}.to_out.0": product, f"{TEXT}.out_proj": product}
    return Example("old", tensors, plain | {f"{BLOCK}.to_v": product / 4})


def _pair(down_key: str, up_key: str, down: np.ndarray, up: np.ndarray) -> dict[str, np.ndarray]:
    return {down_key: down, up_key: up}
