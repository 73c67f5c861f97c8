"""At which lower rank is this adapter still the same update, and what does each rank lose?

For every plan (one rank for all modules, a share of each module's energy, one budget over all modules) the ranks, the
parameters, and the error: in each module ‖ΔW − ΔW_r‖_F/‖ΔW‖_F, which the singular values that are left out give exactly
(Eckart and Young 1936), and what rounding to the storage dtype adds. Beside it what truncating a product B·A of the
same shape without any structure would lose: near that, no direction matters more than another and the rank is used up.

When it misleads: the error weighs directions by their size, not by what they do. A direction with 1 % of the energy
can carry the task, and 30 % of the energy can be noise; modules differ in how much their output matters. What a plan
does to the held-out score is measured with --evaluate, and the error alone does not say it.

It takes plans besides the adapter, so it is not among the registered analyses, which take one adapter.
"""

from lorascope.analyses.resize.result import Plan, ResizedModule, ResizeResult
from lorascope.analyses.resize.run import run

__all__ = ["Plan", "ResizeResult", "ResizedModule", "run"]
