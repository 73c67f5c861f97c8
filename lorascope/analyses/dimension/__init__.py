"""What is the intrinsic dimension of full fine-tuning, and how does it compare with what low-rank training needs?

"Intrinsic dimension" has three meanings, reported side by side. Spectral: how many directions hold the energy of ΔW,
compared with noise of the same shape. Denoised: how many stand out of the noise, by Gavish and Donoho, by Marchenko and
Pastur, and by the difference of two seeds. Functional: at which rank k the truncated ΔW of all matrices still gives 90,
95 or 99 % of the gain in held-out loss (k90), with truncations that keep the smallest components or random directions
as controls. k90 is compared with the smallest LoRA rank that reaches the gain when it is trained (Hu et al. 2021, arXiv
2106.09685), and with d90, the smallest random subspace (Li et al. 2018, arXiv 1804.08838; Aghajanyan et al. 2020, arXiv
2012.13255): all on one axis, the number of parameters.

Gain is (s₀ − loss) / (s₀ − loss of full fine-tuning). s₀ is the full run with every matrix back at W: its tuned head
and its vectors (biases, norms) stay as trained, in every truncation, too.

When it misleads: a head that was tuned together with the matrices can do worse on the frozen ones than no head at all;
then s₀ is high and all gains are overestimated. The loss of the class frequencies is reported for comparison, and
`baseline` can take that, or any number, in its place. Gains of short runs tell how fast a method learns, not what it
can reach. Learning rates are compared on the texts that the gain is measured on, which favours what was tried at more
of them. A run's steps, its batch and its rate of learning belong to the answer: the analysis reports where they differ.
"""

# It evaluates models, which analyses do not import: it is handed runs that can be opened (`run_data.Candidate`).

from lorascope.analyses.base import Analysis, analyses
from lorascope.analyses.dimension.findings import findings, heading
from lorascope.analyses.dimension.measure import run
from lorascope.analyses.dimension.result import METRICS, DimensionResult
from lorascope.analyses.dimension.show import PLOTS, blocks

analyses.register("dimension")(
    Analysis(__doc__, "runs", run, findings, blocks, heading, command="dimension", metrics=METRICS, plots=PLOTS)
)

__all__ = ["DimensionResult", "run"]
