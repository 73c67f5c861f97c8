"""NeMo's and Megatron-Bridge's state dicts by hand, with scale 1: alpha is not in the file."""

import numpy as np

from tests.weights.example import Example, double, normal


def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    inner, outer = normal(rng, 3, 10), normal(rng, 6, 3)
    one = "model.language_model.encoder.layers.0.self_attention.adapter_layer.lora_kqv_adapter"
    two = "decoder.layers.0.self_attention.linear_qkv"
    delta = double(outer) @ double(inner)
    return [
        Example("nemo_1", {f"{one}.linear_in.weight": inner, f"{one}.linear_out.weight": outer}, {one: delta}),
        Example(
            "nemo_2",
            {f"{two}.adapter.linear_in.weight": inner, f"{two}.adapter.linear_out.weight": outer},
            {two: delta},
        ),
    ]
