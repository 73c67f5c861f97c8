"""Projections that are drawn in pieces: what a piece holds, whatever its size."""

import numpy as np
import pytest
import torch

from lorascope.linalg import fastfood, projections


def test_every_column_of_a_sparse_projection_is_drawn_once(monkeypatch):
    """Ten columns in pieces of three: each of unit length, as it would not be if two pieces drew it."""
    rows, columns = 64, 10
    monkeypatch.setattr(projections, "PIECE", 3 * 8)  # √64 entries a column
    projection = projections.Sparse(rows, columns, seed=0)
    assert projection.width == 3
    dense = np.stack([projection.apply(unit) for unit in np.eye(columns)], axis=1)
    np.testing.assert_allclose(np.linalg.norm(dense, axis=0), 1, rtol=1e-14)
    np.testing.assert_allclose(np.stack([projection.adjoint(unit) for unit in np.eye(rows)]), dense, rtol=1e-14, atol=0)


def test_no_column_of_a_sparse_projection_is_empty():
    """Of four rows each is drawn with probability ½: a sixteenth of the columns would have none."""
    p = projections.projection("sparse", 4, 200, 3)
    lengths = np.linalg.norm(np.stack([p.apply(column) for column in np.eye(200)]), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)  # values in float32


@pytest.mark.parametrize("name", ["fastfood", "fastfood-whole", "dense", "orthonormal", "sparse"])
def test_some_rows_are_those_of_all(monkeypatch, name):
    """Whatever pieces and groups they lie in: four rows of a dense one to a piece, two blocks of four to a group."""
    monkeypatch.setattr(projections, "PIECE", 3 * 4)
    monkeypatch.setattr(fastfood, "MIN_BLOCK", 4)
    monkeypatch.setattr(fastfood, "GROUP", 8)
    p = projections.projection(name, 18, 3, seed=1)
    x = np.arange(1.0, 4.0)
    whole = p.apply(x)
    matrix = np.stack([p.apply(column) for column in np.eye(3)], axis=1)
    np.testing.assert_allclose(matrix @ x, whole, rtol=0, atol=1e-14)
    np.testing.assert_allclose(np.stack([p.adjoint(row) for row in np.eye(18)]), matrix, rtol=0, atol=1e-14)
    for start in range(18):
        for stop in range(start, 19):
            np.testing.assert_allclose(p.part(x, start, stop), whole[start:stop], rtol=0, atol=1e-14)


def test_a_name_is_its_projection():
    """With the pieces that its numbers are drawn in: others would make every file's seed mean something else."""
    stacked, whole, dense, sparse = (
        projections.projection(name, 9000, 10, 0) for name in ("fastfood", "fastfood-whole", "dense", "sparse")
    )
    assert (stacked.block, stacked.blocks, stacked.together) == (4096, 3, 64)
    assert (whole.block, whole.blocks, whole.together) == (16384, 1, 16)
    assert fastfood.Fastfood(1 << 20, 1 << 19, 0).together == 1  # a block that is longer than a group
    assert (dense.entries, dense.height) == (90_000, 104_857)
    assert (sparse.entries, sparse.width) == (948, 11_052)


@pytest.mark.parametrize("name", ["fastfood", "dense", "sparse"])
def test_what_is_kept_is_as_large_as_may_be(monkeypatch, name):
    """Of 16 rows and 4 columns: 16 places of one block, 64 entries, or 4·√16 of them."""
    size = {"fastfood": 16, "dense": 64, "sparse": 16}[name]
    for limit in (size, size - 1):
        monkeypatch.setattr(projections, "KEEP", limit)
        monkeypatch.setattr(fastfood, "KEEP", limit)
        p = projections.projection(name, 16, 4, 0)
        for dtype in (np.float32, np.float64):
            assert p.apply(np.ones(4, dtype)).dtype == dtype
            assert p.apply(torch.ones(4, dtype=getattr(torch, dtype.__name__))).dtype == getattr(torch, dtype.__name__)
        assert len(p._kept) == (4 if limit == size else 0)
