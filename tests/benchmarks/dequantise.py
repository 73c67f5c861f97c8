"""Seconds that one weight's codes take to become numbers, over those of a numpy copy of these numbers.

    python tests/benchmarks/dequantise.py [--shape 4096x11008] [--rounds 5] [--json FILE]

nf4 (bitsandbytes, blocks of 64, of float32 and of bfloat16) and fp8 (by block of 128 and by row), from a file in the
page cache, into float32 and into float64, which analyses read. Rounds are interleaved, and the best of each counts.
`wall` and `cpu` are the ratios to the copy, of float64 to one of its own bytes. The goal is under 3.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.machine import add_json, finish


def tensors(m: int, n: int) -> dict[str, Any]:
    """The four weights with their scales, as stored arrays by key."""
    import numpy as np

    from lorascope.weights.tensors import InMemory

    rng = np.random.default_rng(0)
    stored: dict[str, Any] = {}
    for dtype in ("float32", "bfloat16"):
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": dtype, "shape": [m, n]}
        name = f"nf4 of {dtype}.weight"
        stored |= {
            name: InMemory(rng.integers(0, 256, (m * n // 2, 1), dtype=np.uint8), "U8"),
            f"{name}.absmax": InMemory(rng.random(m * n // 64, dtype=np.float32)),
            f"{name}.quant_map": InMemory(np.linspace(-1, 1, 16, dtype=np.float32)),
            f"{name}.quant_state.bitsandbytes__nf4": InMemory(
                np.frombuffer(json.dumps(state).encode(), np.uint8), "U8"
            ),
        }
    codes = InMemory(100 * rng.standard_normal((m, n), dtype=np.float32).clip(-4, 4), "F8_E4M3")
    stored |= {"fp8 by block.weight": codes, "fp8 by row.weight": codes}
    stored["fp8 by block.weight_scale_inv"] = InMemory(rng.random((-(-m // 128), -(-n // 128)), dtype=np.float32))
    stored["fp8 by row.weight_scale"] = InMemory(rng.random((m, 1), dtype=np.float32))
    return stored


def best(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, float]]:
    """(wall, cpu) seconds of the fastest round of each."""
    found = dict.fromkeys(calls, (float("inf"), float("inf")))
    for _ in range(rounds):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            took = time.perf_counter() - wall, time.process_time() - cpu
            found[name] = min(found[name][0], took[0]), min(found[name][1], took[1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="4096x11008")
    parser.add_argument("--rounds", type=int, default=5)
    add_json(parser)
    options = parser.parse_args()
    m, n = (int(side) for side in options.shape.split("x"))

    import numpy as np

    from lorascope.weights.checkpoint import open_checkpoint
    from lorascope.weights.safetensors import write_safetensors

    copied = {each: np.ones((m, n), each) for each in ("float32", "float64")}
    with tempfile.TemporaryDirectory() as folder:
        write_safetensors(Path(folder) / "model.safetensors", tensors(m, n), {})
        weights: dict[str, Any] = dict(open_checkpoint(folder).stored)
        calls: dict[str, Callable[[], Any]] = {f"copy, {each}": array.copy for each, array in copied.items()}
        for name, stored in weights.items():
            label = name.removesuffix(".weight")
            calls[f"{label}, float32"] = lambda stored=stored: stored.into(np.empty(stored.shape, np.float32))
            calls[f"{label}, float64"] = stored.read
        found = best(calls, options.rounds)
    figures = {}
    for name, (wall, cpu) in found.items():
        of = found[f"copy, {name[-7:]}"]
        figures[name] = {"wall": wall / of[0], "cpu": cpu / of[1], "seconds": wall}
        print(f"{name:28} wall {wall / of[0]:5.2f}  cpu {cpu / of[1]:5.2f}  ({1e3 * wall:.1f} ms)")
    finish(options.json, figures)


if __name__ == "__main__":
    main()
