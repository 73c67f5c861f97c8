"""DoRA next to lora_A and lora_B: OneTrainer's files for ComfyUI (`dora_scale`, of outputs or inputs), ai-toolkit's."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.updates.formula_dora_low_rank import decomposed
from tests.weights.example import double, normal
from tests.weights.examples import Example


def dora_next_to_lora_a_and_b(folder: Path) -> Example:
    rng = np.random.default_rng(0)
    tensors, base, deltas = {}, {}, {}
    for name, suffix, shape, role in (
        ("blocks.0.inputs", "dora_scale", (1, 8), "m_in"),
        ("blocks.0.outputs", "dora_scale", (6, 1), "m"),
        ("blocks.1.magnitude", "magnitude", (6,), "m"),
    ):
        module = f"diffusion_model.{name}"
        a, b, w, m = normal(rng, 2, 8), normal(rng, 6, 2), normal(rng, 6, 8), 1 + np.abs(normal(rng, *shape))
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b, f"{module}.{suffix}": m}
        tensors[f"{module}.alpha"] = np.array(1, np.float32)
        base[f"diffusion_model.{name}.weight"] = w
        deltas[module] = decomposed({role: double(m).reshape(-1)}, double(w), 0.5 * double(b) @ double(a))
    save_file(tensors, folder / "a.safetensors")
    (folder / "base").mkdir()
    save_file(base, folder / "base" / "model.safetensors")
    return Example(folder / "a.safetensors", deltas, folder / "base")


EXAMPLES = [dora_next_to_lora_a_and_b]
