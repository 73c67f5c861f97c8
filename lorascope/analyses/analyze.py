"""What is in this adapter: how much rank does it use, where does it change the model, and what is wrong with it?

Three analyses in one result and on one page: the spectrum of every ΔW, what is specific to the method, and with the
base ΔW against W. Their docstrings have the definitions, the random baselines, and when each misleads.

When it misleads: where one of the three does. And it sees one adapter: whether two of them differ by more than their
seeds is for `compare`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from lorascope.analyses import like, method_specific, rules, spectrum
from lorascope.analyses.base import Analysis, Result, analyses
from lorascope.analyses.method_specific import MethodSpecificResult, engine
from lorascope.analyses.spectrum import ModuleSpectrum, SpectrumResult, page, screen
from lorascope.analyses.toolkit import Row, flat, short_path
from lorascope.blocks import Block, Definitions, Finding, Heatmap, Lines
from lorascope.errors import InputError
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter, Skipped

if TYPE_CHECKING:
    from lorascope.analyses.against_base import AgainstBaseResult
    from lorascope.weights.base_svd import SvdCache
    from lorascope.weights.checkpoint import Checkpoint


UNCHANGED = {rules.NO_CHANGE.code, rules.UNCHANGED_MODULES.code}  # said once, of ΔW or of the roles it is made of


@dataclass(frozen=True, repr=False)
class AnalyzeResult(Result):
    """What is in one adapter.

    Attributes:
        spectrum, method_specific: the results of those analyses.
        against_base: that of ΔW against W, where a base was given.
        like: its measures compared with those of other adapters, as `like.compared` gives it.
    """

    analysis: ClassVar[str] = "analyze"

    spectrum: SpectrumResult
    method_specific: MethodSpecificResult
    against_base: "AgainstBaseResult | None" = None
    like: Row | None = None

    @property
    def rows(self) -> tuple[ModuleSpectrum, ...]:
        """The spectrum of each module."""
        return self.spectrum.rows

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        return self.spectrum.skipped

    def summary(self) -> Row:
        return self.spectrum.summary()

    def record(self) -> Row:
        record = self.spectrum.record() | {
            "modules": self.records(),
            "method_specific": self.method_specific.by_section(),
        }
        if self.like is not None:
            record["like"] = self.like
        if self.against_base is not None:
            against = self.against_base
            findings = [rules.record(finding) for finding in against.findings]
            record["against_base"] = {"summary": against.summary(), "findings": findings}
        return record

    def records(self) -> list[Row]:
        """Those of the spectrum; what was measured of W in ΔW's directions joins their `against_base`."""
        records = self.spectrum.records()
        if self.against_base is not None:
            for record in records:
                if record["against_base"] is not None:
                    record["against_base"] |= self.against_base.of_module(record["name"])
        return records

    def flat_rows(self) -> list[Row]:
        path = self.spectrum.source.path
        rows = ({key: v for key, v in record.items() if key != "singular_values"} for record in self.records())
        return [{"path": path, **flat(row)} for row in rows]


def findings_of(adapter: Adapter) -> tuple[Finding, ...] | None:
    """What `run` finds in an adapter alone; None where that needs the base."""
    try:
        return tuple(run(adapter).findings)
    except InputError:
        return None


def run(
    adapter: Adapter,
    *,
    base: "Checkpoint | None" = None,
    modules: str | None = None,
    progress: Callable[[list[Update]], Any] = iter,
    cache: "SvdCache | None" = None,
    base_name: str | None = None,
) -> AnalyzeResult:
    """Analyse one adapter.

    Args:
        adapter: as `weights.io.read` gives it.
        base: the model it belongs to; DoRA, (IA)³ and saved modules need it, and with it ΔW is compared with W.
        modules: a regular expression; only modules whose name it matches are analysed.
        progress: wraps the list of updates, such as a progress bar.
        cache: of the base's SVDs; without one they are computed, where they are small, and forgotten.
        base_name: what the base is called in the result; its path by default.

    Raises:
        InputError: no module can be analysed and nothing else be said, or `modules` is not a regular expression.
    """
    specific = method_specific.run(adapter, base=base, modules=modules)
    # IA³'s scales need no base, its spectra do; of a prompt, the result says that it is no update of a weight.
    at_least = 0 if specific.sections or adapter.non_weight_tensors else 1
    measured = spectrum.run(adapter, base=base, modules=modules, progress=progress, at_least=at_least)
    if base is None:
        return AnalyzeResult(measured, specific)
    from lorascope.analyses import against_base  # not needed, and not loaded, without a base

    against = against_base.run(adapter, base, modules=modules, cache=cache, progress=progress)
    return AnalyzeResult(replace(measured, base=base_name or measured.base), specific, against)


def findings(result: AnalyzeResult) -> list[Finding]:
    against = result.against_base.findings if result.against_base is not None else ()
    others = [] if result.like is None else [like.finding(result.like)]
    spectrum_rules = {finding.rule for finding in result.spectrum.findings} & UNCHANGED
    specific = (finding for finding in result.method_specific.findings if finding.rule not in spectrum_rules)
    return [*others, *result.spectrum.findings, *against, *specific]


def heading(result: AnalyzeResult) -> tuple[str, str]:
    title, summary = page.heading(result.spectrum)
    if not result.rows:
        source, count = result.spectrum.source, sum(result.method_specific.kinds.values())
        needed = any("depends on W" in item.reason for item in result.spectrum.skipped_in())
        what = f"{count} modules, pass --base to compute ‖ΔW‖" if count or needed else "no weight update"
        summary = f"{source.method} ({source.format}), {what}"
    return title or short_path(result.spectrum.source.path), summary


def blocks(
    result: AnalyzeResult, *, sort: str = page.SORT, top: int | None = None, complete: bool = True
) -> tuple[Block, ...]:
    """The first screen, the spectrum, ΔW against W, what is specific to the method, all definitions, the file.

    Args:
        sort: the metric by which the largest and smallest modules are listed on the terminal.
        top: how many at each end; without it, and without another metric than the energy, one line has the largest.
        complete: make what is for the page alone, too, and not the terminal's blocks only.

    Raises:
        InputError: `sort` is not a metric.
    """
    first = screen.summary(result.spectrum, result.findings)
    if not result.rows:
        first = replace(first, facts=(heading(result)[1],), tiles=())
    made = [first, *page.sections(result.spectrum, sort=sort, top=top, page=complete)]
    made += [] if result.like is None else like.tables(result.like)
    definitions = [*page.DEFINITIONS]
    if result.against_base is not None and result.against_base.rows:
        from lorascope.analyses import against_base

        made += against_base.sections(result.against_base)
        definitions += against_base.DEFINITIONS
    made += engine.sections(result.method_specific)
    if not complete:  # the last two are the page's alone, and to state the files' hash is to read them once more
        return tuple(made)
    definitions += engine.definitions_of(result.method_specific)
    return (*made, Definitions(tuple(definitions), where="page"), page.facts(result.spectrum))


def norms(result: AnalyzeResult) -> Lines | None:
    """How much of W lies along ΔW's directions, by depth; None without a base."""
    from lorascope.analyses import against_base

    return against_base.norms(result.against_base) if result.against_base and result.against_base.rows else None


PLOTS: dict[str, Callable[[AnalyzeResult], Lines | Heatmap | None]] = {
    "spectra": lambda result: page.spectra(result.spectrum),
    "energy": lambda result: page.energy(result.spectrum),
    "heatmap": lambda result: page.heatmap(result.spectrum),
    "against_base": norms,
}

analyses.register("analyze")(
    Analysis(__doc__ or "", "adapter", run, findings, blocks, heading, "analyze", page.METRICS, PLOTS)
)
