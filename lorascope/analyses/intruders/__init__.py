"""Did tuning add singular directions to a weight that the base did not have, and are they strong enough to lead?

An intruder dimension (Shuttleworth et al. 2024, arXiv 2410.21228, definition 3.1 and algorithm 1) is one of the k
leading singular vectors of W + ΔW whose |cos| with every singular vector of W is below ε. With the count, for each
vector: the largest |cos| on either side, where in W's spectrum the nearest vector is, its share of the energy, and how
much of it lies in ΔW's own space; counts over a grid of ε and k; what a random direction would have; how strong ΔW's
first direction is against W's k-th, σ₁(ΔW)/σ_k(W); and where the D-transform of W's spectrum expects it to come out.

Left is the side of the outputs of the map, however the file stores it (Conv1D, embeddings); equal singular values of W
are one subspace, and null-space directions of W are not counted as its singular vectors. W's decomposition is computed
once and cached; the tuned weight is a low-rank change of it.

When it misleads: intruders are nearly unavoidable. At the widths of models every direction that training adds has a
small cosine with all of W's, so the count says how large ΔW's singular values are against W's, and saturates. Whether
intruders cause forgetting is contested: scaling them down (`--intervene`) is to be compared with the same done to a
neighbouring direction of W, and with a uniform shrink of ΔW to the same norm.
"""

from lorascope.analyses.base import Analysis, analyses
from lorascope.analyses.intruders import findings as judge
from lorascope.analyses.intruders import page
from lorascope.analyses.intruders.metrics import METRICS
from lorascope.analyses.intruders.module import ModuleIntruders, Prediction, TunedVector
from lorascope.analyses.intruders.result import IntrudersResult
from lorascope.analyses.intruders.run import run

analyses.register("intruders")(
    Analysis(
        question=__doc__,
        takes="adapter and base",
        run=run,
        findings=judge.findings,
        blocks=page.blocks,
        heading=page.heading,
        command="intruders",
        metrics=METRICS,
        plots=page.PLOTS,
    )
)

__all__ = ["IntrudersResult", "ModuleIntruders", "Prediction", "TunedVector", "run"]
