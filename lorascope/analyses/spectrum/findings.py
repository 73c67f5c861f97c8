"""The result in words: what a careful colleague would point out, the worst first, each with its number."""

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from lorascope.analyses.adapter_updates import PARTIAL
from lorascope.blocks import Finding
from lorascope.errors import preview
from lorascope.weights.checkpoint import ABSENT

if TYPE_CHECKING:
    from lorascope.analyses.spectrum.module import ModuleSpectrum
    from lorascope.analyses.spectrum.result import SpectrumResult

LOSS_WORTH_SAYING = 0.01  # of the update, rounded away by a merge
NULL_WORTH_SAYING = 0.5  # stable rank against a structureless update of the same shape
OUTLIER = 5.0  # times the median spectral norm


@np.errstate(over="ignore", invalid="ignore")  # medians of numbers at the end of float64's range
def findings(result: "SpectrumResult") -> tuple[Finding, ...]:
    """Errors, then warnings, then notes."""
    order = {"error": 0, "warning": 1, "note": 2}
    found = [*_broken(result), *_reader(result), *_untrained(result), *_rank(result), *_where(result)]
    found += [*_whether_base(result), *_base(result)]
    return tuple(sorted(found, key=lambda finding: order[finding.severity]))


def _broken(result: "SpectrumResult") -> list[Finding]:
    found = []
    for m in result.modules:
        if m.non_finite or m.singular_values is None:
            count = f"{m.non_finite:,} entries are NaN or infinite" if m.non_finite else "ΔW is too large for float64"
            found.append(Finding("error", f"{count}; nothing else about this module can be said", m.name))
    return found


def _reader(result: "SpectrumResult") -> list[Finding]:
    found = [Finding("warning", note) for note in result.notes]
    if not result.modules:
        needy = any("depends on W" in item.reason for item in result.skipped)
        text = "no singular values: ΔW depends on W in every module; pass --base MODEL"
        found.append(Finding("warning", text if needy else f"no weight update: {result.skipped[0].reason}"))
    partial = [m.name for m in result.modules if PARTIAL in m.notes]
    if partial:
        more = "pass --base for the whole ΔW" if result.base is None else "W is needed for the whole ΔW"
        text = f"in {_count(partial, result)} the numbers are those of s·B·A alone, which is not ΔW; {more}"
        found.append(Finding("warning", text))
    if result.skipped:
        names = preview([item.name for item in result.skipped], 2)
        found.append(Finding("note", f"not analysed: {len(result.skipped)} ({names}); the reasons are listed"))
    return found


def _untrained(result: "SpectrumResult") -> list[Finding]:
    zero = [m for m in result.modules if m.frobenius_norm == 0]
    frozen = [m for m in result.modules if m.a_at_initialisation and m.frobenius_norm]
    found = []
    if zero and len(zero) == len(result.modules):
        small = "no factor is zero: they cancel, or their product is too small for float64"
        why = "B was never trained" if all(m.b_zero for m in zero) else small
        why = "" if any(m.b_zero is None for m in zero) else f" ({why})"
        found.append(Finding("error", f"ΔW is zero in every module: this adapter changes nothing{why}"))
    elif zero:
        found.append(Finding("warning", f"ΔW is exactly zero in {_count(zero, result)}, such as {zero[0].name}", None))
    if frozen:
        where = _count(frozen, result)
        text = f"A still looks like its Kaiming-uniform initialisation in {where}: frozen (LoRA-FA) or hardly trained"
        found.append(Finding("note", text))
    return found


def _rank(result: "SpectrumResult") -> list[Finding]:
    measured = [m for m in result.modules if m.energy_rank and m.stable_rank is not None]
    if not measured:
        return []
    ranks = np.array([m.energy_rank["0.95"] for m in measured])
    worst = measured[int(ranks.argmax())]
    top = max(_most_possible(m) for m in measured)
    of = "r =" if all(m.rank == _most_possible(m) for m in measured) else "at most"
    text = (
        f"rank {ranks.max()} keeps 95 % of the energy in every module"
        f" ({result.uniform_rank(0.99)} keeps 99 %), of {of} {top};"
        f" half the modules need {np.median(ranks):.0f} or fewer"
    )
    found = [Finding("note", text)]
    asking = [m for m, rank in zip(measured, ranks, strict=True) if rank == ranks.max()]
    if ranks.max() > np.median(ranks):
        others = f", as do {len(asking) - 1} others" if len(asking) > 1 else ""
        found.append(
            Finding("note", f"asks for the highest rank: {ranks.max()} for 95 % of its energy{others}", worst.name)
        )
    found += _against_null(measured)
    empty = [m for m in measured if (m.negligible_share or 0) > 0]
    if empty:
        share = float(np.mean([m.negligible_share for m in empty]))
        where = _count(empty, result)
        rounding = f"below the rounding of {empty[0].dtype}"
        text = f"numerically nothing: {_percent(share)} of the directions in {where} are {rounding}"
        found.append(Finding("note", text))
    return found


def _most_possible(module: "ModuleSpectrum") -> int:
    """The largest rank that ΔW can have: r, but of a scaled W, and of DoRA's whole ΔW, the smaller side."""
    whole = module.rank is None or (module.kind == "magnitude" and PARTIAL not in module.notes)
    return min(module.shape) if whole or module.rank is None else module.rank


def _against_null(measured: "list[ModuleSpectrum]") -> list[Finding]:
    compared = [m for m in measured if m.rank_utilisation_of_null is not None]
    if not compared:
        return []
    ratio = float(np.median([m.rank_utilisation_of_null for m in compared]))
    stable = float(np.median([m.stable_rank for m in compared]))
    null = float(np.median([m.null["stable_rank"] for m in compared]))
    text = (
        f"median stable rank {stable:.3g}, {_percent(ratio)} of the {null:.3g} of a structureless B·A of these shapes"
    )
    return [Finding("note", text)]


def _where(result: "SpectrumResult") -> list[Finding]:
    if result.total_energy == 0:
        return []
    found = []
    by_type = group(result, "type")
    if len(by_type) > 1:
        name, modules = max(by_type.items(), key=lambda item: result.energy(item[1]))
        share, parts = result.energy(modules) / result.total_energy, len(modules) / len(result.modules)
        found.append(
            Finding("note", f"{_percent(share)} of the energy ‖ΔW‖² is in {name} ({_percent(parts)} of the modules)")
        )
    norms = [m.spectral_norm for m in result.modules if m.spectral_norm]
    middle = float(np.median(norms)) if norms else 0.0
    high = [m for m in result.modules if m.spectral_norm and m.spectral_norm > OUTLIER * middle]
    if high:
        worst = max(high, key=lambda m: m.spectral_norm)
        text = f"‖ΔW‖₂ = {worst.spectral_norm:.3g}, {worst.spectral_norm / middle:.1f} times the median module's"
        others = f"; {len(high) - 1} others are over {OUTLIER:.0f} times" if len(high) > 1 else ""
        found.append(Finding("warning", text + others, worst.name))
    return found


def _whether_base(result: "SpectrumResult") -> list[Finding]:
    """What the files say of whether this is the base that the adapter was trained on."""
    found = []
    if result.not_compared:
        reasons = Counter(item.reason for item in result.not_compared)
        named = "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common(3))
        total = len({m.name for m in result.modules} | {item.name for item in result.not_compared})
        where = "are not in the base" if set(reasons) == {ABSENT} else f"are not compared with the base ({named})"
        text = f"{len(result.not_compared)} of {total} modules {where}, such as {result.not_compared[0].name}"
        found.append(Finding("error" if result.nothing_compared else "warning", text))
    return found


def _base(result: "SpectrumResult") -> list[Finding]:
    beside = [m for m in result.modules if m.against_base and m.against_base.relative_norm is not None]
    if not beside:
        return []
    worst = max(beside, key=lambda m: m.against_base.relative_norm)
    middle = float(np.median([m.against_base.relative_norm for m in beside]))
    most = _percent(worst.against_base.relative_norm, 3)
    text = f"‖ΔW‖/‖W‖ is {_percent(middle, 3)} in the median module and at most {most}"
    found = [Finding("note", text, worst.name)]
    lossy = [m for m in beside if (m.against_base.rounding_loss or 0) > LOSS_WORTH_SAYING]
    if lossy:
        worst = max(lossy, key=lambda m: m.against_base.rounding_loss)
        beside_w = worst.against_base
        text = (
            f"merging into {beside_w.dtype} rounds away {_percent(beside_w.rounding_loss)} of the update here"
            f" and over {_percent(LOSS_WORTH_SAYING)} in {_count(lossy, result)}: merge in F32"
        )
        found.append(Finding("warning", text, worst.name))
    return found


def group(result: "SpectrumResult", attribute: str) -> "dict[str, list[ModuleSpectrum]]":
    """Modules by `type` or `depth`, in order of first appearance."""
    groups: dict = {}
    for module in result.modules:
        groups.setdefault(getattr(module, attribute), []).append(module)
    return groups


def _count(some_modules: list, result: "SpectrumResult") -> str:
    n, total = len(some_modules), len(result.modules)
    return f"all {total} modules" if n == total else f"{n} of {total} modules"


def _percent(share: float, digits: int = 2) -> str:
    """`digits` significant digits, never in exponents: 0.2912 is "29 %"."""
    return f"{np.format_float_positional(100 * share, digits, fractional=False, trim='-')} %"
