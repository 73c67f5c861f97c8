"""A low-rank update of a convolution: ΔW = s·B·A, with the kernel in A, as PEFT and LoCon have it.

A (r, c_in·k) is a convolution of the base's own kernel size, stride, padding and dilation into r channels, B (d_out, r)
one of a single point: y = base(x) + s·B ∗ (A ∗ x).
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lorascope.adapt.layers import autocast
from lorascope.adapt.low_rank import LowRankDelta
from lorascope.linalg.arrays import Float

_POINT = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class LowRankConvDelta(LowRankDelta):
    """ΔW of a Conv1d, Conv2d or Conv3d without groups; A and B are kept as matrices, the kernel flattened into A.

    Args:
        layer: the convolution, whose stride, padding and dilation A has.
    """

    def __init__(
        self,
        a: Float[Tensor, "r d_in"],
        b: Float[Tensor, "d_out r"],
        scale: float,
        dropout: float,
        layer: nn.Module,
    ):
        super().__init__(a, b, scale, dropout)
        self._layer = (layer,)  # in a tuple: the base's module, not ours

    def forward(self, x: Float[Tensor, "n c_in *size"]) -> Float[Tensor, "n d_out *size"]:
        """Only the update's output."""
        x = autocast(x)
        base: Any = self._layer[0]
        a, b = self.factors()
        kernel = a.view(a.shape[0], base.in_channels, *base.kernel_size).to(x.dtype)
        h = base._conv_forward(self._dropped(x), kernel, None)  # (n, r, *size)
        points = (b * self.scale).to(x.dtype).view(*b.shape, *(1,) * len(base.kernel_size))
        return _POINT[len(base.kernel_size)](h, points)

    def forward_with_base(self, base: nn.Module, x: Tensor) -> Tensor:
        return base(x).add_(self(x)) if _may_add(base) else base(x) + self(x)


def _may_add(base: nn.Module) -> bool:
    """Whether the base's output is nobody else's: a convolution keeps its input for backward, not its output."""
    return type(base) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and not base._forward_hooks
