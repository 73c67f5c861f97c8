"""The result in words: what cannot be compared, then each reading with its number and what it is held against."""

from typing import TYPE_CHECKING

import numpy as np

from lorascope.analyses.delta.findings import percent
from lorascope.blocks import Finding
from lorascope.errors import preview

if TYPE_CHECKING:
    from lorascope.analyses.dimension.functional import Curve
    from lorascope.analyses.dimension.result import DimensionResult
    from lorascope.analyses.dimension.sizes import Family, Reach

DROP_WORTH_SAYING = 0.01  # of the gain


def findings(result: "DimensionResult") -> tuple[Finding, ...]:
    """Errors, then warnings, then notes."""
    order = {"error": 0, "warning": 1, "note": 2}
    found = [*_baseline(result), *_comparable(result), *_diverged(result), *_spectral(result), *_functional(result)]
    found += [*_controls(result), *_trained(result), *_search(result), *_axis(result)]
    return tuple(sorted(found, key=lambda finding: order[finding.severity]))


def _baseline(result: "DimensionResult") -> list[Finding]:
    first = result.full[0]
    if result.base.start <= result.base.end:
        text = f"full fine-tuning gained nothing: held-out loss {result.base.end:.4f} from {result.base.start:.4f}"
        return [Finding("error", f"{text}; no share of the gain can be said")]
    start = "as given" if result.given_baseline else "the full run's head and vectors as trained, every matrix at W"
    text = (
        f"gain is measured from a held-out loss of {result.base.start:.4f} ({start}) to {result.base.end:.4f} (full"
        f" fine-tuning{', mean of ' + str(len(result.full)) + ' seeds' if len(result.full) > 1 else ''})"
    )
    text += f"; the frozen base with the tuned head alone has {first.frozen_loss:.4f}"
    text += "" if result.prior is None else f", the class frequencies {result.prior:.4f}"
    found = [Finding("note", text)]
    if result.prior is not None and result.base.start > result.prior and not result.given_baseline:
        found.append(
            Finding(
                "warning",
                f"the tuned head on the untuned matrices ({result.base.start:.4f}) does worse than the class"
                f" frequencies ({result.prior:.4f}): every gain flatters; --baseline prior measures from there",
            )
        )
    return found


def _comparable(result: "DimensionResult") -> list[Finding]:
    runs = [*(each.facts for each in result.full), *(each.facts for each in result.runs)]
    found = []
    for key in runs[0].recipe:
        values = list(dict.fromkeys(run.recipe[key] for run in runs))
        if len(values) > 1:
            text = f"the runs differ in training.{key} ({', '.join(map(str, values))}): their gains do, for that, too"
            found.append(Finding("warning", text))
    if result.texts.get("left_out"):
        text = f"{result.texts['left_out']} held-out texts are left out: another run was trained on them"
        found.append(Finding("note", text))
    if not result.runs:
        found.append(Finding("note", "no other run to hold k90 against: add LoRA runs of several ranks"))
    if aside := result.full[0].aside:
        found.append(Finding("note", f"{len(aside)} matrices stay as trained, because --modules leaves them out"))
    return found


def _diverged(result: "DimensionResult") -> list[Finding]:
    if not result.diverged:
        return []
    count, names = len(result.diverged), preview([run.label for run in result.diverged], 3)
    text = "1 run diverged and is" if count == 1 else f"{count} runs diverged and are"
    return [Finding("warning", f"{text} in no figure: {names}")]


def _spectral(result: "DimensionResult") -> list[Finding]:
    whole = result.by_type()["all"]
    rank, null = whole["energy_rank_0.9"], whole["energy_rank_0.9.null"]
    if rank is None:
        return []
    share = percent(whole["energy_rank_0.9.of_null"])
    text = (
        f"spectral: 90 % of ΔW's energy needs rank {rank:.0f} in the median matrix, {share} of the {null:.0f}"
        f" that noise of the same shape needs; stable rank {whole['stable_rank']:.1f}"
    )
    found = [Finding("note", text)]
    if whole["gavish_donoho"] is not None:
        text = f"denoised: {whole['gavish_donoho']:.0f} directions of the median matrix by Gavish and Donoho,"
        text += f" {whole['marchenko_pastur']:.0f} above the Marchenko–Pastur edge"
        if whole["shared_rank"] is not None:
            text += (
                f"; the part that {result.splits[0].seeds} seeds share has {whole['shared_rank']:.0f} above what their"
                f" difference makes, and {percent(whole['signal_share'])} of the energy (cosine {whole['cosine']:.2f},"
                f" by chance ±{whole['cosine_chance']:.4f})"
            )
        found.append(Finding("note", text))
    adapters = result.aggregate(result.adapters)
    if result.adapters:
        text = f"the low-rank runs' own ΔW: stable rank {adapters['stable_rank']:.1f} in the median matrix,"
        text += f" {percent(adapters['stable_rank.of_null'])} of a structureless product's"
        found.append(Finding("note", text))
    return found


def _functional(result: "DimensionResult") -> list[Finding]:
    found = []
    k90, k95, k99 = (result.k(share) for share in (0.9, 0.95, 0.99))
    if any(k is not None for k in k90):
        most = max(min(shape) for shape in result.full[0].matrices.values())
        text = f"functional: rank {_seeds(k90)} in every matrix at once keeps 90 % of the gain, {_seeds(k95)} keeps"
        found.append(Finding("note", f"{text} 95 %, {_seeds(k99)} keeps 99 %; full rank is {most}"))
        threshold = result.k(0.9, "threshold")
        if threshold and threshold[0]:
            text = f"one threshold on σ for all matrices keeps 90 % at {threshold[0]} per matrix on average"
            found.append(Finding("note", text))
    for curve in result.curves:
        if curve.drop and curve.kind in ("top", "threshold") and curve.drop[0] > DROP_WORTH_SAYING:
            found.append(_not_monotone(curve))
    return found


def _not_monotone(curve: "Curve") -> Finding:
    size, at, to = curve.drop or (0.0, 0, 0)
    text = (
        f"{curve.run}: the {curve.kind} curve is not monotone: the gain falls by {of_gain(size)} from k = {at} to {to};"
    )
    early = [p.k for p in curve.points if (p.recovered or 0.0) >= 0.9 and p.k < (curve.reach.get("0.9") or 0)]
    tail = f" (k = {early[0]} reached 90 %, too, but a larger k did not keep it)" if early else ""
    return Finding("note", f"{text} each k is the smallest from which on all larger ones keep the share{tail}")


def _controls(result: "DimensionResult") -> list[Finding]:
    first, k90 = result.full[0], (result.k(0.9) or [None])[0]
    if not k90:
        return []
    parts, severity = [], "note"
    for kind, words in (("bottom", "the smallest components"), ("random", "random directions of its own row space"),
                        ("haar", "random directions")):  # fmt: skip
        curve = first.curve(kind)
        values = [p.recovered for p in curve.at(k90) if p.recovered is not None] if curve else []
        if values:
            spread = f" ({of_gain(min(values))} to {of_gain(max(values))})" if len(values) > 1 else ""
            parts.append(f"{words} {of_gain(np.mean(values))}{spread}")
            severity = "warning" if kind == "bottom" and np.mean(values) >= 0.2 else severity
    if not parts:
        return []
    text = f"controls at the same k = {k90}: of the gain keep {', '.join(parts)}"
    text += "; the smallest components should keep less than 20 %" if severity == "warning" else ""
    return [Finding("warning" if severity == "warning" else "note", text)]


def _trained(result: "DimensionResult") -> list[Finding]:
    found = []
    for group in result.families:
        if not group.axis:
            level = group.levels[0]
            count = "" if level.parameters is None else f" with {level.parameters:,} parameters"
            found.append(Finding("note", f"{group.label} reaches {of_gain(level.gain)} of the gain{count}"))
            continue
        parts = [f"{of_gain(float(key))} of the gain {_reach(reach, group)}" for key, reach in group.reach.items()]
        if group.axis == "d" and group.metric is not None:
            parts.append(f"90 % of full fine-tuning's accuracy {_reach(group.metric, group)}")
        text = f"trained {group.label}: {', '.join(parts)}"
        found.append(Finding("note", text))
        if all(len(level.gains) == 1 for level in group.levels):
            found.append(Finding("note", f"{group.label}: one seed at each {group.axis}, so no interval can be given"))
        if group.drop and group.drop[0] > DROP_WORTH_SAYING:
            size, at, to = group.drop
            text = f"{group.label}: the gain falls by {of_gain(size)} from {group.axis} = {at} to {to}"
            found.append(Finding("note", text))
    return found


def _reach(reach: "Reach", group: "Family") -> str:
    """`at rank = 4 (2 does not; bootstrap over seeds 2 to 4)`."""
    last, beside = group.levels[-1].size, []
    if reach.size is not None:
        beside.append("the smallest tried" if reach.below is None else f"{reach.below} does not")
    if reach.interval is not None:
        low, high = (f"> {last}" if end is None else str(end) for end in reach.interval)
        beside.append(f"bootstrap over seeds {low}" + (f" to {high}" if high != low else ""))
    text = f"not up to {group.axis} = {last}" if reach.size is None else f"at {group.axis} = {reach.size}"
    return f"{text} ({'; '.join(beside)})" if beside else text


def _search(result: "DimensionResult") -> list[Finding]:
    found = result.search
    if not found:
        return []
    low, high = found["low"], found["high"]
    if high is None:
        text = f"the search reached no d that gives {of_gain(found['target'])} of the gain, up to {low}"
    elif low is None:
        text = f"the search found {of_gain(found['target'])} of the gain at its smallest d, {high}, already"
    else:
        text = f"the search: d90 lies in {low} < d ≤ {high}"
    interval = found["interval"]
    sure = "one seed, so the bracket is all that is known"
    if interval:
        low, high = ("open" if end is None else str(end) for end in interval)
        sure = f"95 % interval {low} to {high} (Student's t, spread pooled over d)"
    return [Finding("note", f"{text}; {sure}; {found['trained']} runs trained, {found['found']} found finished")]


def _axis(result: "DimensionResult") -> list[Finding]:
    points = result.first_on_axis(0.9)
    if not points:
        return []
    parts = [f"{point.family} {point.parameters:,}" for point in points]
    text = f"parameters to 90 % of the gain: {'; '.join(parts)}"
    return [Finding("note", f"{text}; the {result.full[0].head_parameters:,} of the head come on top everywhere")]


def of_gain(value: float) -> str:
    """A share of the gain to 0.1 %: "92.3 %"; never minus zero."""
    return f"{round(100 * value, 1) + 0.0:.3g} %"


def _seeds(values: "list[int | None]") -> str:
    """One number, or one for each seed."""
    known = ["?" if value is None else str(value) for value in values]
    return known[0] if len(set(known)) == 1 else " / ".join(known)
