"""Do adapters of one group (a task, a rank) agree more than adapters of two, with adapters as the sampling unit?

Layers of one model are correlated, and a pair shares an adapter with many other pairs: neither is a sample. Here the
adapters, runs of different seeds, are drawn with replacement within each group; a pair counts as often as both its
members were drawn, and an adapter is never paired with itself. The difference is tested by permuting the labels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lorascope.analyses.compare.matrices import Matrices

MEASURES = ("cosine", "left_effect", "right_effect")
DRAWS = 2000
FEW = 5  # adapters in a group, below which the interval is too narrow
_SEED = 0


def contrast(matrices: Matrices, labels: Sequence[str]) -> dict[str, Any]:
    """Mean agreement within and between groups with 95 % intervals over adapters, and their difference.

    Args:
        labels: the group of each adapter.

    Returns:
        groups: indices by label. measures: by name `within`, `between` and `difference`, each with mean, low and high
        (None where there is no such pair, or too few adapters to draw from), and of the difference the p of permuted
        labels, two-sided.
    """
    names = list(dict.fromkeys(labels))
    group = np.array([names.index(label) for label in labels])
    rng = np.random.default_rng(_SEED)
    weights = np.zeros((DRAWS, len(group)))
    for number in range(len(names)):
        members = np.flatnonzero(group == number)
        weights[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), DRAWS)
    permuted = [rng.permutation(group) for _ in range(DRAWS)]
    return {
        "groups": {name: np.flatnonzero(group == number).tolist() for number, name in enumerate(names)},
        "draws": DRAWS,
        "measures": {key: _measure(getattr(matrices, key), group, weights, permuted) for key in MEASURES},
    }


def _measure(matrix: np.ndarray, group: np.ndarray, weights: np.ndarray, permuted: list[np.ndarray]) -> dict[str, Any]:
    pairs = np.isfinite(matrix) & ~np.eye(len(matrix), dtype=bool)
    values = np.where(pairs, matrix, 0.0)
    one = np.ones((1, len(group)))

    def means(drawn: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        same = labels[:, None] == labels[None, :]
        return _weighted(drawn, values, pairs & same), _weighted(drawn, values, pairs & ~same)

    (inside, across), (drawn_inside, drawn_across) = means(one, group), means(weights, group)
    difference = float(inside[0] - across[0])
    intervals = {
        "within": _interval(inside[0], drawn_inside),
        "between": _interval(across[0], drawn_across),
        "difference": _interval(difference, drawn_inside - drawn_across),
    }
    p = None
    if np.isfinite(difference):
        shuffled = np.array([float(np.subtract(*means(one, labels))[0]) for labels in permuted])
        p = (1 + int(np.sum(np.abs(shuffled) >= abs(difference) - 1e-12))) / (1 + len(permuted))
    return intervals | {"p": p}


def _weighted(weights: np.ndarray, values: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(draws,) mean of the values of these pairs, each weighted by both members' weights; NaN where there is none."""
    total = np.sum((weights @ (values * pairs)) * weights, axis=1)
    count = np.sum((weights @ pairs.astype(float)) * weights, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return total / count


def _interval(mean: float, drawn: np.ndarray) -> dict[str, float | None]:
    """The mean with the 2.5 and 97.5 % points of its draws; draws without a pair do not count."""
    if not np.isfinite(mean):
        return {"mean": None, "low": None, "high": None}
    finite = drawn[np.isfinite(drawn)]
    if not len(finite) or np.ptp(finite) == 0:
        return {"mean": float(mean), "low": None, "high": None}
    low, high = np.quantile(finite, (0.025, 0.975))
    return {"mean": float(mean), "low": float(low), "high": float(high)}
