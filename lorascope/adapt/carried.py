"""What a model carries: its adapters by name, and which of them is active. The model itself holds this.

So `injected_in(model)` finds what `inject` gave as long as the model lives, a deep copy of the model has adapters of
its own, and the methods of transformers that save a model write the adapter alone: a trainer's checkpoints do not hold
the base. A `Trainer` asks a quantised model whether it carries an adapter of PEFT's, and refuses to train it otherwise;
the attribute that it asks is set here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

from torch import nn

from lorascope.errors import InputError

_HELD = "_lorascope_adapters"
_ASKED_BY_TRAINER = "_hf_peft_config_loaded"  # transformers.trainer_utils.validate_quantization_for_training


@dataclass
class Held:
    """The adapters in one model, and the name of the active one."""

    adapters: dict[str, Any] = field(default_factory=dict)
    active: str = ""


def held_by(model: nn.Module) -> Held | None:
    """What the model carries; None of a model without adapters, and of one that has parted with them."""
    return getattr(model, "__dict__", {}).get(_HELD)


@contextmanager
def making_room(model: nn.Module, name: str | None) -> Iterator[None]:
    """Take the active adapter aside while one of another name goes in; it comes back where that fails.

    Raises:
        InputError: there is an adapter of that name, or the active one is merged.
    """
    held = held_by(model)
    active = None if held is None or name is None else held.adapters.get(held.active)
    if held is not None and name in held.adapters:
        raise InputError(f"the model has an adapter {name!r} already", hint="give this one another name")
    if active is not None:
        _aside(active)
    try:
        yield
    except BaseException:
        if active is not None and held is not None:
            held.active = active.name
            active.enable()
        raise


def _aside(adapter: Any) -> None:
    if adapter.merged:
        raise InputError(f"the adapter {adapter.name!r} is merged into the weights", hint="unmerge it first")
    adapter.disable()


def hold(model: nn.Module, name: str, adapter: Any) -> None:
    """Let the model carry this adapter, and make it the active one."""
    held = held_by(model)
    if held is None:
        held = Held()
        model.__dict__[_HELD] = held
        if callable(getattr(model, "save_pretrained", None)):
            model.__dict__["save_pretrained"] = MethodType(save_pretrained, model)
        if getattr(model, "is_quantized", False):
            model.__dict__[_ASKED_BY_TRAINER] = True
    held.adapters[name] = adapter
    held.active = name


def activate(model: nn.Module, name: str) -> Any:
    """Let this adapter take the active one's place. InputError where there is none, or the active one is merged."""
    held = held_by(model)
    if held is None or name not in held.adapters:
        names = [] if held is None else list(held.adapters)
        raise InputError(f"the model has no adapter {name!r}", found=", ".join(names) or "none")
    if (active := held.adapters.get(held.active)) is not None and held.active != name:
        _aside(active)
    held.active = name
    held.adapters[name].enable()
    return held.adapters[name]


def check_turn(model: nn.Module, name: str, on: bool) -> None:
    """InputError where this adapter would be enabled while another one is active."""
    held = held_by(model)
    if on and another_is_active(model, name) and held is not None and held.adapters[held.active].enabled:
        raise InputError(
            f"the adapter {held.active!r} is active", hint=f"write lorascope.adapters(model).set_adapter({name!r})"
        )


def another_is_active(model: nn.Module, name: str) -> bool:
    """Whether an adapter of another name is the active one."""
    held = held_by(model)
    return held is not None and held.active != name and held.active in held.adapters


def let_go(model: nn.Module, name: str) -> None:
    """Forget this adapter; of the active one, none is active then."""
    held = held_by(model)
    if held is None:
        return
    held.adapters.pop(name, None)
    held.active = "" if held.active == name else held.active
    if not held.adapters:
        let_go_of_all(model)


def let_go_of_all(model: nn.Module) -> None:
    """Let the model be an ordinary one again."""
    for attribute in (_HELD, "save_pretrained", _ASKED_BY_TRAINER):
        model.__dict__.pop(attribute, None)


def save_pretrained(
    model: Any, save_directory: Any, is_main_process: bool = True, state_dict: Any = None, **options: Any
) -> None:
    """The active adapter in place of the model: what `Trainer` and `model.save_pretrained` write while it carries one.

    `state_dict` is the model's with its base, and nothing of it is needed.
    """
    held = held_by(model)
    if held is None or held.active not in held.adapters:
        raise InputError(
            "no adapter of this model is active", hint="set one by lorascope.adapters(model), or merge it into the base"
        )
    if is_main_process:
        held.adapters[held.active].save_pretrained(save_directory)


def trainable_words(trainable: int, model: nn.Module) -> str:
    """PEFT's line of how many parameters train; `all` counts 4-bit weights by the numbers they stand for."""
    every = sum(_numbers(parameter) for parameter in model.parameters())
    return f"trainable params: {trainable:,d} || all params: {every:,d} || trainable%: {100 * trainable / every:.4f}"


def _numbers(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()
