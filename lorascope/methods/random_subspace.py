"""Training in a random subspace: θ = θ₀ + P θ_d, with P fixed and random and the d numbers θ_d trained.

Li, Farkhoor, Liu and Yosinski 2018, "Measuring the Intrinsic Dimension of Objective Landscapes", arXiv 1804.08838, eq.
2: θ (D,) all parameters, θ_d (d,) zero at the start, P (D, d) with columns of unit length: dense, sparse or Fastfood.
Aghajanyan, Zettlemoyer and Gupta 2020, "Intrinsic Dimensionality Explains the Effectiveness of Language Model
Fine-Tuning", arXiv 2012.13255, §3: that with Fastfood is DID; SAID gives each of m layers a trained factor λ, which is
one at the start, θ_i = θ₀,i + λ_i (P θ_{d−m})_i. The budget is d in both: m of SAID's d numbers are the λs.

Where the code in circulation (Aghajanyan's, as mirrored in compacter) differs:

- it draws a projection for each tensor, each with columns of unit length, so that a LayerNorm's gain moves as far as an
  embedding: `scope: per-tensor` with `fastfood-whole`. Li's is one for all: `scope: global`.
- its λs are one for each tensor, and it counts θ itself as one more (d = 20 with 4 tensors trains 15 + 5): `said:
  tensor` has the first, the second is left away. The paper's λs are one for each layer: `said: layer`, where all that
  is in no numbered block shares one.
- of a tensor smaller than d it ignores the coordinates beyond 2^⌈log₂ size⌉. Here every tensor sees all of them.
- its gradient is too small by 1/n in each tensor, n = 2^⌈log₂ size⌉: biases then outweigh matrices a thousandfold.
  `adjoint: as-published` does that, so that its effect can be studied; `exact` is the true gradient.

In the papers everything is inside the subspace, a new head too: say `modules_to_save: []` for that. P is never stored:
a file has θ_d, the λs and a seed, and whoever reads it draws P again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lorascope.adapt.base_params import (
    BaseParam,
    BaseParamMethod,
    BaseParamModule,
    Parametrization,
    frozen_parameters,
    select_by_name,
)
from lorascope.adapt.layer import TrainedPart
from lorascope.adapt.method import methods
from lorascope.architectures import block
from lorascope.errors import InputError
from lorascope.linalg.projections import Name
from lorascope.methods.full import refuse_codes
from lorascope.updates.base import Update
from lorascope.weights.random_subspace import LAMBDA, THETA, Plan, Projected, Subspace, derived_seed, subspace_of
from lorascope.weights.tensors import InMemory

Scope = Literal["global", "per-tensor"]
Said = Literal["none", "layer", "tensor"]
Adjoint = Literal["exact", "as-published"]


@dataclass(frozen=True)
class SubspaceConfig:
    """Settings of training in a random subspace. On the packaged task (200 steps, d = 1000) 2e-2 is a good learning
    rate: with columns of unit length one step of Adam moves θ by about √d times the rate, whatever D is.

    Attributes:
        d: how many numbers train, λs included.
        projection: "fastfood" (stacked blocks), "fastfood-whole" (one transform, as published; several times slower),
            "dense" and "orthonormal" (time O(D·d): for small models), or "sparse".
        scope: one projection for all parameters together, or one for each tensor.
        said: "none" (DID), or λs for each "layer" or "tensor" (SAID).
        adjoint: the exact gradient, or the published code's; see the module's docstring.
        train, freeze, embeddings: which of the base's parameters θ has, as of full fine-tuning.
    """

    d: int = 1000
    projection: Name = "fastfood"
    scope: Scope = "global"
    said: Said = "none"
    adjoint: Adjoint = "exact"
    train: tuple[str, ...] | None = None
    freeze: tuple[str, ...] = ()
    embeddings: bool = True

    def __post_init__(self) -> None:
        if self.d < 1:
            raise InputError("d is too small", found=self.d, expected="a whole number from 1")
        for name, values in (("projection", Name), ("scope", Scope), ("said", Said), ("adjoint", Adjoint)):
            if getattr(self, name) not in get_args(values):
                found = repr(getattr(self, name))
                raise InputError(f"{name} is unknown", found=found, expected=", ".join(get_args(values)))
        if self.adjoint != "exact" and self.projection != "fastfood-whole":
            raise InputError(
                "the published adjoint belongs to the published projection",
                found=self.projection,
                expected="fastfood-whole",
            )


class _Values(torch.autograd.Function):
    """θ_d and λ to the parameters' values in the base's dtypes; backwards by the adjoint. Keeps no tensor for that."""

    @staticmethod
    def forward(ctx: Any, part: "RandomSubspace", theta: Tensor, lam: Tensor | None) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.part, ctx.lam = part, None if lam is None else lam.detach().clone()
        directions = part.directions(theta)
        ctx.directions = directions if lam is not None else None
        factors = part.factors(lam)
        return tuple(
            torch.add(param.parameter.to(theta.dtype), direction.view(param.parameter.shape), alpha=factor).to(
                param.parameter.dtype
            )
            for param, direction, factor in zip(part.base_params, directions, factors, strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, Tensor, Tensor | None]:
        part, dtype = ctx.part, ctx.part.theta.dtype
        part.forget()  # an optimiser's step follows, and torch's fused ones do not count as a change of θ_d
        of_lam = None
        if ctx.lam is not None:
            of_lam = torch.zeros_like(ctx.lam)
            for group, direction, gradient in zip(part.plan.groups, ctx.directions, gradients, strict=True):
                if gradient is not None:
                    of_lam[group] += gradient.reshape(-1).to(dtype) @ direction
        return None, part.pulled_back(gradients, part.factors(ctx.lam)), of_lam


class RandomSubspace(BaseParamModule):
    """θ_d (and λ) for the parameters `base_params`, whose values it works out once for every forward pass.

    Attributes:
        seed: a buffer, so that a state is all that P depends on.
    """

    reason = "coordinates in a random subspace: the updates are made of them"
    seed: Tensor

    def __init__(self, base_params: list[BaseParam], config: SubspaceConfig, seed: int):
        super().__init__(base_params)
        self.config = config
        groups = _groups(base_params, config.said)
        m = max(groups, default=-1) + 1
        if m >= config.d:
            raise InputError(f"SAID needs more than its {m} λs", found=f"d = {config.d}", hint="raise d")
        first = base_params[0].parameter
        dtype = torch.promote_types(first.dtype, torch.float32)
        self.theta = nn.Parameter(torch.zeros(config.d - m, dtype=dtype, device=first.device))
        self.lam = nn.Parameter(torch.ones(m, dtype=dtype, device=first.device)) if m else None
        self.register_buffer("seed", torch.tensor(derived_seed(seed, config.projection, config.scope, config.d)))
        parameters = tuple((param.name, tuple(param.parameter.shape)) for param in base_params)
        self.plan = Plan(config.projection, config.scope, config.d - m, int(self.seed), parameters, groups)
        self.projections = self.plan.projections(config.adjoint != "exact")
        self._cached: tuple[tuple, tuple[Tensor, ...]] | None = None

    def substitutes(self, param: BaseParam) -> Parametrization:
        return _Read(self, self.base_params.index(param))

    def read(self, index: int) -> Tensor:
        """The parameter's value now, in the dtype of the base. Worked out for all of them at the first access."""
        self._follow_seed()
        key = (int(self.seed), self.theta._version, None if self.lam is None else self.lam._version)
        wants = torch.is_grad_enabled() and self.theta.requires_grad
        if self._cached is None or self._cached[0] != key or (wants and not self._cached[1][index].requires_grad):
            self.forget()  # before the new ones are made: they are as large as the model
            self._cached = key, _Values.apply(self, self.theta, self.lam)
        return self._cached[1][index]

    def forget(self) -> None:
        """Work the values out again at the next access."""
        self._cached = None

    def directions(self, theta: Tensor) -> list[Tensor]:
        """P θ_d, flat, of each parameter."""
        if self.config.scope == "per-tensor":
            return [each.apply(theta) for each in self.projections]
        return list(self.projections[0].apply(theta).split(self.plan.sizes))

    def factors(self, lam: Tensor | None) -> list[float]:
        """λ of each parameter; 1 without SAID."""
        if lam is None:
            return [1.0] * len(self.base_params)
        values = lam.tolist()
        return [values[group] for group in self.plan.groups]

    def pulled_back(self, gradients: tuple[Tensor | None, ...], factors: list[float]) -> Tensor:
        """Pᵀ of the parameters' gradients, each times its λ: (d,)."""
        flat = self.theta.new_zeros(sum(self.plan.sizes))
        pieces = flat.split(self.plan.sizes)
        for piece, gradient, factor in zip(pieces, gradients, factors, strict=True):
            if gradient is not None:
                piece.copy_(gradient.reshape(-1)).mul_(factor)
        if self.config.scope == "global":
            return self.projections[0].adjoint(flat)
        return torch.stack([each.adjoint(piece) for each, piece in zip(self.projections, pieces, strict=True)]).sum(0)

    @torch.no_grad()
    def values(self) -> Mapping[str, Tensor]:
        self._follow_seed()
        pairs = zip(self.base_params, self.directions(self.theta), self.factors(self.lam), strict=True)
        return {o.name: o.parameter.to(v.dtype) + factor * v.view(o.parameter.shape) for o, v, factor in pairs}

    def updates(self) -> dict[str, Update]:
        theta, lam = _in_memory(self.theta), None if self.lam is None else _in_memory(self.lam)
        self._follow_seed()
        subspace = Subspace(self.plan, theta, lam)
        updates = {}
        for index, param in enumerate(self.base_params):
            projected = Projected(subspace, index, param.matrix_shape, param.transposed)
            update = param.update("dense", "delta", projected)
            updates[update.name] = update
        return updates

    def tensors(self) -> dict[str, Tensor]:
        return {THETA: self.theta.detach(), **({} if self.lam is None else {LAMBDA: self.lam.detach()})}

    @torch.no_grad()
    def load(self, updates: Mapping[str, Update], tensors: Mapping[str, Tensor]) -> None:
        """Take coordinates and seed. InputError where the file has other parameters or another projection."""
        subspace = subspace_of(updates)
        if subspace is None:
            raise InputError("the file does not say which subspace its updates lie in", hint="load the one it was")
        plan, expected = subspace.plan, self.plan
        fields = ("projection", "scope", "columns", "groups", "parameters")
        wrong = [name for name in fields if getattr(plan, name) != getattr(expected, name)]
        if wrong:
            raise InputError(f"the file's subspace is another one: it differs in {', '.join(wrong)}")
        self.seed.fill_(plan.seed)
        for name, parameter in ((THETA, self.theta), (LAMBDA, self.lam)):
            if parameter is not None:
                parameter.copy_(tensors[name])

    def remove(self) -> None:
        super().remove()
        self.forget()

    def _follow_seed(self) -> None:
        """A state that was loaded may bring another seed, and with it another P."""
        if int(self.seed) != self.plan.seed:
            plan = self.plan
            self.plan = Plan(plan.projection, plan.scope, plan.columns, int(self.seed), plan.parameters, plan.groups)
            self.projections = self.plan.projections(self.config.adjoint != "exact")


class _Read(Parametrization):
    """One parameter of a `RandomSubspace`, which it does not own."""

    def __init__(self, part: RandomSubspace, index: int):
        super().__init__()
        self.source = (part, index)  # in a tuple, where torch does not look for modules

    def forward(self, original: Tensor) -> Tensor:
        part, index = self.source
        return part.read(index)


def _groups(base_params: list[BaseParam], scaling: str) -> tuple[int, ...]:
    """Which λ each parameter has: by tensor, or by numbered block with one for all that is in none."""
    if scaling == "none":
        return ()
    keys = [param.name if scaling == "tensor" else block(param.name) for param in base_params]
    order = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return tuple(order[key] for key in keys)


def _in_memory(tensor: Tensor) -> InMemory:
    return InMemory(tensor.detach().cpu().numpy().copy(), "F64" if tensor.dtype == torch.float64 else "F32")


@methods.register("random_subspace")
class RandomSubspaceTraining(BaseParamMethod):
    """Trains d parameters: θ = θ₀ + P θ_d (DID), or θ_i = θ₀,i + λ_i (P θ_d)_i (SAID)."""

    name, paper, kind = (
        "random_subspace",
        "Li et al. 2018, arXiv 1804.08838; Aghajanyan et al. 2020, arXiv 2012.13255",
        "dense",
    )
    Config = SubspaceConfig
    config: SubspaceConfig

    def select(self, base_params: list[BaseParam]) -> list[BaseParam]:
        if not self.config.embeddings:
            base_params = [param for param in base_params if not param.is_embedding]
        base_params = select_by_name(base_params, self.config.train, self.config.freeze)
        size = sum(param.parameter.numel() for param in base_params)
        if size < self.config.d:
            raise InputError(f"a subspace of {self.config.d} dimensions has no place in {size} parameters")
        return base_params

    def install(self, model: nn.Module, seed: int) -> dict[str, TrainedPart]:
        refuse_codes(model, self.name, self.config.train, self.config.freeze)
        part = RandomSubspace(self.select(frozen_parameters(model)), self.config, seed)
        return {"subspace": part.install()}

    def total_parameter_count(self, model: nn.Module, sites: list[Any]) -> int:
        return self.config.d

    def settings(self) -> dict[str, Any]:
        config = self.config
        named = {key: getattr(config, key) for key in ("d", "projection", "scope", "said", "adjoint", "embeddings")}
        train = None if config.train is None else list(config.train)
        return {**super().settings(), **named, "train": train, "freeze": list(config.freeze)}
