"""What did full fine-tuning do to the weights, and how much of it can, and does, a low-rank adapter capture?

For each matrix of two checkpoints the singular values of ΔW = tuned − base, compared with what noise gives: the floor
that rounding to the storage dtype leaves, the Marchenko–Pastur edge and the Gavish–Donoho threshold of an iid bulk, the
same entries permuted. Energy ranks are compared with those of an iid matrix of the same shape, because of a matrix
without any structure half of the singular values are needed for 90 % of the energy. What a rank-r product can keep at
best is the Eckart–Young curve; what given adapters do keep is the projection of ΔW on their column and row spaces.

When it misleads: energy is not usefulness: a direction with 1 % of the energy can carry the task, and the noise of
SGD lies far above that of rounding, so that "rank above the floor" is an upper bound of what mattered. The
Marchenko–Pastur and Gavish–Donoho readings take the lower half of the spectrum for iid noise, which a fine-tuned ΔW's
is only roughly. An adapter trained with another seed, order or head can serve as well and capture little. The
functional rank (truncate, then evaluate) answers what these cannot.
"""

from lorascope.analyses.base import Analysis, analyses
from lorascope.analyses.delta import findings as judge
from lorascope.analyses.delta import page
from lorascope.analyses.delta.matrix import MatrixDelta, VectorDelta
from lorascope.analyses.delta.metrics import CAPTURED, METRICS
from lorascope.analyses.delta.result import DeltaResult
from lorascope.analyses.delta.run import run

analyses.register("delta")(
    Analysis(
        question=__doc__,
        takes="checkpoints",
        run=run,
        findings=judge.findings,
        blocks=page.blocks,
        heading=page.heading,
        command="delta",
        metrics=(*METRICS, *CAPTURED),
        plots=page.PLOTS,
    )
)

__all__ = ["DeltaResult", "MatrixDelta", "VectorDelta", "run"]
