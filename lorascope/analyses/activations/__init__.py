"""How much of what a layer puts out on real inputs comes from ΔW, and how far do the hidden states move?

For each updated layer, over tokens of real texts: ‖ΔW x‖/‖W x‖, ‖ΔW x‖/‖(W + ΔW) x‖ and the cosine of the two. Their
random baseline is a random ΔW of the same norm on the same inputs, E‖ΔW x‖² = ‖ΔW‖_F²‖x‖²/d_in, and ‖ΔW‖/‖W‖: where
the share is larger than that, training aligned ΔW with the directions in which inputs are large. And debiased linear
CKA of the hidden states after each layer, between the base and every run and between every two runs, with its interval
and its chance level.

When it misleads: a large share is not a useful one, as what ΔW adds may be undone by the next norm or the residual
stream's size; in ‖ΔW x‖/‖W x‖ a bias is left out. Inputs are those of the trained model, so a layer's numbers depend on
the layers before it. CKA is ruled by the few directions of largest variance (outlier features of transformers among
them): near 1 does not mean that nothing useful changed, and a low value can come from one direction. It sees no
rotation and no scale. With few samples the usual, biased CKA is large for unrelated states: compare the debiased one.
"""

from lorascope.analyses.activations.measure import METRICS, ActivationsResult, ModuleResponse, Similarity, run
from lorascope.analyses.activations.show import PLOTS, blocks, findings, heading
from lorascope.analyses.base import Analysis, analyses

analyses.register("activations")(
    Analysis(
        __doc__, "run and texts", run, findings, blocks, heading, command="activations", metrics=METRICS, plots=PLOTS
    )
)

__all__ = ["ActivationsResult", "ModuleResponse", "Similarity", "run"]
