"""The frozen result: a plan's modules, totals over them, JSON and table."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

import lorascope
from lorascope.analyses.resize import findings as words
from lorascope.analyses.resize import page
from lorascope.blocks import Block, Finding
from lorascope.weights.adapter import Adapter, Skipped, Source

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1


@dataclass(frozen=True)
class ResizedModule:
    """One module under one plan.

    Attributes:
        name, type, depth, shape: of the module; (d_out, d_in).
        rank_before: how many singular values ΔW has: its rank by construction.
        rank: what the plan gives it; 0 where it is dropped.
        norm: ‖ΔW‖_F.
        error: ‖ΔW − ΔW_rank‖_F/‖ΔW‖_F; None where ΔW is zero.
        error_null: the same of a product B·A of this shape and rank_before without structure.
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
        """Numbers in its two factors."""
        return self.rank * sum(self.shape)

    @property
    def error_total(self) -> float | None:
        return None if self.error is None else math.hypot(self.error, self.rounding or 0.0)

    def record(self) -> dict[str, Any]:
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
        """Modules that get no direction: PEFT cannot hold rank 0."""
        return tuple(module for module in self.modules if module.rank == 0)

    @property
    def parameters(self) -> int:
        return sum(module.parameters for module in self.modules)

    def _overall(self, measure: str) -> float | None:
        """√(Σ ‖ΔW‖² error²/Σ ‖ΔW‖²)."""
        whole = math.hypot(*(module.norm for module in self.modules))
        if whole == 0 or not math.isfinite(whole):
            return None
        return math.hypot(*(m.norm / whole * (getattr(m, measure) or 0.0) for m in self.modules))

    @cached_property
    def error(self) -> float | None:
        """‖ΔW − ΔW_r‖_F/‖ΔW‖_F over all modules together."""
        return self._overall("error")

    @cached_property
    def error_null(self) -> float | None:
        """The same if every module were a structureless product, at its own rank and norm."""
        return self._overall("error_null")

    @cached_property
    def rounding(self) -> float | None:
        return None if all(m.rounding is None for m in self.modules) else self._overall("rounding")

    def summary(self) -> dict[str, Any]:
        ranks = [module.rank for module in self.modules]
        known = [module for module in self.modules if module.error is not None]
        worst = max(known, key=lambda m: m.error or 0.0, default=None)
        return {
            "plan": self.label,
            "counts": self.counts,
            "parameters": self.parameters,
            "rank": {"min": min(ranks), "median": float(np.median(ranks)), "max": max(ranks)},
            "error": self.error,
            "error_null": self.error_null,
            "rounding": self.rounding,
            "worst_error": None if worst is None else worst.error,
            "worst_module": None if worst is None else worst.name,
            "uniform": {"rank": self.uniform_rank, "error": self.uniform_error},
            "dropped": len(self.dropped),
            "score": None if self.score is None else dict(self.score),
        }


@dataclass(frozen=True)
class ResizeResult:
    """An adapter under several plans.

    Attributes:
        source: the adapter's file.
        kind: the kinds of its updates, joined.
        plans: in the order they were asked for.
        left_out: updates without a rank to reduce; a resized adapter does not hold them.
        dtype: what factors are stored in; None where each keeps its source's.
        scores: "base" (no ΔW) and "before" (all of it), where it was evaluated; `scored_on` says on what.
        resized: the adapter of the only plan, where it was asked for.
    """

    source: Source
    kind: str
    plans: tuple[Plan, ...]
    parameters_before: int
    left_out: tuple[Skipped, ...] = ()
    dtype: str | None = None
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scored_on: str = ""
    notes: tuple[str, ...] = ()
    resized: Adapter | None = None

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        return words.findings(self)

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

    def table(self) -> "pd.DataFrame":
        """One row per plan and module."""
        import pandas as pd

        return pd.DataFrame(self.flat_rows())

    def flat_rows(self) -> list[dict[str, Any]]:
        rows = []
        for plan in self.plans:
            for module in plan.modules:
                record = module.record()
                d_out, d_in = record.pop("shape")
                rows.append({"plan": plan.label, **record, "d_out": d_out, "d_in": d_in})
        return rows

    def summary(self) -> dict[str, Any]:
        return {
            "modules": len(self.plans[0].modules),
            "parameters_before": self.parameters_before,
            "plans": [{**plan.summary(), "share_of_gain": self.gain(plan)} for plan in self.plans],
            "scores": {name: dict(score) for name, score in self.scores.items()},
            "scored_on": self.scored_on or None,
            "left_out": len(self.left_out),
        }

    def to_json(self) -> dict[str, Any]:
        """Everything but the factors; schema 1."""
        return {
            "schema": SCHEMA,
            "lorascope": lorascope.__version__,
            "source": asdict(self.source),
            "kind": self.kind,
            "dtype": self.dtype,
            "summary": self.summary(),
            "plans": [
                {"plan": plan.label, "modules": [module.record() for module in plan.modules]} for plan in self.plans
            ],
            "left_out": [asdict(item) for item in self.left_out],
            "findings": [{"severity": f.severity, "module": f.module, "text": f.text} for f in self.findings],
        }

    def blocks(self) -> tuple[Block, ...]:
        return page.blocks(self)
