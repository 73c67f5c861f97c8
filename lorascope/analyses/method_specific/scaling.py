"""IA³: W' = diag(l) W or W diag(l). Which outputs or inputs were amplified, inhibited, switched off or made negative?

Liu et al. 2022, arXiv 2205.05638. l starts at 1, so l − 1 is the whole update, and its root mean square is ‖ΔW‖/‖W‖
where all rows (or columns) of W are equally long; the spectrum has the exact figure with `--base`. `spread` is the
share of the entries that carry the change, (Σx²)²/(n·Σx⁴) of x = l − 1: 1/3 for Gaussian entries, less where few
neurons were singled out.

When it misleads: a scale says nothing of the neuron it scales: a large l on a dead output changes nothing, and where
the layer has a bias an output scale acts on it too; keys and queries share their scale's freedom, so that l on keys is
only known up to what the queries absorb.
"""

import numpy as np

from lorascope.analyses import rules
from lorascope.analyses.base import Metric
from lorascope.analyses.method_specific.engine import TRAINED, KindMetrics, Section, Subject, kind_metrics, maps
from lorascope.analyses.method_specific.vectors import GAUSSIAN_SPREAD, cumulative, distribution, spread
from lorascope.analyses.toolkit import Row, extreme, finite, median, module_table, percent, type_table
from lorascope.blocks import Block, Finding, Marker

OFF = 0.1  # |l| below which a neuron counts as switched off

METRICS = (
    Metric(
        "change", "change", "percent", "√mean((l − 1)²)", "√mean((l − 1)²)",
        "l starts at 1; Liu et al. 2022, arXiv 2205.05638, §3.3", term="Change",
        meaning="How far the scales moved from 1: 0 if nothing was learned.",
    ),
    Metric("l.mean", "mean l", "float", "of the module's scales"),
    Metric("l.min", "min l", "float", "smallest scale"),
    Metric("l.max", "max l", "float", "largest scale"),
    Metric("inhibited", "|l| < 1", "percent", "share of the scales that inhibit"),
    Metric("switched_off", "off", "float", f"scales with |l| < {OFF:g}"),
    Metric("negative", "l < 0", "float", "negative scales"),
    Metric(
        "spread", "spread", "percent", "share of the entries that carry the change; 33.3 % for Gaussian entries",
        "(Σx²)² / (n·Σx⁴), x = l − 1", "the share of entries that carry it; Gaussian: 1/3", "null.spread",
        "Spread of the change",
        "Whether many entries changed or a few: near 100 % all changed alike, far below 33 % a few stand out.",
    ),
)  # fmt: skip


def measure(subject: Subject) -> Section:
    rows = [subject.row(update.name) | _measured(update.read(), update.scale) for update in subject.updates]
    summary = {
        "median_change": median(row["change"] for row in rows),
        "median_spread": median(row["spread"] for row in rows),
        "median_inhibited": median(row["inhibited"] for row in rows),
        "switched_off": sum(row["switched_off"] for row in rows),
        "negative": sum(row["negative"] for row in rows),
        "scales": sum(row["scales"] for row in rows),
        "null": {"spread": GAUSSIAN_SPREAD},
    }
    return Section(tuple(rows), summary)


def _measured(roles: dict[str, np.ndarray], scale: float) -> Row:
    side, vector = next(iter(roles.items()))
    l = 1 + scale * (vector - 1)  # what acts: the kind's formula has a scale, which is 1 in every file seen
    change = l - 1
    return {
        "side": "outputs" if side == "out_scale" else "inputs",
        "scales": len(l),
        "l": distribution(l),
        "change": finite(float(np.sqrt(np.mean(change**2)))),
        "spread": spread(change),
        "inhibited": float(np.mean(np.abs(l) < 1)),
        "switched_off": int(np.sum(np.abs(l) < OFF)),
        "negative": int(np.sum(l < 0)),
        "null": {"spread": GAUSSIAN_SPREAD},
    }


def findings(section: Section) -> list[Finding]:
    rows, summary = section.rows, section.summary
    most = extreme(rows, "change")
    if most is None or most["change"] == 0:
        return [rules.NO_CHANGE.finding("Every scale is 1: this adapter changes nothing", action=TRAINED)]
    text = (
        f"The scales changed by {percent(summary['median_change'])} (rms of l − 1) in the median module and by"
        f" {percent(most['change'])} here (largest)"
    )
    made = [Finding("note", text, most["name"])]
    low, high = extreme(rows, "l.min", min), extreme(rows, "l.max")
    if low is not None and high is not None:
        least, greatest = f"{low['l']['min']:.3g} ({low['name']})", f"{high['l']['max']:.3g} ({high['name']})"
        made.append(Finding("note", f"l runs from {least} to {greatest}"))
    text = f"{percent(summary['median_inhibited'])} of the scales are below 1 in the median module"
    if summary["switched_off"] or summary["negative"]:
        text += (
            f"; of all {summary['scales']:,}, {summary['switched_off']:,} are switched off (|l| < {OFF:g}) and"
            f" {summary['negative']:,} negative (l < 0)"
        )
    made.append(Finding("note", text))
    if summary["median_spread"] is not None:
        text = (
            f"{percent(summary['median_spread'])} of the entries carry the change in the median module;"
            f" Gaussian entries give {percent(GAUSSIAN_SPREAD)}"
        )
        made.append(Finding("note", text))
    return made


def blocks(section: Section) -> list[Block]:
    rows = section.rows
    columns = (Metric("side", "scales", "text", "what is scaled"), Metric("scales", "n", "int", "how many"), *METRICS)
    return [
        type_table(rows, METRICS, "Medians over the modules of a type. Every scale starts at 1."),
        *cumulative("Distribution of the scales l", rows, "l", "l", (Marker("x", 1.0, "initial"),)),
        *maps("Scales, depth × module type", rows, METRICS),
        module_table("IA³, all modules", rows, columns),
    ]


kind_metrics.register("scaling")(KindMetrics("IA³", measure, findings, blocks, METRICS))
