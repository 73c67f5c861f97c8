"""Modules of image models under one scheme: what one adapter keeps in one matrix and another in several is cut apart.

The rows of query, key and value are compared each with its own: ΔW of a fused projection is the stack of its parts, and
a part of s·B·A is s·B'·A with the part's rows B' of B, the same A. A cut or a turn is made only where two adapters
differ there; both are exact.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lorascope.architectures.image import Place, place
from lorascope.errors import InputError
from lorascope.updates.base import Stored, Update, kinds
from lorascope.weights.names import plain
from lorascope.weights.tensors import Mapped

# Kinds of which some rows of ΔW are made of these rows of the roles (d_out, ...), and of all the other roles.
NOT_CUT = "its rows are those of several modules of another adapter, and it cannot be cut"
BY_ROWS = ("low_rank", "triplet", "vera", "core", "hadamard", "dense", "magnitude")


@dataclass(frozen=True)
class Known:
    """An update and what tells that another one is of the same module, whatever the scheme of its names."""

    update: Update
    key: str


def in_one_scheme(adapters: Mapping[int, Sequence[Update]]) -> dict[int, list[Known]]:
    """The updates of each adapter with their keys: cut, and turned, where adapters differ in that."""
    places = {k: [_placed(update) for update in updates] for k, updates in adapters.items()}
    differing = _differing([placed for each in places.values() for placed in each if placed is not None])
    found = {}
    for number, updates in adapters.items():
        pieces = [_known(update, where, differing) for update, where in zip(updates, places[number], strict=True)]
        found[number] = _told_apart(updates, pieces)
    return found


def _known(update: Update, where: Place | None, differing: set[str]) -> list[Known]:
    """The update with its key, or its parts with theirs."""
    if where is None:
        return [Known(update, f"= {update.name}")]
    cut = bool(differing & set(where.parts))
    if cut and (pieces := _pieces(update, where)) is not None:
        return pieces
    if cut and len(where.parts) > 1:
        update = replace(update, notes=(*update.notes, f"{NOT_CUT}: a {update.kind} update is not made of rows"))
    key = flat_name("+".join(where.parts)) + ("#swapped" if cut and where.swapped else "")
    return [Known(update, _with_expert(key, update))]


def _told_apart(updates: Sequence[Update], several: Sequence[list[Known]]) -> list[Known]:
    """One adapter's updates by their pieces; where two of them have one key, each is whole, and known by its name."""
    counts = Counter(piece.key for pieces in several for piece in pieces)
    kept: list[Known] = []
    for update, pieces in zip(updates, several, strict=True):
        clear = all(counts[piece.key] == 1 for piece in pieces)
        kept += pieces if clear else [Known(update, f"= {update.name}")]
    return kept


def _placed(update: Update) -> Place | None:
    """Where the module lies, in flat names; None where its shape does not divide so."""
    where = place(plain(update.name))
    if where.swapped_if_two or len(where.parts) > 1:
        try:
            d_out, d_in = update.shape
        except InputError:  # of a rotation only the base knows it
            return where
        if where.sizes(d_out, d_in) is None:
            return None
        where = replace(where, swapped=where.swapped or (where.swapped_if_two and d_out == 2 * d_in))
    return where


def _differing(places: Sequence[Place]) -> set[str]:
    """Parts which two of these places hold in different company, or the other way round."""
    company: dict[str, set[tuple[tuple[str, ...], bool]]] = {}
    for where in places:
        for part in where.parts:
            company.setdefault(flat_name(part), set()).add((tuple(map(flat_name, where.parts)), where.swapped))
    differ = {part for part, held in company.items() if len(held) > 1}
    while True:  # whatever is cut is cut into all of its parts
        more = {
            each
            for part in differ
            for held, _ in company[part]
            for each in held
            if len(held) > 1 and each not in differ
        }
        if not more:
            break
        differ |= more
    return {part for where in places for part in where.parts if flat_name(part) in differ}


def _pieces(update: Update, where: Place) -> list[Known] | None:
    """The update by its parts; None where it is one already, or its kind is not made of rows."""
    if len(where.parts) == 1 and not where.swapped:
        return None
    try:
        d_out, d_in = update.shape
    except InputError:
        return None
    sizes = where.sizes(d_out, d_in)
    if sizes is None:
        return None
    pieces, start = [], 0
    for part, size in zip(where.parts, sizes, strict=True):
        piece = rows_of(update, start, start + size) if len(sizes) > 1 else _turned(update)
        if piece is None:
            return None
        pieces.append(Known(replace(piece, name=part), _with_expert(flat_name(part), update)))
        start += size
    return pieces


def rows_of(update: Update, start: int, stop: int) -> Update | None:
    """The update of the rows `start` to `stop` of ΔW; None where its kind has none."""
    note = f"rows {start} to {stop - 1} of {update.name}"
    if update.kind == "kronecker":
        rows = kinds.get("kronecker").dimensions({name: tuple(each.shape) for name, each in update.roles.items()})["c"]
        if start % rows or stop % rows:
            return None
        name = "w1" if "w1" in update.roles else "w1_a"
        roles = {**update.roles, name: _cut(update.roles[name], start // rows, stop // rows)}
        return replace(update, roles=roles, bias=None, base_weight=None, notes=(*update.notes, note))
    return _by_rows(update, lambda stored: _cut(stored, start, stop), note)


def _turned(update: Update) -> Update | None:
    """The update with the two halves of its rows in the other order."""

    def turn(stored: Stored) -> Stored:
        return Mapped(stored, tuple(stored.shape), lambda values: np.roll(values, len(values) // 2, axis=0))

    if update.shape[0] % 2:
        return None
    return _by_rows(update, turn, f"the halves of the rows of {update.name}, which are the other way round")


def _by_rows(update: Update, change: Callable[[Stored], Stored], note: str) -> Update | None:
    if update.kind not in BY_ROWS:
        return None
    kind = kinds.get(update.kind)
    roles = {
        name: change(stored) if kind.roles[name].shape[0] == "d_out" else stored
        for name, stored in update.roles.items()
    }
    return replace(update, roles=roles, bias=None, base_weight=None, notes=(*update.notes, note))


def _cut(stored: Stored, start: int, stop: int) -> Stored:
    """Rows of a stored array, without reading the others where the file allows that."""
    rows = getattr(stored, "rows", None)
    if rows is not None:
        return rows(start, stop)
    return Mapped(stored, (stop - start, *stored.shape[1:]), lambda values: values[start:stop])


def _with_expert(key: str, update: Update) -> str:
    return key if update.expert is None else f"{key}_{update.expert}"


def flat_name(name: str) -> str:
    """A name in which dots and underscores are one."""
    return name.replace(".", "_")
