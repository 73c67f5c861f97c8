"""The leading eigenpairs of a symmetric matrix: a few cost a fraction of all."""

import numpy as np

from lorascope.linalg.arrays import Array, namespace

ORTHONORMAL = 1e-9  # what VᵀV may differ from 1; LAPACK's are good to 1e-13


def leading(symmetric: Array, count: int) -> tuple[Array, Array]:
    """Values (count,), the largest first, and vectors (n, count); numpy's or torch's, count ≤ n.

    LAPACK's bisection and its MRRR, which `scipy.linalg.eigh` calls for a few, return fewer than were asked for where
    many eigenvalues are equal, and no error (a multiple of the identity and a change of rank 1, say): then all are
    computed.
    """
    xp, n = namespace(symmetric), len(symmetric)
    if xp is np and 4 * count < n:
        from scipy.linalg import eigh

        values, vectors = eigh(symmetric, subset_by_index=(n - count, n - 1), check_finite=False)
        if vectors.shape[1] == count and np.abs(vectors.T @ vectors - np.eye(count)).max() < ORTHONORMAL:
            return values[::-1], vectors[:, ::-1]
    values, vectors = xp.linalg.eigh(symmetric)
    return xp.flip(values, axis=0)[:count], xp.flip(vectors, axis=1)[:, :count]
