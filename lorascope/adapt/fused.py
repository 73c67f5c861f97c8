"""A frozen linear layer and its low-rank update in one autograd node.

    y = x Wᵀ + bias + s·(drop(x) Aᵀ) Bᵀ      x (n, d_in), W (d_out, d_in), A (r, d_in), B (d_out, r)

Written as separate modules this costs, besides its own products, several passes over (n, d_in) and (n, d_out): the
scaled update, its sum with the base's output, and in backward the sum of two gradients of x. Here the update is added
by the product itself (`addmm_` with s as its alpha), forward and backward. A and B are float32 master weights:
products run in x's dtype on narrow copies of A and B, which are small, and never on a wide copy of x, which is not.

Saved for backward: x (which the rest of the model often holds anyway) and h = A xᵀ (r, n); with A frozen h alone, so
that O(n·d_in) falls to O(n·r). Doing h again would save the last O(n·r) at the price of a pass over x, and measured
slower. The products that sum over n are given h and its gradient as (r, n), contiguous: CPU kernels run them up to
twice as fast as their transposes.

On a GPU what counts is bytes. At 7B shapes in bfloat16 a layer's step moves 0.25 to 0.32 of what PEFT's does, and 1.8
to 1.9 times what a kernel would that does both products of x in one pass (`tests/benchmarks/traffic.py`, a count).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lorascope.adapt.dropout import draw_seed, inflation, keep
from lorascope.adapt.products import as_rows_of, matmul
from lorascope.linalg.arrays import Float


def low_rank(
    x: Float[Tensor, "*n d_in"],
    a: Float[Tensor, "r d_in"],
    b: Float[Tensor, "d_out r"],
    scale: float,
    weight: Float[Tensor, "d_out d_in"] | Callable[[], Tensor] | None = None,
    bias: Float[Tensor, " d_out"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "*n d_out"]:
    """scale·(x Aᵀ) Bᵀ, and with `weight` also x Wᵀ + bias, W and the bias being frozen. In x's dtype.

    A weight in codes is given as a function that makes numbers of them: it is called in forward and again in backward,
    and W is not kept in between.

    Each entry of x is dropped before A with probability `dropout`, by a mask that is not kept (`dropout.py`).
    Gradients reach x, A and B, each in its own dtype; torch refuses a second derivative.
    """
    return _LowRank.apply(x, a, b, scale, weight, bias, dropout)


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, a, b, scale, weight, bias, dropout):
        flat = x.reshape(-1, x.shape[-1])  # (n, d_in)
        narrow_b = b.to(x.dtype)
        ctx.dropout, ctx.seed = dropout, draw_seed() if dropout else None
        scale = scale * inflation(dropout)
        h = F.linear(_kept(ctx, flat), a.to(x.dtype))  # (n, r)
        ctx.decode = weight if callable(weight) and not isinstance(weight, Tensor) else None
        weight = ctx.decode() if ctx.decode is not None else weight
        if weight is None:
            out = F.linear(h, narrow_b).mul_(scale)  # (n, d_out)
        else:
            bias = None if bias is None else bias.to(x.dtype)  # W and the bias are wider than x under autocast
            out = F.linear(flat, weight.to(x.dtype), bias).addmm_(h, narrow_b.t(), alpha=scale)
        need_x, need_a, need_b = ctx.needs_input_grad[:3]
        kept_x, kept_h = x if need_a else None, h.t().contiguous() if need_b else None
        kept_weight = weight if need_x and ctx.decode is None else None
        ctx.save_for_backward(kept_x, kept_h, a if need_x else None, b, kept_weight)
        ctx.dtype_a = a.dtype
        ctx.scale = scale
        return as_rows_of(out, x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, h, a, b, weight = ctx.saved_tensors
        need_x, need_a, need_b = ctx.needs_input_grad[:3]
        g = grad.reshape(-1, grad.shape[-1])  # (n, d_out)
        dx = da = db = None
        if need_x or need_a:
            dh = matmul(g, b.to(g.dtype)).mul_(ctx.scale)  # (n, r)
        if need_x:
            weight = weight if ctx.decode is None else ctx.decode()
            narrow_a = a.to(g.dtype)
            dx = None if weight is None else matmul(g, weight.to(g.dtype))
            if dx is None or ctx.dropout:
                of_update = _kept(ctx, matmul(dh, narrow_a))
                dx = of_update if dx is None else dx.add_(of_update)
            else:
                dx.addmm_(dh, narrow_a)
            dx = dx.view(*grad.shape[:-1], dx.shape[-1])
        if need_a:
            da = matmul(dh.t().contiguous(), _kept(ctx, x.reshape(-1, x.shape[-1]))).to(ctx.dtype_a)
        if need_b:
            db = matmul(h, g).t().to(b.dtype) * ctx.scale
        return dx, da, db, None, None, None, None


def _kept(ctx, rows: Tensor) -> Tensor:
    """The rows (n, d_in) with this node's dropout on them: the same entries each time."""
    return keep(rows, ctx.dropout, ctx.seed) if ctx.dropout else rows
