"""The run over all modules, and its frozen result."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lorascope.analyses.adapter_updates import selected
from lorascope.analyses.base import Result
from lorascope.analyses.spectrum.module import Draft, ModuleSpectrum, completed, draft
from lorascope.analyses.toolkit import Row, flat, median
from lorascope.architectures import depth, module_types
from lorascope.errors import InputError
from lorascope.linalg.blas import one_thread
from lorascope.linalg.spectrum import EXTREME
from lorascope.updates.base import Stored, Update, stored_numbers
from lorascope.weights.adapter import Adapter, Skipped, Source
from lorascope.weights.caveats import fewer_layers
from lorascope.weights.checkpoint import NO_BIAS
from lorascope.weights.dtypes import SIZES
from lorascope.weights.pieces import is_large
from lorascope.weights.quantised import scheme_of

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

SHARED = ("vera", "core")  # kinds whose A and B are frozen projections
COMPARISON = "comparison with the base"  # the stage of what is measured and not compared


@dataclass(frozen=True, repr=False)
class SpectrumResult(Result):
    """Spectra of one adapter.

    Attributes:
        rows: one for each module, in the file's order.
        skipped: the tensors and modules without a spectrum, and why; after them, with the stage `COMPARISON`, the
            modules that could not be compared with the base.
        notes: what the reader wants said about the whole file.
        base: the path of the base model, where one was given.
        filtered: only some of the modules were asked for.
        parameters, bytes: how many numbers the updates hold in the file, and in how many bytes; frozen projections that
            modules share (VeRA's, LoRA-XS's) are not counted.
        training: what the file says of its training.
    """

    analysis: ClassVar[str] = "spectrum"

    rows: tuple[ModuleSpectrum, ...]
    source: Source
    settings: dict[str, Any]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    base: str | None = None
    filtered: bool = False
    parameters: int = 0
    bytes: int = 0
    training: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def unit(self) -> float:
        """What norms are divided by before they are squared: 1, or the largest where its square overflows."""
        top = max((module.frobenius_norm or 0.0 for module in self.rows), default=0.0)
        return 1.0 if top == 0 or 1 / EXTREME < top < EXTREME else top

    def energy(self, modules: Iterable[ModuleSpectrum]) -> float:
        """Σ‖ΔW‖_F² over these modules, in squares of `unit`; of one that could not be computed, 0."""
        return sum(((module.frobenius_norm or 0.0) / self.unit) ** 2 for module in modules)

    @cached_property
    def total_energy(self) -> float:
        """Σ‖ΔW‖_F² over all modules, in squares of `unit`."""
        return self.energy(self.rows)

    @property
    def frobenius_norm(self) -> float | None:
        """√Σ‖ΔW‖_F² over modules; None where it could be computed of none."""
        if self.rows and all(module.frobenius_norm is None for module in self.rows):
            return None
        return self.total_energy**0.5 * self.unit

    @property
    def nothing_compared(self) -> bool:
        """Whether a base was given and not one module could be compared with it: then it is hardly the base."""
        doubtful = any(item.reason != NO_BIAS for item in self.skipped_in(COMPARISON))
        return doubtful and not any(module.against_base for module in self.rows)

    def energy_share(self, module: ModuleSpectrum) -> float | None:
        known = module.singular_values is not None and self.total_energy > 0
        return self.energy([module]) / self.total_energy if known else None

    def uniform_rank(self, share: float) -> int | None:
        """The smallest rank that keeps `share` of the energy in *every* module: the maximum of their energy ranks."""
        ranks = [rank for m in self.rows if (rank := m.energy_ranks[f"energy_rank_{share}"]) is not None]
        return max(ranks, default=None)

    @np.errstate(over="ignore", invalid="ignore")  # medians of numbers at the end of float64's range
    def summary(self) -> Row:
        return {
            "modules": len(self.rows),
            "frobenius_norm": self.frobenius_norm,
            "median_stable_rank": median(m.stable_rank for m in self.rows),
            "median_effective_rank": median(m.effective_rank for m in self.rows),
            "median_rank_utilisation": median(m.rank_utilisation for m in self.rows),
            **{f"uniform_rank_{share}": self.uniform_rank(share) for share in (0.95, 0.99)},
        }

    def record(self) -> Row:
        return {
            "source": {**self.source.record(), "settings": self.settings, "training": self.training},
            "base": self.base,
            "summary": self.summary(),
            "modules": self.records(),
            "notes": list(self.notes),
        }

    def records(self) -> list[Row]:
        return [{**module.record(), "energy_share": self.energy_share(module)} for module in self.rows]

    def flat_rows(self) -> list[Row]:
        return [flat({key: v for key, v in row.items() if key != "singular_values"}) for row in self.records()]


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
        base: the model it belongs to; DoRA, (IA)³ and saved modules need it, and with it ΔW is compared with W.
        modules: a regular expression; only modules whose name it matches are analysed.
        progress: wraps the list of updates, such as a progress bar.
        at_least: how many modules must be measurable; 0 where there is more to say about the adapter.

    Raises:
        InputError: fewer modules are left to analyse, or `modules` is not a regular expression.
    """
    updates, skipped = selected(adapter, base, modules)
    types = module_types(update.name for update in updates)
    drafts: list[Draft] = []
    without_base: list[Skipped] = []
    with one_thread():
        for update in progress(updates):
            stored = base.lookup(update) if base is not None else None
            if isinstance(stored, str):
                without_base.append(Skipped(update.name, stored, COMPARISON))
                update, stored = replace(update, notes=(*update.notes, stored)), None
            if (reason := _unmeasurable(update, stored, without_base if base else None)) is not None:
                skipped.append(Skipped(update.name, reason))
                continue
            if (scheme := scheme_of(stored)) is not None:
                update = replace(update, notes=(*update.notes, f"W is dequantised: {scheme}"))
            drafts.append(draft(update, type=types[update.name], depth=depth(update.name), base=stored))
    if len(drafts) < at_least:
        raise InputError(
            f"no module of {adapter.source.path or 'the adapter'} could be analysed",
            found=_of_the_skipped(skipped),
            hint="pass the base model with --base" if any(u.needs_base for u in updates) else None,
        )
    caveat = fewer_layers(adapter, base.layers) if base is not None else None
    notes = (*adapter.notes, caveat) if caveat else adapter.notes
    everything_skipped, path = (*skipped, *without_base), str(base.path) if base is not None else None
    return SpectrumResult(
        tuple(completed(drafts)), adapter.source, dict(adapter.settings), everything_skipped, notes, path,
        modules is not None, *_size(updates), dict(adapter.training),
    )  # fmt: skip


def _of_the_skipped(skipped: Sequence[Skipped]) -> str:
    """How many, and why one of them was: one that the base would help, where there is one."""
    if not skipped:
        return "no weight update"
    first = next((item for item in skipped if "--base" in item.reason), skipped[0])
    return f"{len(skipped)} skipped, {first.name} because {first.reason}"


def _size(updates: Iterable[Update]) -> tuple[int, int]:
    """Numbers and bytes of the updates' arrays, without the frozen projections."""
    stored = [
        array for u in updates for role, array in u.roles.items() if u.kind not in SHARED or role not in ("A", "B")
    ]
    counts = [(stored_numbers(array), array.dtype) for array in stored]
    return sum(n for n, _ in counts), sum(n * SIZES.get(dtype, 4) for n, dtype in counts)


def _unmeasurable(update: Update, base: Stored | None, without_base: list[Skipped] | None) -> str | None:
    """Why an update has no spectrum; None where it has one. `without_base`: with a base, what it could not give."""
    if not is_large(update, base is not None) and (reason := update.excess(base)) is not None:
        return reason
    if base is not None or not update.needs_base or update.has_direction:
        return None
    if without_base is None:
        return f"ΔW of the kind {update.kind} depends on W: pass --base"
    return f"ΔW of the kind {update.kind} depends on W, and {without_base[-1].reason}"
