"""The measures of a spectrum that several analyses show, each declared once.

Where an analysis has one under another key, or says more of it, it changes that part alone: `replace(STABLE_RANK, …)`.
Null keys are those of rows that have the random baseline; `without_baseline` is for rows that have none.
"""

from dataclasses import replace

from lorascope.analyses.base import Metric

FROBENIUS_NORM = Metric(
    "frobenius_norm", "‖ΔW‖_F", "float", "Frobenius norm √Σσ²", "‖ΔW‖_F = √Σσ², ‖ΔW‖₂ = σ₁, ‖ΔW‖_* = Σσ",
    "of ΔW's singular values σ", term="Norms",
    meaning="How large the update is: in all, in its strongest direction, and with its directions added up.",
)  # fmt: skip
SPECTRAL_NORM = Metric("spectral_norm", "‖ΔW‖₂", help="largest singular value σ₁", term="Norms")
NUCLEAR_NORM = Metric("nuclear_norm", "‖ΔW‖_*", help="nuclear norm Σσ", term="Norms")
RELATIVE_NORM = Metric(
    "relative_norm", "‖ΔW‖/‖W‖", "percent", "Frobenius norms", "‖ΔW‖_F / ‖W‖_F", "W is the base's",
    term="Relative norm ‖ΔW‖/‖W‖", meaning="How large the update is compared with the weight that it changes.",
)  # fmt: skip
ENERGY_SHARE = Metric(
    "energy_share", "energy", "percent", "‖ΔW‖_F² as a share of the sum over all",
    "‖ΔW‖_F² = Σσ²; a module's share is of the sum over modules", "Eckart and Young 1936", term="Energy",
    meaning="How much of the whole update lies in this module.",
)  # fmt: skip
STABLE_RANK = Metric(
    "stable_rank", "stable rank", "float", "Σσ²/σ₁²", "Σσ² / σ₁²", "Rudelson and Vershynin 2007", "null.stable_rank",
    "Stable rank",
    "How many directions carry the update, weighted towards the largest: 1 if one direction is everything.",
)  # fmt: skip
EFFECTIVE_RANK = Metric(
    "effective_rank", "eff. rank", "float", "exp H(σ/Σσ), Roy and Vetterli 2007", "exp H(p), p = σ/Σσ",
    "Roy and Vetterli 2007, eq. 4", "null.effective_rank", "Effective rank",
    "How many directions the update spreads over, weak ones counted in.",
)  # fmt: skip
ENERGY_RANKS = {
    share: Metric(
        f"energy_rank_{share}", f"r{100 * share:.0f}", "int", f"rank that keeps {100 * share:.0f} % of the energy",
        "the smallest k with Σ_{i≤k} σ² ≥ 90, 95, 99 % of Σσ²", "Eckart and Young 1936: no rank-k matrix keeps more",
        f"null.energy_rank_{share}", "Energy rank r90, r95, r99",
        "The rank to which ΔW can be cut so that it keeps so much of its energy.",
    )
    for share in (0.9, 0.95, 0.99)
}  # fmt: skip
GAVISH_DONOHO = Metric(
    "gavish_donoho", "GD rank", "int", "singular values above the Gavish–Donoho threshold",
    "values above ω(β)·median(σ), 2.858 for a square", "arXiv 1305.5870", term="Gavish–Donoho rank",
    meaning="How many singular values to keep for the least error, if the rest is noise.",
)  # fmt: skip
MARCHENKO_PASTUR = Metric(
    "marchenko_pastur", "σ above MP edge", "int", "singular values above the Marchenko–Pastur edge of the bulk",
    "(√m + √n)·level with the Tracy–Widom 99 % correction; level = median(σ)/√(q·median of the law)",
    "Johnstone 2001, theorem 1.1", term="Marchenko–Pastur edge",
    meaning="Where the singular values of pure noise end: those above it stand out from the noise-like rest.",
)  # fmt: skip


def without_baseline(metric: Metric) -> Metric:
    """The metric, of rows that have no random baseline of it."""
    return replace(metric, null=None)


def baseline(metric: Metric, help: str, title: str = "random") -> Metric:
    """The random baseline of a metric as a metric; `help` says of what it is the random version.

    Raises:
        ValueError: the metric has none.
    """
    if metric.null is None:
        raise ValueError(f"{metric.key} has no random baseline")
    return Metric(metric.null, title, metric.unit, help, term=metric.term)
