"""What two adapters are to each other: one update, a rescaled or truncated one, similar, or no more than chance."""

from collections.abc import Sequence
from typing import Any

from lorascope.analyses.compare.relation import IDENTICAL
from lorascope.analyses.compare.result import CompareResult, Pair
from lorascope.analyses.subspaces import NON_FINITE
from lorascope.analyses.toolkit import capital, counted, digits, percent, plural

WEAK, STRONG = 0.1, 0.9  # cosine, and the effect on the output side
ALIKE = 0.5  # of φ(1,1) in the median module: cos² of the strongest directions, 1/d_out by chance
POOLED_Z = 4.0  # of the output side over all modules: one random pair in 30,000 has it
RATE = 0.01  # of comparisons of unrelated adapters that are called similar, over all pairs of one run


def similarity(pair: Pair, pairs: int = 1) -> str:
    """ "same", "similar", "weak", "opposed", or "chance".

    Two updates are similar where the pooled z of their output sides says so, or the modules' tests: by Simes 1986 the
    least of their q is a p-value of "no module is alike", and there are two families of tests (cosines, output sides)
    for each of the `pairs` of one run (Bonferroni).
    """
    summary = pair.summary
    cosine = summary["cosine"]
    if summary.get("relation") or (cosine or 0.0) >= IDENTICAL:
        return "same"
    left = summary["left"]
    some = (left.get("pooled_z") or 0.0) >= POOLED_Z
    effect = left.get("effect" if pair.modules is None else "median_effect") or 0.0
    if pair.modules is not None:
        some = some or 2 * pairs * least_q(pair) <= RATE
    if cosine is None or not some:
        return "chance"
    if cosine <= -WEAK:
        return "opposed"
    return "similar" if max(cosine, effect) >= WEAK else "weak"


def least_q(pair: Pair) -> float:
    """The least q of a pair's modules, of their cosines and of their output sides; 1 where there is none."""
    cosines = (row["cosine_q"] for row in pair.modules or ())
    sides = (row["left"]["q"] for row in pair.modules or () if row["left"])
    return min((q for q in (*cosines, *sides) if q is not None), default=1.0)


def sentence(result: CompareResult) -> str:
    """The verdict over all adapters, one sentence."""
    if len(result.pairs) == 1:
        bad = len({item.name for item in result.skipped if item.reason == NON_FINITE})
        return _of_two(result, result.pairs[0]) + (
            f"; {plural(bad, 'module')} with NaN or Inf not compared" if bad else ""
        )
    kinds = [similarity(pair, len(result.pairs)) for pair in result.pairs]
    words = {
        "same": "hold one update", "similar": "are more similar than chance", "weak": "are weakly similar",
        "opposed": "point in opposite directions", "chance": "are not more similar than chance",
    }  # fmt: skip
    parts = [
        f"{n} {_one(text) if n == 1 else text}" + (f" ({_named(result, kinds, kind)})" if n == 1 else "")
        for kind, text in words.items()
        if (n := kinds.count(kind))
    ]
    if len(parts) == 1:
        return f"All {len(kinds)} pairs {words[kinds[0]]}"
    return f"Of {len(kinds)} pairs, " + ", ".join(parts)


def _named(result: CompareResult, kinds: Sequence[str], kind: str) -> str:
    """The names of the only pair of a kind."""
    pair = result.pairs[kinds.index(kind)]
    return f"{result.label(pair.a)} and {result.label(pair.b)}"


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
        some = max(summary.get("cosine_significant") or 0, summary["left"].get("significant") or 0)
        text = f"not more similar than chance: cosine {digits(cosine)}, no module stands out"
        if some:
            of = counted(some, summary["modules"])
            text = (
                f"not more similar than chance: cosine {digits(cosine)}; {of} significant (FDR 5 %), as in one random"
            )
            text += " pair of ten"
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
