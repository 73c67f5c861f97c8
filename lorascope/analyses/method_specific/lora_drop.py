"""LoRA-drop: which layers were worth an adapter of their own?

Zhou et al. 2024, arXiv 2402.07721: the importance of a layer is g_i = Σ_x ‖ΔW_i x‖² on a sample, I_i = g_i/Σg; the
fewest layers whose importances add up to the threshold T keep a LoRA of their own, and the others share one. The scores
are read from the setting `lora_drop`: {"scores": {module: I}, "kept": [module, ...], "threshold": T, "rest": "share"}.

The null is equal importance, 1/n each: then ⌈T·n⌉ layers would be kept. The Gini coefficient says how far from equal.

When it misleads: an output norm favours wide layers and those with large inputs, whatever their use; scores are of the
short first training on the sample and not of the adapter in this file.
"""

import math
from typing import Any

import numpy as np

from lorascope.analyses.method_specific import draw
from lorascope.analyses.method_specific.base import Part, Row, Subject, particulars
from lorascope.analyses.method_specific.numbers import gini
from lorascope.blocks import Block, Definition, Finding, Lines, Marker, Series

DEFINITIONS = (
    Definition("Score", "I_i = g_i/Σg, g_i = Σ_x ‖ΔW_i x‖²", "Zhou et al. 2024, arXiv 2402.07721"),
    Definition("Equal importance (null)", "I_i = 1/n, so that ⌈T·n⌉ modules are kept", "computed here"),
)


@particulars.register("lora_drop")
def lora_drop(subject: Subject) -> Part:
    record = subject.setting("lora_drop")
    wrong = _wrong(record)
    if wrong:
        finding = Finding("warning", f"the setting lora_drop cannot be read: {wrong}")
        return Part("LoRA-drop", (), {}, (finding,))
    scores, kept, threshold = record.get("scores"), set(record["kept"]), record.get("threshold")
    total = sum(scores.values()) if scores else 0.0
    shares = {name: score / total for name, score in scores.items()} if total else {}
    names = sorted(scores, key=lambda name: -scores[name]) if scores else [update.name for update in subject.updates]
    rows = [{**subject.named(name), "score": shares.get(name), "kept": name in kept} for name in names]
    summary = {
        "modules": len(rows),
        "kept": sum(row["kept"] for row in rows),
        "scored": scores is not None,
        "rest": record.get("rest", "share"),
        "threshold": threshold,
        "kept_score": sum(row["score"] for row in rows if row["kept"]) if shares else None,
        "gini": gini(np.array(list(shares.values()))) if shares else None,
        "null": {"kept": math.ceil(threshold * len(rows) - 1e-9) if threshold is not None else None, "gini": 0.0},
    }
    return Part("LoRA-drop", tuple(rows), summary, _findings(rows, summary), tuple(_blocks(rows, summary)), DEFINITIONS)


def _wrong(record: Any) -> str:
    """What is wrong with the setting; "" where nothing is."""
    if not isinstance(record, dict) or not isinstance(record.get("kept"), list):
        return "it has no list of the modules kept"
    scores, threshold = record.get("scores"), record.get("threshold")
    fine = scores is None or (isinstance(scores, dict) and scores and all(map(_is_share, scores.values())))
    if not fine:
        return "its scores are not numbers from 0 by module"
    return "" if threshold is None or _is_share(threshold) else "its threshold is not a number from 0"


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _findings(rows: list[Row], summary: Row) -> tuple[Finding, ...]:
    rest = "have none" if summary["rest"] == "drop" else "share one for each shape"
    text = f"{summary['kept']} of {summary['modules']} modules keep a LoRA of their own; the others {rest}"
    if not summary["scored"]:
        return (Finding("note", f"{text}. They were named, not scored"),)
    if summary["kept_score"] is None:
        return (Finding("warning", f"{text}. Every score is zero: the modules could not be told apart"),)
    text += f". The kept hold {draw.percent(summary['kept_score'])} of the importance"
    if summary["null"]["kept"] is not None:
        text += f"; equal importances would keep {summary['null']['kept']} (threshold {summary['threshold']:g})"
    ratio = rows[0]["score"] * summary["modules"]
    leading = f"the most important, {draw.percent(rows[0]['score'])} of the whole, {ratio:.2g} times its equal share"
    return (Finding("note", text), Finding("note", leading, rows[0]["name"]))


_QUANTITIES = (
    ("score", "score", "percent", "g_i/Σg"),
    ("kept", "kept", "percent", "share of the modules that keep a LoRA of their own"),
)


def _blocks(rows: list[Row], summary: Row) -> list[Block]:
    table = (("score", "score", "percent", "g_i/Σg"), ("kept", "kept", "text", "keeps a LoRA of its own"))
    if summary["kept_score"] is None:
        return [draw.module_table("LoRA-drop, all modules", rows, table[1:])]
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
