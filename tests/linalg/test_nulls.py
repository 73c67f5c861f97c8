"""The structureless B·A against a direct simulation and against the reference table."""

import numpy as np
import pytest

from lorascope.linalg import nulls
from lorascope.linalg.factored import Factored
from lorascope.linalg.nulls import random_product, random_product_energy
from lorascope.linalg.spectrum import effective_rank, stable_rank

# r: stable rank, effective rank, rank for 90 %, n = 768, Gaussian B, uniform A (shared reference, papers §2.3).
TABLE = {4: (3.5, 4.0, 4), 8: (6.5, 8.0, 7), 16: (11.5, 15.9, 14), 64: (32.6, 62.6, 52)}


@pytest.mark.parametrize("r", TABLE)
def test_the_reference_table(r):
    """The table's values are rounded, and come from few draws: 3 % covers both."""
    null = random_product(768, 768, r)
    shares = ["energy_rank_0.9", "energy_rank_0.95", "energy_rank_0.99"]
    assert sorted(null) == ["effective_rank", *shares, "participation_ratio", "stable_rank"]
    stable, effective, r90 = TABLE[r]
    assert null["stable_rank"] == pytest.approx(stable, rel=0.03)
    assert null["effective_rank"] == pytest.approx(effective, rel=0.01)
    assert null["energy_rank_0.9"] == pytest.approx(r90, abs=0.5)


@pytest.mark.parametrize(("m", "n", "r"), [(96, 64, 8), (40, 300, 16), (12, 50, 12)])
def test_bartlett_draws_have_the_distribution_of_the_full_matrices(m, n, r):
    """Means of both samples within 4 standard errors of their difference."""
    rng = np.random.default_rng(5)
    full = [Factored(rng.standard_normal((m, r)), rng.uniform(-1, 1, (r, n))).singular_values() for _ in range(200)]
    null = random_product(m, n, r)
    for name, measure in (("stable_rank", stable_rank), ("effective_rank", effective_rank)):
        values = np.array([measure(s) for s in full])
        error = values.std() * (1 / 200 + 1 / 32) ** 0.5
        assert abs(values.mean() - null[name]) < 4 * error


def test_the_same_shape_always_gives_the_same_numbers():
    first = dict(random_product(64, 48, 4))
    random_product.cache_clear()
    assert random_product(64, 48, 4) == first


@pytest.mark.parametrize(("m", "n", "r"), [(96, 64, 8), (12, 50, 16)])
def test_the_energy_a_truncated_product_keeps_is_that_of_the_full_matrices(m, n, r):
    """Both are means over draws: within 4 standard errors of the direct simulation's, at every k."""
    rng = np.random.default_rng(6)
    squares = np.array(
        [Factored(rng.standard_normal((m, r)), rng.standard_normal((r, n))).singular_values() ** 2 for _ in range(400)]
    )
    kept = np.cumsum(squares, axis=1) / squares.sum(axis=1, keepdims=True)
    expected = random_product_energy(m, n, r)
    assert len(expected) == min(m, n, r)
    assert expected[-1] == pytest.approx(1, abs=1e-12)  # a sum of shares
    error = kept.std(axis=0) * (1 / 400 + 1 / 32) ** 0.5  # ours is a mean of 32 draws
    assert np.all(np.abs(kept.mean(axis=0) - expected) <= 4 * error + 1e-12)


@pytest.mark.parametrize(("r", "draws"), [(1, 32), (64, 32), (100, 20), (1024, 2), (1500, 2)])
def test_so_many_draws_that_2048_values_are_averaged(monkeypatch, r, draws):
    """Between 2 and 32; the spectra themselves are not needed."""
    monkeypatch.setattr(nulls, "_bartlett", lambda rng, draws, m, r: np.ones((draws, 1, 1)))
    assert nulls._spectra(2000, 2000, r).shape == (draws, 1)
