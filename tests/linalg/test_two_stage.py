"""Eigenvalues by each routine against planted ones and against numpy's, without the routines, and which is taken."""

import ctypes
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from lorascope.linalg import band, dense, torch_lapack, two_stage

ROUTINES = {"two stages": band.routines, "torch's": lambda: torch_lapack.routine("dsyevd_")}


@pytest.fixture(params=ROUTINES)
def at_every_size(request, monkeypatch):
    """One of the routines, taken at every size; the test is skipped where the machine lacks it."""
    if ROUTINES[request.param]() is None:
        pytest.skip(f"no routine here for {request.param}")
    monkeypatch.setattr(two_stage, "LARGE", 1)
    monkeypatch.setattr(two_stage, "fastest", lambda question, calls, versions: request.param)


def symmetric(n, values, seed=0):
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    made = (q * values) @ q.T
    return (made + made.T) / 2


@pytest.mark.parametrize("n", [1, 2, 3, 31, 64, 65, 66, 129, 200, 401])  # about its band of 64 and its blocks, too
def test_planted_eigenvalues_come_back_as_well_as_from_one_stage(at_every_size, n):
    values = np.sort(np.r_[np.geomspace(1e-6, 1, n - n // 2), -np.linspace(0, 2, n // 2)])
    matrix = symmetric(n, values)
    found, other = two_stage.eigenvalues(matrix.copy()), np.linalg.eigvalsh(matrix)
    assert found.dtype == np.float64
    assert np.all(np.diff(found) >= 0)
    bound = 10 * np.sqrt(n) * np.finfo(float).eps * np.abs(values).max()  # each moves by eps·‖G‖₂, some √n of it
    np.testing.assert_allclose(found, values, rtol=0, atol=bound)
    np.testing.assert_allclose(found, other, rtol=0, atol=bound)


@pytest.mark.parametrize("scale", [1e-307, 1e-160, 1e-120, 1e-20, 1e119, 1e122, 1e150, 1e307])
def test_sizes_at_the_end_of_the_range(at_every_size, scale):
    """Squares of entries are no numbers from 1e154 on, and nothing below 1e-162."""
    matrix = symmetric(70, np.linspace(-1, 2, 70))
    found = two_stage.eigenvalues(matrix * scale)
    np.testing.assert_allclose(found / scale, np.linspace(-1, 2, 70), rtol=0, atol=1e-13)


@pytest.mark.parametrize("top", [2.0**400, 2.0**-401, 2.0**-1070, 0.0])
def test_only_what_is_out_of_range_is_scaled(top):
    for sign in (1, -1):
        matrix = sign * top * np.eye(3)
        factor = band._in_range(matrix)
        assert (factor == 1) == (top in (0.0, 2.0**-401))
        np.testing.assert_array_equal(matrix, sign * top * factor * np.eye(3))
        assert top == 0 or 2.0**-401 <= np.abs(matrix).max() <= 2.0**400
        assert factor == 1 or 2.0**-300 <= np.abs(matrix).max() <= 2.0**300


def test_nothing_and_what_is_not_finite_have_their_own_answers(at_every_size):
    assert two_stage.eigenvalues(np.zeros((70, 70))).tolist() == [0.0] * 70
    assert band._in_range(np.full((2, 2), np.nan)) == band._in_range(np.full((2, 2), np.inf)) == 1


def test_either_order_of_memory_and_a_part_of_a_larger_matrix(at_every_size):
    matrix = symmetric(50, np.arange(50.0))
    for given in (matrix.copy(), np.asfortranarray(matrix), np.pad(matrix, 3)[3:-3, 3:-3]):
        np.testing.assert_allclose(two_stage.eigenvalues(given), np.arange(50.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ROUTINES)
def test_a_spectrum_is_the_same_with_the_routine_and_without(monkeypatch, name):
    if ROUTINES[name]() is None:
        pytest.skip(f"no routine here for {name}")
    monkeypatch.setattr(two_stage, "LARGE", 1)
    monkeypatch.setattr(two_stage, "fastest", lambda question, calls, versions: name)
    matrix = np.random.default_rng(5).standard_normal((150, 210))
    module, call = (band, band.eigenvalues) if name == "two stages" else (two_stage, two_stage._by_torch)
    calls = []
    monkeypatch.setattr(module, call.__name__, lambda given: calls.append(1) or call(given))
    quick = dense.spectrum(matrix)
    assert calls, "the routine was not used"
    monkeypatch.setattr(two_stage, "_fastest", lambda: None)
    slow = dense.spectrum(matrix)
    assert len(calls) == 1
    assert quick.method == slow.method == "gram"
    np.testing.assert_allclose(quick.values, slow.values, rtol=1e-13)  # condition 12: 150·eps is 3e-14
    np.testing.assert_allclose(quick.values, np.linalg.svd(matrix, compute_uv=False), rtol=1e-12)


def test_numpys_wheels_have_the_routines():
    lapack = np.show_config(mode="dicts")["Build Dependencies"]["lapack"]
    if lapack["name"] != "scipy-openblas":
        pytest.skip(f"numpy of {lapack['name']}")
    assert len(band.routines()) == 3


def test_small_matrices_take_one_stage(monkeypatch):
    monkeypatch.setattr(two_stage, "_fastest", lambda: pytest.fail("two stages cost more here"))
    two_stage.eigenvalues(np.eye(two_stage.LARGE // 8))


def fails(*given):
    """As a LAPACK with 32-bit integers would: the last argument before the letters' lengths says what went wrong."""
    info = [each for each in given if isinstance(each, ctypes.c_void_p)][-1]
    ctypes.c_int32.from_address(info.value).value = -7


@pytest.mark.parametrize("call", [lambda: two_stage._call(fails, np.eye(4)), lambda: band._call(fails, b"L", 4)])
def test_a_failure_of_a_routine_is_an_error(call):
    with pytest.raises(np.linalg.LinAlgError, match="converge"):
        call()


@pytest.mark.parametrize(
    "broken",
    [
        "band._NAMES = ('no_such_{}_',)",
        "band.ROUTINES = (*band.ROUTINES, 'no_such')",
        "band.sys = type('Other', (), {'byteorder': 'big'})",
        "np.linalg._umath_linalg.__file__ = '/no/such'",
    ],
)
def test_without_the_routines_numpy_answers(broken):
    """In a process of its own, as the routines are looked up once."""
    code = f"""
        import numpy as np
        from lorascope.linalg import band, torch_lapack, two_stage
        {broken}
        two_stage.LARGE = 1
        torch_lapack.routine = lambda name: None
        assert band.routines() is two_stage._fastest() is None
        assert np.allclose(two_stage.eigenvalues(np.diag([3.0, 1.0, 2.0])), [1, 2, 3])
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


@pytest.mark.parametrize("present", [("two stages",), ("torch's",), ("two stages", "torch's")])
def test_the_faster_of_those_that_are_there_is_taken(monkeypatch, present):
    monkeypatch.setattr(band, "routines", lambda: () if "two stages" in present else None)
    monkeypatch.setattr(torch_lapack, "routine", lambda name: print if "torch's" in present else None)
    monkeypatch.setattr(two_stage, "fastest", lambda question, calls, versions: list(calls)[-1])
    made = {"two stages": band.eigenvalues, "torch's": two_stage._by_torch}
    assert two_stage._fastest() is made[present[-1]]


def test_what_is_timed_is_the_routine_itself(monkeypatch):
    seen = []
    monkeypatch.setattr(two_stage, "TIMED", 8)
    monkeypatch.setattr(band, "eigenvalues", lambda matrix: seen.append(("two stages", matrix.shape)))
    monkeypatch.setattr(two_stage, "_by_torch", lambda matrix: seen.append(("torch's", matrix.shape)))
    monkeypatch.setattr(band, "routines", lambda: ())
    monkeypatch.setattr(torch_lapack, "routine", {"dsyevd_": print}.get)
    monkeypatch.setattr(
        two_stage, "fastest", lambda _, calls, versions: [call() for call in calls.values()] and "torch's"
    )
    assert two_stage._fastest() is two_stage._by_torch
    assert seen == [("two stages", (8, 8)), ("torch's", (8, 8))]


def test_the_question_names_the_band_so_that_another_width_is_timed_again(monkeypatch):
    asked = []
    monkeypatch.setattr(
        two_stage, "fastest", lambda question, calls, versions: asked.append(question) or next(iter(calls))
    )
    for width in (32, 64):
        monkeypatch.setattr(band, "WIDTH", width)
        two_stage._fastest()
    assert asked[0] != asked[1]
