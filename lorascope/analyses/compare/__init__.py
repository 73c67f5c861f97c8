"""Do these adapters live in the same subspaces, and is that more than chance and a shared initialisation would give?

For each module of each pair: the cosine of the two ΔW; for the left (output) and the right (input) subspaces the
principal angles, φ(i, j) for all i and j, the overlap weighted by energy, and the energy of one inside the other's
subspace; all functions of ΔW alone, with the exact chance level (Haar), z, p, and q over the modules. A alone, as in
the LoRA paper's §7.2, stands apart and is labelled: its order is not a property of the update, and what two A share is
first of all their initialisation. For three adapters and more: matrices, clusters, and groups by initialisation.

When it misleads: in one PyTorch stream A (8, d) is the first eight rows of A (64, d), so two runs of one seed overlap
wholly on the right before the first step: look at the finding on initialisation first. One seed is also one order of
the data and one new head, which make B alike. At small widths chance is large (φ of 8 against 64 in 128 dimensions is
0.5): read z and the effect, not φ. Modules of one run are not independent: seeds, not modules, are the sampling unit,
and a p over modules says nothing about other seeds. A wide overlap of the leading directions need not mean that the
updates agree: the cosine has the signs and the strengths.
"""

from lorascope.analyses.base import Analysis, analyses
from lorascope.analyses.compare import findings as judge
from lorascope.analyses.compare import page
from lorascope.analyses.compare.metrics import METRICS
from lorascope.analyses.compare.result import CompareResult
from lorascope.analyses.compare.run import run

analyses.register("compare")(
    Analysis(
        question=__doc__,
        takes="adapters",
        run=run,
        findings=judge.findings,
        blocks=page.blocks,
        heading=page.heading,
        command="compare",
        metrics=METRICS,
        plots=page.PLOTS,
    )
)

__all__ = ["CompareResult", "run"]
