"""VeRA: ΔW = diag(b) B diag(d) A, with one frozen random pair A, B for all layers, and vectors d and b trained.

Kopiczko, Blankevoort and Asano 2024, arXiv 2310.11454, eq. 2: A (r, widest d_in) and B (tallest d_out, r) are Kaiming
uniform with gain √2, d (r) starts at 0.1 and b (d_out) at 0, so that training starts at the base model. There is no
α/r. A layer uses the first d_in columns of A and the first d_out rows of B. d_out + r numbers train in each layer.

The paper's code is PEFT's, and draws as it does: A, then B, from one generator seeded by `projection_prng_key`. So the
same targets and key give the same pair, bit for bit; other targets, where the widest layer differs, another one. The
key, not the run's seed, decides the pair: vary it as well where runs are to be independent.

Learning rates of the paper (AdamW): 4e-3 to 3e-2 on GLUE with r from 256 to 1024, ten times LoRA's.

The ablations of the paper train one of the vectors: `vera_only_b` keeps d as it starts, `vera_only_d` has b at
1 and d start at 0, which is the base model too and, unlike d = 0.1, not a random change of it. The paper does not say
at which values it left the other vector; d = 1 (`d_initial: 1.0`) is the reading that leaves d out of the formula.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorascope.adapt.fused_vera import vera
from lorascope.adapt.layer import Delta, Site
from lorascope.adapt.layers import autocast, bias_of, check_dropout, check_rank, map_weight, plain
from lorascope.adapt.method import Method, methods
from lorascope.errors import InputError
from lorascope.linalg.arrays import Float
from lorascope.updates.base import Stored
from lorascope.weights.adapter import Adapter
from lorascope.weights.formats.peft.vera import draw_projections
from lorascope.weights.tensors import InMemory


@dataclass(frozen=True)
class VeraConfig:
    """Settings of VeRA.

    Attributes:
        rank: r; the paper's is 256 to 1024, for it costs one number in each layer.
        d_initial: what every d starts at.
        dropout: probability of dropping an entry of the update's input (and only the update's) while training.
        projection_prng_key: the seed of A and B.
        save_projection: write A and B into the file; else only their key, and the reader draws them again.
    """

    rank: int = 256
    d_initial: float = 0.1
    dropout: float = 0.0
    projection_prng_key: int = 0
    save_projection: bool = True

    def __post_init__(self) -> None:
        check_rank(self.rank)
        check_dropout(self.dropout)
        if not 0 <= self.projection_prng_key < 1 << 63:
            raise InputError(
                "projection_prng_key is not a valid seed", found=self.projection_prng_key, expected="from 0"
            )


@dataclass(frozen=True)
class OnlyDConfig(VeraConfig):
    """VeRA's settings, with d starting at 0, where b = 1 does not train."""

    d_initial: float = 0.0


class Pair:
    """A frozen random pair, A (r, widest d_in) and B (tallest d_out, r), held once however many layers use it.

    It is no module: a buffer of every layer would be copied with each of them, and saved with each.
    """

    def __init__(self, a: Float[Tensor, "r d_in"], b: Float[Tensor, "d_out r"]):
        self.replace(a, b)

    def replace(self, a: Float[Tensor, "r d_in"], b: Float[Tensor, "d_out r"]) -> None:
        """Take another pair, for all layers at once."""
        self.A, self.B = a, b
        self._there: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A and B on a device in a dtype; each copy is made once and kept."""
        if self.A.device == device and self.A.dtype == dtype:
            return self.A, self.B
        if (device, dtype) not in self._there:
            self._there[device, dtype] = self.A.to(device, dtype), self.B.to(device, dtype)
        return self._there[device, dtype]


class VeraDelta(Delta):
    """ΔW x = b ⊙ (B (d ⊙ (A x))). d and b are master weights, float32 or wider; A and B are its share of the pair."""

    kind, scale = "vera", 1.0

    def __init__(self, pair: Pair, d: Float[Tensor, " r"], b: Float[Tensor, " d_out"], d_in: int, dropout: float = 0.0):
        super().__init__()
        self.d, self.b = nn.Parameter(d), nn.Parameter(b)
        self.pair, self.d_in, self.dropout = pair, d_in, dropout

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        x = autocast(x)
        if self.training and self.dropout > 0:
            x = F.dropout(x, self.dropout, training=True)
        return vera(x, self.d, self.b, *self.projections())

    def forward_with_base(self, base: nn.Module, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        x = autocast(x)
        if (self.training and self.dropout > 0) or not plain(base, x):
            return base(x) + self(x)
        return vera(x, self.d, self.b, *self.projections(), map_weight(base), bias_of(base))

    def projections(self) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"]]:
        """This layer's A and B, views of the pair on the layer's device."""
        a, b = self.pair.on(self.d.device, self.d.dtype)
        return a[:, : self.d_in], b[: self.b.shape[0]]

    def roles(self) -> dict[str, Tensor]:
        a, b = self.projections()
        return {"A": a, "B": b, "d": self.d, "b": self.b}

    def stored(self) -> dict[str, Stored]:
        """A and B as views of the one pair: an export does not copy it for every layer."""
        a, b = self.pair.A[:, : self.d_in], self.pair.B[: self.b.shape[0]]
        return {"A": InMemory(a.cpu().numpy()), "B": InMemory(b.cpu().numpy())}

    @torch.no_grad()
    def load_roles(self, roles: Mapping[str, Tensor], scale: float) -> None:
        """Take d and b; A and B must be the pair's, which takes a file's before (`Vera.prepare_load`)."""
        shapes = {name: tuple(values.shape) for name, values in roles.items()}
        rank, d_out = self.pair.A.shape[0], self.b.shape[0]
        expected = {"A": (rank, self.d_in), "B": (d_out, rank), "d": (rank,), "b": (d_out,)}
        if shapes != expected or scale != 1.0:
            raise InputError("the update does not fit the layer", found=f"{shapes}, scale {scale:g}", expected=expected)
        if self.d.shape != roles["d"].shape:
            self.d = nn.Parameter(roles["d"].to(self.d), requires_grad=self.d.requires_grad)
        self.d.copy_(roles["d"])
        self.b.copy_(roles["b"])


@methods.register("vera")
class Vera(Method):
    """Trains d and b of every layer, r + d_out parameters each; A and B are random, frozen and shared."""

    name, paper, kind = "vera", "Kopiczko, Blankevoort and Asano 2024, arXiv 2310.11454", "vera"
    Config: ClassVar[type] = VeraConfig
    config: VeraConfig
    layer_kinds = ("linear", "conv1d")
    trains_d, trains_b, b_initial = True, True, 0.0

    pair: Pair
    taken = False  # whether the pair is a file's, and not what the key gives

    def prepare(self, model: nn.Module, sites: list[Site]) -> None:
        d_in, d_out = max(site.d_in for site in sites), max(site.d_out for site in sites)
        a, b = draw_projections(self.config.projection_prng_key, self.config.rank, d_in, d_out)
        self.pair = Pair(torch.from_numpy(a), torch.from_numpy(b))

    def make(self, site: Site, generator: torch.Generator) -> VeraDelta:
        d = torch.full((self.config.rank,), self.config.d_initial, dtype=site.master_dtype)
        b = torch.full((site.d_out,), self.b_initial, dtype=site.master_dtype)
        return self._trained(VeraDelta(self.pair, d, b, site.d_in, self.config.dropout))

    def _trained(self, delta: VeraDelta) -> VeraDelta:
        delta.d.requires_grad_(self.trains_d)
        delta.b.requires_grad_(self.trains_b)
        return delta

    def parameter_count(self, site: Site) -> int:
        return self.config.rank * self.trains_d + site.d_out * self.trains_b

    def settings(self) -> dict[str, Any]:
        config = self.config
        return {
            "peft_type": "VERA",
            "r": self.pair.A.shape[0] if hasattr(self, "pair") else config.rank,
            "projection_prng_key": config.projection_prng_key,
            "save_projection": config.save_projection or self.taken,
            "vera_dropout": config.dropout,
            "d_initial": config.d_initial,
        }

    def prepare_load(self, adapter: Adapter) -> None:
        """Take the file's pair, of which every update must have the first columns and rows."""
        updates = [update for update in adapter.updates.values() if update.kind == self.kind]
        if not updates:
            return
        widest = max(updates, key=lambda update: update.roles["A"].shape[1]).roles["A"].read()
        tallest = max(updates, key=lambda update: update.roles["B"].shape[0]).roles["B"].read()
        for update in updates:
            a, b = update.roles["A"].read(), update.roles["B"].read()
            if not (np.array_equal(a, widest[:, : a.shape[1]]) and np.array_equal(b, tallest[: b.shape[0]])):
                raise InputError(
                    f"{self.name} shares one pair of projections", found=f"another in {update.name}",
                    hint="load it with vera_unshared",
                )  # fmt: skip
        wide, tall = torch.from_numpy(widest).float(), torch.from_numpy(tallest).float()
        self.taken = not (torch.equal(wide, self.pair.A) and torch.equal(tall, self.pair.B))
        if self.taken:
            self.pair.replace(wide, tall)

    def state_dict(self) -> dict[str, Any]:
        return {"A": self.pair.A, "B": self.pair.B} if self.taken else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave. ValueError where it has not the rank, or is smaller than a layer."""
        if state:
            shapes = [tuple(state[role].shape) for role in "AB"]
            expected = [tuple(self.pair.A.shape), tuple(self.pair.B.shape)]
            if not all(len(s) == 2 and s[0] >= o[0] and s[1] >= o[1] for s, o in zip(shapes, expected, strict=True)):
                raise ValueError(f"projections of {shapes}")
            self.taken = True
            self.pair.replace(state["A"].cpu(), state["B"].cpu())


@methods.register("vera_only_b")
class VeraOnlyB(Vera):
    """VeRA without training d: d_out parameters in each layer."""

    name = "vera_only_b"
    trains_d = False


@methods.register("vera_only_d")
class VeraOnlyD(Vera):
    """VeRA without training b, which is 1, while d starts at 0: r parameters in each layer."""

    name = "vera_only_d"
    Config = OnlyDConfig
    trains_b, b_initial = False, 1.0
