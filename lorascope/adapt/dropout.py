"""Dropout that keeps no mask: it is drawn again in backward, from a seed.

`torch.nn.functional.dropout` before A keeps, for each adapted layer, the dropped copy of x and its mask: 5 bytes for
every entry of x in float32, where LoRA alone keeps nothing that the base does not keep already. Here only the seed is
kept, one number drawn from torch's global CPU generator, so that seeding a step fixes it and gradient checkpointing
(which puts that generator back) draws the same again.

A draw takes 16 random bits for each entry, four entries from one 64-bit number: the probability is rounded to a
multiple of 2⁻¹⁶ and what is kept is divided by one minus that, so that the mean is exact. Drawing twice in this way
takes a third of the time of torch's one draw on a CPU.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lorascope.adapt.products import matmul
from lorascope.linalg.arrays import Float

_LEVELS = 2**16


def draw_seed() -> int:
    """A seed for one mask, from torch's global CPU generator."""
    return int(torch.randint(2**62, ()))


def inflation(p: float) -> float:
    """What is kept is multiplied by this, so that the mean stays: 1/(1 − p), with p as it is drawn."""
    return _LEVELS / (_LEVELS - _level(p))


def keep(x: Tensor, p: float, seed: int) -> Tensor:
    """x with each entry zeroed with probability p; not inflated. The same seed zeroes the same ones."""
    generator = torch.Generator(x.device).manual_seed(seed)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
    words.random_(-(2**63), None, generator=generator)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    kept = bits >= _level(p) - _LEVELS // 2
    return x * kept if x.dtype == torch.float32 else torch.where(kept, x, 0)  # the faster of the two for each


def _level(p: float) -> int:
    """How many of the levels are dropped: one at least is kept."""
    return min(round(p * _LEVELS), _LEVELS - 1)


def dropped_product(x: Float[Tensor, "*n d_in"], a: Float[Tensor, "r d_in"], p: float) -> Float[Tensor, "*n r"]:
    """h = dropout(x) Aᵀ, in x's dtype. x and A are saved, no mask and no dropped x."""
    if torch.compiler.is_compiling():
        return F.linear(F.dropout(x, p), a.to(x.dtype))
    return _DroppedProduct.apply(x, a, p)


class _DroppedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, a, p):
        ctx.p, ctx.seed = p, draw_seed()
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, a if ctx.needs_input_grad[0] else None)
        return F.linear(keep(x, p, ctx.seed), a.to(x.dtype)).mul_(inflation(p))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, a = ctx.saved_tensors
        dh, dx, da = grad.reshape(-1, grad.shape[-1]) * inflation(ctx.p), None, None
        if ctx.needs_input_grad[0]:
            dx = matmul(dh, a.to(dh.dtype)).view(*grad.shape[:-1], a.shape[1])
            dx = keep(dx, ctx.p, ctx.seed)
        if ctx.needs_input_grad[1]:
            kept = keep(x, ctx.p, ctx.seed)
            da = matmul(dh.t().contiguous(), kept.reshape(-1, kept.shape[-1]))
        return dx, da, None
