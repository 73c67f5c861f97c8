"""Eigenvalues by each routine against planted ones and against numpy's, without the routines, and which is taken."""

import ctypes
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from lorascope.linalg import dense, torch_lapack, two_stage

ROUTINES = {"two stages": two_stage._routine, "torch's": lambda: torch_lapack.routine("dsyevd_")}


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


@pytest.mark.parametrize("n", [1, 2, 3, 31, 64, 65, 200, 401])  # about its bands of 32 and its blocks, too
def test_planted_eigenvalues_come_back_as_well_as_from_one_stage(at_every_size, n):
    values = np.sort(np.r_[np.geomspace(1e-6, 1, n - n // 2), -np.linspace(0, 2, n // 2)])
    matrix = symmetric(n, values)
    found, other = two_stage.eigenvalues(matrix.copy()), np.linalg.eigvalsh(matrix)
    assert found.dtype == np.float64
    assert np.all(np.diff(found) >= 0)
    bound = 10 * np.sqrt(n) * np.finfo(float).eps * np.abs(values).max()  # each moves by eps·‖G‖₂, some √n of it
    np.testing.assert_allclose(found, values, rtol=0, atol=bound)
    np.testing.assert_allclose(found, other, rtol=0, atol=bound)


@pytest.mark.parametrize("scale", [1e-160, 1e-20, 1e150])
def test_sizes_at_the_end_of_the_range(at_every_size, scale):
    matrix = symmetric(70, np.linspace(1, 2, 70))
    found = two_stage.eigenvalues(matrix * scale)
    np.testing.assert_allclose(found / scale, np.linspace(1, 2, 70), rtol=1e-13)


def test_either_order_of_memory_and_a_part_of_a_larger_matrix(at_every_size):
    matrix = symmetric(50, np.arange(50.0))
    for given in (matrix.copy(), np.asfortranarray(matrix), np.pad(matrix, 3)[3:-3, 3:-3]):
        np.testing.assert_allclose(two_stage.eigenvalues(given), np.arange(50.0), rtol=0, atol=1e-12)


def test_a_spectrum_is_the_same_with_the_routine_and_without(at_every_size, monkeypatch):
    matrix = np.random.default_rng(5).standard_normal((150, 210))
    calls = []
    monkeypatch.setattr(two_stage, "_call", lambda *a, call=two_stage._call: calls.append(1) or call(*a))
    quick = dense.spectrum(matrix)
    assert calls, "the routine was not used"
    monkeypatch.setattr(two_stage, "_fastest", lambda: None)
    slow = dense.spectrum(matrix)
    assert len(calls) == 1
    assert quick.method == slow.method == "gram"
    np.testing.assert_allclose(quick.values, slow.values, rtol=1e-13)  # condition 12: 150·eps is 3e-14
    np.testing.assert_allclose(quick.values, np.linalg.svd(matrix, compute_uv=False), rtol=1e-12)


def test_small_matrices_take_one_stage(monkeypatch):
    monkeypatch.setattr(two_stage, "_call", lambda *_: pytest.fail("two stages cost more here"))
    two_stage.eigenvalues(np.eye(two_stage.LARGE // 8))


def test_a_failure_of_the_routine_is_an_error():
    def fails(*given):
        ctypes.c_int32.from_address(given[-3].value).value = -7  # as a LAPACK with 32-bit integers would

    with pytest.raises(np.linalg.LinAlgError, match="converge"):
        two_stage._call(fails, np.eye(4))


@pytest.mark.parametrize("broken", ["_NAMES = ('no_such_routine_',)", "np.linalg._umath_linalg.__file__ = '/no/such'"])
def test_without_the_routine_numpy_answers(broken):
    """In a process of its own, as the routine is looked up once."""
    code = f"""
        import numpy as np
        from lorascope.linalg import torch_lapack, two_stage
        {broken.replace("_NAMES", "two_stage._NAMES")}
        two_stage.LARGE = 1
        torch_lapack.routine = lambda name: None
        assert two_stage._routine() is two_stage._fastest() is None
        assert np.allclose(two_stage.eigenvalues(np.diag([3.0, 1.0, 2.0])), [1, 2, 3])
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


@pytest.mark.parametrize("present", [("two stages",), ("torch's",), ("two stages", "torch's")])
def test_the_faster_of_those_that_are_there_is_taken(monkeypatch, present):
    made = {"two stages": lambda: 1, "torch's": lambda: 2}
    monkeypatch.setattr(two_stage, "_routine", lambda: made["two stages"] if "two stages" in present else None)
    monkeypatch.setattr(torch_lapack, "routine", lambda name: made["torch's"] if "torch's" in present else None)
    monkeypatch.setattr(two_stage, "fastest", lambda question, calls, versions: list(calls)[-1])
    assert two_stage._fastest() is made[present[-1]]


def test_what_is_timed_is_the_routine_itself(monkeypatch):
    seen = []
    monkeypatch.setattr(two_stage, "TIMED", 8)
    monkeypatch.setattr(two_stage, "_call", lambda routine, matrix: seen.append((routine, matrix.shape)))
    one, other = (lambda: 1), (lambda: 2)
    monkeypatch.setattr(two_stage, "_routine", lambda: one)
    monkeypatch.setattr(torch_lapack, "routine", {"dsyevd_": other}.get)
    monkeypatch.setattr(
        two_stage, "fastest", lambda _, calls, versions: [call() for call in calls.values()] and "torch's"
    )
    assert two_stage._fastest() is other
    assert seen == [(one, (8, 8)), (other, (8, 8))]
