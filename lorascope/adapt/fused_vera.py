"""A frozen linear layer and its VeRA update in one autograd node: ΔW = diag(b) B diag(d) A, with A and B frozen.

    y = x Wᵀ + bias + b ⊙ (B (d ⊙ (A x)))      x (n, d_in), W (d_out, d_in), A (r, d_in), B (d_out, r), d (r), b (d_out)

VeRA's r is large (256 to 1024), often larger than d_in, and there are two ways to do the sums, in multiply-adds:

- through the bottleneck: 3·n·r·(d_in + d_out) besides the base, and n·r numbers at a time;
- through the weight: form ΔW once (r·d_in·d_out) in forward and once more in backward, and in backward G = gᵀ x
  (n·d_in·d_out) for the gradient of ΔW. In the base's own dtype ΔW is added to W first, so that y and dx cost what
  they cost without an adapter.

`cheaper_by_weight` counts both. Either way both gradients come from one matrix P = gᵀ (x Aᵀ) = G Aᵀ (d_out, r), as
db = (P ⊙ B) d and dd = bᵀ (P ⊙ B). Kept for backward is one of two: x (n, d_in), which siblings (query, key and value)
share; or, where r is at most a third of d_in so that even three siblings keep less by it, h = x Aᵀ (n, r), from which P
is cheaper, too. As separate modules it is h and B (d ⊙ h) (n, d_out).

Where x is narrower than d and b (a bfloat16 base with float32 master weights, autocast) ΔW is never added to W: it is
so much smaller that rounding the sum would lose most of it. x ΔWᵀ is then a product of its own.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lorascope.adapt.products import as_rows_of, matmul
from lorascope.linalg.arrays import Float


def vera(
    x: Float[Tensor, "*n d_in"],
    d: Float[Tensor, " r"],
    b: Float[Tensor, " d_out"],
    a: Float[Tensor, "r d_in"],
    b_matrix: Float[Tensor, "d_out r"],
    weight: Float[Tensor, "d_out d_in"] | None = None,
    bias: Float[Tensor, " d_out"] | None = None,
) -> Float[Tensor, "*n d_out"]:
    """b ⊙ (B (d ⊙ (A x))), and with `weight` also W x + bias; A, B, W and the bias are frozen. In x's dtype.

    Gradients reach x, d and b, each in its own dtype; torch refuses a second derivative.
    """
    tokens, (rank, d_in) = x.numel() // x.shape[-1], a.shape
    node = _ByWeight if cheaper_by_weight(tokens, rank, d_in, len(b), narrow=x.dtype != d.dtype) else _ThroughBottleneck
    return node.apply(x, d, b, a, b_matrix, weight, bias)


def cheaper_by_weight(tokens: int, rank: int, d_in: int, d_out: int, *, narrow: bool) -> bool:
    """Whether forming ΔW costs fewer multiply-adds than going through the bottleneck, forward and backward together."""
    through = 3 * tokens * rank * (d_in + d_out)
    products = 3 if narrow else 1  # of the size of the base's: G, and where ΔW is not added to W also y and dx
    return products * tokens * d_in * d_out + 3 * rank * d_in * d_out < through


class _ThroughBottleneck(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, d, b, a, b_matrix, weight, bias):
        flat = x.reshape(-1, x.shape[-1])  # (n, d_in)
        h = F.linear(flat, a.to(x.dtype))  # (n, r)
        _keep(ctx, x, h, d, b, a, b_matrix, weight)
        h = h * d.to(x.dtype)
        left = (b_matrix * b[:, None]).to(x.dtype)  # (d_out, r)
        if weight is None:
            out = F.linear(h, left)
        else:
            bias = None if bias is None else bias.to(x.dtype)
            out = F.linear(flat, weight.to(x.dtype), bias).addmm_(h, left.t())
        return as_rows_of(out, x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, h, d, b, a, b_matrix, weight = ctx.saved_tensors
        g = grad.reshape(-1, grad.shape[-1])  # (n, d_out)
        down, dx = _dense(a, g.dtype), None
        if ctx.needs_input_grad[0]:
            dh = matmul(g, (b_matrix * b[:, None]).to(g.dtype)).mul_(d.to(g.dtype))  # (n, r)
            dx = matmul(dh, down)
            dx = dx if weight is None else dx.add_(matmul(g, weight.to(g.dtype)))
            dx = dx.view(*grad.shape[:-1], dx.shape[-1])
        if h is None and x is not None:
            h = matmul(x.reshape(-1, x.shape[-1]), down.t())
        p = None if h is None else matmul(g.t(), h)  # (d_out, r)
        return dx, *_vectors(p, d, b, b_matrix, ctx.needs_input_grad), None, None, None, None


class _ByWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, d, b, a, b_matrix, weight, bias):
        flat = x.reshape(-1, x.shape[-1])
        h = F.linear(flat, a.to(x.dtype)) if _keeps_h(a) and any(ctx.needs_input_grad[1:3]) else None
        _keep(ctx, x, h, d, b, a, b_matrix, weight)
        first, *rest = _maps(x.dtype, d, b, a, b_matrix, weight)
        out = F.linear(flat, first, None if bias is None else bias.to(x.dtype))
        for delta in rest:
            out.addmm_(flat, delta.t())
        return as_rows_of(out, x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, h, d, b, a, b_matrix, weight = ctx.saved_tensors
        g, dx = grad.reshape(-1, grad.shape[-1]), None
        if ctx.needs_input_grad[0]:
            first, *rest = _maps(g.dtype, d, b, a, b_matrix, weight)
            dx = matmul(g, first)
            for delta in rest:
                dx.addmm_(g, delta)
            dx = dx.view(*grad.shape[:-1], dx.shape[-1])
        p = None
        if h is not None:
            p = matmul(g.t(), h)  # (d_out, r)
        elif x is not None:
            p = matmul(matmul(g.t(), x.reshape(-1, x.shape[-1])), _dense(a, g.dtype).t())
        return dx, *_vectors(p, d, b, b_matrix, ctx.needs_input_grad), None, None, None, None


def _keeps_h(a: Tensor) -> bool:
    """Whether h (n, r) is kept in place of x (n, d_in)."""
    rank, d_in = a.shape
    return 3 * rank <= d_in


def _keep(ctx, x, h, d, b, a, b_matrix, weight) -> None:
    """Save x or h, or neither where no vector trains, and what is there anyway."""
    trains, by_h = any(ctx.needs_input_grad[1:3]), _keeps_h(a)
    kept = (x if trains and not by_h else None, h if trains and by_h else None)
    ctx.save_for_backward(*kept, d, b, a, b_matrix, weight)


def _dense(a: Tensor, dtype: torch.dtype) -> Tensor:
    """A layer's columns of the shared A, without gaps: oneDNN takes a hundred times longer over a matrix with gaps."""
    return a.to(dtype).contiguous()


def _maps(dtype, d, b, a, b_matrix, weight) -> list[Tensor]:
    """The matrices (d_out, d_in) whose sum maps x to y: W + ΔW as one, or apart where the sum would lose ΔW."""
    left = (b_matrix * d).mul_(b[:, None])
    delta = matmul(left.to(dtype), _dense(a, dtype))
    if weight is None:
        return [delta]
    return [delta.add_(weight)] if dtype == d.dtype else [weight.to(dtype), delta]


def _vectors(p, d, b, b_matrix, needed) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of d and b from P (d_out, r), summed in the master weights' dtype."""
    if not any(needed[1:3]):
        return None, None
    p = p.to(d.dtype) * b_matrix
    return b @ p if needed[1] else None, p @ d if needed[2] else None
