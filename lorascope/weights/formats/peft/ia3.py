"""IA³ in PEFT's files: one vector of each module, ia3_l, which scales its outputs or its inputs."""

import math
from operator import itemgetter
from typing import TYPE_CHECKING

from lorascope.errors import InputError
from lorascope.patterns import Pattern
from lorascope.updates.base import Stored, Update
from lorascope.weights.adapter import Adapter
from lorascope.weights.formats.peft.config import Config
from lorascope.weights.formats.peft.family import Context, Family, Group, Written, families, refuse
from lorascope.weights.formats.peft.keys import PREFIX
from lorascope.weights.formats.peft.layout import is_transposed_by
from lorascope.weights.formats.rotations import of_kernel
from lorascope.weights.support import Support
from lorascope.weights.tensors import Mapped, reshaped

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint


class IA3(Family):
    peft_types = {"IA3": frozenset({"scaling"})}
    methods = {"scaling": "IA³"}
    roles = ("ia3_l",)
    marks = frozenset(roles)
    fields = "feedforward_modules init_ia3_weights"
    kinds_written = frozenset({"scaling"})

    def read(self, group: Group, context: Context) -> Update:
        return ia3(group, context.config, context.base)

    def write(self, adapter: Adapter) -> Written:
        return _written(adapter)


families.register("ia3")(IA3())


def ia3(group: Group, config: Config, base: "Checkpoint | None" = None) -> Update:
    """IA³: one factor for each output, stored (d_out, 1), or for each input of a feed-forward module, (1, d_in).

    A convolution's is (1, channels, 1, ...) either way, and the config says which.
    """
    l = group.stored["ia3_l"]
    shape = tuple(l.shape)
    size = math.prod(shape)
    feedforward = _is_feedforward(group.module, config)
    if len(shape) < 2 or sum(side != 1 for side in shape) > 1:
        raise InputError(f"{group.keys['ia3_l'].text} is not a vector", found=shape, expected="(d_out, 1) or (1, d_in)")
    inward = shape[0] == 1 if len(shape) == 2 and size > 1 else feedforward
    if config.given and inward != feedforward:
        raise InputError(
            f"adapter_config.json contradicts the tensors: {group.keys['ia3_l'].text} scales "
            f"{'inputs' if inward else 'outputs'}",
            found=shape,
            expected="feedforward_modules to say the same",
        )
    note = () if inward else ("it scales the output's bias too",)
    update = Update(
        name=group.module,
        kind="scaling",
        roles={"in_scale" if inward else "out_scale": reshaped(l, size)},
        transposed=is_transposed_by(group.module, size, 1 if inward else 0, config, base),
        kernel=(1,) * (len(shape) - 2),
        notes=note,
    )
    return of_kernel(update, base, {})


def _is_feedforward(module: str, config: Config) -> bool:
    """PEFT's own test: a string is a regex for the whole path, a list is of endings."""
    named = config.raw.get("feedforward_modules")
    if isinstance(named, str):
        return Pattern(named, "adapter_config.json: feedforward_modules").fullmatch(module) is not None
    return any(module.endswith(ending) for ending in config.names("feedforward_modules"))


def _written(adapter: Adapter) -> Written:
    """IA³: (d_out, 1), or (1, d_in) for the modules whose inputs are scaled."""
    tensors: dict[str, Stored] = {}
    inward = []
    for update in adapter.updates.values():
        refuse(update, update.scale != 1, "PEFT's IA3 has no scale")
        (role, l), *_ = update.roles.items()
        if role == "in_scale" and (positions := math.prod(update.kernel)) > 1:  # one factor for each channel
            l = Mapped(l, (l.shape[0] // positions,), itemgetter(slice(None, None, positions)))
        shape: tuple[int, ...] = (1, l.shape[0]) if role == "in_scale" or update.kernel else (l.shape[0], 1)
        tensors[f"{PREFIX}{update.name}.ia3_l"] = reshaped(l, *shape, *(1,) * len(update.kernel))
        if role == "in_scale":
            inward.append(update.name)
    transposed = any(update.transposed for update in adapter.updates.values())
    config = {
        "peft_type": "IA3",
        "target_modules": list(adapter.updates),  # PEFT wants feedforward_modules to be some of these
        "feedforward_modules": inward,
        "fan_in_fan_out": transposed,
    }
    return Written(tensors, config)


SUPPORT = (Support("(IA)³", "PEFT's merge in float64", base="for ΔW", peft="IA3"),)
