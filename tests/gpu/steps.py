"""A training step beside PEFT's: time, peak memory, gradients. `lora` on the large shapes, `methods` the others."""

import torch

from tests.gpu import lines

GOALS = {"lora": {"to_peft": 0.67, "peak_to_peft": 0.75}}
LARGE = ("7b", "minilm", "smollm2")
METHODS = ("dora", "vera-1024", "lora-dropout")


def run(part: str, dry: bool) -> None:
    lines.benchmarks()
    import train_step

    device, rounds = ("cpu", 1) if dry else ("cuda", 7)
    models = ("tiny",) if dry else LARGE if part == "lora" else ("7b",)
    for label in ("lora",) if part == "lora" else METHODS:
        for name in models:
            _measure(part, train_step, (name, label, torch.bfloat16, device), rounds, compiled=not dry)
    if part == "methods":
        _nf4(train_step, "tiny" if dry else "7b", device, rounds)


def _measure(part: str, train_step, what: tuple, rounds: int, compiled: bool) -> None:
    """The rows of one comparison. One that fails is reported, and the next goes on."""
    try:
        rows = train_step.measure(*what, rounds, compiled)
    except Exception as error:  # memory, a kernel that is not there, ...
        lines.write(part, model=what[0], method=what[1], failed=f"{type(error).__name__}: {error}"[:400])
        return
    peak = {row["row"]: row["peak_mib"] for row in rows}
    for row in rows:
        if row["peak_mib"] and peak.get("peft"):
            row["peak_to_peft"] = row["peak_mib"] / peak["peft"]
        lines.write(part, **row, goals=GOALS.get(what[1]) if row["row"] == "lorascope" else None)


def _nf4(train_step, name: str, device: str, rounds: int) -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        lines.write("methods", method="nf4", skipped="bitsandbytes is not installed")
        return
    _measure("methods", train_step, (name, "nf4", torch.bfloat16, device), rounds, compiled=False)
