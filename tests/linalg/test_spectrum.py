"""Measures of a spectrum, on spectra whose answers are known before the code runs."""

import math

import numpy as np
import pytest

from lorascope.linalg import spectrum

MEASURES = (
    spectrum.stable_rank,
    spectrum.effective_rank,
    spectrum.energy_effective_rank,
    spectrum.participation_ratio,
)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_k_equal_values_have_rank_k_in_every_sense(measure, scale):
    assert measure([scale] * 5 + [0.0] * 3) == pytest.approx(5, rel=1e-14)


def test_one_spectrum_six_effective_ranks():
    """The table of the peers' six meanings: σ_k = 0.8^k, r = 16."""
    sigma = 0.8 ** np.arange(1, 17)
    assert spectrum.effective_rank(sigma) == pytest.approx(10.70, abs=5e-3)
    assert spectrum.energy_effective_rank(sigma) == pytest.approx(6.10, abs=5e-3)
    assert spectrum.participation_ratio(sigma) == pytest.approx(4.55, abs=5e-3)
    assert spectrum.stable_rank(sigma) == pytest.approx(2.78, abs=5e-3)
    assert spectrum.energy_rank(sigma, 0.9) == 6
    assert spectrum.nuclear_norm(sigma) / spectrum.spectral_norm(sigma) == pytest.approx(4.86, abs=5e-3)


def test_two_values_by_hand():
    """σ = (3, 1): p = (3/4, 1/4), and of the energy (9/10, 1/10)."""
    assert spectrum.stable_rank([3.0, 1.0]) == pytest.approx(10 / 9)
    assert spectrum.participation_ratio([3.0, 1.0]) == pytest.approx(100 / 82)
    h = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert spectrum.effective_rank([3.0, 1.0]) == pytest.approx(math.exp(h))
    h = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert spectrum.energy_effective_rank([1.0, 3.0]) == pytest.approx(math.exp(h))
    assert spectrum.frobenius_norm([3.0, 1.0]) == pytest.approx(math.sqrt(10))
    np.testing.assert_allclose(spectrum.energy_curve([3.0, 1.0]), [0.9, 1.0])


def test_energy_rank_counts_a_share_that_is_met_exactly():
    sigma = np.sqrt([90.0, 5.0, 4.0, 1.0])
    assert [spectrum.energy_rank(sigma, share) for share in (0.9, 0.95, 0.99, 1.0)] == [1, 2, 3, 4]
    assert spectrum.energy_rank([1.0] * 10, 0.9) == 9


@pytest.mark.parametrize("measure", [*MEASURES, lambda s: spectrum.energy_rank(s, 0.9)])
@pytest.mark.parametrize("empty", [[0.0, 0.0], []])
def test_a_zero_spectrum_has_no_rank(measure, empty):
    assert measure(empty) is None


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_many_spectra_at_once_have_the_measures_of_each(rng, scale):
    sigma = scale * np.sort(rng.random((4, 9)), axis=1)[:, ::-1]
    sigma[1, 3:] = 0.0
    at_once = spectrum.rank_measures(sigma, (0.5, 0.95))
    each = [spectrum.rank_measures(row, (0.5, 0.95)) for row in sigma]
    for name, values in at_once.items():
        share = name.removeprefix("energy_rank_")
        single = getattr(spectrum, name, None) or (lambda row, share=float(share): spectrum.energy_rank(row, share))
        assert values.tolist() == pytest.approx([single(row) for row in sigma], rel=1e-14)  # sums in another order
        assert values.tolist() == pytest.approx([measures[name] for measures in each], rel=1e-14)
    assert spectrum.rank_measures(np.zeros(3)) is None
    assert spectrum.rank_measures(np.zeros(0)) is None
    assert spectrum.rank_measures(np.array([[1.0, 0.5], [0.0, 0.0]])) is None


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-139, 1.0, 1e139, 1e200, 1e300])
def test_norms_by_hand(scale):
    """Where the squares vanish or overflow, too."""
    sigma = [3 * scale, 4 * scale]
    assert spectrum.frobenius_norm(sigma) / scale == pytest.approx(5, rel=1e-14)
    assert (spectrum.spectral_norm(sigma), spectrum.nuclear_norm(sigma)) == (4 * scale, sum(sigma))
    for norm in (spectrum.frobenius_norm, spectrum.spectral_norm, spectrum.nuclear_norm):
        assert norm([0.0, 0.0]) == norm([]) == 0


def test_a_zero_spectrum_has_no_energy_to_share():
    np.testing.assert_array_equal(spectrum.energy_curve([0.0, 0.0]), [0, 0])
    assert spectrum.energy_curve([]).shape == (0,)
