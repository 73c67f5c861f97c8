"""A pair in a few numbers, and the false discovery rate over its modules."""

from collections.abc import Sequence

import numpy as np

from lorascope.analyses.compare.matrices import Matrices
from lorascope.analyses.compare.relation import of_pair
from lorascope.analyses.toolkit import Row, median
from lorascope.linalg.haar import false_discovery

SIDES = ("left", "right", "a_alone")
RATE = 0.05  # of false discoveries among the modules called significant


def rates(records: Sequence[Row]) -> list[Row]:
    """The records with a q for every p: of the cosine, and of each side; the modules of a pair are one family."""
    made = [dict(record) for record in records]
    for row, q in zip(made, false_discovery([row["cosine_p"] for row in made]), strict=True):
        row["cosine_q"] = q
    for side in SIDES:
        for row, q in zip(made, false_discovery([row[side]["p"] if row[side] else None for row in made]), strict=True):
            if row[side]:
                row[side] = row[side] | {"q": q}
    return made


def summary_of(records: Sequence[Row], matrices: Matrices, i: int, j: int) -> Row:
    """Of a pair whose modules were recorded."""
    shared = [row for row in records if row["initialisation"] and row["initialisation"]["shared"]]
    return {
        **summary_of_matrices(matrices, i, j),
        "modules": len(records),
        "relation": of_pair(records),
        "median_cosine": median([row["cosine"] for row in records]),
        "cosine_significant": _significant([row["cosine_q"] for row in records]),
        **{side: _side(records, side, matrices, i, j) for side in SIDES},
        "shared_initialisation": {
            "modules": len(shared),
            "of": sum(row["initialisation"] is not None for row in records),
            "median_row_cosine": median([(row["initialisation"] or {}).get("row_cosine") for row in records]),
        },
    }


def _side(records: Sequence[Row], side: str, matrices: Matrices, i: int, j: int) -> Row:
    rows = [row[side] for row in records if row[side]]
    with_z = [row for row in rows if row["z"] is not None]
    pooled = None
    if with_z:  # Σ(X − E X)/√ΣVar, in units of φ: chance has it 0 ± 1 if the modules are independent
        scale = [min(row["dims"]) for row in with_z]
        excess = sum((row["phi_whole"] - row["phi_chance"]) * k for row, k in zip(with_z, scale, strict=True))
        pooled = excess / float(np.sqrt(sum((row["phi_sd"] * k) ** 2 for row, k in zip(with_z, scale, strict=True))))
    keys = ("phi_whole", "phi_chance", "effect", "z", "projection_distance", "projection_distance_chance")
    made = {f"median_{key.removesuffix('_whole')}": median([row[key] for row in rows]) for key in keys}
    made |= {"pooled_z": pooled, "significant": _significant([row["q"] for row in rows]), "of": len(with_z)}
    for key in ("energy_overlap", "energy_of_a_in_b", "energy_of_b_in_a"):
        if side != "a_alone":
            values = [row[key] for row in rows]
            made[f"median_{key}"] = median([value["value"] for value in values])
            made[f"median_{key}_chance"] = median([value["chance"] for value in values])
    return made | {
        "median_top_phi": median([row["top"]["phi"] for row in rows]),
        "median_top_phi_chance": median([row["top"]["phi_chance"] for row in rows]),
    }


def summary_of_matrices(matrices: Matrices, i: int, j: int) -> Row:
    """Of a pair of which there are matrices alone."""

    def number(key: str) -> float | None:
        value = float(getattr(matrices, key)[i, j])
        return value if np.isfinite(value) else None

    made: Row = {"modules": int(matrices.modules[i, j]), "cosine": number("cosine")}
    for side in ("left", "right"):
        made[side] = {
            "mean_phi": number(side),
            "mean_phi_chance": number(f"{side}_chance"),
            "effect": number(f"{side}_effect"),
            "pooled_z": number(f"{side}_z"),
        }
    share = number("shared")
    return made | {
        "shared_initialisation": {"share_of_modules": share, "mean_row_cosine": number("row_cosine")},
    }


def _significant(q: Sequence[float | None]) -> int:
    return sum(value is not None and value <= RATE for value in q)
