"""What one module's two updates are to each other: one update, a rescaled or truncated one, or two updates."""

from collections.abc import Sequence
from typing import Any

IDENTICAL = 0.9999  # cosine from which on two updates are one
PART = (
    2e-3  # |cos − ‖b‖/‖a‖| of an orthogonal part; storing the factors of a truncation in bf16 moves it by half of that
)
EQUAL = 1e-3  # relative difference of norms, as large as rounding to float16 makes it
INSIDE = 0.99  # φ of a part's column space with that of the update
NEARLY_ALL = 0.9  # of the modules, for a sentence about the adapters


def relation(cosine: float | None, norms: Sequence[float], ranks: Sequence[int], left: Any) -> dict[str, Any] | None:
    """What one module's updates are to each other beyond being similar; None where they are two updates.

    b is an orthogonal part of a where ⟨a, b⟩ = ‖b‖², that is cos = ‖b‖/‖a‖ at a lower rank and inside a's column space:
    a truncation is, and two trained updates meet this by chance with a probability of order `PART`.
    """
    if cosine is None or not all(norms):
        return None
    ratio = norms[1] / norms[0]
    if cosine >= IDENTICAL:
        return {"kind": "same" if abs(ratio - 1) <= EQUAL else "rescaled", "kept": 1.0, "norm_ratio": ratio}
    small, large = (1, 0) if norms[1] < norms[0] else (0, 1)
    share = norms[small] / norms[large]
    inside = left is not None and left["phi_whole"] >= INSIDE
    if ranks[small] >= ranks[large] or not inside or abs(cosine - share) > PART:
        return None
    return {"kind": "truncated", "kept": share**2, "norm_ratio": ratio}


def of_pair(rows: Sequence[Any]) -> dict[str, Any] | None:
    """The relation of nearly all modules of a pair, with the energy kept over all; None where there is none."""
    related = [row for row in rows if row["relation"]]
    live = [row for row in rows if all(row["frobenius_norm"])]
    if not live or len(related) < NEARLY_ALL * len(live):
        return None
    kinds = {row["relation"]["kind"] for row in related}
    kind = "truncated" if "truncated" in kinds else "rescaled" if "rescaled" in kinds else "same"
    a, b = (sum(row["frobenius_norm"][k] ** 2 for row in related) for k in (0, 1))
    kept = min(a, b) / max(a, b) if kind == "truncated" else 1.0
    ranks = [max(row["rank"][k] for row in related) for k in (0, 1)]
    return {"kind": kind, "kept": kept, "norm_ratio": (b / a) ** 0.5, "rank": ranks}
