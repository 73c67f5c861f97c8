"""Schemas of the analyses of several adapters or runs: compare, dimension, activations, trajectory."""

from lorascope.analyses.activations.measure import SUMMARISED, ModuleResponse
from lorascope.analyses.compare.matrices import Matrices
from lorascope.analyses.dimension.functional import Point as Truncated
from lorascope.analyses.dimension.result import OnAxis
from lorascope.analyses.dimension.sizes import Level, Reach, TrainedRun
from lorascope.analyses.dimension.spectra import SHARES, MatrixSpectrum, Split
from lorascope.analyses.json_schema.of_weights import Record
from lorascope.analyses.json_schema.parts import (
    COUNT,
    FLAG,
    INTEGER,
    NUMBER,
    RANK,
    TEXT,
    TEXT_OR_NULL,
    Schema,
    by_name,
    closed,
    fields,
    listed,
    numbers,
    of,
    or_null,
)
from lorascope.analyses.trajectory.measure import ModuleTrajectory, Point
from lorascope.analyses.trajectory.result import CheckpointRow
from lorascope.linalg.cka import Cka
from lorascope.weights.series import Loss

SPACES = ("left", "right", "a_alone")
AGREEMENT = ("cosine", "left", "left_chance", "left_effect", "right", "right_chance", "right_effect", "row_cosine")
RANKS = tuple(f"energy_rank_{share}" for share in SHARES)


def compare() -> Record:
    indices = listed(listed(COUNT))
    mean = closed(numbers("mean", "low", "high"))
    contrast = closed({"within": mean, "between": mean, "difference": mean, "p": NUMBER})
    adapter = closed({"label": TEXT, "path": TEXT, "sha256": TEXT_OR_NULL, "format": TEXT, "method": TEXT,
                      "adapter": TEXT_OR_NULL},
                     {"notes": listed(TEXT)})  # fmt: skip
    pair = closed({"a": TEXT, "b": TEXT, "modules": or_null(listed(_of_module())),
                   "summary": {"anyOf": [_summary(), _summary_of_matrices()]}})  # fmt: skip
    agreement = closed(numbers(*AGREEMENT))
    return (
        {"adapters": listed(adapter), "base": TEXT_OR_NULL, "pairs": listed(pair),
         "sampled": or_null(closed({"measured": COUNT, "of": COUNT})),
         "matrices": closed(dict.fromkeys(fields(Matrices), listed(listed(NUMBER)))),
         "clusters": or_null(closed({"of": TEXT, "order": listed(COUNT), "clusters": indices, "silhouette": NUMBER})),
         "groups_by_initialisation": closed({"groups": indices, "within": agreement, "between": agreement}),
         "groups_by_label": or_null(closed({"groups": by_name(listed(COUNT)), "draws": COUNT,
                                            "measures": by_name(contrast)}))},
        {},
    )  # fmt: skip


def _of_module() -> Schema:
    both = listed(NUMBER)
    chance = closed(numbers("value", "chance", "z", "p"))
    space = closed(
        {"dimension": COUNT, "dims": listed(COUNT), "principal_angles": both, "phi": listed(both),
         "phi_z": listed(both), "tied_after": listed(listed(COUNT)),
         **numbers("smallest_angle_chance", "phi_whole", "phi_chance", "phi_sd", "z", "p", "effect",
                   "projection_distance", "projection_distance_chance", "geodesic_distance"),
         "top": closed(numbers("phi", "phi_chance", "z", "p"))},
        {"q": NUMBER, **dict.fromkeys(("energy_overlap", "energy_of_b_in_a", "energy_of_a_in_b"), chance)},
    )  # fmt: skip
    initialisation = closed({"row_cosine": NUMBER, "row_cosine_z": NUMBER, "shared": FLAG})
    return closed({
        "name": TEXT, "type": TEXT, "depth": INTEGER, "shape": listed(COUNT), "rank": listed(COUNT),
        "frobenius_norm": both, "kind": listed(TEXT), "cosine_null": TEXT,
        **numbers("cosine", "cosine_chance", "cosine_sd", "cosine_z", "cosine_p", "cosine_q"),
        **dict.fromkeys(SPACES, or_null(space)), "relation": or_null(_relation()),
        "initialisation": or_null(initialisation), "notes": listed(TEXT),
    })  # fmt: skip


def _relation(**more: Schema) -> Schema:
    return closed({"kind": {"enum": ["same", "rescaled", "truncated"]}, "kept": NUMBER, "norm_ratio": NUMBER, **more})


def _summary() -> Schema:
    """Of a pair whose modules were recorded."""
    medians = ("phi", "phi_chance", "effect", "z", "projection_distance", "projection_distance_chance", "top_phi",
               "top_phi_chance")  # fmt: skip
    energies = [f"median_energy_{key}{end}" for key in ("overlap", "of_a_in_b", "of_b_in_a") for end in ("", "_chance")]
    space = closed({**numbers("pooled_z", *(f"median_{key}" for key in medians)), "significant": COUNT, "of": COUNT},
                   numbers(*energies))  # fmt: skip
    return closed({
        "modules": COUNT, "cosine": NUMBER, "relation": or_null(_relation(rank=listed(COUNT))),
        "median_cosine": NUMBER, "cosine_significant": COUNT, **dict.fromkeys(SPACES, space),
        "shared_initialisation": closed({"modules": COUNT, "of": COUNT, "median_row_cosine": NUMBER}),
    })  # fmt: skip


def _summary_of_matrices() -> Schema:
    space = closed(numbers("mean_phi", "mean_phi_chance", "effect", "pooled_z"))
    return closed({"modules": COUNT, "cosine": NUMBER, "left": space, "right": space,
                   "shared_initialisation": closed(numbers("share_of_modules", "mean_row_cosine"))})  # fmt: skip


def dimension() -> Record:
    reach = of(Reach)
    point = closed({**fields(Truncated), "loss": NUMBER})
    curve = closed({"run": TEXT, "kind": TEXT, "points": listed(point), "reach": by_name(RANK),
                    "drop": or_null(closed({"by": NUMBER, "from": COUNT, "to": COUNT}))})  # fmt: skip
    full = closed({
        "run": TEXT, "path": TEXT, "seed": COUNT, "learning_rate": NUMBER, "steps": INTEGER,
        **numbers("start_loss", "frozen_loss", "baseline", "loss", "accuracy"), "parameters": COUNT,
        "vector_parameters": COUNT, "head_parameters": COUNT, "matrices": by_name(listed(COUNT)),
        "curves": listed(curve),
    })  # fmt: skip
    family = closed({
        "label": TEXT, "axis": TEXT_OR_NULL, "reach": by_name(reach), "metric": or_null(reach),
        "levels": listed(closed({**fields(Level), "gain": NUMBER, "accuracy": NUMBER})),
        "drop": or_null(listed(NUMBER)),
    })  # fmt: skip
    diverged = closed({"run": TEXT, "path": TEXT, "method": TEXT, "reason": TEXT_OR_NULL})
    trained = closed({
        "run": TEXT, "path": TEXT, "method": TEXT, "size": INTEGER, "seed": COUNT, "learning_rate": NUMBER,
        "steps": INTEGER, **fields(TrainedRun, ("facts",)), "loss": NUMBER,
    })  # fmt: skip
    return (
        {"texts": closed({}, {"split": TEXT, "count": COUNT, "max_samples": INTEGER, "skipped": COUNT}),
         "baseline": closed({**numbers("start", "end", "prior"), "given": FLAG}), "modules": TEXT_OR_NULL,
         "summary": _dimension_summary(), "full": listed(full), "by_type": by_name(_by_type()),
         "spectra": listed(_spectrum()), "splits": listed(of(Split)), "adapters": listed(_spectrum()),
         "truncated_adapter": or_null(curve), "runs": listed(trained), "families": listed(family),
         "axis": listed(of(OnAxis)), "diverged": listed(diverged), "search": or_null(_search())},
        {},
    )  # fmt: skip


def _dimension_summary() -> Schema:
    ranks = or_null(listed(INTEGER))
    return closed({
        "full_runs": COUNT, "start_loss": NUMBER, "full_loss": NUMBER,
        "spectral": closed({**numbers("energy_rank_0.9", "stable_rank"), "null": closed(numbers("energy_rank_0.9"))}),
        "denoised": closed(numbers("gavish_donoho", "marchenko_pastur", "shared_rank")),
        "functional": closed(dict.fromkeys(("k90", "k95", "k99"), ranks)),
        "functional_threshold": closed({"k90": ranks}), "trained": by_name(by_name(of(Reach))),
        "parameters_at_90": listed(of(OnAxis)), "diverged": listed(TEXT),
    })  # fmt: skip


def _measures() -> dict[str, Schema]:
    keys = ("stable_rank", "effective_rank", "participation_ratio", *RANKS)
    return {**numbers(*keys), "null": closed({}, numbers(*keys)), "of_null": closed({}, numbers(*keys))}


def _by_type() -> Schema:
    noise = numbers("gavish_donoho", "marchenko_pastur", "shared_rank", "shared_energy_rank", "signal_share", "cosine",
                    "cosine_chance")  # fmt: skip
    return closed({"matrices": COUNT, **noise, **_measures()})


def _spectrum() -> Schema:
    return closed({**fields(MatrixSpectrum, ("measures", "null", "of_null")), **_measures()})


def _search() -> Schema:
    tried = closed({"d": COUNT, "gains": listed(NUMBER), "mean": NUMBER})
    return closed({
        "target": NUMBER, "low": INTEGER, "high": INTEGER, "interval": or_null(listed(INTEGER)), "tried": listed(tried),
        "folder": TEXT, "said": TEXT, "trained": COUNT, "found": COUNT,
    })  # fmt: skip


def activations() -> Record:
    spread = or_null(closed(numbers("mean", "q05", "q25", "q50", "q75", "q95")))
    run = closed({
        "method": TEXT, "modules": COUNT, "skipped": COUNT, **numbers(*(f"median_{key}" for key in SUMMARISED))
    })  # fmt: skip
    summary = closed({
        "runs": by_name(run), "last_layer_cka": by_name(NUMBER), "sample": TEXT,
        **dict.fromkeys(("samples", "texts", "width", "tokens"), COUNT),
    })  # fmt: skip
    module = closed(fields(ModuleResponse) | dict.fromkeys(("share", "share_of_output", "cosine"), spread))
    similarity = closed({"a": TEXT, "b": TEXT, "layer": COUNT, **fields(Cka)})
    return {"source": TEXT, "summary": summary, "modules": listed(module), "cka": listed(similarity)}, {}


def trajectory() -> Record:
    summary = closed({
        **dict.fromkeys(("modules", "checkpoints", "first_step", "last_step", "modules_settled"), COUNT),
        **numbers("median_stable_rank", "median_null_stable_rank", "median_energy_rank_0.95", "median_settled_step"),
        "best_step": INTEGER, "lowest_logged_step": INTEGER,
    })  # fmt: skip
    point = closed({**fields(Point, ("energy_rank",)), "energy_rank_0.95": RANK})
    checkpoint = closed(fields(CheckpointRow) | {"medians": by_name(NUMBER), "score": or_null(by_name(NUMBER))})
    module = closed(fields(ModuleTrajectory) | {"points": listed(point)})
    return (
        {"base": TEXT_OR_NULL, "unit": TEXT, "scored_on": TEXT_OR_NULL, "summary": summary,
         "checkpoints": listed(checkpoint), "losses": listed(of(Loss)), "modules": listed(module),
         "notes": listed(TEXT)},
        {},
    )  # fmt: skip
