"""Matrix products by the faster of the libraries that torch was built with.

torch multiplies float32 matrices on the CPU by MKL. On an AMD processor MKL runs well below what the processor can do:
on an EPYC with AVX-512, one thread, 1024 × 512 × 512 takes 5.8 ms by MKL and 2.5 ms by oneDNN, which torch carries too
and uses for bfloat16; at 4096 × 384 × 1536 it is 51 and 23 ms. torch offers oneDNN's float32 product as an operator of
its own, the one that its compiler (Inductor) calls.

oneDNN sums a product's terms in one chain, MKL in blocks: 4.1e-7 and 2.4e-7 from float64 there. Forward products stay
torch's, so that the frozen layer's output is the base model's to the bit and rounding does not pile up from layer to
layer; gradients go through oneDNN. On an 8-layer Llama all gradients together are then 8e-7 from PEFT's (which are 8e-7
from float64 themselves); with oneDNN forward too it would be 1.3e-6, and a step another quarter shorter.

Everything else (CUDA, other types, tensor subclasses, a matrix with gaps between its rows, for which oneDNN has no fast
kernel, a graph that is being compiled) takes torch's ordinary way.
For use inside autograd functions: gradients do not pass through.
"""

import torch
from torch import Tensor, nn

from lorascope.linalg.arrays import Float

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_PLAIN = (Tensor, nn.Parameter)


def matmul(x: Float[Tensor, "n k"], y: Float[Tensor, "k m"]) -> Float[Tensor, "n m"]:
    """x y, for a gradient."""
    if _by_onednn(x, y):
        return torch.ops.mkldnn._linear_pointwise(x, y.t(), None, "none", [], "")
    return x @ y


def as_rows_of(rows: Float[Tensor, "n d_out"], x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_out"]:
    """The rows in x's shape, as the output of an autograd function.

    No view, by autograd's books, as torch's own linear gives none: the model may change what it gets in place (as
    Longformer divides its query), which autograd forbids of a view that a custom function made.
    """
    return torch.ops.aten._unsafe_view(rows, [*x.shape[:-1], rows.shape[-1]])


def _by_onednn(x: Tensor, y: Tensor) -> bool:
    return (
        _ONEDNN
        and x.dtype == y.dtype == torch.float32
        and x.device.type == y.device.type == "cpu"
        and type(x) in _PLAIN
        and type(y) in _PLAIN
        and _without_gaps(x)
        and _without_gaps(y)
        and not torch.compiler.is_compiling()
    )


def _without_gaps(x: Tensor) -> bool:
    """Whether the matrix lies in one piece, by rows or by columns."""
    rows, columns = x.shape
    return x.numel() > 0 and x.stride() in ((columns, 1), (1, rows))
