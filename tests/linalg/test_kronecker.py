import numpy as np
import pytest
import torch

from lorascope.linalg.factored import Factored
from lorascope.linalg.kronecker import Kronecker
from lorascope.linalg.matrix import as_matrix

SHAPES = [((3, 4), (5, 2)), ((8, 2), (2, 9)), ((1, 6), (4, 1)), ((5, 5), (3, 3))]


def product_of(first, second):
    return Kronecker(as_matrix(first), as_matrix(second))


def matrices(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


@pytest.mark.parametrize("shapes", SHAPES)
def test_dense_equals_kron(shapes):
    first, second = matrices(shapes)
    product = product_of(first, second)
    expected = np.kron(first, second)
    np.testing.assert_array_equal(product.dense(), expected)
    assert product.shape == expected.shape
    np.testing.assert_array_equal(product.T.dense(), expected.T)
    assert product.frobenius_norm() == pytest.approx(np.linalg.norm(expected), rel=1e-14)  # two roundings of each norm


@pytest.mark.parametrize("shapes", SHAPES)
def test_singular_values_are_the_products_descending(shapes):
    first, second = matrices(shapes)
    values = product_of(first, second).singular_values()
    full = np.linalg.svd(np.kron(first, second), compute_uv=False)
    assert len(values) == min(shapes[0]) * min(shapes[1])
    assert np.all(np.diff(values) <= 0)
    np.testing.assert_allclose(values, full[: len(values)], rtol=1e-12)  # well conditioned: eps times a small constant
    np.testing.assert_allclose(full[len(values) :], 0, rtol=0, atol=1e-13)


def test_known_spectrum():
    product = product_of(np.diag([3.0, 1.0]), np.diag([5.0, 2.0]))
    np.testing.assert_array_equal(product.singular_values(), [15, 6, 5, 2])


def test_factored_operands_stay_factored():
    a, b, c, d = matrices([(6, 2), (2, 7), (5, 3), (3, 4)])
    product = Kronecker(Factored(a, b), Factored(c, d))
    expected = np.kron(a @ b, c @ d)
    np.testing.assert_allclose(product.dense(), expected, rtol=1e-13, atol=1e-14)
    values = product.singular_values()
    assert len(values) == 6
    np.testing.assert_allclose(values, np.linalg.svd(expected, compute_uv=False)[:6], rtol=1e-12)
    assert product.frobenius_norm() == pytest.approx(np.linalg.norm(expected), rel=1e-13)


@pytest.mark.parametrize("shapes", SHAPES)
def test_svd_reconstructs(shapes):
    first, second = matrices(shapes)
    product = product_of(first, second)
    u, s, vh = product.svd()
    np.testing.assert_allclose((u * s) @ vh, product.dense(), rtol=0, atol=1e-13)
    np.testing.assert_allclose(u.T @ u, np.eye(len(s)), rtol=0, atol=1e-13)
    np.testing.assert_allclose(vh @ vh.T, np.eye(len(s)), rtol=0, atol=1e-13)
    np.testing.assert_allclose(s, product.singular_values(), rtol=1e-13)  # another LAPACK job: a few eps


@pytest.mark.parametrize("rank", [1, 3, 100])
def test_truncation_is_the_best_of_its_rank(rank):
    first, second = matrices([(4, 5), (6, 3)])
    product = product_of(first, second)
    error = np.linalg.norm(product.dense() - product.truncated(rank).dense())
    rest = product.singular_values()[rank:]
    assert error == pytest.approx(np.linalg.norm(rest), rel=1e-10, abs=1e-12)  # Eckart and Young: the tail's norm


def test_a_large_product_is_never_formed():
    import tracemalloc

    first, second = matrices([(64, 64), (64, 64)])
    tracemalloc.start()
    values = product_of(first, second).singular_values()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(values) == 4096
    assert peak < 2**20  # the product has 128 MiB


def test_torch_and_numpy_agree():
    first, second = matrices([(4, 5), (6, 3)])
    ours = product_of(torch.tensor(first, dtype=torch.float32), torch.tensor(second))
    values = ours.singular_values()
    assert values.dtype == torch.float64
    expected = product_of(first.astype(np.float32).astype(np.float64), second)
    np.testing.assert_allclose(values.numpy(), expected.singular_values(), rtol=1e-12)
    u, s, vh = ours.svd()
    np.testing.assert_allclose(((u * s) @ vh).numpy(), expected.dense(), rtol=0, atol=1e-12)
    assert ours.frobenius_norm() == pytest.approx(expected.frobenius_norm(), rel=1e-13)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("call", ["singular_values", "frobenius_norm", "svd"])
def test_not_finite_is_an_error(bad, call):
    first, second = matrices([(2, 2), (2, 2)])
    second[0, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        getattr(product_of(first, second), call)()


def test_only_matrices():
    with pytest.raises(ValueError, match="two axes"):
        product_of(np.ones((2, 2, 2)), np.ones((2, 2)))
