"""Dense spectra against planted ones and against LAPACK in float64."""

import numpy as np
import pytest
import scipy.linalg

from lorascope.linalg import dense


def planted(sigma, m, n, seed=0):
    rng = np.random.default_rng(seed)
    p = len(sigma)
    u, v = (np.linalg.qr(rng.standard_normal((size, p)))[0] for size in (m, n))
    return (u * np.asarray(sigma)) @ v.T


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (64, 64), (1, 9), (9, 1)])
def test_the_gram_way_gives_every_value_within_its_own_bound(shape):
    p = min(shape)
    sigma = np.logspace(0, -6, p)  # down to where the Gram matrix has lost about half of the digits
    found = dense.spectrum(planted(sigma, *shape), accuracy=1e-2)
    assert found.method == "gram"
    assert np.all(np.abs(found.values - sigma) <= found.error)
    assert found.remaining == 0  # all are listed
    assert found.error[0] < 1e-13  # the bound is worth something: near eps at the top
    assert found.error[-1] < 1e-7
    np.testing.assert_allclose(found.values[: p // 2], sigma[: p // 2], rtol=1e-6)  # what is promised by default


def test_zeros_below_a_high_bulk_are_numbers():
    """Squares of rounding, half of them negative."""
    found = dense.spectrum(planted(np.ones(30), 40, 60))
    assert found.method == "gram"
    np.testing.assert_allclose(found.values, np.repeat([1.0, 0.0], [30, 10]), rtol=0, atol=1e-7)  # √eps and some


def test_a_low_bulk_takes_the_accurate_way():
    sigma = np.r_[np.ones(4), np.full(44, 1e-9)]
    found = dense.spectrum(planted(sigma, 48, 60))
    assert (found.method, found.remaining) == ("svd", 0)
    np.testing.assert_allclose(found.values, sigma, rtol=1e-5)  # eps·σ₁/σ is 2e-7 here
    assert np.all(np.abs(found.values - sigma) <= found.error)


def test_against_lapack_on_noise_and_in_single_precision():
    matrix = np.random.default_rng(1).standard_normal((120, 150)).astype(np.float32)
    exact = np.linalg.svd(matrix.astype(float), compute_uv=False)
    np.testing.assert_allclose(dense.spectrum(matrix).values, exact, rtol=1e-12)  # condition 20: 400·eps·√270
    np.testing.assert_allclose(dense.singular_values(matrix), exact, rtol=1e-13)
    single = np.linalg.svd(matrix, compute_uv=False)
    assert np.abs(dense.spectrum(matrix).values - exact).max() < np.abs(single - exact).max() / 1000


def test_zero_and_non_finite():
    zero = dense.spectrum(np.zeros((3, 5)))
    assert zero.values.tolist() == [0, 0, 0]
    for call in (dense.spectrum, dense.singular_values, lambda a: dense.best_rank(a, 1), lambda a: dense.leading(a, 1)):
        with pytest.raises(ValueError, match="NaN"):
            call(np.array([[1.0, np.nan], [0.0, 1.0]]))


@pytest.mark.parametrize("shape", [(50, 80), (80, 50), (30, 30)])
@pytest.mark.parametrize("rank", [1, 5, 29])
def test_best_rank_is_eckart_youngs(shape, rank):
    matrix = np.random.default_rng(2).standard_normal(shape)
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    found = dense.best_rank(matrix, rank)
    np.testing.assert_allclose(found.s, s[:rank], rtol=1e-10)
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    np.testing.assert_allclose((found.u * found.s) @ found.vh, best, rtol=0, atol=1e-8)  # eps over gaps of about 0.1
    np.testing.assert_allclose(found.u.T @ found.u, np.eye(rank), rtol=0, atol=1e-12)
    assert found.spectrum.remaining == pytest.approx(np.sum(s[rank:] ** 2), rel=1e-10)


def test_best_rank_refuses_what_there_is_not():
    for rank in (4, 0, -1):
        with pytest.raises(ValueError, match=f"no part of rank {rank}"):
            dense.best_rank(np.ones((3, 5)), rank)


@pytest.mark.parametrize("shape", [(150, 220), (220, 150), (30, 40)])
@pytest.mark.parametrize("noise", [0.005, 0.05])
def test_the_leading_values_lie_within_their_bound_and_the_rest_is_exact(shape, noise):
    rng = np.random.default_rng(3)
    matrix = planted(20 * 0.7 ** np.arange(12), *shape) + noise * rng.standard_normal(shape)
    exact = np.linalg.svd(matrix, compute_uv=False)
    found = dense.leading(matrix, 8, seed=1).spectrum
    assert np.all(found.values <= exact[:8] * (1 + 1e-12))  # Ritz values: never too large, but for rounding
    assert np.all(exact[:8] <= found.values + found.error)
    assert found.error[0] < 0.2  # of σ₁ = 20: (1.5 σ₁₉)² / 2σ₁
    assert found.remaining == pytest.approx(np.sum(matrix**2) - np.sum(found.values**2), rel=1e-10)
    # Five steps of the Krylov space leave 1e-8 where σ₁₉ = 1.3 and σ₈ = 1.9, and nothing at σ₁₉ = 0.13.
    np.testing.assert_allclose(found.values, exact[:8], rtol=1e-12 if noise < 0.01 else 1e-7)


def test_of_low_rank_the_leading_values_are_exact_and_nothing_remains():
    for seed in range(6):  # ‖M‖² − Σσ² rounds to either side of zero
        matrix = planted([3.0, 2.0, 1.0], 60, 50, seed)
        assert 0 <= dense.leading(matrix, 3).spectrum.remaining < 1e-12
        assert 0 <= dense.best_rank(matrix, 3).spectrum.remaining < 1e-12
    found = dense.leading(matrix, 3)
    np.testing.assert_allclose(found.s, [3, 2, 1], rtol=1e-13)
    assert np.all(found.spectrum.error < 1e-6)
    np.testing.assert_allclose((found.u * found.s) @ found.vh, matrix, rtol=0, atol=1e-13)


def test_repeated_singular_values():
    found = dense.best_rank(np.eye(20, 30), 5)
    np.testing.assert_allclose(found.s, 1, rtol=1e-13)
    np.testing.assert_allclose(dense.leading(np.eye(20, 30), 5).s, 1, rtol=1e-13)


def test_torch_goes_through_the_same_functions():
    torch = pytest.importorskip("torch")
    matrix = np.random.default_rng(4).standard_normal((40, 60))
    tensor = torch.from_numpy(matrix)
    for ours, theirs in (
        (dense.spectrum(tensor).values, dense.spectrum(matrix).values),
        (dense.best_rank(tensor, 4).s, dense.best_rank(matrix, 4).s),
        (dense.leading(tensor, 4).s, dense.leading(matrix, 4).s),
    ):
        assert isinstance(ours, torch.Tensor)
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-12)

    for decompose in (dense.leading, dense.best_rank):
        assert decompose(tensor, 4).spectrum.remaining == pytest.approx(decompose(matrix, 4).spectrum.remaining)


@pytest.mark.gpu
def test_on_a_gpu_the_numbers_are_the_same():
    torch = pytest.importorskip("torch")
    matrix = planted(np.geomspace(1, 1e-3, 200), 300, 200) + 1e-5
    tensor = torch.from_numpy(matrix).to("cuda")
    for ours, theirs in (
        (dense.spectrum(tensor).values, dense.spectrum(matrix).values),
        (dense.best_rank(tensor, 4).s, dense.best_rank(matrix, 4).s),
        (dense.leading(tensor, 4).s, dense.leading(matrix, 4).s),
    ):
        assert ours.device.type == "cuda"
        np.testing.assert_allclose(ours.cpu().numpy(), theirs, rtol=1e-7)  # the Gram matrix at σ₁/1000: 1e-16·10⁶·√500


@pytest.mark.parametrize("shape", [(40, 60), (60, 40)])
def test_the_bound_on_what_is_left_holds_and_is_not_idle(shape):
    """Of a flat remainder, where each probe sees every direction: never below the largest value, never over 3 times.

    The bound is the fifth root of 10·√(2/π) times the longest of 10 images of Gaussian vectors, of length √36 here:
    about (8·7.5)^(1/5) = 2.3. A tenth of it, instead of ten times, would be 0.9.
    """
    sigma = np.r_[[5.0, 4.0, 3.0, 2.5], np.ones(36)]
    matrix = planted(sigma, *shape)
    u, s, _ = np.linalg.svd(matrix, full_matrices=False)
    q = u[:, :4]
    for seed in range(30):
        bound = dense._residual_norm(matrix, q, q.T @ matrix, np.random.default_rng(seed), float(np.sum(s[4:] ** 2)))
        assert 1.5 < bound < 3
    other = np.linalg.qr(np.random.default_rng(1).standard_normal((shape[0], 4)))[0]  # no subspace of the matrix's own
    left = matrix - other @ (other.T @ matrix)
    bound = dense._residual_norm(matrix, other, other.T @ matrix, np.random.default_rng(0), np.linalg.norm(left) ** 2)
    probe = np.random.default_rng(0).standard_normal((shape[1], 10))
    longest = np.linalg.norm(left @ left.T @ left @ left.T @ left @ probe, axis=0).max()  # of (EEᵀ)²E
    assert bound == pytest.approx((10 * np.sqrt(2 / np.pi) * longest) ** 0.2, rel=1e-9)
    assert bound > np.linalg.norm(left, 2)
    assert dense._residual_norm(matrix, other, other.T @ matrix, np.random.default_rng(0), 1e-4) == 1e-2  # ‖E‖_F


@pytest.mark.parametrize(("times", "method"), [(1.4, "gram"), (0.7, "svd")])
def test_the_gram_matrix_is_taken_while_the_middle_value_keeps_its_digits(rng, times, method):
    """Its rounding √(m+n)·eps·σ₁² moves σ² by 2·accuracy·σ² where σ²/σ₁² is this; just above and below it."""
    n, accuracy = 64, 1e-6
    turning = np.sqrt(2 * n) * np.finfo(float).eps / (2 * accuracy)
    sigma = np.concatenate([np.ones(n // 2), np.full(n // 2, np.sqrt(times * turning))])
    u, v = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    assert dense.spectrum(u * sigma @ v.T, accuracy).method == method


@pytest.mark.parametrize("scale", [1.0, 1e-80, 1e80])
def test_the_bound_of_what_was_not_found_is_that_of_the_residual(rng, scale):
    """Four large values above 200 equal ones: Halko's lemma gives at most (10·√(2/π)·longest probe)^(1/5) = 2.6·σ₅."""
    u, v = (np.linalg.qr(rng.standard_normal((300, 204)))[0] for _ in range(2))
    sigma = np.concatenate([[40.0, 30.0, 20.0, 10.0], np.ones(200)])
    found = dense.leading(scale * (u * sigma @ v.T), 4).spectrum
    assert found.method == "randomised"
    outside = np.sqrt((found.values + found.error) ** 2 - found.values**2) / scale
    assert (outside < 3).all()
    assert (outside > 1).all()


def test_rounding_is_bounded_as_it_is_usually():
    """Of entries by hand: √(m + n)·eps·σ₁, and through the Gram matrix what that times σ₁ makes of σ²."""
    eps, sigma = np.finfo(float).eps, np.array([4.0, 2.0, 1.0])
    matrix = np.diag(sigma) @ np.eye(3, 6)
    moved = 3 * eps * 16
    np.testing.assert_allclose(dense.spectrum(matrix).error, moved / (sigma + np.sqrt(moved)), rtol=1e-12)
    for found in (dense.leading(matrix, 2).spectrum, dense.best_rank(matrix, 2).spectrum):
        np.testing.assert_allclose(found.error, [3 * eps * 4] * 2, rtol=1e-12)
        assert found.remaining == pytest.approx(1, rel=1e-14)
    low = np.diag([4.0, 1e-9]) @ np.eye(2, 7)
    np.testing.assert_allclose(dense.spectrum(low).error, [3 * eps * 4] * 2, rtol=1e-12)
    assert dense.spectrum(np.zeros((3, 5))).error.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("shape", "method"), [((60, 90), "svd"), ((90, 60), "svd"), ((61, 90), "randomised")])
def test_a_matrix_hardly_wider_than_the_krylov_space_is_decomposed(rng, shape, method):
    """Of two values and ten more in five blocks: 60 columns."""
    assert dense.leading(rng.standard_normal(shape), 2).spectrum.method == method


def test_the_same_draw_unless_another_is_wanted(rng):
    matrix = rng.standard_normal((80, 90))
    one, same, other = (dense.leading(matrix, 1, **seed).u for seed in ({}, {"seed": 0}, {"seed": 1}))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    with pytest.raises(ValueError, match="leading 0 singular values"):
        dense.leading(matrix, 0)


@pytest.mark.parametrize(("p", "some"), [(9, True), (8, False)])
def test_of_two_vectors_in_more_than_eight_the_others_are_not_computed(monkeypatch, rng, p, some):
    """Four times as many as are wanted: that is where it begins to cost less."""
    asked = []
    monkeypatch.setattr(
        "scipy.linalg.eigh", lambda *a, eigh=scipy.linalg.eigh, **more: asked.append(1) or eigh(*a, **more)
    )
    matrix = rng.standard_normal((p, 12))
    np.testing.assert_allclose(dense.best_rank(matrix, 2).s, np.linalg.svd(matrix)[1][:2], rtol=1e-12)
    assert bool(asked) == some


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("overwrite", [False, True])
def test_only_what_is_not_needed_is_written_over(rng, order, dtype, overwrite):
    matrix = np.array(rng.standard_normal((30, 20)), dtype, order=order)
    before = matrix.copy()
    expected = np.linalg.svd(before.astype(float), compute_uv=False)
    np.testing.assert_allclose(dense.singular_values(matrix, overwrite), expected, rtol=1e-12)
    if not overwrite or dtype is np.float32:
        np.testing.assert_array_equal(matrix, before)
    else:  # which halves the memory
        assert not np.array_equal(matrix, before)
