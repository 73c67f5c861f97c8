"""RoAd in PEFT's files: road_theta and road_alpha, an angle and a factor for pairs of outputs.

By `variant` a pair has one of each (road_1), each of its rows has (road_2), or each entry of its 2 × 2 matrix (road_4).
Pairs are made in groups of `group_size` rows (PEFT 0.21.2, tuners/road/layer.py).
"""

import math
from collections.abc import Callable

import numpy as np

from lorascope.errors import InputError
from lorascope.updates.base import Update
from lorascope.weights.formats.peft.config import Config
from lorascope.weights.formats.peft.family import Context, Family, Group, families
from lorascope.weights.formats.peft.layout import is_transposed_by
from lorascope.weights.support import Support
from lorascope.weights.tensors import Combined

_SIZES = {"road_1": 0.5, "road_2": 1, "road_4": 2}  # numbers for each output
NO_CONFIG = "RoAd: without adapter_config.json the variant and the group size are unknown"


class Road(Family):
    peft_types = {"ROAD": frozenset({"pair_rotation"})}
    methods = {"pair_rotation": "RoAd"}
    roles = ("road_theta", "road_alpha")
    marks = frozenset(roles)
    fields = "variant group_size init_weights"

    def read(self, group: Group, context: Context) -> Update:
        group.need(*self.roles)
        theta, alpha = group.stored["road_theta"], group.stored["road_alpha"]
        variant, size = _settings(context.config)
        rows = math.prod(theta.shape) / _SIZES[variant]
        if tuple(theta.shape) != tuple(alpha.shape) or rows % size:
            raise InputError(
                f"road_theta and road_alpha of {group.module} do not fit {variant} in groups of {size} rows",
                found=f"{tuple(theta.shape)} and {tuple(alpha.shape)}",
            )
        shape = (int(rows) // size, 2, size // 2)
        roles = {
            name: Combined((theta, alpha), shape, _factors(variant, shape, index)) for index, name in enumerate("cs")
        }
        transposed = is_transposed_by(group.module, int(rows), 0, context.config, context.base)
        note = "it rotates the output's bias too"
        return Update(group.module, "pair_rotation", roles, transposed=transposed, notes=(note,))


families.register("road")(Road())


def _settings(config: Config) -> tuple[str, int]:
    if not config.given:
        raise InputError(NO_CONFIG, hint="put the adapter_config.json next to the weights")
    variant, size = config.name("variant", "road_1"), config.raw.get("group_size", 64)
    if variant not in _SIZES or type(size) is not int or size < 2 or size % 2:
        raise InputError(
            "adapter_config.json: this is not a variant of RoAd, or not a size of a group",
            found=f"variant {variant!r}, group_size {size!r}",
            expected=f"one of {', '.join(_SIZES)}, and an even number",
        )
    return variant, size


def _factors(variant: str, shape: tuple[int, ...], index: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """α·cos θ (index 0) or α·sin θ (1) of the stored θ and α."""
    wave = (np.cos, np.sin)[index]
    return lambda theta, alpha: _parts(variant, shape, alpha, index) * wave(_parts(variant, shape, theta, index))


def _parts(variant: str, shape: tuple[int, ...], values: np.ndarray, index: int) -> np.ndarray:
    """The numbers of c (index 0) or s (1), (groups, 2, half)."""
    groups, _, half = shape
    if variant == "road_1":
        return np.repeat(values.reshape(groups, 1, half), 2, axis=1)
    if variant == "road_2":
        return values.reshape(shape)
    return values.reshape(groups, 2, 2 * half)[:, index].reshape(shape)


SUPPORT = (Support("RoAd", "PEFT's merge in float64", base="for ΔW", peft="ROAD"),)
