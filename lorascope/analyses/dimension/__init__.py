"""What is the intrinsic dimension of full fine-tuning, and how does it compare with what low-rank training needs?

Three different quantities go by that name, and stand side by side here. Spectral: how many directions hold the energy
of ΔW, beside what noise of the same shape gives. Denoised: how many stand out of the noise, by Gavish and Donoho, by
Marchenko and Pastur, and by the difference of two seeds. Functional: at which rank k the truncated ΔW of all matrices
still gives 90, 95 or 99 % of the gain in held-out loss (k90), beside the truncations that keep the smallest components
or random directions. Against k90 stand the smallest LoRA rank that reaches the gain when it is trained (Hu et al. 2021,
arXiv 2106.09685), and d90, the smallest random subspace (Li et al. 2018, arXiv 1804.08838; Aghajanyan et al. 2020,
arXiv 2012.13255): all on one axis, the number of parameters.

Gain is (s₀ − loss) / (s₀ − loss of full fine-tuning). s₀ is the full run with every matrix back at W: its tuned head
and its vectors (biases, norms) stay as trained, in every truncation, too.

When it misleads: a head that was tuned together with the matrices can do worse on the frozen ones than no head at all;
then s₀ is high and every gain flatters. The loss of the class frequencies stands beside it, and `baseline` can take
that, or any number, in its place. Gains of short runs say how fast a method learns, not what it can reach. Learning
rates are compared on the texts that the gain is measured on, which favours what was tried at more of them. A run's
steps, its batch and its rate of learning belong to the answer: the analysis says where they differ.

It evaluates models, which analyses do not know: it is handed opened runs (`Trained`), so it is not registered.
"""

from lorascope.analyses.dimension.facts import RunFacts, Trained, facts_of
from lorascope.analyses.dimension.result import DimensionResult
from lorascope.analyses.dimension.run import Candidate, run

__all__ = ["Candidate", "DimensionResult", "RunFacts", "Trained", "facts_of", "run"]
