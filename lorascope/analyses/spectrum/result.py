"""The run over all modules, and its frozen result."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

import lorascope
from lorascope.analyses.adapter_updates import selected
from lorascope.analyses.spectrum import findings as words
from lorascope.analyses.spectrum import page
from lorascope.analyses.spectrum.module import ModuleSpectrum, measure
from lorascope.architectures import depth, module_types
from lorascope.blocks import Block, Finding
from lorascope.errors import InputError
from lorascope.linalg.blas import one_thread
from lorascope.linalg.spectrum import EXTREME
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter, Skipped, Source
from lorascope.weights.caveats import fewer_layers
from lorascope.weights.pieces import is_large
from lorascope.weights.quantised import scheme_of

if TYPE_CHECKING:
    import pandas as pd

    from lorascope.weights.checkpoint import Checkpoint

SCHEMA = 1


@dataclass(frozen=True)
class SpectrumResult:
    """Spectra of one adapter.

    Attributes:
        modules: one record each, in the file's order.
        skipped: what the reader set aside and what this analysis could not do, with reasons.
        base: the path of the base model, where one was given.
        not_compared: with a base, the modules that could not be compared with W, and why.
    """

    modules: tuple[ModuleSpectrum, ...]
    source: Source
    settings: dict[str, Any]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    base: str | None = None
    not_compared: tuple[Skipped, ...] = ()

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        return words.findings(self)

    @cached_property
    def unit(self) -> float:
        """What norms are divided by before they are squared: 1, or the largest where its square has no place."""
        top = max((module.frobenius_norm or 0.0 for module in self.modules), default=0.0)
        return 1.0 if top == 0 or 1 / EXTREME < top < EXTREME else top

    def energy(self, modules: Iterable[ModuleSpectrum]) -> float:
        """Σ‖ΔW‖_F² over these modules, in squares of `unit`; of one that could not be computed, 0."""
        return sum(((module.frobenius_norm or 0.0) / self.unit) ** 2 for module in modules)

    @cached_property
    def total_energy(self) -> float:
        """Σ‖ΔW‖_F² over all modules, in squares of `unit`."""
        return self.energy(self.modules)

    @property
    def frobenius_norm(self) -> float | None:
        """√Σ‖ΔW‖_F² over modules; None where it could be computed of none."""
        if self.modules and all(module.frobenius_norm is None for module in self.modules):
            return None
        return self.total_energy**0.5 * self.unit

    @property
    def nothing_compared(self) -> bool:
        """Whether a base was given and not one module could be compared with it: then it is hardly the base."""
        return bool(self.not_compared) and not any(module.against_base for module in self.modules)

    def energy_share(self, module: ModuleSpectrum) -> float | None:
        return self.energy([module]) / self.total_energy if self.total_energy > 0 else None

    def uniform_rank(self, share: float) -> int | None:
        """The smallest rank that keeps `share` of the energy in *every* module: the maximum of their energy ranks."""
        ranks = [rank for m in self.modules if m.energy_rank and (rank := m.energy_rank[str(share)]) is not None]
        return max(ranks, default=None)

    def table(self) -> "pd.DataFrame":
        """One row per module, nested records flattened with dots, singular values left out."""
        import pandas as pd

        return pd.DataFrame(self.flat_rows())

    def flat_rows(self) -> list[dict[str, Any]]:
        rows = []
        for record in self.to_json()["modules"]:
            row = {}
            for key, value in record.items():
                if isinstance(value, dict):
                    row.update({f"{key}.{inner}": v for inner, v in value.items()})
                elif key == "shape":
                    row.update({"d_out": value[0], "d_in": value[1]})
                elif key != "singular_values":
                    row[key] = "; ".join(value) if key == "notes" else value
            rows.append(row)
        return rows

    @np.errstate(over="ignore", invalid="ignore")  # medians of numbers at the end of float64's range
    def summary(self) -> dict[str, Any]:
        def median(name: str) -> float | None:
            values = [getattr(m, name) for m in self.modules if getattr(m, name) is not None]
            return float(np.median(values)) if values else None

        return {
            "modules": len(self.modules),
            "frobenius_norm": self.frobenius_norm,
            "median_stable_rank": median("stable_rank"),
            "median_effective_rank": median("effective_rank"),
            "median_rank_utilisation": median("rank_utilisation"),
            "uniform_rank": {str(share): self.uniform_rank(share) for share in (0.95, 0.99)},
        }

    def to_json(self) -> dict[str, Any]:
        """The documented schema, version 1 (README, "JSON")."""
        source = asdict(self.source)
        return {
            "schema": SCHEMA,
            "lorascope": lorascope.__version__,
            "source": {**source, "settings": self.settings},
            "base": self.base,
            "summary": self.summary(),
            "modules": [self._record(module) for module in self.modules],
            "skipped": [asdict(item) for item in self.skipped],
            "not_compared": [asdict(item) for item in self.not_compared],
            "notes": list(self.notes),
            "findings": [{"severity": f.severity, "module": f.module, "text": f.text} for f in self.findings],
        }

    def _record(self, module: ModuleSpectrum) -> dict[str, Any]:
        record = {**vars(module), "energy_share": self.energy_share(module)}
        record["against_base"] = asdict(module.against_base) if module.against_base else None
        return record

    def blocks(self) -> tuple[Block, ...]:
        return page.blocks(self)


def run(
    adapter: Adapter,
    *,
    base: "Checkpoint | None" = None,
    modules: str | None = None,
    progress: Callable[[list[Update]], Any] = iter,
    at_least: int = 1,
) -> SpectrumResult:
    """Measure every module of `adapter`, one at a time: memory does not grow with their number.

    Args:
        adapter: as `weights.io.read` gives it.
        base: the model it belongs to; with it DoRA, (IA)³ and saved modules are complete, and ΔW is set beside W.
        modules: a regular expression; only modules whose name it finds are analysed.
        progress: wraps the list of updates, such as a progress bar.
        at_least: how many modules must be measurable; 0 where something else can be said of them.

    Raises:
        InputError: fewer modules are left to analyse, or `modules` is not a regular expression.
    """
    updates, skipped = selected(adapter, base, modules)
    types = module_types(update.name for update in updates)
    measured: list[ModuleSpectrum] = []
    not_compared: list[Skipped] = []
    with one_thread():
        for update in progress(updates):
            stored = base.lookup(update) if base is not None else None
            if isinstance(stored, str):
                not_compared.append(Skipped(update.name, stored))
                update = replace(update, notes=(*update.notes, stored))
                stored = None
            if not is_large(update, stored is not None) and (reason := update.excess(stored)) is not None:
                skipped.append(Skipped(update.name, reason))
                continue
            if stored is None and update.needs_base and not update.has_direction:
                skipped.append(Skipped(update.name, _why_incomplete(update, not_compared if base else None)))
                continue
            if (scheme := scheme_of(stored)) is not None:
                update = replace(update, notes=(*update.notes, f"W is dequantised: {scheme}"))
            measured.append(measure(update, type=types[update.name], depth=depth(update.name), base=stored))
    if len(measured) < at_least:
        raise InputError(
            f"no module of {adapter.source.path} could be analysed",
            found=f"{len(skipped)} set aside, the first because {skipped[0].reason}" if skipped else "none",
            hint="pass the base model with --base" if any(u.needs_base for u in updates) else None,
        )
    return SpectrumResult(
        tuple(measured),
        adapter.source,
        dict(adapter.settings),
        tuple(skipped),
        (*adapter.notes, *([unsure] if base and (unsure := fewer_layers(adapter, base.layers)) else [])),
        str(base.path) if base else None,
        tuple(not_compared),
    )


def _why_incomplete(update: Update, not_compared: list[Skipped] | None) -> str:
    if not_compared is None:
        return f"ΔW of a {update.kind} update depends on W: pass --base"
    return f"ΔW of a {update.kind} update depends on W, and {not_compared[-1].reason}"
