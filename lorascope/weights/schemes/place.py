"""One weight's place in a quantised checkpoint: its codes, what stands next to them, and what the config says."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorascope.updates.base import Stored
from lorascope.weights.codes.decoded import Codec, Decoded, Unreadable, as_type
from lorascope.weights.codes.scales import Grid

FLOATS = ("F64", "F32", "F16", "BF16")
FP8 = ("F8_E4M3", "F8_E5M2")
EXPONENTS = ("F8_E8M0", "U8")
BLOCK = (128, 128)  # of fp8 by block where the config does not say: DeepSeek's, and transformers' default


@dataclass(frozen=True)
class Place:
    """A weight that is stored in codes.

    Attributes:
        name: of the parameter, `model.layers.0.self_attn.q_proj.weight`; of experts it may end otherwise.
        codes: the tensor that holds the codes, under whatever name.
        tensors: all of the checkpoint's.
        config: its `quantization_config`, or empty.
        method: that config's `quant_method`; empty where it has none.
        title: the scheme by the config's word; empty where it has none.
    """

    name: str
    codes: Stored
    tensors: Mapping[str, Stored]
    config: Mapping[str, Any]
    method: str
    title: str

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]

    def next_to(self, *leaves: str) -> Stored | None:
        """The first of these tensors that the module has."""
        keys = (f"{self.module}.{leaf}" for leaf in leaves)
        return next((self.tensors[key] for key in keys if key in self.tensors), None)

    def ending(self, *endings: str) -> Stored | None:
        """The first tensor whose name is the parameter's and one of these endings."""
        keys = (f"{self.name}{ending}" for ending in endings)
        return next((self.tensors[key] for key in keys if key in self.tensors), None)

    def decoded(
        self, shape: tuple[int, ...], scheme: str, codec: Codec, *parts: Stored | None, dtype: str = "F32"
    ) -> Decoded:
        """The weight, of its codes and those of `parts` that are there."""
        return Decoded(shape, dtype, scheme, (self.codes, *(part for part in parts if part is not None)), codec)

    def misfit(self, scheme: str, *parts: Stored | None) -> Unreadable:
        """A weight of a known scheme whose tensors do not fit each other."""
        found = [f"{part.dtype} {tuple(part.shape)}" for part in parts if part is not None]
        shapes = f"codes {self.codes.dtype} {tuple(self.codes.shape)}"
        shapes += f" with {' and '.join(found)}" if found else " and no scale"
        what = f"the base's {self.name} is quantised ({self.title or scheme})"
        return self._no(f"{what} in a way that lorascope does not know: {shapes}")

    def lacking(self, scheme: str, what: str) -> Unreadable:
        """A weight of a known scheme without one of its tensors, or without what only a config says."""
        return self._no(f"the base's {self.name} is quantised with {self.title or scheme}, and {what} is missing")

    def refused(self, scheme: str) -> Unreadable:
        """A weight of a scheme that is known by name alone."""
        return self._no(f"the base is quantised with {scheme}, whose codes lorascope does not decode")

    def _no(self, reason: str) -> Unreadable:
        return Unreadable(tuple(self.codes.shape), self.codes.dtype, reason)


def as_exponents(scale: Stored) -> Stored:
    """A scale whose bytes are exponents, whatever its file calls them."""
    return as_type(scale, "F8_E8M0") if scale.dtype == "U8" else scale


def by_groups(shape: tuple[int, ...], scale: tuple[int, ...], size: int | None = None) -> Grid | None:
    """A scale for each group of columns of each row, (…, m, ⌈n/size⌉) or (…, m) or one of all; None where it is not.

    Args:
        size: of a group, where it is known; else it divides the columns.
    """
    rows, width = shape[-2:]
    if math.prod(scale) == 1:
        return Grid(max(1, rows), max(1, width), 1, 1, shared=True)
    if scale == shape[:-1]:
        return Grid(1, max(1, width), rows, 1)
    if len(scale) != len(shape) or scale[:-1] != shape[:-1] or not 0 < scale[-1] <= width:
        return None
    groups = scale[-1]
    if size is not None and size > 0 and -(-width // size) == groups:
        return Grid(1, size, rows, groups)
    return Grid(1, width // groups, rows, groups) if width % groups == 0 else None
