"""LoRA-drop: which layers were worth an adapter of their own?

Zhou et al. 2024, arXiv 2402.07721: the importance of a layer is g_i = Σ_x ‖ΔW_i x‖² on a sample, I_i = g_i/Σg; the
fewest layers whose importances add up to the threshold T keep a LoRA of their own, and the others share one. The scores
are read from the setting `lora_drop`: {"scores": {module: I}, "kept": [module, ...], "threshold": T, "rest": "share"}.

The random baseline is equal importance, 1/n each: then ⌈T·n⌉ layers would be kept. The Gini coefficient says how far
from equal.

When it misleads: an output norm favours wide layers and those with large inputs, whatever their use; scores are of the
short first training on the sample and not of the adapter in this file.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lorascope.analyses import rules
from lorascope.analyses.base import Metric
from lorascope.analyses.method_specific.engine import KindMetrics, Section, Subject, kind_metrics, maps
from lorascope.analyses.method_specific.vectors import gini
from lorascope.analyses.toolkit import Row, module_table, percent, type_table
from lorascope.blocks import Block, Definition, Finding, Lines, Marker, Series

METRICS = (
    Metric(
        "score", "score", "percent", "g_i/Σg", "I_i = g_i/Σg, g_i = Σ_x ‖ΔW_i x‖²",
        "Zhou et al. 2024, arXiv 2402.07721", term="Score",
        meaning="How much of what the updates add to the outputs comes from this module: one with a low score hardly"
        " needs a LoRA of its own.",
    ),
    Metric("kept", "kept", "percent", "share of the modules that keep a LoRA of their own"),
)  # fmt: skip
MORE_DEFINITIONS = (
    Definition(
        "Equal importance (random baseline)",
        "I_i = 1/n, so that ⌈T·n⌉ modules are kept",
        "computed here",
        "What every score would be if all modules mattered the same.",
    ),
)


def measure(subject: Subject) -> Section:
    record = subject.setting("lora_drop")
    wrong = _wrong(record)
    if wrong:
        return Section((), {}, {"wrong": wrong})
    scores, kept, threshold = record.get("scores"), set(record["kept"]), record.get("threshold")
    total = sum(scores.values()) if scores else 0.0
    shares = {name: score / total for name, score in scores.items()} if total else {}
    names = sorted(scores, key=lambda name: -scores[name]) if scores else [update.name for update in subject.updates]
    rows = [{**subject.row(name), "score": shares.get(name), "kept": name in kept} for name in names]
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
    return Section(tuple(rows), summary)


def _wrong(record: Any) -> str:
    """What is wrong with the setting; "" where nothing is."""
    if not isinstance(record, dict) or not isinstance(record.get("kept"), list):
        return "it has no list of the modules kept"
    scores, threshold = record.get("scores"), record.get("threshold")
    fine = scores is None or (isinstance(scores, dict) and scores and all(map(_is_share, scores.values())))
    if not fine:
        return "its scores are not numbers from 0 by module"
    return "" if threshold is None or _is_share(threshold) else "its bound T is not a number from 0"


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def findings(section: Section) -> tuple[Finding, ...]:
    rows, summary = section.rows, section.summary
    if wrong := section.extra.get("wrong"):
        text = f"The setting lora_drop cannot be read: {wrong}"
        return (rules.BAD_SETTING.finding(text, action="Correct lora_drop in adapter_config.json"),)
    rest = "have none" if summary["rest"] == "drop" else "share one for each shape"
    text = f"{summary['kept']} of {summary['modules']} modules keep a LoRA of their own; the others {rest}"
    if not summary["scored"]:
        return (Finding("note", f"{text}. These layers were given by name, not chosen by score"),)
    if summary["kept_score"] is None:
        text += ". Every score is zero: the modules could not be told apart"
        action = "Score again after some steps of training: at the start every ΔW is zero"
        return (rules.NO_SCORES.finding(text, action=action),)
    text += f". The kept hold {percent(summary['kept_score'])} of the importance"
    if summary["null"]["kept"] is not None:
        text += f"; equal importances would keep {summary['null']['kept']} (bound T = {summary['threshold']:g})"
    ratio = rows[0]["score"] * summary["modules"]
    leading = f"The most important, {percent(rows[0]['score'])} of the whole, {ratio:.2g} times its equal share"
    return (Finding("note", text), Finding("note", leading, rows[0]["name"]))


def blocks(section: Section) -> list[Block]:
    rows, summary = section.rows, section.summary
    if not summary:
        return []
    score, kept = METRICS[0], replace(METRICS[1], unit="text", help="keeps a LoRA of its own")
    if summary["kept_score"] is None:
        return [module_table("LoRA-drop, all modules", rows, [kept])]
    return [
        type_table(rows, [score], "Median scores of a type."),
        _cumulative(rows, summary),
        *maps("Scores, depth × module type", rows, METRICS, "Shares of the whole importance."),
        module_table("LoRA-drop, all modules by score", rows, [score, kept]),
    ]


def _cumulative(rows: Sequence[Row], summary: Row) -> Lines:
    """The importance that the first k modules hold, and the straight line of equal importances."""
    held = np.cumsum([row["score"] or 0.0 for row in rows])
    n = tuple(range(1, len(rows) + 1))
    equal = tuple((np.arange(1, len(rows) + 1) / len(rows)).tolist())
    markers = [Marker("x", summary["kept"], f"{summary['kept']} kept")]
    if summary["threshold"] is not None:
        markers.append(Marker("y", summary["threshold"], f"T = {summary['threshold']:g}"))
    series = (
        Series("by score", n, tuple(held.tolist())),
        Series("equal importance", n, equal, weight="reference"),
    )
    return Lines(
        "Importance held by the first k modules", series, "modules, most important first", "share of the importance",
        markers=tuple(markers), where="page",
    )  # fmt: skip


kind_metrics.register("lora_drop")(KindMetrics("LoRA-drop", measure, findings, blocks, METRICS, MORE_DEFINITIONS))
