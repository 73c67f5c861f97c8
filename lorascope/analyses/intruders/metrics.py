"""What is measured of a weight, listed and mapped."""

from lorascope.analyses.base import Metric

METRICS = (
    Metric("intruders.left", "intruders", "int", "of the k leading left singular vectors (the output side)",
           term="Intruder",
           formula="a singular vector y_j, j ≤ k, of W + ΔW with max_i |cos(y_j, x_i)| < ε over all singular vectors"
           " x_i of W", source="Shuttleworth et al. 2024, arXiv 2410.21228, definition 3.1 and algorithm 1"),
    Metric("intruders.right", "on the right", "int", "of the k leading right singular vectors (the input side)",
           term="Left and right",
           formula="the output and the input side of the map, however the file stores it; the paper and PEFT take the"
           " left", source="of a Conv1D or an embedding as stored, the other way round"),
    Metric("lowest_cosine", "lowest |cos|", help="the smallest of the k left vectors' largest |cos| with W's",
           null="chance.left", term="Equal singular values",
           formula="those of W whose squares differ by less than 1e-11·σ₁² are one subspace, and the cosine is with it",
           source="rounding picks the vectors within"),
    Metric("chance.left", "by chance", help="median of a random direction's largest |cos| with W's left vectors",
           term="By chance",
           formula="median of the largest |cos| of a uniformly random unit vector, cos² ~ Beta(½, (n − 1)/2) each",
           source="about √(2 log n / n)"),
    Metric("intruder_energy_share", "energy", "percent",
           "share of the k leading vectors' energy that the intruders carry"),
    Metric("spike_margin", "σ₁(ΔW)/σ_k(W)", help="how strong ΔW's first direction is against W's k-th"),
    Metric("prediction.strength", "s*",
           help="factor by which ΔW must be scaled for its top direction to enter the top k; < 1: already in"),
    Metric("prediction.in_top", "expected", "int",
           "directions of ΔW expected among the k leading values, from W's spectrum"),
    Metric("prediction.value", "expected σ", help="what σ₁(ΔW) is expected to become in W + ΔW", term="Expected",
           formula="ρ with φ(ρ)φ̃(ρ) = 1/θ², θ = σ₁(ΔW), over W's spectrum; s* = θ̄/θ with θ̄ where ρ = σ_k(W)",
           source="Benaych-Georges and Nadakuditi 2012, theorems 2.8 and 2.9: a direction independent of W's"),
    Metric("prediction.measured", "observed σ", help="what it became, where a leading vector has over half of it"),
    Metric("relative_norm", "‖ΔW‖/‖W‖", "percent", "Frobenius norms"),
)  # fmt: skip
