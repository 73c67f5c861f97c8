"""Eigenvalues of a large symmetric matrix by way of a band, with three routines of the LAPACK behind numpy.

dsytrd_sy2sb brings the matrix to a band, which is matrix products; dsytrd_sb2st the band to tridiagonal form, in passes
over it (Haidar, Ltaief and Dongarra 2011, "Parallel reduction to condensed forms for symmetric eigenvalue problems
using aggregated fine-grained and memory-aware kernels"); dsterf finds the eigenvalues of that. LAPACK's dsyevd_2stage
is these three with a band of 32, too narrow for fast products (`WIDTH`).
"""

import ctypes
import math
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

# CPU seconds of the whole on one thread of an AMD EPYC with AVX2, OpenBLAS 0.3.31, at widths of 32, 48, 64, 96: 0.77,
# 0.77, 0.77, 0.82 at 2048; 3.0, 2.7, 2.5, 2.6 at 3072; 6.6, 6.1, 5.4, 6.0 at 4096.
WIDTH = 64
ROUTINES = ("dsytrd_sy2sb", "dsytrd_sb2st", "dsterf")
# As OpenBLAS's wheels, OpenBLAS with 64-bit integers, and plain LAPACK have them.
_NAMES = ("scipy_{}_64_", "{}_64_", "{}_")
_RANGE = 400  # entries of 2**±400 can be squared, and summed


@cache
def routines() -> tuple[Callable[..., Any], ...] | None:
    """The three of the LAPACK behind `numpy.linalg`; None where that lacks one."""
    try:  # looks through the libraries that this one is linked with
        library = ctypes.CDLL(np.linalg._umath_linalg.__file__)  # type: ignore[attr-defined]
    except (AttributeError, OSError, TypeError):
        return None
    for name in _NAMES:
        found = [each for routine in ROUTINES if (each := getattr(library, name.format(routine), None)) is not None]
        if len(found) == len(ROUTINES) and sys.byteorder == "little":
            for each in found:
                each.restype = None
            return tuple(found)
    return None


def eigenvalues(symmetric: np.ndarray) -> np.ndarray:
    """The eigenvalues (n,), ascending, of a contiguous symmetric matrix (n, n) in float64, which is used up.

    Raises:
        numpy.linalg.LinAlgError: the iteration did not converge.
    """
    found = routines()
    assert found is not None
    to_band, to_tridiagonal, values_of = found
    n, size = len(symmetric), _in_range(symmetric)
    band = np.zeros((n, WIDTH + 1))  # its rows are a Fortran array's columns: the diagonal, and what is below it
    diagonal, beside, scales = np.empty((3, n))  # of which the last two need a little less
    _with_room(to_band, 1, b"L", n, WIDTH, symmetric, n, band, WIDTH + 1, scales)
    _with_room(to_tridiagonal, 2, b"Y", b"N", b"L", n, WIDTH, band, WIDTH + 1, diagonal, beside)
    _call(values_of, n, diagonal, beside)
    return diagonal / size


def _in_range(symmetric: np.ndarray) -> float:
    """Scale by a power of two where entries are so large or small that their squares are not numbers; the factor."""
    top = max(float(symmetric.max()), -float(symmetric.min()))
    exponent = math.frexp(top)[1]
    if abs(exponent) <= _RANGE:
        return 1.0
    factor = 2.0 ** (-3 * exponent // 4)  # that of the smallest number would be infinite with the whole of it
    symmetric *= factor
    return factor


def _with_room(routine: Callable[..., Any], spaces: int, *given: Any) -> None:
    """Call a routine whose last arguments are so many workspaces and their lengths, which it is asked for first."""
    asked = [np.zeros(1) for _ in range(spaces)]
    _call(routine, *given, *(part for space in asked for part in (space, -1)))
    made = [np.empty(int(space[0])) for space in asked]
    _call(routine, *given, *(part for space in made for part in (space, len(space))))


def _call(routine: Callable[..., Any], *given: Any) -> None:
    """Letters, integers and arrays as Fortran takes them, then a place for what went wrong.

    Integers have 64 bits here, of which a LAPACK with 32 reads the lower half: they are small, or -1 in both.
    """
    info = np.zeros(1, np.int64)
    held = [np.array([each], np.int64) if isinstance(each, int) else each for each in (*given, info)]
    arguments = [
        ctypes.c_char_p(each) if isinstance(each, bytes) else each.ctypes.data_as(ctypes.c_void_p) for each in held
    ]
    routine(*arguments, *(ctypes.c_size_t(1) for each in given if isinstance(each, bytes)))
    if info[0]:
        raise np.linalg.LinAlgError("the eigenvalues did not converge")
