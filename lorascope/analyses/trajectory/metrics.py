"""What a trajectory measures, declared once."""

from lorascope.analyses.base import Metric
from lorascope.analyses.spectral_metrics import ENERGY_RANKS, FROBENIUS_NORM, RELATIVE_NORM, STABLE_RANK

PHI = "‖U_tᵀ U_T‖_F² / k of the k leading singular directions, k the rank for 95 % of the last ‖ΔW‖_F²"
PHI_SOURCE = "Hu et al. 2021, arXiv 2106.09685, §7.2, eq. 4; random subspaces of R^n have k/n in the mean"

_ROTATION = "Rotation φ(t, T)"

METRICS = (
    FROBENIUS_NORM,
    RELATIVE_NORM,
    STABLE_RANK,
    ENERGY_RANKS[0.95],
    Metric(
        "cosine_to_last", "cos to last", "float", "cosine of ΔW with the last one",
        "⟨ΔW_t, ΔW_T⟩ / (‖ΔW_t‖ ‖ΔW_T‖)", "of updates as vectors", term="Cosine to the last",
        meaning="How near the update at this step points to the last one: at 1 only its size still changes.",
    ),
    Metric(
        "left_to_last", "φ left", "float", "overlap of the output subspace with the last one's", PHI, PHI_SOURCE,
        "chance.left", _ROTATION,
        "How far the last directions are in place at this step: 1 if they are, the chance level if none is.",
    ),
    Metric(
        "right_to_last", "φ right", "float", "overlap of the input subspace with the last one's", null="chance.right",
        term=_ROTATION,
    ),
    Metric(
        "left_to_previous", "φ left, before", "float", "overlap of the output subspace with the one of the checkpoint"
        " before", null="chance.left", term=_ROTATION,
    ),
    Metric(
        "right_to_previous", "φ right, before", "float", "overlap of the input subspace with the one of the checkpoint"
        " before", null="chance.right", term=_ROTATION,
    ),
    Metric(
        "settled_step", "settled", "int", "the first step from which on φ left and φ right to the last are 0.9 or more",
        "min{t : φ(t', T) ≥ 0.9 on both sides for all t' ≥ t}, of the steps before the last", "defined here",
        term="Settled",
        meaning="The step from which on the update's directions hardly turn: a late one means that training was still"
        " finding them.",
    ),
)  # fmt: skip
