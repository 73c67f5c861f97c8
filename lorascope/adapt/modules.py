"""Modules of a model put in each other's place, trained copies of them, and who shares a module's parameters."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def replace_modules(model: nn.Module, pairs: Sequence[tuple[nn.Module, nn.Module]]) -> None:
    """Put each pair's second module wherever its first stands: a module may hang in the model under several names."""
    new = {id(old): module for old, module in pairs}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if id(child) in new:
                parent._modules[name] = new[id(child)]


def unshare(modules: Sequence[nn.Module]) -> None:
    """Give every module its own copy of a trained parameter that an earlier one has."""
    seen: set[int] = set()
    for module in modules:
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in seen and parameter.requires_grad:
                setattr(module, name, nn.Parameter(parameter.detach().clone()))
            seen.add(id(parameter))


def trained_copy(module: nn.Module) -> nn.Module:
    """A copy to train, in float32 where the base is narrower; it then takes and gives the base's own dtype."""
    trained = copy.deepcopy(module).requires_grad_(True)
    narrow = {p.dtype for p in module.parameters() if p.is_floating_point()} & {torch.bfloat16, torch.float16}
    if narrow:
        trained.float()
        dtype = next(iter(narrow))
        trained.register_forward_pre_hook(lambda _, inputs: tuple(_cast(x, torch.float32) for x in inputs))
        trained.register_forward_hook(lambda _, __, output: _cast(output, dtype))
    return trained


def _cast(x: Any, dtype: torch.dtype) -> Any:
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x


def sharers(model: nn.Module, layer: nn.Module) -> list[str]:
    """Paths of the other modules that hold one of the layer's own parameters."""
    parameters = {id(p) for p in layer._parameters.values() if p is not None}
    return [
        path.removesuffix(".base")
        for path, module in model.named_modules()
        if module is not layer and any(id(p) in parameters for p in module._parameters.values())
    ]


def untie_config(model: nn.Module) -> bool:
    """Let the config say that embeddings are not tied, or a saved copy would lose one; whether it said so before."""
    config: Any = getattr(model, "config", None)
    tied = bool(getattr(config, "tie_word_embeddings", False))
    if tied:
        config.tie_word_embeddings = False
    return tied
