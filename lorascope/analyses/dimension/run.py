"""The analysis over all runs, one model open at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lorascope.analyses.dimension import functional, sizes, spectra
from lorascope.analyses.dimension.facts import FULL, RunFacts, Trained, check_same_task, families, freedom, is_vector
from lorascope.analyses.dimension.functional import Baseline, Curve, Truncations
from lorascope.analyses.dimension.result import DimensionResult, FullRun
from lorascope.analyses.dimension.sizes import TrainedRun
from lorascope.analyses.dimension.spectra import SHARES, MatrixSpectrum, Parts, Split
from lorascope.architectures import module_types
from lorascope.errors import InputError, preview
from lorascope.linalg.factored import Factored
from lorascope.patterns import Pattern


@dataclass(frozen=True)
class Candidate:
    """A run that can be opened."""

    facts: RunFacts
    open: Callable[[], Trained]


Gain = Callable[[Candidate], float]
Search = Callable[[Gain], tuple[Sequence[Candidate], Mapping[str, Any]]]


def run(
    candidates: Sequence[Candidate],
    *,
    modules: str | None = None,
    baseline: float | None = None,
    prior: float | None = None,
    draws: Sequence[int] = (0, 1, 2),
    texts: Mapping[str, Any] | None = None,
    search: Search | None = None,
    tick: Callable[[str], None] = lambda what: None,
) -> DimensionResult:
    """Measure the runs: every score is on the same texts, which whoever opens the runs has seen to.

    Args:
        candidates: finished runs of one model on one set of data, at least one of them full fine-tuning.
        modules: a regular expression; only matrices whose name it finds are measured and truncated, and the others stay
            as trained.
        baseline: the loss that gain is measured from; by default the full run's with its matrices at W.
        prior: the loss of always predicting the class frequencies, to stand beside it.
        draws: seeds of the random controls.
        texts: what the scores are on, for the record.
        search: given the gain of any candidate, trains more, and gives them with a record of the search.
        tick: called before each evaluation with what it is.

    Raises:
        InputError: the runs do not belong together, none is full fine-tuning, or `modules` finds no matrix.
    """
    check_same_task([each.facts for each in candidates])
    work = _Work(modules, baseline, tuple(draws), tick)
    group, aside = work.choose([each for each in candidates if each.facts.method == FULL and not each.facts.diverged])
    full = tuple(work.full(each, first=i == 0) for i, each in enumerate(group))
    splits = work.splits() if len(full) > 1 else ()
    work.base = Baseline(
        float(np.mean([each.base.start for each in full])), float(np.mean([each.base.end for each in full]))
    )
    others = [*aside, *(each for each in candidates if each.facts.method != FULL and not each.facts.diverged)]
    found: Mapping[str, Any] | None = None
    if search is not None:
        more, found = search(work.gain)
        seen = {each.facts.path for each in candidates}
        more = [each for each in more if each.facts.path not in seen]
        check_same_task([*(each.facts for each in candidates), *(each.facts for each in more)])
        candidates = [*candidates, *more]
        others += [each for each in more if not each.facts.diverged]
    runs, adapters, truncated = work.others(others)
    accuracy = float(np.mean([each.accuracy for each in full]))
    named = {run.family for run in runs}
    groups = (sizes.family(name, [run for run in runs if run.family == name], accuracy) for name in sorted(named))
    return DimensionResult(
        full, work.spectra, splits, runs, tuple(group for group in groups if group is not None), adapters, truncated,
        work.base, baseline is not None, prior, modules, dict(texts or {}),
        tuple(each.facts for each in candidates if each.facts.diverged), found,
    )  # fmt: skip


@dataclass
class _Work:
    """What is measured on the way."""

    modules: str | None
    baseline: float | None
    draws: tuple[int, ...]
    tick: Callable[[str], None]
    base: Baseline = field(default_factory=lambda: Baseline(0.0, 0.0))
    spectra: tuple[MatrixSpectrum, ...] = ()
    parts: list[Mapping[str, Parts]] = field(default_factory=list)
    scored: dict[str, tuple[float, float]] = field(default_factory=dict)

    def score(self, facts: RunFacts, trained: Trained) -> tuple[float, float]:
        """Loss and accuracy of a run as it was trained; asked for twice, evaluated once."""
        if facts.path not in self.scored:
            self.tick(f"{facts.label}: as trained")
            score = trained.score()
            self.scored[facts.path] = (score.loss, score.accuracy)
        return self.scored[facts.path]

    def gain(self, candidate: Candidate) -> float:
        """The gain of any run; NaN where there is none to compare with."""
        found = self.base.recovered(self.score(candidate.facts, candidate.open())[0])
        return np.nan if found is None else found

    def choose(self, full: Sequence[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
        """The full runs that differ in their seed alone, of the best held-out loss; and the others."""
        groups: dict[str, list[Candidate]] = {}
        for each in full:
            facts = each.facts
            training = {key: value for key, value in facts.training.items() if key != "seed"}
            groups.setdefault(repr((facts.settings, facts.optim, training)), []).append(each)
        if len(groups) == 1:
            return list(full), []
        losses = {key: np.mean([self.score(e.facts, e.open())[0] for e in members]) for key, members in groups.items()}
        best = min(losses, key=lambda key: losses[key])
        return groups[best], [each for key, members in groups.items() if key != best for each in members]

    def full(self, candidate: Candidate, first: bool) -> FullRun:
        """Everything about one full fine-tuning run; the controls of the first one only."""
        facts, trained = candidate.facts, candidate.open()
        matrices = self._matrices(trained)
        parts = {}
        for name in matrices:
            self.tick(f"{facts.label}: SVD of {name}")
            parts[name] = _decomposed(name, facts, trained)
        self.parts.append(parts)
        self.spectra += spectra.of_run(facts.label, {n: p.s for n, p in parts.items()}, matrices, product=False)
        cut = Truncations(facts.label, trained, parts, self.tick)
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
        aside = {name: shape for name, shape in trained.shapes.items() if name not in parts and not is_vector(shape)}
        return FullRun(
            facts, base, whole.accuracy, start.loss, frozen.loss, tuple(curves), matrices, tuple(aside), vectors,
            sum(m * n for m, n in trained.shapes.values()), trained.head_parameters,
        )  # fmt: skip

    def _controls(self, cut: Truncations, base: Baseline, k90: int | None) -> list[Curve]:
        places = functional.powers(cut.largest)[:-1]
        sparse = sorted({*places[::2], *([k90] if k90 else [])} - {cut.largest})
        return [
            functional.refined(cut, "threshold", cut.above, base, SHARES[:1]),
            functional.bottom(cut, base, sorted({*places, *([k90] if k90 else [])} - {cut.largest})),
            functional.random(cut, base, sparse, self.draws, inside=True),
            functional.random(cut, base, sparse, self.draws, inside=False),
        ]

    def _matrices(self, trained: Trained) -> dict[str, tuple[int, int]]:
        """The updates that are truncated. InputError where `modules` is no pattern or finds none."""
        found = {name: shape for name, shape in trained.shapes.items() if not is_vector(shape)}
        if self.modules is None:
            return found
        wanted = Pattern(self.modules, "--modules")
        chosen = {name: shape for name, shape in found.items() if wanted.search(name)}
        if not chosen:
            raise InputError(
                f"--modules {self.modules!r} matches none of {len(found)} matrices", found=preview(found, 3)
            )
        return chosen

    def splits(self) -> tuple[Split, ...]:
        """Every matrix of the full runs, taken apart into what the seeds share and the rest."""
        types = module_types(self.parts[0])
        made = []
        for name in self.parts[0]:
            self.tick(f"seeds of {name}")
            deltas = [each[name].between(0, len(each[name].s)).dense() for each in self.parts]
            made.append(spectra.split(name, types[name], deltas))
        self.parts.clear()
        return tuple(each for each in made if each is not None)

    def others(
        self, candidates: Sequence[Candidate]
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
            shapes = {name: shape for name, shape in trained.shapes.items() if not is_vector(shape)}
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
                truncated = functional.truncated_adapter(Truncations(facts.label, trained, parts, self.tick), self.base)
        return tuple(runs), measured, truncated


def _decomposed(name: str, facts: RunFacts, trained: Trained) -> Parts:
    try:
        return spectra.decompose(trained.delta(name))
    except ValueError:
        raise InputError(f"ΔW of {name} in {facts.path} holds NaN or infinite entries", hint="train it again") from None


def _products(trained: Trained, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Factored]:
    """ΔW of every matrix where all are products; empty where one is not."""
    found = {}
    for name in shapes:
        delta = trained.delta(name).factors()
        if delta is None:
            return {}
        found[name] = delta
    return found


def _values(product: Factored) -> np.ndarray:
    return np.asarray(product.singular_values(), dtype=float)


def _widest(runs: Sequence[RunFacts]) -> str | None:
    """The run of the highest rank above 1, of the lowest seed: the one to truncate."""
    ranked = [run for run in runs if (run.rank or 0) > 1 and run.method != FULL]
    return max(ranked, key=lambda run: (run.method == "lora", run.rank or 0, -run.seed)).path if ranked else None
