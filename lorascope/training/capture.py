"""A training pass without its launches: `training.compile`.

On a GPU a small model is bound by launching kernels, not by arithmetic: a pass of a 22M encoder over 16 × 16 tokens is
some 1,400 of them. `torch.compile(mode="reduce-overhead")` fuses forward and backward and replays them as CUDA graphs;
on a CPU the same switch compiles. What depends on the step stays outside, and exact: data, learning rates, clipping,
the optimiser's one fused kernel for each adapter, and adapters that end.

A compiled pass gives the plain one's numbers up to rounding; dropout draws other masks. Where compiling fails, training
goes on without, and says so.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from lorascope.adapt.inject import Injected
from lorascope.adapt.stacked import draws
from lorascope.training.parallel import World

MULTIPLE = 8  # passes are padded to a multiple of so many tokens: each length is compiled once
LENGTHS = 64  # so many lengths are kept compiled


class Captured:
    """A model whose pass is compiled, until that fails once.

    Args:
        model: takes keywords and gives an object with `logits`.
        device: where it is.
    """

    def __init__(self, model: nn.Module, device: torch.device):
        self.plain = model
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        self.compiled: Callable[..., Any] | None = torch.compile(model, mode=mode, dynamic=False)

    def __call__(self, **inputs: torch.Tensor) -> Any:
        if self.compiled is not None:
            try:
                settings = torch._dynamo.config
                limit = "recompile_limit" if hasattr(settings, "recompile_limit") else "cache_size_limit"  # torch 2.5
                with settings.patch({limit: LENGTHS}):
                    return self.compiled(**inputs)
            except Exception as error:  # whatever the compiler, its C++ or CUDA compiler, or a driver raises
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                self.compiled = None
                reason = " ".join(str(error).split())[:200]
                failed = f"{type(error).__name__}: {reason}"
                warnings.warn(f"training goes on without training.compile, which failed: {failed}", stacklevel=2)
        return self.plain(**inputs)

    def train(self) -> None:
        self.plain.train()


def may_compile(members: Sequence[Injected], world: World) -> bool:
    """Whether a pass of these adapters can be compiled; a sentence where it cannot."""
    reason = None
    if world.size > 1:
        reason = "several processes train together"
    elif len(members) > 1 and any(map(draws, members)):
        reason = "adapters with dropout share a pass"
    if reason:
        warnings.warn(f"training.compile is skipped: {reason}", stacklevel=2)
    return reason is None
