"""The result in words: what is broken, what the file cannot tell, then what ΔW looks like, each with its number."""

from typing import TYPE_CHECKING

import numpy as np

from lorascope.blocks import Finding
from lorascope.errors import preview
from lorascope.weights.delta import DEQUANTISED

if TYPE_CHECKING:
    from lorascope.analyses.delta.matrix import MatrixDelta
    from lorascope.analyses.delta.result import DeltaResult

ROUNDING_WORTH_SAYING = 0.05  # of ‖ΔW‖², below the rounding floor
VECTOR_WORTH_SAYING = 0.05  # relative change of a bias or a norm's weight
HARMLESS = ("tied:", "holds ")  # why a parameter is not compared, where nothing is missed
UNLIKELY = 4.0  # standard deviations of the cosine


def findings(result: "DeltaResult") -> tuple[Finding, ...]:
    """Errors, then warnings, then notes."""
    order = {"error": 0, "warning": 1, "note": 2}
    found = [*_broken(result), *_files(result), *_rounding(result), *_rank(result), *_where(result)]
    found += [*_adapters(result), *_vectors(result), *_extracted(result)]
    return tuple(sorted(found, key=lambda finding: order[finding.severity]))


def _broken(result: "DeltaResult") -> list[Finding]:
    found = [
        Finding("error", f"{record.non_finite:,} entries are NaN or infinite; nothing else can be said", record.name)
        for record in (*result.matrices, *result.vectors)
        if record.non_finite
    ]
    if not result.changed and not found:
        moved = any(vector.change_norm for vector in result.vectors)
        missing = _missing(result)
        if missing:
            compared = len(result.matrices) + len(result.vectors)
            more = (
                f" that was compared; but only {compared} of {compared + missing} parameters were: it says nothing of"
            )
            found.append(Finding("error", f"ΔW is zero in every matrix{more} the other {missing}"))
            return found
        more = "; only vectors changed" if moved else ": the two hold the same weights"
        found.append(Finding("warning" if moved else "error", f"ΔW is zero in every matrix{more}"))
    return found


def _missing(result: "DeltaResult") -> int:
    """How many parameters could not be compared, but for ties and what holds no weights."""
    return sum(
        not item.reason.startswith(HARMLESS) or (item.reason.startswith("holds ") and "weight" in item.name)
        for item in result.unmatched
    )


def _files(result: "DeltaResult") -> list[Finding]:
    found = []
    if result.unmatched:
        total = len(result.unmatched) + len(result.matrices) + len(result.vectors)
        names = preview([item.name for item in result.unmatched], 2)
        text = f"not compared: {len(result.unmatched)} of {total} parameters ({names}); the reasons are listed"
        found.append(Finding("warning" if _missing(result) else "note", text))
    zero = [m for m in result.matrices if m.frobenius_norm == 0]
    if zero and result.changed:
        found.append(
            Finding("note", f"unchanged: {len(zero)} of {len(result.matrices)} matrices, such as {zero[0].name}")
        )
    coded = [m for m in result.matrices if any(note.startswith(DEQUANTISED) for note in m.notes)]
    if coded:
        note = next(note for note in coded[0].notes if note.startswith(DEQUANTISED))
        text = f"{len(coded)} of {len(result.matrices)} matrices are {note}, which no noise floor here counts"
        found.append(Finding("warning", text))
    resized = [m for m in result.matrices if any("resized" in note for note in m.notes)]
    found += [Finding("warning", note, m.name) for m in resized for note in m.notes if "resized" in note]
    largest = max((m.relative_norm or 0 for m in result.changed), default=0)
    median = np.median([m.relative_norm for m in result.changed if m.relative_norm is not None] or [0])
    if median > 1:
        text = f"‖ΔW‖/‖W‖ is {median:.2f} in the median matrix: unrelated weights of one norm give 1.41"
        found.append(Finding("warning", f"{text}; is it the base of this model?"))
    elif largest:
        text = f"‖ΔW‖/‖W‖ is {percent(median)} in the median matrix and at most {percent(largest)}"
        found.append(Finding("note", text))
    return found


def _rounding(result: "DeltaResult") -> list[Finding]:
    known = [m for m in result.changed if m.noise_floor]
    below = [m for m in known if 1 - m.noise_floor["energy_share"] > ROUNDING_WORTH_SAYING]
    found = []
    if below:
        worst = min(below, key=lambda m: m.noise_floor["energy_share"])
        text = (
            f"{percent(1 - worst.noise_floor['energy_share'])} of ‖ΔW‖² lies below what rounding to"
            f" {worst.effective_dtype} alone makes, and over {percent(ROUNDING_WORTH_SAYING)} in"
            f" {_count(below, result)}: there the tail of the spectrum says nothing"
        )
        found.append(Finding("warning", text, worst.name))
    narrow = [m for m in known if m.effective_dtype != m.tuned_dtype]
    if narrow:
        text = (
            f"stored as {narrow[0].tuned_dtype}, the values of {_count(narrow, result)} are {narrow[0].effective_dtype}"
        )
        found.append(Finding("note", f"{text}: the floor is that of {narrow[0].effective_dtype}"))
    coarse = [m for m in known if m.noise_floor["base_floor"]]
    if coarse:
        hidden = sum(m.singular_values[0] <= m.noise_floor["base_floor"] for m in coarse)
        text = (
            f"the base is stored in {coarse[0].base_dtype}, coarser than the tuned side: if the tuning started from a"
            f" finer copy, ΔW holds the base's rounding as well, which would reach above σ₁ in {hidden} of"
            f" {len(coarse)} matrices"
        )
        found.append(Finding("warning" if hidden else "note", text))
    return found


def _rank(result: "DeltaResult") -> list[Finding]:
    found = []
    known = [m for m in result.changed if (m.energy_rank or {}).get("0.9")]
    if known:
        rank = np.median([m.energy_rank["0.9"] for m in known])
        null = np.median([m.null["energy_rank_0.9"] for m in known])
        ratio = np.median([m.energy_rank_of_null["0.9"] for m in known])
        text = f"90 % of the energy needs rank {rank:.0f} in the median matrix, {percent(ratio)} of the {null:.0f} that"
        found.append(Finding("note", f"{text} a matrix of pure noise of these shapes needs"))
    known = [m for m in result.changed if m.noise_floor]
    if known and result.top is None and np.median([m.noise_floor["rank"] / min(m.shape) for m in known]) < 1:
        above = [m.noise_floor["rank"] for m in known]
        none = [m for m in known if m.noise_floor["rank"] == 0]
        text = f"above what rounding alone makes stand {np.median(above):.0f} singular values in the median matrix and"
        text += f" at most {max(above)}"
        text += f"; none in {_count(none, result)}, whose ΔW is rounding" if none else ""
        found.append(Finding("note", text))
    gavish = [m.gavish_donoho["rank"] for m in result.changed if m.gavish_donoho]
    if gavish:
        edge = np.median([m.marchenko_pastur["rank"] for m in result.changed if m.marchenko_pastur])
        permuted = np.median([m.permutation["rank"] for m in result.changed if m.permutation])
        text = (
            f"directions that stand out of the matrix's own bulk, in the median: {np.median(gavish):.0f} by Gavish and"
            f" Donoho, {edge:.0f} above the Marchenko–Pastur edge, {permuted:.0f} above its entries permuted"
        )
        found.append(Finding("note", text))
    best = result.best()
    if len(best) > 1:
        ranks = [k for k in ("1", "8", "16", "64") if k in best]
        kept = ", ".join(f"{percent(best[k])} at r = {k}" for k in ranks)
        found.append(Finding("note", f"a product B·A keeps at best, of all of ‖ΔW‖²: {kept}"))
    return found


def _where(result: "DeltaResult") -> list[Finding]:
    groups: dict[str, float] = {}
    for matrix in result.changed:
        groups[matrix.type] = groups.get(matrix.type, 0.0) + matrix.energy
    if len(groups) < 2:
        return []
    name, energy = max(groups.items(), key=lambda item: item[1])
    parts = sum(matrix.type == name for matrix in result.changed) / len(result.changed)
    share = percent(energy / result.total_energy)
    return [Finding("note", f"{share} of the energy ‖ΔW‖² is in {name} ({percent(parts)} of the matrices)")]


def _adapters(result: "DeltaResult") -> list[Finding]:
    sides = (*result.adapters, result.tuned)
    found = [Finding("warning", f"{side.label or side.path}: {note}") for side in sides for note in side.notes]
    for side in result.adapters:
        whole = result.captured(side.label)
        if not whole["matrices"]:
            found.append(Finding("warning", f"{side.label}: adapts none of the matrices that changed"))
            continue
        cosine, chance = whole["cosine"], whole["cosine_chance"]
        text = (
            f"{side.label}: in the {whole['matrices']} matrices it adapts ({percent(whole['energy_share'])} of ‖ΔW‖²)"
        )
        if cosine is None:
            found.append(Finding("warning", f"{text} its update is zero"))
            continue
        sort = "as chance gives" if abs(cosine) < UNLIKELY * chance else f"{abs(cosine) / chance:.0f} times chance"
        if whole["both"] is not None and whole["best"] is not None:
            text += (
                f" its column and row spaces hold {percent(whole['left'])} and {percent(whole['right'])} of ΔW"
                f" (by chance {percent(whole['chance']['left'])} and {percent(whole['chance']['right'])}),"
                f" both at once {percent(whole['both'])}; the best of its rank {percent(whole['best'])};"
            )
        found.append(Finding("note", f"{text} cosine {cosine:.3f}, {sort}; ‖ΔW − BA‖²/‖ΔW‖² = {whole['residual']:.3g}"))
    return found


def _vectors(result: "DeltaResult") -> list[Finding]:
    moved = [v for v in result.vectors if v.relative_change]
    if not result.vectors:
        return []
    if not moved:
        return [Finding("note", f"vectors (biases, norms): none of {len(result.vectors)} changed")]
    worst = max(moved, key=lambda v: v.relative_change)
    middle = float(np.median([v.relative_change for v in moved]))
    text = (
        f"vectors (biases, norms): {len(moved)} of {len(result.vectors)} changed,"
        f" by {percent(middle)} in the median and at most {percent(worst.relative_change)}"
    )
    severe = "warning" if worst.relative_change > VECTOR_WORTH_SAYING and result.extract else "note"
    return [Finding(severe, text, worst.name)]


def _extracted(result: "DeltaResult") -> list[Finding]:
    if result.extract is None or not result.left_out:
        return []
    names = preview([item.name for item in result.left_out], 2)
    text = f"the extracted adapter leaves out {len(result.left_out)} changed parameters ({names}): vectors and the like"
    return [Finding("warning", text)]


def _count(some_matrices: "list[MatrixDelta]", result: "DeltaResult") -> str:
    n, total = len(some_matrices), len(result.changed)
    return f"all {total} matrices" if n == total else f"{n} of {total} matrices"


def percent(share: float, digits: int = 2) -> str:
    """`digits` significant digits, never in exponents: 0.2912 is "29 %"."""
    return f"{np.format_float_positional(100 * share, digits, fractional=False, trim='-')} %"
