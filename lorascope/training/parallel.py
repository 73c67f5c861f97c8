"""One process or several: the device, the processes torchrun started, and what they exchange.

Every process holds the whole adapter, which is small: gradients are summed over the processes in one flat all-reduce
per step, so adapters, optimiser state and checkpoints are the same plain tensors everywhere. What is large is the
frozen base, and it is either replicated ("ddp") or sharded by FSDP2's `fully_shard` ("fsdp"), which then gathers one
block at a time.
"""

import os
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lorascope.adapt.inject import Injected
from lorascope.adapt.sublayers import repeated_blocks
from lorascope.errors import InputError


@dataclass(frozen=True)
class World:
    """This process (`rank` of `size`) and the device it computes on."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor summed over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Every parameter's gradient summed over all processes. One without a gradient counts as zero."""
        if self.size == 1:
            return
        parameters = list(parameters)
        for dtype in sorted({p.dtype for p in parameters}, key=str):
            of_dtype = [p for p in parameters if p.dtype == dtype]
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in of_dtype])
            dist.all_reduce(flat)
            for p, piece in zip(of_dtype, flat.split([p.numel() for p in of_dtype]), strict=True):
                p.grad = piece.view_as(p)


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one. InputError where it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"there is no device {name!r}", expected="auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"training on {name!r} is not supported", expected="auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"{name} was asked for and is not there",
            found=f"{torch.cuda.device_count()} CUDA devices",
            hint="use --device cpu, or install a CUDA build of torch and its driver",
        )
    return device


@contextmanager
def world(device_name: str):
    """This process's `World`; under torchrun, joined to the others until the block ends."""
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    device = pick_device(device_name)
    if size == 1:
        yield World(device)
        return
    if device.type == "cuda":
        device = pick_device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(device, rank, size)
    finally:
        dist.destroy_process_group()


def shard_base(injected: Injected, here: World) -> None:
    """Shard the frozen base over the processes, block by block. Trained parameters stay whole everywhere.

    Raises:
        InputError: the method trains the base itself.
    """
    if reason := injected.method.not_sharded:
        what = f"{injected.method.name} cannot train with fsdp: {reason}"
        raise InputError(what, hint="set training.parallel to ddp")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(here.device.type, (here.size,))
    whole = {p for part in injected._parts().values() for p in part.parameters()}
    for block in repeated_blocks(injected.model).values():
        fully_shard(block, mesh=mesh, ignored_params=whole)
    fully_shard(injected.model, mesh=mesh, ignored_params=whole)
