"""One training step of each method beside PEFT's and beside the frozen base alone, in one run.

    python tests/benchmarks/train_step.py [--method lora dora] [--device cuda] [--dtype float32 bfloat16] [--json]

Two models of the usual shapes (Llama: hidden 512, 8 layers, gated MLP; BERT: as wide), a batch of 8 × 128 tokens, every
linear layer adapted. For each method (`cases.py`), up to four rows:

- floor: the frozen base, forward and backward down to its inputs. No adapter can cost less with the same products.
- peft: `get_peft_model` with its defaults; on a bfloat16 base that means float32 adapters.
- lorascope: `inject`, with the same numbers in it.
- with --compile, the last two through torch.compile as well.

A step is forward, backward and AdamW. Steps of the rows alternate within a round, and each ratio is the median over
rounds, so that a busy machine slows all of them alike; `best` is the ratio of the fastest steps, the least disturbed.
On the CPU the clock is this process's CPU time on one thread.

`saved` is what autograd keeps for backward: unique storages seen by saved-tensor hooks, parameters excluded. `vs PEFT`
is ‖g − g_PEFT‖/‖g_PEFT‖ for the whole gradient, `vs f64` the same against the gradient of a float64 copy of the model
(same weights, after rounding to the row's dtype): how far each is from the truth, its own rounding and the base's.
"""

import argparse
import copy
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from cases import CASES, Case, ours, theirs
from machine import add_json, finish
from torch import nn

from lorascope.models.bf16_products import fast_on_cpu, is_slow

DTYPES = ("float32", "bfloat16")


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
    return LlamaForCausalLM(LlamaConfig(vocab_size=2048, num_key_value_heads=8, use_cache=False, **sizes))


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(vocab_size=2048, num_labels=25, **sizes, **quiet))


def large_llama(layers: int = 2, **sizes: int) -> nn.Module:
    """Llama-7B's shapes, of which two layers tell as much as 32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32}
    shape |= {"num_hidden_layers": layers, "vocab_size": 2048, **sizes}
    return LlamaForCausalLM(LlamaConfig(use_cache=False, **shape))


def smollm2() -> nn.Module:
    """SmolLM2-135M's shapes."""
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3}
    return large_llama(30, hidden_size=576, intermediate_size=1536, vocab_size=49152, **heads)


def minilm() -> nn.Module:
    """all-MiniLM-L6's shapes."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(vocab_size=30522, num_labels=25, **sizes, **quiet))


def tiny() -> nn.Module:
    """For a dry run."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return large_llama(1, hidden_size=16, intermediate_size=24, **heads)


MODELS = {"llama": llama, "bert": bert, "7b": large_llama, "smollm2": smollm2, "minilm": minilm, "tiny": tiny}
SHAPES = {"7b": (4, 2048), "smollm2": (8, 128), "minilm": (16, 16), "tiny": (2, 8)}  # batch and tokens; else 8 × 128


class Row:
    """One way to train the model: how to run its step, and its trained parameters by layer and role."""

    def __init__(self, model: nn.Module, trained: dict[str, nn.Parameter], inputs: dict, labels: torch.Tensor):
        self.model, self.trained, self.inputs, self.labels = model.train(), trained, inputs, labels
        self.optimiser = torch.optim.AdamW(trained.values(), lr=1e-5) if trained else None
        self.penalty: Callable[[], torch.Tensor | None] = lambda: None
        self.around: Callable[[nn.Module], AbstractContextManager[None]] = lambda model: nullcontext()

    def loss(self) -> torch.Tensor:
        loss, penalty = self.model(**self.inputs, labels=self.labels).loss, self.penalty()
        return loss if penalty is None else loss + penalty

    def step(self) -> None:
        with self.around(self.model):
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
        found = {name: p.grad.detach().clone() for name, p in self.trained.items()}
        for p in self.trained.values():
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


def make_rows(name: str, case: Case, dtype: torch.dtype, device: str, compiled: bool) -> dict[str, Row]:
    torch.manual_seed(0)
    base = MODELS[name]().to(device, dtype)
    if case.nf4:
        base = in_nf4(base, dtype)
    ids = torch.randint(0, 2048, SHAPES.get(name, (8, 128)), device=device)
    labels = torch.randint(0, 25, (len(ids),), device=device) if hasattr(base, "classifier") else ids
    embeds = base.get_input_embeddings()(ids).detach()

    def row(model: nn.Module, trained: dict[str, nn.Parameter]) -> Row:
        return Row(model, trained, {"inputs_embeds": embeds.clone().requires_grad_(not trained)}, labels)

    rows = {"floor": row(copy.deepcopy(base).requires_grad_(False), {})}
    if case.peft:
        rows["peft"] = row(*theirs(case, copy.deepcopy(base), name))
        randomise(rows["peft"].trained)
    injected = ours(case, copy.deepcopy(base), name)
    rows["lorascope"] = row(injected.model, injected.trainable())
    rows["lorascope"].penalty = injected.method.penalty
    rows["lorascope"].around = (lambda model: nullcontext()) if compiled else fast_on_cpu  # as our trainer does
    if case.peft:
        copy_values(rows["peft"].trained, rows["lorascope"].trained)
    for key in ("peft", "lorascope") if compiled else ():
        if key in rows:
            twin = copy.copy(rows[key])
            twin.model = torch.compile(twin.model)
            rows[f"{key} compiled"] = twin
    return rows


def in_nf4(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model with its blocks' linear layers quantised to 4 bits by bitsandbytes."""
    import bitsandbytes as bnb

    for path, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and ".layers." in path:
            device = layer.weight.device
            codes = bnb.nn.Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, dtype, True, "nf4")
            codes.weight = bnb.nn.Params4bit(layer.weight.data.cpu(), requires_grad=False, quant_type="nf4")
            model.set_submodule(path, codes.to(device))
    return model


@torch.no_grad()
def randomise(trained: dict[str, nn.Parameter]) -> None:
    """Away from the start, where half of the gradients are zero."""
    for parameter in trained.values():
        if not parameter.any():
            parameter.normal_(std=0.01)


@torch.no_grad()
def copy_values(source: dict[str, nn.Parameter], target: dict[str, nn.Parameter]) -> None:
    if source.keys() != target.keys():
        raise RuntimeError(f"the rows train different things: {sorted(source.keys() ^ target.keys())[:4]}")
    for key, parameter in source.items():
        target[key].copy_(parameter.view_as(target[key]))


def gradients(rows: dict[str, Row]) -> dict[str, dict[str, float]]:
    """Relative distances of each row's gradient to PEFT's and to the one in float64."""
    exact_row = copy.copy(rows["peft"])
    exact_row.model = copy.deepcopy(exact_row.model).double()
    exact_row.inputs = {name: tensor.double() for name, tensor in exact_row.inputs.items()}
    names = {id(p): name for name, p in rows["peft"].trained.items()}
    twins = zip(rows["peft"].model.parameters(), exact_row.model.parameters(), strict=True)
    exact_row.trained = {names[id(p)]: twin for p, twin in twins if id(p) in names}
    exact, reference = exact_row.gradients(), rows["peft"].gradients()
    found = {}
    for key, row in rows.items():
        if row.trained:
            mine = row.gradients()
            found[key] = {
                "gradient_to_peft": distance(mine, reference),
                "gradient_to_float64": distance(mine, exact),
            }
    return found


def distance(mine: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> float:
    if mine.keys() != reference.keys():
        raise RuntimeError(f"the rows adapt different layers: {sorted(mine.keys() ^ reference.keys())}")
    error = sum(float((mine[k].double() - reference[k].double().view_as(mine[k])).square().sum()) for k in reference)
    return (error / sum(float(value.double().square().sum()) for value in reference.values())) ** 0.5


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


def measure(name: str, label: str, dtype: torch.dtype, device: str, rounds: int, compiled: bool) -> list[dict]:
    case = CASES[label]
    rows = make_rows(name, case, dtype, device, compiled)
    exactness = gradients(rows) if case.peft and not case.random else {}
    facts = {key: {"saved_mib": row.saved_mib(), "peak_mib": row.peak_mib()} for key, row in rows.items()}
    for row in rows.values():  # warm up
        row.step()
    times: dict[str, list[float]] = {key: [] for key in rows}
    for turn in range(rounds):
        keys = list(rows)
        for key in keys[turn % len(keys) :] + keys[: turn % len(keys)]:  # every row takes every place in the round
            times[key].append(clock(rows[key]))

    def ratios(key: str, other: str) -> dict[str, float]:
        if other not in rows:
            return {}
        median = statistics.median(a / b for a, b in zip(times[key], times[other], strict=True))
        return {
            f"to_{other}": median,
            f"best_to_{other}": min(times[key]) / min(times[other]),
            f"saved_to_{other}": facts[key]["saved_mib"] / facts[other]["saved_mib"],
        }

    shared = {"method": label, "model": name, "dtype": str(dtype).removeprefix("torch."), "device": device}
    return [
        {
            **shared,
            "row": key,
            "seconds": statistics.median(times[key]),
            **ratios(key, "floor"),
            **ratios(key, "peft"),
            **facts[key],
            **exactness.get(key, {}),
        }
        for key in rows
    ]


HEAD = f"{'method':12} {'model':5} {'dtype':8} {'row':18} {'s/step':>7} {'/floor':>6} {'/PEFT':>6} {'best':>6}"
HEAD += f" {'saved MiB':>9} {'/PEFT':>6} {'peak MiB':>8} {'vs PEFT':>7} {'vs f64':>7}"
COLUMNS = {"to_floor": "6.3f", "to_peft": "6.3f", "best_to_peft": "6.3f", "saved_mib": "9.1f", "saved_to_peft": "6.2f"}
COLUMNS |= {"peak_mib": "8.0f", "gradient_to_peft": "7.0e", "gradient_to_float64": "7.0e"}


def show(results: list[dict]) -> None:
    """The rows of one comparison, as soon as it is measured."""
    for r in results:
        cells = [
            "-".rjust(int(form.split(".")[0])) if r.get(key) is None else f"{r[key]:{form}}"
            for key, form in COLUMNS.items()
        ]
        start = f"{r['method']:12} {r['model']:5} {r['dtype']:8} {r['row']:18} {r['seconds']:7.4f}"
        print(start, *cells, flush=True)


def show_goals(labels: list[str]) -> None:
    for label in labels:
        goal = CASES[label].goal
        for at, dtype in enumerate(DTYPES):
            time_goal = f"time {goal.time[at]:.2f}, " if goal.time else ""
            if CASES[label].peft:
                print(f"goal against PEFT, {label}, {dtype}: {time_goal}saved {goal.saved[at]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", nargs="+", default=["lora"], choices=[*CASES, "all"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES)
    parser.add_argument("--model", nargs="+", default=["llama", "bert"], choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    add_json(parser)
    args = parser.parse_args()
    dtypes = args.dtype or list(DTYPES)
    if args.dtype is None and args.device == "cpu" and is_slow():
        dtypes.remove("bfloat16")
        print(
            "bfloat16 skipped: this processor has no instructions for it, and PEFT's step takes minutes; --dtype has it"
        )
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    results = []
    labels = list(CASES) if "all" in args.method else args.method
    print(HEAD, flush=True)
    for label in labels:
        for dtype in dtypes:
            for name in args.model:
                print(f"measuring {label}, {name}, {dtype}", file=sys.stderr)
                found = measure(name, label, getattr(torch, dtype), args.device, args.rounds, args.compile)
                results += found
                show(found)
    show_goals(labels)
    finish(args.json, results)


if __name__ == "__main__":
    main()
