"""Singular values of a factored matrix against 60-digit arithmetic, closed forms and the dense product."""

import mpmath
import numpy as np
import pytest

from lorascope.linalg import factored
from lorascope.linalg.factored import Factored


def orthonormal(rng: np.random.Generator, m: int, k: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((m, k)))[0]


def conditioned(rng: np.random.Generator, k: int, condition: float) -> np.ndarray:
    """A k × k gauge of that condition number, with no structure a decomposition could profit from."""
    return orthonormal(rng, k, k) @ np.diag(np.geomspace(1, condition, k)) @ orthonormal(rng, k, k)


def exact_singular_values(left: np.ndarray, right: np.ndarray) -> list[mpmath.mpf]:
    """Of the product of exactly these floats, in 60 digits: √ of the eigenvalues of G^½ H G^½, G = lᵀl, H = r rᵀ."""
    with mpmath.workdps(60):
        g = mpmath.matrix(left.tolist())
        h = mpmath.matrix(right.tolist())
        values, vectors = mpmath.eigsy(g.T * g)
        root = vectors * mpmath.diag([mpmath.sqrt(abs(v)) for v in values]) * vectors.T
        squares = mpmath.eigsy(root * (h * h.T) * root, eigvals_only=True)
        return sorted((mpmath.sqrt(abs(v)) for v in squares), reverse=True)


def worst_relative_error(found: np.ndarray, exact: list[mpmath.mpf], down_to: float) -> float:
    with mpmath.workdps(60):
        return max(
            float(abs(mpmath.mpf(float(f)) - e) / e)
            for f, e in zip(found, exact, strict=True)
            if e >= down_to * exact[0]
        )


GAUGES = {
    "balanced": lambda rng: np.eye(6),
    "orthogonal": lambda rng: orthonormal(rng, 6, 6),
    "diagonal 1e8": lambda rng: np.diag(np.geomspace(1e-4, 1e4, 6)),
    "condition 1e2": lambda rng: conditioned(rng, 6, 1e2),
    "condition 1e4": lambda rng: conditioned(rng, 6, 1e4),
    "condition 1e6": lambda rng: conditioned(rng, 6, 1e6),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("gauge", GAUGES)
def test_small_singular_values_keep_their_digits_in_any_gauge(rng, gauge, dtype):
    """The issue asks for 1e-10 down to 1e-6 of the largest; LAPACK on the core alone gives 3e-10 in the worst gauge."""
    gauge = GAUGES[gauge](rng)
    root = np.sqrt(np.geomspace(1, 1e-6, 6))
    left = (orthonormal(rng, 50, 6) * root @ gauge).astype(dtype).astype(np.float64)
    right = np.linalg.solve(gauge, root[:, None] * orthonormal(rng, 40, 6).T).astype(dtype).astype(np.float64)
    exact = exact_singular_values(left, right)
    assert worst_relative_error(Factored(left, right).singular_values(), exact, 0.9e-6) < 1e-11
    assert worst_relative_error(Factored(left, right).svd()[1], exact, 0.9e-6) < 1e-11


CASES = {
    "tall": (30, 20, 4),
    "rank 1": (7, 9, 1),
    "k above both sides": (5, 6, 11),
    "k between the sides": (5, 20, 11),
    "square": (8, 8, 8),
}


@pytest.mark.parametrize(("m", "n", "k"), CASES.values(), ids=CASES)
def test_agrees_with_the_dense_product(rng, m, n, k):
    factored = Factored(rng.standard_normal((m, k)), rng.standard_normal((k, n)))
    dense = factored.left @ factored.right
    p = min(m, n, k)
    expected = np.linalg.svd(dense, compute_uv=False)
    scale = 1e-13 * expected[0]  # two backward stable algorithms differ by a modest multiple of eps · σ₁
    np.testing.assert_allclose(factored.singular_values(), expected[:p], rtol=0, atol=scale)
    u, s, vh = factored.svd()
    assert u.shape == (m, p)
    assert vh.shape == (p, n)
    np.testing.assert_allclose(u * s @ vh, dense, rtol=0, atol=10 * scale)
    np.testing.assert_allclose(u.T @ u, np.eye(p), rtol=0, atol=1e-13)
    np.testing.assert_allclose(vh @ vh.T, np.eye(p), rtol=0, atol=1e-13)
    assert factored.frobenius_norm() == pytest.approx(np.linalg.norm(dense), rel=1e-13)
    np.testing.assert_allclose(factored.T.dense(), dense.T)


def test_inner_product_and_truncation_against_dense(rng):
    x = Factored(rng.standard_normal((30, 5)), rng.standard_normal((5, 20)))
    y = Factored(rng.standard_normal((30, 3)), rng.standard_normal((3, 20)))
    assert x.inner(y) == pytest.approx(np.sum(x.dense() * y.dense()), rel=1e-12)
    sigma = x.singular_values()
    error = np.linalg.norm(x.dense() - x.truncated(2).dense())
    assert error == pytest.approx(np.sqrt(np.sum(sigma[2:] ** 2)), rel=1e-12)  # Eckart and Young


def test_zero_columns_dependent_columns_and_zero_matrices(rng):
    left, right = rng.standard_normal((30, 4)), rng.standard_normal((4, 20))
    left[:, 1] = 0
    left[:, 3] = left[:, 0]
    dense = np.linalg.svd(left @ right, compute_uv=False)[:4]
    np.testing.assert_allclose(Factored(left, right).singular_values(), dense, rtol=0, atol=1e-13 * dense[0])
    np.testing.assert_array_equal(Factored(np.zeros((5, 2)), np.ones((2, 3))).singular_values(), [0, 0])


def test_tiny_and_huge_entries_neither_vanish_nor_overflow(rng):
    left, right = orthonormal(rng, 30, 3) * [3.0, 2.0, 1.0], orthonormal(rng, 20, 3).T
    for factor in (1e-200, 1e-80, 1e80):
        found = Factored(left * factor, right).singular_values()
        np.testing.assert_allclose(found / factor, [3, 2, 1], rtol=1e-13)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_entries_are_refused(bad):
    left = np.ones((5, 2))
    left[2, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        Factored(left, np.ones((2, 3))).singular_values()


def test_mismatched_factors_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 2\) by \(3, 4\)"):
        Factored(np.ones((3, 2)), np.ones((3, 4)))


def test_torch_tensors_give_the_same_numbers(rng):
    import torch

    left, right = rng.standard_normal((30, 4)), rng.standard_normal((4, 20))
    expected = Factored(left, right).singular_values()
    found = Factored(torch.from_numpy(left), torch.from_numpy(right))
    np.testing.assert_allclose(found.singular_values().numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(found.svd()[1].numpy(), expected, rtol=1e-12)
    assert found.frobenius_norm() == pytest.approx(np.linalg.norm(left @ right), rel=1e-13)
    steep = torch.from_numpy(left * np.geomspace(1, 1e-8, 4))  # the balanced gauge, in torch
    assert Factored(steep, torch.from_numpy(right)).singular_values().shape == (4,)


@pytest.mark.gpu
def test_cuda_tensors_give_the_same_numbers(rng):
    import torch

    left, right = rng.standard_normal((3000, 16)), rng.standard_normal((16, 2000))
    found = Factored(torch.from_numpy(left).cuda(), torch.from_numpy(right).cuda()).singular_values()
    np.testing.assert_allclose(found.cpu().numpy(), Factored(left, right).singular_values(), rtol=1e-11)


def test_a_steep_but_unmixed_spectrum_takes_no_extended_precision(rng, monkeypatch):
    """B of decaying columns, A of random rows: a big adapter of this kind once spent its time in long double."""
    from lorascope.linalg import factored

    monkeypatch.setattr(factored, "_extended_gauge", lambda *_: pytest.fail("not needed here"))
    left = rng.standard_normal((200, 32)) * 0.7 ** np.arange(32)
    right = rng.uniform(-1, 1, (32, 300))
    found = Factored(left, right).singular_values()
    exact = exact_singular_values(left, right)
    assert worst_relative_error(found, exact, 1e-6) < 1e-11


def test_a_negligible_value_asks_for_no_extended_precision(rng, monkeypatch):
    """A mixed gauge rounds σ₂ = 1e-9·σ₁ at 1e-7 of itself: below what is asked of, so nothing slower is tried."""
    from lorascope.linalg import factored

    monkeypatch.setattr(factored, "_extended_gauge", lambda *_: pytest.fail("not needed here"))
    u, v = (np.linalg.qr(rng.standard_normal((size, 2)))[0] for size in (40, 30))
    mix = np.array([[1.0, 1.0], [1.0, 2.0]])
    found = Factored((u * [1, 1e-9]) @ mix, np.linalg.inv(mix) @ v.T).singular_values()
    assert found[0] == pytest.approx(1, rel=1e-11)


@pytest.mark.parametrize(("m", "k", "n"), [(5, 0, 4), (0, 2, 4), (5, 2, 0)])
def test_an_empty_product_has_an_empty_decomposition(m, k, n):
    """AdaLoRA may prune every triplet of a module: ΔW is zero, and nothing is left to decompose."""
    empty = Factored(np.ones((m, k)), np.ones((k, n)))
    u, s, vh = empty.svd()
    assert (u.shape, s.shape, vh.shape) == ((m, 0), (0,), (0, n))
    assert empty.singular_values().shape == (0,)
    assert empty.truncated(3).dense().shape == (m, n)
    assert empty.frobenius_norm() == 0


@pytest.mark.parametrize("k", [1, 2, 15, 16, 17])
@pytest.mark.parametrize("m", [1024, 3072, 2304, 2049])  # one piece, three, nine of the shortest, and no equal pieces
def test_the_gram_matrix_in_pieces_is_the_product(rng, k, m):
    tall = rng.standard_normal((m, k)) * np.geomspace(1, 1e-6, k)
    exact = tall.T.astype(np.longdouble) @ tall
    lengths = np.linalg.norm(tall, axis=0)
    for given in (tall, np.asfortranarray(tall), np.pad(tall, ((0, 0), (1, 2)))[:, 1 : k + 1]):
        gram = factored._gram(given)
        assert np.abs(np.tril(gram - exact) / np.outer(lengths, lengths)).max() < 1e-14  # eps·√m of the lengths
        np.testing.assert_allclose(gram, gram.T, rtol=0, atol=1e-14 * lengths.max() ** 2)


def test_the_largest_numbers_that_there_are():
    """1.5e308 is divided by 2^1023, and no larger power of two is a number."""
    found = Factored(np.array([[1.5e308]]), np.array([[2e-300]]))
    assert found.singular_values()[0] == pytest.approx(3e8, rel=1e-14)
    assert found.svd()[1][0] == pytest.approx(3e8, rel=1e-14)
    assert found.frobenius_norm() == pytest.approx(3e8, rel=1e-14)
    negative = Factored(np.array([[-1.5e308], [-1.0]]), np.array([[2e-300]]))
    assert negative.singular_values()[0] == pytest.approx(3e8, rel=1e-14)
    too_large = Factored(np.array([[1.5e308]]), np.array([[2.0]]))
    with pytest.raises(ValueError, match="larger than float64 holds"):
        too_large.singular_values()
    zero = Factored(np.zeros((3, 2)), np.full((2, 4), 1e300))
    assert zero.frobenius_norm() == 0
    assert zero.singular_values().tolist() == zero.svd()[1].tolist() == [0, 0]


def test_a_triangle_by_cholesky_while_the_columns_are_independent():
    """Two unit columns at cosine c have a Gram matrix of condition (1 + c)/(1 − c): 1000 at c = 999/1001."""
    for c, there in ((999 / 1001 - 1e-6, True), (999 / 1001 + 1e-6, False)):
        tall = np.array([[1.0, c], [0.0, np.sqrt(1 - c * c)], [0.0, 0.0]]) * [3.0, 1e-100]
        found = factored.cholesky_triangle(tall)
        assert (found is not None) == there
        if found is not None:
            np.testing.assert_allclose(found, np.triu(tall[:2]), rtol=1e-9, atol=0)
    for bad in (0.0, 1e-141, np.inf, np.nan):
        assert factored.cholesky_triangle(np.array([[1.0, 0.0], [0.0, bad]])) is None
    assert factored.cholesky_triangle(np.array([[1.0, 0.0], [0.0, 1e-139]])) is not None


def test_cancellation_is_of_the_terms_of_each_sum(rng):
    """By loops: the lengths of the terms of a column over the length of their sum, on either side."""
    r_left, r_right, gauge = np.triu(rng.standard_normal((3, 3))), np.triu(rng.standard_normal((3, 3))), np.ones((3, 3))
    gauge += np.diag([1e-3, 2e-3, 3e-3])
    worst = 0.0
    for r, g in ((r_left, gauge), (r_right, np.linalg.inv(gauge).T)):
        for j in range(3):
            terms = [r[:, i] * g[i, j] for i in range(3)]
            worst = max(worst, sum(map(np.linalg.norm, terms)) / np.linalg.norm(sum(terms)))
    assert factored._cancellation(r_left, r_right, gauge) == pytest.approx(worst, rel=1e-9)


def test_which_values_are_trusted(rng):
    """Those that are not negligible, below 1e-7 of the first; rounding is eps·Σ‖l_i‖‖r_i‖, at most 1e-11 of each."""
    u, v = orthonormal(rng, 30, 2), orthonormal(rng, 20, 2)
    for sigma, trusted in (([1.0, 1e-3], True), ([1.0, 2e-6], False), ([1.0, 5e-8], True)):
        mixed = u * np.array(sigma) @ np.array([[1.0, 1.0], [0.0, 0.1]])
        right_t = v @ np.linalg.inv(np.array([[1.0, 1.0], [0.0, 0.1]])).T
        values, good = factored._core_values(mixed, right_t)
        np.testing.assert_allclose(values[0], 1, rtol=1e-12)
        assert good == trusted


def test_factors_in_single_precision_are_decomposed_in_double(rng):
    left, right = rng.standard_normal((30, 4)).astype(np.float32), rng.standard_normal((4, 20)).astype(np.float32)
    single, double = Factored(left, right), Factored(left.astype(float), right.astype(float))
    assert single.singular_values().dtype == single.svd()[0].dtype == np.float64
    np.testing.assert_array_equal(single.singular_values(), double.singular_values())
    assert (single.frobenius_norm(), single.inner(single)) == (double.frobenius_norm(), double.inner(double))


def test_a_core_that_is_not_square_stays_in_its_gauge(rng):
    """X Z as [X X] · [10⁶·Y + Z; −10⁶·Y], of more inner columns than rows: it cancels to 10⁶·eps."""
    x, y, z = rng.standard_normal((5, 3)), 1e6 * rng.standard_normal((3, 20)), rng.standard_normal((3, 20))
    product = Factored(np.concatenate([x, x], axis=1), np.concatenate([y + z, -y], axis=0))
    expected = np.linalg.svd(x @ z, compute_uv=False)
    for found in (product.singular_values(), product.svd()[1], product.T.singular_values()):
        np.testing.assert_allclose(found[:3], expected[:3], rtol=0, atol=1e-7)
        assert found.shape == (5,)


@pytest.mark.parametrize("scale", [1.0, 2.0**-332, 2.0**332, 2.0**-498, 2.0**664])  # so that nothing is rounded
def test_a_mixed_gauge_with_a_direction_that_is_nothing(rng, scale):
    """σ = 1 and 2e-6, mixed so that rounding would show, and a column of zeros: the gauge is completed."""
    mix = np.array([[1.0, 1.0], [0.0, 1e-3]])
    left = np.pad(orthonormal(rng, 30, 2) * [1.0, 2e-6] @ mix, ((0, 0), (0, 1)))
    right = np.concatenate([np.linalg.inv(mix) @ orthonormal(rng, 20, 2).T, rng.standard_normal((1, 20))])
    exact = exact_singular_values(left[:, :2], right[:2])
    product = Factored(left * scale, right)
    for found in (product.singular_values(), product.svd()[1]):
        assert worst_relative_error(found[:2] / scale, exact, 1e-6) < 1e-10
        assert found[2] <= 1e-15 * found[0]
    u, s, vh = product.svd()
    np.testing.assert_allclose((u * (s / scale)) @ vh, left @ right, rtol=0, atol=1e-13)


@pytest.mark.parametrize("k", [1, 4])
def test_a_rank_beyond_what_there_is_and_a_leading_part(rng, k):
    product = Factored(rng.standard_normal((6, k)), rng.standard_normal((k, 9)))
    assert product.truncated(k + 3).left.shape == (6, k)
    assert [part.shape for part in product.leading(k)] == [(6, k), (k,), (k, 9)]
