"""LoRA-FA: ΔW = s·B·A with A frozen at its random start and B trained.

Zhang et al. 2023, "LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning", arXiv
2308.03303, two algorithms under one name:

v1 (2023) trains B (d_out, r) as it is. A's gradient is what needs the layer's input, so for backward the adapter keeps
h = A x (r numbers a token) and not x (d_in numbers).

v2 (2026), and PEFT's `create_lorafa_optimizer`, correct B's gradient so that s·g_B·A comes nearest to the gradient of
full fine-tuning: g_B ← g_B (A Aᵀ + 1e-8·I)⁻¹ / s². `gradient_correction` turns it on. PEFT multiplies under bfloat16
autocast wherever the machine knows bfloat16, an error of 0.4 %, and after clipping; here A Aᵀ, which is
constant, is factored once in float64, and clipping sees the corrected gradient.

The file is a plain LoRA. An embedding, whose A starts at zero, cannot learn this way and is refused.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorascope.adapt.layer import Site
from lorascope.adapt.low_rank import LowRankDelta
from lorascope.adapt.method import methods
from lorascope.errors import InputError
from lorascope.methods.lora import LoRA, LoRAConfig

RIDGE = 1e-8


@dataclass(frozen=True)
class LoRAFAConfig(LoRAConfig):
    """LoRA's settings, and the second version's correction.

    Attributes:
        gradient_correction: g_B ← g_B (A Aᵀ + 1e-8·I)⁻¹ / s² before each step.
    """

    gradient_correction: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init in ("a-zero", "zero-both", "b-orthonormal"):
            raise InputError(
                "with A frozen at zero nothing can learn",
                found=f"init {self.init!r}",
                expected="kaiming, ...",
            )


@methods.register("lora_fa")
class LoRAFA(LoRA):
    """Trains B of every layer, r·d_out parameters; A stays at its random start."""

    name, paper = "lora_fa", "Zhang et al. 2023, arXiv 2308.03303"
    Config = LoRAFAConfig
    config: LoRAFAConfig
    layer_kinds = ("linear", "conv1d")

    def __init__(self, config: LoRAFAConfig | None = None, **settings: Any):
        super().__init__(config, **settings)
        self._factored: dict[str, tuple[Tensor, int, Tensor]] = {}  # A, its version, the Cholesky factor of A Aᵀ + εI

    def make(self, site: Site, generator: torch.Generator) -> LowRankDelta:
        delta = super().make(site, generator)
        delta.A.requires_grad_(False)
        return delta

    def parameter_count(self, site: Site) -> int:
        return self.config.rank * site.d_out

    def idle_hooks(self) -> tuple[str, ...]:
        return () if self.config.gradient_correction else ("before_step",)

    @torch.no_grad()
    def before_step(self, step: int, total_steps: int) -> None:
        if not self.config.gradient_correction or self.injected is None:
            return
        for name, layer in self.injected.layers.items():
            delta = layer.delta
            if delta.B.grad is not None:
                factor = self._cholesky(name, delta.A)
                corrected = torch.cholesky_solve(delta.B.grad.double().t(), factor).t() / delta.scale**2
                delta.B.grad.copy_(corrected)

    def _cholesky(self, name: str, a: Tensor) -> Tensor:
        """The lower factor of A Aᵀ + ε·I in float64, kept until A is another (one read from a file, say)."""
        cached = self._factored.get(name)
        if cached is None or cached[0] is not a or cached[1] != a._version:
            wide = a.detach().double()
            gram = wide @ wide.t() + RIDGE * torch.eye(len(a), dtype=torch.float64, device=a.device)
            cached = self._factored[name] = (a, a._version, torch.linalg.cholesky(gram))
        return cached[2]
