"""Overlaps of two trained adapters: against projections, and of subspaces that are equal or have nothing in common."""

import numpy as np
import pytest

from lorascope.study.measures.overlap import alone, overlaps


def test_overlaps_are_the_share_of_one_subspace_in_the_other():
    rng = np.random.default_rng(5)
    u, v = (np.linalg.qr(rng.standard_normal((40, r)))[0] for r in (3, 9))
    row = overlaps(u, v)
    for name, i, j in (("1", 1, 1), ("2", 2, 2), ("1r", 1, 9), ("r", 3, 9)):
        projected = np.trace(u[:, :i] @ u[:, :i].T @ v[:, :j] @ v[:, :j].T)  # of two projections
        assert row[f"phi_{name}"] == pytest.approx(projected / min(i, j), abs=1e-12)
        assert row[f"chance_{name}"] == pytest.approx(max(i, j) / 40, abs=1e-12)  # E tr = ij/n
    both = np.linalg.qr(rng.standard_normal((40, 8)))[0]
    assert overlaps(both[:, :4], both[:, 4:])["phi_r"] == pytest.approx(0, abs=1e-12)
    assert overlaps(both, both)["phi_r"] == pytest.approx(1, abs=1e-12)


def test_one_seed_for_two_ranks_gives_equal_rows_and_gaussian_matrices_do_not():
    gaussian, torch_seed = alone([], "numbers", 0, 64, 4, 16)
    assert torch_seed["phi_r"] == pytest.approx(1, abs=1e-6)  # drawn in fp32
    assert gaussian["phi_r"] < 0.5  # 16/64 by chance, standard deviation 0.05
