"""Folders that PEFT itself writes, of a small random model, and the truth: PEFT's merged weights in float64, less W."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.weights.examples import Example


class Block(nn.Module):
    """One of each kind of layer, with sizes that no two axes share by accident."""

    def __init__(self, width: int = 12):
        super().__init__()
        self.q_proj = nn.Linear(width, 16)
        self.v_proj = nn.Linear(width, 8, bias=False)
        self.down_proj = nn.Linear(20, width)
        self.c_attn = Conv1D(18, width)  # stores (in, out)


class Experts(nn.Module):
    """Parameters that fuse three experts, stored (expert, out, in) as most models do."""

    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(3, 10, 6))
        self.down_proj = nn.Parameter(torch.zeros(3, 6, 5))


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(30, 12)
        self.layers = nn.ModuleList([Block(), Block()])
        self.conv1 = nn.Conv1d(4, 6, 3)
        self.conv2 = nn.Conv2d(4, 6, (3, 2))
        self.conv3 = nn.Conv3d(2, 4, (1, 2, 3))
        self.point = nn.Conv2d(4, 6, 1)
        self.wide1 = nn.Conv1d(16, 36, 3)
        self.wide2 = nn.Conv2d(16, 36, (3, 2))
        self.experts = Experts()
        self.classifier = nn.Linear(12, 3)

    def forward(self, x):
        return x


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Every trained parameter drawn anew, so that no update is zero and nothing is symmetric."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return module


def tiny() -> Tiny:
    return randomise(Tiny(), 1)


def as_map(name: str, weight: np.ndarray) -> np.ndarray:
    """A weight as (d_out, d_in): embeddings and Conv1D turned, convolutions flattened."""
    if name.endswith(("embed_tokens", "c_attn")):
        return weight.T
    return weight.reshape(len(weight), -1)


def merged_deltas(model: nn.Module, base: nn.Module) -> dict[str, np.ndarray]:
    """ΔW by module: PEFT's own merge in float64, less the base, wherever a weight changed."""
    merged = copy.deepcopy(model).double().merge_and_unload()
    before = {name: value.double().numpy() for name, value in base.state_dict().items()}
    deltas = {}
    for name, value in merged.state_dict().items():
        change = value.numpy() - before[name] if name in before else None
        if change is not None and change.ndim >= 2 and np.any(change):
            module = name.removesuffix(".weight")
            if change.ndim == 3 and module.startswith("experts."):
                deltas |= {f"{module}[{e}]": part for e, part in enumerate(change)}
            else:
                deltas[module] = as_map(module, change)
    return deltas


def build(
    folder: Path, config, *, after: Callable[[nn.Module], None] | None = None, saved: tuple[str, ...] = ()
) -> tuple[Path, dict[str, np.ndarray], Path, nn.Module]:
    """Adapter folder, ΔW by module, base folder and the PEFT model, all of one `config` on the tiny model."""
    base = tiny()
    (folder / "base").mkdir(parents=True)
    save_file(base.state_dict(), folder / "base" / "model.safetensors")
    torch.manual_seed(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = randomise(get_peft_model(copy.deepcopy(base), config), 3)
        if after:
            after(model)
        model.save_pretrained(folder / "adapter")
        deltas = merged_deltas(model, base)
    deltas = {name: delta for name, delta in deltas.items() if not name.startswith(saved or ("-",))}
    return folder / "adapter", deltas, folder / "base", model


# float64 on both sides, from the same float32 factors: only the rounding of sums of products near one, and of W + ΔW.
def lora(folder: Path) -> Example:
    path, deltas, *_ = build(folder, LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"]))
    return Example(path, deltas)


def rslora_with_patterns(folder: Path) -> Example:
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        target_modules=["q_proj", "v_proj", "down_proj"],
        rank_pattern={"layers.0.q_proj": 2, r"layers\.\d\.v_proj": 3, "_proj": 5, ".*down_proj": 7},
        alpha_pattern={"^layers.1.q_proj": 3, "v_proj|down_proj": 11},
    )
    path, deltas, *_ = build(folder, config)
    return Example(path, deltas)


def conv1d_of_gpt2(folder: Path) -> Example:
    path, deltas, base, _ = build(folder, LoraConfig(r=3, target_modules=["c_attn"], fan_in_fan_out=True))
    return Example(path, deltas, base)


def conv1d_and_linear(folder: Path) -> Example:
    """PEFT corrects fan_in_fan_out layer by layer, and keeps one flag for all: only the base says which is which."""
    path, deltas, base, _ = build(folder, LoraConfig(r=3, target_modules=["c_attn", "q_proj"]))
    return Example(path, deltas, base)


def embedding(folder: Path) -> Example:
    path, deltas, *_ = build(folder, LoraConfig(r=3, target_modules=["embed_tokens", "q_proj"]))
    return Example(path, deltas)


def convolutions(folder: Path) -> Example:
    path, deltas, *_ = build(folder, LoraConfig(r=3, target_modules=["conv1", "conv2", "conv3", "point"]))
    return Example(path, deltas)


def dora(folder: Path) -> Example:
    config = LoraConfig(r=3, use_dora=True, target_modules=["q_proj", "conv2", "embed_tokens", "point"])
    path, deltas, base, _ = build(folder, config)
    return Example(path, deltas, base)


def dora_of_conv1d(folder: Path) -> Example:
    path, deltas, base, _ = build(
        folder, LoraConfig(r=3, use_dora=True, target_modules=["c_attn"], fan_in_fan_out=True)
    )
    return Example(path, deltas, base)


def adalora(folder: Path) -> Example:
    config = AdaLoraConfig(init_r=6, target_r=3, lora_alpha=5, total_step=10, target_modules=["q_proj", "v_proj"])
    path, deltas, *_ = build(folder, config)
    return Example(path, deltas)


def adalora_pruned(folder: Path) -> Example:
    """After the budget: rows are dropped from the file, one module has none left, and ΔW is that of the kept rows."""
    keep = {"layers.0.q_proj": [1, 0, 1, 0], "layers.1.q_proj": [0, 0, 0, 0]}

    def prune(model: nn.Module) -> None:
        pattern = {f"{name}.lora_E": [bool(k) for k in kept] for name, kept in keep.items()}
        model.peft_config["default"].rank_pattern = pattern
        with torch.no_grad():
            for name, kept in keep.items():
                model.base_model.model.get_submodule(name).lora_E["default"] *= torch.tensor(kept)[:, None]

    config = AdaLoraConfig(init_r=4, target_r=2, lora_alpha=5, total_step=10, target_modules=["q_proj"])
    path, deltas, *_ = build(folder, config, after=prune)
    deltas["layers.1.q_proj"] = np.zeros((16, 12))
    return Example(path, deltas)


def vera(folder: Path) -> Example:
    config = VeraConfig(r=5, target_modules=["q_proj", "v_proj"], projection_prng_key=7)
    path, deltas, *_ = build(folder, config)
    return Example(path, deltas)


def vera_of_several_widths(folder: Path) -> Example:
    config = VeraConfig(r=5, target_modules=["q_proj", "down_proj"], projection_prng_key=7)
    path, deltas, base, _ = build(folder, config)
    return Example(path, deltas, base)


def vera_without_projections(folder: Path) -> Example:
    config = VeraConfig(r=5, target_modules=["q_proj", "down_proj"], projection_prng_key=9, save_projection=False)
    path, deltas, base, _ = build(folder, config)
    return Example(path, deltas, base)


def ia3(folder: Path) -> Example:
    config = IA3Config(target_modules=["q_proj", "down_proj", "conv2"], feedforward_modules=["down_proj"])
    path, deltas, base, _ = build(folder, config)
    return Example(path, deltas, base)


def ia3_of_conv1d(folder: Path) -> Example:
    config = IA3Config(target_modules=["c_attn"], feedforward_modules=[], fan_in_fan_out=True)
    path, deltas, base, _ = build(folder, config)
    return Example(path, deltas, base)


def ia3_of_conv1d_and_linear(folder: Path) -> Example:
    config = IA3Config(target_modules=["c_attn", "q_proj", "v_proj"], feedforward_modules=["v_proj"])
    path, deltas, base, _ = build(folder, config)
    return Example(path, deltas, base)


# PEFT keeps LoHa's scale in float32 even when its layers are float64, so α/r is chosen to be exact there.
def loha(folder: Path) -> Example:
    config = LoHaConfig(r=3, alpha=6, target_modules=["q_proj", "conv2", "conv1"], rank_pattern={"conv2": 2})
    path, deltas, *_ = build(folder, config)
    return Example(path, deltas)


def loha_of_convolutions(folder: Path) -> Example:
    config = LoHaConfig(r=3, alpha=6, target_modules=["conv1", "conv2", "point"], use_effective_conv2d=True)
    path, deltas, *_ = build(folder, config)
    return Example(path, deltas)


def lokr(folder: Path) -> Example:
    config = LoKrConfig(r=1, alpha=3, target_modules=["q_proj", "v_proj", "conv2"], alpha_pattern={"v_proj": 7})
    path, deltas, *_ = build(folder, config)
    return Example(path, deltas)


def lokr_both_factored(folder: Path) -> Example:
    config = LoKrConfig(r=1, alpha=3, target_modules=["q_proj", "down_proj"], decompose_both=True)
    path, deltas, *_ = build(folder, config)
    return Example(path, deltas)


def lokr_whole(folder: Path) -> Example:
    """Both operands whole: PEFT still scales by α/r, where LyCORIS does not."""
    path, deltas, *_ = build(folder, LoKrConfig(r=16, alpha=4, target_modules=["q_proj", "conv2", "conv1"]))
    return Example(path, deltas)


def lokr_of_convolutions(folder: Path) -> Example:
    config = LoKrConfig(r=2, alpha=3, target_modules=["wide1", "wide2"], use_effective_conv2d=True)
    path, deltas, *_ = build(folder, config)
    return Example(path, deltas)


def fused_experts(folder: Path) -> Example:
    config = LoraConfig(r=2, lora_alpha=5, target_modules=[], target_parameters=["experts.gate_up_proj"])
    path, deltas, *_ = build(folder, config)
    return Example(path, deltas)


def fused_experts_two_parameters(folder: Path) -> Example:
    config = LoraConfig(
        r=2,
        lora_alpha=5,
        target_modules=[],
        target_parameters=["experts.down_proj", "experts.gate_up_proj", "q_proj.weight"],
        rank_pattern={"experts.down_proj": 3},
    )
    path, deltas, *_ = build(folder, config)
    return Example(path, deltas)


def modules_to_save(folder: Path) -> Example:
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["classifier"])
    path, deltas, *_ = build(folder, config, saved=("classifier",))
    return Example(path, deltas)


def lora_bias(folder: Path) -> Example:
    path, deltas, *_ = build(folder, LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True))
    names = frozenset(f"base_model.model.layers.{n}.q_proj.lora_B.bias" for n in range(2))
    return Example(path, deltas, skipped=names)


EXAMPLES = [
    lora,
    rslora_with_patterns,
    conv1d_of_gpt2,
    conv1d_and_linear,
    embedding,
    convolutions,
    dora,
    dora_of_conv1d,
    adalora,
    adalora_pruned,
    vera,
    vera_of_several_widths,
    vera_without_projections,
    ia3,
    ia3_of_conv1d,
    ia3_of_conv1d_and_linear,
    loha,
    loha_of_convolutions,
    lokr,
    lokr_both_factored,
    lokr_whole,
    lokr_of_convolutions,
    fused_experts,
    fused_experts_two_parameters,
    modules_to_save,
    lora_bias,
]
