"""The frozen result: runs, curves, sizes, the one axis of parameters, JSON and table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

import lorascope
from lorascope.analyses.dimension import findings as words
from lorascope.analyses.dimension import page
from lorascope.analyses.dimension.facts import RunFacts, finite
from lorascope.analyses.dimension.functional import Baseline, Curve
from lorascope.analyses.dimension.sizes import Family, TrainedRun
from lorascope.analyses.dimension.spectra import SHARES, MatrixSpectrum, Split
from lorascope.blocks import Block, Finding

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1


@dataclass(frozen=True)
class FullRun:
    """One full fine-tuning run.

    Attributes:
        base: its own start and end; `base.start` is what gain is measured from.
        accuracy: of the whole run.
        start_loss: every matrix back at W, its head and its vectors as trained.
        frozen_loss: the vectors back as well; only the head as trained.
        curves: the truncations; the controls of the first run only.
        matrices: shapes (d_out, d_in) of the matrices that were truncated.
        aside: matrices that stayed as trained, because `modules` left them out.
        vector_parameters: how many numbers its vectors have, as trained in every truncation.
        parameters: all trained numbers but the head's.
        head_parameters: numbers of the head, which every run of its kind trains.
    """

    facts: RunFacts
    base: Baseline
    accuracy: float
    start_loss: float
    frozen_loss: float
    curves: tuple[Curve, ...]
    matrices: Mapping[str, tuple[int, int]]
    aside: tuple[str, ...]
    vector_parameters: int
    parameters: int
    head_parameters: int

    def curve(self, kind: str) -> Curve | None:
        return next((curve for curve in self.curves if curve.kind == kind), None)


@dataclass(frozen=True)
class OnAxis:
    """One point of the axis of parameters.

    Attributes:
        parameters: trained or kept numbers; a truncated run's are degrees of freedom and its vectors.
        plain: Σ k(m + n) and the vectors, the numbers in a truncated run's factors.
        freedom: degrees of freedom of its matrices alone; None where they are not of low rank.
        gain, low, high: mean, and its bootstrap interval over seeds (over full runs, of truncations).
        size: rank, k or d.
    """

    family: str
    size: int | None
    parameters: int
    plain: int | None
    freedom: int | None
    gain: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class DimensionResult:
    """Full fine-tuning's intrinsic dimension against BA.

    Attributes:
        full: the full fine-tuning runs, which differ in their seed alone.
        spectra: of every matrix of every full run; `adapters` of every low-rank run.
        splits: of every matrix, what the full runs share; empty with a single one.
        runs: all others, scored.
        families: the same by method and size.
        truncated: the widest adapter, truncated; None where there is none of rank above 1.
        base: means over the full runs, what the others' gain is measured by.
        given_baseline: whether the start was given in place of the matrices at W.
        prior: the loss of always predicting the class frequencies; None of a language model.
        texts: what all scores are on.
        diverged: runs that ended without an adapter.
        search: the record of the adaptive search, where there was one.
    """

    full: tuple[FullRun, ...]
    spectra: tuple[MatrixSpectrum, ...]
    splits: tuple[Split, ...]
    runs: tuple[TrainedRun, ...]
    families: tuple[Family, ...]
    adapters: tuple[MatrixSpectrum, ...]
    truncated: Curve | None
    base: Baseline
    given_baseline: bool = False
    prior: float | None = None
    modules: str | None = None
    texts: Mapping[str, Any] = field(default_factory=dict)
    diverged: tuple[RunFacts, ...] = ()
    search: Mapping[str, Any] | None = None

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        return words.findings(self)

    def k(self, share: float, kind: str = "top") -> list[int | None]:
        """k90 (or the k of another share) of every full run that has the curve."""
        curves = [curve for run in self.full if (curve := run.curve(kind)) is not None]
        return [curve.reach.get(str(share)) for curve in curves]

    @cached_property
    def axis(self) -> tuple[OnAxis, ...]:
        """Every family's points, ascending in parameters; the full run itself is the last k of its truncations."""
        points = _truncations(self.full)
        for group in self.families:
            for level in group.levels:
                if level.parameters is not None:
                    points.append(
                        OnAxis(group.label, level.size, level.parameters, None, level.freedom, level.gain, level.low,
                               level.high)
                    )  # fmt: skip
        return tuple(sorted(points, key=lambda point: (point.family, point.parameters)))

    def first_on_axis(self, share: float) -> list[OnAxis]:
        """Of each family the point at which it reaches the share: k90, the smallest rank, d90."""
        found = []
        names = list(dict.fromkeys(point.family for point in self.axis))
        reach = {group.label: r.size for group in self.families if (r := group.reach.get(str(share)))}
        if ks := [k for k in self.k(share) if k is not None]:
            reach[TRUNCATED] = max(ks)
        for name in names:
            mine = [point for point in self.axis if point.family == name]
            if any(point.size is not None for point in mine):
                found += [point for point in mine if point.size == reach.get(name, -1)][:1]
            else:
                found += [point for point in mine if point.gain >= share][:1]
        return sorted(found, key=lambda point: point.parameters)

    def aggregate(self, spectra: Sequence[MatrixSpectrum]) -> dict[str, Any]:
        """Medians over matrices of each measure, of its null, and of their ratio."""
        keys = list(spectra[0].measures) if spectra else []
        found: dict[str, Any] = {"matrices": len(spectra)}
        for key in keys:
            found[key] = _median([each.measures[key] for each in spectra])
            found[f"{key}.null"] = _median([each.null[key] for each in spectra])
            found[f"{key}.of_null"] = _median([each.of_null[key] for each in spectra])
        for key in ("gavish_donoho", "marchenko_pastur"):
            found[key] = _median([getattr(each, key) for each in spectra])
        return found

    def by_type(self) -> dict[str, dict[str, Any]]:
        """The full runs' measures by module type, with what the seeds share, and "all" for all of them."""
        types = list(dict.fromkeys(each.type for each in self.spectra))
        found = {}
        for name in [*types, "all"]:
            found[name] = self.aggregate([e for e in self.spectra if name in ("all", e.type)])
            splits = [each for each in self.splits if name in ("all", each.type)]
            found[name] |= {
                "shared_rank": _median([each.rank for each in splits]),
                "shared_energy_rank": _median([each.energy_rank for each in splits]),
                "signal_share": _median([each.signal_share for each in splits]),
                "cosine": _median([each.cosine for each in splits]),
                "cosine_chance": _median([each.cosine_chance for each in splits]),
            }
        return found

    def summary(self) -> dict[str, Any]:
        """The few numbers that answer the question."""
        whole = self.by_type()["all"] if self.spectra else {}
        return {
            "full_runs": len(self.full),
            "start_loss": self.base.start,
            "full_loss": self.base.end,
            "spectral": {key: whole.get(key) for key in ("energy_rank_0.9", "energy_rank_0.9.null", "stable_rank")},
            "denoised": {key: whole.get(key) for key in ("gavish_donoho", "marchenko_pastur", "shared_rank")},
            "functional": {f"k{share * 100:.0f}": self.k(share) for share in SHARES},
            "functional_threshold": {"k90": self.k(0.9, "threshold")},
            "trained": {
                group.label: {f"{group.axis}{float(share) * 100:.0f}": asdict(r) for share, r in group.reach.items()}
                for group in self.families
                if group.axis
            },
            "parameters_at_90": [asdict(point) for point in self.first_on_axis(0.9)],
            "diverged": [run.label for run in self.diverged],
        }

    def table(self) -> "pd.DataFrame":
        """One row for each matrix, run and point of a curve; `kind` says which."""
        import pandas as pd

        return pd.DataFrame(self.flat_rows())

    def flat_rows(self) -> list[dict[str, Any]]:
        """The same as dictionaries."""
        rows: list[dict[str, Any]] = []
        for kind, spectra in (("full ΔW", self.spectra), ("adapter ΔW", self.adapters)):
            for each in spectra:
                rows.append({"kind": kind, "run": each.run, "name": each.name, "type": each.type, "depth": each.depth,
                             "d_out": each.shape[0], "d_in": each.shape[1], "frobenius_norm": each.frobenius_norm,
                             **each.measures, **{f"{key}.null": value for key, value in each.null.items()},
                             "gavish_donoho": each.gavish_donoho,
                             "marchenko_pastur": each.marchenko_pastur})  # fmt: skip
        for curve in self.curves:
            rows += [{"kind": f"curve {curve.kind}", "run": curve.run, **_point(point)} for point in curve.points]
        rows += [{"kind": "run", **_run(run)} for run in self.runs]
        rows += [{"kind": "diverged", "run": run.label, "method": run.method, "seed": run.seed,
                  "size": run.size, "note": run.diverged} for run in self.diverged]  # fmt: skip
        return rows

    @property
    def curves(self) -> list[Curve]:
        """All truncations, of the full runs and of the adapter."""
        return [curve for run in self.full for curve in run.curves] + ([self.truncated] if self.truncated else [])

    def to_json(self) -> dict[str, Any]:
        """Everything; schema 1."""
        return {
            "schema": SCHEMA,
            "lorascope": lorascope.__version__,
            "texts": dict(self.texts),
            "baseline": {
                "start": finite(self.base.start),
                "end": finite(self.base.end),
                "given": self.given_baseline,
                "prior": self.prior,
            },
            "modules": self.modules,
            "summary": self.summary(),
            "full": [_full(run) for run in self.full],
            "by_type": self.by_type(),
            "spectra": [asdict(each) for each in self.spectra],
            "splits": [asdict(each) for each in self.splits],
            "adapters": [asdict(each) for each in self.adapters],
            "truncated_adapter": None if self.truncated is None else _curve(self.truncated),
            "runs": [_run(run) for run in self.runs],
            "families": [_family(group) for group in self.families],
            "axis": [asdict(point) for point in self.axis],
            "diverged": [
                {"run": r.label, "path": r.path, "method": r.method, "why": r.diverged} for r in self.diverged
            ],
            "search": self.search,
            "findings": [{"severity": f.severity, "module": f.module, "text": f.text} for f in self.findings],
        }

    def blocks(self) -> tuple[Block, ...]:
        return page.blocks(self)


TRUNCATED = "full fine-tuning, truncated"


def _truncations(full: Sequence[FullRun]) -> list[OnAxis]:
    """The top-k curves of all full runs together: mean and range of the gain at each k that all of them have."""
    curves = [curve for run in full if (curve := run.curve("top")) is not None]
    if not curves:
        return []
    common = set.intersection(*({point.k for point in curve.points} for curve in curves))
    reached = {k for curve in curves for k in curve.reach.values() if k}
    found = []
    for point in [p for curve in curves for p in curve.points]:
        here = [p for curve in curves for p in curve.at(point.k)]
        gains = [p.recovered for p in here if p.recovered is not None]
        first = point is here[0]
        if first and gains and point.k > 0 and (point.k in common or point.k in reached):
            vectors = full[0].vector_parameters
            several = len(gains) > 1
            found.append(
                OnAxis(TRUNCATED, point.k, point.freedom + vectors, point.plain + vectors, point.freedom,
                       float(np.mean(gains)), min(gains) if several else None, max(gains) if several else None)
            )  # fmt: skip
    return found


def _median(values: Sequence[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _point(point: Any) -> dict[str, Any]:
    return {**asdict(point), "loss": finite(point.loss)}


def _curve(curve: Curve) -> dict[str, Any]:
    return {
        "run": curve.run,
        "kind": curve.kind,
        "points": [_point(point) for point in curve.points],
        "reach": dict(curve.reach),
        "drop": None if curve.drop is None else {"by": curve.drop[0], "from": curve.drop[1], "to": curve.drop[2]},
    }


def _full(run: FullRun) -> dict[str, Any]:
    return {
        "run": run.facts.label,
        "path": run.facts.path,
        "seed": run.facts.seed,
        "learning_rate": run.facts.learning_rate,
        "steps": run.facts.steps,
        "start_loss": finite(run.start_loss),
        "frozen_loss": finite(run.frozen_loss),
        "baseline": finite(run.base.start),
        "loss": finite(run.base.end),
        "accuracy": run.accuracy,
        "parameters": run.parameters,
        "vector_parameters": run.vector_parameters,
        "head_parameters": run.head_parameters,
        "matrices": {name: list(shape) for name, shape in run.matrices.items()},
        "aside": list(run.aside),
        "curves": [_curve(curve) for curve in run.curves],
    }


def _run(run: TrainedRun) -> dict[str, Any]:
    return {
        "run": run.facts.label,
        "path": run.facts.path,
        "family": run.family,
        "method": run.facts.method,
        "size": run.facts.size,
        "seed": run.facts.seed,
        "learning_rate": run.facts.learning_rate,
        "steps": run.facts.steps,
        "loss": finite(run.loss),
        "accuracy": run.accuracy,
        "gain": finite(run.gain),
        "parameters": run.parameters,
        "head_parameters": run.head_parameters,
        "freedom": run.freedom,
    }


def _family(group: Family) -> dict[str, Any]:
    record = asdict(group)
    for level, made in zip(group.levels, record["levels"], strict=True):
        made |= {"gain": level.gain, "accuracy": level.accuracy}
    return record
