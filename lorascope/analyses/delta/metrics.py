"""What is measured of a matrix, listed, sorted by and mapped; and what an adapter captures of it."""

from dataclasses import replace

from lorascope.analyses.base import Metric
from lorascope.analyses.spectral_metrics import (
    EFFECTIVE_RANK,
    ENERGY_RANKS,
    ENERGY_SHARE,
    FROBENIUS_NORM,
    GAVISH_DONOHO,
    MARCHENKO_PASTUR,
    RELATIVE_NORM,
    SPECTRAL_NORM,
    STABLE_RANK,
    baseline,
    without_baseline,
)

_NOISE = "Noise of the same shape (random baseline)"

METRICS = (
    ENERGY_SHARE,
    RELATIVE_NORM,
    FROBENIUS_NORM,
    SPECTRAL_NORM,
    without_baseline(STABLE_RANK),
    without_baseline(EFFECTIVE_RANK),
    ENERGY_RANKS[0.9],
    replace(
        baseline(ENERGY_RANKS[0.9], "the same of an iid matrix of this shape", "r90 (noise)"), term=_NOISE,
        formula="the quantiles of the Marchenko–Pastur law, σ = √(q·t); in figures scaled to ΔW's energy",
        source="Marchenko and Pastur 1967",
        meaning="The rank that pure noise of this shape needs: a ΔW that needs as much has no low-rank structure.",
    ),
    Metric("energy_rank_of_null_0.9", "r90 / noise", "percent", "r90 over that of an iid matrix of this shape",
           term=_NOISE),
    ENERGY_RANKS[0.99],
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
    replace(MARCHENKO_PASTUR, key="marchenko_pastur.rank"),
    replace(GAVISH_DONOHO, key="gavish_donoho.rank"),
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
