"""What is measured of a matrix, listed, sorted by and mapped; and what an adapter captures of it."""

from lorascope.analyses.base import Metric

METRICS = (
    Metric("energy_share", "energy", "percent", "‖ΔW‖_F² as a share of all matrices'"),
    Metric("relative_norm", "‖ΔW‖/‖W‖", "percent", "Frobenius norms"),
    Metric("frobenius_norm", "‖ΔW‖_F", help="√Σσ²", term="ΔW",
           formula="tuned − base, in float64; energy ‖ΔW‖_F² = Σσ²", source="Eckart and Young 1936"),
    Metric("spectral_norm", "‖ΔW‖₂", help="σ₁"),
    Metric("stable_rank", "stable rank", help="Σσ²/σ₁²", term="Stable rank", formula="Σσ²/σ₁²",
           source="Rudelson and Vershynin 2007"),
    Metric("effective_rank", "eff. rank", help="exp H(σ/Σσ), Roy and Vetterli 2007", term="Effective rank",
           formula="exp H(σ/Σσ)", source="Roy and Vetterli 2007"),
    Metric("energy_rank_0.9", "r90", "int", "rank that keeps 90 % of the energy", null="null.energy_rank_0.9"),
    Metric("null.energy_rank_0.9", "r90 (noise)", "int", "the same of an iid matrix of this shape",
           term="Noise of the same shape (random baseline)",
           formula="the quantiles of the Marchenko–Pastur law, σ = √(q·t); in figures scaled to ΔW's energy",
           source="Marchenko and Pastur 1967"),
    Metric("energy_rank_of_null_0.9", "r90 / noise", "percent", "r90 over that of an iid matrix of this shape"),
    Metric("energy_rank_0.99", "r99", "int", "rank that keeps 99 % of the energy", null="null.energy_rank_0.99"),
    Metric("best.8", "r8 keeps", "percent", "share of the energy that the best rank-8 matrix keeps",
           term="Best of rank r", formula="Σ_{i≤r} σ² / Σσ²: no product B·A of rank r keeps more",
           source="Eckart and Young 1936"),
    Metric("noise_floor.rank", "σ above rounding", "int",
           "singular values above what rounding to the storage dtype makes", term="Rounding floor",
           formula="max_i √Σ_j v_ij + max_j √Σ_i v_ij, v = spacing²·min(1/6, share moved): ‖E‖₂ of two roundings,"
           " independent", source="Bandeira and van Handel 2016, theorem 1.1"),
    Metric("noise_floor.energy_share", "energy above rounding", "percent", "share of ‖ΔW‖² above the rounding floor"),
    Metric("marchenko_pastur.rank", "σ above MP edge", "int",
           "singular values above the Marchenko–Pastur edge of the bulk", term="Marchenko–Pastur edge",
           formula="(√m + √n)·level with the Tracy–Widom 99 % correction; level = median(σ)/√(q·median of the law)",
           source="Johnstone 2001, theorem 1.1"),
    Metric("gavish_donoho.rank", "GD rank", "int", "singular values above the Gavish–Donoho threshold",
           term="Gavish–Donoho rank", formula="values above ω(β)·median(σ), 2.858 for a square",
           source="arXiv 1305.5870"),
    Metric("permutation.rank", "σ above permuted", "int",
           "singular values above the largest of the same entries permuted", term="Permuted",
           formula="ΔW's own entries in random places, one draw from a fixed seed",
           source="parallel analysis, Horn 1965"),
    Metric("moved_share", "moved", "percent", "share of entries that changed"),
)  # fmt: skip

# Of one adapter in one matrix, and energy-weighted over all that it adapts.
CAPTURED = (
    Metric("left", "left", "percent", "of ΔW in its column space", null="chance.left"),
    Metric("chance.left", "chance", "percent", "r/m"),
    Metric("right", "right", "percent", "of ΔW in its row space", null="chance.right"),
    Metric("chance.right", "chance", "percent", "r/n"),
    Metric("both", "both", "percent", "share of ‖ΔW‖² in the adapter's column and row spaces", null="chance.both",
           term="Captured by an adapter",
           formula="left ‖UᵀΔW‖²/‖ΔW‖², right ‖ΔW V‖²/‖ΔW‖², both ‖UᵀΔW V‖²/‖ΔW‖², U and V the column and row space of"
           " B·A", source="by chance r/m, r/n and r²/(mn); the cosine's root mean square by chance is 1/√(mn)"),
    Metric("best", "best of rank", "percent", "what the best matrix of its rank keeps"),
    Metric("cosine", "cosine", help="⟨ΔW, BA⟩/(‖ΔW‖‖BA‖)", null="cosine_chance"),
    Metric("cosine_chance", "chance", help="root mean square of a randomly rotated BA, 1/√(mn)"),
    Metric("residual", "residual", help="‖ΔW − BA‖²/‖ΔW‖²"),
)  # fmt: skip
