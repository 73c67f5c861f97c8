"""LoRA-drop: which layers were worth an adapter of their own?

Zhou et al. 2024, arXiv 2402.07721: the importance of a layer is g_i = Σ_x ‖ΔW_i x‖² on a sample, I_i = g_i/Σg; the
fewest layers whose importances add up to the threshold T keep a LoRA of their own, and the others share one. The scores
are read from the setting `lora_drop`: {"scores": {module: I}, "kept": [module, ...], "threshold": T}.

The null is equal importance, 1/n each: then ⌈T·n⌉ layers would be kept. The Gini coefficient says how far from equal.

When it misleads: an output norm favours wide layers and those with large inputs, whatever their use; scores are of the
short first training on the sample and not of the adapter in this file.
"""

import math
from typing import Any

import numpy as np

from lorascope.analyses.particulars import draw
from lorascope.analyses.particulars.base import Part, Row, Subject, particulars
from lorascope.analyses.particulars.numbers import gini
from lorascope.blocks import Block, Definition, Finding, Lines, Marker, Series
from lorascope.errors import InputError

DEFINITIONS = (
    Definition("Score", "I_i = g_i/Σg, g_i = Σ_x ‖ΔW_i x‖²", "Zhou et al. 2024, arXiv 2402.07721"),
    Definition("Equal importance (null)", "I_i = 1/n, so that ⌈T·n⌉ modules are kept", "computed here"),
)


@particulars.register("lora_drop")
def lora_drop(subject: Subject) -> Part:
    scores, kept, threshold = _recorded(subject.setting("lora_drop"))
    total = sum(scores.values())
    rows = [
        {**subject.named(name), "score": score / total if total else None, "kept": name in kept}
        for name, score in sorted(scores.items(), key=lambda item: -item[1])
    ]
    n = len(rows)
    summary = {
        "modules": n,
        "kept": sum(row["kept"] for row in rows),
        "threshold": threshold,
        "kept_score": sum(row["score"] or 0.0 for row in rows if row["kept"]),
        "gini": gini(np.array(list(scores.values()))),
        "null": {"kept": math.ceil(threshold * n - 1e-9) if threshold is not None else None, "gini": 0.0},
    }
    return Part("LoRA-drop", tuple(rows), summary, _findings(rows, summary), tuple(_blocks(rows, summary)), DEFINITIONS)


def _recorded(setting: Any) -> tuple[dict[str, float], set[str], float | None]:
    """Scores, the modules kept and the threshold. InputError where the setting does not hold them."""
    record = setting if isinstance(setting, dict) else {}
    scores, kept, threshold = record.get("scores"), record.get("kept"), record.get("threshold")
    numbers = isinstance(scores, dict) and all(_is_share(score) for score in scores.values())
    if not (numbers and scores and isinstance(kept, list) and (threshold is None or _is_share(threshold))):
        raise InputError(
            "the setting lora_drop does not hold the scores",
            found=", ".join(record) or repr(setting),
            expected='{"scores": {module: number from 0}, "kept": [module, ...], "threshold": number}',
        )
    assert isinstance(scores, dict)
    return {str(name): float(score) for name, score in scores.items()}, set(map(str, kept)), threshold


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _findings(rows: list[Row], summary: Row) -> tuple[Finding, ...]:
    if not any(row["score"] for row in rows):
        return (Finding("warning", "every score is zero: the layers could not be told apart"),)
    text = (
        f"{summary['kept']} of {summary['modules']} modules keep a LoRA of their own, with"
        f" {draw.percent(summary['kept_score'])} of the importance; the others share one"
    )
    if summary["null"]["kept"] is not None:
        text += f". Equal importances would keep {summary['null']['kept']} (threshold {summary['threshold']:g})"
    ratio = rows[0]["score"] * summary["modules"]
    leading = f"the most important, {draw.percent(rows[0]['score'])} of the whole, {ratio:.2g} times its equal share"
    return (Finding("note", text), Finding("note", leading, rows[0]["name"]))


_QUANTITIES = (
    ("score", "score", "percent", "g_i/Σg"),
    ("kept", "kept", "percent", "share of the modules that keep a LoRA of their own"),
)


def _blocks(rows: list[Row], summary: Row) -> list[Block]:
    table = (("score", "score", "percent", "g_i/Σg"), ("kept", "kept", "text", "keeps a LoRA of its own"))
    return [
        draw.type_table(rows, _QUANTITIES[:1], "Median scores of a type."),
        _cumulative(rows, summary),
        *draw.depth_map("Scores, depth × module type", rows, _QUANTITIES, "Shares of the whole importance."),
        draw.module_table("LoRA-drop, all modules by score", rows, table),
    ]


def _cumulative(rows: list[Row], summary: Row) -> Lines:
    """The importance that the first k modules hold, beside the straight line of equal importances."""
    held = np.cumsum([row["score"] or 0.0 for row in rows])
    n = tuple(range(1, len(rows) + 1))
    equal = tuple((np.arange(1, len(rows) + 1) / len(rows)).tolist())
    markers = [Marker("x", summary["kept"], f"{summary['kept']} kept")]
    if summary["threshold"] is not None:
        markers.append(Marker("y", summary["threshold"], f"threshold {summary['threshold']:g}"))
    series = (
        Series("by score", n, tuple(held.tolist())),
        Series("equal importance", n, equal, weight="reference"),
    )
    return Lines(
        "Importance held by the first k modules", series, "modules, most important first", "share of the importance",
        markers=tuple(markers), where="page",
    )  # fmt: skip
