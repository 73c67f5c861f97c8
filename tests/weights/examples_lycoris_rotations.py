"""Files of the algorithms whose ΔW is a function of W, by hand, each with its base and the dense formula.

OneTrainer's OFTv2 after its `LoRAModule.py`: of a linear map x is rotated by blocks, x R, of a convolution W, W R;
sd-scripts' OFT after `networks/oft.py`; GLoRA after ComfyUI's `weight_adapter/glora.py`, in both orders.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.updates.formula_diag_oft import block_diagonal, rotation
from tests.updates.formula_oft_v2 import series
from tests.weights.example import double, normal
from tests.weights.examples import Example


def _written(folder: Path, tensors, base, deltas) -> Example:
    (folder / "base").mkdir()
    save_file({f"{name}.weight": value for name, value in base.items()}, folder / "base" / "model.safetensors")
    save_file(tensors, folder / "a.safetensors")
    flat = {name: delta.reshape(len(delta), -1) for name, delta in deltas.items()}
    return Example(folder / "a.safetensors", flat, folder / "base")


def onetrainer_oft(folder: Path) -> Example:
    rng = np.random.default_rng(0)
    base = {"transformer_blocks.0.attn.to_q": normal(rng, 6, 12), "blocks.1.ff": normal(rng, 5, 8)}
    base |= {"conv_in": normal(rng, 6, 4, 3, 3), "blocks.1.proj": normal(rng, 7, 9)}
    entries = {name: 0.3 * normal(rng, *shape) for name, shape in {
        "transformer_blocks.0.attn.to_q": (3, 6), "conv_in": (9, 6), "blocks.1.ff": (1, 6), "blocks.1.proj": (3, 3),
    }.items()}  # fmt: skip
    prefixed = {name: f"lora_transformer_{name.replace('.', '_')}" for name in base}
    tensors = {f"{prefixed[name]}.oft_R.weight": value.astype(np.float32) for name, value in entries.items()}
    scaled, lengths = "transformer_blocks.0.attn.to_q", "blocks.1.proj"
    tensors[f"{prefixed[scaled]}.oft_R.scaled_oft"] = np.array(1, np.float32)
    tensors[f"{prefixed[lengths]}.dora_scale"] = m = 1 + np.abs(normal(rng, 7, 1))
    tensors[f"{prefixed[lengths]}.initial_norm"] = n = 1 + np.abs(normal(rng, 7, 1))
    tensors[f"{prefixed[lengths]}.alpha"] = np.array(3, np.float32)
    deltas = {}
    for name, weight in base.items():
        w = double(weight).reshape(len(weight), -1)
        stored = double(tensors[f"{prefixed[name]}.oft_R.weight"]) / (2 * 3**0.5 if name == scaled else 1)
        blocks = [series(row) for row in stored]
        blocks *= w.shape[1] // (len(blocks) * len(blocks[0]))
        turn = block_diagonal(blocks)
        tuned = w @ (turn if name == "conv_in" else turn.T)
        tuned *= double(m) / double(n) if name == lengths else 1
        deltas[name] = tuned - w
    return _written(folder, tensors, base, deltas)


def sd_scripts_oft(folder: Path) -> Example:
    rng = np.random.default_rng(1)
    base = {"down_blocks.0.to_q": normal(rng, 8, 5), "mid_block.proj": normal(rng, 6, 4)}
    small, large = 0.01 * normal(rng, 2, 4, 4), normal(rng, 3, 2, 2)
    tensors = {
        "oft_unet_down_blocks_0_to_q.oft_blocks": small.astype(np.float32),
        "oft_unet_down_blocks_0_to_q.alpha": np.array(0.5, np.float32),
        "oft_unet_mid_block_proj.oft_blocks": large,
        "oft_unet_mid_block_proj.alpha": np.array(0.125, np.float32),
    }
    deltas = {}
    for (name, weight), key in zip(base.items(), list(tensors)[::2], strict=True):
        blocks, w = double(tensors[key]), double(weight)
        limit = float(tensors[key.replace("oft_blocks", "alpha")]) * len(w)
        norm = np.linalg.norm(blocks - blocks.transpose(0, 2, 1))
        blocks = blocks * (min(norm, limit) + 1e-8) / (norm + 1e-8)
        deltas[name] = block_diagonal([rotation(block) for block in blocks]).T @ w - w
    return _written(folder, tensors, base, deltas)


def sd_scripts_oft_of_parts(folder: Path) -> Example:
    """After `networks/oft_flux.py`: the rows of each part by its own blocks, each part bounded by itself."""
    rng = np.random.default_rng(4)
    weight, parts = normal(rng, 12, 5), [normal(rng, 2, 2, 2) for _ in range(3)]
    key = "oft_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{key}.oft_blocks.{part}": blocks for part, blocks in enumerate(parts)}
    tensors[f"{key}.alpha"] = np.array(0.5, np.float32)
    rows = []
    for blocks, w in zip(map(double, parts), np.split(double(weight), 3), strict=True):
        norm = np.linalg.norm(blocks - blocks.transpose(0, 2, 1))
        blocks = blocks * (min(norm, 0.5 * len(w)) + 1e-8) / (norm + 1e-8)
        rows.append(block_diagonal([rotation(block) for block in blocks]).T @ w - w)
    name = "double_blocks.0.img_attn.qkv"
    return _written(folder, tensors, {name: weight}, {name: np.concatenate(rows)})


def glora(folder: Path) -> Example:
    rng = np.random.default_rng(2)
    base = {"a.current": normal(rng, 6, 8), "a.first": normal(rng, 6, 8), "a.square": normal(rng, 8, 8)}
    base["a.conv"] = normal(rng, 6, 4, 3, 3)
    tensors, deltas = {}, {}
    for name, weight in base.items():
        d_out, c_in, *kernel = weight.shape
        shapes = {"a1": (c_in, 2), "a2": (2, c_in), "b1": (d_out, 2), "b2": (2, c_in, *kernel)}
        t = {key: normal(rng, *shape) for key, shape in shapes.items()}
        w = double(weight).reshape(d_out, -1)
        inputs = np.kron(double(t["a1"]) @ double(t["a2"]), np.eye(w.shape[1] // c_in))
        product = double(t["b1"]) @ double(t["b2"]).reshape(2, -1)
        deltas[name] = 0.75 * (w @ inputs + product)
        if name in ("a.first", "a.square"):  # LyCORIS's first files: a1 down, a2 up, and so on
            t = {"a1": t["a2"], "a2": t["a1"], "b1": t["b2"], "b2": t["b1"]}
        prefix = f"lycoris_{name.replace('.', '_')}"
        tensors |= {f"{prefix}.{key}.weight": value for key, value in t.items()}
        tensors[f"{prefix}.alpha"] = np.array(1.5, np.float32)
    return _written(folder, tensors, base, deltas)


def dora_of_inputs(folder: Path) -> Example:
    """OneTrainer's default DoRA, of a linear map and a convolution, and of LoKr."""
    rng = np.random.default_rng(3)
    base = {"b.0.q": normal(rng, 6, 8), "b.0.conv": normal(rng, 6, 4, 3, 3), "b.0.kron": normal(rng, 6, 8)}
    tensors, deltas = {}, {}
    for name, weight in base.items():
        prefix, (d_out, c_in, *kernel) = f"lora_unet_{name.replace('.', '_')}", weight.shape
        m = 1 + np.abs(normal(rng, 1, c_in, *(1 for _ in kernel)))
        if name == "b.0.kron":
            w1, w2 = normal(rng, 2, 2), normal(rng, 3, 4)
            tensors |= {f"{prefix}.lokr_w1": w1, f"{prefix}.lokr_w2": w2}
            direction = np.kron(double(w1), double(w2))
        else:
            down, up = normal(rng, 2, c_in, *kernel), normal(rng, d_out, 2, *(1 for _ in kernel))
            tensors |= {f"{prefix}.lora_down.weight": down, f"{prefix}.lora_up.weight": up}
            tensors[f"{prefix}.alpha"] = np.array(1, np.float32)
            direction = 0.5 * (double(up).reshape(d_out, 2) @ double(down).reshape(2, -1)).reshape(weight.shape)
        tensors[f"{prefix}.dora_scale"] = m
        tuned = double(weight) + direction
        norms = np.sqrt((tuned**2).sum(axis=(0, *range(2, tuned.ndim)), keepdims=True))
        deltas[name] = tuned * double(m) / norms - double(weight)
    return _written(folder, tensors, base, deltas)


EXAMPLES = [onetrainer_oft, sd_scripts_oft, sd_scripts_oft_of_parts, glora, dora_of_inputs]
