"""The result in words: what would mislead first, then what agrees and what does not, each beside its chance level."""

from typing import TYPE_CHECKING

import numpy as np

from lorascope.analyses.adapter_updates import PARTIAL
from lorascope.analyses.compare.matrices import within_and_between
from lorascope.analyses.compare.seeds import FEW
from lorascope.analyses.compare.summary import RATE, median
from lorascope.blocks import Finding
from lorascope.errors import preview

if TYPE_CHECKING:
    from lorascope.analyses.compare.pair import Row
    from lorascope.analyses.compare.result import CompareResult, Pair

SAME = 0.9999  # cosine from which on two updates are one
ALIKE = 0.1  # an effect on the left from which on it is not called untouched
CROWDED = 0.25  # a chance level of φ from which on φ by itself says little
MAX_PAIRS = 3  # spoken of one by one
FROZEN = ("vera", "core")


def findings(result: "CompareResult") -> tuple[Finding, ...]:
    """Errors, then warnings, then notes."""
    order = {"error": 0, "warning": 1, "note": 2}
    found = [*_readers(result), *_initialisations(result), *_agreement(result), *_by_label(result), *_limits(result)]
    return tuple(sorted(found, key=lambda finding: order[finding.severity]))


def _readers(result: "CompareResult") -> list[Finding]:
    """What the readers want said of the files, once for all adapters that it is true of."""
    said: dict[str, list[str]] = {}
    for adapter in result.adapters:
        for note in adapter.get("notes", ()):
            said.setdefault(note, []).append(adapter["label"])
    whole = len(result.adapters)
    return [
        Finding("warning", f"{'all adapters' if len(labels) == whole else preview(labels, 2)}: {note}")
        for note, labels in said.items()
    ]


def same_update(pair: "Pair") -> bool:
    return (pair.summary["cosine"] or 0.0) >= SAME


def shared(pair: "Pair") -> bool:
    """Whether the adapters began from one A, in some module where it was looked at one by one, or in most."""
    about = pair.summary["shared_initialisation"]
    if "share_of_modules" in about:
        return (about["share_of_modules"] or 0.0) > 0.5
    return about["modules"] > 0


def _initialisations(result: "CompareResult") -> list[Finding]:
    sharing = [pair for pair in result.pairs if shared(pair) and not same_update(pair)]
    if not sharing:
        return []
    if len(result.adapters) > 2:
        return [_groups(result, len(sharing))]
    (pair,) = sharing
    about = pair.summary["shared_initialisation"]
    rows = [row for row in pair.modules or () if row["initialisation"] and row["initialisation"]["shared"]]
    if all(set(row["kind"]) <= set(FROZEN) for row in rows):
        text = "frozen projections are one and the same: the subspaces agree by construction, not by training"
        return [Finding("warning", f"SHARED PROJECTIONS in {_of(len(rows), about['of'])}: their {text}")]
    cosine = median([row["initialisation"]["row_cosine"] for row in rows])
    size = median([abs(c / z) for c, z in (_row_cosine(row) for row in rows) if c and z])
    text = (
        f"SHARED INITIALISATION in {_of(len(rows), about['of'])}: A began from the same random numbers (one seed) and"
        f" its rows still agree one by one, cosine {_number(cosine)} (chance 0 ± {_number(size)})."
        f" What the right subspaces and A have in common is then the seed, not the task{_left_too(pair)}. Compare runs"
        " of different seeds"
    )
    return [Finding("warning", text, None if len(rows) > 1 else rows[0]["name"])]


def _left_too(pair: "Pair") -> str:
    """One seed is often one order of the data and one new head as well: then B is not untouched by it."""
    effect = pair.summary["left"]["median_effect"]
    if effect is None or effect < ALIKE:
        return "; the left side is not touched by it"
    return f"; one seed is one order of the data, too, and the left side is alike as well (effect {_number(effect)})"


def _row_cosine(row: "Row") -> tuple[float | None, float | None]:
    return row["initialisation"]["row_cosine"], row["initialisation"]["row_cosine_z"]


def _groups(result: "CompareResult", pairs: int) -> Finding:
    several = [group for group in result.groups if len(group) > 1]
    sizes = ", ".join(str(len(group)) for group in several[:8]) + (", …" if len(several) > 8 else "")
    text = f"SHARED INITIALISATION in {_of(pairs, len(result.pairs), 'pairs')}: A began from the same random numbers"
    if not several:
        return Finding("warning", f"{text} in some modules, in too few to make a group of adapters")
    text += f". {len(several)} group{'s' * (len(several) != 1)} of one initialisation (of {sizes} adapters)"
    both = within_and_between(result.matrices, result.groups)
    inside, across = both["within"], both["between"]
    if inside["right"] is not None and across["right"] is not None:
        text += (
            f". Right φ {_number(inside['right'])} within groups and {_number(across['right'])} between (chance"
            f" {_number(across['right_chance'])}); left φ {_number(inside['left'])} and {_number(across['left'])}"
            f" (chance {_number(across['left_chance'])})"
        )
    return Finding("warning", f"{text}. What the right sides share within a group is the seed, not the task")


def _agreement(result: "CompareResult") -> list[Finding]:
    found: list[Finding] = []
    for pair in result.pairs if len(result.pairs) <= MAX_PAIRS else ():
        names = f"{result.label(pair.a)} and {result.label(pair.b)}: " if len(result.pairs) > 1 else ""
        if same_update(pair):
            text = f"{names}the two are the same update: cosine {pair.summary['cosine']:.6f} over all modules"
            found.append(Finding("warning", text))
        elif pair.modules:
            found += [Finding("note", names + text) for text in (_cosines(pair), *map(_of_side(pair), _SIDES)) if text]
            found += _strongest(pair)
    if len(result.pairs) > MAX_PAIRS:
        found += _many(result)
    return found


_SIDES = (("left", "left (output) subspaces"), ("right", "right (input) subspaces"))


def _cosines(pair: "Pair") -> str:
    summary = pair.summary
    if summary["cosine"] is None:
        return "no cosine: an update is zero in every module"
    sd = median([row["cosine_sd"] for row in pair.modules or ()])
    return (
        f"cosine of the updates {_number(summary['cosine'])} over all modules, {_number(summary['median_cosine'])} in"
        f" the median module (chance 0 ± {_number(sd)});"
        f" {_of(summary['cosine_significant'], summary['modules'])} differ from chance at a false discovery rate of"
        f" {100 * RATE:.0f} %"
    )


def _of_side(pair: "Pair"):
    def say(side: tuple[str, str]) -> str:
        key, name = side
        about = pair.summary[key]
        if about["median_phi"] is None:
            return ""
        text = f"{name}: φ {_number(about['median_phi'])} in the median module (chance"
        text += f" {_number(about['median_phi_chance'])}, z {_number(about['median_z'])});"
        text += f" {_of(about['significant'], about['of'])} above chance at that rate; of their strongest directions"
        text += f" φ(1,1) {_number(about['median_top_phi'])} (chance {_number(about['median_top_phi_chance'])})"
        return text

    return say


def _strongest(pair: "Pair") -> list[Finding]:
    known = [row for row in pair.modules or () if row["left"] and row["left"]["effect"] is not None]
    if len(known) < 2:
        return []
    most = max(known, key=lambda row: row["left"]["effect"])
    text = (
        f"most alike on the left: φ {_number(most['left']['phi_whole'])} (chance {_number(most['left']['phi_chance'])},"
        f" q {_number(most['left']['q']) if most['left']['q'] else 'below 1e−300'}), cosine {_number(most['cosine'])}"
    )
    return [Finding("note", text, most["name"])]


def _many(result: "CompareResult") -> list[Finding]:
    upper = np.triu_indices(len(result.adapters), 1)
    found = []
    for side, name in _SIDES:
        values, chance = (getattr(result.matrices, key)[upper] for key in (side, f"{side}_chance"))
        if not np.isfinite(values).any():
            continue
        top = int(np.nanargmax(getattr(result.matrices, f"{side}_effect")[upper]))
        a, b = (result.label(int(axis[top])) for axis in upper)
        text = (
            f"{name}: φ {_number(float(np.nanmedian(values)))} in the median pair (chance"
            f" {_number(float(np.nanmedian(chance)))}); most alike are {a} and {b}, {_number(float(values[top]))}"
        )
        found.append(Finding("note", text))
    same = [pair for pair in result.pairs if same_update(pair)]
    if same:
        first = f"{result.label(same[0].a)} and {result.label(same[0].b)}"
        found.append(
            Finding("warning", f"{_of(len(same), len(result.pairs), 'pairs')} are one update, such as {first}")
        )
    clusters = result.clusters and result.clusters["clusters"]
    if clusters and len(clusters) > 1:
        sizes = ", ".join(str(len(part)) for part in clusters)
        text = f"{len(clusters)} clusters by left overlap (of {sizes} adapters; mean silhouette"
        found.append(Finding("note", f"{text} {_number(result.clusters['silhouette'])})"))
    return found


def _by_label(result: "CompareResult") -> list[Finding]:
    """Of groups that were named: agreement within and between them, with adapters as the sampling unit."""
    if result.by_label is None:
        return []
    sizes = [len(members) for members in result.by_label["groups"].values()]
    text = f"{len(sizes)} named groups (of {', '.join(map(str, sizes))} adapters): intervals draw adapters anew,"
    few = f", and groups of fewer than {FEW} make them too narrow" if min(sizes) < FEW else ""
    found = [Finding("note", f"{text} layers are no samples{few}")]
    for key, name in (("cosine", "cosine"), ("left_effect", "left effect"), ("right_effect", "right effect")):
        about = result.by_label["measures"][key]
        parts = [f"{_ranged(about[where])} {where} groups" for where in ("within", "between") if about[where]["mean"]]
        if parts:
            p = (
                f"; difference {_ranged(about['difference'])}, p {_number(about['p'])}"
                if about["p"] is not None
                else ""
            )
            found.append(Finding("note", f"{name} of the updates: {' and '.join(parts)}{p}"))
    return found


def _ranged(about: "Row") -> str:
    if about["low"] is None:
        return _number(about["mean"])
    return f"{_number(about['mean'])} ({_number(about['low'])} to {_number(about['high'])})"


def _limits(result: "CompareResult") -> list[Finding]:
    found = []
    if result.unmatched:
        names = preview([item["name"] for item in result.unmatched], 2)
        text = f"{len(result.unmatched)} modules are on one side only, or differ in shape ({names}); all are listed"
        found.append(Finding("warning", text))
    if result.not_compared:
        reasons = list(dict.fromkeys(item["reason"] for item in result.not_compared))
        text = f"not compared: {len(result.not_compared)} ({'; '.join(reasons[:2])}); all are listed"
        found.append(Finding("note", text))
    if result.sampled:
        measured, of = result.sampled
        text = f"{measured} of {of} modules were measured, evenly chosen by depth within each type (--all-modules)"
        found.append(Finding("note", text))
    records = [row for pair in result.pairs for row in pair.modules or ()]
    zero = {row["name"] for row in records if 0.0 in row["frobenius_norm"]}
    if zero:
        text = f"ΔW is zero in {len(zero)} module{'s' * (len(zero) != 1)} of one adapter ({preview(sorted(zero), 2)})"
        found.append(Finding("warning", text))
    if any(PARTIAL in row["notes"] for row in records):
        found.append(Finding("warning", f"DoRA is compared by {PARTIAL}; pass --base"))
    crowded = [row for row in records if any(row[s] and row[s]["phi_chance"] > CROWDED for s in ("left", "right"))]
    if crowded:
        text = f"by chance alone φ is over {CROWDED} in {_of(len(crowded), len(records))}: the ranks are large beside"
        found.append(Finding("warning", f"{text} the widths, so read z and the effect"))
    tied = [row for row in records for s in ("left", "right") if row[s] and any(row[s]["tied_after"])]
    if tied:
        text = "equal singular values: their directions have no order, so φ(i, j) is left out where i or j divides them"
        found.append(Finding("note", text, tied[0]["name"]))
    return found


def _of(count: int, total: int, what: str = "modules") -> str:
    return f"all {total} {what}" if count == total else f"{count} of {total} {what}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2g}".replace("-", "−")
