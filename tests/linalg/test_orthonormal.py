"""Eigenvectors as reflections times those of a tridiagonal matrix, compared with numpy's and with their own matrix."""

import numpy as np
import pytest

from lorascope.linalg import orthonormal
from lorascope.linalg.orthonormal import SMALL, Orthonormal, eigenvectors


def gram(rng, n):
    """With eigenvalues over six decades."""
    rotation = np.linalg.qr(rng.standard_normal((n, n)))[0]
    return (rotation * np.logspace(3, -3, n)) @ rotation.T


@pytest.mark.parametrize("n", [1, 7, SMALL, SMALL + 1, 300])
def test_the_same_eigenpairs_as_numpy(rng, n):
    matrix = gram(rng, n)
    matrix = (matrix + matrix.T) / 2
    values, basis = eigenvectors(matrix.copy())
    expected = np.linalg.eigvalsh(matrix)[::-1]
    assert (basis.reflectors is None) == (n <= SMALL or orthonormal._lapack() is None)
    # Both are backward stable: each value moves by a few eps·‖G‖₂, and so does the product put together again.
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-13 * expected[0])
    whole = basis.dense()
    np.testing.assert_allclose((whole * values) @ whole.T, matrix, rtol=0, atol=1e-12 * expected[0])
    np.testing.assert_allclose(whole.T @ whole, np.eye(n), rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [1, 5, 200])
def test_a_few_vectors_are_as_by_the_matrix(rng, k):
    _, basis = eigenvectors(gram(rng, 200))
    whole, vectors = basis.dense(), rng.standard_normal((200, k))
    untouched = vectors.copy()
    np.testing.assert_allclose(basis.coefficients(vectors), whole.T @ vectors, rtol=0, atol=1e-12)
    np.testing.assert_allclose(basis.combined(vectors), whole @ vectors, rtol=0, atol=1e-12)
    np.testing.assert_allclose(basis.leading(k), whole[:, :k], rtol=0, atol=1e-13)
    np.testing.assert_array_equal(vectors, untouched)


def test_without_reflectors_it_is_its_matrix(rng):
    whole, vectors = np.linalg.qr(rng.standard_normal((6, 6)))[0], rng.standard_normal((6, 2))
    basis = Orthonormal(whole)
    np.testing.assert_array_equal(basis.coefficients(vectors), whole.T @ vectors)
    np.testing.assert_array_equal(basis.combined(vectors), whole @ vectors)
    np.testing.assert_array_equal(basis.leading(4), whole[:, :4])
    np.testing.assert_array_equal(basis.dense(), whole)


def test_an_older_scipy_and_a_matrix_too_large_take_numpy(rng, monkeypatch):
    matrix = gram(rng, 150)
    quick, _ = eigenvectors(matrix.copy())
    for name, value in (("_lapack", lambda: None), ("LARGEST", 149)):
        with monkeypatch.context() as other:
            other.setattr(orthonormal, name, value)
            values, basis = eigenvectors(matrix.copy())
        assert basis.reflectors is None
        np.testing.assert_allclose(values, quick, rtol=0, atol=1e-10)
    monkeypatch.setattr(orthonormal, "LARGEST", 150)
    assert (eigenvectors(matrix.copy())[1].reflectors is None) == (orthonormal._lapack() is None)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_has_no_eigenvectors(bad):
    with pytest.raises(np.linalg.LinAlgError, match="did not converge"):
        eigenvectors(np.full((SMALL + 1, SMALL + 1), bad))


def test_scipy_without_the_routine_is_noticed(monkeypatch):
    from scipy.linalg import lapack

    monkeypatch.setattr(lapack, "dstevd", None, raising=False)
    assert orthonormal._lapack() is lapack
    monkeypatch.delattr(lapack, "dstevd")
    assert orthonormal._lapack() is None
