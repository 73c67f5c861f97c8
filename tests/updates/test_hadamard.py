import numpy as np
import pytest
import torch

from lorascope.errors import InputError
from lorascope.linalg.factored import Factored
from lorascope.updates.base import dense, kinds

hadamard = kinds.get("hadamard")


def roles(d_out, d_in, r, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"w1_a": (d_out, r), "w1_b": (r, d_in), "w2_a": (d_out, r), "w2_b": (r, d_in)}
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def shapes_of(arrays):
    return {name: array.shape for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("d_out", "d_in", "r", "factored"), [(9, 7, 2, True), (7, 30, 3, False), (5, 4, 2, False), (3, 3, 1, True)]
)
def test_delta_is_the_elementwise_product(d_out, d_in, r, factored):
    given = roles(d_out, d_in, r)
    delta = hadamard.delta(given, 0.3)
    assert isinstance(delta, Factored) == factored
    expected = np.empty((d_out, d_in))
    for i in range(d_out):
        for j in range(d_in):
            first = sum(given["w1_a"][i, p] * given["w1_b"][p, j] for p in range(r))
            second = sum(given["w2_a"][i, q] * given["w2_b"][q, j] for q in range(r))
            expected[i, j] = 0.3 * first * second
    np.testing.assert_allclose(dense(delta), expected, rtol=0, atol=1e-13)  # r² products of size 10, summed
    assert hadamard.shape(shapes_of(given)) == (d_out, d_in)
    assert hadamard.rank(shapes_of(given)) == min(r * r, d_out, d_in) == np.linalg.matrix_rank(expected)


def test_spectrum_through_the_khatri_rao_factors():
    given = roles(40, 30, 3)
    values = hadamard.delta(given).singular_values()
    full = np.linalg.svd(dense(hadamard.delta(given)), compute_uv=False)
    assert len(values) == 9
    np.testing.assert_allclose(
        values, full[:9], rtol=1e-11
    )  # both to a few eps of the largest; the least is 1/20 of it


def test_torch_and_dtype():
    given = {name: torch.tensor(array, dtype=torch.bfloat16) for name, array in roles(9, 7, 2).items()}
    delta = hadamard.delta(given, 0.5)
    assert delta.left.dtype == delta.right.dtype == torch.bfloat16


def test_disagreeing_roles_are_named():
    shapes = shapes_of(roles(9, 7, 2)) | {"w2_b": (3, 7)}
    with pytest.raises(InputError, match="w1_a and w2_b disagree on r"):
        hadamard.dimensions(shapes)
