"""Matrix products in bfloat16 on a CPU that has no instructions for them.

Without AVX-512 torch and oneDNN have no fast kernel for bfloat16: on an AMD EPYC with AVX2, one thread, x Wᵀ runs
at 8 to 10 GFLOP/s and the products of a backward pass at 2, where float32 has 50 to 85. The product of two bfloat16
numbers is exact in float32, and in float32 the fast kernels of other processors sum too. So float32 factors and one
rounding of the sum give what those give, up to the order of the terms (1 entry in 8,000 is rounded to its other
neighbour).
"""

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_SLOW = ("DEFAULT", "NO AVX", "AVX2")  # torch's names of what an x86 processor without AVX-512 is capable of


@cache
def is_slow() -> bool:
    """Whether this processor multiplies bfloat16 matrices far slower than float32 ones."""
    return platform.machine() in ("x86_64", "AMD64") and torch.backends.cpu.get_cpu_capability() in _SLOW


@contextmanager
def fast_on_cpu(model: nn.Module) -> Iterator[None]:
    """Inside, on such a processor, a bfloat16 model's matrix products are summed in float32 and rounded once.

    Forward and backward passes alike; all that is no product of two bfloat16 matrices is as it is.
    """
    if not is_slow() or not any(p.dtype == torch.bfloat16 and p.device.type == "cpu" for p in model.parameters()):
        yield
        return
    with _Widened():
        yield


class _Widened(TorchDispatchMode):
    """Hands products of bfloat16 matrices to the float32 kernels."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        product = _PRODUCTS.get(func)
        if product is None or args[-1].dtype != torch.bfloat16:
            return func(*args, **kwargs)
        return product(*args, **kwargs)


def _product(x: Tensor, y: Tensor) -> Tensor:
    return (x.float() @ y.float()).to(x.dtype)


def _added(start: Tensor, x: Tensor, y: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return (x.float() @ y.float()).mul_(alpha).add_(start, alpha=beta).to(x.dtype)


def _added_in_place(start: Tensor, x: Tensor, y: Tensor, **factors: float) -> Tensor:
    return start.copy_(_added(start, x, y, **factors))


_aten = torch.ops.aten
_PRODUCTS: Mapping[Any, Callable[..., Tensor]] = {
    _aten.mm.default: _product,
    _aten.bmm.default: _product,
    _aten.addmm.default: _added,
    _aten.baddbmm.default: _added,
    _aten.addmm_.default: _added_in_place,
    _aten.baddbmm_.default: _added_in_place,
}
