"""What is measured of a module of a pair."""

from lorascope.analyses.base import Metric

_ENERGY = "⟨G_a, G_b⟩/(‖G_a‖ ‖G_b‖), G = ΔWΔWᵀ on the left, ΔWᵀΔW on the right"

# Columns, heatmap layers and CSV, in the order of the page.
COLUMNS = (
    Metric("cosine", "cosine", help="⟨ΔW_a, ΔW_b⟩/(‖ΔW_a‖‖ΔW_b‖)", term="Cosine", null="cosine_chance",
           formula="⟨ΔW_a, ΔW_b⟩ / (‖ΔW_a‖_F ‖ΔW_b‖_F)",
           source="chance: 0 ± 1/√(mn) whatever the spectra, p by the saddlepoint tail of Σ w g h (Lugannani, Rice"
           " 1980); where A is shared, 0 ± ‖ΔW_aΔW_bᵀ‖/(√m ‖ΔW_a‖‖ΔW_b‖), the left sides alone rotated",
           meaning="Whether two updates change the weights the same way: 1 if they differ only in size, about 0 if they"
           " are unrelated, negative if they oppose each other."),
    Metric("cosine_sd", "chance ±", help="standard deviation of the cosine by chance; its mean is 0", term="Cosine"),
    Metric("cosine_q", "q", help="false discovery rate over the modules, of the cosine", term="q",
           formula="the false discovery rate at which this module would count", source="Benjamini and Hochberg 1995",
           meaning="Of all modules with a q this small or smaller, at most this share is expected to be there by"
           " chance."),
    Metric("left.phi_whole", "left φ", help="‖UᵀU‖²/min(i, j) of the whole left subspaces", term="φ(i, j)",
           null="left.phi_chance", formula="‖U_iᵀV_j‖_F² / min(i, j), of the i and j leading singular directions",
           source="Hu et al. 2021, arXiv 2106.09685, §7.2 and App. G, where φ = 1 − d²/p",
           meaning="How much the leading directions of two updates span the same space: 1 if one span contains the"
           " other, the chance level if they are unrelated."),
    Metric("left.phi_chance", "chance", help="max(i, j)/m", term="Chance level of φ",
           formula="E φ = max(i, j)/n; Var ‖UᵀV‖² = 2ij(n−i)(n−j)/(n²(n−1)(n+2))",
           source="Haar-random subspaces; p by the Beta law of that mean, variance and range, exact for i or j = 1",
           meaning="What φ is on average for random subspaces: an overlap says something only where it is above."),
    Metric("left.z", "left z", help="of the left φ, exact variance", term="Chance level of φ"),
    Metric("left.q", "q", help="false discovery rate over the modules, of the left φ", term="q"),
    Metric("left.energy_overlap.value", "left energy", help="⟨G_a, G_b⟩/(‖G_a‖‖G_b‖), G = ΔW ΔWᵀ",
           term="Energy overlap", null="left.energy_overlap.chance", formula=_ENERGY,
           source="directions count by their energy; chance tr G_a tr G_b/(n ‖G_a‖ ‖G_b‖)",
           meaning="φ with strong directions counting more: 1 if both updates put their energy into the same directions"
           " in the same proportions, the chance level if they are unrelated."),
    Metric("left.energy_overlap.chance", "chance", help="of the energy-weighted overlap", term="Energy overlap"),
    Metric("right.phi_whole", "right φ", help="‖VᵀV‖²/min(i, j) of the whole right subspaces", null="right.phi_chance",
           term="φ(i, j)"),
    Metric("right.phi_chance", "chance", help="max(i, j)/n", term="Chance level of φ"),
    Metric("right.z", "right z", help="of the right φ, exact variance", term="Chance level of φ"),
    Metric("right.q", "q", help="false discovery rate over the modules, of the right φ", term="q"),
    Metric("right.energy_overlap.value", "right energy", help="⟨G_a, G_b⟩/(‖G_a‖‖G_b‖), G = ΔWᵀΔW",
           null="right.energy_overlap.chance", term="Energy overlap"),
    Metric("right.energy_overlap.chance", "chance", help="of the energy-weighted overlap", term="Energy overlap"),
    Metric("a_alone.phi_whole", "A φ", help="of the row spaces of A alone: first of all the initialisation",
           term="A alone", null="a_alone.phi_chance", formula="φ of the right-singular directions of A (r, d_in)",
           source="Hu et al. 2021, §7.2; not a property of ΔW = BA = (BC⁻¹)(CA), first of all the initialisation",
           meaning="Whether A alone reads the same input directions in both adapters: a high value mostly says that"
           " they started from the same random A."),
    Metric("initialisation.row_cosine", "A rows", help="mean cosine of A's rows one by one, as stored",
           term="Shared initialisation",
           formula="mean cosine of row k of either A ≥ 0.3 (≥ 0.8 of fewer than 4 rows), z ≥ 6; or φ of A far above"
           " chance", source="in one stream of random numbers A (8, d) is the first rows of A (64, d)",
           meaning="A high value means that both adapters started from the same random A, which makes their input"
           " directions alike before any training."),
)  # fmt: skip

# Recorded as well, and in no column.
METRICS = (
    *COLUMNS,
    Metric("left.effect", "effect", help="how far the left φ lies between chance and 1", term="Effect",
           formula="(φ − chance)/(1 − chance)", source="0 by chance, 1 where one subspace contains the other",
           meaning="How far the overlap is above chance, so that layers of different widths can be compared."),
    Metric("left.pooled_z", "pooled z", help="of the left φ over all modules of a pair", term="Pooled z",
           formula="Σ(X − E X)/√ΣVar X, X = ‖UᵀV‖²",
           source="takes the modules of a run to be independent, which they are not: seeds are the sampling unit",
           meaning="How clearly the overlap of all modules together is above chance: within about ±2 it is not."),
    Metric("left.principal_angles", "principal angles", help="of the left subspaces, radians", term="Principal angles",
           formula="θ_k = arccos σ_k(UᵀV), small ones by σ((I − UUᵀ)V)",
           source="Björck and Golub 1973; chance: the edge of the Jacobi law, Wachter 1980",
           meaning="The angles between two subspaces, the smallest first: near 0° a direction is shared, near 90° none"
           " is."),
    Metric("left.projection_distance", "projection distance", help="of the left subspaces", term="Projection distance",
           null="left.projection_distance_chance", formula="√Σsin²θ",
           source="Hu et al. 2021, App. G; the chordal distance",
           meaning="How far apart two subspaces are: 0 if they are the same, and the larger the less they share."),
)  # fmt: skip
