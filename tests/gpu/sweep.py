"""N adapters in one pass beside N PEFT runs, and where the device saturates."""

import torch

from lorascope.training.parallel import World
from tests.gpu import lines

GOALS = {16: 5.0, 64: 10.0}  # of MiniLM
COMPILED = (1, 16)  # compiling takes tens of seconds each
SIZES = {"minilm": (16, 16), "smollm2": (2, 64), "tiny": (2, 8)}


def run(part: str, dry: bool) -> None:
    lines.benchmarks()
    import sweep
    import train_step

    here = World(torch.device("cpu" if dry else "cuda"))
    for name in ("tiny",) if dry else ("minilm", "smollm2"):  # the goals' model first
        torch.manual_seed(0)
        base = train_step.MODELS[name]().to(here.device, torch.bfloat16)
        b, s = SIZES[name]
        for members in (1, 2) if dry else (1, 4, 16, 64):
            found = sweep.measure(base, members, b, s, here, 1 if dry else 5, compiled=not dry and members in COMPILED)
            goal = GOALS.get(members) if name == "minilm" else None
            lines.write(part, model=name, **found, goal=goal)
