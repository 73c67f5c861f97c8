"""‖UᵀWV‖ of random subspaces against simulation, and the LoRA paper's table 7 in closed form."""

import math

import numpy as np
import pytest

from lorascope.linalg.random_projection import RandomProjectionNorm, fourth_power, random_projection_norm


@pytest.mark.parametrize(("m", "n", "i", "j"), [(12, 9, 3, 3), (10, 10, 1, 4), (8, 20, 8, 2), (6, 1, 2, 1)])
def test_mean_and_deviation_against_simulation(rng, m, n, i, j):
    weight = rng.standard_normal((m, n)) * np.linspace(2, 0.1, n)
    sigma = np.linalg.svd(weight, compute_uv=False)
    found = random_projection_norm(m, n, i, j, float(np.sum(sigma**2)), float(np.sum(sigma**4)))
    draws = 20_000
    u, v = (np.linalg.qr(rng.standard_normal((draws, size, width)))[0] for size, width in ((m, i), (n, j)))
    seen = np.sum((np.swapaxes(u, 1, 2) @ weight @ v) ** 2, axis=(1, 2))
    assert found.mean == pytest.approx(seen.mean(), abs=5 * seen.std() / math.sqrt(draws))  # five standard errors
    assert found.sd == pytest.approx(seen.std(), rel=0.05)  # the error of a deviation from so many draws is 1 %
    assert found.spread == pytest.approx(np.sqrt(seen).std(), rel=0.6)  # first order; a wide law here


@pytest.mark.parametrize(
    ("r", "norm", "inside", "random", "ratio", "amplification", "of_random"),
    [(4, 6.91, 0.32, 0.0202, 15.9, 21.59, 342.7), (64, 3.57, 1.90, 0.3227, 5.9, 1.88, 11.1)],
)
def test_table_7_of_the_lora_paper(r, norm, inside, random, ratio, amplification, of_random):
    """GPT-3's W_q, 12288 × 12288 with ‖W‖_F = 61.95; the derived figures that its table 7 gives no chance level for."""
    from lorascope.analyses.against_base import ratios

    chance = random_projection_norm(12288, 12288, r, r, 61.95**2, 0.0)
    found = ratios(inside, 61.95, norm, chance)
    assert chance.norm == pytest.approx(random, rel=0.003)  # the digits given
    assert found["ratio"] == pytest.approx(ratio, rel=0.005)
    assert found["amplification"] == pytest.approx(amplification, rel=0.002)
    assert found["amplification_random"] == pytest.approx(of_random, rel=0.005)


def test_the_fourth_power_without_a_decomposition(rng):
    weight = rng.standard_normal((60, 80))
    exact = np.sum(np.linalg.svd(weight, compute_uv=False) ** 4)
    assert fourth_power(weight, probes=400) == pytest.approx(exact, rel=0.05)  # 1/√(400 · 60/2) is 0.9 %


@pytest.mark.parametrize("n", [2, 3, 8])
def test_of_the_identity_it_is_the_overlap_of_two_lines(n):
    """‖uᵀv‖² of random unit vectors is Beta(1/2, (n − 1)/2): mean 1/n, variance 2(n − 1)/(n²(n + 2))."""
    found = random_projection_norm(n, n, 1, 1, float(n), float(n))
    assert found.mean == pytest.approx(1 / n, rel=1e-14)
    assert found.sd == pytest.approx(np.sqrt(2 * (n - 1) / (n * n * (n + 2))), rel=1e-12)
    assert found.norm == pytest.approx(n**-0.5, rel=1e-14)
    assert found.spread == pytest.approx(found.sd * np.sqrt(n) / 2, rel=1e-14)


def test_where_nothing_is_left_to_chance():
    """The whole space on both sides, one number, and a weight that is zero."""
    whole = random_projection_norm(3, 4, 3, 4, 7.0, 25.0)
    assert (whole.mean, whole.sd) == (pytest.approx(7, rel=1e-14), pytest.approx(0, abs=1e-6))
    assert random_projection_norm(1, 1, 1, 1, 9.0, 81.0) == RandomProjectionNorm(9.0, 0.0)
    zero = random_projection_norm(3, 4, 1, 2, 0.0, 0.0)
    assert (zero.mean, zero.sd, zero.norm, zero.spread) == (0, 0, 0, 0)


def test_the_fourth_power_of_the_usual_draw(rng):
    weight = rng.standard_normal((6, 8))
    assert fourth_power(weight) == fourth_power(weight, 16, 0) != fourth_power(weight, 16, 1)
    assert fourth_power(np.eye(1), 10**5) == pytest.approx(1, rel=0.03)  # E z² over 1e5 draws: 6 deviations are 2.7 %


@pytest.mark.parametrize("energy", [0.1, 0.3, 0.7, 3.3, 1e6 / 3])
def test_of_whole_spaces_the_norm_is_the_matrix_s_and_does_not_vary(energy):
    """Whatever is rounded in a variance of nothing."""
    for m in range(1, 12):
        for n in range(m, 14):
            found = random_projection_norm(m, n, m, n, energy, energy**2)
            assert found.mean == pytest.approx(energy, rel=1e-12)
            assert found.sd < 1e-6 * energy
