"""Writing LoRA of `nn.MultiheadAttention`: both of its updates in the one wrapper that PEFT has for them (`attention`).

The wrapper has one rank and one scale for in_proj_weight and out_proj, and its layer adds out_proj's update twice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lorascope.updates.base import Stored, Update
from lorascope.weights.formats.peft.keys import PREFIX
from lorascope.weights.tensors import Mapped

IN, OUT = ".in_proj_weight", ".out_proj"


@dataclass(frozen=True)
class Attention:
    """One attention whose two updates PEFT has a place for."""

    owner: str
    inside: Update
    out: Update

    @property
    def rank(self) -> int:
        return max(update.roles["A"].shape[0] for update in (self.inside, self.out))

    @property
    def scale(self) -> float:
        return self.inside.scale or self.out.scale / 2

    def as_update(self) -> Update:
        """An update under the name that patterns of rank and alpha have for it, at the wrapper's scale."""
        return replace(self.inside, name=self.owner, base_weight=None, scale=self.scale)

    def keys(self) -> dict[str, Stored]:
        start = f"{PREFIX}{self.owner}"
        twice = 2 * self.scale or 1.0
        return {
            **self._factors(start, self.inside, self.inside.scale / (self.scale or 1.0)),
            **self._factors(f"{start}.base_layer.out_proj", self.out, self.out.scale / twice),
        }

    def _factors(self, start: str, update: Update, times: float) -> dict[str, Stored]:
        """A and B at the wrapper's rank, filled up with zeros, B times what the wrapper's scale lacks."""
        a, b = update.roles["A"], update.roles["B"]
        more, rank = self.rank - a.shape[0], self.rank
        if more:
            a = Mapped(a, (rank, a.shape[1]), _zeros(more, axis=0))
            b = Mapped(b, (b.shape[0], rank), _zeros(more, axis=1))
        if times != 1.0:
            b = Mapped(b, tuple(b.shape), lambda values: values * times)
        return {f"{start}.lora_A.weight": a, f"{start}.lora_B.weight": b}


def attentions(updates: Mapping[str, Update]) -> dict[str, Attention]:
    """By the attention's name, those of which in_proj_weight and out_proj both have A and B and no more."""
    found = {}
    for name, update in updates.items():
        owner, out = name.removesuffix(IN), updates.get(name.removesuffix(IN) + OUT)
        if owner != name and out is not None and {"A", "B"} == set(update.roles) == set(out.roles):
            found[owner] = Attention(owner, update, out)
    return found


def without(updates: Sequence[Update], wrapped: Mapping[str, Attention]) -> list[Update]:
    """The updates that lie in none of these attentions."""
    return [u for u in updates if u.name.removesuffix(IN) not in wrapped and u.name.removesuffix(OUT) not in wrapped]


def _zeros(more: int, axis: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: np.pad(values, [(0, more if each == axis else 0) for each in (0, 1)])
