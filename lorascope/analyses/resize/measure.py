"""Spectra, ranks by each rule, what each loses, and the factors where they are written or scored."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from lorascope.analyses import truncate as truncation
from lorascope.analyses.base import Metric, Result
from lorascope.analyses.toolkit import Row, choose, extreme, median
from lorascope.analyses.truncate import Energy, Rule, Spectrum, Truncated, Uniform
from lorascope.architectures import depth, module_types
from lorascope.errors import InputError
from lorascope.linalg.blas import one_thread
from lorascope.linalg.noise import noise_spectrum
from lorascope.linalg.nulls import random_product_energy
from lorascope.weights.adapter import Adapter, Skipped, Source
from lorascope.weights.checkpoint import Checkpoint

Evaluate = Callable[[Mapping[str, Any]], Mapping[str, Any]]  # ΔW by module in; loss and accuracy out
KEPT = 0.99  # of the energy of every module, by the plan that is recommended
USUAL_SHARES = (0.5, 0.9, 0.95, 0.99)  # of the energy, where no rule is given

METRICS = (
    Metric("rank_before", "rank before", "int", "singular values of ΔW: its rank by construction"),
    Metric("rank", "rank", "int", "rank assigned by the plan (0: dropped)"),
    Metric("parameters", "parameters", "int", "rank · (d_out + d_in)"),
    Metric("norm", "‖ΔW‖_F", help="√Σσ²"),
    Metric(
        "error", "error", "percent", "‖ΔW − ΔW_r‖_F/‖ΔW‖_F, exact", null="error_null", term="Error",
        formula="‖ΔW − ΔW_r‖_F/‖ΔW‖_F = √(Σ_{i>r} σ²/Σσ²): no matrix of rank r is nearer;"
        " over all modules √(Σ‖ΔW − ΔW_r‖²/Σ‖ΔW‖²)", source="Eckart and Young 1936",
        meaning="How much of the update the lower rank loses: 0 % is nothing, 100 % all of it.",
    ),
    Metric(
        "error_null", "random", "percent", "random baseline: the error of Gaussian factors of the same shape and rank",
        term="Random baseline",
        formula="the mean error of B·A with independent Gaussian entries, same d_out, d_in and rank before",
        source="Bartlett 1933 for the draws; iid entries, Marchenko and Pastur 1967, where ΔW is dense",
        meaning="What random factors lose at the same rank: an error as large means that the update uses its full"
        " rank.",
    ),
    Metric("rounding", "rounding", help="‖stored − ΔW_r‖_F/‖ΔW‖_F"),
)  # fmt: skip


@dataclass(frozen=True)
class ResizedModule:
    """One module under one plan.

    Attributes:
        name, type, depth, shape: of the module; (d_out, d_in).
        rank_before: how many singular values ΔW has: its rank by construction.
        rank: what the plan gives it; 0 where it is dropped.
        norm: ‖ΔW‖_F.
        error: ‖ΔW − ΔW_rank‖_F/‖ΔW‖_F; None where ΔW is zero.
        error_null: random baseline: the same of a product B·A of Gaussian factors of this shape and rank_before.
        rounding: ‖stored − ΔW_rank‖_F/‖ΔW‖_F; None where nothing was rounded, or ΔW is zero.
        error_total: ‖ΔW − stored‖_F/‖ΔW‖_F, √(error² + rounding²) up to a product of two roundings.
    """

    name: str
    type: str
    depth: int | None
    shape: tuple[int, int]
    rank_before: int
    rank: int
    norm: float
    error: float | None
    error_null: float | None
    rounding: float | None = None

    @property
    def parameters(self) -> int:
        """Parameters of its two factors."""
        return self.rank * sum(self.shape)

    @property
    def error_total(self) -> float | None:
        return None if self.error is None else math.hypot(self.error, self.rounding or 0.0)

    def record(self) -> Row:
        return {**asdict(self), "parameters": self.parameters, "error_total": self.error_total}


@dataclass(frozen=True)
class Plan:
    """One rule applied to all modules.

    Attributes:
        label: the rule in a few words, "rank 4".
        counts: what the rule's number counts.
        uniform_error: relative error of the largest uniform rank that takes no more parameters; None where rank 1 does.
        uniform_rank: that rank; 0 where even rank 1 takes more.
        score: loss and accuracy on held-out texts with this plan's ΔW, where it was evaluated.
    """

    label: str
    counts: str
    modules: tuple[ResizedModule, ...]
    uniform_rank: int = 0
    uniform_error: float | None = None
    score: Mapping[str, Any] | None = None

    @cached_property
    def dropped(self) -> tuple[ResizedModule, ...]:
        """Modules of rank 0, which PEFT cannot store."""
        return tuple(module for module in self.modules if module.rank == 0)

    @property
    def parameters(self) -> int:
        return sum(module.parameters for module in self.modules)

    @cached_property
    def error(self) -> float | None:
        """‖ΔW − ΔW_r‖_F/‖ΔW‖_F over all modules together."""
        return self._overall("error")

    @cached_property
    def error_null(self) -> float | None:
        """Random baseline: the same if every module were a product of Gaussian factors, at its own rank and norm."""
        return self._overall("error_null")

    @cached_property
    def rounding(self) -> float | None:
        return None if all(m.rounding is None for m in self.modules) else self._overall("rounding")

    @property
    def worst(self) -> ResizedModule | None:
        """The module with the largest relative error."""
        return extreme(self.modules, "error")

    def summary(self) -> Row:
        ranks = [module.rank for module in self.modules]
        worst = self.worst
        return {
            "plan": self.label,
            "counts": self.counts,
            "parameters": self.parameters,
            "rank": {"min": min(ranks), "median": median(ranks), "max": max(ranks)},
            "error": self.error,
            "error_null": self.error_null,
            "rounding": self.rounding,
            "worst_error": None if worst is None else worst.error,
            "worst_module": None if worst is None else worst.name,
            "uniform": {"rank": self.uniform_rank, "error": self.uniform_error},
            "dropped": len(self.dropped),
            "score": None if self.score is None else dict(self.score),
        }

    def _overall(self, key: str) -> float | None:
        """√(Σ ‖ΔW‖² error²/Σ ‖ΔW‖²)."""
        norm = math.hypot(*(module.norm for module in self.modules))
        if norm == 0 or not math.isfinite(norm):
            return None
        return math.hypot(*(m.norm / norm * (getattr(m, key) or 0.0) for m in self.modules))


@dataclass(frozen=True, repr=False)
class ResizeResult(Result):
    """An adapter under several plans.

    Attributes:
        source: the adapter's file.
        kind: the kinds of its updates, joined.
        plans: in the order in which the rules were given.
        skipped: updates without a rank to reduce; a resized adapter does not hold them.
        dtype: what factors are stored in; None where each keeps its source's.
        scores: "base" (no ΔW) and "before" (all of it), where it was evaluated; `scored_on` says on what.
        resized: the adapter of the only plan, where it was to be built.
    """

    analysis = "resize"

    source: Source
    kind: str
    plans: tuple[Plan, ...]
    parameters_before: int
    skipped: tuple[Skipped, ...] = ()
    dtype: str | None = None
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scored_on: str = ""
    notes: tuple[str, ...] = ()
    resized: Adapter | None = None

    @property
    def rows(self) -> tuple[Row, ...]:
        """One for each plan and module."""
        return tuple({"plan": plan.label, **module.record()} for plan in self.plans for module in plan.modules)

    @property
    def gained(self) -> float | None:
        """How much lower the held-out loss is with all of ΔW than without; None where it is no lower or not known."""
        if not self.scores:
            return None
        gain = self.scores["base"]["loss"] - self.scores["before"]["loss"]
        return gain if gain > 0 else None

    def gain(self, plan: Plan) -> float | None:
        """The share of that gain which a plan keeps."""
        if plan.score is None or self.gained is None:
            return None
        return (self.scores["base"]["loss"] - plan.score["loss"]) / self.gained

    @property
    def smallest(self) -> Plan | None:
        """The plan with the fewest parameters that keeps 99 % of ‖ΔW‖² in every module, as `analyze` recommends; None
        where none does. A total hides modules: half of the modules can hold 90 % of it."""
        most = (1 - KEPT) ** 0.5 * (1 + 1e-9)
        good = [p for p in self.plans if p.error is not None and all((m.error or 0.0) <= most for m in p.modules)]
        return min(good, key=lambda plan: plan.parameters, default=None)

    def summary(self) -> Row:
        return {
            "modules": len(self.plans[0].modules),
            "parameters_before": self.parameters_before,
            "plans": [{**plan.summary(), "share_of_gain": self.gain(plan)} for plan in self.plans],
            "scores": {name: dict(score) for name, score in self.scores.items()},
            "scored_on": self.scored_on or None,
            "skipped": len(self.skipped),
        }

    def record(self) -> Row:
        """Everything but the factors."""
        return {
            "source": self.source.record(),
            "kind": self.kind,
            "dtype": self.dtype,
            "summary": self.summary(),
            "plans": [{"plan": p.label, "modules": [module.record() for module in p.modules]} for p in self.plans],
        }


def run(  # every argument is a choice of its own
    adapter: Adapter,
    rules: Sequence[Rule] = (),
    *,
    modules: str | None = None,
    base: Checkpoint | None = None,
    dtype: str | None = None,
    build: bool = False,
    evaluate: Evaluate | None = None,
    scored_on: str = "",
    progress: Callable[[list], Iterable] = iter,
) -> ResizeResult:
    """What each rule makes of `adapter`.

    Args:
        rules: ways to choose ranks (`truncate.rules`); none: ranks by powers of two, and a few shares of the energy.
        modules: a regular expression; modules whose name it does not match keep the rank that they have.
        base: completes updates that depend on it.
        dtype: safetensors' name of what factors are stored in; None: what the source has.
        build: keep the resized adapter, of the only rule.
        evaluate: scores a ΔW for every module, absent ones being zero.
        scored_on: what `evaluate` scores on, in words.
        progress: wraps each list of modules.

    Raises:
        InputError: there is no ΔW to truncate; several rules and one adapter to build; a rule leaves nothing; `modules`
            is not a regular expression, or matches none.
    """
    if build and len(rules) != 1:
        raise InputError("one adapter is made by one rule", found=f"{len(rules)} rules")
    wanted = set(choose(adapter.updates, modules))
    with one_thread():
        decomposed = truncation.decompose(adapter, base, progress)
        work = _Work(adapter, decomposed.spectra, wanted, base, dtype, build, evaluate, progress)
        if not work.chosen:
            raise InputError(f"--modules {modules!r} matches no module with a rank to reduce")
        plans = tuple(work.plan(rule) for rule in rules or _usual(work.chosen))
        scores = work.scores()
    return ResizeResult(
        source=adapter.source,
        kind=", ".join(sorted({update.kind for update in adapter.updates.values()})),
        plans=plans,
        parameters_before=sum(len(one.values) * one.cost for one in decomposed.spectra),
        skipped=decomposed.skipped,
        dtype=dtype,
        scores=scores,
        scored_on=scored_on,
        notes=adapter.notes,
        resized=work.resized,
    )


@dataclass
class _Work:
    """What one call works on, and the adapter that it builds."""

    adapter: Adapter
    spectra: tuple[Spectrum, ...]
    wanted: set[str]
    base: Checkpoint | None
    dtype: str | None
    build: bool
    evaluate: Evaluate | None
    progress: Callable[[list], Iterable]
    resized: Adapter | None = None

    @property
    def chosen(self) -> list[Spectrum]:
        """Of the modules whose rank may change."""
        return [one for one in self.spectra if one.name in self.wanted]

    def plan(self, rule: Rule) -> Plan:
        ranks = {one.name: len(one.values) for one in self.spectra} | rule.ranks(self.chosen)
        truncated = score = None
        if self.build or self.evaluate is not None:
            if not any(ranks.values()):
                raise InputError(f"{rule.label} leaves no module with a direction", hint="allow more")
            truncated = truncation.truncate(self.adapter, ranks, self.base, self.dtype, self.progress)
            if self.evaluate is not None:
                score = self.evaluate({name: update.delta() for name, update in truncated.updates.items()})
            if self.build:
                self.resized = truncation.resized(self.adapter, truncated, self.base)
        modules, uniform = _modules(self.spectra, ranks, truncated), _uniform(self.spectra, self.wanted, ranks)
        return Plan(rule.label, rule.counts, modules, *uniform, score)

    def scores(self) -> dict[str, Mapping[str, Any]]:
        """Without ΔW, and with all of it; empty where nothing is evaluated."""
        if self.evaluate is None:
            return {}
        deltas = {one.name: truncation.delta(self.adapter.updates[one.name], self.base) for one in self.spectra}
        return {"base": self.evaluate({}), "before": self.evaluate(deltas)}


def _usual(spectra: Sequence[Spectrum]) -> list[Rule]:
    """Ranks by powers of two up to the largest, and shares of the energy."""
    largest = max(len(one.values) for one in spectra)
    ranks = [1 << k for k in range(largest.bit_length()) if 1 << k <= largest]
    return [*map(Uniform, ranks), *map(Energy, USUAL_SHARES)]


def _modules(
    spectra: Sequence[Spectrum], ranks: Mapping[str, int], truncated: Truncated | None
) -> tuple[ResizedModule, ...]:
    types = module_types([one.name for one in spectra])
    modules = []
    for one in spectra:
        rank, norm = ranks[one.name], one.norm
        rounding = truncated.rounding.get(one.name) if truncated is not None else None
        modules.append(
            ResizedModule(
                name=one.name,
                type=types[one.name],
                depth=depth(one.name),
                shape=one.shape,
                rank_before=len(one.values),
                rank=rank,
                norm=norm,
                error=one.lost(rank) / norm if norm else None,
                error_null=_random_baseline(one, rank) if norm else None,
                rounding=rounding / norm if rounding is not None and norm else None,
            )
        )
    return tuple(modules)


def _random_baseline(one: Spectrum, rank: int) -> float:
    """Relative error of the same truncation of a product of Gaussian factors, or of an iid matrix for a dense ΔW."""
    width = len(one.values)
    if rank == 0:
        return 1.0
    if rank >= width:
        return 0.0
    if one.low_rank and width < min(one.shape):
        return math.sqrt(max(0.0, 1 - random_product_energy(*one.shape, width)[rank - 1]))
    squares = noise_spectrum(*one.shape) ** 2
    return math.sqrt(float(squares[rank:].sum() / squares.sum()))


def _uniform(spectra: Sequence[Spectrum], wanted: set[str], ranks: Mapping[str, int]) -> tuple[int, float | None]:
    """The largest uniform rank of the wanted modules that takes no more parameters than `ranks`, and the error over all
    modules; (0, None) where even rank 1 takes more."""
    norm = math.hypot(*(one.norm for one in spectra))
    chosen = [one for one in spectra if one.name in wanted]
    parameters = sum(ranks[one.name] * one.cost for one in chosen)
    largest = max(len(one.values) for one in chosen)
    rank = 0
    while rank < largest and sum(min(rank + 1, len(one.values)) * one.cost for one in chosen) <= parameters:
        rank += 1
    if rank == 0 or norm == 0 or not math.isfinite(norm):
        return rank, None
    return rank, math.hypot(*(one.lost(rank) / norm for one in chosen))
