"""A frozen linear layer and its update in magnitude and direction, in one autograd node.

    y = g ⊙ (x Wᵀ + s·(x Aᵀ) Bᵀ) + bias,   g = m / ‖W + s·B·A‖_row
                                           x (n, d_in), W (d_out, d_in), A (r, d_in), B (d_out, r), m, g (d_out,)

Two ways to the same numbers:

`folded`, where x is as wide as the master weights: V = g ⊙ (W + s·B·A) is formed, used and dropped, in forward and
again in backward. Over n tokens y and dx are then one GEMM each, without a low-rank product or a separate pass of g;
from n = 2·d_in·d_out/(d_in + d_out) on, d of a square layer, that is less work than plain LoRA's. The norms come from V
itself: nothing cancels.

`apart`, where x is narrower (a bfloat16 base, autocast), dropout acts between x and A, or gradients reach the norms. In
bfloat16 W + s·B·A would lose most of a small update to rounding, and so would g ⊙ W; so the products are added up by
themselves and g, in float32, multiplies their sum. (That sum is rounded too: a g nearer to 1 than 2⁻⁹ is lost in y, as
it is in PEFT, though not in the gradients.)

Both save x and y for backward, y because m's gradient is Σ_n dy ⊙ (y − bias) / m; the rest of the model often holds
both already. A length m of exactly zero gets no gradient. y must not be changed in place; torch says so where it is.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lorascope.adapt.products import as_rows_of, matmul
from lorascope.linalg.arrays import Float


def row_norms(
    squares: Float[Tensor, " d_out"],
    weight: Float[Tensor, "d_out d_in"],
    a: Float[Tensor, "r d_in"],
    b: Float[Tensor, "d_out r"],
    scale: float,
) -> Float[Tensor, " d_out"]:
    """‖W + s·B·A‖ of each row from ‖W‖² (`squares`), without forming it and with gradients to A and B.

    ‖W‖² + s·Σ_r (2·W Aᵀ + s·B·A Aᵀ) ⊙ B. W Aᵀ is multiplied in W's dtype, the rest in the master weights'. Where the
    update undoes a row of W almost wholly, terms cancel and the norm loses as many digits as it is shorter than ‖W‖,
    squared.
    """
    cross = (weight @ a.to(weight.dtype).t()).to(b.dtype)  # (d_out, r)
    added = ((2 * cross + scale * (b @ (a @ a.t()))) * b).sum(1, dtype=torch.float64)
    return (squares + scale * added).clamp_min(0).sqrt().to(squares.dtype)


def folded(
    x: Float[Tensor, "*n d_in"],
    a: Float[Tensor, "r d_in"],
    b: Float[Tensor, "d_out r"],
    m: Float[Tensor, " d_out"],
    scale: float,
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, " d_out"] | None,
) -> Float[Tensor, "*n d_out"]:
    """y with everything in one dtype. Gradients reach x, A, B and m; the norms count as constants."""
    return _Folded.apply(x, a, b, m, scale, weight, bias)


def apart(
    x: Float[Tensor, "*n d_in"],
    h: Float[Tensor, "*n r"],
    b: Float[Tensor, "d_out r"],
    m: Float[Tensor, " d_out"],
    norms: Float[Tensor, " d_out"],
    scale: float,
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, " d_out"] | None,
) -> Float[Tensor, "*n d_out"]:
    """y in x's dtype, from h = x Aᵀ (or of a dropped x) and the norms. Gradients reach x, h, B, m and the norms."""
    return _Apart.apply(x, h, b, m, norms, scale, weight, bias)


class _Folded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, a, b, m, scale, weight, bias):
        changed_weight = torch.addmm(weight, b, a, alpha=scale)  # (d_out, d_in)
        gain = m / torch.linalg.vector_norm(changed_weight, dim=1)
        flat = x.reshape(-1, x.shape[-1])  # (n, d_in)
        out = as_rows_of(F.linear(flat, changed_weight.mul_(gain[:, None]), bias), x)
        ctx.save_for_backward(x, out if ctx.needs_input_grad[3] else None, a, b, m, gain, weight, bias)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, out, a, b, m, gain, weight, bias = ctx.saved_tensors
        need_x, need_a, need_b, need_m = ctx.needs_input_grad[:4]
        g, flat = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])  # (n, d_out), (n, d_in)
        dx = da = db = dm = None
        if need_x:
            changed_weight = torch.addmm(weight, b, a, alpha=ctx.scale).mul_(gain[:, None])
            dx = matmul(g, changed_weight).view(x.shape)
        if need_a:
            dh = matmul(g, b * (ctx.scale * gain)[:, None])  # (n, r)
            da = matmul(dh.t().contiguous(), flat)
        if need_b:
            h = matmul(flat, a.t()).t().contiguous()  # (r, n)
            db = matmul(h, g).t() * (ctx.scale * gain)[:, None]
        if need_m:
            dm = _by_length(g, out, bias) / m
            dm = torch.where(m == 0, 0, dm)
        return dx, da, db, dm, None, None, None


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, h, b, m, norms, scale, weight, bias):  # autograd tracks no tensor inside of another object
        flat = x.reshape(-1, x.shape[-1])  # (n, d_in)
        gain = m / norms
        out = F.linear(flat, weight.to(x.dtype))
        out.addmm_(h.reshape(-1, h.shape[-1]), b.to(x.dtype).t(), alpha=scale).mul_(gain)  # (n, d_out)
        if bias is not None:
            out.add_(bias)
        out = as_rows_of(out, x)
        need_length = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
        ctx.save_for_backward(h, out if need_length else None, b, m, norms, weight, bias)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        h, out, b, m, norms, weight, bias = ctx.saved_tensors
        need_x, need_h, need_b, need_m, need_norms = ctx.needs_input_grad[:5]
        g = grad.reshape(-1, grad.shape[-1])  # (n, d_out)
        gain = m / norms
        dx = dh = db = dm = dnorms = None
        if need_x or need_h:
            scaled = (g * gain).to(g.dtype)
        if need_x:
            dx = matmul(scaled, weight.to(g.dtype)).view(*grad.shape[:-1], weight.shape[1])
        if need_h:
            dh = matmul(scaled, b.to(g.dtype)).mul_(ctx.scale).view(h.shape)
        if need_b:
            h_transposed = h.reshape(-1, h.shape[-1]).t().contiguous()  # (r, n)
            db = matmul(h_transposed, g).t().to(b.dtype) * (ctx.scale * gain)[:, None]
        if need_m or need_norms:
            length = _by_length(g, out, bias)
            dm = torch.where(m == 0, 0, length / m)
            dnorms = -length / norms if need_norms else None
        return dx, dh, db, dm, dnorms, None, None, None


def _by_length(g: Tensor, out: Tensor, bias: Tensor | None) -> Tensor:
    """Σ_n dy ⊙ (y − bias), (d_out,), summed in float32 or wider: the loss's gradient by the logarithm of g."""
    wide = torch.promote_types(g.dtype, torch.float32)
    total = (g * out.reshape(-1, out.shape[-1])).sum(0, dtype=wide)
    return total if bias is None else total - g.sum(0, dtype=wide) * bias
