"""One adapter's update of one module, as the subspaces that are compared."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lorascope.analyses.spectrum.module import PARTIAL, has_direction
from lorascope.linalg.factored import Factored
from lorascope.linalg.rounding import unit_roundoff
from lorascope.linalg.subspace import RANK_FLOOR, Bases, bases, row_basis
from lorascope.updates.base import Stored, Update, kinds

ROUNDING = 2.0  # times the unit roundoff of the stored dtype: what rank-deficient factors get from being stored
DIRECTIONS = 64  # of an update that is not low rank, so many leading ones make its subspace, and at most a quarter


@dataclass(frozen=True)
class Side:
    """An update in its bases.

    Attributes:
        directions: how many leading singular directions make the subspaces; all of a low-rank update.
        a_alone: the right-singular basis (n, k) and the singular values of A, where there is an A.
        rows: A as stored, (r, d_in).
    """

    update: Update
    shape: tuple[int, int]
    bases: Bases
    directions: int
    a_alone: tuple[np.ndarray, np.ndarray] | None
    rows: np.ndarray | None
    notes: tuple[str, ...]

    def single(self, most_row_entries: int) -> "Side":
        """The same in float32, with no more than so many entries of A's leading rows: one of very many."""
        found = self.bases
        left, sigma, right = (one.astype(np.float32) for one in (found.left, found.sigma, found.right))
        rows = self.rows
        if rows is not None:
            rows = rows[: max(1, most_row_entries // rows.shape[1])].astype(np.float32)
        return replace(self, bases=Bases(left, sigma, right), rows=rows)


def read(update: Update, base: Stored | None, directions: int = DIRECTIONS, with_a: bool = True) -> Side | str:
    """The update in its bases, or a sentence on why it has none.

    Args:
        base: W as (d_out, d_in), or None.
        directions: how many leading directions an update counts that is not low rank.
        with_a: whether A alone is wanted as well.
    """
    kind: Any = kinds.get(update.kind)
    if kind.needs_base and base is None and not has_direction(update):
        return f"ΔW of a {update.kind} update depends on W: pass --base"
    roles, notes = update.read(), update.notes
    if kind.needs_base and base is None:
        delta, notes = kind.direction(roles, update.scale), (*notes, PARTIAL)
    else:
        delta = kind.delta(roles, update.scale, base.read() if base is not None else None)
    tolerance = max(RANK_FLOOR, ROUNDING * max(unit_roundoff(stored.dtype) for stored in update.roles.values()))
    try:
        found = bases(delta, tolerance)
        alone = row_basis(roles["A"], tolerance) if with_a and "A" in roles else None
    except ValueError:
        return "its entries are NaN or infinite"
    shape = (int(delta.shape[0]), int(delta.shape[1]))
    whole = not isinstance(delta, Factored)
    kept = min(found.rank, directions, max(min(shape) // 4, 1)) if whole else found.rank
    rows = roles["A"] if "A" in roles and roles["A"].shape[1] == shape[1] else None
    return Side(update, shape, found, kept, alone, rows, notes)
