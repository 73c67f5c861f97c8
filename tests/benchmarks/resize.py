"""An adapter resized to a lower rank: ours, PEFT's `convert_to_lora`, and a dense SVD of B·A as resize scripts do it.

    python tests/benchmarks/resize.py [--hidden 1024] [--layers 2] [--rank 16] [--to 8] [--rounds 3]

Blocks of a Llama's shapes at `hidden`. All start from the same float32 factors and end with factors in memory; ours
reads the file, too, and takes the spectra that say what is lost. One thread, rounds interleaved, the best of them
counts. `error` is the largest ‖ΔW − result‖_F/‖ΔW‖_F over modules, `above best` how far it lies above Eckart and
Young's, both in float64.
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.machine import add_json, finish

Factors = dict[str, tuple[Any, Any]]  # by module: B (d_out, r), A (r, d_in)


def ours(folder: Path, rank: int) -> Factors:
    from lorascope.analyses import truncate as resize
    from lorascope.weights import io

    adapter = io.read(folder)
    ranks = resize.Uniform(rank).ranks(resize.decompose(adapter).spectra)
    updates = resize.truncate(adapter, ranks).updates
    return {name: (update.roles["B"].read(), update.roles["A"].read()) for name, update in updates.items()}


def dense_svd(factors: Factors, rank: int) -> Factors:
    """The floor: multiply out, decompose in float32, cut."""
    import torch

    made = {}
    for name, (b, a) in factors.items():
        u, s, vh = torch.linalg.svd(torch.from_numpy(b) @ torch.from_numpy(a), full_matrices=False)
        made[name] = ((u[:, :rank] * s[:rank]).numpy(), vh[:rank].numpy())
    return made


def peft_model(folder: Path, layers: int, hidden: int, kv: int, inner: int) -> Any:
    import torch
    from peft import PeftModel

    from tests.benchmarks.adapters import projections

    def block() -> torch.nn.Module:
        made = torch.nn.Module()
        for path, (d_out, d_in) in projections(hidden, kv, inner).items():
            parent, name = path.split(".")
            if not hasattr(made, parent):
                made.add_module(parent, torch.nn.Module())
            getattr(made, parent).add_module(name, torch.nn.Linear(d_in, d_out, bias=False))
        return made

    root = torch.nn.Module()
    root.prepare_inputs_for_generation = None  # PEFT asks a language model for it
    root.model = torch.nn.Module()
    root.model.layers = torch.nn.ModuleList([block() for _ in range(layers)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(root, folder)


def peft_convert(model: Any, rank: int) -> Factors:
    from peft import convert_to_lora

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, state = convert_to_lora(model, rank=rank)
    names = [key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")]
    return {
        name.removeprefix("base_model.model."): tuple(state[f"{name}.lora_{role}.weight"].numpy() for role in "BA")
        for name in names
    }


def accuracy(found: Factors, factors: Factors, rank: int) -> dict[str, float]:
    import numpy as np

    from lorascope.linalg.factored import Factored

    errors, above = [], []
    for name, (b, a) in factors.items():
        whole = Factored(b.astype(np.float64), a.astype(np.float64))
        left, right = (np.asarray(part, np.float64) for part in found[name])
        rest = Factored(np.hstack([whole.left, -left]), np.vstack([whole.right, right])).frobenius_norm()
        sigma = whole.singular_values()
        best = float(np.linalg.norm(sigma[rank:]))
        errors.append(rest / whole.frobenius_norm())
        above.append(rest / best - 1)
    return {"error": max(errors), "above_best": max(above)}


def clock(call: Callable[[], Factors]) -> tuple[dict[str, float], Factors]:
    cpu, wall = time.process_time(), time.perf_counter()
    found = call()
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}, found


def best_of(
    rounds: int, calls: dict[str, Callable[[], Factors]], factors: Factors, rank: int
) -> dict[str, dict[str, float]]:
    """Of each call, the least time of the rounds, by turns, and its accuracy."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    results = {}
    for i in range(rounds + 1):  # the first round warms up, and is dropped
        for name, call in calls.items():
            timed, results[name] = clock(call)
            if i:
                seen[name].append(timed)
    return {
        name: {key: min(f[key] for f in several) for key in ("cpu", "wall")} | accuracy(results[name], factors, rank)
        for name, several in seen.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("hidden", 1024), ("layers", 2), ("rank", 16), ("to", 8), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    add_json(parser)
    chosen = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # before numpy is imported
    import numpy as np
    import torch

    from lorascope.weights import io
    from tests.benchmarks.adapters import write_llama_adapter

    torch.set_num_threads(1)
    sizes = {
        "layers": chosen.layers,
        "hidden": chosen.hidden,
        "kv": chosen.hidden // 4,
        "inner": chosen.hidden * 7 // 2,
    }
    with tempfile.TemporaryDirectory() as place:
        folder = write_llama_adapter(Path(place) / "adapter", chosen.rank, **sizes)
        factors = {
            name: ((u.roles["B"].read() * u.scale).astype(np.float32), u.roles["A"].read().astype(np.float32))
            for name, u in io.read(folder).updates.items()
        }
        model = peft_model(folder, **sizes)
        calls = {
            "lorascope": lambda: ours(folder, chosen.to),
            "PEFT convert_to_lora": lambda: peft_convert(model, chosen.to),
            "dense SVD, float32": lambda: dense_svd(factors, chosen.to),
        }
        figures = best_of(chosen.rounds, calls, factors, chosen.to)
    print(f"{len(factors)} modules, hidden {chosen.hidden}, rank {chosen.rank} to {chosen.to}")
    print(f"{'':24}{'CPU s':>9}{'wall s':>9}{'/ ours':>9}{'error':>10}{'above best':>12}")
    for name, f in figures.items():
        ratio = f["cpu"] / figures["lorascope"]["cpu"]
        print(f"{name:24}{f['cpu']:9.3f}{f['wall']:9.3f}{ratio:9.0f}{f['error']:10.4f}{f['above_best']:12.1e}")
    finish(chosen.json, figures)


if __name__ == "__main__":
    main()
