"""The analysis over all runs, one model open at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lorascope.analyses.dimension import functional, sizes, spectra
from lorascope.analyses.dimension.functional import Baseline, Curve, OnProgress, Truncations
from lorascope.analyses.dimension.inputs import families, freedom, is_vector, matrices
from lorascope.analyses.dimension.result import DimensionResult, FullRun
from lorascope.analyses.dimension.sizes import Family, TrainedRun
from lorascope.analyses.dimension.spectra import SHARES, MatrixSpectrum, Parts, Split
from lorascope.analyses.toolkit import choose, group
from lorascope.architectures import module_types
from lorascope.errors import InputError
from lorascope.linalg import batched
from lorascope.linalg.batched import Place
from lorascope.linalg.factored import Factored
from lorascope.run_data import FULL, Candidate, OpenedRun, RunFacts, check_same_task
from lorascope.weights.adapter import Skipped

Run = Candidate[OpenedRun]
Gain = Callable[[Run], float]
Search = Callable[[Gain], tuple[Sequence[Run], Mapping[str, Any]]]


def run(  # its docstring is half of it
    candidates: Sequence[Run],
    *,
    modules: str | None = None,
    baseline: float | None = None,
    prior: float | None = None,
    draws: Sequence[int] = (0, 1, 2),
    texts: Mapping[str, Any] | None = None,
    search: Search | None = None,
    on_progress: OnProgress = lambda what: None,
) -> DimensionResult:
    """Measure the runs: every score is on the same texts, which whoever opens the runs has seen to (`training.runs`).

    Args:
        candidates: finished runs of one model on one set of data, at least one of them full fine-tuning.
        modules: a regular expression; only matrices whose name it matches are measured and truncated, and the others
            stay as trained.
        baseline: the loss that gain is measured from; by default the full run's with its matrices at W.
        prior: the loss of always predicting the class frequencies, to compare the baseline with.
        draws: seeds of the random controls.
        texts: what the scores are on, for the record.
        search: given the gain of any candidate, trains more, and gives them with a record of the search.
        on_progress: called before each evaluation with what it is.

    Raises:
        InputError: the runs do not belong together, none is full fine-tuning, or `modules` matches no matrix.
    """
    check_same_task([each.facts for each in candidates])
    work = _Work(modules, baseline, tuple(draws), on_progress)
    full, rest = work.full_runs([each for each in candidates if each.facts.method == FULL and not each.facts.diverged])
    splits = work.splits() if len(full) > 1 else ()
    candidates, record = _with_searched(candidates, search, work.gain)
    others = [each for each in candidates if each.facts.method != FULL and not each.facts.diverged]
    runs, adapters, truncated = work.others([*rest, *others])
    return DimensionResult(
        full=full,
        spectra=work.spectra,
        splits=splits,
        runs=runs,
        families=_families(runs, full),
        adapters=adapters,
        truncated=truncated,
        base=work.base,
        given_baseline=baseline is not None,
        prior=prior,
        modules=modules,
        texts=dict(texts or {}),
        diverged=tuple(each.facts for each in candidates if each.facts.diverged),
        search=record,
        skipped=tuple(work.skipped),
    )


def _families(runs: Sequence[TrainedRun], full: Sequence[FullRun]) -> tuple[Family, ...]:
    accuracy = float(np.mean([each.accuracy for each in full]))
    by_size = [sizes.family(name, members, accuracy) for name, members in sorted(group(runs, "family").items())]
    return tuple(each for each in by_size if each is not None)


def _with_searched(
    candidates: Sequence[Run], search: Search | None, gain: Gain
) -> tuple[Sequence[Run], Mapping[str, Any] | None]:
    """The candidates with those that the search trained, and its record."""
    if search is None:
        return candidates, None
    trained, record = search(gain)
    seen = {each.facts.path for each in candidates}
    candidates = [*candidates, *(each for each in trained if each.facts.path not in seen)]
    check_same_task([each.facts for each in candidates])
    return candidates, record


@dataclass
class _Work:
    """What is measured on the way."""

    modules: str | None
    baseline: float | None
    draws: tuple[int, ...]
    on_progress: OnProgress
    base: Baseline = field(default_factory=lambda: Baseline(0.0, 0.0))
    spectra: tuple[MatrixSpectrum, ...] = ()
    parts: list[Mapping[str, Parts]] = field(default_factory=list)
    scored: dict[str, tuple[float, float]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    place: Place | None = None

    def score(self, facts: RunFacts, trained: OpenedRun) -> tuple[float, float]:
        """Loss and accuracy of a run as it was trained; each run is evaluated once."""
        if facts.path not in self.scored:
            self.on_progress(f"{facts.label}: as trained")
            score = trained.score()
            self.scored[facts.path] = (score.loss, score.accuracy)
        return self.scored[facts.path]

    def gain(self, candidate: Run) -> float:
        """The gain of any run; NaN where there is none to compare with."""
        gain = self.base.recovered(self.score(candidate.facts, candidate.open())[0])
        return np.nan if gain is None else gain

    def full_runs(self, candidates: Sequence[Run]) -> tuple[tuple[FullRun, ...], list[Run]]:
        """The full runs that differ in their seed alone, of the best held-out loss, measured; and the others.

        Their means are what all gains are measured by.
        """
        groups: dict[str, list[Run]] = {}
        for each in candidates:
            facts = each.facts
            training = {key: setting for key, setting in facts.training.items() if key != "seed"}
            groups.setdefault(repr((facts.settings, facts.optim, training)), []).append(each)
        best = next(iter(groups))
        if len(groups) > 1:
            losses = {key: np.mean([self.score(e.facts, e.open())[0] for e in of]) for key, of in groups.items()}
            best = min(losses, key=lambda key: losses[key])
        full = tuple(self.full(each, first=i == 0) for i, each in enumerate(groups[best]))
        start, end = (float(np.mean([getattr(each.base, at) for each in full])) for at in ("start", "end"))
        self.base = Baseline(start, end)
        return full, [each for key, members in groups.items() if key != best for each in members]

    def full(self, candidate: Run, first: bool) -> FullRun:
        """Everything about one full fine-tuning run; the controls of the first one only."""
        facts, trained = candidate.facts, candidate.open()
        chosen = self._chosen(facts, trained)
        parts = self._decomposed(facts, trained, list(chosen))
        self.place = trained.place
        self.parts.append(parts)
        self.spectra += spectra.of_run(facts.label, {n: p.s for n, p in parts.items()}, chosen, product=False)
        cut = Truncations(facts.label, trained, parts, self.on_progress)
        if not any(part.rank for part in parts.values()):
            raise InputError(f"{facts.label} changed no matrix", hint="name a full run whose matrices were trained")
        start, whole = cut.start(), cut.whole()
        self.scored[facts.path] = (whole.loss, whole.accuracy)
        base = Baseline(start.loss if self.baseline is None else self.baseline, whole.loss)
        frozen = cut.score("frozen base", {}, vectors=False) if cut.kept else start
        curves = [functional.refined(cut, "top", cut.same, base, SHARES)]
        if first:
            curves += self._controls(cut, base, curves[0].reach.get("0.9"))
        vectors = sum(max(shape) for shape in trained.shapes.values() if is_vector(shape))
        return FullRun(
            facts, base, whole.accuracy, start.loss, frozen.loss, tuple(curves), chosen, vectors,
            sum(m * n for m, n in trained.shapes.values()), trained.head_parameters,
        )  # fmt: skip

    def _decomposed(self, facts: RunFacts, trained: OpenedRun, names: Sequence[str]) -> dict[str, Parts]:
        """The SVDs. InputError where an entry is NaN or infinite."""
        try:
            return spectra.decompose_all(trained, names, lambda name: self.on_progress(f"{facts.label}: SVD of {name}"))
        except ValueError as error:
            raise InputError(str(error), found=f"in {facts.path}", hint="train it again") from None

    def _controls(self, cut: Truncations, base: Baseline, k90: int | None) -> list[Curve]:
        places = functional.powers(cut.largest)[:-1]
        sparse = sorted({*places[::2], *([k90] if k90 else [])} - {cut.largest})
        return [
            functional.refined(cut, "threshold", cut.above, base, SHARES[:1]),
            functional.bottom(cut, base, sorted({*places, *([k90] if k90 else [])} - {cut.largest})),
            functional.random(cut, base, sparse, self.draws, inside=True),
            functional.random(cut, base, sparse, self.draws, inside=False),
        ]

    def _chosen(self, facts: RunFacts, trained: OpenedRun) -> dict[str, tuple[int, int]]:
        """The matrices that are truncated. InputError where `modules` is not a regular expression or matches none."""
        every = matrices(trained.shapes)
        chosen = {name: every[name] for name in choose(every, self.modules)}
        reason = "not matched by --modules: stays as trained"
        self.skipped += [Skipped(name, reason, adapter=facts.label) for name in every if name not in chosen]
        return chosen

    def splits(self) -> tuple[Split, ...]:
        """Every matrix of the full runs, taken apart into what the seeds share and the rest."""
        types, names = module_types(self.parts[0]), list(self.parts[0])
        splits: list[Split | None] = []
        shapes = [(len(self.parts) * part.shape[0], part.shape[1]) for part in self.parts[0].values()]
        for window in batched.windows(shapes, self.place):
            deltas = {}
            for name in names[window]:
                self.on_progress(f"seeds of {name}")
                deltas[name] = [each[name].between(0, len(each[name].s)).dense() for each in self.parts]
            splits += spectra.split_all(types, deltas, self.place).values()
        self.parts.clear()
        return tuple(each for each in splits if each is not None)

    def others(
        self, candidates: Sequence[Run]
    ) -> tuple[tuple[TrainedRun, ...], tuple[MatrixSpectrum, ...], Curve | None]:
        """The scores of all other runs, the spectra of those of low rank, and one adapter truncated."""
        named = {run.path: name for name, runs in families([c.facts for c in candidates]).items() for run in runs}
        widest = _widest([each.facts for each in candidates])
        runs: list[TrainedRun] = []
        measured: tuple[MatrixSpectrum, ...] = ()
        truncated = None
        for each in candidates:
            facts, trained = each.facts, each.open()
            loss, accuracy = self.score(facts, trained)
            shapes = matrices(trained.shapes)
            products = _products(trained, shapes) if facts.rank is not None else {}
            if products:
                sigmas = {name: _values(product) for name, product in products.items()}
                measured += spectra.of_run(facts.label, sigmas, shapes, product=True)
            degrees = sum(freedom(shapes[n], min(p.left.shape[1], *shapes[n])) for n, p in products.items())
            total = facts.trained_parameters
            runs.append(
                TrainedRun(
                    facts, named[facts.path], loss, accuracy, self.base.recovered(loss),
                    None if total is None else total - trained.head_parameters, trained.head_parameters,
                    degrees if products and len(products) == len(trained.shapes) else None,
                )
            )  # fmt: skip
            if facts.path == widest and products:
                parts = {name: spectra.decompose(product) for name, product in products.items()}
                truncated = functional.truncated_adapter(
                    Truncations(facts.label, trained, parts, self.on_progress), self.base
                )
        return tuple(runs), measured, truncated


def _products(trained: OpenedRun, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Factored]:
    """ΔW of every matrix where all are products; empty where one is not."""
    products = {}
    for name in shapes:
        product = trained.delta(name).factors()
        if product is None:
            return {}
        products[name] = product
    return products


def _values(product: Factored) -> np.ndarray:
    return np.asarray(product.singular_values(), dtype=float)


def _widest(runs: Sequence[RunFacts]) -> str | None:
    """The run of the highest rank above 1, of the lowest seed: the one to truncate."""
    ranked = [run for run in runs if (run.rank or 0) > 1 and run.method != FULL]
    return max(ranked, key=lambda run: (run.method == "lora", run.rank or 0, -run.seed)).path if ranked else None
