"""The result in words: what cannot be told, then how many intruders there are and what that says."""

from typing import TYPE_CHECKING

import numpy as np

from lorascope.analyses.delta.findings import percent
from lorascope.blocks import Finding
from lorascope.errors import preview
from lorascope.weights.delta import DEQUANTISED

if TYPE_CHECKING:
    from lorascope.analyses.intruders.result import IntrudersResult

MIXTURE = 0.5  # of a vector in the span of W's leading ones


def findings(result: "IntrudersResult") -> tuple[Finding, ...]:
    """Errors, then warnings, then notes."""
    return (
        *_broken(result),
        *_chance(result),
        *_files(result),
        *_counts(result),
        *_prediction(result),
        *_scaled(result),
    )


def _broken(result: "IntrudersResult") -> list[Finding]:
    found = [
        Finding("error", "ΔW holds NaN or infinite entries; nothing else can be said", m.name)
        for m in result.modules
        if m.non_finite
    ]
    if not result.changed and not found:
        found.append(Finding("error", "ΔW is zero in every weight: there is nothing that could intrude"))
    return found


def _chance(result: "IntrudersResult") -> list[Finding]:
    blind = [m for m in result.modules if m.chance and result.epsilon <= m.chance["left"]]
    if not blind:
        return []
    worst = max(blind, key=lambda m: m.chance["left"])
    text = (
        f"ε = {result.epsilon:g} is at or below what a random direction reaches by chance, {worst.chance['left']:.2f}"
        f" here and so in {len(blind)} of {len(result.modules)} weights: there even a direction that has nothing to do"
        " with W is no intruder"
    )
    return [Finding("warning", text, worst.name)]


def _files(result: "IntrudersResult") -> list[Finding]:
    found = [Finding("warning", note) for note in result.sides["tuned"].get("notes", ())]
    coded = [m for m in result.modules if any(note.startswith(DEQUANTISED) for note in m.notes)]
    if coded:
        note = next(note for note in coded[0].notes if note.startswith(DEQUANTISED))
        found.append(
            Finding("note", f"W is {note.partition(':')[0]}, in {len(coded)} of {len(result.modules)} weights")
        )
    if result.skipped:
        names = preview([item.name for item in result.skipped], 2)
        found.append(Finding("note", f"not looked at: {len(result.skipped)} ({names}); the reasons are listed"))
    tied = [m for m in result.modules if m.equal_singular_values]
    if tied:
        text = f"W has equal singular values in {len(tied)} weights, such as {tied[0].name}: each set is one subspace"
        found.append(Finding("note", text))
    other = [m for m in result.changed if (m.relative_norm or 0) > 1]
    if other:
        worst = max(other, key=lambda m: m.relative_norm or 0)
        more = f", and larger than ‖W‖ in {len(other) - 1} others" if len(other) > 1 else ""
        text = (
            f"‖ΔW‖ is {worst.relative_norm:.2g} times ‖W‖ here{more}:"
            " another weight rather than a change of this one (a part that the base did not train?)"
        )
        found.append(Finding("warning", text, worst.name))
    short = [m for m in result.modules if m.base_rank is not None and m.base_rank < min(m.shape)]
    if short:
        text = (
            f"W is not of full rank in {len(short)} weights, such as {short[0].name} ({short[0].base_rank} of"
            f" {min(short[0].shape)}): directions that W maps to nothing are none of its singular vectors here"
        )
        found.append(Finding("note", text))
    return found


def _counts(result: "IntrudersResult") -> list[Finding]:
    if not result.changed:
        return []
    whole = result.summary()
    number, slots = whole["intruders"]["left"], result.slots
    text = (
        f"{number} of the {slots} leading singular vectors (the first {result.k} of {len(result.modules)} weights) are"
        f" intruders on the output side at ε = {result.epsilon:g}, in"
        f" {whole['modules_with_intruders']['left']} weights; {whole['intruders']['right']} on the input side"
    )
    found = [Finding("note", text)]
    chance = whole["median_chance"]["left"]
    text = f"a random direction has at most |cos| = {chance:.2f} with W's singular vectors in the median weight:"
    text += (
        " any direction that training adds and that is strong enough is counted; the count says how strong, not how new"
    )
    found.append(Finding("note", text))
    margin = whole["median_spike_margin"]
    if margin is not None:
        most = max(result.changed, key=lambda m: m.spike_margin or 0)
        text = (
            f"spike margin σ₁(ΔW)/σ_{result.k}(W): {margin:.3g} in the median weight, at most {most.spike_margin:.3g}"
        )
        found.append(Finding("note", text, most.name))
    if number:
        text = f"the intruders hold {percent(whole['energy_share']['left'])} of the energy of the vectors looked at"
        first = min(
            (v for m in result.changed for v in m.intruders(result.epsilon, result.k)),
            key=lambda vector: vector.position,
        )
        found.append(Finding("note", f"{text}; the highest is at position {first.position}"))
        all_of_them = [v for m in result.changed for v in m.intruders(result.epsilon, result.k)]
        mixed = sum(v.of_base["left"] > MIXTURE for v in all_of_them)
        chance = np.median([2 * result.k / m.shape[0] for m in result.changed])
        text = (
            f"{mixed} of the {number} lie by more than half in the span of W's {2 * result.k} leading vectors (a random"
            f" direction: {percent(float(min(chance, 1)))}): mixtures of W's own directions rather than new ones"
        )
        found.append(Finding("note", text))
    return found


def _prediction(result: "IntrudersResult") -> list[Finding]:
    known = [m.prediction for m in result.changed if m.prediction is not None]
    if not known:
        return []
    agreed = result.agreement()
    right = agreed["both"] + agreed["neither"]
    text = (
        f"from W's spectrum and σ(ΔW) alone, as if ΔW knew nothing of W's directions, an intruder was expected in"
        f" {agreed['both'] + agreed['expected_only']} of {len(known)} weights and found in"
        f" {agreed['both'] + agreed['found_only']}; right in {right}"
    )
    found = [Finding("note", text)]
    seen = [p for p in known if p.measured is not None]
    if seen:
        error = np.median([abs(p.value / p.measured - 1) for p in seen])
        text = f"where ΔW's first direction is among the {result.k} leading ones ({len(seen)} weights), the expected"
        found.append(Finding("note", f"{text} singular value is {percent(float(error))} off in the median"))
    return found


def _scaled(result: "IntrudersResult") -> list[Finding]:
    return list(result.intervention.findings()) if result.intervention is not None else []
