"""Did tuning add singular directions to a weight that the base did not have, and are they strong enough to lead?

An intruder dimension (Shuttleworth et al. 2024, arXiv 2410.21228, definition 3.1 and algorithm 1) is one of the k
leading singular vectors of W + ΔW whose |cos| with every singular vector of W is below ε. Beside the count, for each
vector: the largest |cos| on either side, where in W's spectrum the nearest vector is, its share of the energy, and how
much of it lies in ΔW's own space; counts over a grid of ε and k; what a random direction would have; how strong ΔW's
first direction is against W's k-th, σ₁(ΔW)/σ_k(W); and where the D-transform of W's spectrum expects it to come out.

Left is the side of the outputs of the map, however the file stores it (Conv1D, embeddings); equal singular values of W
are one subspace, and directions that W maps to nothing are none of its singular vectors. W's decomposition is computed
once and kept; the tuned weight is a low-rank change of it.

When it misleads: intruders are nearly unavoidable. At the widths of models every direction that training adds has a
small cosine with all of W's, so the count says how large ΔW's singular values are against W's, and saturates. Whether
intruders cause forgetting is contested: scaling them down (`--intervene`) is to be read beside the same done to a
neighbouring direction of W, and beside a uniform shrink of ΔW to the same norm.

It takes an adapter or a checkpoint and the base, so it is not among the registered analyses.
"""

from lorascope.analyses.intruders.module import ModuleIntruders, Prediction, TunedVector
from lorascope.analyses.intruders.result import IntrudersResult
from lorascope.analyses.intruders.run import run

__all__ = ["IntrudersResult", "ModuleIntruders", "Prediction", "TunedVector", "run"]
