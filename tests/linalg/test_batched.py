"""Decompositions of several matrices: one call for each shape where they are placed, the numbers of each by itself."""

import numpy as np
import pytest
import torch

from lorascope.linalg import batched

SHAPES = [(6, 9), (9, 6), (6, 9), (5, 5), (6, 9)]


@pytest.fixture
def matrices():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]


def placer(stacks):
    def place(stack):
        stacks.append(stack.shape)
        return torch.from_numpy(stack)

    return place


@pytest.mark.parametrize("placed", [False, True])
def test_each_is_decomposed_as_by_itself(matrices, placed):
    stacks = []
    place = placer(stacks) if placed else None
    values, svds = batched.singular_values(matrices, place), batched.svd(matrices, place)
    assert stacks == ([(3, 6, 9), (1, 9, 6), (1, 5, 5)] * 2 if placed else [])
    for matrix, sigma, (u, s, vh) in zip(matrices, values, svds, strict=True):
        exact = matrix.astype(np.float64)
        np.testing.assert_allclose(sigma, np.linalg.svd(exact, compute_uv=False), rtol=1e-12)  # rounding in float64
        np.testing.assert_allclose(u * s @ vh, exact, atol=1e-13)
        assert (u.shape[1], vh.shape[0]) == (min(matrix.shape),) * 2


def test_neighbours_are_held_together_up_to_so_many_numbers():
    shapes = [(2, 5), (5, 2), (3, 3), (10, 10), (1, 4)]
    held = [shapes[each] for each in batched.windows(shapes, placer([]), most=20)]
    assert held == [[(2, 5), (5, 2)], [(3, 3)], [(10, 10)], [(1, 4)]]
    assert [shapes[each] for each in batched.windows(shapes, None, most=20)] == [[shape] for shape in shapes]
    assert list(batched.windows([], placer([]))) == []
