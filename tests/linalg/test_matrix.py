"""Every form of ΔW does what its entries do."""

import tracemalloc

import numpy as np
import pytest
import torch

from lorascope.linalg import dense as spectra
from lorascope.linalg.factored import Factored
from lorascope.linalg.kronecker import Kronecker
from lorascope.linalg.matrix import Dense, Matrix, as_matrix
from lorascope.linalg.subspace import row_basis

CLOSE = {"rtol": 1e-12, "atol": 1e-13}  # a few roundings of sums of some ten terms


def forms(rng):
    low = Factored(rng.standard_normal((6, 2)), rng.standard_normal((2, 10)))
    return {
        "factored": low,
        "dense": Dense(rng.standard_normal((6, 10))),
        "kronecker": Kronecker(Dense(rng.standard_normal((2, 5))), Dense(rng.standard_normal((3, 2)))),
        "kronecker of factored": Kronecker(Dense(rng.standard_normal((1, 1))), low),
    }


FORMS = list(forms(np.random.default_rng(0)))


@pytest.fixture(params=FORMS)
def pair(request):
    """A matrix and its entries."""
    made = forms(np.random.default_rng(1))[request.param]
    return made, np.asarray(made.dense())


def test_it_is_a_matrix_and_an_array_is_made_one(pair):
    made, entries = pair
    assert isinstance(made, Matrix)
    assert not isinstance(entries, Matrix)
    assert as_matrix(made) is made
    np.testing.assert_array_equal(np.asarray(as_matrix(entries)), entries)
    assert made.shape == entries.shape


def test_its_parts_and_products(pair):
    made, entries = pair
    rng = np.random.default_rng(2)
    right, left, vector = rng.standard_normal((10, 3)), rng.standard_normal((4, 6)), rng.standard_normal(10)
    np.testing.assert_allclose(made.T.dense(), entries.T, **CLOSE)
    np.testing.assert_allclose(made.scaled(-0.3).dense(), -0.3 * entries, **CLOSE)
    np.testing.assert_allclose(made @ right, entries @ right, **CLOSE)
    np.testing.assert_allclose(left @ made, left @ entries, **CLOSE)
    np.testing.assert_allclose(made @ vector, entries @ vector, **CLOSE)
    np.testing.assert_allclose(left[0] @ made, left[0] @ entries, **CLOSE)
    np.testing.assert_allclose(made.rows(1, 4), entries[1:4], **CLOSE)
    assert made.structured == (type(made) is not Dense)
    if (product := made.factors()) is not None:
        np.testing.assert_allclose(product.left @ product.right, entries, **CLOSE)


@pytest.mark.parametrize("other", FORMS)
def test_inner_products_of_every_two_forms(pair, other):
    made, entries = pair
    with_this = forms(np.random.default_rng(3))[other]
    assert made.inner(with_this) == pytest.approx(np.sum(entries * with_this.dense()), rel=1e-11, abs=1e-12)


def test_its_decompositions(pair):
    made, entries = pair
    expected = np.linalg.svd(entries, compute_uv=False)
    sigma = made.singular_values()
    np.testing.assert_allclose(sigma, expected[: len(sigma)], **CLOSE)
    np.testing.assert_allclose(expected[len(sigma) :], 0, rtol=0, atol=1e-13)
    assert made.frobenius_norm() == pytest.approx(np.linalg.norm(entries), rel=1e-13)
    u, s, vh = made.svd()
    np.testing.assert_allclose((u * s) @ vh, entries, **CLOSE)
    best = (u[:, :2] * s[:2]) @ vh[:2]
    np.testing.assert_allclose(made.truncated(2).dense(), best, **CLOSE)
    u, s, vh = made.leading(2)
    np.testing.assert_allclose((u * s) @ vh, best, **CLOSE)


def test_torch_tensors_too():
    values = torch.randn(5, 4, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    made = Dense(values)
    assert made.frobenius_norm() == pytest.approx(float(values.double().norm()), rel=1e-12)
    assert made.singular_values().dtype == torch.float64
    torch.testing.assert_close((made @ values.T), values @ values.T)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_an_error(bad):
    values = np.ones((3, 4))
    values[1, 2] = bad
    for made in (Dense(values), Factored(values, np.ones((4, 2))), Kronecker(Dense(values), Dense(np.ones((2, 2))))):
        with pytest.raises(ValueError, match="NaN or infinite"):
            made.singular_values()


@pytest.mark.parametrize("factor", [-1e-200, -1.0, -1e200])
def test_norms_where_squares_vanish_or_overflow(pair, factor):
    made, entries = pair
    expected = np.linalg.norm(entries)
    assert made.scaled(factor).frobenius_norm() / abs(factor) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_of_no_entries(shape):
    empty = np.zeros(shape)
    for made in (Dense(empty), Factored(empty, np.zeros((shape[1], 4)))):
        assert made.frobenius_norm() == 0
        assert made.singular_values().shape == (0,)


def test_the_longer_side_is_never_squared(rng):
    """A square of the longer side would take 137 GB."""
    row = rng.standard_normal((1, 1 << 17))
    for values in (row, row.T):
        u, s, vh = Dense(values).svd()
        assert s[0] == pytest.approx(np.linalg.norm(row), rel=1e-12)
        assert (u.shape, vh.shape) == ((values.shape[0], 1), (1, values.shape[1]))
        for leading in (spectra.leading(values, 1), spectra.best_rank(values, 1)):
            assert (leading.u.shape, leading.vh.shape) == (u.shape, vh.shape)
        basis, sigma = row_basis(values)
        assert (basis.shape, sigma.shape) == ((values.shape[1], 1), (1,))


def test_nor_that_of_a_matrix_wider_than_the_krylov_space(rng):
    """Of 61 rows, where five blocks of eleven are made: a square of the longer side has 128 MiB."""
    wide = rng.standard_normal((61, 1)) * rng.standard_normal(4096)
    for values in (wide, wide.T):
        tracemalloc.start()
        found = spectra.leading(values, 1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.s[0] == pytest.approx(np.linalg.norm(wide), rel=1e-10)
        assert (found.u.shape, found.vh.shape) == ((values.shape[0], 1), (1, values.shape[1]))
        assert found.spectrum.method == "randomised"
        assert peak < 2**24


@pytest.mark.parametrize("values", [[-1e200, 1.0], [1.0, -1e200], [1e200, -1.0], [-1e-200, -1e-300], [-3e150, 4e150]])
def test_a_norm_is_of_the_largest_entry_s_size_whatever_its_sign(values):
    expected = max(map(abs, values)) * np.linalg.norm(np.array(values) / max(map(abs, values)))
    assert Dense(np.array([values])).frobenius_norm() == pytest.approx(expected, rel=1e-14, abs=0)
