"""tuned − base: which parameters of two checkpoints belong together, and their difference, one at a time.

Everything is accounted for: a parameter is in a pair, or listed with the reason why it is not. Only one difference is
in memory at a time, and of the two weights it is made of only some rows: a pair of 7B models needs no 2 × 14 GB.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from lorascope.architectures import (
    FUSED_CONV1D,
    experts_transposed,
    is_conv1d,
    is_embedding,
    is_vocabulary,
    looks_like_conv1d,
)
from lorascope.errors import InputError, preview
from lorascope.linalg.noise import Rounding
from lorascope.linalg.rounding import UNIT_ROUNDOFF, unit_roundoff
from lorascope.updates.base import Stored, Update, dense
from lorascope.weights.adapter import Adapter, Skipped
from lorascope.weights.checkpoint import ABSENT, NO_BIAS, Checkpoint
from lorascope.weights.formats.peft.tokens import TOKENS
from lorascope.weights.quantised import Unreadable, scheme_of
from lorascope.weights.tensors import InMemory, Mapped, first_rows, reshaped, transposed
from lorascope.weights.trained_rows import row_updates

DEQUANTISED = "dequantised from"
_PIECE = 1 << 20  # entries of either weight in memory at a time


@dataclass(frozen=True)
class Pair:
    """One parameter as both sides have it.

    Attributes:
        name: the module's path in the base, or the parameter's own name where it is not a module's `weight`.
        parameter: the base's name of the parameter.
        base: as stored.
        tuned: as stored, of the same shape; None where `update` gives ΔW itself.
        shape: (d_out, d_in) of the map; (d,) of a vector.
        transposed: the base stores the map as (d_in, d_out).
        embedding: the map is an embedding, of which d_in is the vocabulary.
        kernel: of a convolution, the kernel's sides.
        expert: of a fused expert parameter, which slice of its first axis.
        maybe_transposed: square, in a pair of checkpoints of which one stores such maps transposed: the numbers decide.
        update: where the tuned side is an adapter file: its update of this module.
        notes: what should be said about this parameter.
    """

    name: str
    parameter: str
    base: Stored
    tuned: Stored | None
    shape: tuple[int, ...]
    transposed: bool = False
    embedding: bool = False
    kernel: tuple[int, ...] = ()
    expert: int | None = None
    maybe_transposed: bool = False
    update: Update | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_vector(self) -> bool:
        """Whether it has no spectrum worth the name: a bias, a norm's weight, a map of one input or output."""
        return min(self.shape, default=1) == 1 or len(self.shape) < 2

    @property
    def tuned_dtype(self) -> str:
        if self.tuned is not None:
            return self.tuned.dtype
        assert self.update is not None
        return max((stored.dtype for stored in self.update.roles.values()), key=unit_roundoff)


@dataclass(frozen=True)
class Matched:
    """Every parameter of both sides: in a pair, or not, and why."""

    pairs: tuple[Pair, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class Difference:
    """ΔW of one pair.

    Attributes:
        matrix: (d_out, d_in) in float64; of a vector (1, d).
        base_norm: ‖W‖_F.
        non_finite: how many entries are NaN or infinite, on either side.
        rounding: what storing the tuned weight did; None where the file gives ΔW itself.
        base_rounding: what storing the base did, where its dtype is the coarser one: it is in ΔW only if the tuning
            started from a finer copy of the base than this file.
        notes: the pair's, and what only the numbers told.
    """

    matrix: np.ndarray
    base_norm: float
    non_finite: int
    rounding: Rounding | None = None
    base_rounding: Rounding | None = None
    notes: tuple[str, ...] = ()


def match(base: Checkpoint, tuned: Checkpoint | Adapter) -> Matched:
    """Which parameters belong together, by their names (whatever prefix either side has) and their shapes.

    Tied weights are compared once. Embeddings and heads of different vocabularies are compared in the rows that both
    have. Maps that only one side stores transposed (Conv1D) are transposed back.

    Raises:
        InputError: the two have no parameter in common.
    """
    matched = _match_adapter(base, tuned) if isinstance(tuned, Adapter) else _Matching(base, tuned).run()
    if not matched.pairs:
        if isinstance(tuned, Adapter) and not (tuned.updates or tuned.saved or tuned.rows):
            raise InputError(f"{tuned.source.path or 'the adapter'} has no weight update", found=tuned.source.method)
        theirs = list(tuned.updates) if isinstance(tuned, Adapter) else tuned.names()
        why = next((item for item in matched.skipped if item.reason not in (ABSENT, NO_BIAS)), None)
        if isinstance(tuned, Adapter) and why is not None:
            raise InputError(
                f"no weight of the adapter can be compared with {base.path}", found=f"{why.name}: {why.reason}"
            )
        raise InputError(
            "the two checkpoints have no parameter in common",
            found=f"{preview(base.names(), 2)} and {preview(theirs, 2)}",
            hint="give the base model that the other was tuned from",
        )
    return matched


class _Matching:
    """One pass over the tuned names, then over what the base has left."""

    def __init__(self, base: Checkpoint, tuned: Checkpoint):
        self.base, self.tuned = base, tuned
        self.pairs: list[Pair] = []
        self.skipped: list[Skipped] = []
        self.partner: dict[str, str] = {}  # the tuned name by the base's
        self.stores_transposed = _Transposed(base)

    def run(self) -> Matched:
        base_names = {name: self.base.resolve(name) for name in self.tuned.stored}
        # A tie counts only where the name itself is not there.
        for name in sorted(base_names, key=lambda name: _tied(name, base_names[name])):
            self._tuned(name, base_names[name])
        for name in self.base.stored:
            if name not in self.partner:
                self._left(name)
        any_transposed = any("stored transposed" in note for pair in self.pairs for note in pair.notes)
        order = {name: i for i, name in enumerate(self.base.stored)}
        pairs = sorted(self.pairs, key=lambda pair: (order[pair.parameter], pair.expert or 0))
        return Matched(tuple(_ask_numbers(p) if any_transposed else p for p in pairs), tuple(self.skipped))

    def _skip(self, name: str, reason: str) -> None:
        self.skipped.append(Skipped(name, reason))

    def _tuned(self, name: str, of_base: str | None) -> None:
        stored = self.tuned.stored[name]
        if why := _no_weight(stored):
            if of_base is not None:
                self.partner.setdefault(of_base, name)
            self._skip(name, why)
        elif of_base is None:
            self._skip(name, "only in the tuned checkpoint")
        elif of_base in self.partner and _same(stored, self.tuned.stored[self.partner[of_base]]):
            self._skip(name, f"tied: the same numbers as {self.partner[of_base]}, and counted there")
        else:
            tie = (f"tied in the base: compared with its {of_base}",) if _tied(name, of_base) else ()
            self._pair(of_base, self.base.stored[of_base], name, tie, label=name if tie else of_base)

    def _left(self, name: str) -> None:
        """A parameter of the base that no tuned name led to."""
        if why := _no_weight(self.base.stored[name]):
            self._skip(name, why)
            return
        partner = self.tuned.resolve(name)
        if partner is None or not _tied(name, partner):
            self._skip(name, "only in the base")
            return
        twin = next((first for first, other in self.partner.items() if other == partner), None)
        if twin is not None and _same(self.base.stored[name], self.base.stored[twin]):
            self._skip(name, f"tied: the same numbers as {twin}, and counted there")
        else:
            note = f"tied in the tuned checkpoint: its {partner}"
            self._pair(name, self.base.stored[name], partner, (note,), label=name)

    def _pair(self, name: str, base: Stored, tuned_name: str, notes: tuple[str, ...], label: str) -> None:
        tuned = self.tuned.stored[tuned_name]
        self.partner.setdefault(name, tuned_name)
        if why := _no_weight(base):
            self._skip(name, why)
            return
        fitted = _fitted(name, base, tuned)
        if fitted is None:
            shapes = f"{list(base.shape)} in the base and {list(tuned.shape)} in the tuned checkpoint"
            self._skip(name, f"has other shapes: {shapes}")
            return
        base, tuned, note = fitted
        notes = (*notes, *_dequantised(("base", base), ("tuned checkpoint", tuned)))
        pairs = _pairs_of(label, base, tuned, (*notes, *note), self.stores_transposed)
        self.pairs += (replace(pair, parameter=name) for pair in pairs)


def _dequantised(*sides: tuple[str, Stored]) -> tuple[str, ...]:
    """What to say of weights that were stored in codes: the error of coding them is in the difference."""
    decoded = [(side, scheme) for side, stored in sides if (scheme := scheme_of(stored)) is not None]
    return tuple(f"{DEQUANTISED} {scheme} in the {side}: ΔW holds the error of that coding" for side, scheme in decoded)


def _no_weight(stored: Stored) -> str | None:
    """Why a stored tensor is not a weight; None where it is one."""
    if isinstance(stored, Unreadable):
        return stored.reason
    return None if stored.dtype in UNIT_ROUNDOFF else _integers(stored)


def _integers(stored: Stored) -> str:
    return f"holds {stored.dtype}: positions, masks or quantised codes, no weights"


def _tied(name: str, other: str | None) -> bool:
    """Whether two names are of different modules, so that only a tie can have led from one to the other."""
    return other is not None and name.split(".")[-2:][0] != other.split(".")[-2:][0]


@dataclass(frozen=True)
class _Transposed:
    """Which maps the base stores as (d_in, d_out): by its config, else by GPT-2's own shapes."""

    base: Checkpoint

    @cached_property
    def _three_wide(self) -> bool:
        return any(
            name.endswith(f"{FUSED_CONV1D}.weight")
            and len(stored.shape) == 2
            and stored.shape[1] == 3 * stored.shape[0]
            for name, stored in self.base.stored.items()
        )

    def __call__(self, module: str) -> bool:
        conv1d = is_conv1d(module, self.base.config)
        return bool(conv1d) or (self._three_wide and looks_like_conv1d(module))

    @property
    def experts(self) -> bool:
        return bool(experts_transposed(self.base.config))


def _fitted(name: str, base: Stored, tuned: Stored) -> tuple[Stored, Stored, tuple[str, ...]] | None:
    """Both in one shape, and what had to be done for it; None where they cannot be compared."""
    a, b = tuple(base.shape), tuple(tuned.shape)
    if a == b:
        return base, tuned, ()
    module = name.rpartition(".")[0]
    grows = bool(a) and len(a) == len(b) and a[1:] == b[1:]
    if grows and is_vocabulary(module):
        both = min(a[0], b[0])
        what = f"resized from {a[0]} to {b[0]} rows: the first {both} are compared"
        return first_rows(base, both), first_rows(tuned, both), (what,)
    if len(a) == 2 and a == b[::-1]:
        return base, transposed(tuned), ("stored transposed in the tuned checkpoint: transposed back",)
    return None


def _pairs_of(name: str, base: Stored, tuned: Stored, notes: tuple[str, ...], stores: _Transposed) -> Iterator[Pair]:
    """The pair of one parameter, or of each expert that is fused in it."""
    module = name.removesuffix(".weight")
    shape = tuple(size for size in base.shape if size != 1) if len(base.shape) != 2 else tuple(base.shape)
    if len(shape) == 3 and "expert" in name:
        for expert in range(shape[0]):
            one, other = _slice(base, expert), _slice(tuned, expert)
            sides = tuple(one.shape)[::-1] if stores.experts else tuple(one.shape)
            yield Pair(f"{module}[{expert}]", name, one, other, sides, stores.experts, expert=expert, notes=notes)
    elif len(shape) < 2:
        yield Pair(module, name, base, tuned, shape, notes=notes)
    else:
        matrix = (base.shape[0], math.prod(base.shape[1:])) if len(base.shape) > 2 and base.shape[0] > 1 else shape
        embedding = len(base.shape) == 2 and name.endswith(".weight") and is_embedding(module)
        transposed = embedding or (len(base.shape) == 2 and stores(module))
        kernel = tuple(base.shape[2:]) if len(base.shape) > 2 and base.shape[0] > 1 else ()
        sides = matrix[::-1] if transposed else matrix
        yield Pair(module, name, base, tuned, sides, transposed, embedding, kernel, notes=notes)


def _ask_numbers(pair: Pair) -> Pair:
    square = len(pair.base.shape) == 2 and pair.base.shape[0] == pair.base.shape[1]
    return replace(pair, maybe_transposed=square and not pair.embedding)


def _match_adapter(base: Checkpoint, adapter: Adapter) -> Matched:
    """Each update of an adapter file, trained rows among them, and each tensor saved whole that the base has alike."""
    pairs, rows = [], row_updates(adapter, base)
    skipped = [item for item in adapter.skipped if item.reason != TOKENS]
    skipped += [one for one in rows if isinstance(one, Skipped)]
    for update in (*adapter.updates.values(), *(one for one in rows if isinstance(one, Update))):
        weight = base.lookup(update)
        if isinstance(weight, str):
            skipped.append(Skipped(update.name, weight))
            continue
        path = update.base_weight or update.name
        tuned = update.roles["tuned"] if update.kind == "tuned" and update.scale == 1 else None
        shape = tuple(weight.shape) if min(weight.shape) > 1 else (max(weight.shape),)
        pairs.append(
            Pair(
                update.name, base.resolve(path) or path, weight, tuned, shape, update.transposed, update.embedding,
                update.kernel, update.expert, False, update, _dequantised(("base", base.find(path) or weight)),
            )
        )  # fmt: skip
    for name, stored in adapter.saved.items():
        base_name = base.resolve(name) if name not in adapter.non_weight_tensors else None
        if base_name is None or tuple(base.stored[base_name].shape) != tuple(stored.shape):
            skipped.append(Skipped(name, adapter.non_weight_tensors.get(name, "only in the tuned file")))
        else:
            pairs += _pairs_of(base_name, base.stored[base_name], stored, ("saved whole",), _Transposed(base))
    return Matched(tuple(pairs), tuple(skipped))


# --- the numbers ------------------------------------------------------------------------------------------------------


def difference(pair: Pair) -> Difference:
    """ΔW of one pair, read in pieces; memory is that of ΔW in float64 and no more where both lie in files."""
    if pair.tuned is None:
        return _of_update(pair)
    notes = pair.notes
    tuned = pair.tuned
    if pair.maybe_transposed:
        base, other = pair.base.read(), tuned.read()
        if np.linalg.norm(other.T - base) < np.linalg.norm(other - base):
            notes = (*notes, "stored transposed in the tuned checkpoint: transposed back (the numbers say so)")
            other = other.T
        tuned = InMemory(other, tuned.dtype)
    rows, columns = (math.prod(pair.base.shape[:-1]), pair.base.shape[-1]) if pair.base.shape else (1, 1)
    if len(pair.shape) == 2 and pair.kernel:
        rows, columns = pair.shape
    matrix = np.empty((rows, columns))
    rounding = Rounding(rows, columns, pair.tuned_dtype)
    coarser = unit_roundoff(pair.base.dtype) > unit_roundoff(pair.tuned_dtype)
    base_rounding = Rounding(rows, columns, pair.base.dtype) if coarser else None
    energy, broken = 0.0, 0
    for start, w, t in _pieces(pair.base, tuned, rows, columns):
        with np.errstate(invalid="ignore", over="ignore"):
            np.subtract(t, w, out=matrix[start : start + len(w)])
        bad = ~(np.isfinite(w) & np.isfinite(t))
        broken += int(bad.sum())
        if broken:
            continue
        energy += float(np.vdot(w, w))
        moved = t != w
        rounding.add(start, t, moved)
        if base_rounding is not None:
            base_rounding.add(start, w, moved)
    as_stored = pair.transposed and not pair.is_vector and pair.update is None
    return Difference(matrix.T if as_stored else matrix, math.sqrt(energy), broken, rounding, base_rounding, notes)


def base_matrix(pair: Pair) -> np.ndarray:
    """W of one pair as the map (d_out, d_in), in float64."""
    if pair.update is not None or pair.is_vector:
        return pair.base.read()
    matrix = pair.base.read().reshape(pair.shape[::-1] if pair.transposed else pair.shape)
    return matrix.T if pair.transposed else matrix


def _of_update(pair: Pair) -> Difference:
    """ΔW as an adapter's own formula gives it."""
    assert pair.update is not None
    base = pair.base.read()
    matrix = np.ascontiguousarray(dense(pair.update.delta(base)), dtype=np.float64)
    broken = int(matrix.size - np.isfinite(matrix).sum())
    return Difference(matrix, float(np.linalg.norm(base)), broken, notes=(*pair.notes, *pair.update.notes))


def _pieces(base: Stored, tuned: Stored, rows: int, columns: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Rows of both as (start, W (k, columns), T (k, columns)), about _PIECE entries at a time."""
    first = base.shape[0] if len(base.shape) > 1 else 1
    per = rows // first if first else 1  # rows of the matrix in one step of the first axis
    step = max(1, _PIECE // max(1, per * columns))
    read_base, read_tuned = _rows_of(base, columns), _rows_of(tuned, columns)
    for start in range(0, first, step):
        stop = min(first, start + step)
        yield start * per, read_base(start, stop), read_tuned(start, stop)


def _rows_of(stored: Stored, columns: int) -> Callable[[int, int], np.ndarray]:
    """Reads steps of the first axis as rows of `columns` entries: from the file where it allows that."""
    rows = getattr(stored, "rows", None)
    if rows is not None and len(stored.shape) > 1:
        return lambda start, stop: rows(start, stop).read().reshape(-1, columns)
    whole = stored.read()
    if len(stored.shape) < 2:
        return lambda start, stop: whole.reshape(1, columns)
    return lambda start, stop: whole[start:stop].reshape(-1, columns)


def _slice(stored: Stored, index: int) -> Stored:
    """One step of the first axis, without the axis."""
    rest = tuple(stored.shape[1:])
    rows: Any = getattr(stored, "rows", None)
    if rows is None:
        return Mapped(stored, rest, lambda values: values[index])
    one = rows(index, index + 1)
    if hasattr(one, "offset"):
        return replace(one, shape=rest)
    return replace(one, tensor=one.tensor[0]) if hasattr(one, "tensor") else reshaped(one, *rest)


def _same(one: Stored, other: Stored) -> bool:
    """Whether two stored arrays hold the same numbers."""
    if tuple(one.shape) != tuple(other.shape):
        return False
    columns = math.prod(one.shape[1:]) if len(one.shape) > 1 else math.prod(one.shape)
    rows = one.shape[0] if len(one.shape) > 1 else 1
    return all(np.array_equal(a, b, equal_nan=True) for _, a, b in _pieces(one, other, rows, columns))
