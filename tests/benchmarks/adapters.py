"""Adapter files of a given shape, for benchmarks: PEFT's layout, plausible spectra, no model needed."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

LLAMA_8B = {"layers": 32, "hidden": 4096, "kv": 1024, "inner": 14336}
LLAMA_70B = {"layers": 80, "hidden": 8192, "kv": 1024, "inner": 28672}


def projections(hidden: int, kv: int, inner: int) -> dict[str, tuple[int, int]]:
    """(d_out, d_in) of the seven projections of a Llama block."""
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def write_llama_adapter(
    folder: Path, rank: int, layers: int, hidden: int, kv: int, inner: int, bf16: bool = False
) -> Path:
    """A LoRA folder with A uniform and B of decaying columns, `alpha = 2 r`. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    tensors = {}
    decay = 0.85 ** np.arange(rank, dtype=np.float32)
    for layer in range(layers):
        for name, (d_out, d_in) in projections(hidden, kv, inner).items():
            key = f"base_model.model.model.layers.{layer}.{name}"
            a = rng.uniform(-1, 1, (rank, d_in)).astype(np.float32) / d_in**0.5 * 1.05
            b = rng.standard_normal((d_out, rank), dtype=np.float32) * decay * 0.01
            for role, values in (("lora_A", a), ("lora_B", b)):
                tensors[f"{key}.{role}.weight"] = _bf16(values) if bf16 else values
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": [name.split(".")[-1] for name in projections(hidden, kv, inner)],
        "bias": "none",
        "base_model_name_or_path": "llama",
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _bf16(values: np.ndarray) -> np.ndarray:
    import ml_dtypes

    return values.astype(ml_dtypes.bfloat16)
