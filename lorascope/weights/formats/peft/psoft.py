"""PSOFT in PEFT's files: psoft_R.weight, the core between W's r leading singular directions, which W tells.

The core is orthogonal, Cayley's transform of a skew matrix whose triangle (r(r − 1)/2,) is stored, or free (r, r)
(`psoft_orth`); `psoft_R.vector_b` and `.vector_a` (r,) multiply its rows and columns (PEFT 0.21.2,
tuners/psoft/layer.py).
"""

from typing import Any

import numpy as np

from lorascope.errors import InputError
from lorascope.updates.base import Stored, Update
from lorascope.weights.formats.peft.cayley import cayley, neumann, skew
from lorascope.weights.formats.peft.config import Config, ScaleFields
from lorascope.weights.formats.peft.family import Context, Family, Group, families
from lorascope.weights.support import Support
from lorascope.weights.tensors import Combined, InMemory

_KINDS = {"psoft_init": "principal_core", "pissa_init": "principal_core_halved"}


class Psoft(Family):
    peft_types = {"PSOFT": frozenset(_KINDS.values())}
    methods = dict.fromkeys(_KINDS.values(), "PSOFT")
    roles = ("psoft_R.weight", "psoft_R.vector_a", "psoft_R.vector_b")
    marks = frozenset(roles)
    fields = """
        psoft_alpha psoft_dropout ab_svd_init psoft_svd psoft_svd_lowrank_niter random_seed psoft_orth psoft_mag_b
        psoft_mag_a use_cayley_neumann num_cayley_neumann_terms cayley_neumann_eps init_weights
    """
    scales = ScaleFields(default_rank=32, alpha="psoft_alpha", patterns=False, default_alpha=32)

    def read(self, group: Group, context: Context) -> Update:
        group.need("psoft_R.weight")
        config, weight = context.config, group.stored["psoft_R.weight"]
        if not config.given:
            raise InputError("PSOFT: without adapter_config.json the rank and the core's form are unknown")
        r, kind = config.rank, _KINDS.get(config.name("ab_svd_init", "psoft_init"))
        orthogonal = bool(config.raw.get("psoft_orth", True))
        if kind is None:
            raise InputError(
                "adapter_config.json: ab_svd_init is unknown",
                found=config.raw.get("ab_svd_init"),
                expected=" or ".join(_KINDS),
            )
        sides = [group.stored[role] for role in self.roles[1:] if role in group]
        expected = (r * (r - 1) // 2,) if orthogonal else (r, r)
        if tuple(weight.shape) != expected or any(tuple(side.shape) != (r,) for side in sides):
            raise InputError(
                f"adapter_config.json contradicts the tensors: {group.keys['psoft_R.weight'].text}",
                found=tuple(weight.shape),
                expected=f"{expected} of rank {r}",
            )
        roles: dict[str, Stored] = {"R": _core(group, config, orthogonal)}
        if config.raw.get("psoft_svd", "full") == "lowrank":
            roles["draw"] = InMemory(np.array(_draw(config), dtype=np.float64), "F64")
            context.notes.extend([] if DRAWN in context.notes else [DRAWN])
        return Update(group.module, kind, roles, transposed=config.flag("fan_in_fan_out"))


families.register("psoft")(Psoft())

DRAWN = (
    "PSOFT: PEFT drew W's leading directions with a randomised SVD; they are drawn again from its seed with torch, "
    "which is not guaranteed to give the same across systems"
)


def _core(group: Group, config: Config, orthogonal: bool) -> Stored:
    """R (r, r) with its rows and columns multiplied."""
    names = [role for role in Psoft.roles if role in group]
    raw = config.raw
    terms, limit = raw.get("num_cayley_neumann_terms", 5), raw.get("cayley_neumann_eps")
    if type(terms) is not int or not 0 < terms <= 100:
        raise InputError("adapter_config.json: num_cayley_neumann_terms is not a number of terms", found=terms)

    def core(*arrays: np.ndarray) -> np.ndarray:
        parts = dict(zip(names, arrays, strict=True))
        matrix = parts["psoft_R.weight"]
        if orthogonal:
            blocks = skew(matrix[None])
            if raw.get("use_cayley_neumann"):
                norm = np.linalg.norm(blocks)
                blocks = blocks * (limit / (norm + 1e-12)) if limit is not None and norm > limit else blocks
                matrix = neumann(blocks, terms)[0]
            else:
                matrix = cayley(-blocks)[0]
        if "psoft_R.vector_b" in parts:
            matrix = parts["psoft_R.vector_b"][:, None] * matrix
        return matrix * parts["psoft_R.vector_a"] if "psoft_R.vector_a" in parts else matrix

    return Combined(tuple(group.stored[name] for name in names), (config.rank, config.rank), core)


def _draw(config: Config) -> tuple[Any, Any]:
    """Power iterations and seed of the randomised SVD."""
    draw = config.raw.get("psoft_svd_lowrank_niter", 10), config.raw.get("random_seed", 0)
    if not all(type(number) is int and 0 <= number < 1 << 53 for number in draw) or draw[0] > 1000:
        raise InputError("adapter_config.json: psoft_svd_lowrank_niter or random_seed is not a number", found=draw)
    return draw


SUPPORT = (
    Support("PSOFT", "PEFT's formula in float64, with its merge to float32's rounding", base="for ΔW", peft="PSOFT"),
)
