"""The result in words: what would mislead first, then what agrees and what does not, each with its chance level."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lorascope.analyses import rules
from lorascope.analyses.adapter_updates import PARTIAL
from lorascope.analyses.compare import similarity
from lorascope.analyses.compare.inputs import MATCHING
from lorascope.analyses.compare.matrices import within_and_between
from lorascope.analyses.compare.relation import IDENTICAL
from lorascope.analyses.compare.result import CompareResult, Pair
from lorascope.analyses.compare.seeds import FEW
from lorascope.analyses.compare.summary import RATE
from lorascope.analyses.subspaces import NON_FINITE
from lorascope.analyses.toolkit import Row, capital, counted, digits, extreme, median, plural
from lorascope.blocks import Finding
from lorascope.errors import preview
from lorascope.weights.adapter import Skipped

MIN_EFFECT = 0.1  # on the left, from which on it is not called unaffected
MAX_CHANCE = 0.25  # of φ, above which φ by itself says little
MAX_PAIRS = 3  # described one by one
FROZEN = ("vera", "core")
OTHER_SEEDS = "Compare runs of different seeds"
SIDES = (("left", "left (output) subspaces"), ("right", "right (input) subspaces"))


def findings(result: CompareResult) -> list[Finding]:
    """What would mislead, what agrees, the limits, and the verdict last."""
    made = [*_notes(result), *_initialisations(result), *_agreement(result), *_by_label(result), *_limits(result)]
    return [*made, rules.VERDICT.finding(similarity.sentence(result), action=similarity.next_step(result))]


def _notes(result: CompareResult) -> list[Finding]:
    """What the readers say of the files, once for all adapters that it is true of."""
    labels: dict[str, list[str]] = {}
    for adapter in result.adapters:
        for note in adapter.get("notes", ()):
            labels.setdefault(note, []).append(adapter["label"])
    total = len(result.adapters)
    return [
        rules.about_file(note, "All adapters" if len(those) == total else preview(those, 2))
        for note, those in labels.items()
    ]


def _identical(pair: Pair) -> bool:
    return (pair.summary["cosine"] or 0.0) >= IDENTICAL or pair.summary.get("relation") is not None


def _shares_initialisation(pair: Pair) -> bool:
    """Whether the A have one initialisation, in some module where each was compared, or in most."""
    about = pair.summary["shared_initialisation"]
    if "share_of_modules" in about:
        return (about["share_of_modules"] or 0.0) > 0.5
    return about["modules"] > 0


def _initialisations(result: CompareResult) -> list[Finding]:
    sharing = [pair for pair in result.pairs if _shares_initialisation(pair) and not _identical(pair)]
    if not sharing:
        return []
    if len(result.adapters) > 2:
        return [_groups(result, len(sharing))]
    (pair,) = sharing
    rows = [row for row in pair.modules or () if row["initialisation"] and row["initialisation"]["shared"]]
    where = counted(len(rows), pair.summary["shared_initialisation"]["of"])
    if all(set(row["kind"]) <= set(FROZEN) for row in rows):
        text = f"Same frozen projections in {where}: the subspaces agree by construction, not by training"
        return [rules.SAME_SEED.finding(text, action="Read the cosine of the updates in place of the subspaces")]
    about = [row["initialisation"] for row in rows]
    cosine = median(each["row_cosine"] for each in about)
    sd = median(
        abs(each["row_cosine"] / each["row_cosine_z"]) for each in about if each["row_cosine"] and each["row_cosine_z"]
    )
    text = (
        f"Same random initialisation of A in {where} (same seed); mean row cosine {digits(cosine)} (expected by chance"
        f" 0 ± {digits(sd)}). Overlap of the input subspaces therefore reflects the seed, not the task"
        f"{_left_too(pair)}"
    )
    names = tuple(row["name"] for row in rows)
    only = None if len(rows) > 1 else rows[0]["name"]
    return [rules.SAME_SEED.finding(text, module=only, modules=names, action=OTHER_SEEDS)]


def _left_too(pair: Pair) -> str:
    """One seed is often one order of the data and one new head as well, which affect B."""
    effect = pair.summary["left"]["median_effect"]
    if effect is None or effect < MIN_EFFECT:
        return "; output subspaces are not affected"
    return f"; one seed is also one order of the data, and the output subspaces agree too (effect {digits(effect)})"


def _groups(result: CompareResult, pairs: int) -> Finding:
    several = [len(group) for group in result.groups if len(group) > 1]
    text = f"Same random initialisation of A in {counted(pairs, len(result.pairs), 'pair')}"
    if not several:
        return rules.SAME_SEED.finding(f"{text}, in too few modules to make a group of adapters", action=OTHER_SEEDS)
    sizes = ", ".join(map(str, several[:8])) + (", …" if len(several) > 8 else "")
    text += f": {len(several)} group{'s' * (len(several) != 1)} of {sizes} adapters"
    means = within_and_between(result.matrices, result.groups)
    inside, across = means["within"], means["between"]
    if inside["right"] is not None and across["right"] is not None:
        text += (
            f". Right φ {digits(inside['right'])} within groups and {digits(across['right'])} between (chance"
            f" {digits(across['right_chance'])}); left φ {digits(inside['left'])} and {digits(across['left'])}"
            f" (chance {digits(across['left_chance'])})"
        )
    text += ". Overlap of the input subspaces within a group therefore reflects the seed, not the task"
    return rules.SAME_SEED.finding(text, action="Read the right φ between groups, or compare runs of different seeds")


def _agreement(result: CompareResult) -> list[Finding]:
    if len(result.pairs) > MAX_PAIRS:
        return _many(result)
    made: list[Finding] = []
    for pair in result.pairs:
        names = f"{result.label(pair.a)} and {result.label(pair.b)}: " if len(result.pairs) > 1 else ""
        if _identical(pair):
            truncated = (pair.summary.get("relation") or {}).get("kind") == "truncated"
            severity = "note" if truncated else rules.SAME_UPDATE.severity
            action = "" if truncated else "Check the paths: to compare two trainings, give the files of both"
            made.append(rules.SAME_UPDATE.finding(_after(names, _same(pair)), severity, action=action))
        elif pair.modules:
            texts = [_cosines(pair), *(_side(pair, key, name) for key, name in SIDES)]
            made += [Finding("note", _after(names, text)) for text in texts if text] + _most_similar(pair)
    return made


def _after(label: str, text: str) -> str:
    """The text after the names of its pair; with a capital letter where there are none."""
    return label + text if label else capital(text)


def _same(pair: Pair) -> str:
    related, cosine = pair.summary.get("relation"), pair.summary["cosine"]
    if not related or related["kind"] != "truncated":
        same = related is not None and related["kind"] == "same"
        factor = f" up to a factor of {digits(related['norm_ratio'])}" if related and not same else ""
        how = factor or ("" if same else " up to a factor")
        return f"identical{how}: cosine {cosine:.6f} over all modules"
    equal = f"cosine {cosine:.4f} over all modules, equal to the ratio of the norms"
    return f"one is a truncation of the other ({equal}), not a second trained adapter"


def _cosines(pair: Pair) -> str:
    summary = pair.summary
    if summary["cosine"] is None:
        return "no cosine: an update is zero in every module"
    sd = median(row["cosine_sd"] for row in pair.modules or ())
    return (
        f"cosine of the updates {digits(summary['cosine'])} over all modules, {digits(summary['median_cosine'])} in"
        f" the median module (chance 0 ± {digits(sd)}); {counted(summary['cosine_significant'], summary['modules'])}"
        f" are significant at a false discovery rate of {100 * RATE:.0f} %"
    )


def _side(pair: Pair, side: str, name: str) -> str:
    about = pair.summary[side]
    if about["median_phi"] is None:
        return ""
    return (
        f"{name}: φ {digits(about['median_phi'])} in the median module (chance {digits(about['median_phi_chance'])},"
        f" z {digits(about['median_z'])}); {counted(about['significant'], about['of'])} above chance (FDR"
        f" {100 * RATE:.0f} %); for the top singular directions, φ(1,1) {digits(about['median_top_phi'])} (chance"
        f" {digits(about['median_top_phi_chance'])})"
    )


def _most_similar(pair: Pair) -> list[Finding]:
    rows = [row for row in pair.modules or () if row["left"] and row["left"]["effect"] is not None]
    best = extreme(rows, "left.effect")
    if best is None or len(rows) < 2 or best["left"]["q"] is None or best["left"]["q"] > RATE:
        return []  # the largest of many is no finding where chance alone gives it
    left = best["left"]
    text = (
        f"Most similar output subspace, φ {digits(left['phi_whole'])} (chance"
        f" {digits(left['phi_chance'])}, q {digits(left['q']) if left['q'] else 'below 1e−300'}), cosine"
        f" {digits(best['cosine'])}"
    )
    return [Finding("note", text, best["name"])]


def _many(result: CompareResult) -> list[Finding]:
    upper = np.triu_indices(len(result.adapters), 1)
    made = []
    for side, name in SIDES:
        values, chance = (getattr(result.matrices, key)[upper] for key in (side, f"{side}_chance"))
        if not np.isfinite(values).any():
            continue
        top = int(np.nanargmax(getattr(result.matrices, f"{side}_effect")[upper]))
        a, b = (result.label(int(axis[top])) for axis in upper)
        text = (
            f"{capital(name)}: φ {digits(float(np.nanmedian(values)))} in the median pair (chance"
            f" {digits(float(np.nanmedian(chance)))}); the most similar are {a} and {b}, {digits(float(values[top]))}"
        )
        made.append(Finding("note", text))
    same = [pair for pair in result.pairs if _identical(pair)]
    if same:
        of = counted(len(same), len(result.pairs), "pair")
        text = f"{of} hold one update, such as" if len(same) > 1 else f"{of} holds one update:"
        text += f" {result.label(same[0].a)} and {result.label(same[0].b)}"
        made.append(rules.SAME_UPDATE.finding(capital(text), action="Leave all but one of them out"))
    if result.clusters and len(result.clusters["clusters"]) > 1:
        sizes = ", ".join(str(len(members)) for members in result.clusters["clusters"])
        text = f"{len(result.clusters['clusters'])} clusters by overlap of the output subspaces (of {sizes} adapters;"
        made.append(Finding("note", f"{text} mean silhouette {digits(result.clusters['silhouette'])})"))
    return made


def _by_label(result: CompareResult) -> list[Finding]:
    """Of groups that were named: agreement within and between them, with adapters as the sampling unit."""
    if result.by_label is None:
        return []
    sizes = [len(members) for members in result.by_label["groups"].values()]
    text = f"{len(sizes)} named groups (of {', '.join(map(str, sizes))} adapters): intervals are bootstrapped over"
    few = f"; groups of fewer than {FEW} make them too narrow" if min(sizes) < FEW else ""
    made = [Finding("note", f"{text} adapters, not over layers{few}")]
    for key, name in (("cosine", "cosine"), ("left_effect", "left effect"), ("right_effect", "right effect")):
        about = result.by_label["measures"][key]
        parts = [f"{_ranged(about[where])} {where} groups" for where in ("within", "between") if about[where]["mean"]]
        if not parts:
            continue
        text = f"{capital(name)} of the updates: {' and '.join(parts)}"
        if about["p"] is not None:
            text += f"; difference {_ranged(about['difference'])}, p {digits(about['p'])}"
        made.append(Finding("note", text))
    return made


def _ranged(interval: Row) -> str:
    if interval["low"] is None:
        return digits(interval["mean"])
    return f"{digits(interval['mean'])} ({digits(interval['low'])} to {digits(interval['high'])})"


def _limits(result: CompareResult) -> list[Finding]:
    made = []
    if modules := tuple(item.name for item in result.skipped_in(MATCHING)):
        names, number = preview(modules, 2), plural(len(modules), "module")
        where = "only one adapter has" if len(result.adapters) == 2 else "some adapters lack"
        text = f"{number} that {where}, or in another shape ({names}); full list in the report"
        action = "Pass --base MODEL if only their names differ; otherwise what is said holds for the others alone"
        made.append(rules.NOT_SHARED.finding(text, modules=modules, action=action))
    made += _skipped(result.skipped_in())
    if result.sampled:
        measured, total = result.sampled
        text = f"{measured} of {total} modules were measured, evenly chosen by depth within each type"
        made.append(Finding("note", f"{text}; --all-modules measures all"))
    return made + _of_modules([row for pair in result.pairs for row in pair.modules or ()])


def _skipped(items: Sequence[Skipped]) -> list[Finding]:
    """Modules with NaN as an error, and what else was not compared."""
    made = []
    bad = [item for item in items if item.reason == NON_FINITE]
    if modules := tuple(dict.fromkeys(item.name for item in bad)):
        whose = preview(list(dict.fromkeys(item.adapter for item in bad)), 2)
        text = f"{plural(len(modules), 'module')} not compared: NaN or Inf in {whose} ({preview(modules, 2)})"
        action = "Run lorascope analyze on it, and do not merge or serve it"
        made.append(rules.NON_FINITE.finding(text, modules=modules, action=action))
    if others := tuple(dict.fromkeys(item.name for item in items if item not in bad)):
        text = f"{plural(len(others), 'tensor')} skipped ({preview(others, 2)}); each with its reason in the report"
        made.append(Finding("note", text, modules=others))
    return made


def _of_modules(rows: list[Row]) -> list[Finding]:
    made = []
    if zero := sorted({row["name"] for row in rows if 0.0 in row["frobenius_norm"]}):
        text = f"ΔW is zero in {len(zero)} module{'s' * (len(zero) != 1)} of one adapter ({preview(zero, 2)})"
        action = "Run lorascope analyze on it, which says why"
        made.append(rules.ZERO_COMPARED.finding(text, modules=tuple(zero), action=action))
    if any(PARTIAL in row["notes"] for row in rows):
        made.append(rules.PARTIAL_UPDATE.finding(f"DoRA is compared by {PARTIAL}", action="Pass --base MODEL"))
    by_chance = [row for row in rows if any(side and side["phi_chance"] > MAX_CHANCE for side in _sides(row))]
    if by_chance:
        text = f"By chance alone φ is over {MAX_CHANCE} in {counted(len(by_chance), len(rows))}: the ranks are large"
        action = "Read z and the effect, which are 0 by chance, in place of φ"
        made.append(rules.HIGH_CHANCE.finding(f"{text} relative to the widths", action=action))
    tied = [row for row in rows if any(side and any(side["tied_after"]) for side in _sides(row))]
    if tied:
        text = "Tied singular values make the order of directions arbitrary; φ(i, j) is blank where i or j falls"
        made.append(Finding("note", f"{text} inside a tie", tied[0]["name"]))
    return made


def _sides(row: Row) -> tuple[Any, Any]:
    return row["left"], row["right"]
