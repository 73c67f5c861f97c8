"""Fastfood and the other projections against dense matrices, their adjoints, and what chance gives for lengths."""

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard

from lorascope.errors import InputError
from lorascope.linalg import fastfood
from lorascope.linalg.fastfood import Fastfood, fingerprint, fwht
from lorascope.linalg.projections import projection

NAMES = ["fastfood", "fastfood-whole", "dense", "orthonormal", "sparse"]
SIZES = [(1000, 10), (5000, 37), (9000, 300), (40, 20), (1, 1)]
CASES = [(n, *s) for n in NAMES for s in SIZES if n != "orthonormal" or s[0] >= 2 * s[1]]


def matrix(p) -> np.ndarray:
    """P (D, d), column by column."""
    return np.stack([p.apply(column) for column in np.eye(p.columns)], axis=1)


@pytest.mark.parametrize("n", [1, 2, 8, 16, 32, 512, 4096])
def test_the_transform_is_hadamards_matrix(n):
    x = np.random.default_rng(n).standard_normal((3, n))
    h = hadamard(n).astype(float)
    scale = np.abs(x).sum(1).max()  # the largest sum that rounding can be relative to
    np.testing.assert_allclose(fwht(x), x @ h, rtol=0, atol=1e-15 * scale)
    np.testing.assert_allclose(fwht(torch.from_numpy(x)).numpy(), x @ h, rtol=0, atol=1e-15 * scale)


def test_only_powers_of_two_can_be_transformed():
    with pytest.raises(ValueError, match="power of two"):
        fwht(np.zeros(12))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(50, 5), (100, 64), (13, 30)])
def test_fastfood_is_its_formula(monkeypatch, rows, columns, whole):
    """H G Π H B, multiplied out from the draws with a dense H, rows cut off, columns of the padding left away."""
    monkeypatch.setattr(fastfood, "MIN_BLOCK", 16)
    p = Fastfood(rows, columns, 3, whole=whole)
    n, k = p.block, p.inner
    h = hadamard(n).astype(float)
    signs, index, gauss = p._drawn(0)
    assert set(signs.ravel().tolist()) == {-1, 1}
    blocks = []
    for b in range(p.blocks):
        sign = np.ones(n)  # of the padding: any
        sign[:k] = signs[b]
        # Π takes place j's value to i; places that agree modulo k hold the same number
        places = index.reshape(p.blocks, n)[b] - b * k
        pi = np.zeros((n, n))
        free = {r: [j for j in range(n) if j % k == r] for r in range(k)}
        for i, r in enumerate(places):
            pi[i, free[int(r)].pop()] = 1
        assert np.array_equal(pi.sum(0), np.ones(n))  # a permutation
        blocks.append(h @ np.diag(gauss[b].astype(float)) @ pi @ h @ np.diag(sign))
    wanted = np.concatenate(blocks)[:rows, :columns]
    np.testing.assert_allclose(matrix(p), wanted, rtol=0, atol=1e-14 * n)


@pytest.mark.parametrize(("name", "rows", "columns"), CASES)
def test_the_adjoint_is_exact(name, rows, columns):
    rng = np.random.default_rng(0)
    p = projection(name, rows, columns, 5)
    x, y = rng.standard_normal(columns), rng.standard_normal(rows)
    left, right = p.apply(x) @ y, x @ p.adjoint(y)
    assert abs(left - right) <= 1e-12 * np.linalg.norm(x) * np.linalg.norm(y)  # float64 sums of ≤ 10⁴ terms
    again = projection(name, rows, columns, 5)
    for mine, theirs in ((again.apply, p.apply), (again.adjoint, p.adjoint)):
        v = x if mine == again.apply else y
        # numpy and torch add up in different orders
        np.testing.assert_allclose(mine(torch.from_numpy(v)).numpy(), theirs(v), rtol=0, atol=1e-12)
    np.testing.assert_allclose(p.part(x, rows // 3, rows), p.apply(x)[rows // 3 :], rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_lengths_are_kept_as_by_a_gaussian_matrix(name):
    """‖P x‖/‖x‖ over many x and seeds: mean 1, spread √(1/2D) as the dense Gaussian's (Johnson and Lindenstrauss)."""
    rows, columns = 3000, 50
    x = np.random.default_rng(1).standard_normal(columns)
    ratios = [np.linalg.norm(projection(name, rows, columns, seed).apply(x)) / np.linalg.norm(x) for seed in range(60)]
    spread = 1 / np.sqrt(2 * rows)
    if name == "orthonormal":
        np.testing.assert_allclose(ratios, 1, rtol=0, atol=1e-12)
        return
    # A mean of 60 lies within 5 of its standard errors; a structured or sparse P spreads up to 3 times as far
    # (columns of 55 entries overlap in few rows), never as far as leaving out √(D/n) would put it: 1 against 0.86.
    assert abs(np.mean(ratios) - 1) < 5 * 3 * spread / np.sqrt(60)
    assert np.std(ratios) < 3 * spread


@pytest.mark.parametrize("name", NAMES)
def test_columns_have_unit_length(name):
    lengths = np.linalg.norm(matrix(projection(name, 3000, 50, 1)), axis=0)
    np.testing.assert_allclose(lengths, 1, rtol=0, atol=5 / np.sqrt(2 * 3000))  # five deviations of a Gaussian column's


def test_other_seeds_are_other_projections():
    x = np.ones(20)
    for name in NAMES:
        a, b = (projection(name, 500, 20, seed).apply(x) for seed in (1, 2))
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert abs(cosine) < 5 / np.sqrt(500)  # that of two random directions


@pytest.mark.parametrize("name", ["fastfood", "dense", "sparse"])
def test_what_is_drawn_again_is_what_was_kept(monkeypatch, name):
    x = np.random.default_rng(0).standard_normal(30)
    kept = projection(name, 9000, 30, 1).apply(x)
    monkeypatch.setattr("lorascope.linalg.fastfood.KEEP", 0)
    monkeypatch.setattr("lorascope.linalg.projections.KEEP", 0)
    p = projection(name, 9000, 30, 1)
    assert np.array_equal(p.apply(x), kept)
    assert not p._kept


def test_the_adjoint_is_the_exact_one_where_nothing_else_is_said():
    y = np.random.default_rng(0).standard_normal(50)
    p = Fastfood(50, 5, 3)
    np.testing.assert_allclose(p.adjoint(y), matrix(p).T @ y, rtol=0, atol=1e-12)  # sums of 50 products


def test_the_published_adjoint_is_too_small_by_n():
    y = np.random.default_rng(0).standard_normal(700)
    exact = projection("fastfood-whole", 700, 9, 1).adjoint(y)
    published = projection("fastfood-whole", 700, 9, 1, as_published=True).adjoint(y)
    np.testing.assert_allclose(published * 1024, exact, rtol=1e-14)
    with pytest.raises(InputError, match="fastfood-whole"):
        projection("dense", 700, 9, 1, as_published=True)


def test_bad_sizes_and_names_are_refused():
    with pytest.raises(InputError, match="there is no projection"):
        projection("fourier", 10, 2, 0)
    with pytest.raises(InputError, match="orthonormal columns"):
        projection("orthonormal", 10, 8, 0)


def test_this_numpy_draws_what_files_were_written_with():
    """A change of numpy's streams would make every file's seed mean something else."""
    assert fingerprint() == "8a092040bbe71074"
