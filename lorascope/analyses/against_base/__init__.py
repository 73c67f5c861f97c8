"""Does ΔW lie where W already is, or does it amplify directions that W hardly used?

The LoRA paper's §7.3 (Hu et al. 2021, arXiv 2106.09685, table 7 and figure 8), with what chance gives beside each
number. With U and V the r leading left and right singular directions of ΔW: ‖UᵀWV‖_F, how much of W lies there; the
same for W's own r leading directions, √Σ_{i≤r} σ_i(W)², and for random ones; the amplification factor ‖ΔW‖_F/‖UᵀWV‖_F
beside that of a random ΔW of the same norm; and the overlap φ of ΔW's directions with W's top subspaces, on both sides.

When it misleads: the amplification factor alone says nothing. Recomputing the paper's table, ΔW's is 21.6 at r = 4, but
a random ΔW of the same norm would have 343: what is above chance is ‖UᵀWV‖ itself, 15.9 times the random one. The
factor falls with r for any ΔW. Overlap with W's top subspaces has a chance level of max(i, j)/n and not 0.

It needs the base, so it is not among the registered analyses; `lorascope analyze --base` shows it.
"""

from lorascope.analyses.against_base.module import ModuleAgainstBase, Overlap, measure
from lorascope.analyses.against_base.result import AgainstBaseResult, run

__all__ = ["AgainstBaseResult", "ModuleAgainstBase", "Overlap", "measure", "run"]
