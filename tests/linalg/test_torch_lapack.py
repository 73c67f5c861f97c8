"""Where the library that torch carries is looked for, and what becomes of it where there is none."""

import ctypes
import importlib.util
import platform
import sys
from types import SimpleNamespace

import pytest

from lorascope.linalg import torch_lapack

TORCH = SimpleNamespace(origin="/site/torch/__init__.py")


@pytest.fixture
def loaded(monkeypatch):
    """The paths that were loaded, on Linux with torch on x86-64 so far."""
    paths = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: TORCH if name == "torch" else None)

    class Library(ctypes.CDLL):
        def __init__(self, path):
            paths.append(path)

    monkeypatch.setattr(torch_lapack.ctypes, "CDLL", Library)
    return paths


def test_on_linux_it_lies_in_torchs_folder(loaded):
    assert torch_lapack._library.__wrapped__() is not None
    assert loaded == ["/site/torch/lib/libtorch_cpu.so"]


@pytest.mark.parametrize("system", ["win32", "darwin"])
@pytest.mark.parametrize("machine", ["x86_64", "arm64"])
def test_elsewhere_nothing_is_loaded(loaded, monkeypatch, system, machine):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert torch_lapack._library.__wrapped__() is None
    assert not loaded


def test_nor_on_another_processor(loaded, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert torch_lapack._library.__wrapped__() is None
    assert not loaded


@pytest.mark.parametrize("spec", [None, SimpleNamespace(origin=None)])
def test_without_torch_there_is_none(loaded, monkeypatch, spec):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert torch_lapack._library.__wrapped__() is None
    assert not loaded


def test_nor_where_it_does_not_load(loaded, monkeypatch):
    def fails(path):
        raise OSError(path)

    monkeypatch.setattr(torch_lapack.ctypes, "CDLL", fails)
    assert torch_lapack._library.__wrapped__() is None


@pytest.mark.parametrize("library", [None, SimpleNamespace()])
def test_a_routine_that_is_missing_is_none(monkeypatch, library):
    monkeypatch.setattr(torch_lapack, "_library", lambda: library)
    assert torch_lapack.routine.__wrapped__("dsyevd_") is None


def test_a_routine_returns_nothing(monkeypatch):
    def found():
        return 1

    found.restype = int
    monkeypatch.setattr(torch_lapack, "_library", lambda: SimpleNamespace(dsyevd_=found))
    assert torch_lapack.routine.__wrapped__("dsyevd_") is found
    assert found.restype is None
