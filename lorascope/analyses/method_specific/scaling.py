"""IA³: W' = diag(l) W or W diag(l). Which outputs or inputs were amplified, inhibited, switched off or turned over?

Liu et al. 2022, arXiv 2205.05638. l starts at 1, so l − 1 is the whole update, and its root mean square is ‖ΔW‖/‖W‖
where all rows (or columns) of W are equally long; the spectrum has the exact figure with `--base`. `spread` is the
share of the entries that carry the change, (Σx²)²/(n·Σx⁴) of x = l − 1: 1/3 for Gaussian entries, less where few
neurons were singled out.

When it misleads: a scale says nothing of the neuron it scales: a large l on a dead output changes nothing, and where
the layer has a bias an output scale acts on it too; keys and queries share their scale's freedom, so that l on keys is
only known up to what the queries absorb.
"""

import numpy as np

from lorascope.analyses.method_specific import draw
from lorascope.analyses.method_specific.base import Part, Row, Subject, particulars
from lorascope.analyses.method_specific.numbers import GAUSSIAN_SPREAD, distribution, finite, median, spread
from lorascope.blocks import Block, Definition, Finding, Marker

OFF = 0.1  # |l| below which a neuron counts as switched off

DEFINITIONS = (
    Definition("Change", "√mean((l − 1)²)", "l starts at 1; Liu et al. 2022, arXiv 2205.05638, §3.3"),
    Definition(
        "Spread of the change",
        "(Σx²)² / (n·Σx⁴), x = l − 1",
        "the share of entries that carry it; Gaussian: 1/3",
    ),
)


@particulars.register("scaling")
def scaling(subject: Subject) -> Part:
    rows = [subject.row(update) | _measured(update.read(), update.scale) for update in subject.updates]
    summary = {
        "median_change": median([row["change"] for row in rows]),
        "median_spread": median([row["spread"] for row in rows]),
        "median_inhibited": median([row["inhibited"] for row in rows]),
        "switched_off": sum(row["switched_off"] for row in rows),
        "turned_over": sum(row["turned_over"] for row in rows),
        "scales": sum(row["scales"] for row in rows),
        "null": {"spread": GAUSSIAN_SPREAD},
    }
    return Part("IA³", tuple(rows), summary, tuple(_findings(rows, summary)), tuple(_blocks(rows)), DEFINITIONS)


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
        "turned_over": int(np.sum(l < 0)),
        "null": {"spread": GAUSSIAN_SPREAD},
    }


def _findings(rows: list[Row], summary: Row) -> list[Finding]:
    most = draw.extreme(rows, "change")
    if most is None or most["change"] == 0:
        return [Finding("warning", "every scale is 1: this adapter changes nothing")]
    text = (
        f"the scales moved by {draw.percent(summary['median_change'])} (rms of l − 1) in the median module; most, by"
        f" {draw.percent(most['change'])}, here"
    )
    found = [Finding("note", text, most["name"])]
    low, high = draw.extreme(rows, "l.min", min), draw.extreme(rows, "l.max")
    if low is not None and high is not None:
        least, greatest = f"{low['l']['min']:.3g} ({low['name']})", f"{high['l']['max']:.3g} ({high['name']})"
        found.append(Finding("note", f"l runs from {least} to {greatest}"))
    text = f"{draw.percent(summary['median_inhibited'])} of the scales are below 1 in the median module"
    if summary["switched_off"] or summary["turned_over"]:
        text += (
            f"; of all {summary['scales']:,}, {summary['switched_off']:,} are switched off (|l| < {OFF:g}) and"
            f" {summary['turned_over']:,} turned over (l < 0)"
        )
    found.append(Finding("note", text))
    if summary["median_spread"] is not None:
        text = (
            f"{draw.percent(summary['median_spread'])} of the entries carry the change in the median module;"
            f" Gaussian entries give {draw.percent(GAUSSIAN_SPREAD)}"
        )
        found.append(Finding("note", text))
    return found


_QUANTITIES = (
    ("change", "change", "percent", "√mean((l − 1)²)"),
    ("l.mean", "mean l", "float", "of the module's scales"),
    ("l.min", "min l", "float", "smallest scale"),
    ("l.max", "max l", "float", "largest scale"),
    ("inhibited", "|l| < 1", "percent", "share of the scales that inhibit"),
    ("switched_off", "off", "float", f"scales with |l| < {OFF:g}"),
    ("turned_over", "l < 0", "float", "scales that turn the sign over"),
    ("spread", "spread", "percent", "share of the entries that carry the change; 33.3 % for Gaussian entries"),
)


def _blocks(rows: list[Row]) -> list[Block]:
    table = (("side", "scales", "text", "what is scaled"), ("scales", "n", "int", "how many"), *_QUANTITIES)
    return [
        draw.type_table(rows, _QUANTITIES, "Medians over the modules of a type. Every scale starts at 1."),
        *draw.cumulative("Distribution of the scales l", rows, "l", "l", (Marker("x", 1.0, "initial"),)),
        *draw.depth_map("Scales, depth × module type", rows, _QUANTITIES),
        draw.module_table("IA³, all modules", rows, table),
    ]
