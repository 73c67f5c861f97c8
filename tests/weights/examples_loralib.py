"""loralib state dicts by hand, in safetensors, with scale 1: alpha = r, which the file cannot say."""

import numpy as np

from tests.weights.example import Example, double, normal


def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    a, b = normal(rng, 3, 10), normal(rng, 6, 3)
    merged_a, merged_b = normal(rng, 2 * 3, 10), normal(rng, 2 * 4, 3)  # two blocks of 4 rows, each of rank 3
    blocks = np.concatenate([double(merged_b[i * 4 : i * 4 + 4]) @ double(merged_a[i * 3 : i * 3 + 3]) for i in (0, 1)])
    conv_a, conv_b = normal(rng, 2 * 3, 5 * 3), normal(rng, 7 * 3, 2 * 3)  # r = 2, a 3 × 3 kernel
    e = normal(rng, 3, 1)
    tensors = {
        "layers.0.q.lora_A": a,
        "layers.0.q.lora_B": b,
        "layers.0.q.bias": normal(rng, 6),
        "layers.0.fused.lora_A": merged_a,
        "layers.0.fused.lora_B": merged_b,
        "conv.lora_A": conv_a,
        "conv.lora_B": conv_b,
        "conv.conv.weight": normal(rng, 7, 5, 3, 3),
    }
    expected = {
        "layers.0.q": double(b) @ double(a),
        "layers.0.fused": blocks,
        "conv": (double(conv_b) @ double(conv_a)).reshape(7, 45),
    }
    adalora = {"q.lora_A": a, "q.lora_B": b, "q.lora_E": e, "q.ranknum": np.array([3.0], np.float32)}
    delta = double(b) @ np.diag(double(e)[:, 0]) @ double(a) * (3 / (3 + 1e-5))  # the repository's formula, alpha = r
    return [Example("loralib", tensors, expected), Example("adalora", adalora, {"q": delta})]
