"""What is measured of a weight, listed and mapped."""

from lorascope.analyses.base import Metric
from lorascope.analyses.spectral_metrics import RELATIVE_NORM

METRICS = (
    Metric("intruders.left", "intruders", "int", "of the k leading left singular vectors (the output side)",
           term="Intruder",
           formula="a singular vector y_j, j ≤ k, of W + ΔW with max_i |cos(y_j, x_i)| < ε over all singular vectors"
           " x_i of W", source="Shuttleworth et al. 2024, arXiv 2410.21228, definition 3.1 and algorithm 1",
           meaning="A leading direction of the tuned weight that the base does not have: many mean that the update"
           " added strong new directions instead of adjusting those of the base."),
    Metric("intruders.right", "on the right", "int", "of the k leading right singular vectors (the input side)",
           term="Left and right",
           formula="the output and the input side of the map, however the file stores it; the paper and PEFT take the"
           " left", source="of a Conv1D or an embedding as stored, the other way round",
           meaning="Left counts new output directions, right new input directions."),
    RELATIVE_NORM,
    Metric("lowest_cosine", "lowest |cos|", help="the smallest of the k left vectors' largest |cos| with W's",
           null="chance.left", term="Lowest |cos|",
           formula="min over j ≤ k of max_i |cos(y_j, x_i)|; x_i of equal singular values (σ² within 1e-11·σ₁²) are one"
           " subspace, and the cosine is with it", source="rounding picks the vectors within such a subspace",
           meaning="Near 1 every leading direction has a counterpart in the base; near the chance level one of them is"
           " new."),
    Metric("chance.left", "by chance", help="median of a random direction's largest |cos| with W's left vectors",
           term="By chance",
           formula="median of the largest |cos| of a uniformly random unit vector, cos² ~ Beta(½, (n − 1)/2) each",
           source="about √(2 log n / n)",
           meaning="What a random direction gives: a leading direction with as low a |cos| resembles none of the"
           " base."),
    Metric("intruder_energy_share", "energy", "percent",
           "share of the k leading vectors' energy that the intruders carry", term="Intruder"),
    Metric("spike_margin", "σ₁(ΔW)/σ_k(W)", help="how strong ΔW's first direction is against W's k-th",
           term="Expected"),
    Metric("prediction.strength", "s*",
           help="factor by which ΔW must be scaled for its top direction to enter the top k; < 1: already in",
           term="Expected"),
    Metric("prediction.in_top", "expected", "int",
           "directions of ΔW expected among the k leading values, from W's spectrum", term="Expected"),
    Metric("prediction.value", "expected σ", help="what σ₁(ΔW) is expected to become in W + ΔW", term="Expected",
           formula="ρ with φ(ρ)φ̃(ρ) = 1/θ², θ = σ₁(ΔW), over W's spectrum; s* = θ̄/θ with θ̄ where ρ = σ_k(W)",
           source="Benaych-Georges and Nadakuditi 2012, theorems 2.8 and 2.9: a direction independent of W's",
           meaning="How large the update's first direction becomes in W + ΔW if it has nothing to do with W: an"
           " intruder is expected where it enters the k leading ones."),
    Metric("prediction.measured", "observed σ", help="what it became, where a leading vector has over half of it",
           term="Expected"),
)  # fmt: skip
