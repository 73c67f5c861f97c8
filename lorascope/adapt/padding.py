"""Factors of several adapters as one tensor: in place where they lie next to each other, padded where ranks differ."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def padded(factors: Sequence[Tensor], axis: int) -> Tensor:
    """The factors one above another, filled up with zeros along `axis` to the largest rank; not to be written to."""
    ranks = [factor.shape[axis] for factor in factors]
    if min(ranks) == max(ranks):
        return _in_place(factors) if _neighbours(factors) else torch.stack(list(factors))
    block, slots = _zeros(factors, axis)
    for slot, factor in zip(slots, factors, strict=True):
        slot.copy_(factor)
    return block


class Padded:
    """Blocks that hold padded copies of parameters of different ranks, all brought up to date in one go.

    Padding in each layer is a copy for each factor, layer and pass; on a GPU, each is a launch.
    """

    def __init__(self) -> None:
        self._parameters: list[Tensor] = []
        self._slots: list[Tensor] = []

    @torch.no_grad()
    def add(self, parameters: Sequence[nn.Parameter], axis: int) -> Tensor:
        """The block of these parameters."""
        block, slots = _zeros(parameters, axis)
        torch._foreach_copy_(slots, list(parameters))
        self._parameters += parameters
        self._slots += slots
        return block

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the parameters' values."""
        if self._slots:
            torch._foreach_copy_(self._slots, self._parameters)


def _zeros(factors: Sequence[Tensor], axis: int) -> tuple[Tensor, list[Tensor]]:
    """A block of zeros for the factors, filled up along `axis` to the largest rank, and the place of each in it."""
    shape = list(factors[0].shape)
    shape[axis] = max(factor.shape[axis] for factor in factors)
    block = torch.zeros(len(factors), *shape, dtype=factors[0].dtype, device=factors[0].device)
    return block, [part.narrow(axis, 0, f.shape[axis]) for part, f in zip(block.unbind(), factors, strict=True)]


def gather(parameters: Sequence[nn.Parameter]) -> None:
    """Move parameters of one shape into one block of memory, where a stack of them need not be copied together."""
    if len({(p.shape, p.dtype, p.device) for p in parameters}) == 1 and not _neighbours(parameters):
        for parameter, place in zip(parameters, torch.stack([p.detach() for p in parameters]), strict=True):
            parameter.data = place


def _neighbours(tensors: Sequence[Tensor]) -> bool:
    """Whether contiguous tensors of one shape follow each other in one block of memory."""
    if torch.compiler.is_compiling():  # a graph knows no addresses; it fuses the copy
        return False
    first = tensors[0]
    start, size = first.storage_offset(), first.numel()
    storage = first.untyped_storage().data_ptr()
    return all(
        t.is_contiguous() and t.untyped_storage().data_ptr() == storage and t.storage_offset() == start + i * size
        for i, t in enumerate(tensors)
    )


def _in_place(tensors: Sequence[Tensor]) -> Tensor:
    """Neighbours as one tensor, without a copy."""
    first = tensors[0]
    shape, stride = (len(tensors), *first.shape), (first.numel(), *first.stride())
    return first.detach().as_strided(shape, stride, first.storage_offset())
