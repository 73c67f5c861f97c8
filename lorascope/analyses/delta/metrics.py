"""What is measured of a matrix, listed, sorted by and mapped; and what an adapter captures of it."""

from lorascope.analyses.base import Metric

METRICS = (
    Metric("energy_share", "energy", "percent", "‖ΔW‖_F² as a share of all matrices'", term="ΔW"),
    Metric("relative_norm", "‖ΔW‖/‖W‖", "percent", "Frobenius norms", term="Relative norm ‖ΔW‖/‖W‖",
           formula="‖ΔW‖_F / ‖W‖_F", source="W is the base's",
           meaning="How large the change is compared with the weight that was changed."),
    Metric("frobenius_norm", "‖ΔW‖_F", help="√Σσ²", term="ΔW",
           formula="tuned − base, in float64; energy ‖ΔW‖_F² = Σσ²", source="Eckart and Young 1936",
           meaning="What fine-tuning changed: a large norm means that this matrix was changed a lot."),
    Metric("spectral_norm", "‖ΔW‖₂", help="σ₁", term="ΔW"),
    Metric("stable_rank", "stable rank", help="Σσ²/σ₁²", term="Stable rank", formula="Σσ²/σ₁²",
           source="Rudelson and Vershynin 2007",
           meaning="How many directions carry the update, weighted towards the largest: 1 if one direction is"
           " everything."),
    Metric("effective_rank", "eff. rank", help="exp H(σ/Σσ), Roy and Vetterli 2007", term="Effective rank",
           formula="exp H(σ/Σσ)", source="Roy and Vetterli 2007",
           meaning="How many directions the update spreads over, weak ones counted in."),
    Metric("energy_rank_0.9", "r90", "int", "rank that keeps 90 % of the energy", null="null.energy_rank_0.9",
           term="Energy rank r90, r99", formula="the smallest k with Σ_{i≤k} σ² ≥ 90, 99 % of Σσ²",
           source="Eckart and Young 1936: no rank-k matrix keeps more",
           meaning="The rank to which ΔW can be cut so that it keeps so much of its energy."),
    Metric("null.energy_rank_0.9", "r90 (noise)", "int", "the same of an iid matrix of this shape",
           term="Noise of the same shape (random baseline)",
           formula="the quantiles of the Marchenko–Pastur law, σ = √(q·t); in figures scaled to ΔW's energy",
           source="Marchenko and Pastur 1967",
           meaning="The rank that pure noise of this shape needs: a ΔW that needs as much has no low-rank structure."),
    Metric("energy_rank_of_null_0.9", "r90 / noise", "percent", "r90 over that of an iid matrix of this shape",
           term="Noise of the same shape (random baseline)"),
    Metric("energy_rank_0.99", "r99", "int", "rank that keeps 99 % of the energy", null="null.energy_rank_0.99",
           term="Energy rank r90, r99"),
    Metric("best.8", "r8 keeps", "percent", "share of the energy that the best rank-8 matrix keeps",
           term="Best of rank r", formula="Σ_{i≤r} σ² / Σσ²: no product B·A of rank r keeps more",
           source="Eckart and Young 1936",
           meaning="How much of ΔW an adapter of rank r could hold at best: near 100 % such an adapter can replace"
           " it."),
    Metric("noise_floor.rank", "σ above rounding", "int",
           "singular values above what rounding to the storage dtype makes", term="Rounding floor",
           formula="max_i √Σ_j v_ij + max_j √Σ_i v_ij, v = spacing²·min(1/6, share moved): ‖E‖₂ of two roundings,"
           " independent", source="Bandeira and van Handel 2016, theorem 1.1",
           meaning="How large singular values get by rounding the stored weights: those above it come from training."),
    Metric("noise_floor.energy_share", "energy above rounding", "percent", "share of ‖ΔW‖² above the rounding floor",
           term="Rounding floor"),
    Metric("marchenko_pastur.rank", "σ above MP edge", "int",
           "singular values above the Marchenko–Pastur edge of the bulk", term="Marchenko–Pastur edge",
           formula="(√m + √n)·level with the Tracy–Widom 99 % correction; level = median(σ)/√(q·median of the law)",
           source="Johnstone 2001, theorem 1.1",
           meaning="Where the singular values of pure noise end: those above it stand out from the noise-like rest."),
    Metric("gavish_donoho.rank", "GD rank", "int", "singular values above the Gavish–Donoho threshold",
           term="Gavish–Donoho rank", formula="values above ω(β)·median(σ), 2.858 for a square",
           source="arXiv 1305.5870",
           meaning="How many singular values to keep for the least error, if the rest is noise."),
    Metric("permutation.rank", "σ above permuted", "int",
           "singular values above the largest of the same entries permuted", term="Permuted",
           formula="ΔW's own entries in random places, one draw from a fixed seed",
           source="parallel analysis, Horn 1965",
           meaning="How large singular values get when the same entries are shuffled: those above it come from where"
           " the entries stand, not from their sizes."),
    Metric("moved_share", "moved", "percent", "share of entries that changed", term="Moved entries",
           formula="the share of entries with tuned ≠ base, as stored", source="a count",
           meaning="How many entries changed at all: where few did, the storage dtype was too coarse for the steps of"
           " training, or only some rows were trained."),
)  # fmt: skip

_CAPTURED = "Captured by an adapter"
# Of one adapter in one matrix, and energy-weighted over all that it adapts.
CAPTURED = (
    Metric("left", "left", "percent", "of ΔW in its column space", null="chance.left", term=_CAPTURED),
    Metric("chance.left", "chance", "percent", "r/m", term=_CAPTURED),
    Metric("right", "right", "percent", "of ΔW in its row space", null="chance.right", term=_CAPTURED),
    Metric("chance.right", "chance", "percent", "r/n", term=_CAPTURED),
    Metric("both", "both", "percent", "share of ‖ΔW‖² in the adapter's column and row spaces", null="chance.both",
           term=_CAPTURED,
           formula="left ‖UᵀΔW‖²/‖ΔW‖², right ‖ΔW V‖²/‖ΔW‖², both ‖UᵀΔW V‖²/‖ΔW‖², U and V the column and row space of"
           " B·A", source="by chance r/m, r/n and r²/(mn); the cosine's root mean square by chance is 1/√(mn)",
           meaning="How much of the change lies in the directions that an adapter uses: 100 % if they hold all of"
           " it, the chance level if the two are unrelated."),
    Metric("best", "best of rank", "percent", "what the best matrix of its rank keeps", term="Best of rank r"),
    Metric("cosine", "cosine", help="⟨ΔW, BA⟩/(‖ΔW‖‖BA‖)", null="cosine_chance", term="Cosine",
           formula="⟨ΔW, B·A⟩ / (‖ΔW‖_F ‖B·A‖_F)", source="of the two as vectors; by chance 0 ± 1/√(mn)",
           meaning="Whether the adapter changes the weights the way fine-tuning did: 1 if they differ only in size,"
           " about 0 if they are unrelated."),
    Metric("cosine_chance", "chance", help="root mean square of a randomly rotated BA, 1/√(mn)", term="Cosine"),
    Metric("residual", "residual", help="‖ΔW − BA‖²/‖ΔW‖²"),
)  # fmt: skip
