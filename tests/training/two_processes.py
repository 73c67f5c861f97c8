"""What torchrun runs in test_parallel.py: one step, its gradients and a few steps' adapter, written by each process."""

import sys
from pathlib import Path

import torch
import yaml

from lorascope.training import run
from lorascope.training.config import parse
from lorascope.training.loop import Loop
from lorascope.training.parallel import World, shard_base, world
from lorascope.training.scores import evaluate
from tests.processes import leave


def main(folder: Path) -> None:
    """Every config in the folder, in turn; results go beside it, one file for each process."""
    torch.set_num_threads(1)
    with world("cpu") as here:
        for path in sorted(folder.glob("*.yaml")):
            torch.save(one(path, here), folder / f"{path.stem}.{here.size}.{here.rank}.pt")


def one(path: Path, here: World) -> dict:
    config = parse(yaml.safe_load(path.read_text()))
    prepared = run.prepare(config, here.device)
    for module in prepared.model.modules():  # each process draws its own masks, so only without any is it equal
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if config.training.parallel == "fsdp" and here.size > 1:
        shard_base(prepared.injected, here)
    loop = Loop(prepared.injected, prepared.train, prepared.held_out, config, here)
    prepared.model.train()
    loop._backward()
    parameters = prepared.injected.trainable()
    here.sum_gradients(parameters.values())
    gradients = {name: parameter.grad.clone() for name, parameter in parameters.items()}
    loop.members[0].optimizer.zero_grad()
    score = loop.run()
    again = evaluate(prepared.model, prepared.held_out, 3, here)
    whole = sum(p.numel() for p in prepared.model.parameters())
    held = sum(getattr(p, "_local_tensor", p).numel() for p in prepared.model.parameters())
    return {
        "gradients": gradients,
        "adapter": prepared.injected.state_dict(),
        "losses": [score.loss, again.loss],
        "held": held / whole,
        "size": here.size,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()
