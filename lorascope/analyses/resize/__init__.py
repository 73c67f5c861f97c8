"""At which lower rank is this adapter still the same update, and what does each rank lose?

For every plan (one rank for all modules, a share of each module's energy, one budget over all modules) the ranks, the
parameters, and the error: in each module ‖ΔW − ΔW_r‖_F/‖ΔW‖_F, which the singular values that are left out give exactly
(Eckart and Young 1936), and what rounding to the storage dtype adds. Its random baseline is what truncating a product
B·A of independent Gaussian entries, of the same shape and rank, would lose: near that, no direction matters more than
another and the rank is used up.

When it misleads: the error weighs directions by their size, not by what they do. A direction with 1 % of the energy
can carry the task, and 30 % of the energy can be noise; modules differ in how much their output matters. The error does
not predict what a plan does to the held-out score; --evaluate measures that.
"""

from lorascope.analyses.base import Analysis, analyses
from lorascope.analyses.resize.measure import METRICS, Plan, ResizedModule, ResizeResult, run
from lorascope.analyses.resize.show import PLOTS, blocks, findings, heading

analyses.register("resize")(
    Analysis(__doc__, "adapter", run, findings, blocks, heading, command="resize", metrics=METRICS, plots=PLOTS)
)

__all__ = ["Plan", "ResizeResult", "ResizedModule", "run"]
