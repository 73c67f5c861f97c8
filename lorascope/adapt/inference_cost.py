"""What an adapter costs at inference, measured: latency, FLOPs, extra parameters, context tokens.

The base is the same model with the updates disabled; a head that was trained whole is in both. Forward passes of
base and adapted model take turns on one batch, in evaluation mode and without gradients, and medians are compared, so
that a machine that slows down slows both. Where every update can be merged into its weight, the merged model is timed
too: its passes stand between two groups of the base's. Differences below a few percent are noise on a shared machine.

FLOPs are counted, not estimated: two for each multiplication with an addition, in matrix products alone.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor

from lorascope.adapt.inject import Injected
from lorascope.errors import InputError

TEXTS = 4  # in the batch that is timed
SECONDS = 1.0  # what all timed passes together should take
MAX = 10  # turns


class Batch(Protocol):
    """What is passed to the model; `training.data.Batch` is one."""

    @property
    def input_ids(self) -> Tensor: ...

    @property
    def attention_mask(self) -> Tensor: ...


@dataclass(frozen=True)
class Cost:
    """What the adapter adds to the base model at inference.

    Attributes:
        texts, tokens: of the batch that was timed; tokens are per text, padding included.
        repeats: how many passes each median is over.
        base_seconds: a forward pass of the base model.
        unmerged_seconds: of the adapted model as it was trained.
        merged_seconds: of the model with the updates in its weights; None where no weight can hold them.
        base_flops, unmerged_flops: floating-point operations of one forward pass.
        extra_parameters: parameters kept in addition to the base's while the adapter is unmerged, frozen ones included.
        context_tokens: positions that virtual tokens take from the text.
    """

    texts: int
    tokens: int
    repeats: int
    base_seconds: float
    unmerged_seconds: float
    merged_seconds: float | None
    base_flops: int
    unmerged_flops: int
    extra_parameters: int
    context_tokens: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(injected: Injected, batch: Batch, seconds: float = SECONDS) -> Cost:
    """The cost of this adapter on this batch. The model is left as it was, merged weights taken back bit for bit."""
    model = injected.model
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            return _measure(injected, batch, seconds)
    finally:
        injected.enable()
        for module, training in modes.items():
            module.training = training


def _measure(injected: Injected, batch: Batch, seconds: float) -> Cost:
    def passes(on: bool) -> Callable[[], None]:
        injected.enable() if on else injected.disable()
        return lambda: injected.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)

    device = batch.input_ids.device
    one = [_seconds(passes(on=True), device) for _ in range(2)][-1]  # the first one warms up
    flops = {on: _flops(passes(on)) for on in (False, True)}
    repeats = max(2, min(MAX, int(seconds / (4 * one))))
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(repeats):
        for on in (False, True):
            times[on].append(_seconds(passes(on), device))
    merged = _merged(injected, passes, device, repeats)
    if merged is not None:
        times[False] += [_seconds(passes(on=False), device) for _ in range(repeats)]
    texts, tokens = batch.input_ids.shape
    return Cost(
        texts,
        tokens,
        repeats,
        median(times[False]),
        median(times[True]),
        None if merged is None else median(merged),
        flops[False],
        flops[True],
        extra_parameters(injected),
        sum(part.context_tokens for part in injected.parts.values()),
    )


def _merged(
    injected: Injected, passes: Callable[[bool], Callable[[], None]], device: torch.device, repeats: int
) -> list[float] | None:
    """Seconds of passes with the updates merged and their layers plain; None where a part cannot be merged."""
    injected.enable()
    try:
        injected.merge()
        return [_seconds(passes(False), device) for _ in range(repeats)]
    except InputError:
        return None
    finally:
        injected.enable()
        injected.unmerge()


def extra_parameters(injected: Injected) -> int:
    """Parameters that an unmerged adapter adds to the base. An array that several layers share counts once."""
    storages = {}
    for layer in injected.layers.values():
        for tensor in layer.delta.roles().values():
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
    apart = [t.numel() for part in injected.parts.values() if part.reason for t in part.tensors().values()]
    return sum(storages.values()) + sum(apart)


def _flops(forward: Callable[[], None]) -> int:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The counter does not know the CPU's fused attention, which is therefore written out in products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
        forward()
    return counter.get_total_flops()


def _formulas() -> dict[Any, Callable[..., int]]:
    """FLOPs, from shapes, of the products that our own code uses and torch's counter leaves out."""

    def linear(x: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
        return 2 * math.prod(out_shape) * x[-1]

    def added(_: Any, x: Sequence[int], *__: Any, out_shape: Sequence[int], **___: Any) -> int:
        return 2 * math.prod(out_shape) * x[-1]

    formulas: dict[Any, Callable[..., int]] = {torch.ops.aten.addmm_: added, torch.ops.aten.baddbmm_: added}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        formulas[torch.ops.mkldnn._linear_pointwise] = linear
    return formulas


def _seconds(forward: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    forward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def in_words(cost: Mapping[str, Any]) -> str:
    """One line of a recorded cost, as `to_json` gives it: what can be counted. The timings stay in the record: in one
    run they differ from themselves by more than most adapters cost."""
    extra = cost["unmerged_flops"] / cost["base_flops"] - 1 if cost["base_flops"] else 0.0
    facts = [f"{_percent(extra)} FLOPs", f"{cost['extra_parameters']:,} extra parameters"]
    if cost["context_tokens"]:
        facts.append(f"{cost['context_tokens']} tokens of context")
    merged = "cannot be merged" if cost["merged_seconds"] is None else "nothing once merged"
    return f"cost at inference: {', '.join(facts)}; {merged}"


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %".replace("-", "−")
