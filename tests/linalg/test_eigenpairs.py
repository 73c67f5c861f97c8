"""The leading eigenpairs: as many as were asked for, also of equal eigenvalues."""

import numpy as np
import pytest

from lorascope.linalg import eigenpairs


@pytest.mark.parametrize("n", [128, 256, 330])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_of_equal_eigenvalues_none_is_left_out(n, rank):
    """Of the identity and a small change LAPACK's routines for a few return some of them, and no error."""
    for seed in range(5):
        change = 0.01 * np.random.default_rng(seed).standard_normal((n, rank))
        matrix = np.eye(n) + change @ change.T
        values, vectors = eigenpairs.leading(matrix.copy(), 12)
        np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix)[::-1][:12], rtol=0, atol=1e-13)
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(12), rtol=0, atol=1e-11)
        np.testing.assert_allclose(matrix @ vectors, vectors * values, rtol=0, atol=1e-13)


def test_a_few_of_many_and_all(rng):
    matrix = rng.standard_normal((60, 60))
    matrix = matrix @ matrix.T
    expected = np.linalg.eigvalsh(matrix)[::-1]
    for count in (3, 60):
        values, vectors = eigenpairs.leading(matrix.copy(), count)
        np.testing.assert_allclose(values, expected[:count], rtol=0, atol=1e-12 * expected[0])
        np.testing.assert_allclose(matrix @ vectors, vectors * values, rtol=0, atol=1e-12 * expected[0])
