"""Filters against the equations that define them; the inverse step undoes a transform written out as a matrix."""

import numpy as np
import pytest

from lorascope.linalg import wavelets

PROPER = [name for name in wavelets.names() if name != "coif4"]  # which is PEFT's own


@pytest.mark.parametrize("name", PROPER)
def test_a_filter_is_orthogonal_with_its_vanishing_moments(name):
    low, high = wavelets.filters(name)
    length = len(low)
    products = [low[: length - 2 * k] @ low[2 * k :] for k in range(length // 2)]
    np.testing.assert_allclose(products, [1] + [0] * (length // 2 - 1), rtol=0, atol=1e-15)
    order = int(name.lstrip("dbsymcoif"))
    moments = 2 * order if name.startswith("coif") else order
    steps = np.linspace(-1, 1, length)
    np.testing.assert_allclose([high @ steps**p for p in range(moments)], 0, rtol=0, atol=1e-15)
    assert abs(high @ steps**moments) > 1e-5


@pytest.mark.parametrize("name", ["db1", "db2", "sym5", "coif1"])
def test_the_inverse_step_undoes_the_transform(name):
    """The transform as a matrix whose rows are the filters, moved by two."""
    low, high = wavelets.filters(name)
    length = len(low)
    more, size = length - 2, 30
    rows = np.zeros((size + more, size + 2 * more))
    for k in range((size + more) // 2):
        rows[k, 2 * k : 2 * k + length] = low
        rows[(size + more) // 2 + k, 2 * k : 2 * k + length] = high
    values = np.zeros((size + 2 * more, size + 2 * more))
    values[more : more + size, more : more + size] = np.random.default_rng(0).standard_normal((size, size))
    halves = np.array([len(rows) // 2])
    quarters = rows @ values @ rows.T
    swapped = quarters.copy()  # high pass along the index of rows is the right upper quarter
    swapped[: halves[0], halves[0] :] = quarters[halves[0] :, : halves[0]]
    swapped[halves[0] :, : halves[0]] = quarters[: halves[0], halves[0] :]
    found = wavelets.inverse_step(swapped, name)
    np.testing.assert_allclose(found, values[more : more + size, more : more + size], rtol=0, atol=1e-13)
