"""All eigenvalues of a large symmetric matrix, by the faster of the LAPACKs at hand.

numpy calls dsyevd, which brings the matrix to tridiagonal form in one stage: half of that is matrix times vector, which
runs at the speed of memory. In two stages, by way of a band (`band`), it is matrix products, and passes over the band.
MKL's dsyevd, which torch carries, is as fast in its own way on an Intel processor, and slower on AMD's: `calibration`
knows. All are backward stable: each eigenvalue moves by eps·‖G‖₂.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from lorascope.linalg import band, torch_lapack
from lorascope.linalg.fastest_routine import fastest

# The shorter side from which two stages cost less. One thread, CPU seconds of one and of two stages: AMD EPYC with
# AVX-512, OpenBLAS 0.3.31, 0.07 and 0.09 at 1024, 0.63 and 0.56 at 2048, 2.9 and 1.8 at 3072, 7.7 and 4.0 at 4096;
# Intel Xeon (Sapphire Rapids) 0.12 and 0.11 at 1024, 1.04 and 0.63 at 2048, 9.4 and 5.4 at 4096, where MKL takes 3.5.
LARGE = 2048
LARGEST = 46340  # whose entries 32-bit integers, which torch's LAPACK has, can count
TIMED = 1536  # the size at which the routines are compared, for half a second once on a machine
Eigenvalues = Callable[[np.ndarray], np.ndarray]


def eigenvalues(symmetric: np.ndarray) -> np.ndarray:
    """The eigenvalues (n,) of a symmetric matrix (n, n), ascending, in float64. The matrix is used up.

    Raises:
        numpy.linalg.LinAlgError: the iteration did not converge.
    """
    fits = LARGE <= len(symmetric) <= LARGEST and symmetric.dtype == np.float64 and _contiguous(symmetric)
    found = _fastest() if fits else None
    return np.linalg.eigvalsh(symmetric) if found is None else found(symmetric)


def _fastest() -> Eigenvalues | None:
    """By numpy's LAPACK in two stages or by torch's, whichever is faster here; None where there is neither."""
    found: dict[str, Eigenvalues] = {}
    if band.routines() is not None:
        found["two stages"] = band.eigenvalues
    if torch_lapack.routine("dsyevd_") is not None:
        found["torch's"] = _by_torch

    def timed(method: Eigenvalues) -> Callable[[], object]:
        return lambda: method(np.random.default_rng(0).standard_normal((TIMED, TIMED)))  # of the lower triangle

    calls = {name: timed(method) for name, method in found.items()}
    question = f"eigenvalues of {TIMED}, a band of {band.WIDTH}"
    return found[fastest(question, calls, _versions())] if found else None


def _versions() -> list[str]:
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and rarely needed

    try:
        return [f"numpy {np.__version__}", f"torch {version('torch')}"]
    except PackageNotFoundError:
        return [f"numpy {np.__version__}"]


def _contiguous(matrix: np.ndarray) -> bool:
    return bool(matrix.flags.writeable and (matrix.flags.c_contiguous or matrix.flags.f_contiguous))


def _by_torch(symmetric: np.ndarray) -> np.ndarray:
    routine = torch_lapack.routine("dsyevd_")
    assert routine is not None
    return _call(routine, symmetric)


def _call(routine: Callable[..., Any], symmetric: np.ndarray) -> np.ndarray:
    """Integers have 64 bits here, of which a LAPACK with 32 reads the lower half: they are small and not negative."""
    n = len(symmetric)
    values = np.empty(n)
    sizes = np.array([n, max(1, n), -1, -1, 0], np.int64)  # n, its stride, two lengths of workspace, what went wrong
    work, integers = np.zeros(1), np.zeros(1, np.int64)
    order, stride, room, integer_room, info = (sizes[i:].ctypes.data_as(ctypes.c_void_p) for i in range(5))

    def run() -> None:
        data = (array.ctypes.data_as(ctypes.c_void_p) for array in (symmetric, values, work, integers))
        a, w, floats, whole = data
        letters = (ctypes.c_char_p(b"N"), ctypes.c_char_p(b"L"))
        lengths = (ctypes.c_size_t(1), ctypes.c_size_t(1))  # of the two letters, as Fortran passes them
        routine(*letters, order, a, stride, w, floats, room, whole, integer_room, info, *lengths)
        if sizes[4] != 0:
            raise np.linalg.LinAlgError("the eigenvalues did not converge")

    run()  # asks how much workspace it needs
    sizes[2], sizes[3] = int(work[0]), int(integers[0])
    work, integers = np.zeros(sizes[2]), np.zeros(sizes[3], np.int64)
    run()
    return values
