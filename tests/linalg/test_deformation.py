"""Where a planted spike comes out, against closed forms and against dense SVDs of planted matrices."""

import math

import numpy as np
import pytest

from lorascope.linalg import deformation
from lorascope.linalg.deformation import levels_of, outlier, thresholds, transform


def planted(rng: np.random.Generator, sigma, shape, theta, draws=4):
    """Mean singular value and cos² of the vector that holds the spike, over random directions of spike and matrix."""
    m, n = shape
    values, left, right = [], [], []
    for _ in range(draws):
        u, v = (one / np.linalg.norm(one) for one in (rng.standard_normal(m), rng.standard_normal(n)))
        matrix = np.zeros(shape)
        np.fill_diagonal(matrix, sigma)  # the spike's direction is random: W's need not be
        a, s, bh = np.linalg.svd(matrix + theta * np.outer(u, v), full_matrices=False)
        at = int(np.argmax(np.abs(a.T @ u) * np.abs(bh @ v)))
        values.append(s[at]), left.append((a[:, at] @ u) ** 2), right.append((bh[at] @ v) ** 2)
    return np.mean(values), np.mean(left), np.mean(right)


@pytest.mark.parametrize(("theta", "expected"), [(12.0, 12.15), (20.0, 20.07)])
def test_the_reference_power_law(rng, theta, expected):
    """σ_i = 10/√i, n = 512: figures computed once with a dense SVD, where the measured ones were 12.05 and 20.01."""
    sigma = 10 / np.sqrt(np.arange(1, 513))
    found = outlier(sigma, (512, 512), theta)
    assert found.value == pytest.approx(expected, abs=0.005)  # the digits given
    assert found.position == 1
    assert found.value == pytest.approx(
        planted(rng, sigma, (512, 512), theta)[0], rel=0.015
    )  # one draw moves by about 1 %


@pytest.mark.parametrize("shape", [(300, 300), (150, 300), (300, 150)])
@pytest.mark.parametrize("theta", [1.5, 2.5])
def test_an_iid_matrix_has_the_closed_form(rng, shape, theta):
    """Benaych-Georges and Nadakuditi 2012, §3.1: σ = √((1+θ²)(c+θ²))/θ, and cos² on both sides."""
    p, q = min(shape), max(shape)
    sigma = np.linalg.svd(rng.standard_normal(shape) / math.sqrt(q), compute_uv=False)
    found, c, t2 = outlier(sigma, shape, theta), p / q, theta**2
    # One draw's spectrum stands for the law: its traces fluctuate by about 1/p.
    assert found.value == pytest.approx(math.sqrt((1 + t2) * (c + t2)) / theta, rel=0.01)
    assert found.cos2_short == pytest.approx(1 - c * (1 + t2) / (t2 * (t2 + c)), abs=0.03)
    assert found.cos2_long == pytest.approx(1 - (c + t2) / (t2 * (t2 + 1)), abs=0.03)


def test_a_spike_above_the_bulk_solves_its_equation_in_a_few_steps(rng, monkeypatch):
    """D(ρ) = 1/θ² to the rounding of D, whose condition there is below 1e3; without a bracket that is halved to its end
    where the root is one of its ends."""
    steps, halves = [], deformation._halves
    monkeypatch.setattr(deformation, "_halves", lambda *given: steps.append(given) or halves(*given))
    for theta in np.geomspace(8, 1e6, 60):
        sigma = np.sort(rng.random(100))[::-1] * 5
        steps.clear()
        found = outlier(sigma, (100, 140), theta)
        assert found.position == 1
        assert len(steps) <= 10
        assert transform(sigma, (100, 140), found.value) * theta**2 == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("theta", [4.0, 5.0, 8.0])
def test_a_spike_inside_the_spectrum_has_its_place(rng, theta):
    sigma = 10 / np.sqrt(np.arange(1, 301))
    found = outlier(sigma, (300, 300), theta)
    value, *_ = planted(rng, sigma, (300, 300), theta)
    assert found.value == pytest.approx(value, rel=0.05)  # it shares with its neighbours in the spectrum
    assert found.position == 1 + int(np.sum(sigma > found.value))


def test_a_spike_at_the_threshold_stands_at_that_place():
    sigma = 10 / np.sqrt(np.arange(1, 301))
    for k in (1, 3, 10):
        at = thresholds(sigma, (300, 400), k)[-1]
        assert outlier(sigma, (300, 400), at * 1.01).position <= k
        assert outlier(sigma, (300, 400), at * 0.99).position > k
        assert at < sigma[k - 1]  # the bulk lifts a spike


def test_the_threshold_falls_with_k_and_scales_with_the_matrix(rng):
    sigma = np.sort(rng.random(200) + 0.1)[::-1] * 5  # with gaps of all sizes
    levels = thresholds(sigma, (200, 260), 100)
    assert np.all(np.diff(levels) <= 0)
    np.testing.assert_allclose(thresholds(3 * sigma, (200, 260), 100), 3 * levels)
    assert outlier(3 * sigma, (200, 260), 30.0).value == pytest.approx(3 * outlier(sigma, (200, 260), 10.0).value)


def test_a_falling_spectrum_has_the_same_thresholds_however_many_are_wanted(rng):
    """Its levels fall with it. Where they do not, one far down counts, if it is among those that are looked at:
    of uniform random values the first level moves by up to 20 % so."""
    sigma = np.sort(10 / np.sqrt(np.arange(1, 201)) * rng.uniform(0.99, 1.01, 200))[::-1]
    np.testing.assert_allclose(thresholds(sigma, (200, 260), 20), thresholds(sigma, (200, 260), 200)[:20], rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
@pytest.mark.parametrize("theta", [1e-6, 0.1, 3.0, 30.0, 1e6])
def test_every_size_of_matrix_and_spike_is_one(scale, theta):
    """Bisection starts from a bracket that has the matrix's size."""
    sigma = np.linspace(10, 1, 40)
    one, other = outlier(sigma, (40, 60), theta), outlier(sigma * scale, (40, 60), theta * scale)
    assert other.value == pytest.approx(one.value * scale, rel=1e-10, abs=0)
    assert other.position == one.position
    assert (other.cos2_short, other.cos2_long) == pytest.approx((one.cos2_short, one.cos2_long), rel=1e-6, abs=1e-12)


def test_a_spike_that_is_nothing_has_no_direction():
    found = outlier(np.linspace(10, 1, 40), (40, 60), 1e-200)
    assert (found.cos2_short, found.cos2_long) == (0, 0)
    assert found.position == 40


def test_levels_are_looked_at_one_by_one_and_then_coarsely():
    """The first 64, or as many as are wanted, and with the last of them 16 in equal ratios."""
    sigma = np.linspace(10, 1, 5000)
    for k, first in ((1, 64), (64, 64), (100, 100)):
        places, _ = levels_of(sigma, (5000, 5000), k)
        assert places[:first].tolist() == list(range(1, first + 1))
        assert places[first:].tolist() == np.geomspace(first, 5000, 16).astype(int)[1:].tolist()
    assert levels_of(sigma[:3], (3, 3))[0].tolist() == [1, 2, 3]


def test_ties_zeros_and_refusals():
    edge = np.array([1.0, 1.0 * (1 - 1e-12), 0.5])  # as near as a tie may be
    assert thresholds(edge, (3, 3), 2)[0] == thresholds(np.array([1.0, 1.0, 0.5]), (3, 3), 2)[0]
    tied = np.array([3.0, 3.0, 1.0, 1.0, 0.5, 0.0])
    levels = thresholds(tied, (6, 9), 6)
    assert levels[0] == levels[1] > levels[2] == levels[3] > levels[4] > levels[5] == 0
    assert outlier(np.zeros(4), (4, 4), 2.0).value == pytest.approx(2.0, rel=1e-6)  # W = 0: the spike itself
    with pytest.raises(ValueError, match="strength"):
        outlier(tied, (6, 9), 0.0)
    for k in (7, 0, -1):
        with pytest.raises(ValueError, match=f"number {k} of 6"):
            thresholds(tied, (6, 9), k)
