"""Intruder counts: lorascope, and PEFT's `reduce_intruder_dimension`, on one real model and one adapter in one run.

    python tests/benchmarks/intruders.py [--model minilm] [--adapter RUN/adapter] [--rank 8] [--rounds 5] [--threads 1]

Without `--adapter` every linear layer gets a random rank-`--rank` adapter as strong as `--strength` times the spectral
norm of its weight, so that about half of the layers have intruders: PEFT takes its third SVD only where there are some.
Both sides are timed in this process after their imports, CPU seconds, rounds interleaved, the best of each counts:
PEFT from the loaded model to its counts; lorascope from the files (base weights and adapter read from the disk) to its
result, with the decompositions cached, without a cache, and filling an empty one. The counts of every layer must be
equal, or the run fails. PEFT also makes the mitigated adapter, which is part of what it always does.
"""

import argparse
import copy
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.machine import add_json, finish

K, EPSILON = 10, 0.5


def clock(call: Callable[[], Any]) -> tuple[float, float, Any]:
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def random_adapter(base: Any, rank: int, strength: float) -> Any:
    """A LoRA on every linear layer whose σ₁ is between 0 and 2 · strength · σ₁(W), by layer."""
    import numpy as np

    from lorascope.updates.base import Update
    from lorascope.weights.adapter import Adapter, Source
    from lorascope.weights.tensors import InMemory

    rng = np.random.default_rng(0)
    updates = {}
    for name, stored in base.stored.items():
        if len(stored.shape) != 2 or not name.endswith(".weight") or re.search("embed|pooler|lm_head|wte", name):
            continue
        m, n = stored.shape
        b, a = rng.standard_normal((m, rank)), rng.standard_normal((rank, n))
        size = 2 * rng.random() * strength * np.linalg.norm(stored.read(), 2) / np.linalg.norm(b @ a, 2)
        roles = {"A": InMemory((size * a).astype("f4")), "B": InMemory(b.astype("f4"))}
        module = name.removesuffix(".weight")
        updates[module] = Update(module, "low_rank", roles, 1.0)
    return Adapter(updates, {"r": rank, "lora_alpha": rank}, Source(method="LoRA"))


def peft_model(model: str, adapter: Any) -> tuple[Any, dict[str, str]]:
    """The model with the adapter in PEFT's layers, and the adapter's name of each layer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    from lorascope.models import assets

    plain = AutoModel.from_pretrained(assets.resolve(model)).float().eval()
    ours = {}
    for name, module in plain.named_modules():
        same = [u for u in adapter.updates if u == name or u.endswith("." + name) or name.endswith("." + u)]
        if same and hasattr(module, "weight"):
            ours[name] = same[0]
    if len(ours) != len(adapter.updates):
        raise SystemExit(f"{len(adapter.updates)} updates and {len(ours)} layers: is this the adapter's model?")
    rank = next(iter(adapter.updates.values())).rank
    wrapped = get_peft_model(plain, LoraConfig(r=rank, lora_alpha=rank, target_modules=list(ours)))
    with torch.no_grad():
        for name, update_name in ours.items():
            update = adapter.updates[update_name]
            layer = wrapped.base_model.model.get_submodule(name)
            roles = update.read()
            layer.lora_A["default"].weight.copy_(torch.from_numpy(roles["A"]))
            layer.lora_B["default"].weight.copy_(torch.from_numpy(roles["B"] * update.scale))
    return wrapped, ours


def peft_counts(wrapped: Any, ours: dict[str, str]) -> tuple[float, float, dict[str, int]]:
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    lines: list[str] = []
    fresh = copy.deepcopy(wrapped)
    cpu, wall, _ = clock(
        lambda: reduce_intruder_dimension(fresh, top_k=K, threshold_epsilon=EPSILON, logging_sink=lines.append)
    )
    found = {}
    for line in lines:
        said = re.fullmatch(r"base_model\.model\.(.*): (?:No intruders|Intruders: (\d+))", line)
        if said:
            found[ours[said[1]]] = int(said[2] or 0)
    return cpu, wall, found


def our_counts(model: str, folder: Path, cache: Path | None) -> tuple[float, float, dict[str, int]]:
    from lorascope.analyses.intruders import run
    from lorascope.models import assets
    from lorascope.weights import io
    from lorascope.weights.base_svd import SvdCache
    from lorascope.weights.checkpoint import open_checkpoint

    where = assets.resolve(model)  # verifies the files' hashes, which is no part of the analysis

    def whole() -> Any:
        base = open_checkpoint(where)
        return run(io.read(folder, base), base, k=K, epsilon=EPSILON, cache=SvdCache(cache))

    cpu, wall, result = clock(whole)
    return cpu, wall, {m.name: len(m.intruders(EPSILON, K)) for m in result.rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm", help="a packaged model, or a folder")
    parser.add_argument("--adapter", type=Path, help="a LoRA of that model, such as RUN/adapter")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--strength", type=float, default=0.3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    add_json(parser)
    arguments = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(arguments.threads)
    import torch

    from lorascope.models import assets
    from lorascope.weights import io
    from lorascope.weights.checkpoint import open_checkpoint

    torch.set_num_threads(arguments.threads)
    base = open_checkpoint(assets.resolve(arguments.model))
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if arguments.adapter is None:
            adapter, folder = random_adapter(base, arguments.rank, arguments.strength), scratch / "adapter"
            io.write(adapter, folder)
        else:
            folder = arguments.adapter
        wrapped, ours = peft_model(arguments.model, io.read(folder, base))
        figures = measure(arguments, folder, wrapped, ours, scratch)
    finish(arguments.json, figures)


def measure(arguments: Any, folder: Path, wrapped: Any, ours: dict[str, str], scratch: Path) -> dict[str, Any]:
    seen: dict[str, list[tuple[float, float]]] = {}
    counts: dict[str, dict[str, int]] = {}
    for i in range(arguments.rounds + 1):  # the first round warms up, and is dropped
        calls = {
            "PEFT reduce_intruder_dimension": lambda: peft_counts(wrapped, ours),
            "lorascope, W cached": lambda: our_counts(arguments.model, folder, scratch / "warm"),
            "lorascope, no cache": lambda: our_counts(arguments.model, folder, None),
            "lorascope, filling the cache": lambda i=i: our_counts(arguments.model, folder, scratch / f"fresh{i}"),
        }
        for name, call in calls.items():
            cpu, wall, counts[name] = call()
            if i:
                seen.setdefault(name, []).append((cpu, wall))
    theirs = counts.pop("PEFT reduce_intruder_dimension")
    for name, mine in counts.items():
        wrong = {layer: (mine.get(layer), n) for layer, n in theirs.items() if mine.get(layer) != n}
        assert not wrong, f"{name} and PEFT count differently: {wrong}"
    with_some = sum(n > 0 for n in theirs.values())
    print(f"{len(theirs)} layers, {sum(theirs.values())} intruders in {with_some} of them: the same on both sides")
    best = {name: tuple(min(f[j] for f in figures) for j in (0, 1)) for name, figures in seen.items()}
    against = best["PEFT reduce_intruder_dimension"]
    print(f"{'':34}{'CPU s':>8}{'wall s':>8}{'PEFT CPU / this':>17}")
    for name, (cpu, wall) in best.items():
        print(f"{name:34}{cpu:8.3f}{wall:8.3f}{against[0] / cpu:17.1f}")
    return {"layers": len(theirs), "intruders": sum(theirs.values()), "best": best}


if __name__ == "__main__":
    main()
