"""Nunchaku's files: packed entry by entry, after the layout of a warp's fragments, and with the base's own branch."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.weights.example import double
from tests.weights.examples import Example


def packed(matrix: np.ndarray, down: bool) -> np.ndarray:
    """The stored (d, r) of A (r, d) or B (d, r), zeros filled in: each entry to its lane and place."""
    padded = np.zeros([-(-size // 16) * 16 for size in matrix.shape], matrix.dtype)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    rows, columns = padded.shape
    across = (columns // 16, rows // 16) if down else (rows // 16, columns // 16)
    flat = np.zeros(padded.size, matrix.dtype)
    for row in range(rows):
        for column in range(columns):
            n, k = row % 16, column % 16
            lane = (n % 8) * 4 + k % 8 // 2
            place = lane * 8 + (n // 8) * 4 + (k // 8) * 2 + k % 2
            outer, inner = (column // 16, row // 16) if down else (row // 16, column // 16)
            flat[(outer * across[1] + inner) * 256 + place] = padded[row, column]
    return flat.reshape(across[0] * 16, across[1] * 16)


def by_channel(up: np.ndarray, splits: int) -> np.ndarray:
    """Rows n, n + c/splits, ... one after another."""
    count = len(up) // splits
    return np.stack([up[split * count + channel] for channel in range(count) for split in range(splits)])


def _half(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float16)


def _tensors(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    tensors, deltas = {}, {}
    for name, d_out, d_in, rank in (
        ("transformer_blocks.0.qkv_proj", 48, 32, 16),
        ("single_transformer_blocks.1.mlp_fc1", 32, 16, 5),
    ):
        a, b = _half(rng, rank, d_in), _half(rng, d_out, rank)
        tensors |= {f"{name}.lora_down": packed(a, down=True), f"{name}.lora_up": packed(b, down=False)}
        deltas[name] = double(b) @ double(a)
    for name, splits in (("transformer_blocks.0.norm1.linear", 6), ("single_transformer_blocks.1.norm.linear", 3)):
        a, b = _half(rng, 16, 4), _half(rng, 4 * splits, 16)
        tensors |= {f"{name}.lora_down": a, f"{name}.lora_up": by_channel(b, splits)}
        deltas[name] = double(b) @ double(a)
    a, b = _half(rng, 3, 4), _half(rng, 5, 3)
    tensors |= {"proj_out.lora_A.weight": a, "proj_out.lora_B.weight": b, "proj_out.bias": _half(rng, 5)}
    return tensors, {**deltas, "proj_out": double(b) @ double(a)}


def nunchaku(folder: Path) -> Example:
    tensors, deltas = _tensors(np.random.default_rng(0))
    save_file(tensors, folder / "a.safetensors")
    return Example(folder / "a.safetensors", deltas)


def with_the_bases_own_branch(folder: Path) -> Example:
    rng = np.random.default_rng(1)
    name = "transformer_blocks.0.out_proj"
    a, b, base_a, base_b = _half(rng, 16, 32), _half(rng, 16, 16), _half(rng, 16, 32), _half(rng, 16, 16)
    both = np.concatenate([base_a, a]), np.concatenate([base_b, b], axis=1)
    save_file(
        {f"{name}.lora_down": packed(both[0], down=True), f"{name}.lora_up": packed(both[1], down=False)},
        folder / "a.safetensors",
    )
    (folder / "base").mkdir()
    base = {f"{name}.lora_down": packed(base_a, down=True), f"{name}.lora_up": packed(base_b, down=False)}
    save_file({**base, f"{name}.qweight": np.zeros((16, 16), np.int8)}, folder / "base" / "model.safetensors")
    return Example(folder / "a.safetensors", {name: double(b) @ double(a)}, folder / "base")


EXAMPLES = [nunchaku, with_the_bases_own_branch]
