"""torch's own draws from a seed, on the CPU."""

import numpy as np
import pytest
import torch

from lorascope.weights.torch_stream import first_of_permutation, normals

SEEDS = [0, 777, 2**40 + 3]  # of a larger seed torch's generator takes the last 32 bits


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("length", [1, 2, 10, 100_003])
def test_the_first_of_a_permutation(seed, length):
    expected = torch.randperm(length, generator=generator(seed)).numpy()
    for count in (1, 7, length):
        np.testing.assert_array_equal(first_of_permutation(seed, length, count), expected[:count])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [1, 5, 15, 16, 17, 31, 32, 100])
def test_normal_numbers(seed, count):
    """torch computes them in float32: a few of its units in the last place of numbers up to 5."""
    expected = torch.randn(count, generator=generator(seed)).numpy()
    np.testing.assert_allclose(normals(seed, count), expected, rtol=0, atol=3e-6)
