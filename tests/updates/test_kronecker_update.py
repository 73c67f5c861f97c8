import numpy as np
import pytest
import torch

from lorascope.errors import InputError
from lorascope.linalg.factored import Factored
from lorascope.linalg.kronecker import Kronecker
from lorascope.linalg.matrix import Dense
from lorascope.updates.base import kinds

kronecker = kinds.get("kronecker")
CASES = {  # shapes, and the rank they allow
    "whole": ({"w1": (2, 3), "w2": (5, 4)}, 2 * 4),
    "second factored": ({"w1": (2, 3), "w2_a": (5, 2), "w2_b": (2, 4)}, 2 * 2),
    "both factored": ({"w1_a": (6, 1), "w1_b": (1, 3), "w2_a": (5, 2), "w2_b": (2, 4)}, 1 * 2),
    "factored beyond its size": ({"w1_a": (2, 4), "w1_b": (4, 3), "w2": (5, 4)}, 2 * 4),
}


def arrays(shapes):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(("shapes", "rank"), CASES.values(), ids=CASES)
def test_delta_equals_kron(shapes, rank):
    given = arrays(shapes)
    first = given["w1"] if "w1" in given else given["w1_a"] @ given["w1_b"]
    second = given["w2"] if "w2" in given else given["w2_a"] @ given["w2_b"]
    expected = 0.7 * np.kron(first, second)
    delta = kronecker.delta(given, 0.7)
    assert isinstance(delta, Kronecker)
    np.testing.assert_allclose(delta.dense(), expected, rtol=1e-13, atol=1e-14)
    assert kronecker.shape(shapes) == expected.shape == delta.shape
    assert kronecker.rank(shapes) == rank == np.linalg.matrix_rank(expected) == len(delta.singular_values())


def test_a_small_factorisation_stays_factored_and_a_large_one_does_not():
    assert isinstance(kronecker.delta(arrays(CASES["both factored"][0])).first, Factored)
    assert isinstance(kronecker.delta(arrays(CASES["factored beyond its size"][0])).first, Dense)


@pytest.mark.parametrize(
    "shapes",
    [
        {"w1": (2, 3)},
        {"w1": (2, 3), "w2_a": (5, 2)},
        {"w1": (2, 3), "w1_a": (2, 1), "w1_b": (1, 3), "w2": (5, 4)},
        {"w1": (2, 3), "w2": (5, 4), "w2_b": (2, 4)},
    ],
)
def test_incomplete_or_doubled_operands(shapes):
    with pytest.raises(InputError, match="incomplete or doubled"):
        kronecker.shape(shapes)


def test_disagreeing_factors_are_named():
    with pytest.raises(InputError, match="w2_a and w2_b disagree on r2"):
        kronecker.shape({"w1": (2, 3), "w2_a": (5, 2), "w2_b": (3, 4)})


def test_torch_keeps_its_dtype():
    given = {name: torch.tensor(array, dtype=torch.bfloat16) for name, array in arrays(CASES["whole"][0]).items()}
    assert kronecker.delta(given, 0.5).dense().dtype == torch.bfloat16
