"""Updates of parameters that no Linear has: LoRA on fused experts and on torch's attention, rows of an embedding.

PEFT's `target_parameters` and `trainable_token_indices`. What the model reads in the parameter's place is worked out
from the frozen one: W + s·B·A for every expert by one `baddbmm`, once in each pass of the module that has it; W with
the trained rows put in.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lorascope.adapt.base_params import BaseParam, BaseParamModule, Parametrization
from lorascope.adapt.weight_sum import widened
from lorascope.errors import InputError, preview
from lorascope.linalg.arrays import Float
from lorascope.updates.base import Update
from lorascope.weights.adapter import Rows
from lorascope.weights.formats.peft.experts_written import UNCALLED
from lorascope.weights.tensors import InMemory


class _InPlaceOf(Parametrization):
    """What the part makes of the frozen parameter, kept while the module that has it computes."""

    def __init__(self, part: Any):
        super().__init__()
        self.part = part  # a module of the model's, so that `model.parameters()` has what trains

    def forward(self, original: Tensor) -> Tensor:
        part = self.part
        return part.summed(original) if part.current is None else part.current


class LowRankParameter(BaseParamModule):
    """ΔW = s·B·A of one matrix, or of each expert of a parameter that fuses them.

    Attributes:
        A: (experts, r, d_in). B: (experts, d_out, r). Of a matrix, experts is 1.
        turned: the parameter is stored as (experts, d_in, d_out).
    """

    def __init__(self, param: BaseParam, a: Float[Tensor, "e r d_in"], b: Float[Tensor, "e d_out r"], scale: float):
        super().__init__([param])
        self.A, self.B, self.scale = nn.Parameter(a), nn.Parameter(b), scale
        self.turned = is_turned(param)
        self.current: Tensor | None = None
        self._hooks: list[Any] = []

    @property
    def param(self) -> BaseParam:
        return self.base_params[0]

    def summed(self, original: Tensor) -> Tensor:
        """W + s·B·A in the dtype of W."""
        left, right = self.B.to(original.dtype), self.A.to(original.dtype)
        if self.turned:
            left, right = right.transpose(1, 2), left.transpose(1, 2)
        stack = original if original.ndim == 3 else original.unsqueeze(0)
        return torch.baddbmm(stack, left, right, alpha=self.scale).view(original.shape)

    def substitutes(self, param: BaseParam) -> Parametrization:
        return _InPlaceOf(self)

    def install(self) -> "LowRankParameter":
        super().install()
        owner = self.param.module
        self._hooks = [
            owner.register_forward_pre_hook(self._before),
            owner.register_forward_hook(self._after, always_call=True),
        ]
        return self

    def _before(self, *_: Any) -> None:
        self.current = self.summed(self.param.parameter)

    def _after(self, *_: Any) -> None:
        self.current = None

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        super().remove()

    def values(self) -> Mapping[str, Tensor]:
        return {self.param.name: self.summed(widened(self.param.parameter)).detach()}

    def merge(self) -> list:
        reports = super().merge()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        return reports

    def names(self) -> list[str]:
        """The update's name for each expert, as readers of PEFT's files have it."""
        if self.param.parameter.ndim == 3 and len(self.A) > 1:
            return [f"{self.param.name}[{expert}]" for expert in range(len(self.A))]
        return [self.param.update_name]

    def updates(self) -> dict[str, Update]:
        dtype = "F64" if self.A.dtype == torch.float64 else "F32"
        a, b = (np.array(tensor.detach().cpu().numpy()) for tensor in (self.A, self.B))
        several = len(self.A) > 1
        return {
            name: Update(
                name,
                "low_rank",
                {"A": InMemory(a[expert], dtype), "B": InMemory(b[expert], dtype)},
                self.scale,
                self.turned,
                base_weight=self.param.name,
                expert=expert if several else None,
                notes=(UNCALLED,) if isinstance(self.param.module, NonDynamicallyQuantizableLinear) else (),
            )
            for expert, name in enumerate(self.names())
        }

    @torch.no_grad()
    def load(self, updates: Mapping[str, Update], tensors: Mapping[str, Tensor]) -> None:
        """Take A and B of any rank, the same for all experts."""
        read = [updates[name] for name in self.names()]
        stacked = {role: np.stack([update.read()[role] for update in read]) for role in "AB"}
        (_, r, d_in), (_, d_out, other) = stacked["A"].shape, stacked["B"].shape
        if (d_in, d_out, r) != (self.A.shape[2], self.B.shape[1], other):
            raise InputError(f"the factors do not fit {self.param.name}", found=f"A {(r, d_in)} and B {(d_out, other)}")
        for role, values in stacked.items():
            tensor = torch.from_numpy(values).to(getattr(self, role))
            setattr(self, role, nn.Parameter(tensor, requires_grad=getattr(self, role).requires_grad))
        self.scale = read[0].scale


class TrainedRows(BaseParamModule):
    """Rows (n, width) of an embedding that take the place of the base's; whatever is tied to it has them as well."""

    def __init__(self, param: BaseParam, indices: Sequence[int]):
        super().__init__([param])
        count = param.parameter.shape[0]
        if not indices or len(set(indices)) < len(indices) or not all(0 <= index < count for index in indices):
            raise InputError(
                "trainable_token_indices are not rows of the embedding",
                found=preview(map(str, indices)) or "none",
                expected=f"distinct rows from 0 to {count - 1}",
            )
        self.indices, self.current = tuple(indices), None
        self.register_buffer("places", torch.tensor(self.indices, device=param.parameter.device), persistent=False)
        self.tokens = nn.Parameter(widened(param.parameter.detach())[list(indices)].clone())

    def summed(self, original: Tensor) -> Tensor:
        """W with the trained rows, in the dtype of W."""
        return original.index_copy(0, cast(Tensor, self.places), self.tokens.to(original.dtype))

    def substitutes(self, param: BaseParam) -> Parametrization:
        return _InPlaceOf(self)

    def values(self) -> Mapping[str, Tensor]:
        return {self.base_params[0].name: self.summed(widened(self.base_params[0].parameter)).detach()}

    def rows(self) -> dict[str, Rows]:
        values, dtype = self.tokens.detach().cpu().numpy(), "F64" if self.tokens.dtype == torch.float64 else "F32"
        return {self.base_params[0].name: Rows(self.indices, InMemory(values.copy(), dtype))}

    @torch.no_grad()
    def load_rows(self, rows: Mapping[str, Rows]) -> None:
        found = rows.get(self.base_params[0].name)
        if found is None or found.indices != self.indices:
            raise InputError("the file holds other rows of trained tokens", expected=preview(map(str, self.indices)))
        self.tokens.copy_(torch.from_numpy(found.stored.read()))

    def load(self, updates: Mapping[str, Update], tensors: Mapping[str, Tensor]) -> None:
        """There is nothing but rows."""


def is_turned(param: BaseParam) -> bool:
    """Whether experts are stored as (d_in, d_out), which their module says, as transformers and PEFT have it."""
    return param.parameter.ndim == 3 and bool(getattr(param.module, "is_transposed", False))


def map_sizes(param: BaseParam) -> tuple[int, int, int]:
    """(experts, d_out, d_in) of a parameter that low-rank factors can go on. InputError of any other."""
    shape = tuple(param.parameter.shape)
    if len(shape) not in (2, 3):
        raise InputError(f"target_parameters: {param.name} is neither a matrix nor a stack of matrices", found=shape)
    experts, first, second = (1, *shape) if len(shape) == 2 else shape
    return (experts, second, first) if is_turned(param) else (experts, first, second)


def matching(params: Sequence[BaseParam], names: Sequence[str]) -> list[BaseParam]:
    """The parameters whose path equals a name or ends with "." + name, as in PEFT. InputError where a name has none."""
    for name in names:
        if not any(f".{param.name}".endswith(f".{name}") for param in params):
            candidates = [param.name for param in params if "expert" in param.name or param.parameter.ndim == 3]
            raise InputError(
                f"target_parameters: no parameter is named {name!r}",
                expected=preview(candidates or [p.name for p in params]),
            )
    return [param for param in params if any(f".{param.name}".endswith(f".{name}") for name in names)]
