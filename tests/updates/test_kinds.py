"""What the contract does not say: DoRA's direction, lengths that undo, rank zero."""

import numpy as np
import pytest

from lorascope.errors import InputError
from lorascope.updates.base import dense, kinds
from lorascope.updates.magnitude import Magnitude


def test_dora_at_its_start_changes_nothing_but_the_lengths():
    rng = np.random.default_rng(0)
    base = rng.standard_normal((5, 7))
    roles = {"A": rng.standard_normal((2, 7)), "B": np.zeros((5, 2)), "m": np.linalg.norm(base, axis=1)}
    np.testing.assert_allclose(kinds.get("magnitude").delta(roles, 2.0, base), 0, rtol=0, atol=1e-15)  # m · w / ‖w‖ − w
    doubled = kinds.get("magnitude").delta({**roles, "m": 2 * roles["m"]}, 2.0, base)
    np.testing.assert_allclose(doubled, base, rtol=0, atol=1e-14)


def test_direction_is_the_low_rank_part():
    rng = np.random.default_rng(0)
    roles = {"A": rng.standard_normal((2, 7)), "B": rng.standard_normal((5, 2)), "m": rng.random(5)}
    direction = Magnitude().direction(roles, 0.5)
    np.testing.assert_allclose(direction.dense(), 0.5 * roles["B"] @ roles["A"], rtol=0, atol=1e-15)
    assert Magnitude().direction({"m": roles["m"]}) is None


def test_a_row_without_direction_is_not_a_number_and_no_warning(recwarn):
    delta = kinds.get("magnitude").delta({"m": np.ones(2)}, 1.0, np.array([[0.0, 0.0], [3.0, 4.0]])).dense()
    assert np.isnan(delta[0]).all()
    np.testing.assert_allclose(delta[1], [0.6 - 3, 0.8 - 4])
    assert not recwarn.list


def test_a_triplet_of_rank_zero_is_zero():
    roles = {"A": np.zeros((0, 4)), "B": np.zeros((3, 0)), "E": np.zeros((0, 1))}
    delta = kinds.get("triplet").delta(roles)
    assert delta.shape == (3, 4)
    np.testing.assert_array_equal(dense(delta), np.zeros((3, 4)))


def test_blocks_of_one_row_stretch_and_shift_it():
    """MiSS's Bat with r = 1: ΔW = m·W + m, row by row."""
    m, weight = np.array([2.0, -3.0, 0.5]), np.random.default_rng(0).standard_normal((3, 4))
    found = kinds.get("bat").delta({"M": m.reshape(3, 1, 1)}, 2.0, weight).dense()
    np.testing.assert_allclose(found, 2 * (m[:, None] * weight + m[:, None]), rtol=0, atol=1e-14)


def test_blocks_that_rotate_outputs_are_as_many_as_the_rows_need():
    """Of two blocks of 4: 5 to 8 rows. One block serves for all."""
    kind, blocks = kinds.get("rotation_out"), np.stack([np.eye(4)[::-1]] * 2)
    for rows in (5, 8):
        assert kind.delta({"R": blocks}, 1.0, np.ones((rows, 3))).shape == (rows, 3)
    for rows in (4, 9, 12):
        with pytest.raises(InputError, match="another shape"):
            kind.delta({"R": blocks}, 1.0, np.ones((rows, 3)))
    weight = np.arange(12.0)[:, None]
    turned = kind.delta({"R": blocks[:1]}, 1.0, weight).dense() + weight
    assert turned.ravel().tolist() == [3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8]


HADAMARD = {"w1_a": (8, 3), "w1_b": (3, 12), "w2_a": (8, 3), "w2_b": (3, 12)}


@pytest.mark.parametrize(
    ("name", "shapes", "entries"),
    [
        ("low_rank", {"A": (3, 12), "B": (8, 3)}, 3 * 12),
        ("hadamard", HADAMARD, 8 * 12),  # ΔW: 3² is more than 8
        ("hadamard", {"w1_a": (8, 2), "w1_b": (2, 12), "w2_a": (8, 2), "w2_b": (2, 12)}, 4 * 12),  # the products
        ("dora_hadamard", HADAMARD | {"m": (8,)}, 8 * 12),
        ("dora_low_rank", {"A": (3, 12), "B": (8, 3), "m_in": (12,)}, 8 * 12),
        ("gralora", {"A_blocks": (2, 6, 4), "B_blocks": (2, 4, 4)}, 12 * 8),
        ("randlora", {"lambda": (3, 5), "gamma_in": (5, 12), "A_in": (3, 12), "B_out": (8, 5, 3)}, 12 * 15),
        ("circulant", {"w": (2, 3, 4)}, 8 * 12),
        ("kronecker", {"w1": (2, 3), "w2": (4, 5)}, 4 * 5),
    ],
)
def test_the_largest_array_that_delta_takes_or_makes(name, shapes, entries):
    assert kinds.get(name).largest(shapes) == entries
