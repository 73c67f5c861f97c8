"""A sweep trains what it needs to choose: near neighbours of the best rate, two seeds each, two finalists whole."""

import math

import pytest

from lorascope.study import tuning

STATED = (1e-3, 3.2e-3, 1e-2)


def swept(loss, stated=STATED, replicates=5):
    """The sweep's losses, by a function of rate and replicate, and its finalists."""
    losses: dict = {}
    while runs := tuning.needed(losses, stated, replicates):
        assert not [run for run in runs if run[1] in losses.get(run[0], {})]  # none is trained twice
        for rate, n in runs:
            losses.setdefault(rate, {})[n] = loss(rate, n)
    return losses, tuning.finalists(losses, replicates)[0]


@pytest.mark.parametrize("lowest", [1e-4, 1e-3, 1.8e-3, 3e-3, 3e-2])
def test_the_best_has_near_neighbours_with_two_seeds_on_both_sides(lowest):
    losses, best = swept(lambda rate, n: math.log(rate / lowest) ** 2 + 0.1 * n)
    rates = sorted(losses)
    place = rates.index(best[0])
    for neighbour in (rates[place - 1], rates[place + 1]):
        assert max(neighbour / best[0], best[0] / neighbour) <= 1.8
        assert len(losses[neighbour]) >= 2
    assert best[0] == min(rates, key=lambda rate: abs(math.log(rate / lowest)))
    assert {rate for rate, of_rate in losses.items() if len(of_rate) == 5} >= set(best)


def test_a_rate_at_which_any_replicate_diverges_is_out():
    losses, best = swept(lambda rate, n: None if rate > 4e-3 and n == 3 else -rate)
    assert max(losses) > 4e-3
    assert max(best) < 4e-3
    assert swept(lambda rate, n: None) == ({rate: {0: None} for rate in STATED}, ())


def test_a_sweep_goes_on_by_its_own_step_and_ends():
    losses, best = swept(lambda rate, n: -rate, replicates=2)
    assert max(losses) == best[0] == pytest.approx(1e-2 * 10**1.5, rel=0.02)  # three half-decades beyond
    losses, _ = swept(lambda rate, n: rate, (1e-3, 4e-3), 2)
    assert min(losses) == pytest.approx(1e-3 / 4**3, rel=0.02)
    losses, _ = swept(lambda rate, n: None if rate > 5e-3 else -rate, (1e-3, 4e-3), 2)
    assert [rate for rate in losses if rate > 4e-3] == [1.6e-2, 8e-3, 5.66e-3]  # beyond what diverged there is nothing


def test_the_least_number_of_runs():
    losses, _ = swept(lambda rate, n: math.log(rate / 3.2e-3) ** 2)
    assert sum(map(len, losses.values())) == tuning.least_runs(STATED, 5)
    assert tuning.least_runs((1e-3,), 5) == tuning.least_runs((), 5) == 5
