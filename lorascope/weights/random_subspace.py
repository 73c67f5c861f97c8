"""Updates that a few coordinates and a seed give: ΔW = λ · (P θ)[the parameter's rows], P drawn again when it is read.

A file of `random_subspace` holds θ (d,) and, with SAID, λ (m,); `Plan` is everything else that ΔW depends on. The order
of the parameters matters: of a global projection each has the rows behind its predecessor's.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np

from lorascope.errors import InputError
from lorascope.linalg.fastfood import Projection, fingerprint
from lorascope.linalg.projections import Name, projection
from lorascope.updates.base import Stored

THETA, LAMBDA = "subspace.theta", "subspace.lambda"  # the names of the two arrays in a file


@dataclass(frozen=True)
class Plan:
    """How coordinates become updates.

    Attributes:
        projection: its name, see `linalg/projections.py`.
        scope: "global", one P for all parameters together, or "per-tensor", one for each, from a seed of its own.
        columns: d without the λs.
        seed: of the draws.
        parameters: name and native shape of every parameter, in order.
        groups: which λ each parameter has; empty without.
    """

    projection: str
    scope: str
    columns: int
    seed: int
    parameters: tuple[tuple[str, tuple[int, ...]], ...]
    groups: tuple[int, ...] = ()

    @property
    def sizes(self) -> list[int]:
        """How many numbers each parameter has."""
        return [math.prod(shape) for _, shape in self.parameters]

    def projections(self, as_published: bool = False) -> list[Projection]:
        """The one global projection, or one for each parameter. InputError where one is impossible."""
        if self.scope == "global":
            return [projection(self.projection, sum(self.sizes), self.columns, self.seed, as_published=as_published)]
        return [
            projection(self.projection, size, self.columns, derived_seed(self.seed, name), as_published=as_published)
            for (name, _), size in zip(self.parameters, self.sizes, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        parameters = [[name, list(shape)] for name, shape in self.parameters]
        return {**vars(self), "parameters": parameters, "groups": list(self.groups), "fingerprint": fingerprint()}

    @staticmethod
    def of_json(values: Any) -> "Plan":
        """The plan that `to_json` described.

        Raises:
            InputError: it is not a plan, or this numpy draws other numbers than the one it was written with.
        """
        try:
            parameters = tuple((str(name), tuple(map(_size, shape))) for name, shape in values["parameters"])
            groups = tuple(map(_size, values["groups"]))
            named = str(values["projection"]), str(values["scope"])
            plan = Plan(*named, _size(values["columns"]), _size(values["seed"]), parameters, groups)
            valid = plan.projection in get_args(Name) and plan.scope in ("global", "per-tensor") and plan.columns > 0
            valid = valid and len(groups) in (0, len(parameters)) and bool(parameters)
            written = values["fingerprint"]
        except (TypeError, KeyError, ValueError):
            valid = False
        if not valid:
            raise InputError("adapter_config.json: subspace is not a plan", found=repr(values)[:200])
        if written != fingerprint():
            raise InputError(
                "this numpy draws other random numbers than the one the adapter was written with",
                found=f"numpy {np.__version__}",
                hint="read it with the numpy of its training run",
            )
        return plan


def derived_seed(*parts: int | str) -> int:
    """A seed of 63 bits from these: other parts, an independent one."""
    digest = hashlib.sha256("\n".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass
class Subspace:
    """Coordinates and the plan that gives them meaning; shared by the updates they make.

    Attributes:
        theta, lam: (d,) and (m,), as stored; `lam` is None without SAID.
    """

    plan: Plan
    theta: Stored
    lam: Stored | None = None
    _whole: np.ndarray | None = field(default=None, repr=False)
    _projections: list[Projection] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        m = max(self.plan.groups, default=-1) + 1
        shapes = tuple(self.theta.shape), tuple(self.lam.shape) if self.lam is not None else (0,)
        if shapes != ((self.plan.columns,), (m,)):
            raise InputError(
                "the subspace's coordinates do not fit its plan", found=shapes, expected=((self.plan.columns,), (m,))
            )

    def values(self, index: int) -> np.ndarray:
        """ΔW of the parameter, in float64 and its native shape."""
        try:
            if self._projections is None:
                self._projections = self.plan.projections()
            with np.errstate(over="ignore", invalid="ignore"):  # the analyses say what is not finite
                flat = self._rows(index)
                if self.lam is not None:
                    flat = flat * self.lam.read()[self.plan.groups[index]]
        except MemoryError:
            size = sum(self.plan.sizes)
            raise InputError(f"a subspace of {size:,} parameters does not fit into this machine's memory") from None
        return flat.reshape(self.plan.parameters[index][1])

    def _rows(self, index: int) -> np.ndarray:
        assert self._projections is not None
        theta, sizes = self.theta.read(), self.plan.sizes
        if self.plan.scope == "per-tensor":
            return self._projections[index].apply(theta)
        start, (only,) = sum(sizes[:index]), self._projections
        if self.plan.projection in ("fastfood", "dense", "orthonormal"):
            return only.part(theta, start, start + sizes[index])
        if self._whole is None:  # the others have no cheaper part than the whole
            self._whole = only.apply(theta)
        return self._whole[start : start + sizes[index]]


@dataclass(frozen=True)
class Projected:
    """ΔW of one parameter of a `Subspace` as (d_out, d_in), worked out at every `read`."""

    subspace: Subspace
    index: int
    shape: tuple[int, ...]
    transposed: bool = False
    dtype: str = "F32"

    def read(self) -> np.ndarray:
        values = self.subspace.values(self.index)
        return values.T if self.transposed else values.reshape(self.shape)

    def to_json(self) -> dict[str, Any]:
        return {"index": self.index, "shape": list(self.shape), "turned": self.transposed}

    @staticmethod
    def of_json(values: Any, subspace: Subspace, where: str) -> "Projected":
        """The parameter that `to_json` described. InputError, naming `where`, for anything else."""
        try:
            index, shape, transposed = values["index"], tuple(map(_size, values["shape"])), bool(values["turned"])
            native = subspace.plan.parameters[_size(index)][1]
            valid = math.prod(shape) == math.prod(native) and len(shape) == 2
            valid = valid and (not transposed or tuple(native) == shape[::-1])
        except (TypeError, KeyError, ValueError, IndexError):
            valid = False
        if not valid:
            raise InputError(f"adapter_config.json: {where} is not in its subspace", found=repr(values)[:200])
        return Projected(subspace, index, shape, transposed)


def subspace_of(updates: Mapping[str, Any]) -> Subspace | None:
    """The subspace that these updates share, or None."""
    for update in updates.values():
        for stored in update.roles.values():
            if isinstance(stored, Projected):
                return stored.subspace
    return None


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(value)
    return value
