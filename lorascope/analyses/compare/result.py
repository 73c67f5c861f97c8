"""What a comparison gives: pairs with one record for each module, matrices over all pairs, groups."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lorascope.analyses.base import Result
from lorascope.analyses.compare.matrices import Matrices, within_and_between
from lorascope.analyses.toolkit import Row, flat
from lorascope.weights.adapter import Skipped

MAX_SUMMARIES = 4000  # pairs in the summary
_OF_BOTH = ("rank", "dims", "frobenius_norm", "kind")  # one value of either adapter


@dataclass(frozen=True)
class Pair:
    """Two adapters: their indices, one record for each module (None where there are too many pairs), the summary."""

    a: int
    b: int
    modules: tuple[Row, ...] | None
    summary: Row


@dataclass(frozen=True, repr=False)
class CompareResult(Result):
    """What several adapters share.

    Attributes:
        adapters: label, path, hash, format and method of each.
        pairs: in the order of the adapters.
        matrices: over all pairs.
        clusters: as `matrices.cluster` gives it; None below three adapters.
        groups: indices of the adapters whose A have one initialisation.
        skipped: what has no subspace to compare, and with the stage "matching" the modules that not all adapters have.
        base: the path of the base model, where one was given.
        sampled: how many of the modules were measured, and how many there are, where not all were.
        by_label: as `seeds.contrast` gives it, where the adapters' groups were named.
    """

    analysis: ClassVar[str] = "compare"
    adapters: tuple[Row, ...]
    pairs: tuple[Pair, ...]
    matrices: Matrices
    clusters: Row | None
    groups: tuple[tuple[int, ...], ...]
    skipped: tuple[Skipped, ...] = ()
    base: str | None = None
    sampled: tuple[int, int] | None = None
    by_label: Row | None = None

    @property
    def rows(self) -> tuple[Row, ...]:
        """One record for each module of a pair; one for each pair where modules were not recorded."""
        return tuple(row for pair in self.pairs for row in self.rows_of(pair))

    def rows_of(self, pair: Pair) -> list[Row]:
        names = {"a": self.label(pair.a), "b": self.label(pair.b)}
        return [names | row for row in (pair.modules if pair.modules is not None else (pair.summary,))]

    def label(self, index: int) -> str:
        return self.adapters[index]["label"]

    def flat_rows(self) -> list[Row]:
        return [flat(joined(row)) for row in self.rows]

    def summary(self) -> Row:
        pairs = self.pairs[:MAX_SUMMARIES]
        return {
            "adapters": len(self.adapters),
            "pairs": [{"a": self.label(pair.a), "b": self.label(pair.b), **pair.summary} for pair in pairs],
            "groups": [[self.label(k) for k in group] for group in self.groups],
        }

    def record(self) -> Row:
        return {
            "adapters": list(self.adapters),
            "base": self.base,
            "pairs": [
                {
                    "a": self.label(pair.a),
                    "b": self.label(pair.b),
                    "modules": None if pair.modules is None else list(pair.modules),
                    "summary": pair.summary,
                }
                for pair in self.pairs
            ],
            "sampled": {"measured": self.sampled[0], "of": self.sampled[1]} if self.sampled else None,
            "matrices": {key: _nested(values) for key, values in vars(self.matrices).items()},
            "clusters": self.clusters,
            "groups_by_initialisation": {
                "groups": [list(group) for group in self.groups],
                **within_and_between(self.matrices, self.groups),
            },
            "groups_by_label": self.by_label,
        }


def joined(record: Mapping[str, Any]) -> Row:
    """A record for a table: the values of both adapters as one text, "4 | 6"."""
    return {
        key: joined(entry) if isinstance(entry, Mapping) else " | ".join(map(str, entry)) if key in _OF_BOTH else entry
        for key, entry in record.items()
    }


def _nested(values: np.ndarray) -> list[list[float | None]]:
    return [[float(f"{v:.6g}") if np.isfinite(v) else None for v in row] for row in values]
