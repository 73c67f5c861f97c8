"""The result in words: what cannot be told, then how many intruders there are and what that says."""

from lorascope.analyses import rules
from lorascope.analyses.intruders.result import ARMS, Intervention, IntrudersResult
from lorascope.analyses.toolkit import counted, extreme, median, percent, plural, value
from lorascope.blocks import Finding
from lorascope.errors import preview
from lorascope.weights.delta import DEQUANTISED

MIXTURE = 0.5  # of a vector in the span of W's leading ones


def findings(result: IntrudersResult) -> list[Finding]:
    """The note on what the count measures comes first among the notes, before the count itself."""
    made = [*_strength(result), *_broken(result), *_chance(result), *_files(result), *_counts(result)]
    return [*made, *_prediction(result), *(_scaled(result.intervention) if result.intervention is not None else ())]


def _strength(result: IntrudersResult) -> list[Finding]:
    if not result.changed:
        return []
    chance = result.summary()["median_chance"]["left"]
    text = (
        f"The count measures strength, not novelty: a random direction has at most |cos| = {chance:.2f} with W's"
        " singular vectors in the median weight, so at this ε any added direction with a large enough singular value"
        " counts as an intruder"
    )
    return [rules.STRENGTH.finding(text)]


def _broken(result: IntrudersResult) -> list[Finding]:
    bad = tuple(m.name for m in result.rows if m.non_finite)
    made = []
    if bad:
        where = f"in {len(bad)} weights ({preview(bad, 2)})" if len(bad) > 1 else ""
        text = f"ΔW contains NaN or infinite entries {where}".strip() + "; no metrics computed"
        action = "Do not merge or serve it: go back to the last checkpoint before the loss became NaN"
        only = bad[0] if len(bad) == 1 else None
        made.append(rules.NON_FINITE.finding(text, module=only, modules=bad, action=action))
    if result.rows and not result.changed and not made:
        text, action = "ΔW is zero in every weight: no intruder dimensions possible", "Run lorascope analyze on it"
        made.append(rules.NO_CHANGE.finding(text, action=f"{action}, which says why"))
    return made


def _chance(result: IntrudersResult) -> list[Finding]:
    blind = [m for m in result.rows if m.chance and result.epsilon <= m.chance["left"]]
    worst = extreme(blind, "chance.left")
    if worst is None:
        return []
    text = (
        f"ε = {result.epsilon:g} is at or below what a random direction reaches by chance,"
        f" {value(worst, 'chance.left'):.2f} here and so in {len(blind)} of {len(result.rows)} weights: even a"
        " direction unrelated to W cannot count as an intruder there"
    )
    modules = tuple(m.name for m in blind)
    return [rules.BLIND.finding(text, module=worst.name, modules=modules, action="Raise --epsilon")]


def _files(result: IntrudersResult) -> list[Finding]:
    made = [rules.about_file(note) for note in result.inputs["tuned"].get("notes", ())]
    coded = [each[0] for m in result.rows if (each := [n for n in m.notes if n.startswith(DEQUANTISED)])]
    if coded:
        text = f"W is {coded[0].partition(':')[0]}, in {len(coded)} of {len(result.rows)} weights"
        made.append(Finding("note", text))
    if result.skipped:
        names = preview([item.name for item in result.skipped], 2)
        made.append(
            rules.SKIPPED.finding(f"{plural(len(result.skipped), 'tensor')} skipped ({names}); reasons in the report")
        )
    tied = [m for m in result.rows if m.equal_singular_values]
    if tied:
        text = f"W has equal singular values in {plural(len(tied), 'weight')}, such as {tied[0].name}"
        made.append(Finding("note", f"{text}: each set is one subspace"))
    other = [m for m in result.changed if (m.relative_norm or 0) > 1]
    if worst := extreme(other, "relative_norm"):
        more = f", and larger than ‖W‖ in {len(other) - 1} others" if len(other) > 1 else ""
        text = (
            f"‖ΔW‖ is {worst.relative_norm:.2g} times ‖W‖ here{more}: this looks like a replaced or newly initialised"
            " weight, not a fine-tuned one"
        )
        modules = tuple(m.name for m in other)
        action = "Leave it out with --modules, or give the base that this was trained from"
        made.append(rules.DELTA_UNRELATED.finding(text, module=worst.name, modules=modules, action=action))
    short = [m for m in result.rows if m.base_rank is not None and m.base_rank < min(m.shape)]
    if short:
        text = (
            f"W is not of full rank in {plural(len(short), 'weight')}, such as {short[0].name} ({short[0].base_rank} of"
            f" {min(short[0].shape)}): null-space directions of W are not counted as its singular vectors"
        )
        made.append(Finding("note", text))
    return made


def _counts(result: IntrudersResult) -> list[Finding]:
    if not result.changed:
        return []
    whole, k = result.summary(), result.k
    number = whole["intruders"]["left"]
    where = f", in {counted(whole['modules_with_intruders']['left'], len(result.rows), 'weight')}"
    text = (
        f"{number} of the {result.slots} leading singular vectors (the first {k} of"
        f" {plural(len(result.rows), 'weight')}) are intruders on the output side at ε = {result.epsilon:g}"
        f"{where if number else ''}; {whole['intruders']['right']} on the input side"
    )
    made = [Finding("note", text)]
    strongest = extreme(result.changed, "spike_margin")
    if strongest is not None:
        text = (
            f"σ₁(ΔW)/σ_{k}(W) = {strongest.spike_margin:.3g}, the largest of all weights (median"
            f" {whole['median_spike_margin']:.3g}); above about 1 an intruder can enter the top {k}"
        )
        made.append(Finding("note", text, strongest.name))
    return made + _intruders(result, whole["energy_share"]["left"])


def _intruders(result: IntrudersResult, energy: float) -> list[Finding]:
    vectors = [vector for module in result.changed for vector in result.of(module)]
    if not vectors:
        return []
    first = min(vector.position for vector in vectors)
    text = f"Intruders carry {percent(energy)} of the energy of the top-k singular values; the highest is at position"
    mixed = sum(vector.of_base["left"] > MIXTURE for vector in vectors)
    random = min(median(2 * result.k / module.shape[0] for module in result.changed) or 0.0, 1.0)
    mixtures = (
        f"{mixed} of the {len(vectors)} have more than half of their norm in the span of W's {2 * result.k} leading"
        f" vectors (a random direction: {percent(random)}): these are mixtures of existing directions, not new ones"
    )
    return [Finding("note", f"{text} {first}"), Finding("note", mixtures)]


def _prediction(result: IntrudersResult) -> list[Finding]:
    predictions = [m.prediction for m in result.changed if m.prediction is not None]
    if not predictions:
        return []
    agreed = result.agreement()
    text = (
        "From W's spectrum and σ(ΔW) alone, assuming ΔW is independent of W, random-matrix theory predicts an intruder"
        f" in {agreed['both'] + agreed['expected_only']} of {len(predictions)} weights; observed in"
        f" {agreed['both'] + agreed['found_only']} (prediction correct in {agreed['both'] + agreed['neither']})"
    )
    made = [Finding("note", text)]
    errors = [abs(p.value / p.measured - 1) for p in predictions if p.measured is not None]
    if errors:
        text = f"Where ΔW's first direction is among the {result.k} leading ones ({len(errors)} weights), the expected"
        made.append(Finding("note", f"{text} singular value is {percent(median(errors) or 0.0)} off in the median"))
    return made


def _scaled(made: Intervention) -> list[Finding]:
    """What happened where the first arm lost least: each arm's scores, and no verdict beyond them."""
    if not made.points:
        return [Finding("note", "No weight has an intruder to scale: the intervention changes nothing")]
    texts = []
    factor = min((f for f in made.lambdas() if f < 1), key=lambda f: abs(f - 0.7), default=None)
    for key, name in (("loss", "held-out loss"), ("retained_loss", "loss on the other texts")):
        if key in made.trained and factor is not None:
            change = {arm: made.at(arm, factor)[key] - made.trained[key] for arm in ARMS}
            texts.append(
                f"λ = {factor:g}: the {name} is {made.trained[key]:.4g} as trained and {made.base[key]:.4g} without ΔW;"
                f" it changes by {change['intruder']:+.3g} with the intruders scaled, {change['shrink']:+.3g} with ΔW"
                f" shrunk to the same norm, {change['step']:+.3g} with ΔW shrunk by the same distance,"
                f" {change['neighbour']:+.3g} with a neighbouring direction scaled and {change['random']:+.3g} with a"
                " random one"
            )
    notes = [Finding("note", text) for text in texts]
    grown = [f for f in made.lambdas() if made.at("intruder", f)["norm"] > 1]
    if grown:
        text = (
            f"At λ = {', '.join(f'{f:g}' for f in grown)} scaling the intruders makes ‖ΔW‖ larger, because they contain"
            " more of W than of ΔW: the norm-matched control is then not a shrinkage"
        )
        notes.append(rules.NO_SHRINKAGE.finding(text, action="Compare with the step-matched control instead"))
    if made.without:
        some = f"{plural(len(made.without), 'weight')} ({preview(made.without, 2)})"
        text = f"No neighbour that is not an intruder in {some}, which that arm leaves as trained"
        action = "Raise --k, so that there are more to choose from"
        notes.append(rules.NO_NEIGHBOUR.finding(text, modules=tuple(made.without), action=action))
    return notes
