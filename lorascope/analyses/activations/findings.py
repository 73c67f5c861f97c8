"""The result in words: what cannot be trusted or is missing first, then what ΔW does and how far states moved."""

from typing import TYPE_CHECKING

import numpy as np

from lorascope.analyses.delta.findings import percent
from lorascope.blocks import Finding
from lorascope.errors import preview

if TYPE_CHECKING:
    from lorascope.analyses.activations.result import ActivationsResult, ModuleResponse

BIASED_WORTH_SAYING = 0.05  # what unrelated hidden states would get from the biased estimator
FEW = 2  # runs of which more is said than the table shows
UNLIKELY = 4.0  # standard deviations


def findings(result: "ActivationsResult") -> tuple[Finding, ...]:
    """Errors, then warnings, then notes."""
    order = {"error": 0, "warning": 1, "note": 2}
    found = [*_left_out(result), *_samples(result)]
    few = len(result.runs) <= FEW
    for label in result.runs:
        found += [*_share(result, label, few), *(_where(result, label) if few else ())]
    found += [*_cka(result), *(Finding("note", note) for note in result.notes)]
    return tuple(sorted(found, key=lambda finding: order[finding.severity]))


def _left_out(result: "ActivationsResult") -> list[Finding]:
    found = []
    for label, items in result.left_out.items():
        reasons: dict[str, list[str]] = {}
        for item in items:
            reasons.setdefault(item.reason, []).append(item.name)
        for reason, names in reasons.items():
            found.append(Finding("note", f"{label}: {len(names)} updates left out ({preview(names, 1)}): {reason}"))
    return found


def _samples(result: "ActivationsResult") -> list[Finding]:
    known = [one.cka.biased_chance for one in result.similarities if one.cka.biased_chance is not None]
    found = []
    if known and max(known) > BIASED_WORTH_SAYING:
        text = (
            f"{result.samples:,} samples for {result.width} features are few: the usual, biased CKA of unrelated states"
            f" would be up to {max(known):.2f} here; debiased it is 0 on average"
        )
        found.append(Finding("warning" if result.samples < result.width else "note", text))
    if result.samples > result.texts:
        text = f"{result.samples:,} tokens from {result.texts:,} texts: tokens of one text are no independent samples"
        found.append(Finding("note", f"{text}, and intervals and chance are those of {result.texts:,} texts"))
    return found


def _share(result: "ActivationsResult", label: str, few: bool) -> list[Finding]:
    modules = [m for m in result.of(label) if m.share]
    if not modules:
        return [Finding("warning", f"{label}: no updated layer has inputs to look at")]
    share = np.median([m.share["mean"] for m in modules if m.share])
    chance = np.median([m.chance_share for m in modules if m.chance_share is not None])
    weights = np.median([m.weight_ratio for m in modules if m.weight_ratio is not None])
    text = (
        f"{label}: in the median layer ‖ΔW x‖ is {percent(share)} of ‖W x‖ on real inputs; a random ΔW of the same norm"
        f" would give {percent(chance)}, and ‖ΔW‖/‖W‖ is {percent(weights)}"
    )
    found = [Finding("note", text)]
    if not few:
        return found
    gains = [(m.update_gain, m.base_gain) for m in modules if m.update_gain and m.base_gain]
    if gains:
        update, base = np.median(gains, axis=0)
        text = f"{label}: on these inputs ΔW acts {update:.2g} times as strongly as a random one of its norm"
        found.append(Finding("note", f"{text}, W itself {base:.2g} times (medians)"))
    cosines = [(m.cosine["mean"], m.chance_cosine, m.name) for m in modules if m.cosine]
    strong = [one for one in cosines if abs(one[0]) > UNLIKELY * one[1]]
    if strong:
        value, chance, name = max(strong, key=lambda one: abs(one[0]))
        does = "amplifies" if value > 0 else "takes away from"
        text = (
            f"{label}: in {len(strong)} of {len(cosines)} layers the mean cosine of ΔW x with W x is beyond"
            f" {UNLIKELY:g}/√d_out; largest {value:.2f} in {name} (one token by chance ±{chance:.2f}): there ΔW {does}"
            " what W puts out"
        )
        found.append(Finding("note", text))
    return found


def _where(result: "ActivationsResult", label: str) -> list[Finding]:
    """The layer type with the largest share, and the layer."""
    modules = [m for m in result.of(label) if m.share]
    types: dict[str, list[ModuleResponse]] = {}
    for module in modules:
        types.setdefault(module.type, []).append(module)
    if len(types) < 2:
        return []
    means = {name: float(np.mean([m.share["mean"] for m in group if m.share])) for name, group in types.items()}
    most, least = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    text = f"{label}: the share is largest in {most} ({percent(means[most])} on average), least in {least}"
    return [Finding("note", f"{text} ({percent(means[least])})")]


def _cka(result: "ActivationsResult") -> list[Finding]:
    """For every pair the layer where they are least alike."""
    found = []
    for a, b in result.pairs:
        if a != "base" and len(result.runs) > FEW + 1:
            continue  # the table and the page have them
        known = [one for one in result.similarity(a, b) if one.cka.value is not None]
        if not known:
            continue
        low = min(known, key=lambda one: one.cka.value or 0.0)
        assert low.cka.value is not None
        interval = "" if low.cka.low is None else f" ({low.cka.low:.3f} to {low.cka.high:.3f})"
        text = (
            f"{a} and {b}: CKA is least after layer {low.layer} of {result.layers - 1}, {low.cka.value:.3f}{interval}"
        )
        if low is not known[-1] and known[-1].cka.value is not None:
            text += f"; after the last {known[-1].cka.value:.3f}"
        if low.cka.value < UNLIKELY * low.cka.chance_sd:
            text += ", as by chance"
        found.append(Finding("note", text))
    return found
