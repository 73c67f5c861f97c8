"""The frozen result: records, totals over modules, JSON and table."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

import lorascope
from lorascope.analyses.delta import findings as words
from lorascope.analyses.delta import page
from lorascope.analyses.delta.matrix import RANKS, MatrixDelta, VectorDelta
from lorascope.blocks import Block, Finding
from lorascope.weights.adapter import Adapter, Skipped

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1


@dataclass(frozen=True)
class Side:
    """A file that was read: its path, the hash of its weights, and for an adapter the label it goes by and what its
    reader wants said."""

    path: str
    sha256: str | None
    label: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DeltaResult:
    """tuned − base.

    Attributes:
        matrices: one record for each matrix that both sides have, in the base's order.
        vectors: one for each bias, norm's weight and the like.
        adapters: what was set beside ΔW.
        unmatched: every parameter that is in neither list, and why.
        top: how many leading singular values were computed; None where all were.
        extract: the rank of `extracted`, the best adapter of that rank; `left_out` is what changed and is not in it.
    """

    matrices: tuple[MatrixDelta, ...]
    vectors: tuple[VectorDelta, ...]
    base: Side
    tuned: Side
    adapters: tuple[Side, ...] = ()
    unmatched: tuple[Skipped, ...] = ()
    top: int | None = None
    extract: int | None = None
    left_out: tuple[Skipped, ...] = ()
    extracted: Adapter | None = None

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        return words.findings(self)

    @cached_property
    def changed(self) -> tuple[MatrixDelta, ...]:
        """The matrices with a ΔW that is finite and not zero."""
        return tuple(matrix for matrix in self.matrices if matrix.energy > 0)

    @cached_property
    def total_energy(self) -> float:
        """Σ‖ΔW‖_F² over matrices."""
        return sum(matrix.energy for matrix in self.matrices)

    def energy_share(self, matrix: MatrixDelta) -> float | None:
        return matrix.energy / self.total_energy if self.total_energy > 0 else None

    def best(self, matrices: Iterable[MatrixDelta] | None = None) -> dict[str, float]:
        """Share of Σ‖ΔW‖² that rank k in every matrix keeps at best, by k; lower bounds where `top` cut the list."""
        chosen = self.changed if matrices is None else tuple(matrices)
        total = sum(matrix.energy for matrix in chosen)
        most = self.top or max((len(m.singular_values or ()) for m in chosen), default=0)
        ranks = [k for k in RANKS if k <= most]
        return {str(k): min(sum(m.kept(k) for m in chosen) / total, 1.0) for k in ranks} if total else {}

    def captured(self, label: str) -> dict[str, Any]:
        """One adapter against all of ΔW: energy-weighted over the matrices that it adapts, and its share of all."""
        pairs = [(m, m.captured[label]) for m in self.changed if label in m.captured]
        covered = sum(m.energy for m, _ in pairs)
        if covered == 0:
            return {"matrices": 0}

        def mean(key: str) -> float | None:
            if any(c.get(key) is None for _, c in pairs):
                return None
            return sum(m.energy * c[key] for m, c in pairs) / covered

        own = sum(c["frobenius_norm"] ** 2 for _, c in pairs)
        inner = sum((c["cosine"] or 0.0) * c["frobenius_norm"] * (m.frobenius_norm or 0.0) for m, c in pairs)
        return {
            "matrices": len(pairs),
            "energy_share": covered / self.total_energy,
            "frobenius_norm": own**0.5,
            **{key: mean(key) for key in ("left", "right", "both", "best")},
            "chance": {
                key: sum(m.energy * c["chance"][key] for m, c in pairs if "chance" in c) / covered
                for key in ("left", "right", "both")
            },
            "cosine": inner / (own * covered) ** 0.5 if own else None,
            "cosine_chance": sum(m.energy * c["frobenius_norm"] ** 2 * c["cosine_chance"] ** 2 for m, c in pairs) ** 0.5
            / (own * covered) ** 0.5
            if own
            else None,
            "residual": 1 + (own - 2 * inner) / covered,
        }

    def table(self) -> "pd.DataFrame":
        """One row per matrix, nested records flattened with dots, singular values left out."""
        import pandas as pd

        return pd.DataFrame(self.flat_rows())

    def flat_rows(self) -> list[dict[str, Any]]:
        """The table's rows, and after them the vectors'."""
        matrices = [{"kind": "matrix", **_flat(self._record(matrix))} for matrix in self.matrices]
        return matrices + [{"kind": "vector", **_flat(asdict(vector))} for vector in self.vectors]

    def summary(self) -> dict[str, Any]:
        def median(values: Iterable[Any]) -> float | None:
            known = [value for value in values if value is not None]
            return float(np.median(known)) if known else None

        w = sum(m.base_norm**2 for m in self.matrices if m.base_norm and not m.non_finite)
        rank_of = {"noise_floor": "rank", "marchenko_pastur": "rank", "gavish_donoho": "rank", "permutation": "rank"}
        return {
            "matrices": len(self.matrices),
            "changed": len(self.changed),
            "vectors": len(self.vectors),
            "unmatched": len(self.unmatched),
            "frobenius_norm": self.total_energy**0.5,
            "relative_norm": (self.total_energy / w) ** 0.5 if w else None,
            "median_relative_norm": median(m.relative_norm for m in self.changed),
            "median_stable_rank": median(m.stable_rank for m in self.changed),
            "median_energy_rank": {s: median((m.energy_rank or {}).get(s) for m in self.changed) for s in _SHARES},
            "median_energy_rank_of_null": {
                s: median((m.energy_rank_of_null or {}).get(s) for m in self.changed) for s in _SHARES
            },
            "median_rank": {
                key: median((getattr(m, key) or {}).get(inner) for m in self.changed) for key, inner in rank_of.items()
            },
            "best": self.best(),
            "captured": {side.label: self.captured(side.label) for side in self.adapters},
        }

    def to_json(self) -> dict[str, Any]:
        """Everything but the extracted factors; schema 1."""
        return {
            "schema": SCHEMA,
            "lorascope": lorascope.__version__,
            "base": _side(self.base),
            "tuned": _side(self.tuned),
            "adapters": [asdict(side) for side in self.adapters],
            "top": self.top,
            "summary": self.summary(),
            "matrices": [self._record(matrix) for matrix in self.matrices],
            "vectors": [asdict(vector) for vector in self.vectors],
            "unmatched": [asdict(item) for item in self.unmatched],
            "extracted": None
            if self.extract is None
            else {"rank": self.extract, "left_out": [asdict(item) for item in self.left_out]},
            "findings": [{"severity": f.severity, "module": f.module, "text": f.text} for f in self.findings],
        }

    def _record(self, matrix: MatrixDelta) -> dict[str, Any]:
        return {**asdict(matrix), "energy_share": self.energy_share(matrix)}

    def blocks(self) -> tuple[Block, ...]:
        return page.blocks(self)


_SHARES = ("0.9", "0.95", "0.99")


def _side(side: Side) -> dict[str, Any]:
    return {"path": side.path, "sha256": side.sha256}


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested records with dots between; lists of numbers left out, notes joined."""
    row: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            row |= _flat(value, f"{prefix}{key}.")
        elif key == "shape":
            row |= {"d_out": value[0], "d_in": value[1]}
        elif key == "notes":
            row[key] = "; ".join(value)
        elif not isinstance(value, (list, tuple)):
            row[prefix + key] = value
    return row
