"""Time and memory of `lorascope compare` over many adapters of a 7B model, from two layers of it, or all.

    python tests/benchmarks/compare.py --adapters 500 [--whole]

Writes so many rank-16 adapters of two layers of Mistral-7B's query, key and value projections (bfloat16, ten groups of
one A each), compares one layer and both, each in one process, and takes their difference 31 times more: modules are
taken one after the other, so time is linear in them and memory does not depend on them. `--all-projections` has all
seven projections of a layer. `--whole` writes all 32 layers (19 MB an adapter) and measures them in one process,
without extrapolation. BLAS threads as the environment says.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from tests.benchmarks.adapters import LLAMA_8B, projections
from tests.benchmarks.machine import add_json, finish

LAYERS, GROUPS = 32, 10
SHAPES = {key: LLAMA_8B[key] for key in ("hidden", "kv", "inner")}


def write(folder: Path, number: int, rank: int, names: list[str], layers: int) -> Path:
    """One adapter: A of its group's initialisation and a little movement, B of its own."""
    folder.mkdir(parents=True)
    group, own = np.random.default_rng([1, number % GROUPS]), np.random.default_rng([2, number])
    tensors = {}
    for layer, name in ((layer, name) for layer in range(layers) for name in names):
        d_out, d_in = projections(**SHAPES)[name]
        key = f"base_model.model.model.layers.{layer}.{name}"
        a = group.uniform(-1, 1, (rank, d_in)) + 0.3 * own.standard_normal((rank, d_in))
        b = own.standard_normal((d_out, rank)) * 0.85 ** np.arange(rank)
        tensors[f"{key}.lora_A.weight"] = (a / d_in**0.5).astype(ml_dtypes.bfloat16)
        tensors[f"{key}.lora_B.weight"] = (0.01 * b).astype(ml_dtypes.bfloat16)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": [n.split(".")[1] for n in names],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=100)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--all-projections", action="store_true")
    parser.add_argument("--whole", action="store_true", help="measure all 32 layers")
    add_json(parser)
    arguments = parser.parse_args()
    names = list(projections(**SHAPES))
    names = names if arguments.all_projections else names[:3]
    keys = ("cpu", "wall", "peak_mb")
    with tempfile.TemporaryDirectory() as scratch:
        layers = LAYERS if arguments.whole else 2
        numbers = range(arguments.adapters)
        folders = [write(Path(scratch) / f"{k:03}", k, arguments.rank, names, layers) for k in numbers]
        out = Path(scratch) / "out.json"
        command = ["compare", *map(str, folders), "--json", str(out), "--all-modules", "--modules"]
        parts = {"all layers": "layers"} if arguments.whole else {"one layer": r"layers\.0", "both": "layers"}
        measures = {name: dict(zip(keys, measured([*command, part]), strict=True)) for name, part in parts.items()}
        groups = json.loads(out.read_text())["groups_by_initialisation"]["groups"]
    print(f"{arguments.adapters} adapters of rank {arguments.rank}, {len(names)} modules a layer")
    for text, each in measures.items():
        print(f"  {text:10} {each['cpu']:6.1f} CPU s {each['wall']:6.1f} s wall, peak {each['peak_mb']:.0f} MB")
    if not arguments.whole:
        one, both = measures["one layer"], measures["both"]
        measures["extrapolated"] = {key: one[key] + (LAYERS - 1) * (both[key] - one[key]) for key in ("cpu", "wall")}
        cpu, wall = measures["extrapolated"].values()
        print(f"  {LAYERS} layers, extrapolated: {cpu / 60:.1f} CPU min, {wall / 60:.1f} min wall, the same memory")
    print(f"  groups by initialisation found: {len(groups)}, of {min(GROUPS, arguments.adapters)}")
    finish(arguments.json, measures | {"adapters": arguments.adapters})


def measured(arguments: list[str]) -> tuple[float, float, float]:
    """CPU seconds, wall seconds and peak MB of one run."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "lorascope", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, wall, after.ru_maxrss / 1024


if __name__ == "__main__":
    main()
