"""The contract of a kind of update, over every registered one: the dense formula, shapes that disagree, torch.

A kind needs one line: ΔW written out densely, in the textbook's way, from the same roles. It stands here in `FORMULAS`,
or as `FORMULA` in a file of its own, `tests/updates/formula_KIND.py`, which may also have `CHOICES` and `SIZES`; or
with others in one `formulas_*.py`, which has `FORMULAS`, `CHOICES` and `SIZES`.
"""

import importlib
import pkgutil

import numpy as np
import pytest
import torch

import tests.updates
from lorascope.errors import InputError
from lorascope.linalg.arrays import to_numpy
from lorascope.updates.base import dense, kinds
from lorascope.updates.residual import Residual

SIZES = {"r": 3, "d_out": 8, "d_in": 12, "a": 2, "b": 3, "c": 4, "d": 4, "r1": 1, "r2": 2, "1": 1}
# Of blocks: k·q and m·block are d_out, k·p and n·block are d_in.
SIZES |= {"k": 2, "p": 6, "q": 4, "w": 4, "h": 1, "m": 2, "n": 3, "block": 4}
SCALE = 0.75


def row_lengths(matrix):
    return np.sqrt((matrix**2).sum(axis=1, keepdims=True))


def turned(roles, scale, base):
    return base + scale * roles["B"] @ roles["A"] if "A" in roles else base


def operand(roles, name):
    return roles[name] if name in roles else roles[f"{name}_a"] @ roles[f"{name}_b"]


def leading(matrix, rank):
    """The best approximation of this rank, from the eigenvectors of MᵀM."""
    _, vectors = np.linalg.eigh(matrix.T @ matrix)
    top = vectors[:, -rank:]
    return matrix @ top @ top.T


def rest_of_qr(matrix, rank):
    """What W = QR leaves beyond the first columns of Q: W less its projection onto its own first columns."""
    first = matrix[:, :rank]
    return matrix - first @ np.linalg.solve(first.T @ first, first.T @ matrix)


FORMULAS = {
    "low_rank": lambda x, s, w: s * x["B"] @ x["A"],
    "triplet": lambda x, s, w: s * x["B"] @ np.diag(x["E"][:, 0]) @ x["A"],
    "vera": lambda x, s, w: s * np.diag(x["b"]) @ x["B"] @ np.diag(x["d"]) @ x["A"],
    "core": lambda x, s, w: s * x["B"] @ x["R"] @ x["A"],
    "scaling": lambda x, s, w: (
        s * (np.diag(x["out_scale"]) @ w if "out_scale" in x else w @ np.diag(x["in_scale"])) - s * w
    ),
    "magnitude": lambda x, s, w: x["m"][:, None] * turned(x, s, w) / row_lengths(turned(x, s, w)) - w,
    "hadamard": lambda x, s, w: s * (x["w1_a"] @ x["w1_b"]) * (x["w2_a"] @ x["w2_b"]),
    "kronecker": lambda x, s, w: s * np.kron(operand(x, "w1"), operand(x, "w2")),
    "dense": lambda x, s, w: s * x["delta"],
    "tuned": lambda x, s, w: s * (x["tuned"] - w),
    "pissa": lambda x, s, w: s * x["B"] @ x["A"] - leading(w, x["A"].shape[0]),
    "olora": lambda x, s, w: s * (x["B"] @ x["A"] - (w - rest_of_qr(w, x["A"].shape[0]))),
}
# Which roles are there together, for kinds that have a choice; all of them otherwise.
CHOICES: dict[str, list[tuple[str, ...]]] = {
    "scaling": [("out_scale",), ("in_scale",)],
    "magnitude": [("A", "B", "m"), ("m",)],
    "randlora": [("lambda", "gamma_in", "A_in", "B_out"), ("lambda", "gamma_out", "A_out", "B_in")],
    "gralora": [("A_blocks", "B_blocks"), ("A_blocks", "B_blocks", "A_general", "B_general")],
    "kronecker": [("w1", "w2"), ("w1_a", "w1_b", "w2"), ("w1", "w2_a", "w2_b"), ("w1_a", "w1_b", "w2_a", "w2_b")],
}
for _module in pkgutil.iter_modules(tests.updates.__path__, "tests.updates."):
    _name = _module.name.rpartition(".")[2]
    if _name.startswith("formula_"):
        _formula = importlib.import_module(_module.name)
        FORMULAS[_name.removeprefix("formula_")] = _formula.FORMULA
        SIZES |= getattr(_formula, "SIZES", {})
        if hasattr(_formula, "CHOICES"):
            CHOICES[_name.removeprefix("formula_")] = _formula.CHOICES
    if _name.startswith("formulas_"):
        _several = importlib.import_module(_module.name)
        FORMULAS |= _several.FORMULAS
        SIZES |= _several.SIZES
        CHOICES |= _several.CHOICES
CASES = [(name, chosen) for name, kind in kinds.items() for chosen in CHOICES.get(name, [tuple(kind.roles)])]


def make(name, chosen, sizes=SIZES):
    rng = np.random.default_rng(len(name))
    roles = {role: rng.standard_normal([sizes[s] for s in kinds.get(name).roles[role].shape]) for role in chosen}
    return roles, rng.standard_normal((SIZES["d_out"], SIZES["d_in"]))


def shapes_of(roles):
    return {role: tuple(array.shape) for role, array in roles.items()}


def rounding(name, expected):
    """Of sums of a few products in float64, of size one or of the largest entry's; a start that PEFT takes from W in
    float32 is taken in float32 here too."""
    of_one = 3e-6 if isinstance(kinds.get(name), Residual) else 1e-13
    return of_one * max(1.0, np.abs(expected).max())


def test_every_kind_has_its_formula_here():
    assert set(FORMULAS) == set(kinds.names())


@pytest.mark.parametrize(("name", "chosen"), CASES)
def test_delta_is_the_dense_formula(name, chosen):
    kind = kinds.get(name)
    roles, base = make(name, chosen)
    expected = FORMULAS[name](roles, SCALE, base)
    found = dense(kind.delta(roles, SCALE, base if kind.needs_base else None))
    assert found.dtype == np.float64
    plain = (kind.delta(roles, base=base if kind.needs_base else None), kind.delta(roles, 1.0, base))
    assert np.array_equal(*map(dense, plain))  # a scale that is not given is 1
    directions = kind.direction(roles), kind.direction(roles, 1.0)
    assert directions == (None, None) or np.array_equal(*map(dense, directions))
    if "A" in chosen and kind.needs_base:
        assert kind.has_direction == (directions[0] is not None)
    np.testing.assert_allclose(found, expected, rtol=0, atol=rounding(name, expected))


@pytest.mark.parametrize(("name", "chosen"), CASES)
def test_torch_gives_the_same(name, chosen):
    kind = kinds.get(name)
    roles, base = make(name, chosen)
    tensors = {role: torch.from_numpy(array) for role, array in roles.items()}
    found = dense(kind.delta(tensors, SCALE, torch.from_numpy(base) if kind.needs_base else None))
    assert isinstance(found, torch.Tensor)
    expected = FORMULAS[name](roles, SCALE, base)
    np.testing.assert_allclose(to_numpy(found), expected, rtol=0, atol=rounding(name, expected))


@pytest.mark.parametrize(("name", "chosen"), CASES)
def test_gradients_reach_every_role(name, chosen):
    """The trained layer calls the same formula: every role must get a gradient, checked against differences."""
    kind = kinds.get(name)
    roles, base = make(name, chosen)
    tensors = [torch.from_numpy(array).requires_grad_() for array in roles.values()]
    weight = torch.from_numpy(base) if kind.needs_base else None
    assert torch.autograd.gradcheck(
        lambda *x: dense(kind.delta(dict(zip(roles, x, strict=True)), SCALE, weight)), tensors
    )


@pytest.mark.parametrize(("name", "chosen"), CASES)
def test_shape_and_rank_are_those_of_the_dense_matrix(name, chosen):
    kind = kinds.get(name)
    roles, base = make(name, chosen)
    delta = FORMULAS[name](roles, SCALE, base)
    if kind.needs_base and not {"d_in", "d_out"} <= set(kind.dimensions(shapes_of(roles))):
        with pytest.raises(InputError, match="base"):
            kind.shape(shapes_of(roles))
    else:
        assert kind.shape(shapes_of(roles)) == delta.shape
    rank = kind.rank(shapes_of(roles))
    if rank is not None and not kind.needs_base:
        assert np.linalg.matrix_rank(delta) == rank  # random factors reach the largest rank there can be


@pytest.mark.parametrize("sizes", [{"w": 10}, {"w": 10, "d_out": 10, "d_in": 6, "p": 3, "q": 5}])
@pytest.mark.parametrize(("name", "chosen"), [case for case in CASES if case[0] == "gralora"])
def test_blocks_have_at_most_the_rank_of_their_sides(name, chosen, sizes):
    roles, _ = make(name, chosen, SIZES | sizes)
    assert kinds.get(name).rank(shapes_of(roles)) == np.linalg.matrix_rank(FORMULAS[name](roles, 1.0, None))


@pytest.mark.parametrize(("name", "chosen"), CASES)
def test_shapes_that_disagree_are_an_error(name, chosen):
    kind = kinds.get(name)
    roles, _ = make(name, chosen)
    shapes = shapes_of(roles)
    kind.dimensions(shapes)  # these agree
    for role, shape in shapes.items():
        with pytest.raises(InputError):
            kind.dimensions({**shapes, role: (*shape, 2)})
        with pytest.raises(InputError):
            kind.dimensions({**shapes, "stranger": (2, 2)})
        for axis, symbol in enumerate(kind.roles[role].shape):
            others = [s for other in shapes if other != role for s in kind.roles[other].shape]
            if symbol in others or symbol == "1":
                changed = (*shape[:axis], shape[axis] + 1, *shape[axis + 1 :])
                with pytest.raises(InputError):
                    kind.dimensions({**shapes, role: changed})


@pytest.mark.parametrize(("name", "chosen"), CASES)
def test_a_role_that_is_missing_is_an_error(name, chosen):
    kind = kinds.get(name)
    roles, _ = make(name, chosen)
    shapes = shapes_of(roles)
    for role in chosen:
        rest = {other: shape for other, shape in shapes.items() if other != role}
        if tuple(rest) not in CHOICES.get(name, []):
            with pytest.raises(InputError):
                kind.dimensions(rest)


@pytest.mark.parametrize("name", [name for name, kind in kinds.items() if kind.needs_base])
def test_the_base_is_asked_for_and_must_fit(name):
    kind = kinds.get(name)
    roles, base = make(name, CHOICES.get(name, [tuple(kind.roles)])[0])
    with pytest.raises(InputError, match="base"):
        kind.delta(roles, SCALE)
    if {"d_in", "d_out"} & set(kind.dimensions(shapes_of(roles))):  # else only the base says either
        with pytest.raises(InputError):
            kind.delta(roles, SCALE, base[:-1, :-1])
