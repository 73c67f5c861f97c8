"""Projections that are drawn in pieces: what a piece holds, whatever its size."""

import numpy as np

from lorascope.linalg import projections


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
