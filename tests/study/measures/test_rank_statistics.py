"""Statistics of claims on ranks, of a small table whose answers are counted by hand."""

import pandas as pd
import pytest

from lorascope.study import Results, StudyScale
from lorascope.study.measures import rank_statistics as of


def results():
    spectral = [
        {"method": method, "rank": rank, "replicate": 0, "r90": r90, "r90_noise": noise}
        for method, rank, r90, noise in (("full", None, 10, 20), ("full", None, 30, 40), ("lora", 8, 2, 20))
    ]
    functional = [
        {"curve": curve, "replicate": replicate, "k": k, "gain": k / 10, "k90": k90}
        for curve, replicate, k90 in (("top", 3, 1.0), ("top", 1, 4.0), ("random", 1, None))
        for k in (1, 2, 4, 8)
    ]
    tables = {"spectral": pd.DataFrame(spectral), "functional": pd.DataFrame(functional)}
    return Results(pd.DataFrame(), tables, StudyScale(), pd.DataFrame())


def test_means_over_matrices_and_over_each_runs_own_k90():
    measured = results()
    assert of.mean_of(measured, "r90") == 20
    assert of.mean_of(measured, "r90", "lora", 8) == 2
    assert of.ratio("r90", "r90_noise")(measured) == pytest.approx((10 / 20 + 30 / 40) / 2)  # of ratios, not of means
    assert of.smallest(measured) == 2.5
    assert of.share_of_directions("top")(measured) == 2.5 / 8
    assert of.energy_over("top")(measured) == 20 / 2.5
    assert of.kept("top", "gain", None)(measured) == pytest.approx((0.1 + 0.4) / 2)  # at 1, and at 4
    assert of.kept("top", "gain", 0.5)(measured) == pytest.approx(0.4)


def test_a_missing_number_is_said():
    with pytest.raises(ValueError, match="gained nothing"):
        of.smallest(results(), "random")
    with pytest.raises(ValueError, match="no spectra of head"):
        of.mean_of(results(), "r90", "head")
