"""What is measured of a module of a pair."""

from lorascope.analyses.base import Metric

_ENERGY = "⟨G_a, G_b⟩/(‖G_a‖ ‖G_b‖), G = ΔWΔWᵀ on the left, ΔWᵀΔW on the right"

# Columns, heatmap layers and CSV, in the order of the page.
COLUMNS = (
    Metric("cosine", "cosine", help="⟨ΔW_a, ΔW_b⟩/(‖ΔW_a‖‖ΔW_b‖)", term="Cosine", null="cosine_chance",
           formula="⟨ΔW_a, ΔW_b⟩ / (‖ΔW_a‖_F ‖ΔW_b‖_F)",
           source="chance: 0 ± 1/√(mn) whatever the spectra, p by the saddlepoint tail of Σ w g h (Lugannani, Rice"
           " 1980); where A is shared, 0 ± ‖ΔW_aΔW_bᵀ‖/(√m ‖ΔW_a‖‖ΔW_b‖), the left sides alone rotated"),
    Metric("cosine_sd", "chance ±", help="standard deviation of the cosine by chance; its mean is 0"),
    Metric("cosine_q", "q", help="false discovery rate over the modules, of the cosine", term="q",
           formula="the false discovery rate at which this module would count", source="Benjamini and Hochberg 1995"),
    Metric("left.phi_whole", "left φ", help="‖UᵀU‖²/min(i, j) of the whole left subspaces", term="φ(i, j)",
           null="left.phi_chance", formula="‖U_iᵀV_j‖_F² / min(i, j), of the i and j leading singular directions",
           source="Hu et al. 2021, arXiv 2106.09685, §7.2 and App. G, where φ = 1 − d²/p"),
    Metric("left.phi_chance", "chance", help="max(i, j)/m", term="Chance level of φ",
           formula="E φ = max(i, j)/n; Var ‖UᵀV‖² = 2ij(n−i)(n−j)/(n²(n−1)(n+2))",
           source="Haar-random subspaces; p by the Beta law of that mean, variance and range, exact for i or j = 1"),
    Metric("left.z", "left z", help="of the left φ, exact variance"),
    Metric("left.q", "q", help="false discovery rate over the modules, of the left φ"),
    Metric("left.energy_overlap.value", "left energy", help="⟨G_a, G_b⟩/(‖G_a‖‖G_b‖), G = ΔW ΔWᵀ",
           term="Energy overlap", null="left.energy_overlap.chance", formula=_ENERGY,
           source="directions count by their energy; chance tr G_a tr G_b/(n ‖G_a‖ ‖G_b‖)"),
    Metric("left.energy_overlap.chance", "chance", help="of the energy-weighted overlap"),
    Metric("right.phi_whole", "right φ", help="‖VᵀV‖²/min(i, j) of the whole right subspaces", null="right.phi_chance"),
    Metric("right.phi_chance", "chance", help="max(i, j)/n"),
    Metric("right.z", "right z", help="of the right φ, exact variance"),
    Metric("right.q", "q", help="false discovery rate over the modules, of the right φ"),
    Metric("right.energy_overlap.value", "right energy", help="⟨G_a, G_b⟩/(‖G_a‖‖G_b‖), G = ΔWᵀΔW",
           null="right.energy_overlap.chance"),
    Metric("right.energy_overlap.chance", "chance", help="of the energy-weighted overlap"),
    Metric("a_alone.phi_whole", "A φ", help="of the row spaces of A alone: first of all the initialisation",
           term="A alone", null="a_alone.phi_chance", formula="φ of the right-singular directions of A (r, d_in)",
           source="Hu et al. 2021, §7.2; not a property of ΔW = BA = (BC⁻¹)(CA), first of all the initialisation"),
    Metric("initialisation.row_cosine", "A rows", help="mean cosine of A's rows one by one, as stored",
           term="Shared initialisation",
           formula="mean cosine of row k of either A ≥ 0.3 (≥ 0.8 of fewer than 4 rows), z ≥ 6; or φ of A far above"
           " chance", source="in one stream of random numbers A (8, d) is the first rows of A (64, d)"),
)  # fmt: skip

# Recorded as well, and in no column.
METRICS = (
    *COLUMNS,
    Metric("left.effect", "effect", help="how far the left φ lies between chance and 1", term="Effect",
           formula="(φ − chance)/(1 − chance)", source="0 by chance, 1 where one subspace contains the other"),
    Metric("left.pooled_z", "pooled z", help="of the left φ over all modules of a pair", term="Pooled z",
           formula="Σ(X − E X)/√ΣVar X, X = ‖UᵀV‖²",
           source="takes the modules of a run to be independent, which they are not: seeds are the sampling unit"),
    Metric("left.principal_angles", "principal angles", help="of the left subspaces, radians", term="Principal angles",
           formula="θ_k = arccos σ_k(UᵀV), small ones by σ((I − UUᵀ)V)",
           source="Björck and Golub 1973; chance: the edge of the Jacobi law, Wachter 1980"),
    Metric("left.projection_distance", "projection distance", help="of the left subspaces", term="Projection distance",
           null="left.projection_distance_chance", formula="√Σsin²θ",
           source="Hu et al. 2021, App. G; the chordal distance"),
)  # fmt: skip
