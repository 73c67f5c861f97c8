"""torchtune's checkpoint by hand, after its LoRALinear, with scale 1: alpha is not in the file."""

import numpy as np

from tests.weights.example import Example, double, normal


def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    a, b = normal(rng, 3, 10), normal(rng, 6, 3)
    name = "layers.0.attn.q_proj"
    tensors = {f"{name}.lora_a.weight": a, f"{name}.lora_b.weight": b}
    return [Example("torchtune", tensors, {name: double(b) @ double(a)})]
