"""Mixtures of experts in PEFT's files, which depend on the input: each expert is an update of its own.

    LILY   lily_A.weight (r, d_in), lily_B.weight (E·r, d_out), lily_router.weight (E, r)
    POLY   poly_lora_A (S, E, d_in/S, r), poly_lora_B (S, E, r, d_out/S), poly_router.module_logits (tasks, S·E)

PEFT 0.21.2, tuners/lily/layer.py and tuners/poly/layer.py. Lily's ΔW of an input is s·(Σ p_e·B_e)·A, p the mean over
all tokens of the softmax of the router's logits; under the module's name stands the mixture for the identity matrix as
the input, each unit vector once. Poly mixes A and B of its E skills apart, by weights of the task, in S splits of the
inputs and outputs, and divides by r. An expert `MODULE[e]` is what the layer adds where it alone is chosen.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from lorascope.errors import InputError
from lorascope.updates.base import Stored, Update
from lorascope.weights.formats.peft.config import Config
from lorascope.weights.formats.peft.family import Context, Family, Group, families
from lorascope.weights.support import Support
from lorascope.weights.tensors import Combined, Recent, Slice

LILY = (
    "Lily: the model mixes its experts anew for each input, by a router; MODULE[e] is expert e alone, and MODULE the "
    "mixture for the identity matrix as the input"
)
POLY = "Poly: the model mixes its skills by the task, A and B apart; MODULE[e] is skill e alone"


class Routed(Family):
    """Experts that a layer mixes anew: each module's are read on their own, after what is a fixed change of a weight.

    Attributes:
        label: the method's name.
        note: how the model mixes them.
        reason: why no fixed change of a weight is the layer's.
    """

    label: ClassVar[str]
    note: ClassVar[str]
    reason: ClassVar[str]

    def experts(self, group: Group, context: Context) -> list[Update]:
        """An update of each expert, and of the mixture where there is one. InputError where the tensors do not fit."""
        raise NotImplementedError

    def waits(self, group: Group, context: Context) -> bool:
        return True

    def read_together(self, groups: Sequence[Group], context: Context) -> Iterator[tuple[Group, list[Update] | str]]:
        context.notes.append(self.note)
        for group in groups:
            yield group, self.experts(group, context)

    def method_name(self, update: Update, config: Config) -> str:
        return self.label

    def not_for_all_tokens(self, settings: Mapping[str, Any]) -> str | None:
        return self.reason if settings.get("peft_type") in self.peft_types else None


class Lily(Routed):
    peft_types = {"LILY": frozenset({"low_rank"})}
    roles = ("lily_A", "lily_B", "lily_router")
    marks = frozenset(roles)
    with_tail = frozenset(roles)
    fields = "stride_A num_B scaling init_weights"
    label, note, reason = "Lily", LILY, "Lily mixes its experts anew for each input"

    def experts(self, group: Group, context: Context) -> list[Update]:
        return _lily(group, context)


class Poly(Routed):
    peft_types = {"POLY": frozenset({"low_rank"})}
    roles = ("poly_lora_A", "poly_lora_B", "poly_router.module_logits")
    marks = frozenset(roles)
    fields = "poly_type n_tasks n_skills n_splits init_weights"
    label, note, reason = "Poly", POLY, "Poly mixes its skills by the task"

    def experts(self, group: Group, context: Context) -> list[Update]:
        return _poly(group)


families.register("lily")(Lily())
families.register("poly")(Poly())


def _lily(group: Group, context: Context) -> list[Update]:
    group.need(*Lily.roles)
    a, b, router = (group.stored[role] for role in Lily.roles)
    fits = len(a.shape) == len(b.shape) == len(router.shape) == 2 and router.shape[1] == a.shape[0]
    if not fits or 0 in (*a.shape, *b.shape) or b.shape[0] != router.shape[0] * a.shape[0]:
        raise InputError(
            f"the Lily tensors of {group.module} do not fit together",
            found=[group.shape(role) for role in Lily.roles],
            expected="A (r, d_in), B (experts · r, d_out) and a router (experts, r)",
        )
    scale = context.config.raw.get("scaling", 1.0)
    if type(scale) not in (int, float):
        raise InputError("adapter_config.json: scaling is not a number", found=scale)
    (rank, _), count, d_out = a.shape, router.shape[0], b.shape[1]

    def mixture(a: np.ndarray, b: np.ndarray, router: np.ndarray) -> np.ndarray:
        logits = router @ a
        chances = np.exp(logits - logits.max(axis=0))
        mean = (chances / chances.sum(axis=0)).mean(axis=1)
        return np.einsum("e,ero->or", mean, b.reshape(count, rank, d_out))

    mixed = Combined((a, b, router), (d_out, rank), mixture)
    recent = Recent()
    experts = [Slice(b, (d_out, rank), partial(_of_lily, e, rank), recent) for e in range(count)]
    return _updates(group.module, [a] * (count + 1), [mixed, *experts], float(scale), with_mixture=True)


def _poly(group: Group) -> list[Update]:
    group.need("poly_lora_A", "poly_lora_B")
    a, b = group.stored["poly_lora_A"], group.stored["poly_lora_B"]
    fits = len(a.shape) == len(b.shape) == 4 and tuple(a.shape[:2]) == tuple(b.shape[:2]) and a.shape[3] == b.shape[2]
    if not fits or 0 in (*a.shape, *b.shape):
        raise InputError(
            f"the factors of {group.module} do not fit together",
            found=f"poly_lora_A {tuple(a.shape)} and poly_lora_B {tuple(b.shape)}",
            expected="(splits, skills, d_in / splits, r) and (splits, skills, r, d_out / splits)",
        )
    splits, skills, width, rank = a.shape
    d_out, recent = splits * b.shape[3], Recent(2)
    downs = [Slice(a, (rank, splits * width), partial(_down_of_poly, e), recent) for e in range(skills)]
    ups = [Slice(b, (d_out, rank), partial(_up_of_poly, e), recent) for e in range(skills)]
    return _updates(group.module, downs, ups, 1 / rank, with_mixture=False)


def _of_lily(expert: int, rank: int, values: np.ndarray) -> np.ndarray:
    """B_e (d_out, r) of lily_B."""
    return values[expert * rank : (expert + 1) * rank].T


def _down_of_poly(skill: int, values: np.ndarray) -> np.ndarray:
    """A (r, d_in) of one skill, its splits one after the other."""
    return values[:, skill].reshape(-1, values.shape[3]).T


def _up_of_poly(skill: int, values: np.ndarray) -> np.ndarray:
    """B (d_out, r) of one skill, its splits one after the other."""
    return values[:, skill].transpose(0, 2, 1).reshape(-1, values.shape[2])


def _updates(
    module: str, downs: Sequence[Stored], ups: Sequence[Stored], scale: float, *, with_mixture: bool
) -> list[Update]:
    """One update for each pair of factors, `MODULE[e]`; the first under the module's name where it is a mixture."""
    names = [f"{module}[{e}]" for e in range(len(ups) - with_mixture)]
    names = [module, *names] if with_mixture else names
    return [
        Update(name, "low_rank", {"A": a, "B": b}, scale, base_weight=f"{module}.weight")
        for name, a, b in zip(names, downs, ups, strict=True)
    ]


_ALONE = "each expert as PEFT's layer computes it where it alone is chosen, in float64"
SUPPORT = (
    Support("Lily", f"PEFT's layer on the identity matrix, and {_ALONE}", peft="LILY"),
    Support("Poly", _ALONE, peft="POLY"),
)
