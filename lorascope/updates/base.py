"""Kinds of update, and one update of one module.

A kind (`updates/low_rank.py`, ...) is a set of named roles with symbolic shapes and one formula for ΔW. It is written
against the array API: the reader of a file calls it with numpy arrays, the trained layer with tensors.

Shapes are always those of the map, `(d_out, d_in)`: y = W x. Where the model stores the weight the other way round
(GPT-2's Conv1D, embeddings), the update says `transposed`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from lorascope.errors import InputError
from lorascope.linalg.arrays import Array
from lorascope.linalg.factored import Factored
from lorascope.linalg.matrix import Matrix
from lorascope.registry import Registry

MAX_ENTRIES = 1 << 28  # of one array in memory: 2 GiB in float64
MAX_EXPANDED = 1 << 22  # of one that is four times larger than what the file holds of it
MAX_DRAWN = 1 << 25  # of a frozen projection that a file tells by its seed alone
MAX_RANK = 1 << 14  # of factors: their core is (r, r), and its SVD takes r³

kinds: Registry["Kind"] = Registry("kind of update", "lorascope.updates", "lorascope.updates")


@dataclass(frozen=True)
class Role:
    """One named array of a kind. `shape` is symbolic, such as ("r", "d_in"); an optional role may be absent."""

    shape: tuple[str, ...]
    doc: str
    optional: bool = False


class Kind(ABC):
    """One formula for ΔW. Stateless: one instance is registered under its name."""

    name: ClassVar[str]
    formula: ClassVar[str]
    roles: ClassVar[Mapping[str, Role]]
    needs_base: ClassVar[bool] = False
    has_direction: ClassVar[bool] = False  # without the base, a file with A and B still gives the part s·B·A
    by_triangles: ClassVar[bool] = False  # ΔW is B·C·A, with no more of A and B in it than their products

    @abstractmethod
    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Matrix:
        """ΔW (d_out, d_in), in the form that the kind gives it: a product is not multiplied out.

        Args:
            roles: arrays by role name, in the shapes of `roles`, all of one dtype.
            scale: the resolved scale (α/r, α/√r, ...).
            base: W (d_out, d_in), for kinds with `needs_base`.
        """

    def direction(self, roles: Mapping[str, Array], scale: float = 1.0) -> Matrix | None:
        """The part s·B·A, of a kind that needs the base for the whole; None where the file has no such part."""
        return None

    def bias_change(
        self, roles: Mapping[str, Array], scale: float, bias: Array, base: Array | None = None
    ) -> Array | None:
        """What the update adds to the layer's bias (d_out,), for a kind that acts on the output; else None.

        Args:
            base: W (d_out, d_in) as it was, for a kind whose bias depends on it.
        """
        return None

    def dimensions(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """Every symbol's size, from the shapes of the roles. InputError where two roles disagree."""
        return bind(self, shapes)

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """(d_out, d_in) of ΔW. InputError where only the base says one of them."""
        sizes = self.dimensions(shapes)
        if "d_out" not in sizes or "d_in" not in sizes:
            raise InputError(
                f"the shape of a {self.name} update is known from the base only",
                found=dict(shapes),
                hint="pass --base MODEL",
            )
        return sizes["d_out"], sizes["d_in"]

    def rank(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        """The largest rank ΔW can have by construction; None where only the base says."""
        return self.dimensions(shapes).get("r")

    def largest(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Entries of the largest array that `delta` takes or makes."""
        return max((math.prod(shape) for shape in shapes.values()), default=0)


def bind(kind: Kind, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Sizes of the symbols in `kind.roles`, checked against each other.

    Raises:
        InputError: a role is missing or unknown, has the wrong number of axes, or two roles disagree on a size.
    """
    missing = [name for name, role in kind.roles.items() if not role.optional and name not in shapes]
    unknown = [name for name in shapes if name not in kind.roles]
    if missing or unknown:
        raise InputError(
            f"the roles do not make a {kind.name} update",
            found=", ".join(shapes) or "none",
            expected=", ".join(kind.roles),
        )
    sizes: dict[str, int] = {}
    owner: dict[str, str] = {}
    for name, shape in shapes.items():
        symbols = kind.roles[name].shape
        if len(symbols) != len(shape):
            raise InputError(f"{name} has the wrong number of axes", found=tuple(shape), expected=symbols)
        for symbol, size in zip(symbols, shape, strict=True):
            if sizes.setdefault(symbol, size) != size:
                raise InputError(
                    f"{owner[symbol]} and {name} disagree on {symbol}",
                    found=f"{tuple(shapes[owner[symbol]])} and {tuple(shape)}",
                    expected=f"{kind.roles[owner[symbol]].shape} and {symbols}",
                )
            owner.setdefault(symbol, name)
    return sizes


def needed(kind: Kind, roles: Mapping[str, Array], base: Array | None) -> Array:
    """W (d_out, d_in), of a kind that cannot do without it.

    Raises:
        InputError: there is no base, its shape is another one, or the roles disagree.
    """
    if base is None:
        raise InputError(f"{kind.name} gives ΔW only with the base weight", hint="pass --base MODEL")
    sizes = kind.dimensions({name: tuple(array.shape) for name, array in roles.items()})
    expected = sizes.get("d_out", base.shape[0]), sizes.get("d_in", base.shape[1])
    if tuple(base.shape) != expected:
        raise InputError("the base weight has another shape", found=tuple(base.shape), expected=expected)
    return base


@runtime_checkable
class Stored(Protocol):
    """An array that may still be on disk. `dtype` is safetensors' name: F32, BF16, F8_E4M3, ..."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    def read(self) -> np.ndarray:
        """The values in float64, in the native shape."""
        ...


@dataclass(frozen=True)
class Update:
    """The update of one module: a kind, its arrays (read when asked for) and its resolved scale.

    Attributes:
        name: the module's path in the base model, `model.layers.0.self_attn.q_proj`.
        kind: the kind's registered name.
        roles: arrays by role name, in the kind's shapes.
        scale: α/r, α/√r, ..., resolved by the reader.
        transposed: the base stores this weight as (d_in, d_out).
        embedding: the module is an embedding, of which d_in is the vocabulary.
        kernel: of a convolution, the kernel's sides; its input axis is then c_in · product(kernel).
        base_weight: the parameter's name in the base checkpoint, where it is not `name + ".weight"`.
        expert: of a fused expert parameter, which slice of its first axis.
        notes: what the reader wants said about this module.
        bias: what the update adds to the layer's bias besides, (d_out,), before `scale` multiplies it.
    """

    name: str
    kind: str
    roles: Mapping[str, Stored]
    scale: float = 1.0
    transposed: bool = False
    kernel: tuple[int, ...] = ()
    base_weight: str | None = None
    expert: int | None = None
    notes: tuple[str, ...] = field(default=())
    embedding: bool = False
    bias: Stored | None = None

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(stored.shape) for name, stored in self.roles.items()}

    @property
    def shape(self) -> tuple[int, int]:
        return kinds.get(self.kind).shape(self._shapes)

    @property
    def sides(self) -> tuple[int | None, int | None]:
        """d_out and d_in, None where only the base says one."""
        sizes = kinds.get(self.kind).dimensions(self._shapes)
        return sizes.get("d_out"), sizes.get("d_in")

    @property
    def rank(self) -> int | None:
        return kinds.get(self.kind).rank(self._shapes)

    @property
    def needs_base(self) -> bool:
        return kinds.get(self.kind).needs_base

    @property
    def has_direction(self) -> bool:
        """Whether the file alone gives a low-rank part s·B·A of this update (DoRA's direction)."""
        return kinds.get(self.kind).has_direction and "A" in self.roles

    def excess(self, base: Stored | None = None) -> str | None:
        """Why the update's arrays are too large to be held, in words; None where they are not.

        Judged by shapes alone: a small file can announce what no machine can hold.
        """
        kind, shapes = kinds.get(self.kind), self._shapes
        most = kind.largest(shapes)
        if base is not None and kind.needs_base:
            most = max(most, math.prod(base.shape))
        if "A" in shapes and (rank := shapes["A"][0]) > MAX_RANK:
            return f"its rank of {rank:,} is more than the {MAX_RANK:,} that lorascope decomposes"
        for name, stored in self.roles.items():
            if math.prod(stored.shape) > max(MAX_EXPANDED, 4 * _entries(stored)):
                return f"{name} is too large to write out: {tuple(stored.shape)}, of {_entries(stored):,} entries"
        if most > MAX_ENTRIES:
            return f"too large to decompose: an array of {most:,} entries, and {MAX_ENTRIES:,} are the most"
        return None

    def read(self) -> dict[str, np.ndarray]:
        """All roles as float64 arrays. InputError where they are too large to be held."""
        if (reason := self.excess()) is not None:
            raise InputError(f"{self.name}: {reason}")
        with np.errstate(over="ignore", invalid="ignore"):  # the analyses say what is not finite
            return {name: stored.read() for name, stored in self.roles.items()}

    def delta(self, base: np.ndarray | None = None) -> Matrix:
        """ΔW in float64. `base` is W as (d_out, d_in)."""
        roles = self.read()
        with np.errstate(over="ignore", invalid="ignore"):
            return kinds.get(self.kind).delta(roles, self.scale, base)


def _entries(stored: Any) -> int:
    """How many entries an array was made from: it may be a view of others that repeats them, or fills in zeros."""
    source = getattr(stored, "source", None)
    sources = getattr(stored, "sources", ()) if source is None else (source,)
    return sum(map(_entries, sources)) if sources else math.prod(stored.shape)


def stored_numbers(stored: Any) -> int:
    """How many numbers the file holds of an array, which may be spread out or multiplied out; indices are not
    counted."""
    if (numbers := getattr(stored, "numbers", None)) is not None:
        return int(numbers)
    source = getattr(stored, "source", None)
    sources = getattr(stored, "sources", ()) if source is None else (source,)
    if sources:
        return min(math.prod(stored.shape), sum(map(stored_numbers, sources)))
    return 0 if stored.dtype in ("I32", "I64") else math.prod(stored.shape)


def dense(delta: Matrix) -> Array:
    """ΔW multiplied out, whatever form it has: for merging and for small oracles."""
    return delta.dense()


__all__ = ["Factored", "Kind", "Role", "Stored", "Update", "bind", "dense", "kinds", "needed", "stored_numbers"]
