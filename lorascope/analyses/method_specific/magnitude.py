"""DoRA: W' = m ⊙ V/‖V‖ with V = W + s·B·A. Did magnitude and direction change together, or against each other?

Liu et al. 2024, arXiv 2402.09353, §3.2 and Figure 2: for a module with N rows (the paper's columns),

    ΔM = mean_n |m_n − ‖w_n‖|,    ΔD = mean_n (1 − cos(v_n, w_n)),

and the sign of the correlation of ΔM with ΔD over modules. The paper finds +0.83 for LoRA, where a larger turn comes
with a larger change of length, −0.62 for full fine-tuning and −0.31 for DoRA, on query matrices of VL-BART over six
layers and four checkpoints. Rows differ in length between modules, so here ΔM/mean ‖w_n‖ is drawn as well.

Two baselines: the share of random re-pairings of ΔM and ΔD with a correlation as strong, which depends on how few
modules there are; and `undecomposed`, the ΔM that the same s·B·A would cause if the lengths were left to follow, as in
LoRA.

When it misleads: a correlation over a dozen modules is a weak thing, and the paper's is over checkpoints too; types
with different ΔD make a pooled correlation of their own (so each type is told apart too); without `--base` neither
change can be told; rows of W that are zero have no direction and are left out.
"""

from collections.abc import Sequence

import numpy as np

from lorascope.analyses.base import Metric
from lorascope.analyses.method_specific.engine import KindMetrics, Section, Subject, kind_metrics, maps
from lorascope.analyses.method_specific.vectors import correlation, cumulative, distribution
from lorascope.analyses.toolkit import Row, extreme, group, measured, median, module_table, percent, type_table
from lorascope.blocks import Block, Finding, Lines, Series
from lorascope.updates.base import Update

PAPER = {"full fine-tuning": -0.62, "DoRA": -0.31, "LoRA": 0.83}

METRICS = (
    Metric(
        "magnitude_change", "ΔM", "float", "mean_n |m_n − ‖w_n‖|", "mean_n |m_n − ‖w_n‖|",
        "Liu et al. 2024, arXiv 2402.09353, eq. 3; n over outputs", "undecomposed",
        meaning="How much the lengths of W's rows changed: 0 if training left them as they were.",
    ),
    Metric("relative_magnitude_change", "ΔM/‖w‖", "percent", "mean_n |m_n − ‖w_n‖| / ‖w_n‖", term="ΔM"),
    Metric(
        "direction_change", "ΔD", "float", "mean_n (1 − cos(v_n, w_n))", "mean_n (1 − cos(v_n, w_n)), V = W + s·B·A",
        "Liu et al. 2024, arXiv 2402.09353, eq. 4",
        meaning="How far W's rows turned: 0 if not at all, 1 if they are at right angles to where they were.",
    ),
    Metric(
        "undecomposed", "ΔM as LoRA", "float", "mean_n |‖v_n‖ − ‖w_n‖|: the lengths left to follow",
        "mean_n |‖v_n‖ − ‖w_n‖|", "what LoRA with the same A and B would do to the lengths", term="ΔM undecomposed",
        meaning="How much the same A and B would change the lengths as a plain LoRA, without a magnitude of its own.",
    ),
    Metric("lengthened", "longer", "percent", "share of the rows with m_n > ‖w_n‖"),
    Metric("m.median", "median m", "float", "of the magnitudes"),
)  # fmt: skip


def measure(subject: Subject) -> Section:
    rows = [subject.row(update.name) | _measured(update, subject.weight(update)) for update in subject.updates]
    known = _with_base(rows)
    summary = {
        "modules_with_base": len(known),
        "median_relative_magnitude_change": median(row["relative_magnitude_change"] for row in rows),
        "median_direction_change": median(row["direction_change"] for row in rows),
        "median_lengthened": median(row["lengthened"] for row in rows),
        "correlation": _correlations(known),
        "paper": PAPER,
    }
    return Section(tuple(rows), summary)


def _with_base(rows: Sequence[Row]) -> list[Row]:
    """The modules whose W is known."""
    return [row for row in rows if row["magnitude_change"] is not None]


def _measured(update: Update, weight: np.ndarray | None) -> Row:
    roles = update.read()
    m = roles["m"]
    row: Row = {
        "m": distribution(m),
        "magnitude_change": None,
        "relative_magnitude_change": None,
        "direction_change": None,
        "lengthened": None,
        "undecomposed": None,
    }
    if weight is None or len(m) != weight.shape[0] or not all(np.all(np.isfinite(a)) for a in roles.values()):
        return row
    rotated = weight + update.scale * (roles["B"] @ roles["A"]) if "A" in roles else weight
    before, after = np.linalg.norm(weight, axis=1), np.linalg.norm(rotated, axis=1)
    whole = (before > 0) & (after > 0)
    if not np.any(whole):
        return row
    before, after, m = before[whole], after[whole], m[whole]
    cosines = np.sum(weight[whole] * rotated[whole], axis=1) / (before * after)
    change = np.abs(m - before)
    return row | {
        "magnitude_change": float(change.mean()),
        "relative_magnitude_change": float(np.mean(change / before)),
        "direction_change": float(np.mean(np.maximum(1 - cosines, 0.0))),
        "lengthened": float(np.mean(m > before)),
        "undecomposed": float(np.mean(np.abs(after - before))),
    }


def _correlations(known: list[Row]) -> Row:
    """Of ΔM with ΔD: over all modules and within each type; and over all modules for the undecomposed ΔM."""

    def over(rows: list[Row], key: str) -> Row:
        x = np.array([row["direction_change"] for row in rows])
        y = np.array([row[key] for row in rows])
        r_and_p = correlation(x, y)
        return {"modules": len(rows), "r": r_and_p and r_and_p[0], "p": r_and_p and r_and_p[1]}

    types = group(known)
    return {
        "all": over(known, "magnitude_change"),
        "all_relative": over(known, "relative_magnitude_change"),
        "all_undecomposed": over(known, "undecomposed"),
        "by_type": {name: over(rows, "magnitude_change") for name, rows in types.items()},
    }


def findings(section: Section) -> list[Finding]:
    known, summary = _with_base(section.rows), section.summary
    most = extreme(known, "relative_magnitude_change")
    if most is None:
        text = "Magnitude and direction changes need the base weights: pass --base MODEL"
        return [Finding("note", text)]
    text = (
        f"Magnitudes changed by {percent(summary['median_relative_magnitude_change'])} of the row's length in the"
        f" median module and by {percent(most['relative_magnitude_change'])} here (largest)"
    )
    made = [Finding("note", text, most["name"])]
    rotated = extreme(known, "direction_change")
    if rotated is not None and rotated["direction_change"] > 0:
        text = (
            f"Directions rotated by 1 − cos = {summary['median_direction_change']:.2g} in the median module and by"
            f" {rotated['direction_change']:.2g} here (largest)"
        )
        made.append(Finding("note", text, rotated["name"]))
    else:
        made.append(Finding("note", "No direction changed: magnitudes alone were trained"))
    return made + _in_words(summary["correlation"])


def _in_words(correlations: Row) -> list[Finding]:
    texts = []
    whole = correlations["all"]
    if whole["r"] is not None:
        sign = "together" if whole["r"] > 0 else "against each other"
        text = (
            f"Magnitude and direction move {sign}: r(ΔM, ΔD) = {_signed(whole['r'])} over {whole['modules']} modules"
            f" (as strong by chance: p = {whole['p']:.2g})"
        )
        if correlations["all_undecomposed"]["r"] is not None:
            text += f"; the same A and B as a LoRA would have {_signed(correlations['all_undecomposed']['r'])}"
        texts.append(text)
    types = {name: c for name, c in correlations["by_type"].items() if c["r"] is not None}
    if len(types) > 1:
        each = ", ".join(f"{name} {_signed(c['r'])} (p = {c['p']:.2g})" for name, c in list(types.items())[:8])
        texts.append(f"Within a type r(ΔM, ΔD) is {each}")
    if texts:
        paper = ", ".join(f"{_signed(r)} for {name}" for name, r in PAPER.items())
        texts[-1] += f". The paper has {paper}"
    return [Finding("note", text) for text in texts]


def _signed(r: float) -> str:
    return f"{r:+.2f}".replace("-", "−")


def blocks(section: Section) -> list[Block]:
    rows = section.rows
    known = measured(METRICS, rows)
    return [
        type_table(rows, known),
        *_scatter(rows),
        *maps("Magnitude and direction, depth × module type", rows, known),
        *cumulative("Distribution of the magnitudes m", rows, "m", "m"),
        module_table("DoRA, all modules", rows, known),
    ]


def _scatter(rows: Sequence[Row]) -> list[Block]:
    """ΔM against ΔD, a point for each module: the paper's Figure 2; and the lengths as a LoRA would change."""
    known = _with_base(rows)
    if len(known) < 2 or not any(row["direction_change"] for row in known):
        return []
    panels = (("magnitude_change", "DoRA, as trained"), ("undecomposed", "the same A and B as a LoRA"))
    series = tuple(
        Series(
            name,
            tuple(row["direction_change"] for row in members),
            tuple(row[key] for row in members),
            panel,
            points=tuple(row["name"] for row in members),
        )
        for key, panel in panels
        for name, members in group(known).items()
    )
    caption = "One point for each module (Liu et al. 2024, Figure 2, has one for each layer and checkpoint)."
    title = "Change of magnitude against change of direction"
    return [Lines(title, series, "ΔD, mean 1 − cos", "ΔM, mean change of length", where="page", caption=caption)]


kind_metrics.register("magnitude")(KindMetrics("DoRA", measure, findings, blocks, METRICS))
