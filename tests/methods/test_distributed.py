"""DDP and FSDP2 with two processes on the CPU: each gives the gradients of one process with the whole batch."""

import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from lorascope.adapt.inject import Injected, inject
from lorascope.methods.lora import LoRA, LoRAConfig
from tests.methods import models
from tests.processes import leave

RANKS = 2


def adapted() -> Injected:
    injected = inject(models.llama(), LoRA(LoRAConfig(rank=4)), targets="all-linear")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in injected.trainable().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return injected


def gradients(injected: Injected, model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    model(input_ids=ids, labels=ids).loss.backward()
    whole = {name: p.grad for name, p in injected.trainable().items()}
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in whole.items()}


def with_ddp(injected: Injected) -> nn.Module:
    return nn.parallel.DistributedDataParallel(injected.model)


def with_fsdp(injected: Injected) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for block in injected.model.model.layers:
        fully_shard(block)
    return fully_shard(injected.model)


def work(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    mine = models.tokens(rows=4).chunk(RANKS)[rank]
    for name, wrap in (("ddp", with_ddp), ("fsdp", with_fsdp)):
        injected = adapted()
        found = gradients(injected, wrap(injected), mine)
        frozen = [p for p in injected.model.parameters() if not p.requires_grad]
        if rank == 0:
            torch.save({"gradients": found, "frozen": all(p.grad is None for p in frozen)}, f"{folder}/{name}.pt")
    leave()


def test_two_processes_give_the_gradients_of_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, args=(port, str(tmp_path)), nprocs=RANKS)
    whole = adapted()
    wanted = gradients(whole, whole.model, models.tokens(rows=4))
    for name in ("ddp", "fsdp"):
        found = torch.load(tmp_path / f"{name}.pt")
        assert found["frozen"]
        assert found["gradients"].keys() == wanted.keys()
        for key, gradient in found["gradients"].items():
            # float32 sums over tokens, split in two
            assert float((gradient - wanted[key]).norm() / wanted[key].norm()) < 2e-6, (name, key)
