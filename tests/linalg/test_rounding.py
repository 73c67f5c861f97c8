"""Rounding to storage dtypes against ml_dtypes and numpy."""

import numpy as np
import pytest

from lorascope.linalg.rounding import SumRounding, round_to, rounded_sum, unit_roundoff


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


@pytest.mark.parametrize(("dtype", "storage"), [("BF16", "bfloat16"), ("F16", "float16"), ("F32", "float32")])
def test_a_sum_is_rounded_alike_in_numpy_and_torch_and_in_parts(dtype, storage):
    import torch

    rng = np.random.default_rng(0)
    weight = round_to(rng.standard_normal((30, 20)), dtype)
    delta = 1e-3 * rng.standard_normal((30, 20))
    delta[:3] = 0
    stored, whole = rounded_sum(weight, delta, dtype)
    in_torch, of_torch = rounded_sum(torch.from_numpy(weight), torch.from_numpy(delta), getattr(torch, storage))
    assert in_torch.dtype == getattr(torch, storage)
    np.testing.assert_array_equal(stored, in_torch.double().numpy())
    np.testing.assert_allclose(list(vars(whole).values()), list(vars(of_torch).values()), rtol=1e-13)
    parts = sum((rounded_sum(weight[i : i + 7], delta[i : i + 7], dtype)[1] for i in range(0, 30, 7)), SumRounding())
    np.testing.assert_allclose(list(vars(whole).values()), list(vars(parts).values()), rtol=1e-13)
    assert whole.loss == pytest.approx(np.linalg.norm(stored - weight - delta) / np.linalg.norm(delta), rel=1e-12)
    assert whole.relative_norm == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(weight), rel=1e-13)
    changed = stored != weight
    assert (whole.entries, whole.unchanged, whole.updated) == (600, 600 - changed.sum(), 540)
    assert whole.updated_unchanged == 540 - changed[3:].sum()


def test_of_nothing_there_is_no_share():
    assert (SumRounding(delta_norm=2.0).relative_norm, SumRounding(weight_norm=2.0).loss) == (None, None)
    assert SumRounding(4.0, 2.0, 1.0).relative_norm == SumRounding(4.0, 2.0, 1.0).loss == 0.5


def test_a_tie_goes_to_the_even_neighbour():
    """Halfway between 1 and its neighbour 1 + 2⁻⁷, and between that and the next: down, then up."""
    from ml_dtypes import bfloat16

    ties = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8, 2.0**-130 * (1 + 2.0**-8)])
    np.testing.assert_array_equal(round_to(ties, "BF16"), [1, 1 + 2.0**-6, -1, ties[3].astype(bfloat16)])
    every = (1 + np.arange(2**9) / 2**8) * 2.0**5  # each number that bfloat16 holds, and each tie, of two binades
    np.testing.assert_array_equal(round_to(every, "BF16"), every.astype(bfloat16).astype(np.float64))
