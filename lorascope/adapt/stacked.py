"""Several adapters on one frozen base, trained in one pass.

The members' sequences lie one after another on the batch axis, so that the base runs once over all of them, and every
adapted layer gives each member's rows that member's update. Nothing is shared between members but the base: no sum runs
over two members' rows, so one that diverges leaves the others' numbers alone.

Low-rank updates of one layer are computed together, padded with zeros to the largest rank:

    Y = X Wᵀ + bias + s·(X A'ᵀ) B'ᵀ      X (n, m, d_in) for n members of m tokens, A' (n, r, d_in), B' (n, d_out, r)

with the base's product over all n·m rows at once, and batched products for the rest. Padded rows of A' and columns of
B' are zero and get no gradient, since each gradient is cut to its own rank. Any other update runs by its own code, on
its member's rows cut to the member's own length: on what a run of its own would see, dropout's shapes included.

mLoRA (arXiv 2312.02515), LoRAFusion (EuroSys 2026) and PLoRA (ICML 2026) train many adapters so on GPUs.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lorascope.adapt.inject import Injected
from lorascope.adapt.layer import AdaptedLayer, Delta
from lorascope.adapt.layers import autocast, bias_of, map_weight, plain, weight_of
from lorascope.adapt.low_rank import LowRankDelta, LowRankEmbeddingDelta
from lorascope.adapt.modules import replace_modules
from lorascope.adapt.padding import Padded, gather, padded
from lorascope.adapt.products import matmul
from lorascope.errors import InputError
from lorascope.linalg.arrays import Float

# `forward_with_base` of these is base(x) plus the update's output: the base can then run once for all members.
ADDED = (Delta.forward_with_base, LowRankDelta.forward_with_base, LowRankEmbeddingDelta.forward_with_base)


class Stream:
    """One member's random numbers: inside `with stream`, torch's global generators are where its own run has them.

    Args:
        device: whose generator is kept besides the CPU's.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._seed: int | None = None
        self._states: list[Tensor] = []

    def restart(self, seed: int) -> None:
        """Begin anew from this seed, as `torch.manual_seed` would."""
        self._seed, self._states = seed, []

    def __enter__(self) -> None:
        if not self._states:
            if self._seed is not None:
                torch.manual_seed(self._seed)
            return
        torch.set_rng_state(self._states[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(self._states[1], self.device)

    def __exit__(self, *_: object) -> None:
        self._states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            self._states.append(torch.cuda.get_rng_state(self.device))


class Layout:
    """Whose is which row of the joint batch. The loop says so before each pass.

    Attributes:
        streams: the members' random numbers, in the order of their rows.
        size: sequences of each member.
        lengths: tokens of each member's longest sequence, to which its own run would pad.
        padded: factors of different ranks, which are brought up to date with each pass.
    """

    def __init__(self, streams: Sequence[Stream]):
        self.streams = list(streams)
        self.size, self.lengths = 0, (0,) * len(self.streams)
        self.padded = Padded()

    @property
    def members(self) -> int:
        return len(self.streams)

    def set(self, size: int, lengths: Sequence[int]) -> None:
        self.size, self.lengths = size, tuple(lengths)
        self.padded.refresh()

    def flat(self, x: Tensor) -> bool:
        """Whether x has one row per token and not per sequence. InputError where it has neither."""
        sequences = self.members * self.size
        if x.ndim and x.shape[0] == sequences:
            return False
        if x.ndim and x.shape[0] == sequences * max(self.lengths):
            return True
        raise InputError(
            "a layer of this model mixes the sequences of a batch, so that adapters cannot share a pass",
            found=f"an input of shape {tuple(x.shape)}",
            expected=f"{sequences} rows, one for each sequence",
            hint="train one after another with sweep.max_parallel=1",
        )

    def rows(self, x: Tensor) -> list[Tensor]:
        """Each member's rows of x, padding and all."""
        self.flat(x)
        return list(x.split(x.shape[0] // self.members))

    def cut(self, x: Tensor, member: int, flat: bool) -> Tensor:
        """A member's rows of a layer's input, (b, S, d) or (b·S, d), cut to its own length. Others stay whole."""
        longest, length = max(self.lengths), self.lengths[member]
        if length == longest:
            return x
        if flat:
            return x.unflatten(0, (self.size, longest))[:, :length].flatten(0, 1)
        return x[:, :length] if self._has_tokens(x) else x

    def fill(self, y: Tensor, x: Tensor, member: int, flat: bool) -> Tensor:
        """The inverse for the layer's output: zeros where x was cut away. Nothing reads them but other padding."""
        missing = max(self.lengths) - self.lengths[member]
        if not missing or not (flat or self._has_tokens(x)):
            return y
        y = y.unflatten(0, (self.size, -1)) if flat else y
        y = F.pad(y, (0, 0) * (y.ndim - 2) + (0, missing))
        return y.flatten(0, 1) if flat else y

    def _has_tokens(self, x: Tensor) -> bool:
        """(b, S, ...) of floats or ids (b, S); not the (b, d) of a pooled state, whatever d is."""
        return x.ndim >= (3 if x.is_floating_point() else 2) and x.shape[1] == max(self.lengths)


class StackedModule(nn.Module):
    """A module that every member has its own of, a head say: each runs on its own rows."""

    def __init__(self, layout: Layout, parts: Sequence[nn.Module]):
        super().__init__()
        self.layout, self.parts = layout, nn.ModuleList(parts)
        self.draws = any(_draws(part) for part in parts)

    @property
    def weight(self) -> Tensor:
        """The first member's, for model code that asks a layer for its dtype or device."""
        return weight_of(self.parts[0])

    @property
    def bias(self) -> Tensor | None:
        return bias_of(self.parts[0])

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        if any(isinstance(value, Tensor) for value in (*others, *named.values())):
            raise InputError(f"{type(self.parts[0]).__name__} takes several tensors, so that adapters cannot share it")
        rows = self.layout.rows(x)
        outputs = [self._run(i, partial(part, x, *others, **named)) for i, part, x in self._each(rows)]
        return torch.cat(outputs)

    def _each(self, rows: Sequence[Tensor]) -> Iterator[tuple[int, nn.Module, Tensor]]:
        return ((i, part, x) for i, (part, x) in enumerate(zip(self.parts, rows, strict=True)))

    def _run(self, member: int, call: Callable[[], Tensor]) -> Tensor:
        """The call, with the member's own random numbers where it may draw any."""
        if not (self.training and self.draws):
            return call()
        with self.layout.streams[member]:
            return call()


class StackedLayer(StackedModule):
    """One layer of the base with each member's update. Members that do not adapt it have the plain layer as their part.

    Neighbours of one sort form a group: "stacked" low-rank updates and the base's product in one node; updates that are
    "added" to the base's output, which runs once for the group; and layers that run "whole", base and all.
    """

    _base: nn.Module

    def __init__(self, layout: Layout, parts: Sequence[nn.Module]):
        super().__init__(layout, parts)
        # Plain attributes next to the registered modules: each pass asks for them once a member and layer.
        self._own = tuple(parts)
        self.__dict__["_base"] = _base(parts[0])
        self._found: dict[bool, list[tuple[str, list[int]]]] = {}
        self._blocks: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        updates = [part.delta for part in parts if isinstance(part, AdaptedLayer)]
        deltas = [delta for delta in updates if isinstance(delta, LowRankDelta)]
        if len(deltas) == len(parts):
            gather([delta.A for delta in deltas])
            gather([delta.B for delta in deltas])

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        per_member = x.shape[0] // self.layout.members
        flat = self.layout.flat(x)
        outputs = []
        for sort, members in self._groups():
            rows = x[members[0] * per_member : (members[-1] + 1) * per_member]
            outputs.append(getattr(self, f"_{sort}")(rows, members, flat))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _groups(self) -> list[tuple[str, list[int]]]:
        """The members in groups of neighbours, each with its sort. Found once for training and once for evaluation."""
        if self.training not in self._found:
            groups: list[tuple[str, list[int]]] = []
            for member in range(len(self._own)):  # no groupby, which torch.compile does not take
                sort = self._sort(member)
                if not groups or groups[-1][0] != sort:
                    groups.append((sort, []))
                groups[-1][1].append(member)
            self._found[self.training] = groups
        return self._found[self.training]

    def _sort(self, member: int) -> str:
        part, base = self._own[member], self._base
        if weight_of(_base(part)) is not weight_of(base):
            return "whole"
        if not isinstance(part, AdaptedLayer):
            return "added"
        delta = part.delta
        dropping = delta.training and getattr(delta, "dropout", 0.0) > 0
        if (
            type(delta).forward_with_base is LowRankDelta.forward_with_base
            and not dropping
            and plain(base, weight_of(base))
        ):
            return "stacked"
        return "added" if type(delta).forward_with_base in ADDED else "whole"

    def _stacked(self, x: Tensor, members: list[int], flat: bool) -> Tensor:
        base, deltas = self._base, [cast(LowRankDelta, self._adapted(i).delta) for i in members]
        x = autocast(x)
        rows = x.reshape(len(members), -1, x.shape[-1])
        factors = [delta.factors() for delta in deltas]
        scales = [float(delta.scale) for delta in deltas]
        a, b = [a for a, _ in factors], [b for _, b in factors]
        blocks = None if torch.compiler.is_compiling() else self._block(deltas)
        y = stacked_low_rank(rows, a, b, scales, map_weight(base), bias_of(base), blocks)
        return y.view(*x.shape[:-1], -1)

    def _block(self, deltas: Sequence[LowRankDelta]) -> tuple[Tensor, Tensor] | None:
        """A' and B' of members of different ranks, kept up to date by the layout; None where stacking is free."""
        if len({len(delta.A) for delta in deltas}) == 1 or any(delta.A0 is not None for delta in deltas):
            return None
        key = tuple(id(part) for delta in deltas for part in (delta.A, delta.B))
        if key not in self._blocks:
            a, b = (self.layout.padded.add([getattr(d, role) for d in deltas], axis) for axis, role in enumerate("AB"))
            self._blocks = {key: (a, b)}
        return self._blocks[key]

    def _added(self, x: Tensor, members: list[int], flat: bool) -> Tensor:
        y = self._base(x)
        if not any(isinstance(self._own[i], AdaptedLayer) for i in members):
            return y
        outputs = []
        for i, rows, out in zip(members, x.chunk(len(members)), y.chunk(len(members)), strict=True):
            if isinstance(self._own[i], AdaptedLayer):
                out = out + self.layout.fill(self._update(i, self.layout.cut(rows, i, flat)), rows, i, flat)
            outputs.append(out)
        return torch.cat(outputs)

    def _adapted(self, member: int) -> AdaptedLayer:
        return cast(AdaptedLayer, self._own[member])

    def _update(self, member: int, x: Tensor) -> Tensor:
        layer = self._adapted(member)
        y = self._run(member, lambda: layer.delta(x))
        return y if layer.output_scale == 1.0 else y * layer.output_scale

    def _whole(self, x: Tensor, members: list[int], flat: bool) -> Tensor:
        outputs = []
        for i, rows in zip(members, x.chunk(len(members)), strict=True):
            y = self._run(i, partial(self._own[i], self.layout.cut(rows, i, flat)))
            outputs.append(self.layout.fill(y, rows, i, flat))
        return torch.cat(outputs)


def skeleton(model: nn.Module, keep: Sequence[nn.Module] = ()) -> nn.Module:
    """A second tree of the model's modules over the same tensors. Modules in `keep` are the very same in both."""
    memo: dict[int, Any] = {id(module): module for module in keep}
    memo |= {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def joinable(first: Injected, other: Injected) -> bool:
    """Whether two adapters can share a pass: outside of their own layers, both models are the same."""
    return not first.parts and not other.parts and _differing(first, other) is not None


def stack(members: Sequence[Injected], layout: Layout) -> nn.Module:
    """The joint model of members that are `joinable`: it takes their batches one after another on the batch axis.

    It holds the members' own layers and heads, so that whatever trains there is trained in each member.
    """
    first = members[0]
    paths: dict[str, type[StackedModule]] = {path: StackedLayer for member in members for path in member.layers}
    paths |= {path: StackedModule for member in members for path in member.originals}
    paths |= {path: StackedModule for member in members[1:] for path in _differing(first, member) or ()}
    outer = {path: cls for path, cls in paths.items() if not any(path.startswith(other + ".") for other in paths)}
    shared = [first.model.get_submodule(path) for path in outer]
    joint = skeleton(first.model, keep=shared)
    for path, cls in outer.items():
        parts = [member.model.get_submodule(path) for member in members]
        replace_modules(joint, [(joint.get_submodule(path), cls(layout, parts))])
    return joint


def draws(injected: Injected) -> bool:
    """Whether the adapter itself draws random numbers while it trains: dropout of its own."""
    return any(_draws(part) for part in injected._parts().values())


def _base(part: nn.Module) -> nn.Module:
    return part.base if isinstance(part, AdaptedLayer) else part


def _draws(part: nn.Module) -> bool:
    return any(_probability(each) > 0 for each in part.modules())


def _probability(module: nn.Module) -> float:
    """Of its dropout, whether it is a dropout layer or has it as a number."""
    probability = getattr(module, "p" if isinstance(module, nn.modules.dropout._DropoutNd) else "dropout", 0.0)
    return probability if isinstance(probability, float) else 0.0


def _differing(first: Injected, other: Injected) -> list[str] | None:
    """Paths of plain leaf modules with tensors of their own, frozen heads say; None where more than that differs."""
    skipped = [*first.layers, *first.originals, *other.layers, *other.originals]
    ours, theirs = (_outside(injected.model, skipped) for injected in (first, other))
    if ours.keys() != theirs.keys():
        return None
    paths = []
    for path, module in ours.items():
        twin = theirs[path]
        if type(module) is not type(twin) or _hooks(module) != _hooks(twin) or "forward" in vars(module) | vars(twin):
            return None
        if _tensors(module) != _tensors(twin):
            if next(module.children(), None) is not None:
                return None
            paths.append(path)
    return paths


def _outside(model: nn.Module, skipped: Sequence[str]) -> dict[str, nn.Module]:
    prefixes = tuple(f"{path}." for path in skipped)
    return {path: m for path, m in model.named_modules() if path not in skipped and not path.startswith(prefixes)}


def _tensors(module: nn.Module) -> dict[str, int]:
    return {name: id(tensor) for name, tensor in (*module._parameters.items(), *module._buffers.items())}


def _hooks(module: nn.Module) -> tuple[int, int]:
    return len(module._forward_hooks), len(module._forward_pre_hooks)


def stacked_low_rank(
    x: Float[Tensor, "n m d_in"],
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    scales: Sequence[float],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, " d_out"] | None = None,
    blocks: tuple[Tensor, Tensor] | None = None,
) -> Float[Tensor, "n m d_out"]:
    """x Wᵀ + bias + sᵢ·(xᵢ Aᵢᵀ) Bᵢᵀ for each member i, with A (rᵢ, d_in) and B (d_out, rᵢ) of any ranks; W is frozen.

    In x's dtype. Gradients reach x and every A and B, each in its own dtype. `blocks` are A' and B' of the same values,
    where they are at hand already.
    """
    return _Stacked.apply(x, tuple(scales), weight, bias, blocks, *a, *b)


class _Stacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scales, weight, bias, blocks, *factors):
        n = len(scales)
        column = _column.__wrapped__ if torch.compiler.is_compiling() else _column  # compiled, it is a constant
        scale = column(scales, x.dtype, x.device)  # (n, 1, 1)
        blocks = (padded(factors[:n], 0), padded(factors[n:], 1)) if blocks is None else blocks
        a, b = (block.to(x.dtype) for block in blocks)  # (n, r, d_in) and (n, d_out, r)
        bias = None if bias is None else bias.to(x.dtype)
        y = F.linear(x.flatten(0, 1), weight.to(x.dtype), bias).view(n, -1, weight.shape[0])  # (n, m, d_out)
        h = torch.bmm(x, a.transpose(1, 2)).mul_(scale)  # (n, m, r): the scale belongs on what is smallest
        need_a, need_b = any(ctx.needs_input_grad[5 : 5 + n]), any(ctx.needs_input_grad[5 + n :])
        ctx.save_for_backward(x if need_a else None, h if need_b else None, a, b, weight, scale)
        ctx.needs = need_a, need_b
        ctx.likes = [(factor.shape, factor.dtype) for factor in factors]
        y.baddbmm_(h, b.transpose(1, 2))
        return torch.ops.aten._unsafe_view(y, list(y.shape))  # no view, which a model could not change in place

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, h, a, b, weight, scale = ctx.saved_tensors
        grad = grad.contiguous()
        dx = da = db = None
        need_x, (need_a, need_b) = ctx.needs_input_grad[0], ctx.needs
        if need_x or need_a:
            dh = torch.bmm(grad, b).mul_(scale)  # (n, m, r)
        if need_x:
            dx = matmul(grad.flatten(0, 1), weight.to(grad.dtype)).view(*grad.shape[:2], -1).baddbmm_(dh, a)
        if need_a:
            da = torch.bmm(dh.transpose(1, 2), x)  # (n, r, d_in)
        if need_b:
            db = torch.bmm(grad.transpose(1, 2), h)  # (n, d_out, r)
        wholes = (*(da.unbind() if need_a else ()), *(db.unbind() if need_b else ()))
        n, grads = len(scale), [None] * len(ctx.likes)
        offset = 0 if need_a else n
        for k, ((rows, columns), dtype) in enumerate(ctx.likes):
            if ctx.needs_input_grad[5 + k]:
                grads[k] = wholes[k - offset][:rows, :columns].to(dtype)
        return dx, None, None, None, None, *grads


@lru_cache(maxsize=64)
def _column(scales: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The scales as a tensor (n, 1, 1), kept: layers share them, and each copy to a GPU would wait for it."""
    return torch.tensor(scales, dtype=dtype, device=device).view(-1, 1, 1)
