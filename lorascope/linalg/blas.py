"""How the host runs many small decompositions: one BLAS thread, and memory that is kept between them."""

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Iterator

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP = 1 << 28
_OBJECTS = 20_000  # new ones between two looks for cycles: importing makes 70,000, and Python looks every 700


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Limit BLAS to one thread inside the block: more make 16 × 16 LAPACK calls up to ten times slower.

    Free where the environment already says so.
    """
    if os.environ.get("OPENBLAS_NUM_THREADS") == "1":
        yield
        return
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


def prepare_process() -> None:
    """For a command that does nothing else: one BLAS thread from the start, and freed arrays kept for the next one.

    Without the second, glibc hands each array's pages back and faults them in again: a sixth of the CPU time of an 8B
    adapter. Does nothing where numpy is already loaded, and only the first on another C library. Python looks for
    cycles less often: a fortieth of the same time.
    """
    if "numpy" in sys.modules:
        return
    gc.set_threshold(_OBJECTS)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEEP)
        mallopt(_M_TRIM_THRESHOLD, _KEEP)
