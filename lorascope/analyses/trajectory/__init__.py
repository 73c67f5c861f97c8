"""How did ΔW get where it is: when did its rank, its size and its directions settle, and which checkpoint is best?

For each module over the checkpoints of one run: the singular values σ_k(t), the stable rank and the rank for 95 % of
the energy with their random baselines, ‖ΔW‖/‖W‖ with a base, and the rotation φ(t, T) of the left (output) and right
(input) subspaces, against the last checkpoint and against the one before. The subspaces are those of the k leading
directions, k the rank for 95 % of the last ‖ΔW‖². A module has settled at the first step from which on φ(t, T) ≥ 0.9 on
both sides. The losses that the run logged lie on the same axis; with data, so does each checkpoint's own.

When it misleads: A starts at random and may hardly move, so that the right subspaces of all checkpoints agree from the
first step on; the left side has no such start. φ(T, T) is 1 by definition, so what happened after the last checkpoint
is not seen: a module that still turns settles "late" whatever the steps. A learning rate that goes to zero settles
everything. Where singular values cross, the k leading directions change although ΔW hardly does: the cosine to the last
does not. At small widths random subspaces overlap, too: read φ with k/n.
"""

from lorascope.analyses.base import Analysis, analyses
from lorascope.analyses.trajectory import findings as judge
from lorascope.analyses.trajectory import page
from lorascope.analyses.trajectory.metrics import METRICS
from lorascope.analyses.trajectory.result import TrajectoryResult, run

analyses.register("trajectory")(
    Analysis(
        question=__doc__,
        takes="adapters",
        run=run,
        findings=judge.findings,
        blocks=page.blocks,
        heading=page.heading,
        command="trajectory",
        metrics=METRICS,
        plots=page.PLOTS,
    )
)

__all__ = ["TrajectoryResult", "run"]
