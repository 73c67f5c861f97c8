"""Cross-entropy over a large vocabulary on a CPU: a few rows of logits at a time.

torch's own takes the logits of a pass to float32 as a whole, and makes two more tensors of that size. At 512 tokens of
49,152 logits each is 100 MB, that no cache holds and that the system hands out page by page: 0.23 s of a core, and in
blocks of rows 0.08. Nothing but the gradient is as large as the logits then.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lorascope.training.batches import IGNORE

BLOCK = 1 << 18  # logits at a time: 1 MB in float32, which stays in a core's cache


def losses_of_rows(logits: Tensor, labels: Tensor) -> Tensor:
    """−log softmax(logits)[label] of each row, computed in float32 or wider; 0 where the label is IGNORE.

    Args:
        logits: (n, classes).
        labels: (n,).

    Returns:
        (n,) in float32 or wider, differentiable once.
    """
    return _LossesOfRows.apply(logits, labels)


def _blocks(logits: Tensor) -> Iterator[slice]:
    rows = max(1, BLOCK // logits.shape[1])
    return (slice(start, start + rows) for start in range(0, len(logits), rows))


class _LossesOfRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        scored = labels != IGNORE
        label = labels.where(scored, 0)[:, None]
        norms = torch.empty(len(logits), dtype=dtype)  # log Σ exp of each row
        for rows in _blocks(logits):
            wide = logits[rows].to(dtype, copy=True)
            top = wide.amax(1, keepdim=True)
            norms[rows] = wide.sub_(top).exp_().sum(1).log_().add_(top[:, 0])
        ctx.save_for_backward(logits, label, scored, norms)
        return torch.where(scored, norms - logits.gather(1, label)[:, 0].to(dtype), 0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, label, scored, norms = ctx.saved_tensors
        grad = torch.where(scored, grad, 0)[:, None]
        out = torch.empty_like(logits)
        for rows in _blocks(logits):
            wide = logits[rows].to(norms.dtype, copy=True).sub_(norms[rows, None]).exp_()
            wide.scatter_add_(1, label[rows], wide.new_full((len(wide), 1), -1.0))
            out[rows] = wide.mul_(grad[rows])
        return out, None
