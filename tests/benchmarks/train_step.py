"""One training step of our LoRA beside PEFT's and beside the frozen base alone, in one run.

    python tests/benchmarks/train_step.py [--device cuda] [--dtype float32 bfloat16] [--rounds 15] [--json]

Two models of the usual shapes (Llama: hidden 512, 8 layers, gated MLP; BERT: as wide), a batch of 8 × 128 tokens,
r = 16 on every linear layer. Rows:

- floor: the frozen base, forward and backward down to its inputs. No adapter can cost less.
- peft: `get_peft_model` with its defaults; on a bfloat16 base that means float32 adapters.
- lorascope: `inject`, with the same A and B.

A step is forward, backward and AdamW. Steps of the rows alternate within a round, and each ratio is the median over
rounds, so that a busy machine slows all of them alike; `best` is the ratio of the fastest steps, the least disturbed.
On the CPU the clock is this process's CPU time on one thread.

`saved` is what autograd keeps for backward: unique storages seen by saved-tensor hooks, parameters excluded. `vs PEFT`
is ‖g − g_PEFT‖/‖g_PEFT‖ for the whole gradient, `vs f64` the same against the gradient of a float64 copy of the model
(same weights, after rounding to the row's dtype): how far each is from the truth, its own rounding and the base's.
"""

import argparse
import copy
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn

from lorascope.methods.base import methods
from lorascope.methods.inject import inject

RANK, ALPHA = 16, 32.0
GOALS = {"float32": {"time": 0.95, "saved": 1.0}, "bfloat16": {"time": 0.80, "saved": 0.65}}


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
    return LlamaForCausalLM(LlamaConfig(vocab_size=2048, num_key_value_heads=8, use_cache=False, **sizes))


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(vocab_size=2048, num_labels=25, **sizes, **quiet))


MODELS = {"llama": llama, "bert": bert}


class Row:
    """One way to train the model: how to run its step, and its trained parameters by layer and factor."""

    def __init__(self, model: nn.Module, factors: dict[str, nn.Parameter], inputs: dict, labels: torch.Tensor):
        self.model, self.factors, self.inputs, self.labels = model.train(), factors, inputs, labels
        self.optimiser = torch.optim.AdamW(factors.values(), lr=1e-5) if factors else None

    def loss(self) -> torch.Tensor:
        return self.model(**self.inputs, labels=self.labels).loss

    def step(self) -> None:
        self.loss().backward()
        if self.optimiser is None:
            self.inputs["inputs_embeds"].grad = None
        else:
            self.optimiser.step()
            self.optimiser.zero_grad()

    def saved_mib(self) -> float:
        """What one forward keeps for backward, in MiB; parameters and their views are not counted."""
        own = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.loss()
        del loss
        return sum(sizes.values()) / 2**20

    def gradients(self) -> dict[str, torch.Tensor]:
        self.loss().backward()
        found = {name: p.grad.detach().clone() for name, p in self.factors.items()}
        for p in self.factors.values():
            p.grad = None
        return found

    def peak_mib(self) -> float | None:
        """Peak CUDA memory of one step beyond what was allocated before it."""
        if self.labels.device.type != "cuda":
            return None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


def ours(base: nn.Module, **options) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    method = methods.get("lora")
    injected = inject(base, method(method.Config(rank=RANK, alpha=ALPHA)), targets="all-linear", **options)
    return base, {
        f"{name}.{role}": getattr(layer.delta, role) for name, layer in injected.layers.items() for role in ("A", "B")
    }


def peft(base: nn.Module) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    kind = {"task_type": "SEQ_CLS", "modules_to_save": []} if hasattr(base, "classifier") else {}
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", **kind))
    layers = {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    factors = {}
    for name, layer in layers.items():
        factors[f"{name}.A"], factors[f"{name}.B"] = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    for parameter in factors.values():
        parameter.requires_grad_(True)
    return model, factors


def make_rows(name: str, dtype: torch.dtype, device: str) -> dict[str, Row]:
    torch.manual_seed(0)
    base = MODELS[name]().to(device, dtype)
    ids = torch.randint(0, 2048, (8, 128), device=device)
    labels = ids if name == "llama" else torch.randint(0, 25, (8,), device=device)
    embeds = base.get_input_embeddings()(ids).detach()

    def row(make: Callable) -> Row:
        model, factors = make(copy.deepcopy(base))
        inputs = embeds.clone().requires_grad_(not factors)
        return Row(model, factors, {"inputs_embeds": inputs}, labels)

    rows = {
        "floor": row(lambda model: (model.requires_grad_(False), {})),
        "peft": row(peft),
        "lorascope": row(ours),
    }
    with torch.no_grad():
        for key, factor in rows["peft"].factors.items():
            if key.endswith(".B"):
                factor.normal_(std=0.01)
            for other in ("lorascope",):
                rows[other].factors[key].copy_(factor)
    return rows


def gradients(rows: dict[str, Row]) -> dict[str, dict[str, float]]:
    """Relative distances of each row's gradient to PEFT's and to the one in float64."""
    exact_row = copy.copy(rows["peft"])
    exact_row.model = copy.deepcopy(exact_row.model).double()
    exact_row.inputs = {name: tensor.double() for name, tensor in exact_row.inputs.items()}
    names = {id(p): name for name, p in rows["peft"].factors.items()}
    twins = zip(rows["peft"].model.parameters(), exact_row.model.parameters(), strict=True)
    exact_row.factors = {names[id(p)]: twin for p, twin in twins if id(p) in names}
    exact, theirs = exact_row.gradients(), rows["peft"].gradients()
    found = {}
    for key, row in rows.items():
        if row.factors:
            mine = row.gradients()
            found[key] = {"gradient_to_peft": distance(mine, theirs), "gradient_to_float64": distance(mine, exact)}
    return found


def distance(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    if mine.keys() != theirs.keys():
        raise RuntimeError(f"the rows adapt different layers: {sorted(mine.keys() ^ theirs.keys())}")
    error = sum(float((mine[key].double() - theirs[key].double()).square().sum()) for key in theirs)
    return (error / sum(float(value.double().square().sum()) for value in theirs.values())) ** 0.5


def clock(row: Row) -> float:
    if row.labels.device.type == "cuda":
        torch.cuda.synchronize()
        start = time.perf_counter()
        row.step()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    row.step()
    return time.process_time() - start


def measure(name: str, dtype: torch.dtype, device: str, rounds: int) -> list[dict]:
    rows = make_rows(name, dtype, device)
    exactness = gradients(rows)
    facts = {key: {"saved_mib": row.saved_mib(), "peak_mib": row.peak_mib()} for key, row in rows.items()}
    for row in rows.values():  # warm up
        row.step()
    times: dict[str, list[float]] = {key: [] for key in rows}
    for turn in range(rounds):
        keys = list(rows)
        for key in keys[turn % len(keys) :] + keys[: turn % len(keys)]:  # every row takes every place in the round
            times[key].append(clock(rows[key]))

    def ratio(key: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(times[key], times[other], strict=True))

    shared = {"model": name, "dtype": str(dtype).removeprefix("torch."), "device": device}
    return [
        {
            **shared,
            "row": key,
            "seconds": statistics.median(times[key]),
            "to_floor": ratio(key, "floor"),
            "to_peft": ratio(key, "peft"),
            "best_to_peft": min(times[key]) / min(times["peft"]),
            "saved_to_peft": facts[key]["saved_mib"] / facts["peft"]["saved_mib"],
            **facts[key],
            **exactness.get(key, {}),
        }
        for key in rows
    ]


def show(results: list[dict]) -> None:
    head = f"{'model':6} {'dtype':9} {'row':10} {'s/step':>8} {'/floor':>7} {'/PEFT':>7} {'best':>6}"
    print(head + f" {'saved MiB':>10} {'/PEFT':>6} {'peak MiB':>9} {'vs PEFT':>8} {'vs f64':>8}")
    for r in results:
        peak = "-" if r["peak_mib"] is None else f"{r['peak_mib']:.0f}"
        near, exact = (f"{r[k]:.1e}" if k in r else "-" for k in ("gradient_to_peft", "gradient_to_float64"))
        time_cells = f"{r['seconds']:8.4f} {r['to_floor']:7.3f} {r['to_peft']:7.3f} {r['best_to_peft']:6.3f}"
        memory_cells = f"{r['saved_mib']:10.1f} {r['saved_to_peft']:6.2f} {peak:>9}"
        print(f"{r['model']:6} {r['dtype']:9} {r['row']:10} {time_cells} {memory_cells} {near:>8} {exact:>8}")
    for dtype, goal in GOALS.items():
        print(f"goals against PEFT, {dtype}: time {goal['time']:.2f}, saved {goal['saved']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=list(GOALS))
    parser.add_argument("--model", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    results = []
    for dtype in args.dtype:
        for name in args.model:
            print(f"measuring {name}, {dtype}", file=sys.stderr)
            results += measure(name, getattr(torch, dtype), args.device, args.rounds)
    if args.json:
        print(json.dumps({"torch": torch.__version__, "results": results}, indent=1))
    else:
        show(results)


if __name__ == "__main__":
    main()
