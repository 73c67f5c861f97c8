"""LyCORIS files: by hand after its documented keys, and written by lycoris-lora itself.

Of the latter ΔW is measured on the trained layers, each of which is fed a basis: `get_diff_weight` applies the scale of
LoHa and LoKr twice in 4.1.3, the layers once.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from tests.weights.example import Example, double, normal


def examples() -> list[Example]:
    """One file that mixes LoHa, LoKr, LoCon and a full difference, of linear maps and of convolutions."""
    rng = np.random.default_rng(0)
    shapes = {
        "loha": {"hada_w1_a": (6, 2), "hada_w1_b": (2, 5), "hada_w2_a": (6, 2), "hada_w2_b": (2, 5)},
        "loha_conv": {
            "hada_w1_a": (2, 6),
            "hada_w1_b": (2, 5),
            "hada_w2_a": (2, 6),
            "hada_w2_b": (2, 5),
            "hada_t1": (2, 2, 3, 3),
            "hada_t2": (2, 2, 3, 3),
        },
        "lokr": {"lokr_w1": (2, 3), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 9)},
        "lokr_conv": {"lokr_w1_a": (4, 2), "lokr_w1_b": (2, 3), "lokr_w2": (2, 3, 3, 3)},
        "locon": {"lora_down.weight": (2, 5), "lora_up.weight": (6, 2)},
        "full": {"diff": (6, 5, 3, 3)},
    }
    tensors = {
        f"lycoris_{module}.{suffix}": normal(rng, *shape)
        for module, suffixes in shapes.items()
        for suffix, shape in suffixes.items()
    }
    tensors |= {f"lycoris_{name}.alpha": np.array(0.5, np.float32) for name in shapes if name != "full"}
    t = {key.removeprefix("lycoris_"): double(value) for key, value in tensors.items()}
    halves = [
        np.einsum(
            "pqkl,pi,qj->ijkl", t[f"loha_conv.hada_t{i}"], t[f"loha_conv.hada_w{i}_a"], t[f"loha_conv.hada_w{i}_b"]
        )
        for i in (1, 2)
    ]
    w1 = t["lokr_conv.lokr_w1_a"] @ t["lokr_conv.lokr_w1_b"]
    deltas = {
        "loha": (t["loha.hada_w1_a"] @ t["loha.hada_w1_b"]) * (t["loha.hada_w2_a"] @ t["loha.hada_w2_b"]) / 4,
        "loha_conv": halves[0] * halves[1] / 4,
        "lokr": np.kron(t["lokr.lokr_w1"], t["lokr.lokr_w2_a"] @ t["lokr.lokr_w2_b"]) / 4,
        "lokr_conv": np.kron(w1[:, :, None, None], t["lokr_conv.lokr_w2"]) / 4,
        "locon": t["locon.lora_up.weight"] @ t["locon.lora_down.weight"] / 4,
        "full": t["full.diff"],
    }
    return [Example("lycoris", tensors, {f"lycoris_{k}": v.reshape(len(v), -1) for k, v in deltas.items()})]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Module()
        self.block.proj = nn.Linear(12, 16)
        self.conv_in = nn.Conv2d(4, 8, 3)
        self.point = nn.Conv2d(4, 8, 1)
        self.norm = nn.LayerNorm(12)


@dataclass(frozen=True)
class Written:
    """A file, the base it belongs to, and ΔW (d_out, d_in·k) by LyCORIS's module name, as its layers apply it."""

    path: Path
    base: Path
    expected: dict[str, np.ndarray]


def write(folder: Path, algo: str, *, dim: int = 3, alpha: float = 2.0, measure: bool = True, **options) -> Written:
    """Adapt `Model` with LyCORIS, fill every trained tensor with noise, save, and measure."""
    from lycoris.wrapper import LycorisNetwork

    torch.manual_seed(0)
    model = Model().requires_grad_(False)
    save_file(model.state_dict(), folder / "model.safetensors")
    before = {name: _response(module) for name, module in _layers(model.double())}
    model.float()
    network = LycorisNetwork(
        model, lora_dim=dim, conv_lora_dim=dim, alpha=alpha, conv_alpha=alpha, network_module=algo, **options
    )
    network.apply_to()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    network.save_weights(str(folder / f"{algo}.safetensors"), None, {})
    expected = {}
    if measure:
        dtype = torch.float32 if algo in ("diag-oft", "boft") else torch.float64  # they invert in float32
        network.to(dtype)
        model.to(dtype)
        expected = {
            f"lycoris_{name.replace('.', '_')}": _response(m, dtype) - before[name] for name, m in _layers(model)
        }
    return Written(folder / f"{algo}.safetensors", folder / "model.safetensors", expected)


def _layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]


@torch.no_grad()
def _response(layer: nn.Module, dtype: torch.dtype = torch.float64) -> np.ndarray:
    """W of a layer as it acts: its answers to a basis of inputs, less its answer to zero. (d_out, d_in·k)"""
    if isinstance(layer, nn.Linear):
        basis = torch.eye(layer.in_features, dtype=dtype)
    else:
        sides = (layer.in_channels, *layer.kernel_size)
        basis = torch.eye(int(np.prod(sides)), dtype=dtype).reshape(-1, *sides)
    answers = layer(basis) - layer(torch.zeros_like(basis))
    return answers.reshape(len(basis), -1).T.numpy()
