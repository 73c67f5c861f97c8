"""Training parameters of the base itself: what BitFit, LayerNorm tuning, full fine-tuning and subspaces share.

The base's parameters stay where they are, frozen and untouched, so that `remove` gives back the very same bits. What
the model reads at that place is another tensor: torch's `parametrize` turns `module.weight` into a property, which here
gives the trained master weight in the dtype of the base. A float32 master weight on a bfloat16 base, gradient
checkpointing and code that reads a weight without calling its module all work by that alone. The price is a second copy
of what is trained.

A parameter that hangs in the model at several places (tied embeddings) has one master weight and is counted once.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lorascope.adapt.layer import Merged, TrainedPart
from lorascope.adapt.method import Method
from lorascope.adapt.weight_sum import rounded_value
from lorascope.errors import InputError, preview
from lorascope.patterns import Pattern
from lorascope.updates.base import Stored, Update
from lorascope.weights.tensors import InMemory


@dataclass(frozen=True)
class BaseParam:
    """One parameter of the base.

    Attributes:
        name: its path in the model, `layers.0.norm.weight`; of a tied one the first.
        parameter: the base's own, frozen.
        owners: every module that holds it, with the attribute it has there.
    """

    name: str
    parameter: nn.Parameter
    owners: tuple[tuple[nn.Module, str], ...]

    @property
    def module(self) -> nn.Module:
        return self.owners[0][0]

    @property
    def path(self) -> str:
        """The module it belongs to: the part of the model that trains it."""
        return self.name.rpartition(".")[0]

    @property
    def attribute(self) -> str:
        return self.owners[0][1]

    @property
    def transposed(self) -> bool:
        """Whether it is a map stored as (d_in, d_out)."""
        from transformers.pytorch_utils import Conv1D

        is_matrix = isinstance(self.module, (Conv1D, nn.Embedding)) and self.parameter.ndim == 2
        return self.attribute == "weight" and is_matrix

    @property
    def is_embedding(self) -> bool:
        """Whether any of its owners is one: an output head that shares its weight counts."""
        return any(isinstance(module, nn.Embedding) for module, _ in self.owners)

    @property
    def update_name(self) -> str:
        """What its update is called: by the module where it is the module's matrix, else by its own name."""
        plain = self.attribute == "weight" and self.parameter.ndim > 1
        return self.path if plain and self.path else self.name

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(d_out, d_in) of its matrix; (d, 1) of a vector; of more axes, the first and all the others."""
        shape = tuple(self.parameter.shape)
        first = shape[0] if len(shape) > 1 else math.prod(shape)
        rest = math.prod(shape[1:])
        return (rest, first) if self.transposed else (first, rest)

    def update(self, kind: str, role: str, stored: Stored) -> Update:
        """An update of this parameter, whose one role is stored in `matrix_shape`."""
        return Update(
            self.update_name,
            kind,
            {role: stored},
            transposed=self.transposed,
            embedding=isinstance(self.module, nn.Embedding),
            kernel=tuple(self.parameter.shape)[2:],
            base_weight=self.name,
        )

    def matrix(self, values: Tensor) -> Tensor:
        """Values in the parameter's own layout as a matrix of `matrix_shape`."""
        return values.t() if self.transposed else values.reshape(self.matrix_shape)

    def native(self, matrix: Tensor) -> Tensor:
        """An update's matrix in the shape and layout the base stores this parameter in."""
        values, parameter = matrix.t() if self.transposed else matrix, self.parameter
        if values.numel() != parameter.numel() or (parameter.ndim == 2 and values.shape != parameter.shape):
            raise InputError(
                f"{self.name} has another shape", found=tuple(values.shape), expected=tuple(parameter.shape)
            )
        return values.reshape(parameter.shape)


class Parametrization(nn.Module):
    """What stands in a base parameter's place: `value()` in the dtype of the base, worked out at every access."""

    def forward(self, original: Tensor) -> Tensor:
        return self.value().to(original.dtype)

    def value(self) -> Tensor:
        raise NotImplementedError


class _MasterWeight(Parametrization):
    def __init__(self, master: nn.Parameter):
        super().__init__()
        self.master = master

    def value(self) -> Tensor:
        return self.master


def frozen_parameters(model: nn.Module) -> list[BaseParam]:
    """Every frozen floating-point parameter of the base, in the model's order, a shared one once.

    What already trains when a method is installed is a copy of a module that is trained as a whole.
    """
    names: dict[int, str] = {}
    parameters: dict[int, nn.Parameter] = {}
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for path, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is None or parameter.requires_grad or not parameter.is_floating_point():
                continue
            names.setdefault(id(parameter), f"{path}.{attribute}".lstrip("."))
            parameters[id(parameter)] = parameter
            owners.setdefault(id(parameter), []).append((module, attribute))
    return [BaseParam(names[key], parameters[key], tuple(owners[key])) for key in names]


def base_parameters(model: nn.Module) -> list[BaseParam]:
    """As `frozen_parameters`, of a base that is not frozen yet."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        return frozen_parameters(model)
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def select_by_name(base_params: list[BaseParam], train: Sequence[str] | None, freeze: Sequence[str]) -> list[BaseParam]:
    """Those of the parameters in whose names a pattern of `train` is found (all of them where it is None, none where it
    is empty) and none of `freeze`.

    Raises:
        InputError: a pattern is no regular expression or is found in no name; nothing is left.
    """
    names = [param.name for param in base_params]
    wanted = set(names) if train is None else {name for each in train for name in _matching_names(each, names, "train")}
    wanted -= {name for each in freeze for name in _matching_names(each, names, "freeze")}
    if not wanted and train != ():
        raise InputError(
            "train and freeze leave nothing to train", found=f"{preview(train or ['everything'])} to train"
        )
    return [param for param in base_params if param.name in wanted]


def _matching_names(pattern: str, names: list[str], option: str) -> list[str]:
    regex = Pattern(pattern, option)
    matching = [name for name in names if regex.search(name)]
    if not matching:
        near = get_close_matches(pattern, list(dict.fromkeys(part for name in names for part in name.split("."))), n=1)
        hint = f"did you mean {near[0]!r}?" if near else None
        raise InputError(
            f"{option}: {pattern!r} is found in no parameter's name", expected=preview(names, 4), hint=hint
        )
    return matching


def substitute(param: BaseParam, make: Callable[[], Parametrization]) -> None:
    """Let the model read a substitute in every place where the parameter hangs."""
    for module, attribute in param.owners:
        parametrize.register_parametrization(module, attribute, make(), unsafe=True)


def restore(param: BaseParam) -> None:
    """Take the substitutes away; the base's own parameter is there again, the same object."""
    for module, attribute in param.owners:
        parametrize.remove_parametrizations(module, attribute, leave_parametrized=False)


def put(param: BaseParam, parameter: nn.Parameter) -> None:
    """Hang `parameter` in every place of the base's own, so that what was tied stays tied."""
    for module, attribute in param.owners:
        module._parameters[attribute] = parameter


def merged(param: BaseParam, value: Tensor) -> tuple[nn.Parameter, Merged]:
    """`value`, rounded once to the base's dtype, as a parameter; and what that did."""
    stored, report = rounded_value(param.name, param.parameter, value)
    return nn.Parameter(stored, requires_grad=False), Merged(**vars(report))


class BaseParamModule(TrainedPart):
    """What stands in for some of the base's parameters; a subclass says by which values."""

    def __init__(self, base_params: Sequence[BaseParam]):
        super().__init__()
        self.base_params = tuple(base_params)
        self._merged = self._installed = False

    def substitutes(self, param: BaseParam) -> Parametrization:
        """The stand-in of one parameter."""
        raise NotImplementedError

    def values(self) -> Mapping[str, Tensor]:
        """What each parameter is now, by name, in the dtype it is trained in."""
        raise NotImplementedError

    def stores_values(self, param: BaseParam) -> bool:
        """Whether a file holds the parameter's value itself, so that nobody needs the base's; not by default."""
        return False

    @property
    def merged(self) -> bool:
        return self._merged

    def install(self) -> "BaseParamModule":
        for param in self.base_params:
            substitute(param, partial(self.substitutes, param))
        self._installed = True
        return self

    def set_enabled(self, on: bool) -> None:
        if self._merged or on == self._installed:
            return
        if on:
            self.install()
        else:
            self.remove()

    def tensors(self) -> dict[str, Tensor]:
        return {}

    @torch.no_grad()
    def merge(self) -> list[Merged]:
        if self._merged:
            raise InputError(f"{self.base_params[0].name} is merged already", hint="unmerge it first")
        reports = []
        for param, value in zip(self.base_params, self.values().values(), strict=True):
            parameter, report = merged(param, value)
            restore(param)
            put(param, parameter)
            reports.append(report)
        self._merged, self._installed = True, False
        return reports

    def unmerge(self) -> None:
        if self._merged:
            for param in self.base_params:
                put(param, param.parameter)
            self._merged = False
            self.install()

    def remove(self) -> None:
        if self._installed:
            for param in self.base_params:
                restore(param)
            self._installed = False


class Tuned(BaseParamModule):
    """Some parameters of one module, trained: a float32 master weight (float64 of a float64 base) for each.

    Args:
        store_values: of a base narrower than float32, a file gets the tuned values all the same, not the change.
    """

    def __init__(self, base_params: Sequence[BaseParam], store_values: bool = False):
        super().__init__(base_params)
        self.store_values = store_values
        for param in self.base_params:
            dtype = torch.promote_types(param.parameter.dtype, torch.float32)
            self.register_parameter(param.attribute, nn.Parameter(param.parameter.detach().to(dtype, copy=True)))

    def substitutes(self, param: BaseParam) -> Parametrization:
        return _MasterWeight(getattr(self, param.attribute))

    def values(self) -> Mapping[str, Tensor]:
        return {param.name: getattr(self, param.attribute).detach() for param in self.base_params}

    def stores_values(self, param: BaseParam) -> bool:
        return self.store_values or param.parameter.dtype == getattr(self, param.attribute).dtype

    def updates(self) -> dict[str, Update]:
        """The tuned values, from which a file's reader takes the base; where the base is narrower, the change itself.

        A bfloat16 base is most often a rounding of the checkpoint that the reader will compare with, and the rounding
        of W would be taken for training: it is as large as many an update.
        """
        updates = {}
        for param, value in zip(self.base_params, self.values().values(), strict=True):
            narrow = not self.stores_values(param)
            values = value - param.parameter.detach().to(value.dtype) if narrow else value
            array = param.matrix(values).cpu().numpy().copy()
            stored = InMemory(array, "F64" if values.dtype == torch.float64 else "F32")
            kind, role = ("dense", "delta") if narrow else ("tuned", "tuned")
            update = param.update(kind, role, stored)
            updates[update.name] = update
        return updates

    @torch.no_grad()
    def load(self, updates: Mapping[str, Update], tensors: Mapping[str, Tensor]) -> None:
        for param in self.base_params:
            update = updates[param.update_name]
            if update.kind not in ("tuned", "dense"):
                raise InputError(
                    f"{param.name} holds another kind of update", found=update.kind, expected="tuned, dense"
                )
            master = getattr(self, param.attribute)
            base = param.parameter.detach().double() if update.kind == "dense" else 0.0
            (values,) = update.read().values()
            master.copy_(base + param.native(torch.from_numpy(values)) * update.scale)


def fp32_master_weights(base_params: Sequence[BaseParam], store_values: bool = False) -> dict[str, TrainedPart]:
    """Train these parameters: a part with their master weights for every module, by the module's path."""
    by_path: dict[str, list[BaseParam]] = {}
    for param in base_params:
        by_path.setdefault(param.path, []).append(param)
    return {path: Tuned(group, store_values).install() for path, group in by_path.items()}


class BaseParamMethod(Method):
    """A method that trains parameters of the base itself: a subclass says which."""

    kind = "tuned"
    layer_kinds = ()
    format = "lorascope"
    uses_targets = False
    not_sharded = "it trains parameters of the base, and every process must hold them whole"

    def select(self, base_params: list[BaseParam]) -> list[BaseParam]:
        """Those of the base's parameters that train. InputError where there is none."""
        raise NotImplementedError

    def install(self, model: nn.Module, seed: int) -> dict[str, TrainedPart]:
        return fp32_master_weights(self.select(frozen_parameters(model)))

    def total_parameter_count(self, model: nn.Module, sites: list[Any]) -> int:
        return sum(param.parameter.numel() for param in self.select(base_parameters(model)))

    def settings(self) -> dict[str, Any]:
        return {"ties": "kept"}
