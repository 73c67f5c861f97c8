"""Sizes at which a kind refuses its roles or its base, what is too large to hold, and what is added to a bias."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lorascope.errors import InputError
from lorascope.updates import base as updates
from lorascope.updates.base import MAX_ENTRIES, MAX_EXPANDED, MAX_RANK, Update, kinds, stored_numbers
from tests.updates.formula_oft_v2 import series

ONE = {"A": (3, 12), "B": (8, 3)}
PRODUCTS = {"a1": (4, 2), "a2": (2, 4), "b1": (8, 3), "b2": (3, 12)}
GATES = {"A": (8, 2), "A_up": (2, 12), "B": (8, 3), "B_up": (3, 12)}
INNER = {
    "low_rank": ONE,
    "hadamard": {"w1_a": (8, 3), "w1_b": (3, 12), "w2_a": (8, 3), "w2_b": (3, 12)},
    "kronecker": {"w1": (2, 3), "w2": (4, 4)},
}
LENGTHS = {"lambda": (1,), "n": (12,)}
FITTING = [
    ("gralora", {"A_blocks": (1, 6, 3), "B_blocks": (1, 3, 4)}, {"d_in": 6, "d_out": 4, "r": 3}),
    ("gralora", {"A_blocks": (2, 6, 2), "B_blocks": (2, 2, 4)}, {"d_in": 12, "d_out": 8, "r": 4}),
    ("rotation", {"R": (1, 3, 5, 5)}, {"d_in": 15}),
    ("rotation", {"R": (1, 2, 5, 5)}, {"d_in": 10}),
    ("rotation", {"R": (2, 2, 4, 4)}, {"d_in": 8}),
    ("rotation", {"R": (3, 4, 2, 2)}, {"d_in": 8}),
    ("rotation", {"R": (34, 1 << 32, 2, 2)}, {"d_in": 1 << 33}),
    ("diag_oft", {"blocks": (2, 4, 4), "g": (8,)}, {"d_out": 8}),
    ("lycoris_boft", {"blocks": (2, 2, 4, 4)}, {"d_out": 8}),
    ("lycoris_boft", {"blocks": (3, 4, 2, 2), "g": (8,)}, {"d_out": 8}),
    ("lycoris_boft", {"blocks": (1, 3, 2, 2)}, {"d_out": 6}),
    ("oft_v2", {"entries": (3, 1)}, {"b": 2}),
    ("oft_v2", {"entries": (3, 6), "m": (8,), "n": (8,)}, {"b": 4}),
    *(("oft_v2", {"entries": (1, b * (b - 1) // 2)}, {"b": b}) for b in range(2, 12)),
    *((f"dora_{kind}", shapes | {"m": (8,)}, {"d_out": 8}) for kind, shapes in INNER.items()),
    *((f"dora_{kind}", shapes | {"m_in": (3,)}, {"d_in": 12}) for kind, shapes in INNER.items()),
    ("dora_low_rank", ONE | {"m_in": (12,)}, {"d_in": 12}),
    ("dora_low_rank", ONE | {"m_in": (1,)}, {"d_in": 12}),
    ("lycoris_glora", PRODUCTS, {"d_in": 12, "b": 4}),
    ("glora", GATES, {"r_A": 2, "r_B": 3}),
    ("glora", {"A": (8, 1), "B": (8, 1)}, {"d_out": 8}),
    ("glora", {"a": (1,), "b": (1,), "C": (12,), "D": (1,), "E": (8,)}, {"d_in": 12}),
    ("pair_rotation", {"c": (3, 2, 5), "s": (3, 2, 5)}, {"d_out": 30}),
    ("principal_core", {"R": (4, 4), "draw": (2,)}, {"r": 4}),
    ("delora", ONE | LENGTHS, {"r": 3}),
    ("kasa", ONE | {"E": (3, 1)}, {"r": 3}),
    ("triplet", ONE | {"E": (3, 1)}, {"r": 3}),
    ("bat", {"M": (3, 4, 4)}, {"d_out": 12}),
    ("circulant", {"w": (2, 3, 4)}, {"d_out": 8, "d_in": 12}),
]
WRONG = [
    ("gralora", {"A_blocks": (0, 6, 4), "B_blocks": (0, 4, 4)}),
    ("gralora", {"A_blocks": (2, 6, 3), "B_blocks": (2, 3, 4)}),
    ("rotation", {"R": (2, 2, 5, 5)}),
    ("rotation", {"R": (2, 3, 4, 4)}),
    ("rotation", {"R": (3, 2, 4, 4)}),
    ("rotation", {"R": (33, 1 << 31, 2, 2)}),
    ("diag_oft", {"blocks": (2, 4, 4), "g": (7,)}),
    ("lycoris_boft", {"blocks": (1, 2, 3, 3)}),
    ("lycoris_boft", {"blocks": (2, 1, 4, 4)}),
    ("lycoris_boft", {"blocks": (3, 2, 4, 4)}),
    ("lycoris_boft", {"blocks": (1, 2, 4, 4), "g": (4,)}),
    ("oft_v2", {"entries": (3, 0)}),
    ("oft_v2", {"entries": (3, 2)}),
    ("oft_v2", {"entries": (3, 5)}),
    ("oft_v2", {"entries": (3, 6), "n": (8,)}),
    ("dora_low_rank", ONE),
    ("dora_low_rank", ONE | {"m": (8,), "m_in": (12,)}),
    ("dora_low_rank", ONE | {"m": (4,)}),
    ("dora_low_rank", ONE | {"m_in": (5,)}),
    ("dora_low_rank", ONE | {"m_in": (0,)}),
    ("lycoris_glora", PRODUCTS | {"a1": (5, 2), "a2": (2, 5)}),
    ("lycoris_glora", PRODUCTS | {"a1": (0, 2), "a2": (2, 0)}),
    ("glora", GATES | {"A_up": (3, 12)}),
    ("glora", {"A": (8, 2), "B": (8, 2)}),
    ("glora", {"A": (8, 1), "B": (8, 3), "B_up": (3, 12)}),
    ("glora", {"A_up": (1, 12), "B_up": (1, 12)}),
    ("glora", {"a": (2,), "b": (2,)}),
    ("glora", {"a": (1,), "b": (1,), "C": (12,)}),
    ("glora", GATES | {"a": (1,), "b": (1,)}),
    ("pair_rotation", {"c": (3, 3, 5), "s": (3, 3, 5)}),
    ("principal_core", {"R": (4, 4), "draw": (1,)}),
    ("delora", ONE | LENGTHS | {"lambda": (2,)}),
    ("kasa", ONE | {"E": (3, 2)}),
    ("triplet", ONE | {"E": (3, 0)}),
]


@pytest.mark.parametrize(("name", "shapes", "sizes"), FITTING)
def test_shapes_that_just_fit_say_these_sizes(name, shapes, sizes):
    assert kinds.get(name).dimensions(shapes).items() >= sizes.items()


@pytest.mark.parametrize(("name", "shapes"), WRONG)
def test_shapes_that_just_do_not(name, shapes):
    with pytest.raises(InputError):
        kinds.get(name).dimensions(shapes)


def test_one_block_of_a_rotation_serves_any_number_of_inputs():
    assert "d_in" not in kinds.get("rotation").dimensions({"R": (1, 1, 4, 4)})
    assert "1" not in kinds.get("triplet").dimensions(ONE | {"E": (3, 1)})


@pytest.mark.parametrize(
    ("name", "shapes", "entries"),
    [
        ("gralora", {"A_blocks": (2, 6, 4), "B_blocks": (2, 4, 4), "A_general": (1, 12), "B_general": (8, 1)}, 12 * 9),
        ("gralora", {"A_blocks": (2, 4, 4), "B_blocks": (2, 4, 6)}, 12 * 8),
        ("hadamard", {"w1_a": (12, 2), "w1_b": (2, 8), "w2_a": (12, 2), "w2_b": (2, 8)}, 4 * 12),
        ("hadamard", {"w1_a": (12, 2), "w1_b": (2, 4), "w2_a": (12, 2), "w2_b": (2, 4)}, 4 * 12),
        ("hadamard", {"w1_a": (3, 2), "w1_b": (2, 12), "w2_a": (3, 2), "w2_b": (2, 12)}, 3 * 12),
        ("randlora", {"lambda": (2, 3), "gamma_in": (3, 8), "A_in": (2, 8), "B_out": (12, 3, 2)}, 12 * 12),
        ("randlora", {"lambda": (3, 5), "gamma_out": (5, 8), "A_out": (3, 8), "B_in": (12, 5, 3)}, 12 * 15),
        ("kronecker", {"w1": (6, 7), "w2": (4, 5)}, 6 * 7),
        ("kronecker", {"w1": (1, 30), "w2": (25, 1)}, 30),
        ("kronecker", {"w1_a": (7, 1), "w1_b": (1, 1), "w2": (2, 2)}, 7),
        ("bat", {"M": (3, 4, 4)}, 48),
        ("scaling", {}, 0),
    ],
)
def test_the_largest_array_that_is_taken_or_made(name, shapes, entries):
    assert kinds.get(name).largest(shapes) == entries


# --- the base ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "roles", "fits", "wrong"),
    [
        ("replaced_tail", {"U": (4, 4), "S": (4,), "V": (4, 6)}, [(4, 6)], [(4, 7), (5, 6)]),
        ("replaced_tail", {"U": (4, 5), "S": (5,), "V": (5, 6)}, [], [(4, 6)]),
        ("replaced_tail", {"U": (6, 5), "S": (5,), "V": (5, 4)}, [], [(6, 4)]),
        ("principal_core", {"R": (4, 4)}, [(4, 6), (6, 4), (4, 4)], [(3, 6), (6, 3)]),
        ("principal_core_halved", {"R": (4, 4)}, [(4, 6), (6, 4)], [(3, 6), (6, 3)]),
        ("kasa", {"A": (3, 6), "B": (4, 3), "E": (3, 1)}, [(4, 6)], [(6, 4)]),
        ("kasa", {"A": (4, 6), "B": (4, 4), "E": (4, 1)}, [], [(4, 6)]),
        ("rotation", {"R": (1, 1, 4, 4)}, [(3, 4), (3, 12)], [(3, 6), (3, 2)]),
        ("bat", {"M": (2, 3, 3)}, [(6, 3), (6, 9)], [(6, 4), (5, 3), (9, 3), (3, 6)]),
        ("bat", {"M": (2, 0, 0)}, [], [(0, 3)]),
        ("diag_oft", {"blocks": (2, 3, 3)}, [(6, 5)], [(5, 6), (3, 12), (12, 3)]),
        ("lycoris_boft", {"blocks": (2, 2, 2, 2)}, [(4, 5)], [(5, 4), (8, 5), (2, 10)]),
        ("oft_v2", {"entries": (1, 3)}, [(5, 3), (5, 9)], [(5, 4), (5, 2)]),
        ("oft_v2", {"entries": (2, 3)}, [(5, 6)], [(5, 3), (5, 9), (10, 3)]),
        ("tuned", {"tuned": (4, 6)}, [(4, 6)], [(6, 4), (1, 6), (4, 1)]),
        ("modulated", {"A": (2, 6), "B": (4, 2)}, [(4, 6)], [(1, 6), (4, 1), (6, 4)]),
        ("scaling", {"out_scale": (4,)}, [(4, 6)], [(6, 4), (1, 6)]),
        ("scaling", {"in_scale": (4,)}, [(6, 4)], [(4, 6), (6, 1)]),
        ("magnitude", {"m": (4,)}, [(4, 6)], [(6, 4), (1, 6)]),
        ("lycoris_glora", PRODUCTS, [(8, 12)], [(12, 8), (8, 4), (1, 12)]),
        ("dora_low_rank", ONE | {"m": (8,)}, [(8, 12)], [(12, 8), (1, 12), (8, 1)]),
    ],
)
def test_a_base_that_just_fits_and_those_that_do_not(rng, name, roles, fits, wrong):
    given = {role: rng.standard_normal(shape) for role, shape in roles.items()}
    for shape in fits:
        assert kinds.get(name).delta(given, 1.0, rng.standard_normal(shape)).shape == shape
    for shape in wrong:
        with pytest.raises(InputError):
            kinds.get(name).delta(given, 1.0, rng.standard_normal(shape))


def test_a_tail_of_all_directions_replaces_all_of_w(rng):
    weight, u, s, v = (rng.standard_normal(shape) for shape in ((4, 6), (4, 4), (4,), (4, 6)))
    found = kinds.get("replaced_tail").delta({"U": u, "S": s, "V": v}, 1.0, weight).dense()
    np.testing.assert_allclose(found, u @ np.diag(s) @ v - weight, rtol=0, atol=1e-13)


@pytest.mark.parametrize("groups", [1, 2])
def test_one_row_of_entries_serves_every_group(rng, groups):
    entries, weight = rng.standard_normal((groups, 3)), rng.standard_normal((5, 6))
    found = kinds.get("oft_v2").delta({"entries": entries}, 1.0, weight).dense()
    for k, part in enumerate((slice(0, 3), slice(3, 6))):
        expected = weight[:, part] @ (series(entries[k % groups]) - np.eye(3)).T
        np.testing.assert_allclose(found[:, part], expected, rtol=0, atol=1e-11)


def test_at_scale_one_a_dense_update_is_no_copy(rng):
    """It may be the largest thing in memory."""
    given, kind = rng.standard_normal((4, 6)), kinds.get("dense")
    assert kind.delta({"delta": given}, 1.0).dense() is given
    for scale in (0.0, 2.0):
        np.testing.assert_array_equal(kind.delta({"delta": given}, scale).dense(), scale * given)


def test_a_circulant_update_is_divided_by_its_inputs():
    kind = kinds.get("circulant")
    assert kind.delta({"w": np.full((1, 1, 1), 3.0)}, 2.0).dense().tolist() == [[6.0]]
    assert kind.delta({"w": np.full((1, 2, 1), 3.0)}, 2.0).dense().tolist() == [[3.0, 3.0]]
    assert kind.delta({"w": np.zeros((2, 0, 4))}, 2.0).shape == (8, 0)


def test_the_signs_of_a_principal_core_are_those_of_single_precision(rng, monkeypatch):
    """As PEFT computed it; which signs float64's directions have does not matter."""
    weight, core = rng.standard_normal((7, 9)), rng.standard_normal((4, 4))
    kind, svd = kinds.get("principal_core"), torch.linalg.svd
    expected = kind.delta({"R": core}, 1.0, weight).dense()

    def turned(values, **more):
        u, s, vh = svd(values, **more)
        signs = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0, -1.0, 1.0]) if values.dtype == torch.float64 else torch.ones(7)
        return u * signs, s, signs[:, None] * vh

    monkeypatch.setattr(torch.linalg, "svd", turned)
    np.testing.assert_allclose(kind.delta({"R": core}, 1.0, weight).dense(), expected, rtol=0, atol=1e-12)


def test_a_column_without_length_has_no_direction(rng):
    """W's first column in the basis is 1e-13 long or nothing, and the second 1e-11, which is enough."""
    kind, target = kinds.get("recomposed"), rng.standard_normal((3, 3))
    for first in (0.0, 1e-13):
        weight = np.array([[first, 3e-11, 1.0], [0.0, 4e-11, 1.0]])
        found = kind.delta({"V": np.eye(3), "T": target}, 1.0, weight).dense()
        unit = np.array([[0.0, 0.6, 0.5**0.5], [0.0, 0.8, 0.5**0.5]])
        np.testing.assert_allclose(found, unit @ target - weight, rtol=0, atol=1e-12)


def test_a_singular_basis_has_a_pseudoinverse(rng):
    weight, target = rng.standard_normal((2, 3)), rng.standard_normal((3, 3))
    for basis in (np.diag([1.0, 2.0, 0.0]), torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))):
        like = torch.from_numpy if isinstance(basis, torch.Tensor) else np.asarray
        found = kinds.get("recomposed").delta({"V": basis, "T": like(target)}, 1.0, like(weight)).dense()
        kept = weight[:, :2] / np.linalg.norm(weight[:, :2], axis=0)
        np.testing.assert_allclose(np.asarray(found), kept @ target[:2] - weight, rtol=0, atol=1e-12)


def test_lengths_below_a_ten_thousandth_are_taken_for_it():
    """DeLoRA divides by 1e-4 where a row of A or a column of B is shorter, as PEFT does."""
    roles = {"A": np.array([[5e-5, 0.0], [0.0, 2.0]]), "B": np.array([[3.0, 5e-5]]), "lambda": np.array([6.0])}
    found = kinds.get("delora").delta(roles | {"n": np.array([1.0, 10.0])}, 0.5).dense()
    np.testing.assert_allclose(found, [[1.5 * 0.5, 1.5 * 0.5 * 10]], rtol=1e-12)


# --- what a bias gets -------------------------------------------------------------------------------------------------


def test_what_is_added_to_a_bias(rng):
    weight, bias, c, d, e = (rng.standard_normal(shape) for shape in ((4, 6), (4,), (6,), (1,), (4,)))
    paths = {"a": np.ones(1), "b": np.ones(1)}
    glora, scaling = kinds.get("glora"), kinds.get("scaling")
    found = glora.bias_change(paths | {"C": c, "D": d, "E": e}, 0.5, bias, weight)
    np.testing.assert_allclose(found, 0.5 * (d * bias + e + weight @ c), rtol=1e-12)
    assert glora.bias_change(paths, 0.5, bias, weight) is None
    np.testing.assert_allclose(scaling.bias_change({"out_scale": e}, 0.5, bias), 0.5 * (e - 1) * bias, rtol=1e-12)
    assert scaling.bias_change({"in_scale": c}, 0.5, bias) is None
    assert kinds.get("low_rank").bias_change({}, 0.5, bias) is None


def test_a_rotated_output_has_a_rotated_bias(rng):
    """Of the whole layer: R(W x + b) is W'x + b'."""
    kind, weight, bias, x = kinds.get("pair_rotation"), *(rng.standard_normal(s) for s in ((8, 3), (8,), (3,)))
    roles = {"c": rng.standard_normal((2, 2, 2)), "s": rng.standard_normal((2, 2, 2))}
    both = np.concatenate([weight, bias[:, None]], axis=1)
    expected = kind.delta(roles, 0.5, both).dense() @ np.append(x, 1.0)
    found = kind.delta(roles, 0.5, weight).dense() @ x + kind.bias_change(roles, 0.5, bias)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", [name for name, kind in kinds.items() if {"A", "B"} <= set(kind.roles)])
def test_of_kinds_by_triangles_only_the_products_of_a_and_b_count(rng, name):
    """B·C·A turned on both sides is the same with B and A turned."""
    kind = kinds.get(name)
    sizes = {"r": 3, "d_out": 8, "d_in": 12, "1": 1, "rows": 8}
    if not {symbol for role in kind.roles.values() for symbol in role.shape} <= set(sizes):
        assert not kind.by_triangles
        return
    roles = {role: rng.standard_normal([sizes[s] for s in kind.roles[role].shape]) for role in kind.roles}
    out, into = (np.linalg.qr(rng.standard_normal((n, n)))[0] for n in (8, 12))

    def made(given):
        found = kind.direction(given, 0.5) if kind.has_direction else kind.delta(given, 0.5)
        return found.dense()

    if kind.needs_base and not kind.has_direction:
        assert not kind.by_triangles
        return
    turned = made(roles | {"A": roles["A"] @ into, "B": out @ roles["B"]})
    assert kind.by_triangles == np.allclose(turned, out @ made(roles) @ into, rtol=0, atol=1e-12)


# --- what is too large ------------------------------------------------------------------------------------------------


class Announced:
    """An array that says a shape, and what it is made of, and holds nothing."""

    dtype = "F32"

    def __init__(self, *shape, **more):
        self.shape = shape
        self.__dict__.update(more)

    def read(self):
        raise AssertionError("read")


def pair(rank):
    return {"A": Announced(rank, 1), "B": Announced(1, rank)}


TWO = Announced(MAX_EXPANDED), Announced(2, MAX_EXPANDED)


@pytest.mark.parametrize(
    ("kind", "fits", "too_large", "said"),
    [
        ("low_rank", pair(MAX_RANK), pair(MAX_RANK + 1), "16,385 is more than the 16,384"),
        ("dense", {"delta": Announced(1 << 14, 1 << 14)}, {"delta": Announced(1, MAX_ENTRIES + 1)}, "too large to dec"),
        (
            "dense",
            {"delta": Announced(1, MAX_EXPANDED, source=Announced(1))},
            {"delta": Announced(1, MAX_EXPANDED + 1, source=Announced(1))},
            "of 1 entries",
        ),
        (
            "dense",
            {"delta": Announced(1, 4 * MAX_EXPANDED, source=Announced(1, MAX_EXPANDED))},
            {"delta": Announced(1, 4 * MAX_EXPANDED + 1, source=Announced(1, MAX_EXPANDED))},
            "of 4,194,304 entries",
        ),
        (
            "dense",
            {"delta": Announced(1, 12 * MAX_EXPANDED, sources=TWO)},
            {"delta": Announced(1, 12 * MAX_EXPANDED + 1, sources=TWO)},
            "of 12,582,912 entries",
        ),
    ],
)  # fmt: skip
def test_just_small_enough_and_just_too_large(kind, fits, too_large, said):
    assert Update("x", kind, fits).excess() is None
    assert said in Update("x", kind, too_large).excess()
    with pytest.raises(InputError, match=r"^x: "):
        Update("x", kind, too_large).read()


def test_a_base_counts_where_it_is_needed():
    """And where ΔW is not made of it, it does not."""
    small, whole, larger = (Announced(*s) for s in ((2, 2), (1, MAX_ENTRIES), (1, MAX_ENTRIES + 1)))
    scaling, low_rank = Update("x", "scaling", {"out_scale": Announced(1)}), Update("x", "low_rank", pair(1))
    assert [scaling.excess(base) for base in (None, small, whole)] == [None, None, None]
    assert (
        scaling.excess(larger)
        == "too large to decompose: an array of 268,435,457 entries, and 268,435,456 are the most"
    )
    assert low_rank.excess(larger) is None


def test_numbers_that_a_file_holds_of_an_array():
    """No more than there are entries, and indices are none."""
    source, whole = Announced(2, 3), SimpleNamespace(shape=(2, 3), dtype="I64")
    assert stored_numbers(source) == 6
    assert [stored_numbers(SimpleNamespace(shape=(5,), dtype=dtype)) for dtype in ("I32", "I64", "I8")] == [0, 0, 5]
    assert stored_numbers(Announced(4, 5, numbers=7.0)) == 7
    assert stored_numbers(Announced(4, 5, source=source)) == 6
    assert stored_numbers(Announced(1, 5, source=source)) == 5
    assert stored_numbers(Announced(4, 5, sources=(source, Announced(7), whole))) == 13
    assert stored_numbers(Announced(4, 5, sources=())) == 20


def test_what_an_update_says_of_itself():
    roles = {"A": Announced(2, 6), "B": Announced(4, 2)}
    found = Update("x", "low_rank", roles)
    assert (found.shape, found.sides, found.rank) == ((4, 6), (4, 6), 2)
    assert (found.needs_base, found.has_direction, found.scale) == (False, False, 1.0)
    assert (found.transposed, found.embedding, found.expert, found.bias, found.notes) == (False, False, None, None, ())
    lengths = Update("x", "magnitude", {"m": Announced(4)})
    assert (lengths.sides, lengths.rank, lengths.needs_base, lengths.has_direction) == ((4, None), None, True, False)
    both = Update("x", "magnitude", roles | lengths.roles)
    assert (both.has_direction, both.shape, both.rank) == (True, (4, 6), 2)
    assert Update("x", "dora_low_rank", roles | lengths.roles).rank == 2
    assert Update("x", "bat", {"M": Announced(3, 4, 4)}).rank is None
    assert Update("x", "scaling", {"in_scale": Announced(4)}).sides == (None, 4)
    with pytest.raises(InputError, match="base only"):
        _ = lengths.shape
    assert updates.kinds.get("vera").needs_base is False
