"""Rounding to storage dtypes against ml_dtypes and numpy."""

import numpy as np
import pytest

from lorascope.linalg.rounding import round_to, unit_roundoff


def test_bfloat16_against_torch():
    import torch

    rng = np.random.default_rng(0)
    values = np.concatenate(
        [rng.standard_normal(1000) * 10.0 ** rng.integers(-30, 30, 1000), [0.0, -0.0, 1e39, 3.38e38]]
    )
    # torch rounds float64 through float32 too, so equality is exact.
    expected = torch.from_numpy(values).to(torch.bfloat16).double().numpy()
    np.testing.assert_array_equal(round_to(values, "BF16"), expected)


@pytest.mark.parametrize(("dtype", "numpy_dtype"), [("F16", np.float16), ("F32", np.float32)])
def test_other_dtypes_against_numpy(dtype, numpy_dtype):
    values = np.random.default_rng(0).standard_normal(1000)
    np.testing.assert_array_equal(round_to(values, dtype), values.astype(numpy_dtype).astype(np.float64))


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_unit_roundoff_is_the_largest_relative_error(dtype):
    values = np.random.default_rng(0).uniform(1, 2, 100_000)
    error = np.max(np.abs(round_to(values, dtype) - values) / values)
    assert 0.9 * unit_roundoff(dtype) < error <= unit_roundoff(dtype)


def test_integers_are_not_merged_into():
    with pytest.raises(ValueError, match="I8"):
        round_to(np.ones(2), "I8")
