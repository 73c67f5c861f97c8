"""Schemas of the analyses that read weights alone: analyze, delta, intruders, resize."""

from lorascope.analyses.against_base import IN_SPECTRUM, ModuleAgainstBase
from lorascope.analyses.delta.matrix import ENERGY_RANKS, MatrixDelta, VectorDelta, ratio_of
from lorascope.analyses.delta.result import Input
from lorascope.analyses.intruders.module import ModuleIntruders
from lorascope.analyses.intruders.result import CacheUse, Intervention
from lorascope.analyses.json_schema.parts import (
    COUNT,
    FINDING,
    NUMBER,
    OBJECT,
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
from lorascope.analyses.resize.measure import ResizedModule
from lorascope.analyses.spectrum.module import AgainstBase, ModuleSpectrum
from lorascope.weights.adapter import Source

SIDES = ("left", "right")
SOURCE = {**fields(Source, ("digest", "files")), "sha256": TEXT_OR_NULL}  # as its `record` has it
Record = tuple[dict[str, Schema], dict[str, Schema]]  # the keys that a record always has, and those that it may have


def analyze() -> Record:
    ranks = {f"energy_rank_{share}": RANK for share in (0.9, 0.95, 0.99)}
    against = closed(fields(AgainstBase), fields(ModuleAgainstBase, IN_SPECTRUM))
    module = closed({
        **fields(ModuleSpectrum, ("energy_ranks",)), **ranks, "energy_share": NUMBER, "against_base": or_null(against),
    })  # fmt: skip
    summary = closed({
        "modules": COUNT, **numbers("frobenius_norm", "median_stable_rank", "median_effective_rank",
                                    "median_rank_utilisation"),
        "uniform_rank_0.95": RANK, "uniform_rank_0.99": RANK,
    })  # fmt: skip
    measured = closed({"summary": OBJECT, "modules": listed(OBJECT), "findings": listed(FINDING)})
    medians = closed({
        "modules": COUNT, **numbers("ratio", "top_ratio", "amplification", "amplification_random", "z")
    })  # fmt: skip
    compared = closed({"value": NUMBER, "median": NUMBER, "n": COUNT, "z": NUMBER})
    like = closed({
        "adapters": listed(TEXT), "types": by_name(by_name(compared)), "features": by_name(TEXT), "source": TEXT,
    })  # fmt: skip
    return (
        {"source": closed({**SOURCE, "settings": OBJECT, "training": OBJECT}), "base": TEXT_OR_NULL,
         "summary": summary, "modules": listed(module), "notes": listed(TEXT), "method_specific": by_name(measured)},
        {"against_base": closed({"summary": medians, "findings": listed(FINDING)}), "like": like},
    )  # fmt: skip


def delta() -> Record:
    checkpoint = closed({"path": TEXT, "sha256": TEXT_OR_NULL})
    ranks = dict.fromkeys(ENERGY_RANKS, RANK) | {ratio_of(key): NUMBER for key in ENERGY_RANKS}
    matrix = closed(
        {**fields(MatrixDelta, ("energy_ranks", "energy_ranks_of_null")), "energy_share": NUMBER}, ranks
    )  # fmt: skip
    summary = closed({
        **dict.fromkeys(("matrices", "changed", "vectors", "skipped"), COUNT),
        **numbers("frobenius_norm", "relative_norm", "median_relative_norm", "median_stable_rank"),
        **{f"median_{key}": NUMBER for key in (*ENERGY_RANKS, *map(ratio_of, ENERGY_RANKS))},
        "median_rank": by_name(NUMBER), "best": by_name(NUMBER), "captured": by_name(_captured()),
    })  # fmt: skip
    return (
        {"base": checkpoint, "tuned": checkpoint, "adapters": listed(of(Input)), "top": RANK, "summary": summary,
         "matrices": listed(matrix), "vectors": listed(closed(fields(VectorDelta))),
         "extracted": or_null(closed({"rank": COUNT}))},
        {},
    )  # fmt: skip


def _captured() -> Schema:
    """Of an adapter that adapts no changed matrix, the number 0 alone."""
    more = numbers("energy_share", "frobenius_norm", "left", "right", "both", "best", "cosine", "cosine_chance",
                   "residual")  # fmt: skip
    return closed({"matrices": COUNT}, {**more, "chance": by_name(NUMBER)})


def intruders() -> Record:
    counts, shares = closed(dict.fromkeys(SIDES, COUNT)), closed(numbers(*SIDES))
    module = closed({
        **fields(ModuleIntruders), "intruders": counts, "lowest_cosine": NUMBER, "intruder_energy_share": NUMBER,
    })  # fmt: skip
    summary = closed({
        "modules": COUNT, "changed": COUNT, "slots": COUNT, "intruders": counts, "modules_with_intruders": counts,
        "energy_share": shares, "median_spike_margin": NUMBER, "median_chance": shares,
        "agreement": closed(dict.fromkeys(("both", "expected_only", "found_only", "neither"), COUNT)),
    })  # fmt: skip
    grid = listed(listed(COUNT))
    known = fields(Intervention) | {
        "modules": listed(closed({"name": TEXT, "intruders": listed(COUNT), "neighbours": listed(COUNT)})),
        "points": listed(closed({"arm": TEXT, "lambda": NUMBER, **numbers("loss", "norm")},
                                numbers("accuracy", "retained_loss"))),
        "texts": by_name(COUNT),
    }  # fmt: skip
    return (
        {"base": closed({"path": TEXT}),
         "tuned": closed({"path": TEXT}, {"sha256": TEXT_OR_NULL, "method": TEXT, "notes": listed(TEXT)}),
         "k": COUNT, "epsilon": {"type": "number"}, "summary": summary,
         "counts": closed({"epsilon": listed(NUMBER), "k": listed(COUNT), "left": grid, "right": grid}),
         "modules": listed(module), "intervention": or_null(closed(known)), "cache": or_null(closed(fields(CacheUse)))},
        {},
    )  # fmt: skip


def resize() -> Record:
    resized = closed({**fields(ResizedModule), "parameters": COUNT, "error_total": NUMBER})
    plan = closed({
        "plan": TEXT, "counts": TEXT, "parameters": COUNT,
        "rank": closed({"min": RANK, "median": NUMBER, "max": RANK}),
        **numbers("error", "error_null", "rounding", "worst_error"), "worst_module": TEXT_OR_NULL,
        "uniform": closed({"rank": RANK, "error": NUMBER}), "dropped": COUNT, "score": or_null(by_name(NUMBER)),
        "share_of_gain": NUMBER,
    })  # fmt: skip
    summary = closed({
        "modules": COUNT, "parameters_before": COUNT, "plans": listed(plan), "scores": by_name(by_name(NUMBER)),
        "scored_on": TEXT_OR_NULL, "skipped": COUNT,
    })  # fmt: skip
    return (
        {"source": closed(SOURCE), "kind": TEXT, "dtype": TEXT_OR_NULL, "summary": summary,
         "plans": listed(closed({"plan": TEXT, "modules": listed(resized)}))},
        {},
    )  # fmt: skip
