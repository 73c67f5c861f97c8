"""A training step of each layer kind beside PEFT's, in one run: Conv2d, fused experts, rows of tokens, nf4.

    python tests/benchmarks/layer_kinds.py [--rounds 9] [--json FILE]

Both sides hold the same numbers. A step is forward and backward; steps alternate within a round, in CPU time of this
process on one thread, and the ratio is the median over rounds; `best` that of the fastest steps. `gradients` is
‖g − g_PEFT‖/‖g_PEFT‖ over A and B. The goals: nf4 at most 0.9 of PEFT's, Conv2d and fused experts not above PEFT's.
nf4 needs bitsandbytes and is left out, with a line, where it is not installed.
"""

import argparse
import copy
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import lorascope as ls
from tests.benchmarks.machine import add_json, finish

RANK = 8
GOALS = {"Conv2d": 1.0, "fused experts": 1.0, "nf4": 0.9}


def convolutions() -> tuple[nn.Module, dict, Tensor]:
    net = nn.Sequential(nn.Conv2d(64, 128, 3, padding=1), nn.SiLU(), nn.Conv2d(128, 64, 3, padding=1))
    return net, {"target_modules": ["0", "2"]}, torch.randn(4, 64, 32, 32, requires_grad=True)


def experts() -> tuple[nn.Module, dict, Tensor]:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=4, vocab_size=512, num_local_experts=8))
    both = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    return model, {"target_modules": [], "target_parameters": both}, torch.randint(0, 512, (4, 128))


def rows() -> tuple[nn.Module, dict, Tensor]:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=4, vocab_size=8192))
    chosen = {"target_modules": ["q_proj"], "trainable_token_indices": list(range(8))}
    return model, chosen, torch.randint(0, 512, (4, 128))


def four_bits() -> tuple[nn.Module, dict, Tensor]:
    import bitsandbytes

    layers = [bitsandbytes.nn.Linear4bit(1024, 1024, bias=False, quant_type="nf4") for _ in range(2)]
    for layer in layers:
        layer.compute_dtype, layer.compute_type_is_set = torch.float32, True
    return nn.Sequential(*layers).to("cpu"), {"target_modules": ["0", "1"]}, torch.randn(256, 1024, requires_grad=True)


KINDS: dict[str, Callable[[], tuple[nn.Module, dict, Tensor]]] = {
    "Conv2d": convolutions,
    "fused experts": experts,
    "token rows": rows,
    "nf4": four_bits,
}


def step(model: nn.Module, x: Tensor) -> float:
    """CPU seconds of one forward and backward pass."""
    model.zero_grad()
    began = time.process_time()
    out = model(x) if x.is_floating_point() else model(x, labels=x).loss
    (out.square().mean() if x.is_floating_point() else out).backward()
    return time.process_time() - began


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None]


def difference(ours: nn.Module, theirs: nn.Module) -> float:
    """‖g − g_PEFT‖/‖g_PEFT‖, by the sorted entries: PEFT lays out the factors of experts in another order."""
    mine, other = (torch.cat(gradients(model)).sort().values for model in (ours, theirs))
    return float((mine - other).norm() / other.norm())


def measured(rounds: int) -> Iterator[tuple[str, float, float, float]]:
    for name, build in KINDS.items():
        torch.manual_seed(0)
        try:
            base, targets, x = build()
        except ImportError as error:
            print(f"{name}: left out, {error}")
            continue
        base.train()
        theirs = get_peft_model(copy.deepcopy(base), LoraConfig(r=RANK, **targets)).train()
        with torch.no_grad():
            for key, parameter in theirs.named_parameters():
                if "lora_" in key:
                    parameter.normal_(std=0.05)
        ours = copy.deepcopy(base)
        ls.load(ours, ls.read(theirs))
        ours.train()
        for model in (ours, theirs):
            step(model, x)
        off = difference(ours, theirs)
        times = [(step(ours, x), step(theirs, x)) for _ in range(rounds)]
        best = min(a for a, _ in times) / min(b for _, b in times)
        yield name, statistics.median(a / b for a, b in times), best, off


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    add_json(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"{'layer':14} {'of PEFT':>8} {'best':>6} {'goal':>5} {'gradients':>10}")
    figures = {}
    for name, ratio, best, off in measured(arguments.rounds):
        print(f"{name:14} {ratio:8.2f} {best:6.2f} {GOALS.get(name, ''):>5} {off:10.1e}", flush=True)
        figures[name] = {"of_peft": ratio, "best": best, "goal": GOALS.get(name), "gradients": off}
    finish(arguments.json, figures)


if __name__ == "__main__":
    main()
