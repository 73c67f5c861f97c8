"""The frozen result: runs, curves, sizes, and the one axis of parameters that all of them share."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from lorascope.analyses.base import Metric, Result
from lorascope.analyses.dimension.functional import Baseline, Curve
from lorascope.analyses.dimension.sizes import Family, TrainedRun
from lorascope.analyses.dimension.spectra import SHARES, MatrixSpectrum, Split
from lorascope.analyses.spectral_metrics import (
    EFFECTIVE_RANK,
    ENERGY_RANKS,
    GAVISH_DONOHO,
    MARCHENKO_PASTUR,
    STABLE_RANK,
    baseline,
)
from lorascope.analyses.toolkit import Row, finite, group, median
from lorascope.run_data import RunFacts
from lorascope.weights.adapter import Skipped

TRUNCATED = "full fine-tuning, truncated"
NOISE = "random baseline: the same of noise of this shape; of a product B·A, of one with Gaussian factors"

SPECTRAL = (
    STABLE_RANK,
    baseline(STABLE_RANK, NOISE),
    EFFECTIVE_RANK,
    baseline(EFFECTIVE_RANK, NOISE),
    ENERGY_RANKS[0.9],
    baseline(ENERGY_RANKS[0.9], NOISE),
    ENERGY_RANKS[0.95],
    ENERGY_RANKS[0.99],
    GAVISH_DONOHO,
    MARCHENKO_PASTUR,
)
OF_SEEDS = (
    Metric(
        "shared_rank", "shared", "int", "singular values of the seeds' mean above their difference", term="Shared rank",
        formula="values of the seeds' mean above the largest of their contrasts Σ c_i ΔW_i, Σ c_i = 0, Σ c_i² = 1/n",
        source="noise in the mean and in a contrast has one law",
        meaning="How many directions training finds whatever the seed: the others change from seed to seed.",
    ),
    Metric("signal_share", "signal", "percent", "share of the energy that the seeds share", term="Shared rank"),
    Metric(
        "cosine", "cosine", help="of two seeds' ΔW", null="cosine_chance", term="Cosine",
        formula="⟨ΔW_a, ΔW_b⟩ / (‖ΔW_a‖_F ‖ΔW_b‖_F)", source="of two seeds; by chance 0 ± 1/√(mn)",
        meaning="Whether two seeds change the weights the same way: 1 if they differ only in size, about 0 if they are"
        " unrelated.",
    ),
    Metric("cosine_chance", "chance", help="1/√(mn)", term="Cosine"),
)  # fmt: skip
OF_AXIS = (
    Metric("size", "k, rank or d", "int", "the size of the truncation or of the trained run"),
    Metric("parameters", "parameters", "int", "trained or kept parameters, without the head's",
           term="Degrees of freedom"),
    Metric(
        "freedom", "degrees of freedom", "int", "Σ r(m + n − r) over the matrices alone",
        formula="r(m + n − r), the dimension of the set of m × n matrices of rank r; as factors r(m + n)",
        term="Degrees of freedom",
        source="a matrix of rank r is U Sᵀ up to an r × r change of basis",
        meaning="How many independent numbers a matrix of this rank has: fewer than its factors, since different"
        " factors have the same product.",
    ),
    Metric("plain", "as factors", "int", "Σ k(m + n) and the vectors", term="Degrees of freedom"),
    Metric(
        "gain", "gain", "percent", "share of full fine-tuning's gain in held-out loss", term="Gain",
        formula="(s₀ − loss)/(s₀ − s_FT), held-out losses; s₀: base matrices, trained head and vectors",
        source="--baseline replaces s₀",
        meaning="How much of what full fine-tuning achieves is reached: 100 % is as good, 0 % no better than the"
        " start.",
    ),
    Metric("low", "low", "percent", "lower end of the 95 % interval, or of the range, of the gain", term="Gain"),
    Metric("high", "high", "percent", "upper end of the 95 % interval, or of the range, of the gain", term="Gain"),
)  # fmt: skip
METRICS = (*SPECTRAL, *OF_SEEDS, *OF_AXIS)


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
        vector_parameters: how many parameters its vectors have, as trained in every truncation.
        parameters: all trained parameters but the head's.
        head_parameters: of the head, which every run of its kind trains.
    """

    facts: RunFacts
    base: Baseline
    accuracy: float
    start_loss: float
    frozen_loss: float
    curves: tuple[Curve, ...]
    matrices: Mapping[str, tuple[int, int]]
    vector_parameters: int
    parameters: int
    head_parameters: int

    def curve(self, kind: str) -> Curve | None:
        return next((curve for curve in self.curves if curve.kind == kind), None)

    def record(self) -> Row:
        return {
            "run": self.facts.label,
            "path": self.facts.path,
            "seed": self.facts.seed,
            "learning_rate": self.facts.learning_rate,
            "steps": self.facts.steps,
            "start_loss": finite(self.start_loss),
            "frozen_loss": finite(self.frozen_loss),
            "baseline": finite(self.base.start),
            "loss": finite(self.base.end),
            "accuracy": self.accuracy,
            "parameters": self.parameters,
            "vector_parameters": self.vector_parameters,
            "head_parameters": self.head_parameters,
            "matrices": {name: list(shape) for name, shape in self.matrices.items()},
            "curves": [curve.record() for curve in self.curves],
        }


@dataclass(frozen=True)
class OnAxis:
    """One point of the axis of parameters.

    Attributes:
        parameters: trained or kept parameters; a truncated run's are degrees of freedom and its vectors.
        plain: Σ k(m + n) and the vectors, the parameters of a truncated run's factors.
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


@dataclass(frozen=True, repr=False)
class DimensionResult(Result):
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
        skipped: matrices of full runs that `modules` does not match; `adapter` is the run's label.
    """

    analysis = "dimension"

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
    skipped: tuple[Skipped, ...] = ()

    def k(self, share: float, kind: str = "top") -> list[int | None]:
        """k90 (or the k of another share) of every full run that has the curve."""
        curves = [curve for run in self.full if (curve := run.curve(kind)) is not None]
        return [curve.reach.get(str(share)) for curve in curves]

    @property
    def curves(self) -> list[Curve]:
        """All truncations, of the full runs and of the adapter."""
        return [curve for run in self.full for curve in run.curves] + ([self.truncated] if self.truncated else [])

    @cached_property
    def axis(self) -> tuple[OnAxis, ...]:
        """Every family's points, ascending in parameters; the full run itself is the last k of its truncations."""
        points = _truncations(self.full)
        points += [
            OnAxis(each.label, level.size, level.parameters, None, level.freedom, level.gain, level.low, level.high)
            for each in self.families
            for level in each.levels
            if level.parameters is not None
        ]
        return tuple(sorted(points, key=lambda point: (point.family, point.parameters)))

    @cached_property
    def differences(self) -> dict[str, list[Any]]:
        """The settings of training in which the runs differ, though a comparison needs them equal; their values."""
        runs = [*(each.facts for each in self.full), *(each.facts for each in self.runs)]
        values = {key: list(dict.fromkeys(run.recipe[key] for run in runs)) for key in runs[0].recipe}
        return {key: each for key, each in values.items() if len(each) > 1}

    def first_on_axis(self, share: float) -> list[OnAxis]:
        """Of each family the point at which it reaches the share: k90, the smallest rank, d90. Of runs that were
        trained differently, none: their gains are not comparable."""
        if self.differences:
            return []
        first = []
        reach = {each.label: reached.size for each in self.families if (reached := each.reach.get(str(share)))}
        if ks := [k for k in self.k(share) if k is not None]:
            reach[TRUNCATED] = max(ks)
        for name, points in group(self.axis, "family").items():
            if any(point.size is not None for point in points):
                first += [point for point in points if point.size == reach.get(name, -1)][:1]
            else:
                first += [point for point in points if point.gain >= share][:1]
        return sorted(first, key=lambda point: point.parameters)

    def aggregate(self, spectra: Sequence[MatrixSpectrum]) -> Row:
        """Medians over matrices of each measure, of its random baseline, and of their ratio."""
        keys = list(spectra[0].measures) if spectra else []
        return {
            "matrices": len(spectra),
            **{key: median(each.measures[key] for each in spectra) for key in keys},
            "null": {key: median(each.null[key] for each in spectra) for key in keys},
            "of_null": {key: median(each.of_null[key] for each in spectra) for key in keys},
            **{key: median(getattr(each, key) for each in spectra) for key in ("gavish_donoho", "marchenko_pastur")},
        }

    def by_type(self) -> dict[str, Row]:
        """The full runs' measures by module type, with what the seeds share, and "all" for all of them."""
        rows = {}
        for name in [*group(self.spectra), "all"]:
            splits = [each for each in self.splits if name in ("all", each.type)]
            rows[name] = self.aggregate([each for each in self.spectra if name in ("all", each.type)]) | {
                "shared_rank": median(each.rank for each in splits),
                "shared_energy_rank": median(each.energy_rank for each in splits),
                "signal_share": median(each.signal_share for each in splits),
                "cosine": median(each.cosine for each in splits),
                "cosine_chance": median(each.cosine_chance for each in splits),
            }
        return rows

    def summary(self) -> Row:
        """The few numbers that answer the question."""
        overall = self.by_type()["all"]
        return {
            "full_runs": len(self.full),
            "start_loss": self.base.start,
            "full_loss": self.base.end,
            "spectral": {
                "energy_rank_0.9": overall.get("energy_rank_0.9"),
                "stable_rank": overall.get("stable_rank"),
                "null": {"energy_rank_0.9": overall["null"].get("energy_rank_0.9")},
            },
            "denoised": {key: overall.get(key) for key in ("gavish_donoho", "marchenko_pastur", "shared_rank")},
            "functional": {f"k{share * 100:.0f}": self.k(share) for share in SHARES},
            "functional_threshold": {"k90": self.k(0.9, "threshold")},
            "trained": {
                each.label: {f"{each.axis}{float(share) * 100:.0f}": asdict(r) for share, r in each.reach.items()}
                for each in self.families
                if each.axis
            },
            "parameters_at_90": [asdict(point) for point in self.first_on_axis(0.9)],
            "diverged": [run.label for run in self.diverged],
        }

    @property
    def rows(self) -> tuple[Row, ...]:
        """One for each matrix, run and point of a curve; `kind` says which."""
        return (
            *({"kind": "full ΔW", **each.record()} for each in self.spectra),
            *({"kind": "adapter ΔW", **each.record()} for each in self.adapters),
            *(
                {"kind": f"curve {curve.kind}", "run": curve.run, **point.record()}
                for curve in self.curves
                for point in curve.points
            ),
            *({"kind": "run", **run.record()} for run in self.runs),
            *(
                {"kind": "diverged", "run": run.label, "method": run.method, "seed": run.seed, "size": run.size,
                 "note": run.diverged}
                for run in self.diverged
            ),
        )  # fmt: skip

    def record(self) -> Row:
        return {
            "texts": dict(self.texts),
            "baseline": {
                "start": finite(self.base.start),
                "end": finite(self.base.end),
                "given": self.given_baseline,
                "prior": self.prior,
            },
            "modules": self.modules,
            "summary": self.summary(),
            "full": [run.record() for run in self.full],
            "by_type": self.by_type(),
            "spectra": [each.record() for each in self.spectra],
            "splits": [asdict(each) for each in self.splits],
            "adapters": [each.record() for each in self.adapters],
            "truncated_adapter": None if self.truncated is None else self.truncated.record(),
            "runs": [run.record() for run in self.runs],
            "families": [each.record() for each in self.families],
            "axis": [asdict(point) for point in self.axis],
            "diverged": [
                {"run": r.label, "path": r.path, "method": r.method, "reason": r.diverged} for r in self.diverged
            ],
            "search": self.search,
        }


def _truncations(full: Sequence[FullRun]) -> list[OnAxis]:
    """The top-k curves of all full runs together: mean and range of the gain at each k that all of them have."""
    curves = [curve for run in full if (curve := run.curve("top")) is not None]
    if not curves:
        return []
    common = set.intersection(*({point.k for point in curve.points} for curve in curves))
    reached = {k for curve in curves for k in curve.reach.values() if k}
    vectors = full[0].vector_parameters
    points = []
    for k, here in group([point for curve in curves for point in curve.points], "k").items():
        gains = [point.recovered for point in here if point.recovered is not None]
        if gains and k > 0 and (k in common or k in reached):
            low, high = (min(gains), max(gains)) if len(gains) > 1 else (None, None)
            sizes = here[0].freedom + vectors, here[0].plain + vectors, here[0].freedom
            points.append(OnAxis(TRUNCATED, k, *sizes, float(np.mean(gains)), low, high))
    return points
