"""What tuned − base gives: records of matrices and vectors, totals over them."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import ClassVar

from lorascope.analyses.base import Result
from lorascope.analyses.delta.matrix import ENERGY_RANKS, RANKS, MatrixDelta, VectorDelta, ratio_of
from lorascope.analyses.toolkit import Row, median, value
from lorascope.weights.adapter import Adapter, Skipped

EXTRACTION = "extract"  # the stage of what changed and is not in the extracted adapter
NOISE = ("noise_floor", "marchenko_pastur", "gavish_donoho", "permutation")
CHANCES = ("left", "right", "both")


@dataclass(frozen=True)
class Input:
    """A file that was read: its path, the hash of its weights, and for an adapter its label and its reader's notes."""

    path: str
    sha256: str | None
    label: str = ""
    notes: tuple[str, ...] = ()

    def record(self) -> Row:
        return {"path": self.path, "sha256": self.sha256}


@dataclass(frozen=True, repr=False)
class DeltaResult(Result):
    """tuned − base.

    Attributes:
        matrices: one record for each matrix that both models have, in the base's order.
        vectors: one for each bias, norm's weight and the like.
        adapters: what ΔW was compared with.
        skipped: every parameter that is in neither list, and with the stage "extract" what changed and is not in the
            extracted adapter.
        top: how many leading singular values were computed; None where all were.
        extract: the rank of `extracted`, the best adapter of that rank.
    """

    analysis: ClassVar[str] = "delta"
    matrices: tuple[MatrixDelta, ...]
    vectors: tuple[VectorDelta, ...]
    base: Input
    tuned: Input
    adapters: tuple[Input, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    top: int | None = None
    extract: int | None = None
    extracted: Adapter | None = None

    @property
    def rows(self) -> tuple[MatrixDelta | VectorDelta, ...]:
        return (*self.matrices, *self.vectors)

    @cached_property
    def changed(self) -> tuple[MatrixDelta, ...]:
        """The matrices with a ΔW that is finite and not zero."""
        return tuple(matrix for matrix in self.matrices if matrix.energy > 0)

    @cached_property
    def total_energy(self) -> float:
        """Σ‖ΔW‖_F² over matrices."""
        return sum(matrix.energy for matrix in self.matrices)

    def best(self, matrices: Iterable[MatrixDelta] | None = None) -> dict[str, float]:
        """Share of Σ‖ΔW‖² that rank k in every matrix keeps at best, by k; lower bounds where `top` cut the list."""
        chosen = self.changed if matrices is None else tuple(matrices)
        total = sum(matrix.energy for matrix in chosen)
        most = self.top or max((len(m.singular_values or ()) for m in chosen), default=0)
        ranks = [k for k in RANKS if k <= most]
        return {str(k): min(sum(m.kept(k) for m in chosen) / total, 1.0) for k in ranks} if total else {}

    def captured(self, label: str) -> Row:
        """One adapter against all of ΔW: energy-weighted over the matrices that it adapts, and its share of all.

        The shares in its spaces are over those matrices of which it has a product: not over what it stores whole.
        """
        pairs = [(m, m.captured[label]) for m in self.changed if label in m.captured]
        covered = sum(m.energy for m, _ in pairs)
        if covered == 0:
            return {"matrices": 0}

        spaces = [(m, c) for m, c in pairs if c["both"] is not None]  # of products: a dense update has none
        within = sum(m.energy for m, _ in spaces)

        def mean(key: str) -> float | None:
            if not spaces or any(c.get(key) is None for _, c in spaces):
                return None
            return sum(m.energy * c[key] for m, c in spaces) / within

        energy = sum(c["frobenius_norm"] ** 2 for _, c in pairs)
        inner = sum((c["cosine"] or 0.0) * c["frobenius_norm"] * (m.frobenius_norm or 0.0) for m, c in pairs)
        variance = sum(m.energy * c["frobenius_norm"] ** 2 * c["cosine_chance"] ** 2 for m, c in pairs)
        chance = {k: sum(m.energy * c["chance"][k] for m, c in spaces) / (within or 1.0) for k in CHANCES}
        return {
            "matrices": len(pairs),
            "energy_share": covered / self.total_energy,
            "frobenius_norm": energy**0.5,
            **{key: mean(key) for key in (*CHANCES, "best")},
            "chance": chance,
            "cosine": inner / (energy * covered) ** 0.5 if energy else None,
            "cosine_chance": variance**0.5 / (energy * covered) ** 0.5 if energy else None,
            "residual": 1 + (energy - 2 * inner) / covered,
        }

    def products(self, label: str) -> int:
        """In how many of the matrices that an adapter adapts its update is a product, with a column and a row space."""
        return sum(label in m.captured and m.captured[label]["both"] is not None for m in self.changed)

    def records(self) -> list[Row]:
        """The matrices, and after them the vectors."""
        matrices = [{"kind": "matrix", **self.record_of(matrix)} for matrix in self.matrices]
        return matrices + [{"kind": "vector", **asdict(vector)} for vector in self.vectors]

    def record_of(self, matrix: MatrixDelta) -> Row:
        share = matrix.energy / self.total_energy if self.total_energy > 0 else None
        return {**matrix.record(), "energy_share": share}

    def summary(self) -> Row:
        squares = sum(m.base_norm**2 for m in self.matrices if m.base_norm and not m.non_finite)
        records = [matrix.record() for matrix in self.changed]

        def middle(key: str) -> float | None:
            return median(value(record, key) for record in records)

        return {
            "matrices": len(self.matrices),
            "changed": len(self.changed),
            "vectors": len(self.vectors),
            "skipped": len(self.skipped_in()),
            "frobenius_norm": self.total_energy**0.5,
            "relative_norm": (self.total_energy / squares) ** 0.5 if squares else None,
            "median_relative_norm": middle("relative_norm"),
            "median_stable_rank": middle("stable_rank"),
            **{f"median_{key}": middle(key) for key in ENERGY_RANKS},
            **{f"median_{ratio_of(key)}": middle(ratio_of(key)) for key in ENERGY_RANKS},
            "median_rank": {key: middle(f"{key}.rank") for key in NOISE},
            "best": self.best(),
            "captured": {each.label: self.captured(each.label) for each in self.adapters},
        }

    def record(self) -> Row:
        """Everything but the extracted factors."""
        return {
            "base": self.base.record(),
            "tuned": self.tuned.record(),
            "adapters": [asdict(each) for each in self.adapters],
            "top": self.top,
            "summary": self.summary(),
            "matrices": [self.record_of(matrix) for matrix in self.matrices],
            "vectors": [asdict(vector) for vector in self.vectors],
            "extracted": None if self.extract is None else {"rank": self.extract},
        }
