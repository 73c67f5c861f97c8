"""How often the intervals of few replicates contain the true value: less often than 95 %, and the page says so.

Simulated of means of normal values: of one stratum, whose resamples are enumerated, and of the difference of two with
equal variances. The table is what `simulated` gives; a test makes a part of it again.
"""

from collections.abc import Mapping

import numpy as np

from lorascope.linalg import bootstrap

TRIALS = 5_000  # a standard error of 0.003
SEED = 20261129
STEP = 500  # trials at once: their resamples are (5000, STEP) in memory
# By the number of strata, by that of replicates.
COVERAGE: Mapping[int, Mapping[int, float]] = {
    1: {2: 0.5098, 3: 0.7582, 4: 0.8788, 5: 0.9214, 6: 0.935, 7: 0.9414, 8: 0.9484, 9: 0.9426, 10: 0.9506},
    2: {2: 0.667, 3: 0.9, 4: 0.9386, 5: 0.9484, 6: 0.9476, 7: 0.9484, 8: 0.9528, 9: 0.9504, 10: 0.9524},
}


def coverage(replicates: int, strata: int) -> float:
    """The share of 95 % intervals that contain the true value, with so many replicates of each stratum.

    Args:
        strata: on how many the number depends; more than two count as two.

    Raises:
        ValueError: fewer than two replicates have no interval.
    """
    if replicates < 2:
        raise ValueError(f"{replicates} replicates have no interval, expected 2 or more")
    table = COVERAGE[min(strata, 2)]
    return table[min(replicates, max(table))]


def simulated(replicates: int, strata: int, trials: int = TRIALS) -> float:
    """`coverage`, simulated: of the mean of one stratum, or of the difference of the means of two."""
    rng = np.random.default_rng(SEED)
    units = {stratum: range(replicates) for stratum in range(strata)}
    if strata == 1:
        made = bootstrap.resamples_of_one(units, 0, bootstrap.DRAWN)
    else:
        made = bootstrap.resamples_of_all(units, bootstrap.DRAWN, 0)
    weights = np.stack([_weights(draws, replicates) for draws in made.draws])  # (resamples, values)
    inside = 0
    for start in range(0, trials, STEP):
        values = rng.standard_normal((strata, replicates, min(STEP, trials - start)))
        estimates = weights @ values.reshape(strata * replicates, -1)
        order = np.argsort(estimates, axis=0)
        parts = values.var(axis=1, ddof=1) / replicates  # (strata, trials)
        for trial, ordered in enumerate(np.take_along_axis(estimates, order, axis=0).T):
            df = bootstrap.freedom(dict(enumerate(parts[:, trial])), dict.fromkeys(units, replicates))
            tail = bootstrap.expanded_tail(replicates / (replicates - 1), df)
            low, high = bootstrap.ends(ordered, np.cumsum(made.weights[order[:, trial]]), tail)
            inside += low <= 0 <= high
    return inside / trials


def _weights(draws: bootstrap.Draws, replicates: int) -> np.ndarray:
    """What each value of a resample counts in the mean, or in the difference of the second's mean from the first's."""
    signs = (1, -1)[: len(draws)]
    counts = [np.bincount(draw, minlength=replicates) for draw in draws.values()]
    return np.concatenate([sign * count / replicates for sign, count in zip(signs, counts, strict=True)])
