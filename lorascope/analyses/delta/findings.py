"""The result in words: what is broken, what the file cannot tell, then what ΔW looks like, each with its number."""

from collections.abc import Sequence
from typing import Any

from lorascope.analyses import rules
from lorascope.analyses.delta.matrix import MatrixDelta
from lorascope.analyses.delta.result import EXTRACTION, DeltaResult
from lorascope.analyses.toolkit import capital, counted, extreme, group, median, percent, plural, value
from lorascope.architectures import depth, is_embedding, natural_order
from lorascope.blocks import Finding
from lorascope.errors import preview
from lorascope.weights.adapter import Skipped
from lorascope.weights.delta import DEQUANTISED

MAX_ROUNDING = 0.05  # of ‖ΔW‖², below the rounding floor: above it is reported
MAX_VECTOR_CHANGE = 0.05  # relative change of a bias or a norm's weight
HARMLESS = ("tied:", "holds ")  # why a parameter is skipped, where nothing is missed
DTYPES = {"F32": "float32", "F16": "fp16", "BF16": "bf16", "F64": "float64"}
WHOLE = "Keep the tuned checkpoint where these matter: a LoRA cannot hold them"
ONE_SIDED = ("only in the ", "has other shapes")  # why a parameter is skipped that one model lacks, or has otherwise
MAX_TYPES = 6  # named in the sentence of what changed
UNLIKELY = 4.0  # standard deviations of the cosine


def findings(result: DeltaResult) -> list[Finding]:
    """What is broken, what changed at all, what the files cannot tell, and what ΔW looks like."""
    made = [*_broken(result), *_what(result), *_files(result), *_rounding(result), *_rank(result), *_where(result)]
    return [*made, *_adapters(result), *_vectors(result), *_extracted(result), *_skipped(result)]


def beyond_rounding(matrix: MatrixDelta) -> bool:
    """Whether σ₁ of ΔW is more than rounding to either side's storage dtype can make."""
    floors = [value(matrix, f"noise_floor.{key}") for key in ("floor", "base_floor")] if matrix.noise_floor else []
    return (matrix.spectral_norm or 0.0) > max((floor for floor in floors if floor is not None), default=0.0)


def what_changed(result: DeltaResult) -> str:
    """Which module types changed by more than rounding, and what the rest is: one sentence."""
    real = [m for m in result.changed if beyond_rounding(m)]
    rounded = [m for m in result.changed if not beyond_rounding(m)]
    equal = len(result.matrices) - len(result.changed)
    dtypes = " and ".join(dict.fromkeys(DTYPES.get(m.effective_dtype, m.effective_dtype) for m in rounded))
    rest = f"the rest is {dtypes} rounding ({plural(len(rounded), 'matrix')})" if rounded else ""
    rest += (" or equal" if rounded else "the rest is equal") + f" ({plural(equal, 'matrix')})" if equal else ""
    if not real:
        return f"No matrix changed by more than rounding; {rest}" if rest else "No matrix changed"
    types, every = natural_order(m.type for m in real), {m.type for m in result.matrices}
    if len(types) == len(every) and not rest:
        return f"All {len(every)} module types changed" if len(every) > 1 else f"{types[0]} changed"
    named = types[0] if len(types) == 1 else f"{', '.join(types[:-1])} and {types[-1]}"
    named = named if len(types) <= MAX_TYPES else f"{len(types)} of {len(every)} module types"
    lead = (
        f"Only {named} changed" if len(types) < len(every) else f"{plural(len(real), 'matrix')} changed, of all types"
    )
    return f"{lead}; {rest}" if rest else lead


def _what(result: DeltaResult) -> list[Finding]:
    if not result.changed:
        return []
    names = tuple(m.name for m in result.changed if beyond_rounding(m))
    return [rules.DELTA_CHANGED.finding(what_changed(result), modules=names)]


def _broken(result: DeltaResult) -> list[Finding]:
    bad = [record for record in result.rows if record.non_finite]
    made = []
    if bad:
        entries = sum(record.non_finite for record in bad)
        action = "Find out which checkpoint has them, and use one from before the loss became NaN"
        text = f"{entries:,} entries are NaN or infinite in {len(bad)} parameters"
        text = text if len(bad) > 1 else f"{entries:,} entries are NaN or infinite"
        only, names = bad[0].name if len(bad) == 1 else None, tuple(record.name for record in bad)
        text += f" ({preview(names, 2)})" if len(bad) > 1 else ""
        text += "; no metrics computed"
        made.append(rules.DELTA_NON_FINITE.finding(text, module=only, modules=names, action=action))
    return made if result.changed or made else [_no_change(result)]


def _no_change(result: DeltaResult) -> Finding:
    if missing := _missing(result):
        compared = len(result.rows)
        text = f"that was compared; but only {compared} of {compared + missing} parameters were, and nothing is known"
        action = "Give two checkpoints that name their parameters alike"
        return rules.DELTA_ZERO.finding(f"ΔW is zero in every matrix {text} of the other {missing}", action=action)
    if any(vector.change_norm for vector in result.vectors):
        text = "ΔW is zero in every matrix; only biases and norm weights changed"
        action = "Expected where only those were trained; otherwise check which parameters were trainable"
        return rules.DELTA_ZERO.finding(text, "warning", action=action)
    text = "ΔW is zero in every matrix: the two checkpoints are identical"
    return rules.DELTA_ZERO.finding(text, action="Check the paths, and that TUNED was saved after the training")


def _missing(result: DeltaResult) -> int:
    """How many parameters could not be compared, but for ties and what holds no weights."""
    return sum(map(_is_missed, result.skipped_in()))


def _is_missed(item: Skipped) -> bool:
    return not item.reason.startswith(HARMLESS) or (item.reason.startswith("holds ") and "weight" in item.name)


def _is_head(item: Skipped) -> bool:
    """Whether it lies outside the layers and is no embedding, and one model lacks it or has it in another shape."""
    module = item.name.removesuffix(".weight")
    return item.reason.startswith(ONE_SIDED) and depth(module) is None and not is_embedding(module)


def _skipped(result: DeltaResult) -> list[Finding]:
    """A warning where parameters are missing that one would compare; a note where these are ties, buffers or heads."""
    items = result.skipped_in()
    if not items:
        return []
    total, names = len(items) + len(result.rows), tuple(item.name for item in items)
    text = f"{len(names)} of {total} tensors skipped ({preview(names, 2)}); reasons are in the report"
    missed = any(_is_missed(item) and not _is_head(item) for item in items)
    action = "Look at the reasons (--html, --json): these may have changed" if missed else ""
    return [rules.SKIPPED.finding(text, "warning" if missed else "note", modules=names, action=action)]


def _files(result: DeltaResult) -> list[Finding]:
    made = []
    zero = [m for m in result.matrices if m.frobenius_norm == 0]
    if zero and result.changed:
        made.append(
            Finding("note", f"Unchanged: {counted(len(zero), len(result.matrices), 'matrix')}, such as {zero[0].name}")
        )
    coded = [each[0] for m in result.matrices if (each := [n for n in m.notes if n.startswith(DEQUANTISED)])]
    if coded:
        text = f"{len(coded)} of {len(result.matrices)} matrices are {coded[0]}, which no noise floor here counts"
        action = "Compare checkpoints that are stored unquantised, to have the training alone"
        made.append(rules.DELTA_CODED.finding(text, action=action))
    return [*made, *_resized(result), *_size(result)]


def _resized(result: DeltaResult) -> list[Finding]:
    resized = [(m.name, note) for m in result.matrices for note in m.notes if "resized" in note]
    action = "Look at the added rows by themselves: they are new, not tuned"
    return [
        rules.DELTA_RESIZED.finding(capital(note), module=name, modules=(name,), action=action)
        for name, note in resized
    ]


def _size(result: DeltaResult) -> list[Finding]:
    middle = median(m.relative_norm for m in result.changed) or 0.0
    largest = max((m.relative_norm or 0 for m in result.changed), default=0)
    if middle > 1:
        text = f"‖ΔW‖/‖W‖ is {middle:.2f} in the median matrix; unrelated weights of equal norm give √2 ≈ 1.41"
        return [rules.DELTA_UNRELATED.finding(text, action="Check that BASE is the model that TUNED was trained from")]
    text = f"‖ΔW‖/‖W‖ is {percent(middle)} in the median matrix and at most {percent(largest)}"
    return [Finding("note", text)] if largest else []


def _rounding(result: DeltaResult) -> list[Finding]:
    floored = [m for m in result.changed if m.noise_floor]
    made = _below_floor(result, floored)
    narrow = [m for m in floored if m.effective_dtype != m.tuned_dtype]
    if narrow:
        stored, effective = narrow[0].tuned_dtype, narrow[0].effective_dtype
        text = f"Stored as {stored}, the values of {_count(narrow, result)} are {effective}: the rounding floor is"
        made.append(Finding("note", f"{text} computed for {effective}"))
    coarse = [m for m in floored if value(m, "noise_floor.base_floor")]
    if coarse:
        hidden = sum((m.spectral_norm or 0.0) <= value(m, "noise_floor.base_floor") for m in coarse)
        text = (
            f"The base is stored in {coarse[0].base_dtype}, coarser than the tuned side: if the tuning started from a"
            f" finer copy, ΔW also contains the base's rounding, which would reach above σ₁ in {hidden} of"
            f" {len(coarse)} matrices"
        )
        action = "Give the base in the dtype that the training started from"
        made.append(rules.DELTA_BASE.finding(text, action=action) if hidden else Finding("note", text))
    return made


def _below_floor(result: DeltaResult, floored: Sequence[MatrixDelta]) -> list[Finding]:
    """A warning where rounding hides part of a change; a note on matrices of which rounding is all there is, unless
    these are all that changed."""
    below = [m for m in floored if 1 - value(m, "noise_floor.energy_share") > MAX_ROUNDING]
    partly, wholly = ([m for m in below if beyond_rounding(m) == real] for real in (True, False))
    made = []
    if (worst := extreme(partly, "noise_floor.energy_share", min)) is not None:
        text = (
            f"{percent(1 - value(worst, 'noise_floor.energy_share'))} of ‖ΔW‖² is within the rounding error of"
            f" {worst.effective_dtype} here, and more than {percent(MAX_ROUNDING)} in {_count(partly, result)}"
        )
        names, action = tuple(m.name for m in partly), "Ignore the small singular values there"
        made.append(rules.DELTA_ROUNDING.finding(text, module=worst.name, modules=names, action=action))
    if wholly:
        only = len(wholly) == len(result.changed)
        text = f"ΔW is only {wholly[0].effective_dtype} rounding in {_count(wholly, result)}"
        action = "Compare checkpoints stored in a finer dtype" if only else "Ignore their ranks and singular values"
        names, severity = tuple(m.name for m in wholly), "warning" if only else "note"
        made.append(rules.DELTA_ROUNDING.finding(text, severity, modules=names, action=action))
    return made


def _rank(result: DeltaResult) -> list[Finding]:
    made = []
    ranked = [record for m in result.changed if (record := m.record())["energy_rank_0.9"]]
    if ranked:
        rank, null, ratio = (
            _middle(ranked, key) for key in ("energy_rank_0.9", "null.energy_rank_0.9", "energy_rank_of_null_0.9")
        )
        text = f"90 % of the energy needs rank {rank:.0f} in the median matrix, {percent(ratio)} of the {null:.0f} that"
        made.append(Finding("note", f"{text} an i.i.d. noise matrix of the same shape needs"))
    above = [(value(m, "noise_floor.rank"), min(m.shape)) for m in result.changed if m.noise_floor]
    if above and result.top is None and (median(rank / most for rank, most in above) or 0.0) < 1:
        ranks = [rank for rank, _ in above]
        text = f"Singular values above the rounding floor: {median(ranks):.0f} in the median matrix, at most"
        made.append(Finding("note", f"{text} {max(ranks)}"))
    if any(m.gavish_donoho for m in result.changed):
        gavish, edge, permuted = (
            _middle(result.changed, f"{key}.rank") for key in ("gavish_donoho", "marchenko_pastur", "permutation")
        )
        text = (
            f"Median number of directions above noise: {gavish:.0f} by Gavish and Donoho, {edge:.0f} above the"
            f" Marchenko–Pastur edge, {permuted:.0f} above its entries permuted"
        )
        made.append(Finding("note", text))
    best = result.best()
    if len(best) > 1:
        kept = ", ".join(f"{percent(best[k])} at r = {k}" for k in ("1", "8", "16", "64") if k in best)
        made.append(Finding("note", f"Energy captured by the best rank-r approximation: {kept}"))
    return made


def _middle(rows: Sequence[Any], key: str) -> float:
    return median(value(row, key) for row in rows) or 0.0


def _where(result: DeltaResult) -> list[Finding]:
    energies = {name: sum(m.energy for m in matrices) for name, matrices in group(result.changed).items()}
    if len(energies) < 2:
        return []
    name = max(energies, key=lambda each: energies[each])
    parts = sum(matrix.type == name for matrix in result.changed) / len(result.changed)
    share = percent(energies[name] / result.total_energy)
    return [Finding("note", f"{name} carries {share} of the total energy ‖ΔW‖² with {percent(parts)} of the matrices")]


def _adapters(result: DeltaResult) -> list[Finding]:
    inputs = (*result.adapters, result.tuned)
    made = [rules.about_file(note, str(each.label or each.path)) for each in inputs for note in each.notes]
    return made + [_captured(each.label, result) for each in result.adapters]


def _captured(label: str, result: DeltaResult) -> Finding:
    whole, products = result.captured(label), result.products(label)
    if not whole["matrices"]:
        action = "Give an adapter of the same base whose target modules were tuned"
        return rules.DELTA_ADAPTER.finding(f"{label}: targets none of the matrices that changed", action=action)
    cosine, chance = whole["cosine"], whole["cosine_chance"]
    text = (
        f"{label}: in the {plural(whole['matrices'], 'matrix')} it adapts ({percent(whole['energy_share'])} of ‖ΔW‖²)"
    )
    if cosine is None:
        action = "Run lorascope analyze on it, which says why"
        return rules.DELTA_ADAPTER.finding(f"{text} its update is zero", action=action)
    if whole["both"] is not None and whole["best"] is not None:
        text += f", {products} of them by factors," if products < whole["matrices"] else ""
        text += (
            f" its column and row spaces contain {percent(whole['left'])} and {percent(whole['right'])} of ΔW"
            f" (by chance {percent(whole['chance']['left'])} and {percent(whole['chance']['right'])}),"
            f" both at once {percent(whole['both'])}; the best of its rank {percent(whole['best'])};"
        )
    level = "at the chance level" if abs(cosine) < UNLIKELY * chance else f"{abs(cosine) / chance:.0f} times chance"
    return Finding("note", f"{text} cosine {cosine:.3f}, {level}; ‖ΔW − BA‖²/‖ΔW‖² = {whole['residual']:.3g}")


def _vectors(result: DeltaResult) -> list[Finding]:
    if not result.vectors:
        return []
    moved = [v for v in result.vectors if v.relative_change]
    worst = extreme(moved, "relative_change")
    if worst is None:
        return [Finding("note", f"Biases and norm weights: none of {len(result.vectors)} changed")]
    largest = worst.relative_change or 0.0
    text = (
        f"Biases and norm weights: {len(moved)} of {len(result.vectors)} changed, by"
        f" {percent(_middle(moved, 'relative_change'))} in the median and at most {percent(largest)} ({worst.name})"
    )
    if largest > MAX_VECTOR_CHANGE and result.extract:
        return [rules.NOT_EXTRACTED.finding(text, modules=tuple(v.name for v in moved), action=WHOLE)]
    return [Finding("note", text)]


def _extracted(result: DeltaResult) -> list[Finding]:
    modules = tuple(item.name for item in result.skipped_in(EXTRACTION))
    if not modules:
        return []
    names, number = preview(modules, 2), len(modules)
    are = "is" if number == 1 else "are"
    text = f"{plural(number, 'changed parameter')} {are} not in the extracted adapter ({names}): vectors and the"
    return [rules.NOT_EXTRACTED.finding(f"{text} like", modules=modules, action=WHOLE)]


def _count(some: list[MatrixDelta], result: DeltaResult) -> str:
    return counted(len(some), len(result.changed), "matrix")
