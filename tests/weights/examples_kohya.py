"""kohya files by sd-scripts' documented keys: linear maps, both kinds of convolution, LoCon's Tucker core."""

import numpy as np

from tests.weights.example import Example, double, normal


def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    expected: dict[str, np.ndarray] = {}

    def add(name: str, down: np.ndarray, up: np.ndarray, delta: np.ndarray, alpha: float | None) -> None:
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = down, up
        if alpha is not None:
            tensors[f"{name}.alpha"] = np.array(alpha, np.float32)
        expected[name] = delta.reshape(delta.shape[0], -1)

    down, up = normal(rng, 4, 12), normal(rng, 20, 4)
    product = double(up) @ double(down)
    text = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    add(text, down, up, product * (2.0 / 4), 2.0)
    add("lora_te2_text_model_encoder_layers_0_mlp_fc1", down, up, product, None)  # no alpha: alpha = dim
    add("lora_unet_time_embed_0", down, up, product, 0.0)  # 0 too means alpha = dim in sd-scripts
    add("lora_unet_mid_block_attentions_0_proj_in", down[..., None, None], up[..., None, None], product / 4, 1.0)
    kernel, out = normal(rng, 3, 5, 3, 3), normal(rng, 7, 3, 1, 1)
    delta = np.einsum("or,rikl->oikl", double(out[..., 0, 0]), double(kernel))
    add("lora_unet_conv_in", kernel, out, delta * (6.0 / 3), 6.0)
    core, inner = normal(rng, 3, 3, 3, 3), normal(rng, 3, 5, 1, 1)
    delta = np.einsum("op,pqkl,qi->oikl", double(out[..., 0, 0]), double(core), double(inner[..., 0, 0]))
    add("lora_unet_conv_out", inner, out, delta * (1.5 / 3), 1.5)
    tensors["lora_unet_conv_out.lora_mid.weight"] = core
    metadata = {"ss_network_dim": "4", "ss_network_args": '{"conv_dim": "3"}', "ss_tag_frequency": "x" * 1000}
    dotted = {"diffusion_model.blocks.0.self_attn.q": product / 2}
    comfy = {
        "diffusion_model.blocks.0.self_attn.q.lora_down.weight": down,
        "diffusion_model.blocks.0.self_attn.q.lora_up.weight": up,
        "diffusion_model.blocks.0.self_attn.q.alpha": np.array(2.0, np.float32),
    }
    parts = [(normal(rng, 4, 12), normal(rng, rows, 4)) for rows in (6, 6, 6, 8)]
    fused = "lora_unet_single_blocks_0_linear1"
    split = {f"{fused}.alpha": np.array(2.0, np.float32)}
    for part, pair in enumerate(parts):
        split |= {
            f"{fused}.lora_{side}.{part}.weight": factor for side, factor in zip(("down", "up"), pair, strict=True)
        }
    rows = np.concatenate([double(up) @ double(down) for down, up in parts]) / 2
    return [
        Example("kohya", tensors, expected, metadata),
        Example("comfy", comfy, dotted),
        Example("split", split, {fused: rows}),
    ]
