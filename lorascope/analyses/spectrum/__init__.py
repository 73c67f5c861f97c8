"""What rank did this update need, and which modules carry it?

For each module the singular values of ΔW, through the factors in float64, and the measures of rank that the field uses,
each beside what a structureless B·A of the same shape would give. Over modules: energy by type and depth, the worst
module, and the smallest uniform rank that keeps 95 or 99 % of the energy in every module.

When it misleads: energy is not usefulness (a direction with 1 % of the energy can carry the task: `papers`' functional
rank answers that); ranks of ΔW are bounded by r, so compare them with the null and not with full fine-tuning's; the
update of DoRA or (IA)³ depends on W and is complete only with `--base`.
"""

from lorascope.analyses.base import analyses
from lorascope.analyses.spectrum.module import ModuleSpectrum, measure
from lorascope.analyses.spectrum.result import SpectrumResult, run

analyses.register("spectrum")(run)

__all__ = ["ModuleSpectrum", "SpectrumResult", "measure", "run"]
