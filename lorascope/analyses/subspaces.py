"""One update of one module as its left and right singular subspaces: what `compare` and `against_base` work on."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lorascope.analyses.adapter_updates import PARTIAL
from lorascope.linalg.matrix import Matrix
from lorascope.linalg.rounding import unit_roundoff
from lorascope.linalg.subspace import RANK_FLOOR, Bases, bases, cosine, row_basis
from lorascope.updates.base import MAX_ENTRIES, Stored, Update, kinds
from lorascope.weights.caveats import STARTS_IN_W

ROUNDING = 2.0  # times the unit roundoff of the stored dtype: what rank-deficient factors get from being stored
MAX_SVD = 1024  # smaller side up to which a matrix that is not low rank is decomposed whole
RANDOMISED = "only the leading singular directions were computed (randomised block Krylov)"
MAX_FILLERS = 256
NON_FINITE = "its entries are NaN or infinite"
DIRECTIONS = 64  # of an update that is not low rank, so many leading ones make its subspace, and at most a quarter


@dataclass(frozen=True)
class Subspaces:
    """An update in its bases.

    Attributes:
        shape: (d_out, d_in) of ΔW.
        bases: the singular directions and values that are known.
        directions: how many leading singular directions make the subspaces; all of a low-rank update.
        a_alone: the right-singular basis (n, k) and the singular values of A, where there is an A.
        rows: A as stored, (r, d_in).
        whole: ΔW itself where the bases hold its leading directions only.
    """

    update: Update
    shape: tuple[int, int]
    bases: Bases
    directions: int
    a_alone: tuple[np.ndarray, np.ndarray] | None
    rows: np.ndarray | None
    notes: tuple[str, ...]
    whole: Matrix | None = None

    def norm(self) -> float:
        """‖ΔW‖_F."""
        return self.bases.norm() if self.whole is None else self.whole.frobenius_norm()

    def cosine(self, other: "Subspaces") -> float:
        """⟨ΔW, ΔW'⟩/(‖ΔW‖‖ΔW'‖), from whichever form each has; 0 where one is zero."""
        if self.whole is None and other.whole is None:
            return min(1.0, max(-1.0, cosine(self.bases, other.bases) or 0.0))
        if self.whole is None:
            inner = np.sum((self.bases.left.T @ other.whole).T * (self.bases.right * self.bases.sigma))
        elif other.whole is None:
            return other.cosine(self)
        else:
            inner = self.whole.inner(other.whole)
        return min(1.0, max(-1.0, float(inner) / self.norm() / other.norm()))

    def spectrum(self) -> np.ndarray:
        """The singular values; where only the leading ones are known, as few equal ones as can hold the rest follow."""
        sigma = self.bases.sigma
        rest = self.norm() ** 2 - float(np.sum(sigma**2))
        if self.whole is None or not len(sigma) or rest <= 0:
            return sigma
        count = min(int(np.ceil(rest / sigma[-1] ** 2)), MAX_FILLERS)
        return np.append(sigma, np.full(count, np.sqrt(rest / count)))

    def single(self, max_row_entries: int) -> "Subspaces":
        """The same in float32, with at most so many entries of A's leading rows: one of very many."""
        left, sigma, right = (each.astype(np.float32) for each in (self.bases.left, self.bases.sigma, self.bases.right))
        rows = self.rows
        if rows is not None:
            rows = rows[: max(1, max_row_entries // rows.shape[1])].astype(np.float32)
        return replace(self, bases=Bases(left, sigma, right), rows=rows)


def read(update: Update, base: Stored | None, directions: int = DIRECTIONS, with_a: bool = True) -> Subspaces | str:
    """The update in its bases, or a sentence on why it has none.

    Args:
        base: W as (d_out, d_in), or None.
        directions: how many leading directions an update counts that is not low rank.
        with_a: also decompose A alone.
    """
    kind: Any = kinds.get(update.kind)
    if kind.needs_base and base is None and (update.kind in STARTS_IN_W or not update.has_direction):
        return f"ΔW of a {update.kind} update depends on W: pass --base"
    roles, notes = update.read(), update.notes
    if kind.needs_base and base is None:
        delta, notes = kind.direction(roles, update.scale), (*notes, PARTIAL)
    else:
        delta = kind.delta(roles, update.scale, base.read() if base is not None else None)
    tolerance = max(RANK_FLOOR, ROUNDING * max(unit_roundoff(stored.dtype) for stored in update.roles.values()))
    shape = (int(delta.shape[0]), int(delta.shape[1]))
    low_rank = delta.factors() is not None
    leading = min(directions, max(min(shape) // 4, 1))
    whole = None
    if not low_rank and math.prod(shape) > MAX_ENTRIES:
        return f"too large to compare: {shape[0]:,} × {shape[1]:,} entries, and no product of two factors"
    try:
        if low_rank or min(shape) <= MAX_SVD:
            decomposed = bases(delta, tolerance)
        else:
            whole, decomposed = delta, _leading(delta, leading, tolerance)
            notes = notes if delta.structured else (*notes, RANDOMISED)
        alone = row_basis(roles["A"], tolerance) if with_a and "A" in roles else None
    except ValueError:
        return NON_FINITE
    counted = decomposed.rank if low_rank else min(decomposed.rank, leading)
    rows = roles["A"] if "A" in roles and roles["A"].shape[1] == shape[1] else None
    return Subspaces(update, shape, decomposed, counted, alone, rows, notes, whole)


def _leading(delta: Matrix, count: int, tolerance: float) -> Bases:
    u, s, vh = delta.leading(count)
    kept = int(np.sum(s > tolerance * s[0]))
    return Bases(u[:, :kept], s[:kept], vh[:kept].T)
