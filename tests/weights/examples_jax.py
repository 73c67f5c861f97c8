"""tunix's, qwix's and Keras's factors by hand, with scale 1: alpha is not in the file."""

import numpy as np

from tests.weights.example import Example, double, normal


def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    a, b = normal(rng, 10, 3), normal(rng, 3, 2, 4)  # to two heads of four
    o_a, o_b = normal(rng, 2, 4, 3), normal(rng, 3, 10)
    up_a, up_b = normal(rng, 10, 3), normal(rng, 3, 6)
    attention = "layers.0.attn"
    tunix = {
        f"{attention}.q_proj.w_lora_a": a, f"{attention}.q_proj.w_lora_b": b,
        f"{attention}.o_proj.w_lora_a": o_a, f"{attention}.o_proj.w_lora_b": o_b,
        "layers.0.mlp.up_proj.kernel_lora_a": up_a, "layers.0.mlp.up_proj.kernel_lora_b": up_b,
    }  # fmt: skip
    expected = {
        f"{attention}.q_proj": np.einsum("ir,rhd->hdi", double(a), double(b)).reshape(8, 10),
        f"{attention}.o_proj": np.einsum("hdr,ro->ohd", double(o_a), double(o_b)).reshape(10, 8),
        "layers.0.mlp.up_proj": (double(up_a) @ double(up_b)).T,
    }
    tokens, width = normal(rng, 12, 3), normal(rng, 3, 5)
    keras = {
        "lora.3.vars.lora_kernel_a": up_a, "lora.3.vars.lora_kernel_b": up_b,
        "embedding.lora_embeddings_a": tokens, "embedding.lora_embeddings_b": width,
    }  # fmt: skip
    of_keras = {"lora.3": (double(up_a) @ double(up_b)).T, "embedding": (double(tokens) @ double(width)).T}
    return [Example("tunix", tunix, expected), Example("keras", keras, of_keras)]
