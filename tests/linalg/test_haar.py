"""The chance levels against simulation, and against the closed forms that hold exactly."""

import numpy as np
import pytest
from scipy import integrate, special, stats

from lorascope.linalg import haar

DRAWS = 20_000


def random_bases(rng: np.random.Generator, n: int, i: int) -> np.ndarray:
    """(DRAWS, n, i) Haar: QR alone fixes the signs of the diagonal, which biases single entries."""
    q, r = np.linalg.qr(rng.standard_normal((DRAWS, n, i)))
    return q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]


def agrees(sample: np.ndarray, mean: float, sd: float) -> None:
    """Mean and deviation within 4 standard errors; the deviation's own is taken from the sample's fourth moment."""
    error = sample.std() / np.sqrt(len(sample))
    assert abs(sample.mean() - mean) < 4 * error
    spread = (sample - sample.mean()) ** 2
    assert abs(spread.mean() - sd**2) < 4 * spread.std() / np.sqrt(len(sample))


@pytest.mark.parametrize(("n", "i", "j"), [(24, 1, 3), (24, 3, 5), (12, 8, 7), (9, 4, 4)])
def test_overlap_of_random_subspaces(rng, n, i, j):
    """8 and 7 in R^12 meet in 3 dimensions at least: the range does not begin at 0."""
    sample = np.sum(random_bases(rng, n, i)[:, :j, :] ** 2, axis=(1, 2))
    chance = haar.overlap(n, i, j)
    agrees(sample, chance.mean, chance.sd)
    assert chance.low == max(0, i + j - n) <= sample.min() + 1e-12
    for quantile in (0.5, 0.95, 0.99):
        share = 1 - quantile
        # 4 standard errors of the sample's own quantile, and 10 % of p for the Beta law, exact for i = 1 only
        slack = 4 * np.sqrt(share * quantile / DRAWS) + (0.1 * share if min(i, j) > 1 else 0)
        assert chance.p(float(np.quantile(sample, quantile))) == pytest.approx(share, abs=slack)


def test_one_direction_is_beta_exactly():
    """papers.md §5: X ~ Beta(j/2, (n − j)/2) for i = 1, down to tails that no simulation reaches."""
    for n, j in ((128, 8), (768, 64)):
        for x in (0.01, 0.3, 0.7):
            assert haar.overlap(n, 1, j).p(x) == pytest.approx(stats.beta(j / 2, (n - j) / 2).sf(x), rel=1e-9, abs=0)


def test_a_scaled_law_gives_scaled_values_the_same_places():
    """Of an overlap whose range is 3 … 7, so that both ends count."""
    chance = haar.overlap(12, 8, 7)
    half = chance.scaled(0.5)
    assert (half.low, half.high) == (1.5, 3.5)
    for x in (3.2, 4.0, 5.0, 6.5):
        assert half.z(x / 2) == pytest.approx(chance.z(x), rel=1e-12)
        assert half.p(x / 2) == pytest.approx(chance.p(x), rel=1e-12)


def test_published_levels_of_phi():
    """Mean and mean + 4 sd as papers.md §5 has them."""
    for n, i, j, mean, high in ((128, 4, 16, 0.125, 0.206), (128, 8, 64, 0.5, 0.585), (768, 8, 64, 0.083, 0.103)):
        chance = haar.phi(n, i, j)
        assert chance.mean == pytest.approx(mean, abs=5e-4)
        assert chance.mean + 4 * chance.sd == pytest.approx(high, abs=5e-4)


def test_a_whole_overlap_has_no_chance_beside_it_and_a_full_space_no_alternative():
    assert haar.overlap(100, 8, 8).p(8.0) == 0.0
    full = haar.overlap(10, 10, 3)
    assert full.z(3.0) is None
    assert full.p(3.0) is None


@pytest.mark.parametrize("n", [16, 4])
def test_overlap_weighted_by_energy(rng, n):
    """In R^4 the ranks 3 and 2 must meet: the least value is not 0."""
    a, b = np.array([4.0, 1.0, 0.3]), np.array([2.0, 1.0])
    sample = np.einsum("dki,i,k->d", random_bases(rng, n, 3)[:, :2, :] ** 2, a, b)
    chance = haar.weighted(n, a, b)
    agrees(sample, chance.mean, chance.sd)
    assert chance.low - 1e-12 <= sample.min()
    assert sample.max() <= chance.high + 1e-12
    assert (chance.low > 0) == (n == 4)
    assert chance.p(float(np.quantile(sample, 0.95))) == pytest.approx(0.05, abs=0.015)  # the Beta law is approximate


def test_projections_are_the_special_case_of_equal_weights():
    one, other = haar.overlap(30, 4, 7), haar.weighted(30, np.ones(4), np.ones(7))
    assert (one.mean, one.sd, one.high) == pytest.approx((other.mean, other.sd, other.high), rel=1e-12)


@pytest.mark.parametrize(
    ("s", "t"), [([1.0], [1.0]), ([3.0, 1.0], [2.0, 1.0, 0.5]), ([1.0] * 6, [1.0] * 6)], ids=["1×1", "2×3", "6×6"]
)
def test_the_cosine_of_randomly_turned_updates(rng, s, t):
    s, t, m, n = np.array(s), np.array(t), 120, 150
    left, right = (random_bases(rng, size, len(s))[:, : len(t), :] for size in (m, n))
    sample = np.einsum("dqp,dqp,p,q->d", left, right, s, t) / np.linalg.norm(s) / np.linalg.norm(t)
    agrees(sample, 0.0, haar.cosine_sd(m, n))
    for share in (0.2, 0.05, 0.01):
        p = haar.cosine_p(float(np.quantile(np.abs(sample), 1 - share)), m, n, s, t)
        slack = 4 * np.sqrt(share * (1 - share) / DRAWS)
        assert p == pytest.approx(share, abs=slack + 0.15 * share)  # the limit of large m and n, at m = 120


def test_the_cosine_where_the_right_sides_are_one(rng):
    """The left side alone is turned, and the right overlap is what it is."""
    s, t, m = np.array([3.0, 1.0]), np.array([2.0, 1.0, 0.5]), 40
    right = np.linalg.qr(rng.standard_normal((60, 3)))[0][:, :2].T @ np.linalg.qr(rng.standard_normal((60, 3)))[0]
    right[:, 0] += 0.8
    left = random_bases(rng, m, 2)[:, :3, :].swapaxes(1, 2)
    sample = np.einsum("dpq,pq,p,q->d", left, right, s, t) / np.linalg.norm(s) / np.linalg.norm(t)
    agrees(sample, 0.0, haar.cosine_sd_given_right(m, right, s, t))


def test_the_tail_of_rank_one_is_that_of_a_product_of_gaussians():
    """P(|gh| ≥ x) = (2/π) ∫ₓ K₀, heavier than a Gaussian's: at x = 8 by six orders of magnitude."""
    for x in (1.0, 3.0, 8.0):
        exact = 2 / np.pi * integrate.quad(special.k0, x, np.inf)[0]
        p = haar.cosine_p(x / 1000, 1000, 1000, np.ones(1), np.ones(1))
        assert p == pytest.approx(exact, rel=0.07)  # the saddlepoint formula's own relative error
    assert p > 1e3 * 2 * stats.norm.sf(8.0)


def test_false_discovery_as_scipy_has_it(rng):
    p = rng.uniform(size=40) ** 3
    q = haar.false_discovery([*p, None])
    np.testing.assert_allclose(q[:-1], stats.false_discovery_control(p), rtol=1e-12)
    assert q[-1] is None


def test_the_smallest_angle_of_large_random_subspaces():
    """Wachter's edge at n = 768 as papers.md §5 has it: cos² 0.041 for (8, 8) and 0.306 for (64, 64)."""
    assert np.cos(haar.smallest_angle(768, 8, 8)) ** 2 == pytest.approx(0.041, abs=5e-4)
    assert np.cos(haar.smallest_angle(768, 64, 64)) ** 2 == pytest.approx(0.306, abs=5e-4)
    assert haar.smallest_angle(10, 6, 6) == 0.0
    x, y = np.arcsin(np.sqrt(0.2)), np.arcsin(np.sqrt(0.3))  # √a √(1 − b) + √b √(1 − a) = sin(x + y)
    assert np.cos(haar.smallest_angle(10, 2, 3)) == pytest.approx(np.sin(x + y), rel=1e-14)


def test_a_law_by_its_numbers():
    chance = haar.Chance(2.0, 0.5, 1.0, 3.0)
    assert chance.z(3.0) == 2
    assert chance.z(1.5) == -1
    uniform = haar.Chance(2.0, 3**-0.5, 1.0, 3.0)
    assert [uniform.p(x) for x in (0.0, 1.0, 1.5, 3.0, 4.0)] == pytest.approx([1, 1, 0.75, 0, 0], abs=1e-12)
    assert haar.Chance(2.0, 2.5e-12, 1.0, 3.0).z(2.0) is None  # a deviation that is rounding
    assert haar.Chance(2.0, 3.5e-12, 1.0, 3.0).z(2.0) == 0
    assert haar.Chance(0.0, 0.0, 0.0, 0.0).z(0.0) is None


def test_the_smallest_spaces():
    """In R^1 everything meets; in R^2 cos² of two lines is the arcsine law, of variance 1/8."""
    assert haar.moments(1, 1, 1) == (1, 0)
    assert haar.moments(2, 1, 1) == (0.5, 0.125)
    each = haar.moments(3, np.array([1, 2]), np.array([2, 2]))
    assert np.array(each) == pytest.approx(np.array([[2 / 3, 4 / 3], [4 / 45, 4 / 45]]), rel=1e-15)
    assert haar.weighted(1, np.array([2.0]), np.array([3.0])) == haar.Chance(6.0, 0.0, 6.0, 6.0)
    assert haar.phi(9, 2, 4).high == 1


def test_the_range_of_a_weighted_overlap():
    """Eigenvalues in opposite order give the least, in the same order the most; past n they must meet."""
    a, b = np.array([1.0, 4.0]), np.array([3.0, 2.0])
    for n, low in ((2, 11.0), (3, 2.0), (4, 0.0)):
        chance = haar.weighted(n, a, b)
        assert (chance.mean, chance.low, chance.high) == (pytest.approx(25 / n, rel=1e-15), low, 14.0)
        deviation = np.sqrt(2 * (17 - 25 / n) * (13 - 25 / n) / ((n - 1) * (n + 2)))
        assert chance.sd == pytest.approx(deviation, rel=1e-13)
        assert haar.weighted(n, a * 1e-3, b).sd == pytest.approx(deviation * 1e-3, rel=1e-13, abs=0)
    for n in range(2, 12):  # all directions alike: nothing is left to chance, and rounding makes no variance
        assert haar.weighted(n, np.full(n, 0.1), b).sd == pytest.approx(0, abs=1e-8)


def test_the_middle_of_the_cosines_law():
    """Of many equal singular values the cosine is Gaussian, below the formula's first point and above it."""
    equal = np.ones(300)
    for x in (0.0, 0.02, 0.0499, 0.0501, 0.3, 1.0, 2.0):
        p = haar.cosine_p(-x / 20, 40, 10, equal, equal)
        assert p == pytest.approx(2 * stats.norm.sf(x), rel=2e-4)  # 1 − √(2/π)x is good to x³/(3√(2π))


def test_the_largest_cosine_by_closed_forms():
    """In R^3 |cos| with a line is uniform, and cos² with a plane is x with probability 1 − √(1 − x)."""
    assert haar.largest_cosine(3, {1: 2, 3: 1}) == 1  # with the whole space
    assert haar.largest_cosine(3, {1: 1}) == pytest.approx(0.5, rel=1e-12)
    assert haar.largest_cosine(3, {1: 1}, 0.9) == pytest.approx(0.9, rel=1e-12)
    assert haar.largest_cosine(3, {1: 3}) == pytest.approx(0.5 ** (1 / 3), rel=1e-12)
    assert haar.largest_cosine(3, {2: 1}) == pytest.approx(np.sqrt(0.75), rel=1e-12)
    assert haar.largest_cosine(4, {1: 2, 4: 1}) == 1
    assert haar.largest_cosine(4, {4: 1}) == 1
    wide = stats.beta(1000, 1048).ppf(0.5)  # its distribution function underflows where the search begins
    assert haar.largest_cosine(4096, {2000: 1}) == pytest.approx(np.sqrt(wide), rel=1e-9)
