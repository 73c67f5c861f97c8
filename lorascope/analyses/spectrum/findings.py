"""What a careful colleague would point out about a spectrum, each with its number."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lorascope.analyses.adapter_updates import PARTIAL
from lorascope.analyses.spectrum.checks import problems
from lorascope.analyses.spectrum.module import ModuleSpectrum
from lorascope.analyses.spectrum.result import SpectrumResult
from lorascope.analyses.toolkit import counted, group, medians, percent, value
from lorascope.blocks import Finding


@np.errstate(over="ignore", invalid="ignore")  # medians of numbers at the end of float64's range
def findings(result: SpectrumResult) -> list[Finding]:
    """Problems first, then what was measured."""
    return [*problems(result), *_rank(result), *_where(result), *_base(result)]


def _rank(result: SpectrumResult) -> list[Finding]:
    measured = [m for m in result.rows if m.energy_ranks["energy_rank_0.95"] and m.stable_rank is not None]
    if not measured:
        return []
    ranks = np.array([m.energy_ranks["energy_rank_0.95"] for m in measured])
    largest = max(_max_rank(m) for m in measured)
    of = "r =" if all(m.rank == _max_rank(m) for m in measured) else "at most"
    text = (
        f"95 % of ‖ΔW‖² fits in rank {ranks.max()} in every module (99 % in rank {result.uniform_rank(0.99)}),"
        f" of {of} {largest}; the median module needs {medians(ranks):.0f}"
    )
    made = [Finding("note", text)]
    highest = [m for m, rank in zip(measured, ranks, strict=True) if rank == ranks.max()]
    if ranks.max() > medians(ranks):
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
        float(medians([value(m, key) for m in compared]))
        for key in ("rank_utilisation_of_null", "stable_rank", "null.stable_rank")
    )
    text = f"Median stable rank {stable:.3g}, {percent(ratio)} of the random baseline ({null:.3g})"
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
    return made


def _base(result: SpectrumResult) -> list[Finding]:
    compared = [(m, b) for m in result.rows if (b := m.against_base) and b.relative_norm is not None]
    if not compared:
        return []
    module, largest = max(compared, key=lambda pair: pair[1].relative_norm or 0.0)
    typical = float(medians([b.relative_norm or 0.0 for m, b in compared if m.frobenius_norm] or [0.0]))
    size = percent(largest.relative_norm or 0.0, 3)
    text = f"‖ΔW‖/‖W‖ = {size}, the largest of all modules (median {percent(typical, 3)})"
    return [Finding("note", text, module.name)]


def _count(some_modules: Sequence[Any], result: SpectrumResult) -> str:
    return counted(len(some_modules), len(result.rows))
