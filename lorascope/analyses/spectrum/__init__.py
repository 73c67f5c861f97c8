"""What rank did this update need, and which modules carry it?

For each module the singular values of ΔW, through the factors in float64, and the measures of rank that the field uses,
each with its random baseline: what Gaussian B·A of the same shape would give. Over modules: energy by type and depth,
the module that needs most, and the smallest uniform rank that keeps 95 or 99 % of the energy in every module.

When it misleads: energy is not usefulness (a direction with 1 % of the energy can carry the task: `resize --evaluate`
and `dimension` measure that); ranks of ΔW are bounded by r, so compare them with the random baseline and not with full
fine-tuning's; the update of DoRA or (IA)³ depends on W and is complete only with `--base`.
"""

from lorascope.analyses.base import Analysis, analyses
from lorascope.analyses.spectrum.findings import findings
from lorascope.analyses.spectrum.module import ModuleSpectrum, measure
from lorascope.analyses.spectrum.page import METRICS, PLOTS, blocks, heading
from lorascope.analyses.spectrum.result import SpectrumResult, run

analyses.register("spectrum")(
    Analysis(__doc__, "adapter", run, findings, blocks, heading, "analyze", metrics=METRICS, plots=PLOTS)
)

__all__ = ["METRICS", "ModuleSpectrum", "SpectrumResult", "measure", "run"]
