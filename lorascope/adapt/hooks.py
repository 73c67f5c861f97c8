"""Whether the loop that trains an adapter calls its method's hooks, and a warning where it does not.

LoRA+ is its parameter groups, AdaLoRA its penalty and its cuts: in a loop that does not know of them, as transformers'
`Trainer` does not, they train as another method and nothing fails. So the first optimiser steps of injected parameters
are watched, by torch's own hook on every optimiser's step; lorascope's loop says that it calls everything, and is not.
"""

import functools
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from lorascope.adapt.protocols import AdaptedModel, HookedMethod

HOOKS = {
    "apply_calibration": "call method.calibrate before training, or method.apply_calibration with what it would give",
    "parameter_groups": "build the optimizer from method.parameter_groups(injected, lr, weight_decay)",
    "penalty": "add method.penalty() to the loss",
    "before_step": "call method.before_step(step, total_steps) before each optimizer.step()",
    "after_step": "call method.after_step(step, total_steps) after each optimizer.step()",
}
AFTER = "after_step"  # cannot have been called yet when the first step ends
_watched: weakref.WeakSet[AdaptedModel] = weakref.WeakSet()
_handle: Any = None


def recording(name: str, function: Callable) -> Callable:
    """The method's own hook, which notes that it was called."""

    @functools.wraps(function)
    def hook(self: HookedMethod, *arguments: Any, **named: Any) -> Any:
        self.called.add(name)
        return function(self, *arguments, **named)

    return hook


def watch(injected: AdaptedModel) -> None:
    """Look at the optimiser steps of these parameters, where their method needs its hooks to be called."""
    global _handle
    if not needed(injected):
        return
    injected.method.called.clear()
    _watched.add(injected)
    if _handle is None:
        _handle = register_optimizer_step_post_hook(_after_any_step)


def unwatch(injected: AdaptedModel) -> None:
    """The loop that trains this calls every hook: nothing is watched."""
    global _handle
    _watched.discard(injected)
    if not _watched and _handle is not None:
        _handle.remove()
        _handle = None


def needed(injected: AdaptedModel) -> list[str]:
    """The hooks without which the method, set as it is, would train otherwise."""
    method = injected.method
    before = set(method.called)
    try:
        return [name for name in HOOKS if _matters(injected, name)]
    finally:
        method.called.clear()
        method.called.update(before)


def _matters(injected: AdaptedModel, name: str) -> bool:
    method = injected.method
    if name not in type(method).overridden:
        return False
    if name == "apply_calibration":
        return method.calibrates
    if name == "parameter_groups":  # one group at the rate that was asked for is what every loop has
        groups = method.parameter_groups(injected, 1.0, 0.0)
        return len(groups) != 1 or groups[0]["lr"] != 1.0
    if name == "penalty":
        with torch.no_grad():
            return method.penalty() is not None
    return name not in method.idle_hooks()


def _after_any_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for injected in list(_watched):
        trained = next(iter(injected.trainable().values()), None)
        if trained is not None and any(trained is each for group in optimizer.param_groups for each in group["params"]):
            _check(injected)


def _check(injected: AdaptedModel) -> None:
    called = injected.method.called
    missing = [name for name in needed(injected) if name not in called]
    stepped, injected.stepped = injected.stepped, True
    if missing == [AFTER] and not stepped:
        missing = []  # it is due now; the next step will tell
    called -= {"penalty", "before_step", AFTER}  # of this step
    if missing:
        unwatch(injected)
        warnings.warn(
            f"{injected.method.name} is trained by a loop that does not call {', '.join(missing)} of its method, and "
            f"without that it is another method: {'; '.join(HOOKS[name] for name in missing)}",
            stacklevel=4,
        )
