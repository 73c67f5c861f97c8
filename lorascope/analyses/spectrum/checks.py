"""What can be wrong with an adapter, one function for each check; its docstring says where the bound comes from.

A check returns its findings, or None where it does not apply (what needs the base, without one). The table of hits and
misses on adapters that are healthy, and on ones that were broken on purpose, is in `.github/FINDINGS.md`; it is made
again by `python -m tests.calibration.findings`.
"""

import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from lorascope.analyses import rules
from lorascope.analyses.adapter_updates import PARTIAL
from lorascope.analyses.spectrum.module import ModuleSpectrum
from lorascope.analyses.spectrum.result import COMPARISON, SpectrumResult
from lorascope.analyses.toolkit import DTYPES, counted, group, median, medians, percent, places, value
from lorascope.analyses.truncate import Energy, Spectrum
from lorascope.architectures import CLASSIFIER_HEADS
from lorascope.blocks import Finding
from lorascope.errors import preview
from lorascope.weights.checkpoint import ABSENT

Found = Iterable[Finding] | None
LARGER_THAN_W, LARGE = 1.0, 0.3  # ‖ΔW‖/‖W‖: of one module, and of the median
LARGER_THAN_ENTRIES, LARGE_ENTRIES, SMALL_ENTRIES = 0.3, 0.05, 1e-5  # rms entry of ΔW: the same, and the median
SMALL = 0.001  # ‖ΔW‖/‖W‖, median
SCALES = (0.1, 8.0)  # α/r
LARGEST_ROOT, LARGEST_MLX = 32.0, 32.0  # α/√r of rsLoRA, and MLX's scale, which is not divided by r
ALONE, TIMES_ITS_TYPE = 0.2, 10.0  # of the energy, together; times the energy of the median module of its type
COLLAPSED, USED = 0.1, 0.7  # stable rank, of the random baseline's (collapse: both less 1)
KEPT, WORTH_SAVING = 0.99, 0.25  # of each module's energy; of the parameters
ROUNDING, LARGE_ROUNDING = 0.01, 0.2  # of ‖ΔW‖, lost by a merge
PRODUCTS = ("low_rank", "magnitude")  # kinds whose scale is α/r
RESIZABLE = ("low_rank", "triplet")  # kinds that hold r·(d_out + d_in) parameters, as a resized adapter does


def non_finite(result: SpectrumResult) -> Found:
    """NaN, infinity, or a ΔW beyond float64. No bound: one such entry spoils every output of its layer."""
    bad = [m for m in result.rows if m.singular_values is None]
    if not bad:
        return []
    values = sum(m.non_finite for m in bad)
    roles = list(dict.fromkeys(role for m in bad for role in m.non_finite_in))
    what = (
        f"NaN or Inf in {' and '.join(roles)} ({values:,} value{'s' * (values != 1)})"
        if values
        else "a ΔW too large for float64"
    )
    contain = "contains" if len(bad) == 1 else "contain"
    text = f"{counted(len(bad), len(result.rows))} {contain} {what}{_where(bad)}. Excluded from all statistics"
    action = (
        "Do not merge or serve it. Go back to the last checkpoint before the loss became NaN, or retrain with a lower"
        " learning rate, gradient clipping, or bf16 instead of fp16"
    )
    return [rules.NON_FINITE.finding(text, modules=_names(bad), action=action, module=_only(bad))]


def no_change(result: SpectrumResult) -> Found:
    """ΔW = 0 exactly. No bound: B starts at zero, and the first optimiser step that reaches it moves every entry.

    Where every module is zero it is an error, where some are a warning (layers may have been frozen on purpose).
    """
    zero = [m for m in result.rows if m.frobenius_norm == 0]
    if not zero:
        return []
    if len(zero) == len(result.rows):
        cancel = ": no factor is zero, but they cancel, or their product is too small for float64"
        why = ": B is zero, so it was saved before training, or received no gradient"
        why = why if all(m.b_zero for m in zero) else "" if any(m.b_zero is None for m in zero) else cancel
        text = f"ΔW = 0 in every module, the adapter changes nothing{why}"
        action = (
            "Check that some parameters are trainable, that the optimizer was built after the adapter was added, and"
            " that the file was saved after training"
        )
        return [rules.NO_CHANGE.finding(text, modules=_names(zero), action=action)]
    text = f"ΔW = 0 in {counted(len(zero), len(result.rows))}{_where(zero)}. Medians leave out zeros"
    action = "Expected where layers were frozen on purpose; otherwise check target_modules and layers_to_transform"
    return [rules.UNCHANGED_MODULES.finding(text, modules=_names(zero), action=action, module=_only(zero))]


def too_large(result: SpectrumResult) -> Found:
    """‖ΔW‖/‖W‖ over 1 in the median module is an error, over 0.3 a warning; without the base, the same by entries.
    One module over 1 is an error as well, but not a new head, whose W is as it was drawn.

    In the calibration healthy adapters have 0.01 to 0.09 (the quickstart's, trained longer, 0.13, and 0.28 in its
    largest module), one whose α was mistyped 2.2, and ones that diverged 67 and more. Weights start with entries of
    root mean square 0.02 in most transformers, and have 0.06 in MiniLM, so an update with 0.05 may be as large as W,
    and one with five times the 0.06 is larger.
    """
    rows = [m for m in result.rows if m.frobenius_norm]
    if not rows:
        return None
    known = [m for m in rows if value(m, "against_base.relative_norm") is not None]
    sizes = [float(value(m, "against_base.relative_norm")) for m in known] if known else [_entry(m) for m in rows]
    most, large = (LARGER_THAN_W, LARGE) if known else (LARGER_THAN_ENTRIES, LARGE_ENTRIES)
    middle, above = float(medians(sizes)), []
    if middle > large:
        lead = "The update is larger than the weights" if middle > most else "Unusually large update"
        text = f"{lead}: {_size_in_words(middle, bool(known))}"
    else:
        over = [(m, size) for m, size in zip(known or rows, sizes, strict=True) if size > most and not _is_head(m)]
        above = [m for m, _ in over]
        if not above:
            return []
        which = "its" if len(above) == 1 else "at most"
        where = "" if len(above) == 1 else f" in {counted(len(above), len(rows))}{_where(above)}"
        largest = _size_in_words(max(size for _, size in over), bool(known), which)
        text = f"The update is larger than the weight{'s' * (len(above) > 1)}{where}: {largest}"
    cause = f"Training diverged or the scale is wrong: check {_scale_in_words(result) or 'the scale'}"
    cause = "Training diverged there: clip gradients, or lower the learning rate" if above else cause
    action = f"{cause}, and compare held-out loss with and without the adapter"
    severity = "error" if middle > most or above else "warning"
    only = _only(above) if above else None
    return [rules.TOO_LARGE.finding(text, severity, modules=_names(above), action=action, module=only)]


def _size_in_words(size: float, relative: bool, which: str = "median") -> str:
    if relative:
        return f"{which} ‖ΔW‖/‖W‖ = {percent(size, 3)}; fine-tuning usually stays below 20 %"
    return f"{which} root mean square entry {size:.2g}; weights of transformers have about 0.02 to 0.06"


def _is_head(module: ModuleSpectrum) -> bool:
    """Whether it is a classifier, which begins with random weights and may move by more than they are."""
    return module.type.rpartition(".")[2] in CLASSIFIER_HEADS


def very_small(result: SpectrumResult) -> Found:
    """‖ΔW‖/‖W‖ under 0.001 in the median module; without the base, entries under 1e-5.

    bf16 keeps 8 bits: an update of 0.1 % is below half a step (0.2 to 0.4 %) of most entries of W, and four fifths of
    it are lost on merging. The smallest healthy adapter of the calibration has 1.3 %. 1e-5 is 0.05 % of entries of
    0.02: without the base this misses what stopped at step 3, and is meant to be silent rather than wrong.
    """
    sizes = [m for m in result.rows if m.frobenius_norm]
    if not sizes:
        return None
    relative = median(value(m, "against_base.relative_norm") for m in sizes)
    entries = median(_entry(m) for m in sizes) or 0.0
    if (relative >= SMALL) if relative is not None else (entries >= SMALL_ENTRIES):
        return []
    size = f"median ‖ΔW‖/‖W‖ = {percent(relative)}" if relative is not None else f"entries of {entries:.2g}"
    text = f"Very small update ({size}): the model is hardly changed"
    return [rules.VERY_SMALL.finding(text, action="Train longer, or raise the learning rate or α")]


def scale_out_of_range(result: SpectrumResult) -> Found:
    """α/r over 8 or under 0.1; rsLoRA's α/√r over 32; MLX's scale over 32.

    PEFT's default is 8/8 = 1, α = 2r is a common rule, and kohya's default α = 1 gives 0.125 at r = 8. rsLoRA keeps α
    and divides by √r: 64/√4 = 32. MLX writes the scale itself, 20 by default. Beyond those, α was meant for another
    rank, or for the other rule.
    """
    rows = [m for m in result.rows if m.kind in PRODUCTS and m.rank]
    if not rows:
        return None
    root = bool(result.settings.get("use_rslora"))
    most = LARGEST_ROOT if root else LARGEST_MLX if result.source.format == "mlx" else SCALES[1]
    odd = [m for m in rows if not SCALES[0] <= abs(m.scale) <= most]
    if not odd:
        return []
    worst = max(odd, key=lambda m: max(abs(m.scale), 1 / max(abs(m.scale), 1e-300)))
    rank = worst.rank or 1
    alpha, of = worst.scale * rank ** (0.5 if root else 1), "α/√r" if root else "α/r"
    text = f"Scale {of} = {worst.scale:.4g} (α = {alpha:.4g}, r = {rank}); 0.5 to 4 is usual"
    text += f", in {counted(len(odd), len(rows))}" if len(odd) < len(rows) else ""
    action = "If α was meant for another rank, or for rsLoRA, correct lora_alpha in adapter_config.json"
    return [rules.SCALE.finding(text, modules=_names(odd) if len(odd) < len(rows) else (), action=action)]


def one_module(result: SpectrumResult) -> Found:
    """Modules that have over 20 % of the energy together, and each over 10 times that of the median one of its type.

    Types differ by their shapes and gradients, so a module is compared with its own. Ten times the energy is three
    times the norm; no healthy adapter of the calibration has it. With fewer than three modules of a type, the median is
    over all.
    """
    rows = [m for m in result.rows if m.frobenius_norm]
    if len(rows) < 3 or not result.total_energy:
        return None
    by_type = group(rows)
    peers = {kind: members if len(members) >= 3 else rows for kind, members in by_type.items()}
    middle = {kind: float(medians([result.energy([m]) for m in those])) for kind, those in peers.items()}
    odd = [m for m in rows if result.energy([m]) > TIMES_ITS_TYPE * middle[m.type]]
    share = result.energy(odd) / result.total_energy
    if share <= ALONE:
        return []
    top = max(odd, key=lambda m: m.frobenius_norm or 0.0)
    sigma = median(m.spectral_norm for m in peers[top.type]) or 0.0
    times = f"σ₁ {(top.spectral_norm or 0) / sigma:.3g} times the median's" if sigma else "σ₁ above the others'"
    text = f"This module alone carries {percent(share)} of the update's energy ({times})"
    if len(odd) > 1:
        text = f"{len(odd)} modules alone carry {percent(share)} of the update's energy{_where(odd)} (at most {times})"
    what, it = ("Often an unstable layer", "it") if len(odd) == 1 else ("Often unstable layers", "them")
    action = f"{what}: clip gradients, or leave {it} out of target_modules"
    return [rules.ONE_MODULE.finding(text, module=_only(odd), modules=_names(odd), action=action)]


def collapse(result: SpectrumResult) -> Found:
    """Median stable rank under 10 % of the way from one direction to the random baseline, (s − 1)/(s₀ − 1) < 0.1, and
    95 % of the energy in r/8 directions or fewer.

    Counted from 1, which any update has, so that narrow layers with a small baseline are judged alike. Both conditions
    are needed: one strong direction over a flat tail has a small stable rank, too, and still uses the tail.
    """
    rows = _ranked(result)
    if not rows:
        return None
    ratio = median((value(m, "stable_rank") - 1) / max(value(m, "null.stable_rank") - 1, 1e-9) for m in rows) or 0.0
    rank = median(m.rank for m in rows) or 0.0
    needed = median(m.energy_ranks["energy_rank_0.95"] for m in rows) or 0.0
    if ratio >= COLLAPSED or needed > rank / 8:
        return []
    keep = result.uniform_rank(0.99) or 1
    carry = "carries" if round(needed) == 1 else "carry"
    text = f"Rank collapse: {needed:.0f} of {rank:.0f} directions {carry} 95 % of the energy (median module)"
    action = f"Rank {keep} holds 99 % of every module. To use more rank, retrain with rsLoRA or another learning rate"
    return [rules.COLLAPSE.finding(text, action=action, command=_resize(result, f"--rank {keep}", f"rank-{keep}"))]


def all_directions(result: SpectrumResult) -> Found:
    """Median stable rank at least 70 % of the random baseline's, and 95 % of the energy only in all r directions.

    Gaussian factors have 100 % by definition, with a spread of a few per cent. What has hardly trained looks like this
    as well, so it is a note.
    """
    rows = [m for m in _ranked(result) if (m.rank or 0) > 2]
    if not rows:
        return None
    ratio = median(m.rank_utilisation_of_null for m in rows) or 0.0
    full = median((m.energy_ranks["energy_rank_0.95"] or 0) / (m.rank or 1) for m in rows) or 0.0
    if ratio < USED or full < 1:
        return []
    rank = int(median(m.rank for m in rows) or 0)
    text = f"All {rank} directions are used about equally, like random factors: r limits it, or it hardly moved"
    action = f"Try r = {2 * rank}" + (", and look at ‖ΔW‖/‖W‖ with --base" if result.base is None else "")
    return [rules.ALL_DIRECTIONS.finding(text, action=action)]


def can_be_smaller(result: SpectrumResult) -> Found:
    """A plan of `resize --energy 0.99`, computed here, that saves at least 25 % of the parameters.

    99 % of the energy is an error of at most 10 % of ‖ΔW‖ in every module. Energy is not usefulness, which is why the
    action is to score the plan. Saving less than a quarter is hardly worth a second file.
    """
    rows = [m for m in result.rows if m.kind in RESIZABLE and m.rank and m.singular_values and m.frobenius_norm]
    if not rows or len(rows) < len([m for m in result.rows if m.frobenius_norm]):
        return None
    ranks = Energy(KEPT).ranks([Spectrum(m.name, m.shape, np.array(m.singular_values), True) for m in rows])
    before = sum(min(m.rank or 0, *m.shape) * sum(m.shape) for m in rows)
    after = sum(ranks[m.name] * sum(m.shape) for m in rows)
    if after > (1 - WORTH_SAVING) * before:
        return []
    low, high = min(ranks.values()), max(ranks.values())
    span = f"rank {low} keeps" if low == high else f"per-module ranks {low}–{high} keep"
    text = f"Can be {percent(1 - after / before)} smaller: {span} 99 % of every module's energy"
    action = f"{after:,} of {before:,} parameters; score it with --evaluate RUN before you replace the adapter"
    return [rules.SMALLER.finding(text, action=action, command=_resize(result, f"--energy {KEPT:g}"))]


def merge_rounding(result: SpectrumResult) -> Found:
    """Rounding W + ΔW to the base's dtype loses over 1 % of ‖ΔW‖ in some module: a note; over 20 % in the median
    module: a warning.

    bf16 loses 3 % of an update of 5 % of W, 17 % of one of 1 %, and 78 % of one of 0.1 %; float32 loses 3e-5 at most
    (Gaussian W and B·A, computed with `linalg.rounding`). So every merge into bf16 is worth a note, and a warning where
    the loss is a fifth of the update.
    """
    compared = [(m, b.rounding_loss) for m in result.rows if (b := m.against_base) and b.rounding_loss is not None]
    if not compared:
        return None
    lossy = [(m, loss) for m, loss in compared if loss > ROUNDING]
    if not lossy:
        return []
    worst, most = max(lossy, key=lambda pair: pair[1])
    dtype = worst.against_base.dtype if worst.against_base else ""
    text = (
        f"Merging into {DTYPES.get(dtype, dtype)} loses {percent(most)} of the update to rounding in {worst.name}, and"
        f" over {percent(ROUNDING)} in {counted(len(lossy), len(result.rows))}"
    )
    names = tuple(m.name for m, _ in lossy)
    severity = "warning" if (median(loss for _, loss in compared) or 0.0) > LARGE_ROUNDING else "note"
    base = shlex.quote(result.base or "MODEL")
    command = f"lorascope merge {_path(result)} --base {base} --dtype float32 --output merged"
    action = "Merge into float32"
    if dtype in ("F32", "F64"):
        action, command = "Serve the adapter without merging it: it is tiny next to the weights", ""
    return [rules.MERGE_ROUNDING.finding(text, severity, modules=names, action=action, command=command)]


def another_base(result: SpectrumResult) -> Found:
    """Modules that the given base does not have, or has in another shape. No bound; an error where it is all."""
    items = result.skipped_in(COMPARISON)
    if result.base is None:
        return None
    if not items:
        return []
    reasons = Counter(item.reason for item in items)
    named = "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common(3))
    total = len({m.name for m in result.rows} | {item.name for item in items})
    where = "are not in the base" if set(reasons) == {ABSENT} else f"are not compared with the base ({named})"
    text = f"{len(items)} of {total} modules {where}, such as {items[0].name}"
    severity = "error" if result.nothing_compared else "warning"
    action = "Give the base model that this adapter was trained on; loaders skip modules that they do not find"
    names = tuple(item.name for item in items)
    return [rules.ANOTHER_BASE.finding(text, severity, modules=names, action=action)]


def missing_targets(result: SpectrumResult) -> Found:
    """Names in the config's target_modules that no module of the file has. No bound.

    A list alone: a regular expression or "all-linear" names nothing that could be missing.
    """
    targets = result.settings.get("target_modules")
    if not isinstance(targets, list) or not all(isinstance(each, str) for each in targets):
        return None
    names = [m.name for m in result.rows] + [item.name for item in result.skipped]
    missing = [each for each in targets if not any(name == each or name.endswith(f".{each}") or f".{each}." in name
                                                   for name in names)]  # fmt: skip
    if not missing or result.filtered:
        return []
    text = f"target_modules names {len(missing)} that the file has no weights for: {preview(missing, 4)}"
    action = "Check the names against the base model's modules: no part of the model has been trained under these"
    return [rules.MISSING_TARGETS.finding(text, action=action)]


def at_start(result: SpectrumResult) -> Found:
    """A whose entries are still U(±1/√d_in): within its box, and of its deviation to 4 standard errors.

    After some tens of optimiser steps entries near the edge have left the box. LoRA-FA keeps A by design.
    """
    frozen = [m for m in result.rows if m.a_at_initialisation and m.frobenius_norm]
    if not frozen:
        return []
    text = f"In {counted(len(frozen), len(result.rows))}, A is indistinguishable from its random initialisation"
    action = "Expected of LoRA-FA, which freezes A; otherwise it has hardly been trained, or A received no gradient"
    return [rules.AT_START.finding(text, modules=_names(frozen), action=action)]


def skipped(result: SpectrumResult) -> Found:
    """Tensors of the file without a spectrum, each with its reason. No bound: nothing is skipped in silence."""
    items = result.skipped_in()
    if not items:
        return []
    made = []
    if not result.rows:
        needs_base = any("depends on W" in item.reason for item in items)
        text, action = "ΔW of every module depends on the base weights", "Pass --base MODEL"
        if not needs_base:
            text, action = f"No weight update: {items[0].reason}", "Compare its outputs with and without it instead"
        made.append(rules.NO_UPDATE.finding(text, action=action))
    tensors = f"{len(items)} tensor{'s' * (len(items) != 1)} skipped ({preview([item.name for item in items], 2)})"
    text = f"{tensors}; each with its reason in the report"
    return [*made, rules.SKIPPED.finding(text, modules=tuple(item.name for item in items))]


def partial(result: SpectrumResult) -> Found:
    """DoRA and similar methods without the base: s·B·A is measured, which is not the whole ΔW. No bound."""
    rows = [m for m in result.rows if PARTIAL in m.notes]
    if not rows:
        return []
    text = f"In {counted(len(rows), len(result.rows))} the spectra cover only the low-rank part s·B·A, which is not the"
    action = "Pass --base MODEL for the full ΔW" if result.base is None else "W is needed for the full ΔW"
    severity = "note" if result.base is None else "warning"
    return [rules.PARTIAL_UPDATE.finding(f"{text} full ΔW", severity, modules=_names(rows), action=action)]


def no_base(result: SpectrumResult) -> Found:
    """Whether --base was given. No bound: without W it is not known whether an update is large."""
    if result.base is not None or not result.rows:
        return None
    named = str(result.settings.get("base_model_name_or_path") or "")
    base = shlex.quote(named) if named and os.path.isdir(named) else "MODEL"
    command = f"lorascope analyze {_path(result)} --base {base}"
    return [rules.NO_BASE.finding("Size relative to the base model is unknown", command=command)]


CHECKS: tuple[Callable[[SpectrumResult], Found], ...] = (
    non_finite, no_change, too_large, very_small, scale_out_of_range, one_module, collapse, another_base,
    missing_targets, merge_rounding, partial, can_be_smaller, all_directions, at_start, skipped, no_base,
)  # fmt: skip
BROKEN = (rules.NON_FINITE.code, rules.TOO_LARGE.code, rules.ONE_MODULE.code)
OF_SOUND = (rules.SMALLER.code, rules.ALL_DIRECTIONS.code)  # said of an adapter that is not broken alone
QUESTIONS = (can_be_smaller, skipped, no_base)  # what they find is no problem: they are not counted as checks


def problems(result: SpectrumResult) -> list[Finding]:
    """What all checks found, and what the reader of the file says."""
    made = [finding for check in CHECKS for finding in check(result) or ()]
    if any(finding.rule in BROKEN for finding in made):  # to be mended or trained again, not made smaller
        made = [finding for finding in made if finding.rule not in OF_SOUND]
    return [*made, *map(rules.about_file, result.notes)]


def number_of_checks(result: SpectrumResult) -> int:
    """How many checks applied to this adapter."""
    return sum(check(result) is not None for check in CHECKS if check not in QUESTIONS)


def _entry(module: ModuleSpectrum) -> float:
    """The root mean square entry of ΔW."""
    return (module.frobenius_norm or 0.0) / max(module.shape[0] * module.shape[1], 1) ** 0.5


def _ranked(result: SpectrumResult) -> list[ModuleSpectrum]:
    """The modules whose stable rank has a random baseline."""
    return [m for m in result.rows if m.rank_utilisation_of_null is not None and (m.rank or 0) > 1]


def _scale_in_words(result: SpectrumResult) -> str:
    scales = {m.scale for m in result.rows if m.kind in PRODUCTS}
    of = "α/√r" if result.settings.get("use_rslora") else "α/r"
    return f"{of} = {scales.pop():.4g}" if len(scales) == 1 else "the scales" if scales else ""


def _names(rows: Sequence[ModuleSpectrum]) -> tuple[str, ...]:
    return tuple(m.name for m in rows)


def _only(rows: Sequence[ModuleSpectrum]) -> str | None:
    """The name of the module, where it is one: it is then printed in front."""
    return rows[0].name if len(rows) == 1 else None


def _where(rows: Sequence[ModuleSpectrum]) -> str:
    """Types and layers; nothing of one module, whose name is printed in front."""
    return "" if len(rows) == 1 else f": {places(rows)}"


def _path(result: SpectrumResult) -> str:
    return shlex.quote(result.source.path or "ADAPTER")


def _resize(result: SpectrumResult, how: str, output: str = "smaller") -> str:
    return f"lorascope resize {_path(result)} {how} --output {output}"
