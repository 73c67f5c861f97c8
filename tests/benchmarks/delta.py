"""All singular values of large dense matrices: ours, and `torch.linalg.svdvals` in float32, with the accuracy of each.

    python tests/benchmarks/delta.py [--shapes 1024x1024,1024x4096] [--rounds 3] [--threads 1] [--device cuda]

The matrices look like the ΔW of a fine-tune: a power law from σ₁ = 1 to 10⁻³ in random bases, stored in float32. Both
start from the same float32 array; rounds are interleaved, and the best of them counts. The reference for accuracy is
svdvals in float64 of the same array. `error` is the largest |σ̂ − σ|/σ, over the upper half of the values and over all.
Beside them, to one round: the leading 16 with their bound, the best rank-16 factors, and float64 svdvals itself.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.machine import add_json, finish

RANK = 16


def matrix_of(m: int, n: int) -> Any:
    """(m, n) float32 with the spectrum of a fine-tune."""
    import numpy as np

    rng = np.random.default_rng(0)
    p = min(m, n)
    u, v = (np.linalg.qr(rng.standard_normal((size, p)))[0] for size in (m, n))
    return ((u * np.geomspace(1, 1e-3, p)) @ v.T).astype(np.float32)


def clock(call: Callable[[], Any], wait: Callable[[], None]) -> tuple[dict[str, float], Any]:
    wait()
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    wait()
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}, result


def measure(m: int, n: int, rounds: int, device: str) -> dict[str, dict[str, float]]:
    import numpy as np
    import torch

    from lorascope.linalg import dense

    single = matrix_of(m, n)
    tensor = torch.from_numpy(single).to(device)
    ours = single if device == "cpu" else tensor
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None

    def wide() -> Any:
        return ours.astype(np.float64) if device == "cpu" else ours.double()

    exact = torch.linalg.svdvals(tensor.double()).cpu().numpy()
    repeated = {
        "lorascope, all": lambda: dense.spectrum(wide()).values,
        "torch svdvals float32": lambda: torch.linalg.svdvals(tensor),
    }
    once = {
        "torch svdvals float64": lambda: torch.linalg.svdvals(tensor.double()),
        f"lorascope, leading {RANK}": lambda: dense.leading(wide(), RANK).s,
        f"lorascope, best rank {RANK}": lambda: dense.best_rank(wide(), RANK).s,
    }
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in (*repeated, *once)}
    values: dict[str, Any] = {}
    for i in range(rounds + 1):  # the first round warms up, and is dropped
        for name, call in (repeated | (once if i in (0, rounds) else {})).items():
            figures, found = clock(call, wait)
            values[name] = np.asarray(found) if isinstance(found, np.ndarray) else found.cpu().numpy()
            if i:
                seen[name].append(figures)
    return {
        name: {key: min(f[key] for f in figures) for key in ("cpu", "wall")} | errors(values[name], exact)
        for name, figures in seen.items()
    }


def errors(found: Any, exact: Any) -> dict[str, float]:
    import numpy as np

    exact = exact[: len(found)]
    relative = np.abs(found - exact) / exact
    return {"upper_half": float(relative[: (len(found) + 1) // 2].max()), "all": float(relative.max())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="768x768,1024x4096,2048x2048")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    add_json(parser)
    arguments = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(arguments.threads)
    import torch

    torch.set_num_threads(arguments.threads)
    figures = {}
    print(
        f"{'':13}{'':30}{'CPU s':>9}{'wall s':>9}{'CPU / torch f32':>17}{'wall':>7}{'error, upper half':>19}{'all':>10}"
    )
    for shape in arguments.shapes.split(","):
        m, n = map(int, shape.split("x"))
        figures[shape] = measure(m, n, arguments.rounds, arguments.device)
        against = figures[shape]["torch svdvals float32"]
        for name, f in figures[shape].items():
            cpu, wall = f["cpu"] / against["cpu"], f["wall"] / against["wall"]
            row = f"{f['cpu']:9.3f}{f['wall']:9.3f}{cpu:17.2f}{wall:7.2f}{f['upper_half']:19.1e}{f['all']:10.1e}"
            print(f"{shape:13}{name:30}{row}", flush=True)
    finish(arguments.json, figures)


if __name__ == "__main__":
    main()
