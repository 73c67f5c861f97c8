"""Planted angles, dense oracles, gauges, repeated and vanishing singular values."""

import numpy as np
import pytest

from lorascope.linalg import subspace
from lorascope.linalg.factored import Factored


def orthonormal(rng: np.random.Generator, m: int, k: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((m, k)))[0]


def planted(rng: np.random.Generator, angles: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two bases in R^n with these principal angles, in a random frame and each mixed within itself."""
    k = len(angles)
    frame = orthonormal(rng, n, 2 * k)
    u, v = frame[:, :k], frame[:, :k] * np.cos(angles) + frame[:, k:] * np.sin(angles)
    return u @ orthonormal(rng, k, k), v @ orthonormal(rng, k, k)


def test_planted_angles_small_and_near_right(rng):
    """arccos alone gives 0 or 1.5e-8 for the first; arcsin alone loses the last in the same way."""
    angles = np.array([1e-9, 1e-4, 0.3, np.pi / 4, 1.2, np.pi / 2 - 1e-9])
    u, v = planted(rng, angles, 40)
    np.testing.assert_allclose(subspace.principal_angles(u, v), angles, rtol=0, atol=2e-15)  # a few eps
    wide = np.concatenate([v, orthonormal(rng, 40, 40)[:, :0]], axis=1)
    np.testing.assert_allclose(subspace.principal_angles(wide, u[:, :]), angles, rtol=0, atol=2e-15)


def test_angles_of_subspaces_of_different_dimension(rng):
    frame = orthonormal(rng, 30, 7)
    inside, outside = frame[:, :2], frame[:, 6:]
    found = subspace.principal_angles(frame[:, :6] @ orthonormal(rng, 6, 6), np.concatenate([inside, outside], axis=1))
    np.testing.assert_allclose(found, [0, 0, np.pi / 2], rtol=0, atol=2e-15)


def test_overlaps_against_dense_formulas(rng):
    x = Factored(rng.standard_normal((30, 5)), rng.standard_normal((5, 20)))
    y = Factored(rng.standard_normal((30, 3)), rng.standard_normal((3, 20)))
    a, b = subspace.bases(x), subspace.bases(y)
    dense_x, dense_y = x.dense(), y.dense()
    cross = a.left.T @ b.left
    grid = subspace.overlap_grid(cross)
    for i in range(1, 6):
        for j in range(1, 4):
            expected = np.linalg.norm(a.left[:, :i].T @ b.left[:, :j]) ** 2 / min(i, j)
            assert grid[i - 1, j - 1] == pytest.approx(expected, rel=1e-12)
    gx, gy = dense_x @ dense_x.T, dense_y @ dense_y.T
    expected = np.sum(gx * gy) / np.linalg.norm(gx) / np.linalg.norm(gy)
    assert subspace.energy_overlap(cross, a.sigma, b.sigma) == pytest.approx(expected, rel=1e-12)
    inside = np.linalg.norm(a.left @ a.left.T @ dense_y) ** 2 / np.linalg.norm(dense_y) ** 2
    assert subspace.captured(cross, b.sigma) == pytest.approx(inside, rel=1e-12)
    expected = np.sum(dense_x * dense_y) / np.linalg.norm(dense_x) / np.linalg.norm(dense_y)
    assert subspace.cosine(a, b) == pytest.approx(expected, rel=1e-10)


def test_distances(rng):
    """Hu et al. 2021, App. G, corrected: φ = 1 − d²/p."""
    angles = np.array([0.1, 0.7, 1.1])
    u, v = planted(rng, angles, 20)
    phi = subspace.overlap_grid(u.T @ v)[-1, -1]
    assert 1 - subspace.projection_distance(angles) ** 2 / 3 == pytest.approx(phi, rel=1e-13)
    projections = np.linalg.norm(u @ u.T - v @ v.T) / 2**0.5
    assert subspace.projection_distance(angles) == pytest.approx(projections, rel=1e-13)
    assert subspace.geodesic_distance(angles) == pytest.approx(np.sqrt(0.01 + 0.49 + 1.21), rel=1e-13)


GAUGES = {
    "orthogonal": lambda rng: orthonormal(rng, 4, 4),
    "signs and order": lambda rng: np.eye(4)[[2, 0, 3, 1]] * [1, -1, -1, 1],
    "condition 1e4": lambda rng: orthonormal(rng, 4, 4) * np.geomspace(1, 1e-4, 4) @ orthonormal(rng, 4, 4),
}


@pytest.mark.parametrize("gauge", GAUGES)
def test_one_update_in_two_gauges(rng, gauge):
    gauge = GAUGES[gauge](rng)
    left, right = rng.standard_normal((50, 4)), rng.standard_normal((4, 40))
    a = subspace.bases(Factored(left, right))
    b = subspace.bases(Factored(left @ gauge, np.linalg.solve(gauge, right)))
    assert subspace.cosine(a, b) == pytest.approx(1, abs=1e-12)
    for u, v in ((a.left, b.left), (a.right, b.right)):
        np.testing.assert_allclose(u.T @ u, np.eye(4), rtol=0, atol=1e-12)
        # eps times the condition of the gauge
        np.testing.assert_allclose(subspace.principal_angles(u, v), 0, rtol=0, atol=1e-10)


def test_what_is_only_rounding_is_no_direction(rng):
    left, right = rng.standard_normal((50, 4)), rng.standard_normal((4, 40))
    left[:, 2], left[:, 3] = left[:, 0] - left[:, 1], 0.0
    found = subspace.bases(Factored(left, right))
    u = np.linalg.svd(left @ right)[0][:, :2]
    assert found.rank == 2
    np.testing.assert_allclose(found.left @ found.left.T, u @ u.T, rtol=0, atol=1e-12)
    rounded = Factored(left.astype(np.float32).astype(float), right)
    assert subspace.bases(rounded, 2**-23).rank == 2
    assert subspace.bases(Factored(np.zeros((5, 2)), np.ones((2, 3)))).rank == 0
    assert subspace.bases(Factored(np.zeros((5, 0)), np.ones((0, 3)))).left.shape == (5, 0)


def test_repeated_singular_values_are_told():
    assert subspace.cuts(np.array([3.0, 2.0, 2.0 - 1e-12, 1.0])) == [True, False, True, True]
    assert subspace.cuts(np.array([1.0, 2e-8, 1e-8])) == [True, False, True]  # a gap of the tolerance itself
    assert subspace.cuts(np.array([])) == []


@pytest.mark.parametrize(
    ("m", "k", "n", "there"), [(5, 3, 4, True), (3, 3, 3, True), (2, 3, 4, False), (5, 3, 2, False), (5, 0, 4, False)]
)
def test_coordinates_of_factors_that_are_tall_and_independent(rng, m, k, n, there):
    left, right_t = rng.standard_normal((m, k)), rng.standard_normal((n, k))
    found = subspace.coordinates(left, right_t)
    assert (found is not None) == there
    if found is not None:
        u, v = left @ found[0], right_t @ found[2]
        np.testing.assert_allclose((u * found[1]) @ v.T, left @ right_t.T, rtol=0, atol=1e-11)
        np.testing.assert_allclose(u.T @ u, np.eye(k), rtol=0, atol=1e-11)  # eps times a condition of 1e3 at most
        np.testing.assert_allclose(v.T @ v, np.eye(k), rtol=0, atol=1e-11)
        for bad in (left * np.nan, left[:, [0, 0, 1]]):
            assert subspace.coordinates(bad, right_t) is None
            assert subspace.coordinates(right_t, bad) is None


def test_dense_matrices_and_the_row_side_of_a_factor(rng):
    matrix = rng.standard_normal((12, 9))
    found = subspace.bases(matrix)
    np.testing.assert_allclose(found.left * found.sigma @ found.right.T, matrix, rtol=0, atol=1e-13)
    a = rng.standard_normal((3, 20))
    v, sigma = subspace.row_basis(a)
    np.testing.assert_allclose(sigma, np.linalg.svd(a)[1], rtol=1e-12)
    np.testing.assert_allclose(v @ v.T, np.linalg.pinv(a) @ a, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_entries_are_refused(bad):
    left = np.ones((5, 2))
    left[2, 1] = bad
    for delta in (Factored(left, np.ones((2, 3))), left):
        with pytest.raises(ValueError, match="NaN or infinite"):
            subspace.bases(delta)


def test_torch_tensors_give_the_same_numbers(rng):
    import torch

    x, y = ((rng.standard_normal((30, 4)), rng.standard_normal((4, 20))) for _ in range(2))
    a, b = (subspace.bases(Factored(*one)) for one in (x, y))
    s, t = (subspace.bases(Factored(*map(torch.from_numpy, one))) for one in (x, y))
    assert subspace.cosine(s, t) == pytest.approx(subspace.cosine(a, b), rel=1e-10)
    expected = subspace.principal_angles(a.left, b.left)
    np.testing.assert_allclose(subspace.principal_angles(s.left, t.left).numpy(), expected, rtol=0, atol=1e-13)
    grids = subspace.overlap_grid(s.left.T @ t.left).numpy(), subspace.overlap_grid(a.left.T @ b.left)
    np.testing.assert_allclose(*grids, rtol=0, atol=1e-13)


def test_the_cosine_of_updates_of_rank_one():
    """cos of the left sides times cos of the right ones, with the signs of both: 0.6 · 0.8; whatever their sizes."""
    one = subspace.bases(np.outer([1.0, 0.0, 0.0], [0.0, 1.0]))
    other = subspace.bases(3 * np.outer([0.6, 0.8, 0.0], [0.6, -0.8]))
    assert subspace.cosine(one, other) == pytest.approx(-0.48, rel=1e-14)
    nothing = subspace.bases(np.zeros((3, 2)))
    assert [subspace.cosine(*pair) for pair in ((one, nothing), (nothing, one), (nothing, nothing))] == [None] * 3


def test_overlap_by_energy_of_one_direction_each_is_their_cos2():
    assert subspace.energy_overlap(np.array([[0.5]]), np.array([3.0]), np.array([2.0])) == 0.25


def test_overlap_by_energy_has_no_scale(rng):
    cross, s, t = rng.uniform(-0.5, 0.5, (3, 2)), np.array([3.0, 2.0, 1.0]), np.array([2.0, 1.0])
    expected = subspace.energy_overlap(cross, s, t)
    for size in (1e-170, 1e170):  # their squares vanish or overflow
        assert subspace.energy_overlap(cross, s * size, t * size) == pytest.approx(expected, rel=1e-14)


def test_nothing_has_no_angles():
    for n in (0, 5):
        assert subspace.principal_angles(np.zeros((n, 0)), np.eye(n)[:, :2]).shape == (0,)
