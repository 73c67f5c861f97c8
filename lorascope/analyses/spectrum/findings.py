"""What a careful colleague would point out about a spectrum, each with its number."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from lorascope.analyses.adapter_updates import PARTIAL
from lorascope.analyses.spectrum.module import ModuleSpectrum
from lorascope.analyses.spectrum.result import SpectrumResult
from lorascope.analyses.toolkit import counted, group, percent, value
from lorascope.blocks import Finding
from lorascope.errors import preview
from lorascope.weights.checkpoint import ABSENT

LOSS_REPORT_THRESHOLD = 0.01  # of the update, lost to rounding by a merge
OUTLIER = 5.0  # times the median spectral norm


@np.errstate(over="ignore", invalid="ignore")  # medians of numbers at the end of float64's range
def findings(result: SpectrumResult) -> list[Finding]:
    return [
        *_broken(result), *_reader(result), *_untrained(result), *_rank(result), *_where(result),
        *_whether_base(result), *_base(result),
    ]  # fmt: skip


def _broken(result: SpectrumResult) -> list[Finding]:
    made = []
    for m in result.rows:
        if m.non_finite or m.singular_values is None:
            values = f"{m.non_finite:,} NaN or Inf value{'s' * (m.non_finite != 1)}"
            problem = values if m.non_finite else "ΔW is too large for float64"
            made.append(Finding("error", f"{problem}; this module is excluded from all statistics below", m.name))
    return made


def _reader(result: SpectrumResult) -> list[Finding]:
    made = [Finding("warning", note) for note in result.notes]
    skipped = result.unmeasured
    if not result.rows:
        needs_base = any("depends on W" in item.reason for item in skipped)
        text = "ΔW of every module depends on the base weights: pass --base MODEL"
        made.append(Finding("warning", text if needs_base else f"no weight update: {skipped[0].reason}"))
    partial = [m.name for m in result.rows if PARTIAL in m.notes]
    if partial:
        action = "pass --base MODEL for the full ΔW" if result.base is None else "W is needed for the full ΔW"
        where = _count(partial, result)
        text = f"in {where} the spectra cover only the low-rank part s·B·A, which is not the full ΔW; {action}"
        made.append(Finding("warning", text))
    if skipped:
        names = preview([item.name for item in skipped], 2)
        tensors = f"{len(skipped)} tensor{'s' * (len(skipped) != 1)} skipped ({names})"
        made.append(Finding("note", f'{tensors}; reasons in the table "Skipped tensors" (--html, --json)'))
    return made


def _untrained(result: SpectrumResult) -> list[Finding]:
    zero = [m for m in result.rows if m.frobenius_norm == 0]
    frozen = [m for m in result.rows if m.a_at_initialisation and m.frobenius_norm]
    made = []
    if zero and len(zero) == len(result.rows):
        cancel = ". No factor is zero: they cancel, or their product is too small for float64"
        why = ". B is zero: it was saved before training, or received no gradient"
        why = why if all(m.b_zero for m in zero) else cancel
        why = "" if any(m.b_zero is None for m in zero) else why
        made.append(Finding("error", f"ΔW = 0 in every module: the adapter changes nothing{why}"))
    elif zero:
        text = f"ΔW is exactly zero in {_count(zero, result)} (first: {zero[0].name})"
        action = "check target_modules, layers_to_transform and frozen parameters"
        made.append(Finding("warning", f"{text}: {action}"))
    if frozen:
        text = f"in {_count(frozen, result)}, A is indistinguishable from its random initialisation"
        made.append(Finding("note", f"{text}: frozen (as in LoRA-FA) or barely trained"))
    return made


def _rank(result: SpectrumResult) -> list[Finding]:
    measured = [m for m in result.rows if m.energy_ranks["energy_rank_0.95"] and m.stable_rank is not None]
    if not measured:
        return []
    ranks = np.array([m.energy_ranks["energy_rank_0.95"] for m in measured])
    largest = max(_max_rank(m) for m in measured)
    of = "r =" if all(m.rank == _max_rank(m) for m in measured) else "at most"
    text = (
        f"95 % of ‖ΔW‖² fits in rank {ranks.max()} in every module (99 % in rank {result.uniform_rank(0.99)}),"
        f" of {of} {largest}; the median module needs {np.median(ranks):.0f}"
    )
    made = [Finding("note", text)]
    highest = [m for m, rank in zip(measured, ranks, strict=True) if rank == ranks.max()]
    if ranks.max() > np.median(ranks):
        others = ", as does 1 other" if len(highest) == 2 else f", as do {len(highest) - 1} others"
        text = f"needs the highest rank of all modules: {ranks.max()} for 95 % of its energy"
        made.append(Finding("note", text + others * (len(highest) > 1), highest[0].name))
    made += _against_random(measured)
    negligible = [m for m in measured if (m.negligible_share or 0) > 0]
    if negligible:
        share = float(np.mean([m.negligible_share or 0.0 for m in negligible]))
        text = (
            f"{percent(share)} of the rank directions in {_count(negligible, result)} are numerically zero"
            f" (smaller than {negligible[0].dtype} rounding error)"
        )
        made.append(Finding("note", text))
    return made


def _max_rank(module: ModuleSpectrum) -> int:
    """The largest rank that ΔW can have: r, but of a scaled W, and of DoRA's whole ΔW, the smaller side."""
    whole = module.rank is None or (module.kind == "magnitude" and PARTIAL not in module.notes)
    return min(module.shape) if whole or module.rank is None else module.rank


def _against_random(measured: list[ModuleSpectrum]) -> list[Finding]:
    compared = [m for m in measured if m.rank_utilisation_of_null is not None and m.null]
    if not compared:
        return []
    ratio, stable, null = (
        float(np.median([value(m, key) for m in compared]))
        for key in ("rank_utilisation_of_null", "stable_rank", "null.stable_rank")
    )
    text = f"median stable rank {stable:.3g}, {percent(ratio)} of the random baseline ({null:.3g})"
    return [Finding("note", text)]


def _where(result: SpectrumResult) -> list[Finding]:
    if result.total_energy == 0:
        return []
    made = []
    by_type = group(result.rows)
    if len(by_type) > 1:
        name, modules = max(by_type.items(), key=lambda item: result.energy(item[1]))
        share, parts = result.energy(modules) / result.total_energy, len(modules) / len(result.rows)
        text = f"{name} carries {percent(share)} of the total update energy ‖ΔW‖² with {percent(parts)} of the modules"
        made.append(Finding("note", text))
    norms = [m.spectral_norm for m in result.rows if m.spectral_norm]
    middle = float(np.median(norms)) if norms else 0.0
    high = [m for m in result.rows if m.spectral_norm and m.spectral_norm > OUTLIER * middle]
    if high:
        top = max(high, key=lambda m: m.spectral_norm or 0.0)
        size = top.spectral_norm or 0.0
        text = f"‖ΔW‖₂ = {size:.3g}, {size / middle:.1f} times the median of all modules"
        others = f"; {len(high)} modules exceed {OUTLIER:.0f}× the median" if len(high) > 1 else ""
        made.append(Finding("warning", text + others, top.name))
    return made


def _whether_base(result: SpectrumResult) -> list[Finding]:
    """What the files say of whether this is the base that the adapter was trained on."""
    items = result.not_compared
    if not items:
        return []
    reasons = Counter(item.reason for item in items)
    named = "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common(3))
    total = len({m.name for m in result.rows} | {item.name for item in items})
    where = "are not in the base" if set(reasons) == {ABSENT} else f"are not compared with the base ({named})"
    text = f"{len(items)} of {total} modules {where}, such as {items[0].name}"
    return [Finding("error" if result.nothing_compared else "warning", text)]


def _base(result: SpectrumResult) -> list[Finding]:
    compared = [(m, b) for m in result.rows if (b := m.against_base) and b.relative_norm is not None]
    if not compared:
        return []
    module, largest = max(compared, key=lambda pair: pair[1].relative_norm or 0.0)
    middle = float(np.median([b.relative_norm or 0.0 for _, b in compared]))
    size = percent(largest.relative_norm or 0.0, 3)
    text = f"‖ΔW‖/‖W‖ = {size}, the largest of all modules (median {percent(middle, 3)})"
    made = [Finding("note", text, module.name)]
    lossy = [(m, b, b.rounding_loss) for m, b in compared if (b.rounding_loss or 0) > LOSS_REPORT_THRESHOLD]
    if lossy:
        module, base, loss = max(lossy, key=lambda each: each[2] or 0.0)
        text = (
            f"merging into {base.dtype} loses {percent(loss or 0.0)} of this module's update to rounding"
            f" and over {percent(LOSS_REPORT_THRESHOLD)} in {_count(lossy, result)}: merge with --dtype float32"
        )
        made.append(Finding("warning", text, module.name))
    return made


def _count(some_modules: Sequence[Any], result: SpectrumResult) -> str:
    return counted(len(some_modules), len(result.rows))
