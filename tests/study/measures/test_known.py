"""Measures of studies on changes whose answer is known."""

import numpy as np
import pytest

from lorascope.analyses.dimension.functional import Point
from lorascope.linalg.cached_svd import decompose
from lorascope.study.measures import intruding, rank, truncation

SHAPE = (96, 64)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_a_planted_rank_is_what_stands_above_the_noise(rng):
    sigma = np.linalg.svd(rank.planted(SHAPE, 16, rng), compute_uv=False)
    found = rank.described("encoder.layer.2.output.dense", SHAPE, sigma, product=False)
    assert found["gavish_donoho"] == 16
    assert (found["part"], found["depth"], found["smaller_side"]) == ("MLP", 2, 64)


def test_noise_alone_has_no_rank_and_the_spectrum_of_noise(rng):
    sigma = np.linalg.svd(rng.standard_normal(SHAPE), compute_uv=False)
    found = rank.described("encoder.layer.0.attention.output.dense", SHAPE, sigma, product=False)
    assert found["gavish_donoho"] == 0
    assert found["part"] == "attention"
    assert found["r90"] == pytest.approx(found["r90_noise"], abs=1.5)  # a whole number; the law's is an average


def test_the_rank_that_is_reached_is_kept_by_all_larger_ones():
    points = [Point(k, 0.0, 0.0, gain, 0, 0) for k, gain in ((1, 0.95), (2, 0.5), (4, 0.92), (8, 1.0))]
    assert truncation.reached(points) == 4
    assert truncation.reached(points[:2]) is None


def test_planted_directions_are_intruders_and_aligned_ones_are_not(rng):
    weight = rng.standard_normal(SHAPE)
    sigma, cached = np.linalg.svd(rng.standard_normal(SHAPE), compute_uv=False), decompose(weight)
    known = intruding._changes_with_known_counts(weight, sigma, rng, cached)
    counts = {
        kind: len(intruding.measured("m", weight, d, cached).intruders(intruding.EPSILON, intruding.K))
        for kind, d in known.items()
    }
    assert counts == {"planted": intruding.K, "aligned": 0}
