"""Linear CKA against the dense n × n formula, permutations, and populations whose CKA is known."""

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import t as student_t

from lorascope.linalg.cka import Features, Sums, chance_sd, cka


def dense_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. 2012, eq. 5, with n × n matrices."""
    n = len(x)
    k, l = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    one = np.ones(n)
    whole = (
        np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ l @ one)
    )
    return whole / (n * (n - 3))


def dense_biased(x: np.ndarray, y: np.ndarray) -> float:
    h = np.eye(len(x)) - 1 / len(x)
    return float(np.trace(x @ x.T @ h @ y @ y.T @ h))


def pair(n: int, p: int, q: int, share: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features with `share` of their latent directions in common, and means that are not zero."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((n, min(p, q)))
    x = common @ rng.standard_normal((min(p, q), p)) * share + rng.standard_normal((n, p)) + 3
    y = common @ rng.standard_normal((min(p, q), q)) * share + rng.standard_normal((n, q)) - 1
    return x, y


@pytest.mark.parametrize(("n", "p", "q"), [(40, 7, 5), (12, 30, 20), (4, 3, 3)], ids=["tall", "wide", "least"])
def test_the_sums_give_the_dense_formula(n, p, q):
    """float64 on both sides; the dense route rounds relative to n² products, so 1e-10 of the largest term."""
    x, y = pair(n, p, q)
    scale = np.sqrt(dense_biased(x, x) * dense_biased(y, y)) / n**2
    assert Sums.of(x, y).hsic() == pytest.approx(dense_hsic(x, y), abs=1e-10 * scale)
    assert Sums.of(x, y).biased() == pytest.approx(dense_biased(x, y), rel=1e-10)
    found = cka(Features(x), Features(y))
    expected = dense_hsic(x, y) / np.sqrt(dense_hsic(x, x) * dense_hsic(y, y))
    assert found.value == pytest.approx(expected, rel=1e-8)
    biased = dense_biased(x, y) / np.sqrt(dense_biased(x, x) * dense_biased(y, y))
    assert found.biased == pytest.approx(biased, rel=1e-10)


def test_sums_are_streamed_and_taken_away_again():
    x, y = pair(60, 6, 4)
    whole = Sums.of(x, y)
    streamed = Sums.of(x[:20], y[:20]) + Sums.of(x[20:50], y[20:50]) + Sums.of(x[50:], y[50:])
    assert streamed.hsic() == pytest.approx(whole.hsic(), rel=1e-12)
    without = whole - Sums.of(x[20:50], y[20:50])
    rest = np.r_[0:20, 50:60]
    assert without.n == 30
    assert without.hsic() == pytest.approx(dense_hsic(x[rest], y[rest]), rel=1e-9)


def test_rotation_scale_and_shift_change_nothing_and_anything_else_does():
    x, _ = pair(80, 9, 9)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((9, 9)))[0]
    found = cka(Features(x), Features(-4 * x @ turn + 100))
    assert found.value == pytest.approx(1, abs=1e-10)
    assert found.biased == pytest.approx(1, abs=1e-10)
    stretched = x @ np.diag(np.geomspace(1, 30, 9))
    assert cka(Features(x), Features(stretched)).value < 0.95


def test_unrelated_features_are_near_zero_debiased_and_far_from_it_biased():
    """n = p: the biased estimator's chance is near one half, and is foretold exactly."""
    rng = np.random.default_rng(2)
    found = cka(Features(rng.standard_normal((100, 100))), Features(rng.standard_normal((100, 100))))
    assert abs(found.value) < 4 * found.chance_sd
    assert found.biased > 0.4
    assert found.biased == pytest.approx(found.biased_chance, abs=0.02)


def test_permuted_samples_have_the_closed_forms_mean_and_spread():
    """2000 permutations of skewed features: mean within 4 standard errors, standard deviation within 8 %."""
    rng = np.random.default_rng(3)
    x, y = rng.exponential(size=(25, 6)) ** 2, rng.standard_normal((25, 4))
    a = Features(x)
    found = [cka(a, Features(y[rng.permutation(25)])) for _ in range(2000)]
    values, biased = np.array([f.value for f in found]), np.array([f.biased for f in found])
    assert chance_sd(25) == found[0].chance_sd
    assert abs(values.mean()) < 4 * values.std() / 2000**0.5
    assert values.std() == pytest.approx(chance_sd(25), rel=0.08)  # 1/√(2·2000) = 1.6 %, more for a skewed law
    assert abs(biased.mean() - found[0].biased_chance) < 4 * biased.std() / 2000**0.5


def test_the_interval_covers_the_populations_value():
    """Gaussians with a known cross-covariance: CKA = ‖Σ_xy‖²/(‖Σ_x‖‖Σ_y‖). Nominal 95 %; ±4 s.e. is 6 %."""
    rng = np.random.default_rng(4)
    p, covered = 5, 0
    mix = rng.standard_normal((p, p)) / p**0.5
    truth = np.sum(mix**2) / np.sqrt(p * np.sum((mix.T @ mix + np.eye(p) / 4) ** 2))
    groups = np.arange(200) % 20
    for _ in range(200):
        x = rng.standard_normal((200, p))
        y = x @ mix + rng.standard_normal((200, p)) / 2
        found = cka(Features(x, groups), Features(y, groups))
        covered += found.low <= truth <= found.high
    assert 0.88 <= covered / 200 <= 0.995


def test_what_has_no_answer_is_none_or_refused():
    x, _ = pair(20, 3, 3)
    constant = np.ones((20, 2))
    assert cka(Features(x), Features(constant)).value is None
    assert cka(Features(x), Features(constant)).biased is None
    assert cka(Features(x), Features(x)).low is None  # no groups, no interval
    with pytest.raises(ValueError, match="at least 4 samples"):
        Features(x[:3])
    with pytest.raises(ValueError, match="the same samples on both sides"):
        cka(Features(x), Features(x[:10]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        Features(np.where(np.arange(10).reshape(5, 2) == 3, np.nan, 1.0))


def test_over_all_permutations_the_mean_is_0_and_the_spread_the_closed_form():
    """All 720 orders of 6 samples, and all 24 of 4: no sampling error, so rounding alone (720 sums of order 1)."""
    rng = np.random.default_rng(5)
    for n in (4, 6):
        x, y = rng.exponential(size=(n, 3)) ** 2, rng.standard_normal((n, 2))
        a = Features(x)
        values = np.array([cka(a, Features(y[list(order)])).value for order in permutations(range(n))])
        assert values.mean() == pytest.approx(0, abs=1e-10)
        assert values.std() == pytest.approx(chance_sd(n), rel=1e-10)


@pytest.mark.parametrize("groups", [2, 3, 10, 20, 21, 30])
def test_the_interval_is_the_jackknife_with_students_t(groups):
    """Leaving groups out by hand, with dense kernels; rounding of float64 through two ways of summing: 1e-6."""
    x, y = pair(2 * groups + 10, 3, 3)
    labels = np.arange(len(x)) % groups

    def value(rows):
        return dense_hsic(x[rows], y[rows]) / np.sqrt(dense_hsic(x[rows], x[rows]) * dense_hsic(y[rows], y[rows]))

    without = np.array([value(labels != group) for group in range(groups)])
    error = np.sqrt((groups - 1) / groups * np.sum((without - without.mean()) ** 2))
    quantile = student_t.ppf(0.975, groups - 1)
    found = cka(Features(x, labels), Features(y, labels))
    assert found.value - found.low == pytest.approx(quantile * error, rel=1e-6)
    assert found.high == pytest.approx(min(found.value + quantile * error, 1), rel=1e-6)


def test_no_interval_where_a_group_leaves_too_few_or_nothing_that_varies():
    """Four samples have an HSIC, three have none; and of whole numbers what is taken away leaves exactly nothing."""
    x, y = pair(8, 3, 3)
    for n, left in ((8, True), (6, False)):
        labels = np.arange(n) // (n // 2)
        found = cka(Features(x[:n], labels), Features(y[:n], labels))
        assert found.value is not None
        assert (found.low is not None, found.high is not None) == (left, left)
    only_here = np.array([[4.0], [-4.0], [2.0], [-2.0], *[[0.0]] * 4])
    labels = np.arange(8) // 4
    found = cka(Features(only_here, labels), Features(y, labels))
    assert found.value is not None
    assert (found.low, found.high) == (None, None)


def test_chance_is_that_of_so_many_independent_samples():
    """√(2/(n(n − 3))), of the four at least that there must be."""
    x, y = (Features(each) for each in pair(20, 3, 3))
    for units, n in ((None, 20), (10, 10), (2, 4)):
        assert cka(x, y, units).chance_sd == pytest.approx(np.sqrt(2 / (n * (n - 3))), rel=1e-14, abs=0)


def test_features_take_no_more_dimensions_than_there_are_samples(rng):
    for width in (7, 12, 30):
        x = rng.standard_normal((12, width))
        centred = x - x.mean(axis=0)
        ready = Features(x).x
        np.testing.assert_allclose(ready @ ready.T, centred @ centred.T, rtol=0, atol=1e-12)
        assert ready.shape == (12, min(width, 12))
        if width <= 12:
            np.testing.assert_array_equal(ready, centred)
