"""Noise laws against simulation, against the figures of the papers, and against real rounding."""

import ml_dtypes
import numpy as np
import pytest
from scipy.integrate import quad

from lorascope.linalg import noise
from lorascope.linalg.rounding import UNIT_ROUNDOFF, round_to


def svdvals(matrix):
    return np.linalg.svd(matrix, compute_uv=False)


@pytest.mark.parametrize("shape", [(256, 256), (100, 300), (300, 100)])
def test_noise_spectrum_is_that_of_gaussian_matrices(rng, shape):
    simulated = np.mean([svdvals(rng.standard_normal(shape)) for _ in range(16)], axis=0)
    # Rigidity: the values lie within a spacing or two of their quantiles; the spacing is about 0.15, of σ₁ = 27 to 32.
    np.testing.assert_allclose(noise.noise_spectrum(*shape)[2:], simulated[2:], rtol=0, atol=0.3)
    assert noise.largest_noise(*shape) == pytest.approx(simulated[0], rel=0.015)
    # Tracy and Widom: one draw's largest value has a spread of 1.3 % at 100 × 300, so the mean of 16 one of 0.3 %
    assert np.sum(noise.noise_spectrum(*shape) ** 2) == pytest.approx(np.prod(shape), rel=1e-4)


def test_rank_measures_of_a_large_square_and_of_four_to_one():
    # papers.md, §2.3 [C]: r90/95/99 = .51/.61/.77 of k, effective rank .805, participation .50, stable .25
    n = 2000
    found = {name: value / n for name, value in noise.noise_measures(n, n).items()}
    expected = {"energy_rank_0.9": 0.51, "energy_rank_0.95": 0.61, "energy_rank_0.99": 0.77}
    expected |= {"effective_rank": 0.805, "participation_ratio": 0.5, "stable_rank": 0.25}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=0.006), name  # they are given to two digits
    wide = {name: value / 500 for name, value in noise.noise_measures(500, 2000).items()}
    assert [wide[f"energy_rank_{p}"] for p in (0.9, 0.95, 0.99)] == pytest.approx([0.762, 0.861, 0.966], abs=0.003)
    assert wide["stable_rank"] == pytest.approx(0.445, abs=0.01)


@pytest.mark.parametrize(("shape", "omega"), [((500, 500), 2.858), ((250, 500), 2.171), ((125, 500), 1.837)])
def test_gavish_donohos_table(shape, omega):
    sigma = np.ones(min(shape))
    assert noise.gavish_donoho(sigma, *shape) == pytest.approx(omega, abs=5e-4)


def test_the_planted_rank_is_found_where_the_energy_rank_measures_noise(rng):
    # papers.md, appendix A: a rank-8 signal at 4 times the edge, in 512² noise: GD 8, and r90 above 200
    n = 512
    u, v = (np.linalg.qr(rng.standard_normal((n, 8)))[0] for _ in range(2))
    edge = 2 * np.sqrt(n)
    sigma = svdvals((u * np.linspace(1, 0.5, 8) * 4 * edge) @ v.T + rng.standard_normal((n, n)))
    assert np.sum(sigma > noise.gavish_donoho(sigma, n, n)) == 8
    level = noise.noise_level(sigma, n, n)
    assert level == pytest.approx(1, abs=0.03)  # eight spikes shift the median by 8 places of 512
    assert np.sum(sigma > noise.marchenko_pastur_edge(level, n, n)) == 8


def test_spikes_stand_out_where_theory_says(rng):
    """Baik, Ben Arous and Péché 2005; rectangular, Benaych-Georges and Nadakuditi 2012: seen iff θ > c^(1/4)."""
    p, q = 400, 800
    c = p / q
    for factor, seen in ((0.75, 0), (1.6, 1)):
        theta = factor * c**0.25
        u, v = (np.linalg.qr(rng.standard_normal((size, 1)))[0] for size in (p, q))
        sigma = svdvals(theta * u @ v.T + rng.standard_normal((p, q)) / np.sqrt(q))
        level = noise.noise_level(sigma, p, q)
        assert np.sum(sigma > noise.marchenko_pastur_edge(level, p, q)) == seen
        if seen:
            expected = np.sqrt((1 + theta**2) * (c + theta**2)) / theta
            assert sigma[0] == pytest.approx(expected, rel=0.03)  # fluctuation is of order 1/√q


def rounding_of(base, change, dtype, stored_as=None):
    tuned = round_to(base + change, dtype)
    account = noise.Rounding(*base.shape, stored_as or dtype)
    for start in range(0, len(base), 50):  # in pieces, as a file is read
        rows = slice(start, start + 50)
        account.add(start, tuned[rows], tuned[rows] != base[rows])
    return account, tuned - base


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("size", [1e-5, 3e-4, 3e-3])
def test_the_floor_bounds_rounding_and_a_low_rank_update_stands_above_it(rng, dtype, size):
    m, n, r = 200, 300, 4
    base = round_to(0.03 * rng.standard_normal((m, n)), dtype)
    change = size * rng.standard_normal((m, r)) @ rng.standard_normal((r, n)) / np.sqrt(r)
    account, stored = rounding_of(base, change, dtype)
    sigma, floor = svdvals(stored), account.floor()
    assert np.sum(sigma > floor) <= r
    if (dtype, size) != ("BF16", 1e-5):  # there one entry in eight moves at all, and the fourth direction is lost
        assert np.sum(sigma > floor) == r
    assert sigma[r] > floor / 6  # no empty bound: the one rounding that is there reaches a sixth of it, or more


def test_a_base_rounded_on_the_way_is_allowed_for(rng):
    exact, change = rng.standard_normal((200, 300)), 2 * rng.standard_normal((200, 1)) @ rng.standard_normal((1, 300))
    account, _ = rounding_of(exact, change / 100, "BF16")
    twice = round_to(round_to(exact, "BF16") + change / 100, "BF16") - exact  # loaded as bfloat16, merged, saved
    assert np.sum(svdvals(twice) > account.floor()) == 1
    assert svdvals(twice)[1] > account.floor() / 2


def test_an_untouched_matrix_has_no_floor_and_integers_have_none(rng):
    base = round_to(rng.standard_normal((20, 30)), "BF16")
    account, _ = rounding_of(base, np.zeros_like(base), "BF16")
    assert account.floor() == 0
    assert account.moved_share == 0
    assert noise.Rounding(2, 2, "I8").floor() == 0


def test_a_narrow_run_in_a_wide_file_is_recognised(rng):
    base = round_to(rng.standard_normal((60, 40)), "BF16")
    change = 0.01 * rng.standard_normal(base.shape)
    narrow, _ = rounding_of(base, change, "BF16", stored_as="F32")
    wide, _ = rounding_of(base, change, "F32")
    assert (narrow.effective_dtype, wide.effective_dtype) == ("BF16", "F32")
    assert narrow.floor() > 1e4 * wide.floor()  # 2^16 apart


@pytest.mark.parametrize(
    ("name", "dtype"), [("F16", np.float16), ("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2)]
)
def test_the_smallest_spacing_is_the_dtypes_smallest_number(name, dtype):
    assert noise._MIN_SPACING[name] == float(ml_dtypes.finfo(dtype).smallest_subnormal)


def test_zeros_and_tiny_values_do_not_disturb():
    base = np.zeros((10, 12))
    account, _ = rounding_of(base, np.full((10, 12), 1e-30), "F32")
    assert 0 < account.floor() < 1e-18


@pytest.mark.parametrize(("p", "q"), [(4, 9), (1, 2), (50, 50)])
def test_the_largest_value_at_points_of_tracy_widoms_law(p, q):
    """Johnstone's centre, and his scale cubed: (√(q−1) + √p)⁴ / √((q−1)p)."""
    both = np.sqrt(q - 1) + np.sqrt(p)
    spread = (both**4 / np.sqrt((q - 1) * p)) ** (1 / 3)
    for point in (-1.2065, 0.0, 2.0):
        expected = np.sqrt(both**2 + spread * point)
        assert noise.largest_noise(p, q, point) == pytest.approx(expected, rel=1e-13)
        assert noise.largest_noise(q, p, point) == noise.largest_noise(p, q, point)
    assert noise.largest_noise(p, q) == noise.largest_noise(p, q, -1.2065)
    assert noise.largest_noise(p, q, -1e3) == 0
    assert noise.largest_noise(1, 1) == 1


@pytest.mark.parametrize(
    ("value", "spacing"),
    [(1.0, 2.0**-7), (1.99, 2.0**-7), (0.99, 2.0**-8), (2.0**26, 2.0**19), (2.0**40, 2.0**19), (2.0**-60, 2.0**-52)],
)
def test_the_floor_of_equal_entries_is_that_of_their_spacing(value, spacing):
    """bfloat16 has 8 digits. Two roundings of variance spacing²/12 along 6 columns and 24 rows; from 2^27 up and 2^-45
    down with the spacing there. Of moved entries fewer than a sixth, one spacing² each."""
    stored = np.full((24, 6), value)
    moved = np.ones((24, 6), bool)
    account = noise.Rounding(24, 6, "BF16")
    account.add(0, stored[:10], moved[:10])
    account.add(10, stored[10:], moved[10:])
    assert account.moved_share == 1
    assert account.floor() == pytest.approx(spacing * (1 + 2), rel=1e-12, abs=0)
    few = noise.Rounding(24, 6, "BF16")
    moved[:, 1:], moved[3:] = False, False  # three entries, of one column
    few.add(0, stored, moved)
    assert few.moved_share == 3 / 144
    assert few.floor() == pytest.approx(spacing * (1 + 3**0.5), rel=1e-12, abs=0)


def test_the_coarsest_dtype_that_holds_every_value_is_the_one():
    halves = np.full((2, 2), 1 + 2.0**-10)  # of 11 digits
    for dtype, value, effective in (
        ("F32", np.ones((2, 2)), "BF16"),
        ("F64", np.ones((2, 2)), "BF16"),
        ("F32", halves, "F16"),
        ("F64", halves + 2.0**-20, "F32"),
        ("F64", halves + 2.0**-40, "F64"),
        ("F16", np.ones((2, 2)), "F16"),
        ("I8", np.ones((2, 2)), "I8"),
    ):
        account = noise.Rounding(2, 2, dtype)
        account.add(0, value, np.ones((2, 2), bool))
        assert account.effective_dtype == effective
    empty = noise.Rounding(0, 3, "F32")
    assert (empty.moved_share, empty.floor()) == (0, 0)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("F64", np.float64), ("F32", np.float32), ("F16", np.float16), ("BF16", ml_dtypes.bfloat16),
        ("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2),
    ],
)  # fmt: skip
def test_digits_and_least_spacings_are_those_of_the_dtypes(name, dtype):
    found = ml_dtypes.finfo(dtype)
    assert 2.0 ** (1 - noise._SIGNIFICAND[name]) == float(found.eps)
    assert noise._MIN_SPACING.get(name, float(found.smallest_subnormal)) == float(found.smallest_subnormal)
    assert UNIT_ROUNDOFF[name] == float(found.eps) / 2


@pytest.mark.parametrize("shape", [(8, 12), (3, 3), (20, 7)])
def test_the_stable_rank_of_noise_has_its_largest_value_at_the_mean(shape):
    """The other values are the law's quantiles, and all of them of the other measures."""
    sigma, top = noise.noise_spectrum(*shape), noise.largest_noise(*shape)
    found = noise.noise_measures(*shape)
    assert found["stable_rank"] == pytest.approx((np.sum(sigma[1:] ** 2) + top**2) / max(top, sigma[1]) ** 2, rel=1e-12)
    assert found["participation_ratio"] == pytest.approx(np.sum(sigma**2) ** 2 / np.sum(sigma**4), rel=1e-12)
    kept = np.cumsum(sigma**2) / np.sum(sigma**2)
    for share in (0.9, 0.95, 0.99):
        assert found[f"energy_rank_{share}"] == 1 + np.sum(kept < share)


@pytest.mark.parametrize(("p", "q"), [(9, 9), (40, 40), (9, 12), (5, 50)])
def test_the_quantiles_are_those_of_the_law_to_eight_digits(p, q):
    """Of a square the quarter circle's, in closed form; else of the density, integrated by scipy."""
    beta, found = p / q, noise.noise_spectrum(p, q) / np.sqrt(q)
    if beta == 1:
        shares = (found * np.sqrt(4 - found**2) / 2 + 2 * np.arcsin(found / 2)) / np.pi
    else:
        ends = (1 - np.sqrt(beta)) ** 2, (1 + np.sqrt(beta)) ** 2

        def density(t):
            return np.sqrt(max((ends[1] - t) * (t - ends[0]), 0)) / (2 * np.pi * beta * t)

        shares = [quad(density, ends[0], value**2, epsabs=1e-11)[0] for value in found]
    np.testing.assert_allclose(shares, (np.arange(p, 0, -1) - 0.5) / p, rtol=0, atol=1e-7)
