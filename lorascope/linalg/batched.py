"""Decompositions of several dense matrices: on a GPU those of one shape in one call, on the host one at a time.

One call for each matrix would leave a GPU idle between them; on the host a stack costs memory and saves no time, since
LAPACK takes the matrices one by one. In float64, whatever dtype they have.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lorascope.linalg.arrays import Array, namespace, to_numpy

Place = Callable[[np.ndarray], Array]  # puts an array where it is to be decomposed, such as on a GPU
TOGETHER = 1 << 27  # so many numbers are decomposed together: 1 GiB


def windows(shapes: Sequence[tuple[int, int]], place: Place | None, most: int | None = None) -> Iterator[slice]:
    """Runs of neighbours that are to be held and decomposed together, in order.

    Args:
        shapes: of the matrices.
        place: as of `svd`; on the host each matrix is a run of its own.
        most: numbers in a run, `TOGETHER` of them where it is None; a larger matrix is a run of its own.
    """
    first, room = 0, 0
    for i, size in enumerate(map(math.prod, shapes)):
        room -= size
        if i and (place is None or room < 0):
            yield slice(first, i)
        if i == 0 or place is None or room < 0:
            first, room = i, (TOGETHER if most is None else most) - size
    if shapes:
        yield slice(first, len(shapes))


def svd(matrices: Sequence[np.ndarray], place: Place | None = None) -> list[tuple[np.ndarray, ...]]:
    """U (m, p), S (p,) descending, Vh (p, n) of each finite matrix (m, n), with p = min(m, n).

    Args:
        place: where those of one shape are decomposed in one call; None: here, one at a time.
    """
    return _each(matrices, place, lambda xp, stack: tuple(xp.linalg.svd(stack, full_matrices=False)))


def singular_values(matrices: Sequence[np.ndarray], place: Place | None = None) -> list[np.ndarray]:
    """min(m, n) singular values of each finite matrix, descending. `place`: as of `svd`."""

    def values(xp, stack: Array) -> tuple[Array]:
        return (np.linalg.svd(stack, compute_uv=False) if xp is np else xp.linalg.svdvals(stack),)

    return [sigma for (sigma,) in _each(matrices, place, values)]


def _each(matrices: Sequence[np.ndarray], place: Place | None, decompose: Callable) -> list[tuple[np.ndarray, ...]]:
    """What `decompose` gives of each; those of one shape are handed to it as one stack (k, m, n) where `place` is."""
    if place is None:
        return [decompose(np, np.asarray(matrix, np.float64)) for matrix in matrices]
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, matrix in enumerate(matrices):
        by_shape.setdefault(matrix.shape, []).append(i)
    found: dict[int, tuple[np.ndarray, ...]] = {}
    for places in by_shape.values():
        stack = place(np.stack([np.asarray(matrices[i], np.float64) for i in places]))
        parts = map(to_numpy, decompose(namespace(stack), stack))
        found |= dict(zip(places, zip(*parts, strict=True), strict=True))
    return [found[i] for i in range(len(matrices))]
