"""Experts' factors as writers other than PEFT lay them out, by hand; and PEFT's with a config that lost its names."""

import json

import numpy as np
from peft import LoraConfig
from safetensors.numpy import save_file

from tests.weights.example import double, normal
from tests.weights.examples import Example
from tests.weights.examples_peft import build

PLACE = "model.layers.0.mlp.experts"
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["down_proj"]}


def written(folder, tensors, config, base=None):
    tensors = {f"base_model.model.{key}": value for key, value in tensors.items()}
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if base is not None:
        (folder / "base").mkdir()
        save_file(base, folder / "base/model.safetensors")
        (folder / "base/config.json").write_text("{}")
    return folder


def experts_in_three_axes(folder):
    """Upright, and with the last two axes the other way round; the scale is lora_alpha/r."""
    rng = np.random.default_rng(0)
    a, b = normal(rng, 3, 2, 7), normal(rng, 3, 5, 2)
    tensors = {
        f"{PLACE}.down_proj.lora_A.weight": a, f"{PLACE}.down_proj.lora_B.weight": b,
        f"{PLACE}.up_proj.lora_A.weight": a.swapaxes(1, 2), f"{PLACE}.up_proj.lora_B.weight": b.swapaxes(1, 2),
    }  # fmt: skip
    fused = 3 * np.einsum("eor,eri->eoi", double(b), double(a))
    deltas = {f"{PLACE}.{part}_proj[{e}]": fused[e] for part in ("down", "up") for e in range(3)}
    return Example(written(folder, tensors, LORA), deltas)


def experts_in_three_axes_of_a_base(folder):
    """A base that stores one projection (E, d_in, d_out), and keeps the experts of another apart."""
    rng = np.random.default_rng(1)
    a, b = normal(rng, 2, 2, 7), normal(rng, 2, 5, 2)
    tensors = {
        f"{PLACE}.{p}.lora_{side}.weight": f for p in ("down_proj", "gate_proj") for side, f in (("A", a), ("B", b))
    }
    fused = 3 * np.einsum("eor,eri->eoi", double(b), double(a))
    base = {f"{PLACE}.down_proj": normal(rng, 2, 7, 5)}
    base |= {f"{PLACE}.{e}.gate_proj.weight": normal(rng, 5, 7) for e in range(2)}
    deltas = {f"{PLACE}.down_proj[{e}]": fused[e] for e in range(2)}
    deltas |= {f"{PLACE}.{e}.gate_proj": fused[e] for e in range(2)}
    return Example(written(folder, tensors, LORA, base), deltas, folder / "base")


def tinker(folder):
    """A shared for all experts, B shared for all, an empty placeholder, and names that only Tinker has."""
    rng = np.random.default_rng(2)
    a1, b1, a2, b2 = normal(rng, 1, 2, 7), normal(rng, 3, 5, 2), normal(rng, 3, 2, 5), normal(rng, 1, 7, 2)
    q, head = (normal(rng, 2, 7), normal(rng, 6, 2)), (normal(rng, 2, 7), normal(rng, 11, 2))
    tensors = {
        f"{PLACE}.w1.lora_A.weight": a1, f"{PLACE}.w1.lora_B.weight": b1,
        f"{PLACE}.w2.lora_A.weight": a2, f"{PLACE}.w2.lora_B.weight": b2,
        f"{PLACE}.w3.lora_A.weight": np.ones((0, 2, 7), np.float32),
        f"{PLACE}.w3.lora_B.weight": np.ones((0, 5, 2), np.float32),
        "model.layers.0.attn.q_proj.lora_A.weight": q[0], "model.layers.0.attn.q_proj.lora_B.weight": q[1],
        "model.unembed_tokens.lora_A.weight": head[0], "model.unembed_tokens.lora_B.weight": head[1],
    }  # fmt: skip
    deltas = {
        "model.layers.0.self_attn.q_proj": 16 * double(q[1]) @ double(q[0]),
        "lm_head": 16 * double(head[1]) @ double(head[0]),
    }
    for e in range(3):
        deltas[f"{PLACE}.{e}.gate_proj"] = 16 * double(b1)[e] @ double(a1)[0]
        deltas[f"{PLACE}.{e}.down_proj"] = 16 * double(b2)[0] @ double(a2)[e]
    skipped = frozenset(f"base_model.model.{PLACE}.w3.lora_{side}.weight" for side in "AB")
    return Example(written(folder, tensors, {"lora_alpha": 32, "r": 2}), deltas, skipped=skipped)


def fused_experts_whose_names_are_lost(folder):
    config = LoraConfig(
        r=2, lora_alpha=5, target_modules=[], target_parameters=["experts.down_proj", "experts.gate_up_proj"]
    )
    path, deltas, *_ = build(folder, config)
    lost = json.loads((path / "adapter_config.json").read_text()) | {"target_parameters": None}
    (path / "adapter_config.json").write_text(json.dumps(lost))
    return Example(path, deltas)


def one_fused_parameter_whose_name_the_base_knows(folder):
    path, deltas, base, _ = build(folder, LoraConfig(r=2, target_modules=[], target_parameters=["experts.down_proj"]))
    lost = json.loads((path / "adapter_config.json").read_text()) | {"target_parameters": None}
    (path / "adapter_config.json").write_text(json.dumps(lost))
    return Example(path, deltas, base)


EXAMPLES = [
    experts_in_three_axes,
    experts_in_three_axes_of_a_base,
    tinker,
    fused_experts_whose_names_are_lost,
    one_fused_parameter_whose_name_the_base_knows,
]
