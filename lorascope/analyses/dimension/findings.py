"""The result in words: what cannot be compared, then each reading with its number and what it is compared with."""

import numpy as np

from lorascope.analyses import rules
from lorascope.analyses.dimension.functional import Curve
from lorascope.analyses.dimension.result import DimensionResult
from lorascope.analyses.dimension.sizes import Family, Reach
from lorascope.analyses.toolkit import percent, plural, value
from lorascope.blocks import Finding
from lorascope.errors import preview

DROP_REPORT_BOUND = 0.01  # of the gain
SIZES = {"rank": "r"}  # how a family's size is written
PRIOR = "Use --baseline prior"
CONTROL_FAILS = 0.2  # of the gain: what the smallest components should not keep


def heading(result: DimensionResult) -> tuple[str, str]:
    """As a sentence: how many directions the truncations of ΔW need, and at which size trained adapters do as well."""
    k90 = [k for k in result.k(0.9) if k is not None]
    few = f"{' or '.join(map(str, dict.fromkeys(k90)))} of {_full_rank(result)} directions in every matrix keep"
    summary = f"{few if k90 else 'No truncation keeps'} 90 % of full fine-tuning's gain"
    reached = [(each, size) for each in result.families if each.axis and (size := each.reach["0.9"].size) is not None]
    sizes = [(each.label, f"at {SIZES.get(each.axis or '', each.axis)} = {size:,}") for each, size in reached]
    if result.differences:
        summary += "; the runs were trained differently and are not ranked"
    elif sizes:
        (first, at), *others = sizes
        summary += "; " + ", ".join([f"{first} reaches it {at}", *(f"{label} {where}" for label, where in others)])
    return "Intrinsic dimension of full fine-tuning", summary


def findings(result: DimensionResult) -> list[Finding]:
    items = [*_baseline(result), *_comparable(result), *_diverged(result), *_spectral(result), *_functional(result)]
    return [*items, *_controls(result), *_trained(result), *_search(result), *_axis(result)]


def _baseline(result: DimensionResult) -> list[Finding]:
    first, base, prior = result.full[0], result.base, result.prior
    if base.start <= base.end:
        text = f"Full fine-tuning gained nothing: held-out loss {base.end:.4f} from {base.start:.4f}"
        action = "Train the full run longer or at another learning rate, or score on texts like its training texts"
        return [rules.NO_GAIN.finding(f"{text}; shares of the gain are undefined", action=action)]
    start = "as given" if result.given_baseline else "the full run's head and vectors as trained, every matrix at W"
    seeds = f", mean of {len(result.full)} seeds" if len(result.full) > 1 else ""
    text = f"Gain is measured from a held-out loss of {base.start:.4f} ({start}) to {base.end:.4f} (full fine-tuning"
    text += f"{seeds}); the frozen base with the tuned head alone has {first.frozen_loss:.4f}"
    text += "" if prior is None else f", predicting class frequencies {prior:.4f}"
    items = [Finding("note", text)]
    if prior is not None and base.start > prior and not result.given_baseline:
        text = f"The tuned head on the untuned matrices ({base.start:.4f}) does worse than predicting class frequencies"
        items.append(rules.BASELINE.finding(f"{text} ({prior:.4f}): gains are overstated", action=PRIOR))
    return items


def _comparable(result: DimensionResult) -> list[Finding]:
    items = []
    if result.differences:
        named = "; ".join(f"training.{k} ({', '.join(map(str, each))})" for k, each in result.differences.items())
        text = f"The runs are not ranked: they differ in {named}, so their gains are not comparable"
        items.append(rules.NOT_RANKED.finding(text, action="Train them with the same settings and steps"))
    if excluded := result.texts.get("skipped"):
        items.append(Finding("note", f"{plural(excluded, 'held-out text')} excluded: another run was trained on them"))
    if not result.runs:
        items.append(Finding("note", "k90 has nothing to be compared with: add LoRA runs at several ranks"))
    if skipped := sum(item.adapter == result.full[0].facts.label for item in result.skipped):
        items.append(Finding("note", f"{plural(skipped, 'matrix')} skipped, as trained: --modules does not match"))
    return items


def _diverged(result: DimensionResult) -> list[Finding]:
    if not result.diverged:
        return []
    count, names = len(result.diverged), preview([run.label for run in result.diverged], 3)
    text = "1 run diverged and is" if count == 1 else f"{count} runs diverged and are"
    action = "Train again with a lower learning rate, so that no size is judged by the runs that are left"
    return [rules.DIVERGED.finding(f"{text} excluded from all figures: {names}", action=action)]


def _spectral(result: DimensionResult) -> list[Finding]:
    overall = result.by_type()["all"]
    rank, null = overall.get("energy_rank_0.9"), value(overall, "null.energy_rank_0.9")
    if rank is None:
        return []
    text = (
        f"Spectral: 90 % of ΔW's energy needs rank {rank:.0f} in the median matrix,"
        f" {percent(value(overall, 'of_null.energy_rank_0.9'))} of the random baseline of {null:.0f} (noise of the same"
        f" shape); stable rank {overall['stable_rank']:.1f}"
    )
    items = [Finding("note", text)]
    if overall["gavish_donoho"] is not None:
        text = f"Denoised: {overall['gavish_donoho']:.0f} directions of the median matrix by Gavish and Donoho,"
        text += f" {overall['marchenko_pastur']:.0f} above the Marchenko–Pastur edge"
        if overall["shared_rank"] is not None:
            text += (
                f"; the part that {result.splits[0].seeds} seeds share has {overall['shared_rank']:.0f} above what"
                f" their difference makes, and {percent(overall['signal_share'])} of the energy (cosine"
                f" {overall['cosine']:.2f}, by chance ±{overall['cosine_chance']:.4f})"
            )
        items.append(Finding("note", text))
    if result.adapters:
        adapters = result.aggregate(result.adapters)
        text = f"The ΔW of the low-rank runs: stable rank {adapters['stable_rank']:.1f} in the median matrix,"
        text += f" {percent(adapters['of_null']['stable_rank'])} of the random baseline (Gaussian factors)"
        items.append(Finding("note", text))
    return items


def _functional(result: DimensionResult) -> list[Finding]:
    items = []
    k90, k95, k99 = (result.k(share) for share in (0.9, 0.95, 0.99))
    if any(k is not None for k in k90):
        text = f"Functional: rank {_seeds(k90)} in every matrix at once keeps 90 % of the gain, {_seeds(k95)} keeps"
        items.append(Finding("note", f"{text} 95 %, {_seeds(k99)} keeps 99 %; full rank is {_full_rank(result)}"))
        everywhere = result.k(0.9, "threshold")
        if everywhere and everywhere[0]:
            text = f"With one bound on σ for all matrices, 90 % of the gain takes {everywhere[0]} directions per matrix"
            items.append(Finding("note", f"{text} on average"))
    for curve in result.curves:
        if curve.drop and curve.kind in ("top", "threshold") and curve.drop[0] > DROP_REPORT_BOUND:
            items.append(_not_monotone(curve, *curve.drop))
    return items


def _full_rank(result: DimensionResult) -> int:
    """Of the widest matrix."""
    return max(min(shape) for shape in result.full[0].matrices.values())


def _not_monotone(curve: Curve, drop: float, start: int, end: int) -> Finding:
    early = [p.k for p in curve.points if (p.recovered or 0.0) >= 0.9 and p.k < (curve.reach.get("0.9") or 0)]
    tail = f" (k = {early[0]} reached 90 %, too, but a larger k did not keep it)" if early else ""
    text = f"{curve.run}: the {curve.kind} curve is not monotone: the gain falls by {of_gain(drop)} from k = {start} to"
    return Finding(
        "note", f"{text} {end}; each reported k is the smallest such that all larger k also reach the target{tail}"
    )


def _controls(result: DimensionResult) -> list[Finding]:
    first, k90 = result.full[0], (result.k(0.9) or [None])[0]
    if not k90:
        return []
    parts, failed = [], False
    for kind, words in (("bottom", "the smallest components"), ("random", "random directions of its own row space"),
                        ("haar", "random directions")):  # fmt: skip
        curve = first.curve(kind)
        values = [p.recovered for p in curve.at(k90) if p.recovered is not None] if curve else []
        if values:
            spread = f" ({of_gain(min(values))} to {of_gain(max(values))})" if len(values) > 1 else ""
            parts.append(f"{words} {of_gain(float(np.mean(values)))}{spread}")
            failed |= kind == "bottom" and bool(np.mean(values) >= CONTROL_FAILS)
    if not parts:
        return []
    text = f"Gain retained by the controls at k = {k90}: {', '.join(parts)}"
    text += "; the smallest components should keep less than 20 %" if failed else ""
    action = "Read k90 with care: at this k much of the gain needs no particular directions"
    return [rules.CONTROL.finding(text, action=action) if failed else Finding("note", text)]


def _trained(result: DimensionResult) -> list[Finding]:
    items: list[Finding] = []
    for each in () if result.differences else result.families:
        if not each.axis:
            level = each.levels[0]
            count = "" if level.parameters is None else f" with {level.parameters:,} parameters"
            items.append(Finding("note", f"{each.label} reaches {of_gain(level.gain)} of the gain{count}"))
            continue
        parts = [f"{of_gain(float(key))} of the gain {_reach(reach, each)}" for key, reach in each.reach.items()]
        if each.axis == "d" and each.metric is not None:
            parts.append(f"90 % of full fine-tuning's accuracy {_reach(each.metric, each)}")
        items.append(Finding("note", f"Trained {each.label}: {', '.join(parts)}"))
        if all(len(level.gains) == 1 for level in each.levels):
            items.append(Finding("note", f"{each.label}: one seed at each {each.axis}, so no interval can be given"))
        if each.drop and each.drop[0] > DROP_REPORT_BOUND:
            drop, start, end = each.drop
            text = f"{each.label}: the gain falls by {of_gain(drop)} from {each.axis} = {start} to {end}"
            items.append(Finding("note", text))
    return items


def _reach(reach: Reach, family: Family) -> str:
    """`at rank = 4 (rank 2 falls short; bootstrap over seeds 2 to 4)`."""
    last, remarks = family.levels[-1].size, []
    if reach.size is not None:
        remarks.append("the smallest tried" if reach.below is None else f"{family.axis} {reach.below} falls short")
    if reach.interval is not None:
        low, high = (f"> {last}" if end is None else str(end) for end in reach.interval)
        remarks.append(f"bootstrap over seeds {low}" + (f" to {high}" if high != low else ""))
    text = f"not reached by {family.axis} = {last}" if reach.size is None else f"at {family.axis} = {reach.size}"
    return f"{text} ({'; '.join(remarks)})" if remarks else text


def _search(result: DimensionResult) -> list[Finding]:
    record = result.search
    if not record:
        return []
    low, high, target = record["low"], record["high"], of_gain(record["target"])
    if high is None:
        text = f"The search reached no d that gives {target} of the gain, up to {low}"
    elif low is None:
        text = f"The search reached {target} of the gain at the smallest d tried, {high}: start lower with --start"
    else:
        text = f"The search: d90 lies in {low} < d ≤ {high}"
    certainty = "one seed: no confidence interval, only the bracket"
    if record["interval"]:
        low, high = ("open" if end is None else str(end) for end in record["interval"])
        certainty = f"95 % interval {low} to {high} (Student's t, spread pooled over d)"
    counts = f"{record['trained']} runs trained, {record['found']} already finished"
    return [Finding("note", f"{text}; {certainty}; {counts}")]


def _axis(result: DimensionResult) -> list[Finding]:
    points = result.first_on_axis(0.9)
    if not points:
        return []
    parts = [f"{point.family} {point.parameters:,}" for point in points]
    text = f"Parameters to 90 % of the gain: {'; '.join(parts)}"
    return [Finding("note", f"{text}; the head's {result.full[0].head_parameters:,} parameters are not counted")]


def of_gain(share: float) -> str:
    """A share of the gain to 0.1 %: "92.3 %"; never minus zero."""
    return percent(round(share, 3) + 0.0, 3)


def _seeds(values: "list[int | None]") -> str:
    """One number, or one for each seed."""
    texts = ["?" if each is None else str(each) for each in values]
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)
