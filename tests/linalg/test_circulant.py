"""A matrix of circulant blocks against its entries, written out row by row."""

import numpy as np
import pytest
import torch

from lorascope.linalg.arrays import to_numpy
from lorascope.linalg.circulant import BlockCirculant
from lorascope.linalg.matrix import Dense, Matrix

SHAPES = [(2, 3, 4), (3, 2, 5), (1, 1, 6), (2, 2, 1), (4, 1, 2), (1, 3, 3)]


def entries(kernel):
    return np.block([[np.stack([np.roll(row, k) for k in range(len(row))]) for row in rows] for rows in kernel])


@pytest.fixture(params=SHAPES, ids=str)
def kernel(request):
    return np.random.default_rng(0).standard_normal(request.param)


def test_entries_transpose_rows_and_products(kernel):
    matrix, written = BlockCirculant(kernel), entries(kernel)
    assert isinstance(matrix, Matrix)
    assert matrix.shape == written.shape
    np.testing.assert_array_equal(matrix.dense(), written)
    np.testing.assert_array_equal(matrix.T.dense(), written.T)
    np.testing.assert_array_equal(matrix.scaled(-0.5).dense(), -0.5 * written)
    for start in range(len(written)):
        np.testing.assert_array_equal(matrix.rows(start, len(written)), written[start:])
        np.testing.assert_array_equal(matrix.rows(0, start), written[:start])
    vector = np.arange(written.shape[1])
    np.testing.assert_allclose(matrix @ vector, written @ vector, rtol=0, atol=1e-13)
    np.testing.assert_allclose(written.T @ matrix, written.T @ written, rtol=0, atol=1e-13)


def test_norm_and_inner_product(kernel):
    matrix, written = BlockCirculant(kernel), entries(kernel)
    np.testing.assert_allclose(matrix.frobenius_norm(), np.linalg.norm(written), rtol=1e-14)
    other = BlockCirculant(kernel**2)
    for form in (other, Dense(other.dense())):
        np.testing.assert_allclose(matrix.inner(form), np.sum(written * entries(kernel**2)), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="shapes differ"):
        matrix.inner(Dense(np.zeros((1, 1))))


def test_singular_triplets_are_those_of_the_entries(kernel):
    matrix, written = BlockCirculant(kernel), entries(kernel)
    sigma = np.linalg.svd(written, compute_uv=False)
    tolerance = 1e-14 * sigma[0] * len(written)
    np.testing.assert_allclose(matrix.singular_values(), sigma, rtol=0, atol=tolerance)
    u, s, vh = matrix.svd()
    np.testing.assert_allclose(s, sigma, rtol=0, atol=tolerance)
    np.testing.assert_allclose(u.T @ u, np.eye(len(s)), rtol=0, atol=1e-13)
    np.testing.assert_allclose(vh @ vh.T, np.eye(len(s)), rtol=0, atol=1e-13)
    np.testing.assert_allclose(u * s @ vh, written, rtol=0, atol=tolerance)
    best = matrix.truncated(1)
    assert best.left.shape[1] == 1
    np.testing.assert_allclose(
        np.linalg.norm(written - best.dense()), np.linalg.norm(sigma[1:]), rtol=1e-12, atol=1e-12
    )


def test_torch_gives_the_same(kernel):
    ours, theirs = BlockCirculant(kernel), BlockCirculant(torch.from_numpy(kernel))
    np.testing.assert_array_equal(to_numpy(theirs.dense()), ours.dense())
    np.testing.assert_array_equal(to_numpy(theirs.T.dense()), ours.T.dense())
    np.testing.assert_allclose(to_numpy(theirs.singular_values()), ours.singular_values(), rtol=0, atol=1e-13)
    u, s, vh = map(to_numpy, theirs.svd())
    np.testing.assert_allclose(u * s @ vh, ours.dense(), rtol=0, atol=1e-13)


def test_what_is_not_finite_is_an_error():
    with pytest.raises(ValueError, match="NaN"):
        BlockCirculant(np.full((1, 1, 2), np.nan)).singular_values()
    with pytest.raises(ValueError, match="three axes"):
        BlockCirculant(np.zeros((2, 2)))


def test_blocks_of_another_size_have_the_entries_inner_product(rng):
    ours, theirs = rng.standard_normal((2, 2, 2)), rng.standard_normal((1, 1, 4))
    expected = np.sum(entries(ours) * entries(theirs))
    assert BlockCirculant(ours).inner(BlockCirculant(theirs)) == pytest.approx(expected, rel=1e-12)


def test_no_more_is_formed_than_is_asked_for(rng):
    """Of matrices of which a thousandth, or the longer side's square, would not fit in memory."""
    row = rng.standard_normal(8)
    tall = BlockCirculant(np.broadcast_to(row, (1 << 24, 1 << 10, 8)))
    for start in (8, 1 << 26):
        np.testing.assert_array_equal(tall.rows(start, start + 2), np.tile([row, np.roll(row, 1)], 1 << 10))
    wide = BlockCirculant(rng.standard_normal((1, 1 << 17, 1)))
    for matrix in (wide, wide.T):
        u, s, vh = matrix.leading(1)
        np.testing.assert_allclose(s, np.linalg.norm(wide.kernel), rtol=1e-12)
        assert (u.shape, vh.shape) == ((matrix.shape[0], 1), (1, matrix.shape[1]))
