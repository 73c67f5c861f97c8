"""The decomposition of W, and the leading triplets of W + ΔW in its bases, against dense SVDs."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg

from lorascope.linalg import svd_update as changed
from lorascope.linalg.cached_svd import decompose
from lorascope.linalg.factored import Factored
from lorascope.linalg.orthonormal import Orthonormal
from lorascope.linalg.subspace import bases


def haar(rng: np.random.Generator, n):
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


def with_spectrum(rng: np.random.Generator, m, n, sigma):
    p = min(m, n)
    return (haar(rng, m)[:, :p] * np.asarray(sigma)) @ haar(rng, n)[:, :p].T


def change(rng: np.random.Generator, m, n, r, size=3.0):
    return Factored(size * rng.standard_normal((m, r)) / np.sqrt(m), rng.standard_normal((r, n)) / np.sqrt(n))


@pytest.mark.parametrize(("m", "n"), [(40, 40), (40, 90), (90, 40)])
def test_the_decomposition_is_the_svd(rng, m, n):
    weight = rng.standard_normal((m, n))
    known = decompose(weight)
    u, s, vh = np.linalg.svd(weight, full_matrices=False)
    # The Gram matrix moves σ² by a few eps·σ₁², so a value σ by that over 2σ: the last one of a square matrix most.
    assert np.all(np.abs(known.sigma - s) <= 40 * np.finfo(float).eps * s[0] ** 2 / s)
    left, right = known.leading(weight, 12)
    # Vectors up to their sign: rounding of the Gram matrix over the gaps of its spectrum.
    np.testing.assert_allclose(np.abs(np.sum(left * u[:, :12], axis=0)), 1, rtol=1e-11)
    np.testing.assert_allclose(np.abs(np.sum(right * vh[:12].T, axis=0)), 1, rtol=1e-11)
    assert known.is_of(weight)
    assert not known.is_of(weight + 1e-6 * rng.standard_normal((m, n)))
    assert not known.is_of(weight.T) or m == n


def test_a_decomposition_is_known_again_where_w_has_less_than_full_rank(rng):
    """Its last value says nothing of the size that rounding has."""
    weight = rng.standard_normal((40, 5)) @ rng.standard_normal((5, 60))
    assert decompose(weight).is_of(weight)
    steep = with_spectrum(rng, 20, 30, np.append(1e6, np.linspace(2, 1, 19)))
    assert decompose(steep).is_of(steep)


def test_the_error_is_that_of_the_worst_value():
    """An eigenvalue σ² is at most its residual's length away, so that σ = 2 is within 0.01 / (2 + √0.01)."""
    cached = decompose(np.diag([3.0, 2.0]))
    residual = np.array([[0.0, 0.006], [0.0, 0.008]])  # of lengths 0 and 0.01
    assert changed._error(cached, np.array([3.0, 2.0]), residual) == pytest.approx(0.01 / 2.1, rel=1e-9)
    for top in (3.0, 6.0):  # rounding alone: √(m + n)·eps·σ₁², of W's largest or of T's
        moved = 2 * np.finfo(float).eps * top**2
        expected = moved / (2 + np.sqrt(moved))
        assert changed._error(cached, np.array([top, 2.0]), 0 * residual) == pytest.approx(expected, rel=1e-9, abs=0)
    moved = 2 * np.finfo(float).eps * 9
    found = changed._error(cached, np.array([1.0, 1.0]), 0 * residual)
    assert found == pytest.approx(moved / (1 + np.sqrt(moved)), rel=1e-9, abs=0)
    three = changed._error(cached, np.array([3.0, 2.5, 2.0]), np.array([[0.0, 0.01, 0.0]]))
    assert three == pytest.approx(0.01 / 2.1, rel=1e-9)
    nothing = replace(cached, sigma=np.zeros(2))
    assert changed._error(nothing, np.zeros(2), 0 * residual) == 0


SPECTRA = {
    "power law": lambda p: 10 / np.sqrt(np.arange(1, p + 1)),
    "flat": lambda p: np.linspace(2, 1, p),
    "an outlier": lambda p: np.concatenate([[100.0], np.linspace(2, 1, p - 1)]),
    "rank deficient": lambda p: np.concatenate([np.linspace(3, 1, p // 2), np.zeros(p - p // 2)]),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize(("m", "n"), [(400, 400), (400, 500), (500, 400), (60, 90)])
def test_leading_triplets_of_a_low_rank_change(rng, m, n, spectrum):
    weight = with_spectrum(rng, m, n, SPECTRA[spectrum](min(m, n)))
    delta = change(rng, m, n, 6)
    known = decompose(weight)
    found = changed.leading(known, weight, bases(delta), 8)
    u, s, vh = np.linalg.svd(weight + delta.dense())
    np.testing.assert_allclose(found.sigma, s[:8], rtol=0, atol=found.error + 1e-12)
    assert found.error < 1e-6 * s[0]
    assert found.energy == pytest.approx(np.sum(s**2), rel=1e-12)
    assert found.method == ("low rank" if min(m, n) > 320 else "dense")
    left, right = changed.vectors(known, weight, bases(delta), found)
    # A vector is good to residual over gap: 1e-10 over the smallest gap of 8 of 400 values.
    np.testing.assert_allclose(np.abs(np.sum(left * u[:, :8], axis=0)), 1, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.abs(np.sum(right * vh[:8].T, axis=0)), 1, rtol=0, atol=1e-6)
    a, s0, bh = np.linalg.svd(weight, full_matrices=False)
    there = s0 > 1e-7 * s0[0]
    np.testing.assert_allclose(
        known.cosines(found.left).max(axis=0), np.abs(a[:, there].T @ u[:, :8]).max(axis=0), rtol=0, atol=1e-6
    )
    np.testing.assert_allclose(
        known.cosines(found.right).max(axis=0), np.abs(bh[there] @ vh[:8].T).max(axis=0), rtol=0, atol=1e-6
    )
    own = bases(delta)
    np.testing.assert_allclose(found.change_left, own.left.T @ left, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.change_right, own.right.T @ right, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("m", "n"), [(50, 70), (70, 50)])
def test_a_dense_change_is_the_same_change(rng, m, n):
    weight, delta = rng.standard_normal((m, n)), change(rng, m, n, 3, 20.0)
    known = decompose(weight)
    one = changed.leading(known, weight, bases(delta), 5)
    other = changed.leading(known, weight, delta.dense(), 5)
    np.testing.assert_allclose(one.sigma, other.sigma, rtol=1e-12)
    np.testing.assert_allclose(np.abs(one.left), np.abs(other.left), rtol=0, atol=1e-9)
    np.testing.assert_allclose(np.abs(one.right), np.abs(other.right), rtol=0, atol=1e-9)
    for mine, theirs in zip(
        changed.vectors(known, weight, bases(delta), one),
        changed.vectors(known, weight, delta.dense(), other),
        strict=True,
    ):
        np.testing.assert_allclose(np.abs(np.sum(mine * theirs, axis=0)), 1, rtol=0, atol=1e-10)


def test_a_missed_eigenvalue_is_noticed():
    """An eigenvector that the first block is orthogonal to: W's directions are split, ΔW reaches one half alone."""
    diagonal = np.concatenate([np.full(1, 1.0), np.linspace(0.5, 0.1, 399)]) ** 2
    factor = np.zeros((400, 2))
    factor[0, 0] = 1.0
    core = np.array([[0.04, 1.0], [1.0, 0.0]])
    values = np.sort(np.linalg.eigvalsh(np.diag(diagonal) + factor @ core @ factor.T))[::-1]
    assert changed._all_found(diagonal, factor, core, values[:7], 5)
    assert not changed._all_found(diagonal, factor, core, np.delete(values, 2)[:7], 5)


@pytest.mark.parametrize("p", [60, 400])
def test_equal_singular_values_are_one_subspace(rng, p):
    """Three copies of one singular value of W: every basis of their space gives the same cosines."""
    sigma = np.concatenate([[9.0, 7.0, 7.0, 7.0, 5.0], np.linspace(2, 1, p - 5)])
    u, v = haar(rng, p), haar(rng, p)
    turn = np.eye(p)
    turn[1:4, 1:4] = haar(rng, 3)
    weight = (u * sigma) @ v.T
    again = ((u @ turn) * sigma) @ (v @ turn).T  # the same matrix from another basis of the tie
    np.testing.assert_allclose(weight, again, rtol=0, atol=1e-12)
    known = decompose(weight)
    assert np.bincount(known.clusters)[:4].tolist() == [1, 3, 1, 1]
    assert [known.cut(j) for j in (0, 1, 2, 3, 4, 5, p - 1, p, p + 1)] == [0, 1, 4, 4, 4, 5, p - 1, p, p]
    none = changed.leading(known, weight, bases(Factored(np.zeros((p, 1)), np.zeros((1, p)))), 5)
    np.testing.assert_allclose(known.cosines(none.left).max(axis=0), 1, rtol=0, atol=1e-9)
    delta = change(rng, p, p, 2)
    cosines = [
        k.cosines(changed.leading(k, w, bases(delta), 6).left).max(axis=0)
        for w, k in ((weight, known), (again, decompose(again)))
    ]
    np.testing.assert_allclose(*cosines, rtol=0, atol=1e-8)


def test_a_multiple_of_the_identity_has_no_direction_of_its_own(rng):
    """Every vector is a singular vector of it: whatever is added, nothing is new."""
    weight = 2 * np.eye(50)
    known = decompose(weight)
    found = changed.leading(known, weight, bases(change(rng, 50, 50, 2, 30.0)), 5)
    np.testing.assert_allclose(known.cosines(found.left), 1, rtol=0, atol=1e-12)


def test_refusals(rng):
    weight = rng.standard_normal((6, 8))
    known = decompose(weight)
    with pytest.raises(ValueError, match=r"\(8, 6\) and W \(6, 8\)"):
        changed.leading(known, weight, weight.T, 2)
    with pytest.raises(ValueError, match="NaN"):
        changed.leading(known, weight, np.where(np.eye(6, 8), np.nan, 1.0), 2)
    with pytest.raises(ValueError, match="NaN"):
        decompose(np.full((3, 3), np.inf))
    assert len(changed.leading(known, weight, weight, 99).sigma) == 6


@pytest.mark.parametrize("r", [1, 2])
def test_a_weak_change_converges_too(rng, r):
    """Rank 1 and small: the block's new directions are nearly dependent, and must stay orthogonal all the same."""
    for _ in range(5):
        weight = with_spectrum(rng, 400, 400, np.sort(rng.gamma(2, 2, 400))[::-1])
        delta = change(rng, 400, 400, r, 0.2)
        known = decompose(weight)
        found = changed.leading(known, weight, bases(delta), 10)
        assert found.method == "low rank"
        np.testing.assert_allclose(
            found.sigma, np.linalg.svd(weight + delta.dense(), compute_uv=False)[:10], rtol=1e-12
        )


@pytest.mark.parametrize("size", [1e-5, 1.0, 1e5])
def test_which_singular_values_are_one_does_not_depend_on_their_size(rng, size):
    """Squares nearer than 1e-11 of the largest, here 4e-11, are one."""
    known = decompose(np.eye(4))
    squares = np.array([4.0, 1.0 + 5e-11, 1.0 + 1e-12, 1.0])
    tied = replace(known, sigma=np.sqrt(squares) * size)
    assert tied.clusters.tolist() == [0, 1, 2, 2]
    assert tied.cosines((1 + 1e-12) * np.eye(4)).max() == 1  # a cosine, whatever was rounded


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
@pytest.mark.parametrize("size", [1e-5, 1.0, 1e5])
def test_a_damaged_decomposition_is_noticed(rng, shape, size):
    """In each of its parts, whatever W's size is."""
    weight = size * rng.standard_normal(shape)
    known = decompose(weight)
    assert known.is_of(weight)
    for damaged in (
        replace(known, shape=(5, 5)),
        replace(known, basis=Orthonormal(known.basis.dense()[:, :3])),
        replace(known, sigma=known.sigma[:3]),
        replace(known, basis=Orthonormal(known.basis.dense() * (1 + 1e-7))),
        replace(known, sigma=known.sigma * (1 + 1e-7)),
        replace(known, basis=Orthonormal(known.basis.dense()[:, ::-1])),
    ):
        assert not damaged.is_of(weight)
    assert not known.is_of(weight * (1 + 1e-7))


def test_of_nothing_there_is_nothing(rng):
    """W = 0, and T = 0: no direction, and no division by zero."""
    nothing = decompose(np.zeros((3, 4)))
    assert (nothing.rank, nothing.clusters.shape, nothing.cut(2)) == (0, (0,), 0)
    assert nothing.cosines(np.eye(3)).shape == (0, 3)
    empty = replace(nothing, shape=(0, 4), basis=Orthonormal(np.zeros((0, 0))), sigma=np.zeros(0))
    assert (empty.rank, empty.cut(1), empty.is_of(np.zeros((0, 4)))) == (0, 0, True)
    weight = 4.0 * np.eye(3, 5)
    known = decompose(weight)
    for delta in (-weight, bases(Factored(-np.eye(3), weight))):
        with np.errstate(all="raise"):
            found = changed.leading(known, weight, delta, 2)
            left, right = changed.vectors(known, weight, delta, found)
        assert found.sigma.tolist() == [0, 0]
        assert np.isfinite(left).all()
        assert not right.any()


@pytest.mark.parametrize(("p", "rank", "tried"), [(20, 1, False), (21, 5, True), (24, 6, False), (25, 6, True)])
def test_a_large_matrix_and_a_low_rank_take_the_iteration(rng, monkeypatch, p, rank, tried):
    """More rows than LAPACK takes as quickly, and more than four times the rank."""
    asked = []
    monkeypatch.setattr(changed, "_DENSE", 20)
    monkeypatch.setattr(changed, "_iterated", lambda *_: asked.append(1))
    weight, delta = rng.standard_normal((p, p)), change(rng, p, p, rank)
    found = changed.leading(decompose(weight), weight, bases(delta), 2)
    assert (bool(asked), found.method) == (tried, "dense")
    np.testing.assert_allclose(found.sigma, np.linalg.svd(weight + delta.dense())[1][:2], rtol=1e-10)


@pytest.mark.parametrize(("p", "some"), [(13, True), (12, False), (2, False)])
def test_of_one_pair_and_two_to_guard_it_in_more_than_twelve_the_others_are_not_computed(monkeypatch, rng, p, some):
    asked = []
    whole = scipy.linalg.eigh
    monkeypatch.setattr("scipy.linalg.eigh", lambda *a, **more: asked.append(1) or whole(*a, **more))
    matrix = rng.standard_normal((p, p))
    matrix = matrix + matrix.T
    values, vectors = changed._top(matrix, 1)
    assert bool(asked) == some
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix)[::-1][:3], rtol=1e-12)
    np.testing.assert_allclose(matrix @ vectors, vectors * values, rtol=0, atol=1e-12)


def test_what_is_added_to_a_basis_is_orthonormal_and_no_rounding(rng):
    """Nothing, what is there already up to 1e-5 and to rounding, two more directions, and one of them again."""
    basis = haar(rng, 60)[:, :10]
    one, other, small = rng.standard_normal((3, 60))
    inside = basis @ rng.standard_normal(10)
    more = np.stack([0 * one, inside + 1e-5 * small, inside + 1e-15 * other, one, one + other, 2 * one], axis=1)
    found = changed._orthonormal(basis, more)
    np.testing.assert_array_equal(found[:, :10], basis)
    # What is rounding of `inside` is one more direction, as good as any: its length is that of all others here.
    assert 13 <= found.shape[1] <= 14
    np.testing.assert_allclose(found.T @ found, np.eye(found.shape[1]), rtol=0, atol=1e-14)
    for vector in (small, one, other):
        np.testing.assert_allclose(found @ (found.T @ vector), vector, rtol=0, atol=1e-7)
    assert changed._orthonormal(basis, one[:, None] * [1.0, 1.0]).shape == (60, 11)


@pytest.mark.parametrize("size", [1e-6, 1e6])
@pytest.mark.parametrize(("m", "n"), [(30, 40), (40, 30), (330, 340)])
def test_vectors_have_no_size(rng, size, m, n):
    """Of a W and a change that are a millionth, or a million times: the same directions, of length 1."""
    weight, delta = rng.standard_normal((m, n)), change(rng, m, n, 2, 20.0)
    large, low = size * weight, bases(Factored(size * delta.left, delta.right))
    known, scaled = decompose(weight), decompose(large)
    one = changed.leading(known, weight, bases(delta), 3)
    for other, given in ((changed.leading(scaled, large, low, 3), low),) + (
        ((changed.leading(scaled, large, size * delta.dense(), 3), size * delta.dense()),) if m < 100 else ()
    ):
        np.testing.assert_allclose(other.sigma / size, one.sigma, rtol=1e-10)
        for name in ("left", "right"):
            np.testing.assert_allclose(np.abs(getattr(other, name)), np.abs(getattr(one, name)), rtol=0, atol=1e-8)
        for side in changed.vectors(scaled, large, given, other):
            np.testing.assert_allclose(np.linalg.norm(side, axis=0), 1, rtol=1e-8)


def test_which_eigenvalues_are_one_is_by_the_largest(rng):
    """1e-11 of it: those at 0.5 are one, and those at 0.1 are two."""
    values, diagonal = np.array([1.0, 0.5, 0.5 - 5e-12, 0.1, 0.1 - 2e-11]), np.arange(9.0, 0, -1)
    vectors = haar(rng, 9)[:, :5]
    kept, found = changed._canonical(values, vectors, diagonal, 4)
    np.testing.assert_array_equal(kept, values[:4])
    np.testing.assert_array_equal(found[:, [0, 3]], vectors[:, [0, 3]])
    inner = found[:, 1:3].T @ np.diag(diagonal) @ found[:, 1:3]
    assert inner[0, 1] == pytest.approx(0, abs=1e-14)
    assert inner[0, 0] > inner[1, 1]
    np.testing.assert_allclose(found[:, 1:3] @ found[:, 1:3].T, vectors[:, 1:3] @ vectors[:, 1:3].T, atol=1e-14)
    third = changed._canonical(values, vectors, diagonal, 2)[1][:, 1]  # a tie with one that is not wanted
    np.testing.assert_allclose(third, found[:, 1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(64, 48), (400, 500)])
def test_values_far_below_the_first_keep_their_own_vectors(rng, shape):
    """σ₂ is a thousandth of σ₁ or less, its neighbours a percent apart: compared with a dense SVD in float64."""
    p = min(shape)
    u, v = haar(rng, shape[0])[:, :p], haar(rng, shape[1])[:, :p]
    weight = (u * np.concatenate([[1000.0], 0.5 * 0.99 ** np.arange(p - 1)])) @ v.T
    update = change(rng, *shape, 4)
    delta = replace(update, left=update.left * (0.3 / np.linalg.norm(update.dense(), 2)))
    dense_u, sigma, _ = np.linalg.svd(weight + delta.dense())
    known = decompose(weight)
    found = changed.leading(known, weight, bases(delta), 6)
    np.testing.assert_allclose(found.sigma, sigma[:6], rtol=1e-6)
    left, _ = changed.vectors(known, weight, bases(delta), found)
    cosines = np.abs(np.sum(left * dense_u[:, :6], axis=0))
    np.testing.assert_allclose(cosines, 1, rtol=0, atol=1e-6)  # W's Gram matrix has its small σ² to 1e-16·10⁶


@pytest.mark.parametrize(("p", "tried"), [(320, False), (321, True)])
def test_up_to_320_rows_lapack_needs_no_longer(rng, monkeypatch, p, tried):
    asked = []
    monkeypatch.setattr(changed, "_iterated", lambda *_: asked.append(1))
    weight = np.diag(np.linspace(2.0, 1.0, p))
    changed.leading(decompose(weight), weight, bases(change(rng, p, p, 1)), 1)
    assert bool(asked) == tried


def test_no_count_is_taken_at_one_of_w_s_own_values():
    """7 lies midway between 9 and 5, and was missed: of the two gaps only that from 5 to 1 can be counted in."""
    diagonal, factor, core = np.array([9.0, 7.0, 5.0, 1.0]), np.zeros((4, 2)), np.array([[1.0, 1.0], [1.0, 0.0]])
    with np.errstate(all="raise"):
        assert not changed._all_found(diagonal, factor, core, np.array([9.0, 5.0, 1.0]), 1)
        assert changed._all_found(diagonal, factor, core, diagonal, 1)


@pytest.mark.parametrize("rank", [1, 5])
def test_the_inverse_is_that_of_the_dense_matrix(rng, rank):
    diagonal, factor = np.linspace(9.0, 1.0, 30), rng.standard_normal((30, 2 * rank))
    core = np.block([[np.diag(np.arange(1.0, rank + 1)), np.eye(rank)], [np.eye(rank), np.zeros((rank, rank))]])
    shifts, vectors = np.array([20.0, 9.0, 3.3]), rng.standard_normal((30, 3))  # the second is one of the diagonal
    found = changed._inverse(diagonal, factor, core, shifts, vectors)
    for shift, vector, column in zip(shifts, vectors.T, found.T, strict=True):
        matrix = np.diag(diagonal - shift) + factor @ core @ factor.T
        # 1e-9 of the largest shift is laid over a zero, which moves the solution by as much, over the conditioning.
        np.testing.assert_allclose(column, np.linalg.solve(matrix, vector), rtol=0, atol=1e-6)


def test_what_cannot_be_inverted_is_decomposed_densely(rng, monkeypatch):
    def singular(*_):
        raise np.linalg.LinAlgError("singular")

    monkeypatch.setattr(changed, "_inverse", singular)
    weight, delta = rng.standard_normal((330, 330)), change(rng, 330, 330, 2)
    found = changed.leading(decompose(weight), weight, bases(delta), 2)
    assert found.method == "dense"
    np.testing.assert_allclose(found.sigma, np.linalg.svd(weight + delta.dense())[1][:2], rtol=1e-10)


def test_a_large_sum_of_nothing_has_no_vectors(rng):
    """W = −ΔW and W = ΔW = 0 exactly, of a size that takes the iteration, and no division by their largest value."""
    nothing = np.zeros((330, 330))
    one = np.zeros((330, 330))
    one[0, 0] = 2.0
    unit = np.eye(330, 1)
    for weight, delta in ((nothing, Factored(0 * unit, unit.T)), (one, Factored(-2 * unit, unit.T))):
        with np.errstate(divide="raise", invalid="raise"):
            found = changed.leading(decompose(weight), weight, bases(delta), 2)
        assert found.sigma.tolist() == [0, 0]
