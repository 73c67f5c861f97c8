"""VeRA unshared: ΔW = diag(b) B diag(d) A as in `vera.py`, but every layer has a frozen random pair A, B of its own.

Kopiczko, Blankevoort and Asano 2024, arXiv 2310.11454, Table 7: the control for what sharing costs, which was nothing
that they could measure (RTE 84.6 and 84.6, CoLA 67.7 and 68.3). A (r, d_in) and B (d_out, r) are Kaiming uniform with
gain √2 of their own widths, U(±√(6/d_in)) and U(±√(6/r)), each drawn by a seed of its own, which comes from the run's
seed and the layer's name. d starts at 0.1, b at 0; d_out + r numbers train in each layer.

PEFT has no such method. The file is lorascope's, and gives A and B by their seeds. As a plain LoRA, which PEFT loads,
it is A' = diag(d) A and B' = diag(b) B, and d and b are lost.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lorascope.adapt.layer import Site
from lorascope.adapt.layers import check_dropout, check_rank
from lorascope.adapt.method import methods
from lorascope.methods.vera import Pair, Vera, VeraDelta
from lorascope.updates.base import Stored
from lorascope.weights.adapter import Adapter
from lorascope.weights.drawn import Drawn


@dataclass(frozen=True)
class UnsharedConfig:
    """Settings of VeRA unshared.

    Attributes:
        rank: r.
        d_initial: what every d starts at.
        dropout: probability of dropping an entry of the update's input (and only the update's) while training.
        save_projection: write the numbers of A and B into the file, in place of their seeds.
    """

    rank: int = 256
    d_initial: float = 0.1
    dropout: float = 0.0
    save_projection: bool = False

    def __post_init__(self) -> None:
        check_rank(self.rank)
        check_dropout(self.dropout)


class UnsharedDelta(VeraDelta):
    """VeRA's update with a pair of its own, whose two draws are its state; of a file's pair, the numbers are."""

    draws: tuple[Drawn, Drawn] | None = None
    save_projection = False

    def draw(self, draws: tuple[Drawn, Drawn]) -> None:
        """Make the pair what these draws give."""
        self.draws = draws
        self.pair.replace(*(each.tensor() for each in draws))

    def stored(self) -> dict[str, Stored]:
        if self.draws is None or self.save_projection:
            return super().stored()
        return dict(zip("AB", self.draws, strict=True))

    @torch.no_grad()
    def load_roles(self, roles: Mapping[str, Tensor], scale: float) -> None:
        """Take d, b and the file's own A and B, of any rank."""
        a, b = roles["A"].float(), roles["B"].float()
        if not (torch.equal(a, self.pair.A) and torch.equal(b, self.pair.B)):
            self.draws = None
            self.pair.replace(a, b)
        super().load_roles(roles, scale)

    def get_extra_state(self) -> Tensor:
        if self.draws is None:
            return torch.cat([self.pair.A.flatten(), self.pair.B.flatten()])
        return torch.tensor([draw.seed for draw in self.draws])

    def set_extra_state(self, state: Tensor) -> None:
        a, b = self.pair.A, self.pair.B
        if state.is_floating_point():
            self.draws = None
            values = state.cpu().split([a.numel(), b.numel()])
            self.pair.replace(values[0].view_as(a), values[1].view_as(b))
        else:
            seeds = state.tolist()
            self.draw(draws(a.shape[1], b.shape[0], a.shape[0], seeds[0], seeds[1]))


@methods.register("vera_unshared")
class VeraUnshared(Vera):
    """Trains d and b of every layer, r + d_out parameters each; A and B are random, frozen and the layer's own."""

    name, format = "vera_unshared", "lorascope"
    Config: ClassVar[type] = UnsharedConfig
    config: UnsharedConfig  # type: ignore[assignment]

    def prepare(self, model: torch.nn.Module, sites: list[Site]) -> None:
        """Nothing is shared."""

    def make(self, site: Site, generator: torch.Generator) -> UnsharedDelta:
        rank, dtype = self.config.rank, site.master_dtype
        seeds = torch.randint(0, 1 << 62, (2,), generator=generator).tolist()
        d = torch.full((rank,), self.config.d_initial, dtype=dtype)
        pair = Pair(torch.empty(rank, site.d_in), torch.empty(site.d_out, rank))
        delta = UnsharedDelta(pair, d, torch.zeros(site.d_out, dtype=dtype), site.d_in, self.config.dropout)
        delta.draw(draws(site.d_in, site.d_out, rank, seeds[0], seeds[1]))
        delta.save_projection = self.config.save_projection
        return delta

    def salt(self) -> str:
        return f"rank={self.config.rank}"

    def settings(self) -> dict[str, Any]:
        config = self.config
        return {"r": config.rank, "vera_dropout": config.dropout, "d_initial": config.d_initial}

    def prepare_load(self, adapter: Adapter) -> None:
        """Keep a file's draws as draws."""
        if self.injected is None:
            return
        for name, layer in self.injected.layers.items():
            a, b = (adapter.updates[name].roles[role] for role in "AB")
            if isinstance(a, Drawn) and isinstance(b, Drawn) and isinstance(layer.delta, UnsharedDelta):
                layer.delta.draw((a, b))

    def state_dict(self) -> dict[str, Any]:
        return {}


def draws(d_in: int, d_out: int, rank: int, a_seed: int, b_seed: int) -> tuple[Drawn, Drawn]:
    """A (r, d_in) and B (d_out, r), Kaiming uniform with gain √2."""
    return Drawn((rank, d_in), (6 / d_in) ** 0.5, a_seed), Drawn((d_out, rank), (6 / rank) ** 0.5, b_seed)
