"""What is set for a process, seen from outside."""

import ctypes
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from lorascope.linalg.blas import one_thread, prepare_process


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_one_thread_inside_and_as_many_as_before_after(monkeypatch):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        with one_thread():
            assert blas_threads() == {1}
            np.linalg.svd(np.eye(16))
        assert blas_threads() == before
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # the environment has seen to it
        with one_thread():
            assert blas_threads() == before


@pytest.mark.parametrize(("platform", "calls"), [("linux", [(-3, 2**28), (-1, 2**28)]), ("darwin", [])])
def test_a_process_is_prepared_before_numpy_is_loaded(monkeypatch, platform, calls):
    """mallopt's numbers are glibc's, malloc.h: M_MMAP_THRESHOLD −3, M_TRIM_THRESHOLD −1."""
    made = []
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda *given: made.append(given)))
    monkeypatch.setattr(sys, "platform", platform)
    prepare_process()
    assert not made
    assert "OPENBLAS_NUM_THREADS" not in os.environ
    monkeypatch.delitem(sys.modules, "numpy")
    prepare_process()
    assert made == calls
    assert os.environ["OPENBLAS_NUM_THREADS"] == "1"
