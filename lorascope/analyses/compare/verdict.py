"""What two adapters are to each other: one update, a rescaled or truncated one, similar, or no more than chance."""

from typing import Any

from lorascope.analyses.compare.relation import IDENTICAL
from lorascope.analyses.compare.result import CompareResult, Pair
from lorascope.analyses.toolkit import capital, counted, digits, percent

WEAK, STRONG = 0.1, 0.9  # cosine, and the effect on the output side
ALIKE = 0.5  # of φ(1,1) in the median module: cos² of the strongest directions, 1/d_out by chance
POOLED_Z = 4.0  # of the output side over all modules, where single modules were not recorded


def similarity(pair: Pair) -> str:
    """ "same", "similar", "weak", "opposed", or "chance": two updates as the modules' tests have them, at their false
    discovery rate; by the pooled z of the output side where single modules were not recorded."""
    summary = pair.summary
    cosine = summary["cosine"]
    if summary.get("relation") or (cosine or 0.0) >= IDENTICAL:
        return "same"
    left = summary["left"]
    if pair.modules is None:
        some, effect = (left.get("pooled_z") or 0.0) >= POOLED_Z, left.get("effect") or 0.0
    else:
        some = bool(summary["cosine_significant"] or left["significant"])
        effect = left["median_effect"] or 0.0
    if cosine is None or not some:
        return "chance"
    if cosine <= -WEAK:
        return "opposed"
    return "similar" if max(cosine, effect) >= WEAK else "weak"


def sentence(result: CompareResult) -> str:
    """The verdict over all adapters, one sentence."""
    if len(result.pairs) == 1:
        return _of_two(result, result.pairs[0])
    kinds = [similarity(pair) for pair in result.pairs]
    words = {
        "same": "hold one update", "similar": "are more similar than chance", "weak": "are weakly similar",
        "opposed": "point in opposite directions", "chance": "are not more similar than chance",
    }  # fmt: skip
    parts = [f"{n} {_one(text) if n == 1 else text}" for kind, text in words.items() if (n := kinds.count(kind))]
    if len(parts) == 1:
        return f"All {len(kinds)} pairs {words[kinds[0]]}"
    return f"Of {len(kinds)} pairs, " + ", ".join(parts)


def next_step(result: CompareResult) -> str:
    """Two adapters that are alike to some degree have no scale: what would give them one."""
    if len(result.pairs) > 1 or similarity(result.pairs[0]) not in ("similar", "weak", "opposed"):
        return ""
    return "For a scale, add adapters of other tasks or seeds: lorascope compare A B C"


def _one(text: str) -> str:
    """The verb of a single pair."""
    verb, _, rest = text.partition(" ")
    return f"{({'are': 'is', 'hold': 'holds', 'point': 'points'})[verb]} {rest}"


def _of_two(result: CompareResult, pair: Pair) -> str:
    a, b = result.label(pair.a), result.label(pair.b)
    summary = pair.summary
    if related := summary.get("relation"):
        return _related(a, b, related)
    kind, cosine = similarity(pair), summary["cosine"]
    if cosine is None:
        return "Not comparable: an update is zero in every module"
    start = "From one initialisation of A (same seed), and otherwise " if _shared(summary) else ""
    if kind == "same":
        return f"{a} and {b} hold the same update"
    if kind == "chance":
        text = f"not more similar than chance: cosine {digits(cosine)}, no module stands out"
        return f"{start}{text}" if start else capital(text)
    words = {"similar": "more similar than chance", "weak": "weakly similar", "opposed": "opposed to each other"}[kind]
    words = "nearly the same update" if cosine >= STRONG else words
    left = summary["left"]
    text = f"{words}: cosine {digits(cosine)}"
    if left.get("of"):
        text += f", output subspaces above chance in {counted(left['significant'], left['of'])}"
    if kind != "opposed" and (left.get("median_top_phi") or 0.0) >= ALIKE:
        text += f"; their strongest output directions agree (φ(1,1) {digits(left['median_top_phi'])} of 1)"
    return f"{start}{text}" if start else capital(text)


def _related(a: str, b: str, related: dict[str, Any]) -> str:
    if related["kind"] == "same":
        return f"{a} and {b} hold the same update"
    if related["kind"] == "rescaled":
        return (
            f"{b} is the same update as {a}, {digits(related['norm_ratio'], 3)} times as large (α or the scale differs)"
        )
    small, large, ranks = (b, a, related["rank"]) if related["norm_ratio"] < 1 else (a, b, related["rank"][::-1])
    kept = related["kept"]
    text = f"{small} is the same update as {large}, truncated to {percent(kept, 3)} of its energy"
    return f"{text} (ranks up to {ranks[1]} of {ranks[0]}, error {percent((1 - kept) ** 0.5, 3)} of ‖ΔW‖)"


def _shared(summary: dict[str, Any]) -> bool:
    about = summary["shared_initialisation"]
    return about["modules"] > 0 if "modules" in about else (about["share_of_modules"] or 0.0) > 0.5
