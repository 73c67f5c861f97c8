"""Bytes that one LoRA layer moves in a training step: a count, no clock. What a GPU's memory would see.

    python tests/benchmarks/traffic.py [--json FILE]

Each operation reads its inputs and writes its outputs once, views are free: what a kernel moves at best. Tensors are on
`meta`, so that 7B shapes cost nothing. Rows: PEFT's layer, with its defaults; ours (`adapt/fused.py`); ours compiled,
where casts and scalings fuse into their neighbours and matrix products do not; and one kernel that does both products
of x in one pass, forward and backward, as a Triton kernel could. `floor` is the frozen layer alone, x's gradient
included.
"""

import argparse
from collections.abc import Callable

import torch
from machine import add_json, finish
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TOKENS, RANK = 4 * 2048, 16
SHAPES = {"q, k, v, o": (4096, 4096), "gate, up": (4096, 11008), "down": (11008, 4096)}  # d_in, d_out
GOAL = 1.2  # what a kernel of our own has to save


class Counter(TorchDispatchMode):
    """Bytes read and written; of `products` alone where an operation is a matrix product or makes one's input."""

    PRODUCTS = ("mm", "addmm", "addmm_", "linear", "matmul", "bmm")

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.is_view or func._schema.name.split("::")[1] in ("detach", "_unsafe_view", "empty_like", "alias"):
            return out
        read = {id(t): t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        written = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        moved = sum(t.numel() * t.element_size() for t in (*read.values(), *written))
        self.bytes += moved
        if func._schema.name.split("::")[1] in self.PRODUCTS:
            self.products += moved
        return out


def layer(d_in: int, d_out: int) -> nn.Linear:
    return nn.Linear(d_in, d_out, bias=False, device="meta", dtype=torch.bfloat16).requires_grad_(False)


def floor(d_in: int, d_out: int) -> Callable[[Tensor], Tensor]:
    return layer(d_in, d_out)


def peft(d_in: int, d_out: int) -> Callable[[Tensor], Tensor]:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(nn.Sequential(layer(d_in, d_out)), LoraConfig(r=RANK, target_modules=["0"]))


def ours(d_in: int, d_out: int) -> Callable[[Tensor], Tensor]:
    from lorascope.adapt.fused import low_rank

    a = torch.empty(RANK, d_in, device="meta", requires_grad=True)
    b = torch.empty(d_out, RANK, device="meta", requires_grad=True)
    weight = layer(d_in, d_out).weight
    return lambda x: low_rank(x, a, b, 1.0, weight)


def one_kernel(d_in: int, d_out: int) -> int:
    """Forward: x, W, A, B read and y, h written. Backward: g, W, A, B read, dx and dh written; A's and B's gradients
    read x, g, h and dh once more."""
    factors, hidden = RANK * (d_in + d_out), TOKENS * RANK
    forward = TOKENS * (d_in + d_out) + d_in * d_out + factors + hidden
    backward = forward + TOKENS * (d_in + d_out) + 2 * hidden
    return 2 * (forward + backward) + 4 * 2 * factors  # bfloat16; A, B and their gradients in float32


def count(make: Callable, d_in: int, d_out: int) -> Counter:
    run = make(d_in, d_out)
    x = torch.empty(TOKENS, d_in, device="meta", dtype=torch.bfloat16, requires_grad=True)
    with Counter() as counter:
        y = run(x * 1)  # as a model's, no leaf
        y.backward(torch.empty_like(y))
    counter.bytes -= 4 * x.numel() * x.element_size()  # of x * 1 and its gradient
    return counter


def measure() -> list[dict]:
    results = []
    for name, (d_in, d_out) in SHAPES.items():
        eager = count(ours, d_in, d_out)
        rows = {
            "floor": count(floor, d_in, d_out).bytes,
            "peft": count(peft, d_in, d_out).bytes,
            "lorascope": eager.bytes,
            "lorascope, compiled": eager.products,
            "one kernel": one_kernel(d_in, d_out),
        }
        results.append({"layer": name, "d_in": d_in, "d_out": d_out, "mib": {k: v / 2**20 for k, v in rows.items()}})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_json(parser)
    file = parser.parse_args().json
    results = measure()
    print(f"MiB moved in a step by one layer, bfloat16, {TOKENS} tokens, r = {RANK}")
    for result in results:
        mib = result["mib"]
        cells = "  ".join(f"{name} {value:.0f} ({value / mib['lorascope']:.2f})" for name, value in mib.items())
        print(f"{result['layer']:10} {cells}")
    print(f"goal: a kernel of our own where it moves at least {GOAL} times less")
    finish(file, {"tokens": TOKENS, "rank": RANK, "results": results})


if __name__ == "__main__":
    main()
