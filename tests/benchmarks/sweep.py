"""N adapters in one pass beside N PEFT runs one after another, on the Llama of `train_step.py`.

    python tests/benchmarks/sweep.py [--device cuda] [--dtype bfloat16] [--members 4 8 16] [--rounds 9] [--json FILE]

A round is one optimiser step of each of the N adapters (r = 16 on every linear layer): forward, backward, clipping and
AdamW on b × S tokens each. Rows:

- peft: N steps of a PEFT model, one after another, as N runs would make them.
- alone: N steps of lorascope's loop with one adapter.
- joint: one step of lorascope's loop with N adapters, in groups of at most as many as `sweep:` takes by default.
- with --compile, the same with `training.compile`.

Rows alternate within a round, and each ratio is the median over rounds; on the CPU the clock is this process's CPU time
on one thread, on a GPU the wall clock around `synchronize`. `speed-up` is PEFT's time over ours; `tokens/s` is the
joint row's, which shows where the device saturates.
"""

import argparse
import copy
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence

import torch
from cases import ALPHA, RANK
from machine import add_json, finish
from torch import nn
from train_step import MODELS

from lorascope.adapt.stacked import skeleton
from lorascope.training.batches import Encoded
from lorascope.training.config import RunConfig, parse
from lorascope.training.loop import Loop
from lorascope.training.member import Member
from lorascope.training.parallel import World
from lorascope.training.run import inject_method
from lorascope.training.sweep import default_parallel

SIZES = ((1, 16), (1, 32), (8, 128))
GOALS = {"16 adapters of 1 × 16 tokens": 2.0, "everywhere": 0.98}


def config(seed: int, b: int, s: int, device: torch.device, compiled: bool = False) -> RunConfig:
    method = {"name": "lora", "rank": RANK, "alpha": ALPHA, "targets": "all-linear", "modules_to_save": []}
    training = {"per_device_train_batch_size": b, "max_steps": 10**6, "seed": seed, "device": str(device)}
    training["compile"] = compiled
    model, data = {"name": "-", "task_type": "CAUSAL_LM"}, {"path": "-", "max_length": s}
    return parse(
        {"model": model, "data": data, "method": method, "optim": {"learning_rate": 1e-5}, "training": training}
    )


def texts(s: int, base: nn.Module) -> Encoded:
    """256 texts of s tokens; with classes where the model is a classifier, whose head stays frozen."""
    tokens = torch.randint(1, 2048, (256, s), generator=torch.Generator().manual_seed(0))
    classes = [i % 25 for i in range(256)] if hasattr(base, "classifier") else None
    return Encoded(tokens.tolist(), classes, pad=0)


def together(
    base: nn.Module, n: int, b: int, s: int, here: World, most: int, compiled: bool = False
) -> Callable[[], None]:
    """One step of n adapters, at most `most` of them in one pass."""
    data, loops = texts(s, base), []
    for seeds in batched(range(n), most):
        members = []
        for seed in seeds:
            settings = config(seed, b, s, here.device, compiled)
            injected = inject_method(skeleton(base), settings)
            members.append(Member(injected, data, data, settings, here))
        loops.append(Loop.together(members))

    def step() -> None:
        for loop in loops:
            loop._step()
            loop.step += 1

    return step


def batched(items: Sequence[int], size: int) -> list[Sequence[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def one_after_another(base: nn.Module, n: int, b: int, s: int, here: World) -> Callable[[], None]:
    """n steps of a PEFT model in the usual loop."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(copy.deepcopy(base), LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear"))
    model.train()
    parameters, data = [p for p in model.parameters() if p.requires_grad], texts(s, base)
    optimiser = torch.optim.AdamW(parameters, lr=1e-5)
    batches = [data.batch(range(i * b, (i + 1) * b)).to(here.device) for i in range(n)]

    def step() -> None:
        for batch in batches:
            ids, mask, labels = batch.input_ids, batch.attention_mask, batch.labels
            model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad()

    return step


def clock(step: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    step()
    return time.process_time() - start


def measure(base: nn.Module, n: int, b: int, s: int, here: World, rounds: int, compiled: bool = False) -> dict:
    most = default_parallel(config(0, b, s, here.device))
    rows = {
        "peft": one_after_another(base, n, b, s, here),
        "alone": together(base, n, b, s, here, most=1),
        "joint": together(base, n, b, s, here, most=most),
    }
    if compiled:
        rows["compiled"] = together(base, n, b, s, here, most=most, compiled=True)
    for step in rows.values():  # warm up: CUDA graphs are recorded in the second step of a shape
        for _ in range(3 if compiled else 1):
            step()
    times: dict[str, list[float]] = {key: [] for key in rows}
    for turn in range(rounds):
        keys = list(rows)
        for key in keys[turn % len(keys) :] + keys[: turn % len(keys)]:
            times[key].append(clock(rows[key], here.device))
    seconds = {key: statistics.median(values) for key, values in times.items()}
    faster = {
        key: statistics.median(other / own for other, own in zip(times[key], times["joint"], strict=True))
        for key in ("peft", "alone")
    }
    if compiled:
        ratios = [other / own for other, own in zip(times["peft"], times["compiled"], strict=True)]
        faster["compiled"] = statistics.median(ratios)
    best = min(times["peft"]) / min(times["joint"])
    shape = {"members": n, "batch": b, "length": s, "in_one_pass": min(n, most)}
    speed = {"speed_up": faster["peft"], "best": best, "to_alone": faster["alone"]}
    speed |= {"speed_up_compiled": faster["compiled"]} if compiled else {}
    return {**shape, "seconds": seconds, **speed, "tokens_per_second": n * b * s / seconds["joint"]}


def show(results: Sequence[dict]) -> None:
    print(f"{'N × b × S':>14} {'a pass':>7} {'PEFT s':>8} {'alone s':>8} {'joint s':>8}", end="")
    print(f" {'speed-up':>9} {'best':>6} {'/alone':>7} {'tokens/s':>9}")
    for r in results:
        shape = f"{r['members']} × {r['batch']} × {r['length']}"
        print(f"{shape:>14} {r['in_one_pass']:7}", end="")
        print("".join(f" {r['seconds'][key]:8.3f}" for key in ("peft", "alone", "joint")), end="")
        print(f" {r['speed_up']:8.2f}x {r['best']:6.2f} {r['to_alone']:7.2f} {r['tokens_per_second']:9.0f}")
    print("goals: " + ", ".join(f"{where} at least {goal:g}x" for where, goal in GOALS.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--members", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--sizes", nargs="+", default=[f"{b}x{s}" for b, s in SIZES], help="batch x length")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    add_json(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    here = World(torch.device(args.device))
    base = MODELS["llama"]().to(here.device, getattr(torch, args.dtype))
    results = []
    for size in args.sizes:
        b, s = map(int, size.split("x"))
        for n in args.members:
            print(f"measuring {n} × {b} × {s}", file=sys.stderr)
            rounds = args.rounds if b * s <= 256 else max(2, args.rounds // 4)  # long steps vary less
            results.append(measure(base, n, b, s, here, rounds, args.compile))
    show(results)
    finish(args.json, {"device": args.device, "dtype": args.dtype, "results": results})


if __name__ == "__main__":
    main()
